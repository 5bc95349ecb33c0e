"""The search: propose, train a slice, score, select, write down; round after round.

Each policy, fixed stacks included, goes through here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from growgan.growth.desk import planned
from growgan.growth.executor import Crew, Executor, Task
from growgan.growth.history import Candidate, History, Proposal
from growgan.growth.policies import Selection
from growgan.growth.recorded import Recorded
from growgan.training.doctor import TREATMENTS

LATE = 2  # slices of the leader that a growth which came late may cost
FAILURES = TREATMENTS + 1  # rounds in a row without a sound candidate, and the run ends


class Search(Recorded):
    """One run in one directory, which goes on."""

    def run(self, executor: Executor) -> Candidate | None:
        """Go on until the budget is spent or nothing trains any more; return the best candidate."""
        while self._goes_on() and self._round(executor):
            pass
        return self._finished()

    def _round(self, executor: Executor) -> bool:
        """Train a round's children and choose among them; return whether there were any."""
        proposals = self._proposals()
        self._ended = False
        children = list(self._unselected)
        for child in children:  # of a round that was cut short
            made = (child.parent, child.growth)
            keys = [(p.parent, p.growth) for p in proposals]
            if made in keys:
                del proposals[keys.index(made)]
        for outcome in executor.run(self._tasks(proposals)):
            children.append(self._record(outcome))
        if children:
            self._select(children)
        return bool(children)

    def run_freely(self, crew: Crew) -> Candidate | None:
        """Go on as :meth:`run` does, without rounds: who is free takes the next proposal at once.

        A single worker goes in rounds: nobody waits for it.
        """
        flying: dict[str, Task] = {}
        while True:
            self._abreast = crew.workers
            if self.meter.budget.seconds is not None:
                self.history = replace(self.history, workers=self._abreast)
            if not flying and self._abreast == 1:
                if not self._goes_on() or not self._round(crew):
                    break
                continue
            if len(self._unselected) == 1:  # the last process ended before it was judged
                self._arrived(self._unselected[0], ())
            elif self._unselected:  # of a round that was cut short
                self._select(self._unselected)
            while len(flying) < self._abreast and self._goes_on(flying.values()):
                task = self._next(flying.values())
                if task is None:
                    break
                crew.submit(task)
                flying[task.id] = task
            if not flying:
                break
            outcome = crew.wait()
            del flying[outcome.task.id]
            self._ended = False
            self._arrived(self._record(outcome), flying.values())
        return self._finished()

    def _arrived(self, child: Candidate, flying: Iterable[Task]) -> None:
        """Judge a child that others are still training beside.

        A growth is held against who has trained on from the same leader for as long, as in a round:
        what is done before that one is back waits for it. What was alone in its round is judged
        alone.
        """
        known = self.history.with_round((child,), self.history.alive)
        if child.round < self._since:
            self._settle(known, self._late(child, known))
            return
        leader = next(iter(known.alive), None)
        open_ = any(t.proposal.parent == leader and not t.proposal.growth for t in flying)
        if child.growth and open_:
            reason = f"{child.id} waits until {leader} has trained on"
            self._settle(known, Selection(known.alive, reason))
        else:
            others = [known[name] for name in self._waiting() if name != child.id]
            self._settle(known, self.policy.select([child, *others], known))

    def _late(self, child: Candidate, known: History) -> Selection:
        """Return what becomes of a child that was begun under an earlier leader.

        Time has passed, in which its rival has trained on. If it gained against that rival at equal
        training, at most ``LATE`` slices ago, the leader's training since then is given up for it.
        """
        line = known.lineage(known[known.alive[0]])
        rival = next((c for c in line if c.parent == child.parent and not c.growth), None)
        if child.growth and not child.error and rival is not None:
            verdict = self.policy.select([rival, child], known)
            since = line[line.index(rival) + 1 :]
            soon = len(since) <= LATE and not any(c.growth for c in since)
            # No parent is left to go back to if the growth does not take.
            before, after = known[rival.parent or ""].score, child.score
            took = after is not None and before is not None and after < before
            if verdict.alive[0] == child.id and soon and took:
                return Selection((child.id,), f"late: {verdict.reason}")
        return Selection(known.alive, f"{child.id} came too late")

    def _finished(self) -> Candidate | None:
        if not self._ended:
            self._end()
        return self.history.best

    def _next(self, flying: Collection[Task]) -> Task | None:
        """Return what to try next beside what is tried already, None if that is all."""
        known = {(task.proposal.parent, task.proposal.growth) for task in flying}
        fresh = [p for p in self._proposals() if (p.parent, p.growth) not in known]
        return next(self._tasks(fresh[:1], flying), None)

    def _alive(self) -> list[Candidate]:
        return [self.history[name] for name in self.history.alive]

    def _proposals(self) -> list[Proposal]:
        return list(self.policy.propose(self._alive(), self.history))

    def _goes_on(self, flying: Iterable[Task] = ()) -> bool:
        """Return whether there is budget for another child, and hope."""
        return self._room(flying) and not self._hopeless() and not self._given_up

    def _end(self) -> None:
        """Write down with which candidate the run ends, what it cost, and what stopped it."""
        costs = {kind: round(seconds, 2) for kind, seconds in self.meter.costs.items()}
        best, elapsed = self.history.best, self.meter.elapsed
        costs["other"] = round(max(0.0, elapsed - sum(costs.values())), 2)
        event = {"best": best and best.id, "elapsed": round(elapsed, 3), "cost": costs}
        if self._hopeless() or self._given_up:
            event["stopped"] = self._given_up or self.history.candidates[-1].error
        self.ledger.append({"event": "end", **event})

    def _hopeless(self) -> bool:
        """Return whether every candidate of the last few rounds failed."""
        if self._abreast > 1:  # each that is back is a round
            count = FAILURES * self._abreast
            newest = self.history.candidates[-count:]
            return len(newest) == count and all(c.error for c in newest)
        last = range(self.history.round - FAILURES, self.history.round)
        recent = [c for c in self.history.candidates if c.round in last]
        return {c.round for c in recent} == set(last) and all(c.error for c in recent)

    def _room(self, flying: Iterable[Task] = ()) -> bool:
        if not self.history.candidates and not self._unselected:
            return True  # the first slice always has some
        return self.desk.room(self.meter.images + planned(flying), self._overhead)

    def _tasks(self, proposals: list[Proposal], flying: Collection[Task] = ()) -> Iterator[Task]:
        tried = (*self.history.candidates, *self._unselected)
        known = [each.id for each in tried] + [task.id for task in flying]
        last = max(map(int, known), default=-1)
        return self.desk.tasks(
            proposals, self.history, self._of_round, last + 1, self._overhead, planned(flying)
        )

    def _select(self, children: list[Candidate]) -> None:
        """Let the policy choose among a round's children."""
        known = self.history.with_round(tuple(children), self.history.alive)
        self._settle(known, self.policy.select(children, known))
