"""The settings of a run: defaults, a preset's values, and ``key=value`` overrides.

Unknown keys are errors. Each setting is documented where it is defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

from growgan.errors import UserError, unknown_name_error

WeightInit = Literal["default", "normal", "orthogonal"]
Parametrization = Literal["none", "equalized", "spectral_norm"]
LrScaling = Literal["none", "width"]
LogitConditioningKind = Literal[
    "none",
    "concat",
    "projection",
    "dual_projection",
    "per_class_logits",
    "class_scores",
    "source_projection",
]


def _require_odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("a kernel size must be odd")
    return size


OddKernel = Annotated[int, Field(ge=1, le=15), AfterValidator(_require_odd)]


class SettingsGroup(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    # Convert defaults to their type as well, so that 1 and 1.0 look the same once read back.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )


class OptimizerSettings(SettingsGroup):
    """Adam, for the generator (G) and the discriminator (D)."""

    lr: float = Field(2e-2, gt=0, description="Learning rate of G, and of D unless it has its own.")
    discriminator_lr: float | None = Field(
        None, gt=0, description="Learning rate of D. If null, D uses the rate of G."
    )
    beta1: float = Field(0.0, ge=0, lt=1, description="Adam's decay rate of the mean gradient.")
    beta2: float = Field(
        0.99, ge=0, lt=1, description="Adam's decay rate of the mean squared gradient."
    )
    eps: float = Field(
        1e-8, gt=0, description="Added to the root of the mean squared gradient for stability."
    )
    lr_decay_images: float | None = Field(
        100_000,
        gt=0,
        description="Number of images after which the learning rate falls as 1 / sqrt(images)."
        " If null, it stays constant until the cooldown.",
    )


# Network settings with a counterpart for D, named discriminator_*.
ROLE_SPECIFIC_FIELDS = (
    "width",
    "full_width_scale",
    "block",
    "init",
    "parametrization",
    "lr_scaling",
)


class NetworkSettings(SettingsGroup):
    """The shape of the networks that a preset builds."""

    latent_dim: int = Field(128, ge=1, le=8192, description="Length of the latent vector z.")
    width: int = Field(
        32, ge=1, le=8192, description="Number of channels of the widest layers of G."
    )
    discriminator_width: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="Number of channels of the widest layers of D. If null, as in G.",
    )
    full_width_scale: int = Field(
        2,
        ge=1,
        le=1024,
        description="G keeps its full width up to this multiple of the base grid; above it the"
        " width halves with every doubling of the resolution.",
    )
    discriminator_full_width_scale: int | None = Field(
        None, ge=1, le=1024, description="The same limit for the width of D. If null, as in G."
    )
    layers_per_resolution: int = Field(
        1, ge=1, le=4, description="Number of layers at each resolution."
    )
    kernel_size: OddKernel = Field(
        3, description="Side of the convolution kernels in pixels; an odd number."
    )
    block: str = Field("strided", description="Block type of every layer of G.")
    discriminator_block: str | None = Field(
        None, description="Block type of every layer of D. If null, as in G."
    )
    norm: str = Field("pixel", description="Normalization layer in G.")
    discriminator_norm: str = Field("none", description="Normalization layer in D.")
    base_grid: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Height and width in pixels of the smallest feature maps. If null, they follow"
        " the aspect ratio of the images.",
    )
    init: WeightInit = Field(
        "default",
        description="Initial weights of G: default (normal with variance gain² / fan_in), normal"
        " (standard deviation 0.02) or orthogonal.",
    )
    discriminator_init: WeightInit | None = Field(
        None, description="Initial weights of D. If null, as in G."
    )
    parametrization: Parametrization = Field(
        "equalized",
        description="Parametrization of G's weights: none, equalized (unit normal weights that are"
        " scaled in each forward pass) or spectral_norm (divided by the largest singular value).",
    )
    discriminator_parametrization: Parametrization | None = Field(
        None, description="Parametrization of D's weights. If null, as in G."
    )
    lr_scaling: LrScaling = Field(
        "width",
        description="Scaling of the learning rate of G's layers: none, or width, which reduces the"
        " step of layers with more than 288 inputs by the square root of their number.",
    )
    discriminator_lr_scaling: LrScaling | None = Field(
        None, description="Scaling of the learning rate of D's layers. If null, as in G."
    )
    attention_resolution: int | None = Field(
        None,
        ge=4,
        description="Side in pixels of the feature maps that get a self-attention layer. If null,"
        " there is none.",
    )
    mapping_layers: int = Field(
        0, ge=0, le=32, description="Number of fully connected layers that map z to styles."
    )
    style_mixing_prob: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability that a training image mixes the styles of two latents.",
    )
    label_embedding_dim: int = Field(
        0,
        ge=0,
        le=8192,
        description="Length of the learned label embedding. If 0, labels are one-hot vectors.",
    )
    stem_uses_label: bool = Field(
        True, description="Feed the label to the first layer of G as well as to its norms."
    )
    styles_use_latent: bool = Field(
        True, description="Feed the latent as well as the label to conditional norms."
    )
    invertible_map_blocks: int = Field(
        0,
        ge=0,
        le=32,
        description="Number of blocks of the invertible map before a frozen G, as used by"
        " `growgan finetune --method reprogram`.",
    )
    residual_output: bool = Field(
        False, description="Add the output of G to its source image, in image-to-image tasks."
    )
    patch_discriminator: bool = Field(
        False, description="Let D classify every cell of its base grid instead of the whole image."
    )
    latent_chunk_dim: int = Field(
        0,
        ge=0,
        description="Length of the chunk of z that each layer receives (hierarchical latents). If"
        " 0, every layer receives all of z.",
    )
    mbstd_group_size: int = Field(
        4,
        ge=0,
        description="Group size of D's minibatch standard deviation layer. If 0, there is none.",
    )
    minibatch_discrimination_kernels: int = Field(
        0,
        ge=0,
        le=1024,
        description="Number of minibatch discrimination kernels in D. If 0, there are none.",
    )

    def for_role(self, role: str) -> Self:
        """Return the settings of one network, "generator" or "discriminator".

        The fields named ``discriminator_*`` take the place of those without the prefix.
        """
        values: dict[str, Any] = {}
        for name in ROLE_SPECIFIC_FIELDS:
            if role == "discriminator":
                values[name] = getattr(self, f"discriminator_{name}") or getattr(self, name)
            values[f"discriminator_{name}"] = None
        return self.model_copy(update=values)

    def scale_width(self, generator: int, discriminator: int) -> Self:
        """Return a copy with the widths of G and D multiplied by these integers."""
        widths = {
            "width": generator * self.width,
            "discriminator_width": discriminator * self.for_role("discriminator").width,
        }
        return self.model_copy(update=widths)


class NetworkConfig(NetworkSettings):
    """The network settings together with what the data, the conditioning and the loss decide.

    The fields below are derived. They are not settings: they cannot be set, and ``config.yaml``
    does not hold them.
    """

    label_dim: int = Field(0, ge=0, le=8192, exclude=True)
    num_continuous_codes: int = Field(0, ge=0, exclude=True)
    logit_conditioning: LogitConditioningKind = Field("none", exclude=True)
    linear_heads: tuple[tuple[str, int], ...] = Field((), exclude=True)
    class_embedding_dim: int = Field(0, ge=0, exclude=True)
    source_channels: int = Field(0, ge=0, exclude=True)
    discriminator_sees_source: bool = Field(True, exclude=True)
    is_autoencoder: bool = Field(False, exclude=True)


DERIVED_FIELDS = tuple(
    name for name in NetworkConfig.model_fields if name not in NetworkSettings.model_fields
)


class EditSettings(SettingsGroup):
    """The growths that a search may try (DGGAN, section 3.1, and function-preserving edits)."""

    kernel_sizes: tuple[OddKernel, ...] = Field(
        (3, 5), min_length=1, description="Kernel sizes in pixels of appended layers."
    )
    width_multipliers: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field(
        (0.5, 1.0, 2.0),
        min_length=1,
        description="Widths of appended layers, as multiples of the width of the last layer.",
    )
    blocks: tuple[str, ...] = Field(
        (), description="Block types of appended layers. If empty, the type of the other layers."
    )
    append: bool = Field(True, description="Try layers appended at the same resolution.")
    insert: bool = Field(True, description="Try inserted residual layers that start as identity.")
    widen: bool = Field(True, description="Try to double the width of one layer or of all layers.")
    max_width: int = Field(
        1024, ge=1, le=8192, description="Largest width in channels that a growth may reach."
    )
    max_layers: int = Field(
        64, ge=1, le=512, description="Largest number of layers that a growth may reach."
    )


class DataSettings(SettingsGroup):
    """How images are prepared."""

    fit: Literal["auto", "border", "crop", "pad", "stretch"] = Field(
        "auto",
        description="How images of another size are brought to the resolution: crop (scale to"
        " cover, cut out the center), pad (scale to fit, fill with 0), border (fill with 0 without"
        " scaling) or stretch. With auto, border if all images are at most a quarter smaller, else"
        " crop.",
    )
    channels: Literal[1, 3, 4] | None = Field(
        None,
        description="Number of image channels: 1 (gray), 3 (RGB) or 4 (RGBA). If null, as in the"
        " images.",
    )


class LabelSettings(SettingsGroup):
    """Which labeled images are used for training."""

    fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Fraction of each class's labeled images to train on. Below 1, unlabeled"
        " images are left out.",
    )
    only_class: int | None = Field(
        None, ge=0, description="Index of the only class to train on. If null, all classes."
    )
    balance: bool = Field(False, description="Repeat images of rare classes until all are equal.")


class EmaSettings(SettingsGroup):
    """The exponential moving average (EMA) of G's weights, from which samples are drawn."""

    half_life: float = Field(10_000, gt=0, description="Half-life of the average in images.")
    ramp: float = Field(
        0.15,
        ge=0,
        description="Upper limit of the half-life as a fraction of the images seen so far.",
    )


