"""Every setting, in one tree: defaults, a preset's values, and dotted overrides.

Unknown keys are errors. A setting is documented where it is defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
)

from growgan.errors import UserError, unknown

Rate = Literal["plain", "equalised", "transfer", "normal", "spectral", "orthogonal"]
SPECTRAL: tuple[Rate, ...] = ("spectral", "orthogonal")  # divide by the largest singular value


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("a kernel's size must be odd")
    return size


OddKernel = Annotated[int, Field(ge=1, le=15), AfterValidator(_odd)]


class Group(BaseModel):
    """A frozen group of settings; unknown keys are refused."""

    # Defaults are made of their type, too: 1 for 1.0 would not look the same once read back.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


class OptimiserSettings(Group):
    """Adam, for both players."""

    lr: float = Field(2e-2, gt=0, description="step size")
    discriminator_lr: float | None = Field(None, gt=0, description="D's step size; None: as G's")
    beta1: float = Field(0.0, ge=0, lt=1, description="of the mean of gradients")
    beta2: float = Field(0.99, ge=0, lt=1, description="of the mean of their squares")
    epsilon: float = Field(1e-8, gt=0, description="added to the root of these")
    decay: float | None = Field(
        100_000, gt=0, description="images after which the rate falls as 1 / sqrt, or None"
    )


class StackSettings(Group):
    """The shape of the stacks that a preset builds."""

    latent: int = Field(128, ge=1, le=8192, description="length of z")
    width: int = Field(32, ge=1, le=8192, description="widest layer; see stage_width")
    discriminator_width: int | None = Field(None, ge=1, le=8192, description="None: as G's")
    taper: int = Field(2, ge=1, le=1024, description="full width up to this many base grids")
    discriminator_taper: int | None = Field(None, ge=1, le=1024, description="None: as G's")
    convolutions: int = Field(1, ge=1, le=4, description="layers a resolution")
    kernel: OddKernel = Field(3, description="pixels a side; odd")
    kind: str = Field("strided", description="block of every layer")
    discriminator_kind: str | None = Field(None, description="None: as G's")
    norm: str = Field("pixel", description="normalisation in G")
    discriminator_norm: str = Field("none", description="normalisation in D")
    base: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="base grid h, w; None: by aspect"
    )
    rate: Rate = Field("transfer", description="of learning, by width; see nets.layers.Scaled")
    discriminator_rate: Rate | None = Field(None, description="None: as G's")
    attention: int | None = Field(
        None, ge=4, description="side in pixels of the features that attend to each other"
    )
    mapping: int = Field(0, ge=0, le=32, description="dense layers between z and the styles")
    mixing: float = Field(0.0, ge=0, le=1, description="chance of styles of two latents")
    embedding: int = Field(0, ge=0, le=8192, description="of a label; 0: one number a class")
    label_stem: bool = Field(True, description="G's stem reads the label")
    latent_style: bool = Field(True, description="styles hold latents beside the label")
    modifier: int = Field(
        0, ge=0, le=32, description="blocks of the map before a frozen G; see growgan condition"
    )
    classes: int = Field(0, ge=0, le=8192, description="set by the data")
    continuous: int = Field(0, ge=0, description="set by the conditioning")
    judging: str = Field("plain", description="set by the conditioning")
    readouts: tuple[tuple[str, int], ...] = Field((), description="set by the conditioning")
    proxies: int = Field(0, ge=0, description="set by the conditioning")
    given: int = Field(0, ge=0, description="channels of the given images; set by the data")
    beside: bool = Field(True, description="D sees these, too; set by the conditioning")
    difference: bool = Field(False, description="G makes what is added to the given image")
    patches: bool = Field(False, description="D judges each place of its base grid")
    chunk: int = Field(0, ge=0, description="length of each layer's own piece of z; 0: all of it")
    deviation_group: int = Field(4, ge=0, description="minibatch deviation; 0 for none")
    kernels: int = Field(0, ge=0, le=1024, description="minibatch discrimination; 0 for none")
    energy: bool = Field(False, description="D is an autoencoder; set by the loss")

    def of(self, role: str) -> StackSettings:
        """Return the shape of one player."""
        own: dict[str, Any] = {}
        for name in ("width", "taper", "kind", "rate"):
            if role == "discriminator":
                own[name] = getattr(self, f"discriminator_{name}") or getattr(self, name)
            own[f"discriminator_{name}"] = None
        return self.model_copy(update=own)

    def scaled(self, generator: int, discriminator: int) -> StackSettings:
        """Return the shape with G and D so many times as wide."""
        widths = {
            "width": generator * self.width,
            "discriminator_width": discriminator * self.of("discriminator").width,
        }
        return self.model_copy(update=widths)


class ActionSettings(Group):
    """Which edits a search may try (DGGAN, section 3.1, and function-preserving ones)."""

    kernels: tuple[OddKernel, ...] = Field((3, 5), min_length=1, description="of appended layers")
    widths: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="of appended layers, relative to the image end"
    )
    kinds: tuple[str, ...] = Field((), description="blocks to append; none: that of the stacks")
    append: bool = Field(True, description="append layers at the same resolution")
    insert: bool = Field(True, description="insert identity-initialised residual layers")
    widen: bool = Field(True, description="double the width of a layer or a stack")
    widest: int = Field(1024, ge=1, le=8192, description="largest width of a grown stack")
    deepest: int = Field(64, ge=1, le=512, description="largest number of its layers")


class DataSettings(Group):
    """How images are prepared."""

    fit: Literal["auto", "border", "crop", "pad", "stretch"] = Field(
        "auto", description="how images come to the resolution; see load_images"
    )
    channels: Literal[1, 3, 4] | None = Field(None, description="None: what the images have")


class LabelSettings(Group):
    """Which labelled images are trained on."""

    share: float = Field(1.0, gt=0, le=1, description="of each class; below 1 labelled ones alone")
    only: int | None = Field(None, ge=0, description="the one class that there is")
    balance: bool = Field(False, description="repeat the images of rarer classes")


class AverageSettings(Group):
    """The running average of G that samples are drawn from."""

    half_life: float = Field(10_000, gt=0, description="in images")
    ramp: float = Field(0.15, ge=0, description="at most this share of the images seen so far")


class ScoreSettings(Group):
    """How a candidate is scored."""

    kind: Literal["fd", "swd", "intra-fd", "pairs"] = Field(
        "fd",
        description="domain Frechet; sliced Wasserstein; domain Frechet within classes; each beside"
        " its truth, where images are made from images",
    )
    samples: int = Field(5000, ge=16, le=100_000, description="drawn for each score")


class Settings(Group):
    """All that decides a run, beside the data and the budget."""

    preset: str = Field("pggan", description="see growgan list presets")
    policy: str = Field("dynamic", description="see growgan list policies")
    growth: dict[str, Any] = Field(default_factory=dict, description="fields of the policy")
    resolution: tuple[int, int] | None = Field(None, description="h, w; None: the data's own")
    seed: int = Field(0, ge=0, lt=2**32, description="of all that is drawn by chance")
    device: str = Field("auto", description="auto: a GPU where there is one, or the CPU")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of layers; auto: bfloat16 where the processor has it"
    )
    compile: bool = Field(False, description="each layer by itself, by torch.compile; for GPUs")
    threads: int | None = Field(
        None, ge=1, le=1024, description="None: measured; torch's own for --images"
    )
    doctor: bool = Field(True, description="treat what ails training; false: but for no numbers")
    loss: str = Field("relativistic", description="see growgan list losses")
    loss_options: dict[str, float] = Field(default_factory=dict, description="fields of the loss")
    regularisers: dict[str, dict[str, float | None]] = Field(
        default_factory=lambda: dict[str, dict[str, float | None]](r1={}, r2={}),
        description="fields of each; weight and every belong to all",
    )
    augment: str = Field("none", description="of all that D sees")
    augment_options: dict[str, float] = Field(default_factory=dict, description="its fields")
    conditioning: str = Field("none", description="what is made of labels")
    conditioning_options: dict[str, float] = Field(default_factory=dict, description="its fields")
    labels: LabelSettings = LabelSettings()
    origin: Literal["none", "reprogram", "fine-tune"] = Field(
        "none", description="how a run goes on from another one's pair; see growgan condition"
    )
    critic_steps: int = Field(1, ge=1, le=100, description="steps of D for one of G")
    batch: int = Field(32, ge=1, le=65536, description="images a step, of all ranks together")
    mirror: bool = Field(False, description="flip half of the reals left to right")
    anneal: float = Field(0.3, ge=0, le=1, description="last share of the budget: lr falls to 0")
    optimiser: OptimiserSettings = OptimiserSettings()
    average: AverageSettings = AverageSettings()
    stack: StackSettings = StackSettings()
    actions: ActionSettings = ActionSettings()
    data: DataSettings = DataSettings()
    score: ScoreSettings = ScoreSettings()
    tracking: tuple[str, ...] = Field((), description="where else a run is followed")

    @field_validator("tracking", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """Accept ``tensorboard,wandb``, and none."""
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip() not in ("", "none")]
        return value

    @field_validator("regularisers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """Accept ``r1,drift``, ``[r1, drift]`` and none for regularisers at their own strength."""
        if value is None or isinstance(value, str):
            value = [name for name in (value or "").split(",") if name not in ("", "none")]
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: {} for name in value}
        return value

    def to_yaml(self) -> str:
        """Return the settings as YAML that :meth:`from_yaml` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, path: Path) -> Settings:
        """Read settings from a file; raise a :class:`UserError` if they are not valid."""
        try:
            values = yaml.safe_load(path.read_text()) or {}
            if not isinstance(values, dict):
                raise ValueError("it holds no settings by name")
            return make_settings(values)
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read settings from '{path}': {error}") from error


