"""The search loop: propose, train, score, select and record, round after round.

Every policy runs through it, including the one that never grows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from growgan.config import Settings
from growgan.errors import UserError
from growgan.execution.executor import Executor
from growgan.execution.signals import GracefulShutdown
from growgan.execution.stopwatch import Stopwatch
from growgan.execution.trial import Trial, TrialResult
from growgan.objectives import LOSSES, target_based_regularizers
from growgan.report.image_files import save_image_grid
from growgan.run.budget_allocator import BudgetAllocator, BudgetMeter, allocated_images
from growgan.run.checkpointer import TrialCheckpointer
from growgan.run.ledger import Ledger, candidate_to_event, naming_line
from growgan.run.run_callback import RunCallback
from growgan.run.run_directory import LEDGER_FILE, SAMPLE_SHEET_FILE, candidate_dir
from growgan.run.search_state import SearchState
from growgan.search.budget import Budget
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies import GrowthPolicy, Selection
from growgan.training.checkpoint import (
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    CheckpointFiles,
    load_gan,
    read_files,
    save_files,
    save_gan,
)
from growgan.training.gan import Gan
from growgan.training.health import MAX_MITIGATIONS, Diagnosis, diagnose, mitigation
from growgan.training.progress import Display

MAX_FAILED_ROUNDS = MAX_MITIGATIONS + 1  # consecutive rounds in which every candidate failed


class SearchLoop:
    """Runs or resumes the search of one run.

    The policy decides. The loop saves the candidates and appends an event to the ledger for each
    change. Everything else it has to know is in :attr:`state`, which is computed from the events.

    Args:
        run_dir: The run directory, prepared by :func:`initialize_run`.
        settings: Settings of the run.
        space: The networks that the search may build.
        policy: Decides what to try and to keep.
        budget: Budget of the run.
        meter: Measures what is spent. It runs already, so that preparation counts.
        display: Shows the progress.
        device: Device that candidates are loaded to.
        shutdown: Asked between training steps whether to stop.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Settings,
        *,
        space: SearchSpace,
        policy: GrowthPolicy,
        budget: Budget,
        meter: BudgetMeter,
        display: Display,
        device: str = "cpu",
        shutdown: GracefulShutdown | None = None,
    ) -> None:
        self.run_dir, self.policy, self.meter = run_dir, policy, meter
        self.display, self.device = display, device
        self.ledger = Ledger(run_dir / LEDGER_FILE)
        self.allocator = BudgetAllocator(meter, settings.batch_size)
        self.state = SearchState(History(space, budget, settings.seed), settings)
        self.checkpointer = TrialCheckpointer(
            run_dir, meter=meter, shutdown=shutdown or GracefulShutdown(), device=device
        )
        self.callback = RunCallback(
            run_dir,
            batch_size=settings.batch_size,
            state=self.state,
            meter=meter,
            display=display,
            checkpointer=self.checkpointer,
            record=self._record,
        )
        self._loaded_gans: dict[str, Gan] = {}
        self._ids_with_weights: set[str] = set()
        self._replay_ledger()

    def run(self, executor: Executor) -> Candidate | None:
        """Run rounds until the budget is spent or training fails; return the best candidate."""
        while self.should_continue() and self.run_round(executor):
            pass
        return self.finish()

    def run_round(self, executor: Executor) -> bool:
        """Run one round of the search. Return False if there was nothing to try."""
        # Propose: which growths of which survivors to try.
        proposals = self._without_pending(self.propose())

        # Allocate: give each proposal a segment of the remaining budget.
        trials = self.allocate_trials(proposals)

        # Train and score: the executor yields one result per trial, in order.
        for result in executor.run(trials):
            # Record: save the weights, check the health, and append the candidate to the ledger.
            self.record_result(result)

        if not self.state.pending:
            return False

        # Select: the policy compares the candidates and chooses the survivors.
        history = self.history_with_pending()
        selection = self.policy.select(self.state.pending, history)

        # Record: append the selection to the ledger, and delete the weights of the others.
        self.record_selection(selection)
        return True

    def finish(self) -> Candidate | None:
        """Record the end of the search, unless that is done; return the best candidate."""
        if not self.state.has_ended:
            self._record_end()
        return self.state.history.best

    def set_num_workers(self, num_workers: int) -> None:
        """Tell the policy how many candidates are trained at once, unless images are counted."""
        if self.meter.budget.seconds is not None:
            self.state.history = replace(self.state.history, num_workers=num_workers)

    def load_candidate(self, candidate_id: str) -> Gan:
        """Return a candidate's GAN, from memory or from disk."""
        if candidate_id not in self._loaded_gans:
            folder = candidate_dir(self.run_dir, candidate_id)
            self._loaded_gans[candidate_id] = load_gan(folder, self.device)
        return self._loaded_gans[candidate_id]

    def read_candidate_files(self, candidate_id: str) -> CheckpointFiles:
        """Return the files of a candidate's GAN, to send them to another process."""
        return read_files(candidate_dir(self.run_dir, candidate_id))

    # Decisions

    def propose(self) -> list[Proposal]:
        """Return what the policy wants to try next."""
        return list(self.policy.propose(self.state.survivors, self.state.history))

    def allocate_trials(
        self, proposals: Iterable[Proposal], running: Collection[Trial] = ()
    ) -> Iterator[Trial]:
        """Yield a trial for each proposal that the budget allows, besides those ``running``."""
        ids = [candidate.id for candidate in self.state.candidates]
        ids += [trial.id for trial in running]
        return self.allocator.allocate_trials(
            proposals,
            self.state.history,
            self.state.round_settings,
            first_id=max(map(int, ids), default=-1) + 1,
            overhead_seconds=self.state.overhead_seconds,
            images_in_flight=allocated_images(running),
        )

    def should_continue(self, running: Iterable[Trial] = ()) -> bool:
        """Return whether another trial fits into the budget and training has not failed."""
        if self.state.stop_reason or self.has_too_many_failures():
            return False
        if not self.state.candidates:
            return True  # even the smallest budget allows one candidate
        images_seen = self.meter.images_seen + allocated_images(running)
        return self.allocator.has_budget_for_trial(images_seen, self.state.overhead_seconds)

    def has_too_many_failures(self) -> bool:
        """Return whether every candidate of the last few rounds failed."""
        history = self.state.history
        last_rounds = range(history.round - MAX_FAILED_ROUNDS, history.round)
        recent = [candidate for candidate in history.candidates if candidate.round in last_rounds]
        return {candidate.round for candidate in recent} == set(last_rounds) and all(
            candidate.error for candidate in recent
        )

    def history_with_pending(self) -> History:
        """Return the history including the pending candidates, with the survivors unchanged."""
        history = self.state.history
        return history.with_round(tuple(self.state.pending), history.survivor_ids)

    def _without_pending(self, proposals: Iterable[Proposal]) -> list[Proposal]:
        """Leave out what an interrupted round has trained already."""
        remaining = list(proposals)
        for candidate in self.state.pending:
            keys = [(proposal.parent_id, proposal.growth) for proposal in remaining]
            if (candidate.parent_id, candidate.growth) in keys:
                del remaining[keys.index((candidate.parent_id, candidate.growth))]
        return remaining

    # Records

    def record_result(self, result: TrialResult) -> Candidate:
        """Save a trained candidate, check its health, and append it to the ledger."""
        stopwatch, trial = Stopwatch(), result.trial
        self.meter.images_seen += result.images_trained
        self._save_result(result)
        result.seconds_by_phase["save"] = stopwatch.lap()
        for phase, seconds in result.seconds_by_phase.items():
            self.meter.add_phase_seconds(phase, seconds)
        diagnosis = self._check_health(result)
        if trial.proposal.growth:
            diagnosis = None  # the growth was bad, but training itself need not change
        event = candidate_to_event(self._build_candidate(result), result.num_parameters) | {
            "health_metrics": result.health.to_json() if result.health else None,
            "peak_memory_mib": result.peak_memory_mib,
            "manifest_digest": self.checkpointer.manifest_digest(trial.id),
            "failure": diagnosis.failure if diagnosis else None,
        }
        self._record(event)
        candidate = self.state.pending[-1]
        self.checkpointer.prune(trial.id)
        self.display.candidate(event)
        if self.state.unmitigated:
            self._mitigate(*self.state.unmitigated)
        return candidate

    def record_selection(self, selection: Selection) -> None:
        """Append a selection to the ledger, and delete the weights that are not needed."""
        pending = tuple(self.state.pending)
        history = self.state.history.with_round(pending, selection.survivor_ids)
        event = {
            "event": "select",
            "round": self.state.history.round,
            "survivors": list(selection.survivor_ids),
            "best": history.best and history.best.id,
            "reason": selection.reason,
        }
        self._record(event)
        self.display.select(event)
        self._delete_unneeded_weights()

    def _record(self, event: dict[str, Any]) -> None:
        """Append an event to the ledger and update the state by it."""
        self.ledger.append(event)
        self.state.apply(event)

    def _record_end(self) -> None:
        """Record the best candidate, the cost by phase, and what stopped the run early."""
        history, elapsed = self.state.history, self.meter.elapsed
        cost = {phase: round(seconds, 2) for phase, seconds in self.meter.phase_seconds.items()}
        cost["other"] = round(max(0.0, elapsed - sum(cost.values())), 2)
        event: dict[str, Any] = {
            "event": "end",
            "best": history.best and history.best.id,
            "elapsed": round(elapsed, 3),
            "cost": cost,
        }
        if self.state.stop_reason or self.has_too_many_failures():
            event["stop_reason"] = self.state.stop_reason or history.candidates[-1].error
        self._record(event)

    def _build_candidate(self, result: TrialResult) -> Candidate:
        trial, score = result.trial, result.score
        history, parent_id = self.state.history, trial.proposal.parent_id
        generator_spec, discriminator_spec = result.specs or trial.proposal.initial_specs(history)
        return Candidate(
            id=trial.id,
            parent_id=parent_id,
            round=trial.round,
            growth=trial.proposal.growth,
            generator_spec=generator_spec,
            discriminator_spec=discriminator_spec,
            images_seen=(history[parent_id].images_seen if parent_id else 0)
            + result.images_trained,
            train_seconds=result.train_seconds,
            seconds=sum(result.seconds_by_phase.values()),
            images_per_second=result.images_trained / max(result.train_seconds, 1e-9),
            score=score.value if score else None,
            score_stderr=score.stderr if score else None,
            elapsed=self.meter.elapsed,
            spent_fraction=self.meter.spent_fraction,
            score_components=dict(score.components) if score else {},
            error=result.error,
        )

    # Files

    def _save_result(self, result: TrialResult) -> None:
        """Write the checkpoint and the sample sheet of a candidate."""
        folder = candidate_dir(self.run_dir, result.trial.id)
        if result.gan is not None:
            save_gan(result.gan, folder)
            self._loaded_gans[result.trial.id] = result.gan
        elif result.checkpoint_files is not None:
            save_files(result.checkpoint_files, folder)
        if result.sample_images is not None:
            save_image_grid(result.sample_images.numpy(), folder / SAMPLE_SHEET_FILE)
            self._ids_with_weights.add(result.trial.id)

    def _delete_unneeded_weights(self) -> None:
        """Keep the weights of survivors, the best candidate and waiting growths.

        Their parents keep theirs, too: they are what is left if a file turns out to be damaged.
        """
        history = self.state.history
        needed = {*history.survivor_ids, *self.state.waiting_growth_ids()}
        if history.best:
            needed.add(history.best.id)
        self._loaded_gans = {
            candidate_id: gan
            for candidate_id, gan in self._loaded_gans.items()
            if candidate_id in needed
        }
        needed |= {history[candidate_id].parent_id or candidate_id for candidate_id in needed}
        for candidate_id in self._ids_with_weights - needed:
            for name in (MANIFEST_FILE, *CHECKPOINT_FILES[1:]):  # spec.json stays
                (candidate_dir(self.run_dir, candidate_id) / name).unlink(missing_ok=True)
        self._ids_with_weights &= needed

    # Health

    def _check_health(self, result: TrialResult) -> Diagnosis | None:
        """Return the training failure of a candidate, if any. The candidate then counts as failed.

        A lost worker is not a training failure.
        """
        if result.worker_lost:
            return None
        if result.health is None:
            return Diagnosis("divergence", result.error)
        settings, proposal = self.state.settings, result.trial.proposal
        previous = self.state.health_by_id.get(proposal.parent_id or "")
        result.health = result.health.with_history(previous)
        if not settings.health_checks:
            return None
        diagnosis = diagnose(
            result.health,
            previous,
            grew=bool(proposal.growth),
            loss_ranks_real_above_fake=LOSSES[settings.loss].ranks_real_above_fake,
            generator_predicts_mean=bool(target_based_regularizers(settings.regularizers)),
        )
        if diagnosis is not None:
            result.error, result.score = diagnosis.message, None
        return diagnosis

    def _mitigate(self, candidate: Candidate, diagnosis: Diagnosis) -> None:
        """Change the training settings after a failure. After too many changes, stop the run."""
        change = None
        if self.state.num_mitigations < MAX_MITIGATIONS:
            change = mitigation(diagnosis.failure, self.state.settings)
        settings, description = change or ({}, "")
        self._record(
            {
                "event": "mitigation",
                "candidate": candidate.id,
                "failure": diagnosis.failure,
                "diagnosis": diagnosis.message,
                "mitigation": description,
                "settings": settings,
            }
        )
        reaction = f"going back, with {description}" if description else "stopping here"
        self.display.message(f"{candidate.id}: {diagnosis.message}; {reaction}")

    # Resume

    def _replay_ledger(self) -> None:
        """Rebuild the state from the ledger, and delete files that it does not mention.

        Raises:
            UserError: The ledger is invalid, or the run cannot continue from its files.
        """
        for line_number, event in enumerate(self.ledger.read(), 1):
            with naming_line(self.ledger.path, line_number):
                self.state.apply(event)
        candidates = self.state.candidates
        self._ids_with_weights = {candidate.id for candidate in candidates}
        self.meter.images_seen = self.state.images_trained
        for candidate in candidates:
            self.meter.add_phase_seconds("train", candidate.train_seconds)
            self.meter.add_phase_seconds("score", candidate.seconds - candidate.train_seconds)
        self.checkpointer.remove_orphans(self._ids_with_weights)
        if self.state.unmitigated:
            self._mitigate(*self.state.unmitigated)
        self._recover_from_corruption()

    def _recover_from_corruption(self) -> None:
        """Replace survivors whose files are damaged by their nearest intact ancestors.

        Raises:
            UserError: No survivor has an intact ancestor.
        """
        errors: dict[str, str] = {}
        for candidate in self.state.candidates:
            try:
                expected_digest = self.state.manifest_digests.get(candidate.id)
                self.checkpointer.verify(candidate.id, expected_digest)
            except UserError as error:
                errors[candidate.id] = str(error)
        self.state.fail_pending(errors)
        history = self.state.history
        needed = {*history.survivor_ids, *([history.best.id] if history.best else [])}
        damaged = sorted(needed & set(errors))
        if not damaged:
            return
        reason = errors[damaged[0]]
        survivor_ids = self._intact_ancestor_ids(errors)
        if not survivor_ids:
            raise UserError(f"the run cannot continue: {reason}")
        event: dict[str, Any] = {
            "event": "corruption",
            "reason": reason,
            "corrupted": sorted(errors),
            "survivors": survivor_ids,
        }
        self.state.apply(event)
        best = self.state.history.best
        self.ledger.append({**event, "best": best and best.id})
        self.display.message(f"{reason}; going back to {', '.join(survivor_ids)}")

    def _intact_ancestor_ids(self, errors: Collection[str]) -> list[str]:
        """Return, for each survivor, the id of its nearest ancestor without an error."""
        history = self.state.history
        lineages = [history.lineage(survivor) for survivor in self.state.survivors]
        ids = (
            next(
                (candidate.id for candidate in reversed(lineage) if candidate.id not in errors),
                None,
            )
            for lineage in lineages
        )
        return [candidate_id for candidate_id in dict.fromkeys(ids) if candidate_id is not None]
