"""Asynchronous search: an idle worker immediately receives a new trial, without rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from growgan.execution.executor import AsyncExecutor
from growgan.execution.trial import Trial
from growgan.run.search_loop import MAX_FAILED_ROUNDS, SearchLoop
from growgan.search.history import Candidate, History
from growgan.search.policies import Selection

MAX_STALENESS_SEGMENTS = 2  # segments of the leader that a late growth may undo


class AsyncSearchLoop(SearchLoop):
    """A search loop that can also run without rounds: each finished trial is a round of its own.

    Attributes:
        num_workers: Number of trials that run at once in asynchronous mode.
    """

    num_workers = 1

    def run_async(self, executor: AsyncExecutor) -> Candidate | None:
        """Run trials until the budget is spent or training fails; return the best candidate.

        As long as there is a single worker, the search proceeds in rounds, because none would wait.
        """
        running: dict[str, Trial] = {}
        while True:
            self.num_workers = executor.num_workers
            self.set_num_workers(self.num_workers)
            if not running and self.num_workers == 1:
                if not self.should_continue() or not self.run_round(executor):
                    break
                continue

            # Select from what an earlier process trained.
            self._select_from_interrupted_round()

            # Propose: keep every worker busy.
            while len(running) < self.num_workers and self.should_continue(running.values()):
                trial = self._next_trial(running.values())
                if trial is None:
                    break
                executor.submit(trial)
                running[trial.id] = trial
            if not running:
                break

            # Train and score, record, and select, as soon as any trial is finished.
            result = executor.wait()
            del running[result.trial.id]
            child = self.record_result(result)
            self.on_trial_finished(child, running.values())
        return self.finish()

    def on_trial_finished(self, child: Candidate, running: Iterable[Trial]) -> None:
        """Select from one finished candidate while others are still training.

        A growth is compared with the segment in which its leader trained without growth, as in a
        round. It waits for that segment if it is still running. A candidate without such a
        counterpart is selected from alone.
        """
        state, history = self.state, self.history_with_pending()
        if child.round < state.leader_since_round:
            self.record_selection(self._select_stale(child, history))
            return
        leader_id = next(iter(history.survivor_ids), None)
        leader_is_training = any(
            trial.proposal.parent_id == leader_id and not trial.proposal.growth for trial in running
        )
        if child.growth and leader_is_training:
            reason = f"{child.id} waits for the next segment of {leader_id}"
            self.record_selection(Selection(history.survivor_ids, reason))
            return
        waiting = [history[candidate_id] for candidate_id in state.waiting_growth_ids()]
        self.record_selection(self.policy.select([child, *waiting], history))

    def has_too_many_failures(self) -> bool:
        """Return whether every one of the last candidates failed."""
        if self.num_workers == 1:
            return super().has_too_many_failures()
        count = MAX_FAILED_ROUNDS * self.num_workers
        newest = self.state.history.candidates[-count:]
        return len(newest) == count and all(candidate.error for candidate in newest)

    def _select_stale(self, child: Candidate, history: History) -> Selection:
        """Select from a candidate whose parent is no longer the leader.

        Meanwhile the leader has trained on. If the growth was better than the leader after equal
        training, at most :data:`MAX_STALENESS_SEGMENTS` segments ago, it replaces the leader.
        """
        lineage = history.lineage(history[history.survivor_ids[0]])
        rival = next(
            (
                candidate
                for candidate in lineage
                if candidate.parent_id == child.parent_id and not candidate.growth
            ),
            None,
        )
        if child.growth and not child.error and rival is not None:
            comparison = self.policy.select([rival, child], history)
            later = lineage[lineage.index(rival) + 1 :]
            is_recent = len(later) <= MAX_STALENESS_SEGMENTS and not any(
                candidate.growth for candidate in later
            )
            # The growth must have recovered, because the way back to its parent is closed.
            parent_score = history[rival.parent_id or ""].score
            has_recovered = (
                child.score is not None and parent_score is not None and child.score < parent_score
            )
            if comparison.survivor_ids[0] == child.id and is_recent and has_recovered:
                return Selection((child.id,), f"late: {comparison.reason}")
        return Selection(history.survivor_ids, f"{child.id} came too late")

    def _select_from_interrupted_round(self) -> None:
        pending = self.state.pending
        if len(pending) == 1:
            self.on_trial_finished(pending[0], ())
        elif pending:
            self.record_selection(self.policy.select(pending, self.history_with_pending()))

    def _next_trial(self, running: Collection[Trial]) -> Trial | None:
        """Return the first proposal that is not running yet as a trial, None if there is none."""
        running_keys = {(trial.proposal.parent_id, trial.proposal.growth) for trial in running}
        new = [
            proposal
            for proposal in self.propose()
            if (proposal.parent_id, proposal.growth) not in running_keys
        ]
        return next(self.allocate_trials(new[:1], running), None)