class ScoreSettings(SettingsGroup):
    """How a candidate is scored."""

    kind: Literal["fd", "swd", "intra-fd", "energy-score"] = Field(
        "fd",
        description="Distance to the real images: fd (Fréchet distance on the run's own features),"
        " swd (sliced Wasserstein distance), intra-fd (fd within each class) or energy-score"
        " (against each image's target, for image-to-image tasks).",
    )
    num_samples: int = Field(
        5000, ge=16, le=100_000, description="Number of samples drawn to score a candidate."
    )


class Settings(SettingsGroup):
    """Everything that determines a run, apart from the data and the budget."""

    preset: str = Field("pggan", description="Architecture; see `growgan list presets`.")
    policy: str = Field("dynamic", description="Growth policy; see `growgan list policies`.")
    growth: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the growth policy, by name; see `growgan list policies"
        " --markdown`.",
    )
    resolution: tuple[int, int] | None = Field(
        None,
        description="Height and width of the images in pixels. If null, those of the data.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed.")
    device: str = Field(
        "auto", description="Device to train on, such as cpu or cuda. With auto, a GPU if present."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Number format of the layers. With auto, bfloat16 if the processor supports it"
        " in hardware.",
    )
    compile: bool = Field(
        False, description="Compile each layer with torch.compile; meant for GPUs."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Number of CPU threads. If null, it is measured; with an image budget,"
        " PyTorch's default is used.",
    )
    health_checks: bool = Field(
        True,
        description="Detect and correct training failures. If false, only NaN and Inf stop the"
        " run.",
    )
    loss: str = Field("relativistic", description="Adversarial loss; see `growgan list losses`.")
    loss_options: dict[str, float] = Field(
        default_factory=dict, description="Options of the loss, by name."
    )
    regularizers: dict[str, dict[str, float | None]] = Field(
        default_factory=lambda: dict[str, dict[str, float | None]](r1={}, r2={}),
        description="Regularizers and their options, by name; see `growgan list regularizers`.",
    )
    augmentation: str = Field(
        "none", description="Augmentation of all images D sees; see `growgan list augmentations`."
    )
    augmentation_options: dict[str, float] = Field(
        default_factory=dict, description="Options of the augmentation, by name."
    )
    conditioning: str = Field(
        "none", description="Use of the labels; see `growgan list conditionings`."
    )
    conditioning_options: dict[str, float | str] = Field(
        default_factory=dict, description="Options of the conditioning, by name."
    )
    labels: LabelSettings = LabelSettings()
    init_from: Literal["none", "reprogram", "finetune"] = Field(
        "none", description="How the run uses a pretrained GAN; set by `growgan finetune`."
    )
    critic_steps: int = Field(
        1, ge=1, le=100, description="Number of training steps of D for each step of G."
    )
    batch_size: int = Field(
        32, ge=1, le=65536, description="Number of images in a training step, over all processes."
    )
    horizontal_flip: bool = Field(
        False, description="Flip each real image left to right with probability 0.5."
    )
    lr_cooldown: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Last fraction of the budget over which the learning rate falls linearly to 0.",
    )
    optimizer: OptimizerSettings = OptimizerSettings()
    ema: EmaSettings = EmaSettings()
    network: NetworkConfig = NetworkConfig()
    edits: EditSettings = EditSettings()
    data: DataSettings = DataSettings()
    score: ScoreSettings = ScoreSettings()
    loggers: tuple[str, ...] = Field(
        (), description="Experiment loggers besides the run directory; see `growgan list loggers`."
    )

    @field_validator("network", mode="before")
    @classmethod
    def _refuse_derived_fields(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for name in DERIVED_FIELDS:
                if name in value:
                    raise ValueError(
                        f"'{name}' is not a setting: the data, the conditioning and the loss"
                        " determine it"
                    )
        return value

    @field_validator("loggers", mode="before")
    @classmethod
    def _split_logger_names(cls, value: object) -> object:
        """Accept ``tensorboard,wandb`` and ``none``."""
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip() not in ("", "none")]
        return value

    @field_validator("regularizers", mode="before")
    @classmethod
    def _split_regularizer_names(cls, value: object) -> object:
        """Accept ``r1,drift``, ``[r1, drift]`` and ``none``; these use default options."""
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
        """Read settings from a YAML file.

        Raises:
            UserError: The file cannot be read, or a setting in it is not valid.
        """
        try:
            values = yaml.safe_load(path.read_text()) or {}
            if not isinstance(values, dict):
                raise ValueError("expected a mapping of settings")
            return make_settings(values)
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read settings from '{path}': {error}") from error


