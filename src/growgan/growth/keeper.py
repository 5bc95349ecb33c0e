"""What a child in training shows, logs and keeps, so that a crash costs little of it."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from growgan.errors import UserError
from growgan.growth.budget import Meter
from growgan.growth.executor import Standing, Task
from growgan.growth.history import History
from growgan.growth.ledger import Ledger
from growgan.growth.stop import Stop
from growgan.nets.spec import without_fade
from growgan.plain import digest
from growgan.training.checkpoint import MANIFEST, check_files, load_gan, load_mark, save_gan
from growgan.training.gan import Gan
from growgan.training.progress import Display, Status
from growgan.training.stage import Mark, Progress

KEEP_EVERY = 30.0  # seconds between two saves of a child in training
KEEP_SHARE = 0.05  # of the time, that these saves may take


class RunKeeper:
    """The :class:`Keeper` of a run directory.

    A child in training is saved as ``candidates/.0007.at-IMAGES``, until its own folder is there.

    Args:
        out: the run directory.
        batch: images a step.
        device: where what was saved is loaded to.
        history: returns what has been tried so far.
    """

    def __init__(
        self,
        out: Path,
        batch: int,
        meter: Meter,
        display: Display,
        stop: Stop,
        device: str,
        history: Callable[[], History],
    ) -> None:
        self.out, self.batch, self.meter, self.display = out, batch, meter, display
        self.stop, self.device, self.history = stop, device, history
        self.ledger = Ledger(out / "ledger.jsonl")
        self._keep_at = 0.0

    def report(self, task: Task, gan: Standing, progress: Progress | None) -> None:
        """Show and log a point of a child's training (None: it is being scored)."""
        size = f"{gan.resolution[1]}x{gan.resolution[0]}"
        fading = "fade in" if gan.alpha < 1 else "train"
        history = self.history()
        best, tried = history.best, history.candidates
        status = Status(
            candidate=task.id,
            stage=f"{fading} {size}" if progress else f"score {size}",
            resolution=gan.resolution,
            alpha=gan.alpha,
            images=gan.images,
            images_per_second=progress.rate if progress else 0.0,
            losses=progress.terms if progress else {},
            score=tried[-1].score if tried else None,
            best=best.score if best else None,
            spent=self._spent_within(task, progress),
            elapsed=self.meter.elapsed,
            left=self.meter.left,
        )
        self.display.progress(status)
        if progress:
            line = {
                "candidate": task.id,
                "elapsed": round(status.elapsed, 3),
                "images": gan.images,
                "resolution": list(gan.resolution),
                "alpha": round(gan.alpha, 4),
                "images_per_second": round(progress.rate, 1),
                **progress.terms,
            }
            with (self.out / "stats.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def keep(self, task: Task, gan: Gan, mark: Mark) -> None:
        """Save a child in training now and then, and before the run is stopped here.

        Raises:
            KeyboardInterrupt: the run shall stop, and nothing is lost by it.
        """
        asked, now = self.stop.between_steps(), time.perf_counter()
        if now < self._keep_at and not asked:
            return
        save_gan(gan, self.out / "candidates" / f".{task.id}.at-{gan.images:012d}", mark)
        self.drop(task.id, but=1)
        took = time.perf_counter() - now
        self._keep_at = now + took + max(KEEP_EVERY, took / KEEP_SHARE)
        if asked:
            raise KeyboardInterrupt

    def out_of_memory(self, task: Task, parts: int) -> None:
        """Write down, and say, that batches go through in parts from now on, for want of memory."""
        self.ledger.append({"event": "memory", "candidate": task.id, "parts": parts})
        size = self.batch // parts
        self.display.message(
            f"short of memory: each batch now goes through {size} images at a time"
        )

    def begun(self, task: Task) -> tuple[Gan, Mark] | None:
        """Return the newest whole save of ``task`` in training, and where that stood."""
        self._keep_at = time.perf_counter() + KEEP_EVERY
        expected = tuple(without_fade(spec) for spec in task.proposal.specs(self.history()))
        for folder in self._kept(task.id):
            try:
                gan, mark = load_gan(folder, self.device), load_mark(folder)
            except UserError as error:
                self.display.message(f"{error}; going on without it")
                continue
            specs = tuple(without_fade(each.spec) for each in (gan.generator, gan.discriminator))
            if mark is not None and specs == expected:  # another budget may ask for another growth
                self.meter.advance(mark.seconds)
                return gan, mark
        return None

    def drop(self, candidate_id: str, but: int = 0) -> None:
        """Delete what is saved of a child in training, ``but`` the newest so many."""
        for folder in self._kept(candidate_id)[but:]:
            shutil.rmtree(folder)

    def seal(self, candidate_id: str) -> str | None:
        """Return the digest of a finished child's manifest, None if it left no files."""
        manifest = self.out / "candidates" / candidate_id / MANIFEST
        return digest(manifest) if manifest.exists() else None

    def check(self, candidate_id: str, seal: str | None) -> None:
        """Raise a :class:`UserError` unless a child's files are whole, and those with its seal."""
        folder = self.out / "candidates" / candidate_id
        check_files(folder)
        if seal is not None and self.seal(candidate_id) != seal:
            raise UserError(f"'{folder}/' is damaged: what it holds is another candidate's")

    def sweep(self, tried: Collection[str]) -> None:
        """Delete what never was finished, and saves of who was; ``tried`` are in the ledger.

        Raises:
            UserError: there are candidates that the ledger should know, or something else under
                such a name; nothing is deleted then.
        """
        places, useless, unknown = self.out / "candidates", [], []
        places.mkdir(exist_ok=True)
        for folder in sorted(places.iterdir()):
            ours = re.fullmatch(r"\.*(\d{4,})(\.at-\d+)?(\.partial)?", folder.name)
            if ours and (folder.is_symlink() or not folder.is_dir()):
                raise UserError(
                    f"'{folder}' has a candidate's name, and is no folder; move it away"
                )
            # Only a finished child's folder and an unfinished one's saves are of use.
            if ours and (ours[3] or (ours[2] and ours[1] in tried)):
                useless.append(folder)
            elif ours and not ours[2] and ours[1] not in tried:
                unknown.append(folder)
        if len(unknown) > 1:  # a crash comes between one child's folder and its line, at most
            raise UserError(
                f"'{self.ledger.path}' lacks lines: it does not know candidates "
                f"{', '.join(folder.name for folder in unknown)}; put it back as it was, or move "
                "their folders away to go on without them"
            )
        for folder in (*useless, *unknown):
            shutil.rmtree(folder)

    def _kept(self, candidate_id: str) -> list[Path]:
        """Return what is saved of a child in training, the newest first."""
        return sorted((self.out / "candidates").glob(f".{candidate_id}.at-*[0-9]"), reverse=True)

    def _spent_within(self, task: Task, progress: Progress | None) -> float:
        if self.meter.budget.seconds is not None:
            return self.meter.spent
        return self.meter.spent + task.proposal.share * (progress.share if progress else 1.0)
