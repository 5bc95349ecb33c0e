"""What a run knows of what it has tried: each child and each choice, written down as it comes.

Everything is in the ledger and the candidates' folders, so a run is resumed by reading them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from growgan.config import Settings, make_settings
from growgan.errors import UserError
from growgan.growth.budget import Budget, Meter
from growgan.growth.desk import Desk
from growgan.growth.executor import Clock, Outcome
from growgan.growth.history import Candidate, History, Space
from growgan.growth.keeper import RunKeeper
from growgan.growth.ledger import Ledger, candidate_from_event, candidate_to_event, in_line
from growgan.growth.policies import GrowthPolicy, Selection
from growgan.growth.stop import Stop
from growgan.objectives import LOSSES, paired
from growgan.report.sheet import save_sheet
from growgan.training.checkpoint import (
    FILES,
    MANIFEST,
    Files,
    load_gan,
    read_files,
    save_files,
    save_gan,
)
from growgan.training.doctor import TREATMENTS, Diagnosis, Vitals, diagnose, remedy
from growgan.training.gan import Gan
from growgan.training.progress import Display


class Recorded:
    """One run in one directory, as far as it has come.

    Args:
        out: the run directory; it exists and holds config.yaml and data.json.
        meter: already ticking, so that preparation is counted.
        device: where parents are loaded to.
        stop: asks, between two steps, whether the run shall end.
    """

    def __init__(
        self,
        out: Path,
        settings: Settings,
        space: Space,
        policy: GrowthPolicy,
        budget: Budget,
        meter: Meter,
        display: Display,
        device: str = "cpu",
        stop: Stop | None = None,
    ) -> None:
        self.out, self.settings, self.policy = out, settings, policy
        self.meter, self.display, self.device = meter, display, device
        self.ledger = Ledger(out / "ledger.jsonl")
        self.desk = Desk(meter, settings.batch)
        self.history = History(space, budget, settings.seed)
        self.keeper = RunKeeper(
            out, settings.batch, meter, display, stop or Stop(), device, lambda: self.history
        )
        self._gans: dict[str, Gan] = {}
        self._whole: set[str] = set()  # ids of those whose weights are still there
        self._unselected: list[Candidate] = []
        self.parts = 1  # in which a batch goes through; more once memory has run out
        self._overhead = 1.0
        self._vitals: dict[str, Vitals] = {}  # of those that are healthy
        self._treatments, self._given_up = 0, ""
        self._ended = False  # the ledger says so already
        self._seals: dict[str, str | None] = {}  # digests of the candidates' manifests
        self._of_round = settings  # what the children of a round are trained by
        self._since = 0  # the round from which the leader is the leader
        self._abreast = 1  # children in training at once
        self._replay()

    def parent(self, candidate_id: str) -> Gan:
        """Return a candidate's players, from memory or from disk."""
        if candidate_id not in self._gans:
            self._gans[candidate_id] = load_gan(self.folder(candidate_id), self.device)
        return self._gans[candidate_id]

    def files(self, candidate_id: str) -> Files:
        """Return the files of a candidate's players, for another process."""
        return read_files(self.folder(candidate_id))

    def folder(self, candidate_id: str) -> Path:
        """Return a candidate's folder."""
        return self.out / "candidates" / candidate_id

    def _record(self, outcome: Outcome) -> Candidate:
        """Save a finished child, then write it into the ledger."""
        clock, task = Clock(), outcome.task
        self.meter.images += outcome.images
        self._save(outcome, self.folder(task.id))
        for kind, seconds in {**outcome.costs, "save": clock.lap()}.items():
            self.meter.charge(kind, seconds)
            outcome.costs[kind] = seconds
        diagnosis = self._diagnose(outcome)
        candidate = self._candidate(outcome)
        self._overhead = 0.5 * (self._overhead + candidate.seconds - candidate.trained)
        event = candidate_to_event(candidate, outcome.sizes)
        vitals = outcome.vitals and outcome.vitals.to_json()
        # A growth that ails was a bad one; if the pair itself ails, its training must change.
        treated = diagnosis if not task.proposal.growth else None
        told = {"vitals": vitals, "memory": outcome.memory, "manifest": self.keeper.seal(task.id)}
        self.ledger.append({**event, **told, "ailment": treated and treated.name})
        self.keeper.drop(task.id)
        self.display.candidate(event)
        self._unselected.append(candidate)
        if treated is not None:
            self._treat(candidate, treated)
        return candidate

    def _save(self, outcome: Outcome, folder: Path) -> None:
        """Write down a finished pair, and its sheet."""
        if outcome.gan is not None:
            save_gan(outcome.gan, folder)
            self._gans[outcome.task.id] = outcome.gan
        elif outcome.files is not None:
            save_files(outcome.files, folder)
        if outcome.sheet is not None:
            save_sheet(outcome.sheet.numpy(), folder / "samples.png")
            self._whole.add(outcome.task.id)

    def _diagnose(self, outcome: Outcome) -> Diagnosis | None:
        """Return what ails a child, which is then a failed one."""
        proposal = outcome.task.proposal
        if outcome.lost:
            return None
        if outcome.vitals is None:
            return Diagnosis("divergence", outcome.error)
        before = self._vitals.get(proposal.parent or "")
        vitals = outcome.vitals = outcome.vitals.after(before)
        own, diagnosis = self.settings, None
        if own.doctor:
            diagnosis = diagnose(
                vitals,
                before,
                grew=bool(proposal.growth),
                ranks=LOSSES[own.loss].ranks,
                averages=bool(paired(own.regularisers)),
            )
        if diagnosis is None:
            self._vitals[outcome.task.id] = vitals
        else:
            outcome.error, outcome.score = diagnosis.sentence, None
        return diagnosis

    def _treat(self, candidate: Candidate, diagnosis: Diagnosis) -> None:
        """Train otherwise from now on, or give up after some treatments."""
        found = remedy(diagnosis.name, self.settings) if self._treatments < TREATMENTS else None
        changes, words = found or ({}, "")
        event: dict[str, Any] = {"candidate": candidate.id, "ailment": diagnosis.name}
        event |= {"diagnosis": diagnosis.sentence, "remedy": words, "settings": changes}
        self.ledger.append({"event": "doctor", **event})
        self._follow(event)
        what_now = f"going back, with {words}" if words else "stopping here"
        self.display.message(f"{candidate.id}: {diagnosis.sentence}; {what_now}")

    def _follow(self, event: Mapping[str, Any]) -> None:
        """Do what the doctor said."""
        self._treatments += 1
        self.settings = make_settings(self.settings.model_dump(), event["settings"])
        if not event["remedy"]:
            self._given_up = str(event["diagnosis"])

    def _candidate(self, outcome: Outcome) -> Candidate:
        task, score = outcome.task, outcome.score
        parent = task.proposal.parent
        before = self.history[parent].images if parent else 0
        specs = outcome.specs or task.proposal.specs(self.history)
        return Candidate(
            id=task.id,
            parent=parent,
            round=task.round,
            growth=task.proposal.growth,
            generator=specs[0],
            discriminator=specs[1],
            images=before + outcome.images,
            trained=outcome.trained,
            seconds=sum(outcome.costs.values()),
            rate=outcome.images / max(outcome.trained, 1e-9),
            score=score.value if score else None,
            stderr=score.stderr if score else None,
            elapsed=self.meter.elapsed,
            spent=self.meter.spent,
            parts=dict(score.parts) if score else {},
            error=outcome.error,
        )

    def _settle(self, known: History, choice: Selection) -> None:
        """Go on with a choice: write it down, and drop the losers' weights."""
        self._adopt(replace(known, alive=choice.alive))
        best = self.history.best
        event = {
            "event": "select",
            "round": self.history.round - 1,
            "alive": list(choice.alive),
            "best": best and best.id,
            "reason": choice.reason,
        }
        self.ledger.append(event)
        self.display.select(event)
        keep = {*choice.alive, *([best.id] if best else []), *self._waiting()}
        self._gans = {name: gan for name, gan in self._gans.items() if name in keep}
        # Their parents are what is left where a file turns out to be damaged.
        keep |= {self.history[name].parent or name for name in keep}
        for name in self._whole - keep:
            for file in (MANIFEST, *FILES[1:]):
                (self.folder(name) / file).unlink(missing_ok=True)
        self._whole &= keep

    def _adopt(self, known: History) -> None:
        """Take a history whose newest children are judged for this search's own."""
        if known.alive[:1] != self.history.alive[:1]:
            self._since = known.round
        self.history, self._unselected, self._of_round = known, [], self.settings

    def _waiting(self) -> list[str]:
        """Return the ids of growths that were done before who trains on from the same leader."""
        found = (c for c in self.history.candidates if c.round >= self._since)
        return [c.id for c in found if c.growth and not c.error]

    def _replay(self) -> None:
        """Rebuild the history from the ledger, and forget what was never written down."""
        tried: dict[str, Candidate] = {}
        ailing: tuple[Candidate, Diagnosis] | None = None  # who has not been treated
        for number, event in enumerate(self.ledger.read(), 1):
            kind = event["event"]
            if kind in ("candidate", "damage", "end"):
                self._ended = kind == "end"
            with in_line(self.ledger.path, number):
                if kind == "candidate":
                    ailing = self._relive(event, tried)
                else:
                    ailing = None if kind == "doctor" else ailing
                    self._repeat(event)
        self.keeper.sweep(tried)
        if ailing is not None:
            self._treat(*ailing)
        self._go_back()

    def _relive(
        self, event: Mapping[str, Any], tried: dict[str, Candidate]
    ) -> tuple[Candidate, Diagnosis] | None:
        """Take in a candidate of the ledger; return it with its ailment, if that is treated."""
        candidate = self._counted(candidate_from_event(event), tried)
        tried[candidate.id] = candidate
        self._unselected.append(candidate)
        self._whole.add(candidate.id)
        self._seals[candidate.id] = event.get("manifest")
        self._overhead = candidate.seconds - candidate.trained
        if event.get("vitals") and not candidate.error:
            self._vitals[candidate.id] = Vitals(**event["vitals"])
        ailment = event.get("ailment")
        return (candidate, Diagnosis(ailment, candidate.error)) if ailment else None

    def _repeat(self, event: Mapping[str, Any]) -> None:
        """Take in what else the ledger says."""
        if event["event"] == "select":
            self._adopt(self.history.with_round(tuple(self._unselected), tuple(event["alive"])))
        elif event["event"] == "doctor":
            self._follow(event)
        elif event["event"] == "memory":
            self.parts = event["parts"]
        elif event["event"] == "damage":
            lost, alive = frozenset(event["lost"]), tuple(event["alive"])
            self.history = replace(self.history, lost=lost, alive=alive)

    def _go_back(self) -> None:
        """Where the files of a living candidate are damaged, go on with its nearest whole ancestor.

        Raises:
            UserError: there is none.
        """
        problems: dict[str, str] = {}
        for candidate in (*self.history.candidates, *self._unselected):
            try:
                self.keeper.check(candidate.id, self._seals.get(candidate.id))
            except UserError as error:
                problems[candidate.id] = str(error)
        self._unselected = [
            replace(c, score=None, error=problems[c.id]) if c.id in problems else c
            for c in self._unselected
        ]
        needed = {*self.history.alive, *([best.id] if (best := self.history.best) else [])}
        broken = sorted(needed & set(problems))
        if not broken:
            return
        lines = [self.history.lineage(self.history[name]) for name in self.history.alive]
        whole = [next((c.id for c in line[::-1] if c.id not in problems), None) for line in lines]
        alive = tuple(dict.fromkeys(name for name in whole if name is not None))
        if not alive:
            raise UserError(f"the run cannot go on: {problems[broken[0]]}")
        self.history = replace(self.history, lost=frozenset(problems), alive=alive)
        self._ended = False
        best = self.history.best
        event = {"lost": sorted(problems), "alive": list(alive), "best": best and best.id}
        self.ledger.append({"event": "damage", "reason": problems[broken[0]], **event})
        self.display.message(f"{problems[broken[0]]}; going back to {', '.join(alive)}")

    def _counted(self, candidate: Candidate, tried: Mapping[str, Candidate]) -> Candidate:
        """Book a candidate of the ledger; its share is of the budget as it is now."""
        before = tried[candidate.parent].images if candidate.parent else 0
        self.meter.images += candidate.images - before
        self.meter.charge("train", candidate.trained)
        self.meter.charge("score", candidate.seconds - candidate.trained)
        budget = self.meter.budget
        if budget.images is not None:
            return replace(candidate, spent=self.meter.images / budget.images)
        return replace(candidate, spent=candidate.elapsed / (budget.seconds or 1))
