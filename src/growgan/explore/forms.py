"""What the explorer's page asks with: forms, and what they may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from growgan.errors import UserError
from growgan.growth.model import Sheet
from growgan.plain import folder_name

IMAGES = 144  # of an answer: as many are drawn within 0.3 s
Picks = Annotated[list[int], Field(max_length=16)]
Amount = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Form(BaseModel):
    """What a page asks with: how its sheet is drawn, truncated or not, of some classes or all.

    Picks are numbers of the images on that sheet.
    """

    model_config = ConfigDict(extra="forbid")

    candidate: Annotated[str, AfterValidator(folder_name)] | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    count: int = Field(36, ge=1, le=IMAGES)
    truncation: float | None = Field(None, ge=0.05, le=10)
    labels: list[int] | None = None

    @property
    def sheet(self) -> Sheet:
        """What the images were drawn with."""
        return {
            "count": self.count,
            "seed": self.seed,
            "truncation": self.truncation,
            "labels": self.labels or None,
        }

    def checked(self) -> None:
        """Raise a :class:`UserError` for what is of the right types, and cannot be answered."""


def _few(images: int) -> None:
    if images > IMAGES:
        raise UserError(f"an answer has {IMAGES} images at most, and this would have {images}")


class VaryForm(Form):
    """A sample and what moves it: amounts along directions, values of latents."""

    pick: int = 0
    along: dict[int, Amount] = Field(default_factory=dict)
    latents: dict[int, Amount] = Field(default_factory=dict)


class WalkForm(Form):
    """Samples to walk between, and images a way."""

    picks: Picks
    steps: int = Field(8, ge=1, le=32)

    def checked(self) -> None:
        """Raise a :class:`UserError` if this would be too many images."""
        _few((len(self.picks) - 1) * self.steps + 1)


class CombineForm(Form):
    """Sets of samples to add, and to take away."""

    plus: list[Picks] = Field(max_length=4)
    minus: list[Picks] = Field(default_factory=list, max_length=4)


class MixForm(Form):
    """Samples for coarse styles, and for fine ones."""

    rows: Picks
    columns: Picks

    def checked(self) -> None:
        """Raise a :class:`UserError` if there is nothing to mix, or too much."""
        if not self.rows or not self.columns:
            raise UserError("styles are mixed of one sample or more for rows, and for columns")
        _few(len(self.rows) * len(self.columns))


class MorphForm(Form):
    """Classes to pass through, images a way, and latents."""

    labels: list[int] = Field(min_length=2, max_length=8)
    steps: int = Field(6, ge=1, le=16)
    rows: int = Field(4, ge=1, le=8)

    @property
    def across(self) -> int:
        """Images a row."""
        return (len(self.labels) - 1) * self.steps + 1

    def checked(self) -> None:
        """Raise a :class:`UserError` if this would be too many images."""
        _few(self.across * self.rows)


class NearestForm(Form):
    """A sample, and how many training images."""

    pick: int = 0
    shown: int = Field(5, ge=1, le=20)