def make_settings(*layers: Mapping[str, Any], overrides: Iterable[str] = ()) -> Settings:
    """Build settings from nested mappings and ``key=value`` overrides; later ones win.

    Raises:
        UserError: An unknown key, or a value outside a setting's type or range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = merge_settings(values, layer)
    # A mapping that names no regularizers keeps the defaults; an override changes one of them.
    values.setdefault("regularizers", Settings().regularizers)
    for text in overrides:
        values = merge_settings(values, _parse_override(text))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _user_error(error) from error


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set must be key=value, but got '{text}'")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        nested = value
    if isinstance(nested, str):
        nested = _parse_number(nested)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _parse_number(text: str) -> float | str:
    """Return ``text`` as a float if possible. YAML reads 2e-3 as a string."""
    try:
        return float(text)
    except ValueError:
        return text


def merge_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``old`` updated by ``new``; nested groups are merged, not replaced."""
    result = dict(old)
    for key, value in new.items():
        is_group = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge_settings(result[key], value) if is_group else value
    return result


def _user_error(error: ValidationError) -> UserError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown_name_error("setting", path[-1], _valid_keys(path[:-1]))
    if first["type"] == "value_error" and path == ["network"]:
        return UserError(f"invalid setting in 'network': {first['ctx']['error']}")
    return UserError(f"setting '{key}' cannot be {first['input']!r}: {first['msg'].lower()}")


def _valid_keys(path: list[str]) -> list[str]:
    group: type[BaseModel] = Settings
    for part in path:
        field = group.model_fields.get(part)
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            group = inner
    return [name for name, field in group.model_fields.items() if not field.exclude]
