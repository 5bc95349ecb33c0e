"""What a run may cost: seconds of wall clock, or images for exact repetition."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from growgan.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


@dataclass(frozen=True)
class Budget:
    """Exactly one of ``seconds`` (everything counted) and ``images`` (over all candidates)."""

    seconds: float | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.images is None):
            raise UserError("a budget is either a time (--budget 10m) or images (--images 500k)")
        if (self.seconds or self.images or 0) <= 0:
            raise UserError(f"a budget must be more than nothing, but got {self}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``90s``, ``10m``, ``2h``, ``1h30m``; or ``500k images``.

        Raises:
            UserError: anything else.
        """
        words = text.lower().split()
        if len(words) == 2 and words[1] == "images":
            return cls(images=parse_count(words[0]))
        pieces = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.lower())
        if not pieces or "".join(a + b for a, b in pieces) != text.lower().replace(" ", ""):
            raise UserError(f"budget must be like 90s, 10m, 2h or 1h30m, but got '{text}'")
        return cls(seconds=sum(float(number) * UNITS[unit] for number, unit in pieces))

    def to_json(self) -> dict[str, float]:
        """Return the one entry that is set."""
        if self.seconds is not None:
            return {"seconds": self.seconds}
        return {"images": self.images or 0}

    def __str__(self) -> str:
        if self.images is not None:
            return f"{self.images:,} images"
        seconds = self.seconds or 0
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def parse_count(text: str) -> int:
    """Read ``500k``, ``1.5m`` or ``20000``; raise a :class:`UserError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.lower().replace("_", ""))
    if not match:
        raise UserError(f"a number of images must be like 500k or 2m, but got '{text}'")
    return round(float(match[1]) * MULTIPLES[match[2]])


class Meter:
    """Counts what a run has spent. Time that an interrupted run lay idle is not counted.

    Attributes:
        images: real images trained on, over all candidates.
        costs: seconds by kind ("train", "score", "data", ...).
    """

    def __init__(self, budget: Budget, elapsed: float = 0.0, images: int = 0) -> None:
        self.budget = budget
        self.images = images
        self.costs: dict[str, float] = {}
        self._begun = time.perf_counter() - elapsed

    @property
    def elapsed(self) -> float:
        """Seconds on the run's clock."""
        return time.perf_counter() - self._begun

    @property
    def spent(self) -> float:
        """Share of the budget that is used, 0 to 1 and beyond."""
        if self.budget.seconds is not None:
            return self.elapsed / self.budget.seconds
        return self.images / (self.budget.images or 1)

    @property
    def left(self) -> float | None:
        """Seconds left; None where images are counted."""
        return None if self.budget.seconds is None else self.budget.seconds - self.elapsed

    def advance(self, seconds: float) -> None:
        """Count ``seconds`` that an earlier process spent."""
        self._begun -= seconds

    def charge(self, kind: str, seconds: float) -> None:
        """Book ``seconds`` under ``kind``."""
        self.costs[kind] = self.costs.get(kind, 0.0) + seconds
