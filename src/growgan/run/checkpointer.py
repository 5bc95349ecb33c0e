"""Checkpoints of trials in training, and integrity checks of saved candidates."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from growgan.errors import UserError
from growgan.execution.signals import GracefulShutdown
from growgan.execution.trial import Trial
from growgan.files import file_sha256
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, without_fade
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.run_directory import CANDIDATES_DIR, LEDGER_FILE, candidate_dir
from growgan.training.checkpoint import (
    MANIFEST_FILE,
    load_gan,
    load_resume_point,
    save_gan,
    verify_files,
)
from growgan.training.gan import Gan
from growgan.training.loop import ResumePoint

CHECKPOINT_INTERVAL_SECONDS = 30.0  # between two checkpoints of a trial
MAX_CHECKPOINT_TIME_FRACTION = 0.05  # of the time since the last checkpoint


class TrialCheckpointer:
    """Saves a trial in training as ``candidates/.0007.checkpoint-IMAGES`` until it is finished.

    Args:
        run_dir: The run directory.
        meter: Time that an interrupted trial has trained for is added to it.
        shutdown: Asked after each training step whether to stop.
        device: Device that checkpoints are loaded to.
    """

    def __init__(
        self, run_dir: Path, *, meter: BudgetMeter, shutdown: GracefulShutdown, device: str
    ) -> None:
        self.run_dir, self.meter = run_dir, meter
        self.shutdown, self.device = shutdown, device
        self._next_checkpoint_time = 0.0

    def save_if_due(self, trial: Trial, gan: Gan, resume_point: ResumePoint) -> None:
        """Save a trial if the last checkpoint is old enough, or if the run must stop.

        Raises:
            KeyboardInterrupt: The run must stop. The trial is saved.
        """
        must_stop, now = self.shutdown.should_stop(), time.perf_counter()
        if now < self._next_checkpoint_time and not must_stop:
            return
        name = f".{trial.id}.checkpoint-{gan.images_seen:012d}"
        save_gan(gan, self.run_dir / CANDIDATES_DIR / name, resume_point)
        self.prune(trial.id, keep_newest=1)
        seconds = time.perf_counter() - now
        interval = max(CHECKPOINT_INTERVAL_SECONDS, seconds / MAX_CHECKPOINT_TIME_FRACTION)
        self._next_checkpoint_time = now + seconds + interval
        if must_stop:
            raise KeyboardInterrupt

    def restore(
        self,
        trial: Trial,
        initial_specs: tuple[GeneratorSpec, DiscriminatorSpec],
        on_damaged: Callable[[str], None],
    ) -> tuple[Gan, ResumePoint] | None:
        """Return the newest intact checkpoint of a trial and where to resume it, if there is one.

        Args:
            trial: The trial.
            initial_specs: Specs of G and D at its start. With another budget, the same id may
                stand for another growth, whose checkpoint is not used.
            on_damaged: Receives a message for each damaged checkpoint, which is skipped.
        """
        self._next_checkpoint_time = time.perf_counter() + CHECKPOINT_INTERVAL_SECONDS
        expected_specs = tuple(without_fade(spec) for spec in initial_specs)
        for folder in self._checkpoints(trial.id):
            try:
                gan, resume_point = load_gan(folder, self.device), load_resume_point(folder)
            except UserError as error:
                on_damaged(f"{error}; continuing without it")
                continue
            specs = without_fade(gan.generator.spec), without_fade(gan.discriminator.spec)
            if resume_point is not None and specs == expected_specs:
                self.meter.add_elapsed(resume_point.seconds_trained)
                return gan, resume_point
        return None

    def prune(self, candidate_id: str, keep_newest: int = 0) -> None:
        """Delete the checkpoints of a trial, except for the newest ``keep_newest``."""
        for folder in self._checkpoints(candidate_id)[keep_newest:]:
            shutil.rmtree(folder)

    def manifest_digest(self, candidate_id: str) -> str | None:
        """Return the SHA-256 of a candidate's manifest, None if the candidate left no files."""
        manifest = candidate_dir(self.run_dir, candidate_id) / MANIFEST_FILE
        return file_sha256(manifest) if manifest.exists() else None

    def verify(self, candidate_id: str, expected_digest: str | None) -> None:
        """Check that a candidate's files are intact and belong to it.

        Args:
            candidate_id: The candidate.
            expected_digest: SHA-256 of its manifest, None if it is unknown.

        Raises:
            UserError: A file is missing or damaged, or belongs to another candidate.
        """
        folder = candidate_dir(self.run_dir, candidate_id)
        verify_files(folder)
        if expected_digest is not None and self.manifest_digest(candidate_id) != expected_digest:
            raise UserError(f"'{folder}/' is damaged: its files belong to another candidate")

    def remove_orphans(self, recorded_ids: Collection[str]) -> None:
        """Delete unfinished candidates, and checkpoints that are no longer needed.

        Args:
            recorded_ids: Ids of the candidates in the ledger.

        Raises:
            UserError: Several candidates are missing in the ledger, or a name that belongs to a
                candidate is not that of a folder. Nothing is deleted in either case.
        """
        candidates_dir = self.run_dir / CANDIDATES_DIR
        candidates_dir.mkdir(exist_ok=True)
        unneeded: list[Path] = []
        unrecorded: list[Path] = []
        for path in sorted(candidates_dir.iterdir()):
            match = re.fullmatch(r"\.*(\d{4,})(\.checkpoint-\d+)?(\.partial)?", path.name)
            if match is None:
                continue
            candidate_id, checkpoint, partial = match.groups()
            if path.is_symlink() or not path.is_dir():
                raise UserError(
                    f"'{path}' has the name of a candidate, but is not a folder; move it away"
                )
            if partial or (checkpoint and candidate_id in recorded_ids):
                unneeded.append(path)
            elif not checkpoint and candidate_id not in recorded_ids:
                unrecorded.append(path)
        # A crash between saving a candidate and recording it leaves one such folder at most.
        if len(unrecorded) > 1:
            raise UserError(
                f"'{self.run_dir / LEDGER_FILE}' lacks lines: it does not contain the candidates "
                f"{', '.join(path.name for path in unrecorded)}; restore the file, or move their "
                "folders away to continue without them"
            )
        for path in (*unneeded, *unrecorded):
            shutil.rmtree(path)

    def _checkpoints(self, candidate_id: str) -> list[Path]:
        """Return the checkpoints of a trial, the newest first."""
        pattern = f".{candidate_id}.checkpoint-*[0-9]"
        return sorted((self.run_dir / CANDIDATES_DIR).glob(pattern), reverse=True)
