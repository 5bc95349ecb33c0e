"""The budget of a run: wall-clock seconds, or training images for exact repetition."""

from __future__ import annotations

import math
import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from growgan.errors import UserError

SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
COUNT_SUFFIXES = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


class Budget(BaseModel):
    """What a run may spend: exactly one of ``seconds`` and ``images``.

    Raises:
        UserError: Both or neither are given, or the amount is not a positive finite number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seconds: float | None = Field(None, description="Wall-clock time, all work included.")
    images: int | None = Field(None, description="Training images, summed over all candidates.")

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if (self.seconds is None) == (self.images is None):
            raise UserError("a budget is either a time (--budget 10m) or images (--images 500k)")
        amount = self.seconds if self.images is None else self.images
        if amount is None or not 0 < amount < math.inf:
            raise UserError(f"budget must be positive and finite, but got {self}")
        return self

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse a time such as ``90s``, ``10m``, ``2h`` or ``1h30m``, or ``500k images``.

        Raises:
            UserError: ``text`` is neither.
        """
        words = text.lower().split()
        if len(words) == 2 and words[1] == "images":
            return cls(images=parse_count(words[0]))
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.lower())
        if not parts or "".join(a + b for a, b in parts) != text.lower().replace(" ", ""):
            raise UserError(f"budget must be like 90s, 10m, 2h or 1h30m, but got '{text}'")
        return cls(seconds=sum(float(number) * SECONDS_PER_UNIT[unit] for number, unit in parts))

    def to_json(self) -> dict[str, float]:
        """Return the one entry that is set."""
        return self.model_dump(exclude_none=True)

    def __str__(self) -> str:
        if self.images is not None:
            return f"{self.images:,} images"
        seconds = self.seconds or 0
        return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def parse_count(text: str) -> int:
    """Parse a number of images such as ``500k``, ``1.5m`` or ``20000``.

    Raises:
        UserError: ``text`` is not such a number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.lower().replace("_", ""))
    if not match:
        raise UserError(f"number of images must be like 500k or 2m, but got '{text}'")
    return round(float(match[1]) * COUNT_SUFFIXES[match[2]])
