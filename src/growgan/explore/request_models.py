"""The requests of the explorer's page, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from growgan.errors import UserError
from growgan.jsonl import validate_id
from growgan.sampling.latents import MAX_TRUNCATION, MIN_LATENT_TRUNCATION
from growgan.sampling.trained_generator import SampleSpec

MAX_IMAGES_PER_RESPONSE = 144  # as many are generated within 0.3 s
MAX_IMAGES_PER_DOWNLOAD = 4096
MAX_INDICES = 16  # samples in one selection
MAX_INTERPOLATED_CLASSES = 8
MAX_OFFSET = 100.0  # absolute value of an offset or of a latent value

SampleIndices = Annotated[list[int], Field(max_length=MAX_INDICES)]
Offset = Annotated[float, Field(ge=-MAX_OFFSET, le=MAX_OFFSET, allow_inf_nan=False)]


class ExplorerRequest(BaseModel):
    """The samples that are shown. Indices in other requests refer to them."""

    model_config = ConfigDict(extra="forbid")

    candidate: Annotated[str, AfterValidator(validate_id)] | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    count: int = Field(36, ge=1, le=MAX_IMAGES_PER_RESPONSE)
    truncation: float | None = Field(None, ge=MIN_LATENT_TRUNCATION, le=MAX_TRUNCATION)
    labels: list[int] | None = None

    @property
    def sample_spec(self) -> SampleSpec:
        """The arguments that identify the samples."""
        return {
            "count": self.count,
            "seed": self.seed,
            "truncation": self.truncation,
            "labels": self.labels or None,
        }

    def check(self) -> None:
        """Check what types and ranges of single fields cannot express.

        Raises:
            UserError: The request cannot be answered.
        """


class DownloadRequest(ExplorerRequest):
    """Samples to download. They may be more than the page shows."""

    count: int = Field(36, ge=1, le=MAX_IMAGES_PER_DOWNLOAD)

    @field_validator("labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        """Accept labels like ``0,3``, as in a URL."""
        return value.split(",") if isinstance(value, str) else value


class EditLatentRequest(ExplorerRequest):
    """A sample, offsets along directions, and values of latent dimensions."""

    index: int = 0
    direction_offsets: dict[int, Offset] = Field(default_factory=dict)
    latent_values: dict[int, Offset] = Field(default_factory=dict)


class InterpolateRequest(ExplorerRequest):
    """Samples to interpolate between, and the number of images per segment."""

    indices: SampleIndices
    steps: int = Field(8, ge=1, le=32)

    def check(self) -> None:
        """Check the number of images."""
        _check_image_count((len(self.indices) - 1) * self.steps + 1)


class LatentArithmeticRequest(ExplorerRequest):
    """Sets of samples whose mean latents are added or subtracted."""

    plus: list[SampleIndices] = Field(max_length=4)
    minus: list[SampleIndices] = Field(default_factory=list, max_length=4)


class StyleMixRequest(ExplorerRequest):
    """Samples for the coarse styles of the rows and the fine styles of the columns."""

    row_indices: SampleIndices
    column_indices: SampleIndices

    def check(self) -> None:
        """Check the number of samples and of images."""
        if not self.row_indices or not self.column_indices:
            raise UserError("style mixing needs at least one sample for rows and one for columns")
        _check_image_count(len(self.row_indices) * len(self.column_indices))


class InterpolateClassesRequest(ExplorerRequest):
    """Classes to interpolate between, images per segment, and the number of latents."""

    labels: list[int] = Field(min_length=2, max_length=MAX_INTERPOLATED_CLASSES)
    steps: int = Field(6, ge=1, le=16)
    rows: int = Field(4, ge=1, le=8)

    @property
    def images_per_row(self) -> int:
        """Number of images per latent."""
        return (len(self.labels) - 1) * self.steps + 1

    def check(self) -> None:
        """Check the number of images."""
        _check_image_count(self.images_per_row * self.rows)


class NearestImagesRequest(ExplorerRequest):
    """A sample, and how many of the nearest training images to return."""

    index: int = 0
    num_neighbors: int = Field(5, ge=1, le=20)


def _check_image_count(count: int) -> None:
    if count > MAX_IMAGES_PER_RESPONSE:
        raise UserError(
            f"a response holds at most {MAX_IMAGES_PER_RESPONSE} images, but this request needs "
            f"{count}"
        )
