"""A run on disk: its events, and the generators of its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growgan.errors import UserError
from growgan.jsonl import check_ledger_format, read_records, validate_id
from growgan.run.ledger import Ledger
from growgan.run.run_directory import CANDIDATES_DIR, LEDGER_FILE, candidate_dir
from growgan.sampling.trained_generator import TrainedGenerator

WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Run:
    """A run directory, whether the run is finished or not."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run.

        Raises:
            UserError: ``path`` holds no run, or one of another format.
        """
        ledger_path = Path(path) / LEDGER_FILE
        if not ledger_path.is_file():
            raise UserError(f"'{path}' is not a run directory: it has no {LEDGER_FILE}")
        start_event = next(read_records(ledger_path, strict=False), {})
        if start_event.get("event") == "start":
            check_ledger_format(Path(path), start_event)
        return cls(Path(path))

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events of the ledger."""
        return list(Ledger(self.path / LEDGER_FILE).read())

    @property
    def best_id(self) -> str:
        """Id of the best candidate so far.

        Raises:
            UserError: No candidate is finished yet.
        """
        best_ids = [event["best"] for event in self.events if event.get("best")]
        if not best_ids:
            raise UserError(f"run '{self.path}' has no finished candidate yet")
        return str(best_ids[-1])

    @property
    def best(self) -> TrainedGenerator:
        """The generator of the best candidate."""
        return self.candidate(self.best_id)

    def candidate(self, candidate_id: str) -> TrainedGenerator:
        """Return the generator of a candidate.

        Raises:
            UserError: There is no such candidate, or its weights are deleted.
        """
        try:
            folder = candidate_dir(self.path, validate_id(candidate_id))
        except ValueError as error:
            raise UserError(f"'{self.path}' has no such candidate: {error}") from error
        if not (folder / WEIGHTS_FILE).is_file():
            weights = self.path.glob(f"{CANDIDATES_DIR}/*/{WEIGHTS_FILE}")
            available = sorted(path.parent.name for path in weights)
            raise UserError(
                f"candidate '{candidate_id}' has no weights in '{self.path}'; "
                f"these have: {', '.join(available) or 'none'}"
            )
        return TrainedGenerator(folder)