def make_settings(*layers: Mapping[str, Any], overrides: Iterable[str] = ()) -> Settings:
    """Merge nested mappings, later ones over earlier ones, then ``key=value`` overrides.

    Raises:
        UserError: an unknown key, or a value that its setting cannot take.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merged(values, layer)
    # What a preset leaves out it means to leave out; an override changes one thing of many.
    values.setdefault("regularisers", Settings().regularisers)
    for text in overrides:
        values = merged(values, _nested(text))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _explained(error) from error


def _nested(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set takes key=value, but got '{text}'")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        nested = value
    if isinstance(nested, str):
        nested = _number(nested)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _number(text: str) -> float | str:
    """Return ``text`` as a float if it is one: YAML takes 2e-3 for a word."""
    try:
        return float(text)
    except ValueError:
        return text


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``old`` with what ``new`` says otherwise, group by group."""
    result = dict(old)
    for key, value in new.items():
        deeper = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if deeper else value
    return result


def _explained(error: ValidationError) -> UserError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown("setting", path[-1], _keys(path[:-1]))
    return UserError(f"setting '{key}' cannot be {first['input']!r}: {first['msg'].lower()}")


def _keys(path: list[str]) -> list[str]:
    group: type[BaseModel] = Settings
    for part in path:
        field = group.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            group = inner
    return list(group.model_fields)
