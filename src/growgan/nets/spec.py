"""Specifications of networks: frozen, hashable, JSON-able, and sufficient to rebuild the network.

G and D are described in the same direction, from the base grid to the image. D's layers therefore
mirror G's, and "append" means the same for both: add a layer next to the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields, replace
from math import prod
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails

from growgan.config import LogitConditioningKind, LrScaling, Parametrization, WeightInit
from growgan.errors import UserError

Role = Literal["generator", "discriminator"]

# A spec may come from an untrusted file, so everything is bounded before memory is allocated.
MAX_WIDTH = 8192  # channels
MAX_LATENT_DIM = 8192
MAX_KERNEL_SIZE = 15  # pixels
MAX_GRID_SIDE = 1024  # pixels of the base grid
MAX_IMAGE_SIDE = 8192  # pixels
MAX_IMAGE_CHANNELS = 64
MAX_LAYERS = 512
MAX_PARAMETERS = 1 << 30  # 4 GiB in float32; the largest published preset has a tenth
RESERVED_LAYER_IDS = {"stem", "image"}  # names of the stem's width and of the current image head
MAX_SHOWN_CHARACTERS = 64  # of an invalid value, in an error message

# Heads that resample, by the ends of the network. All others keep the resolution. The table
# repeats what the modules in `growgan.nets.ends` do, which this module cannot import.
GENERATOR_HEAD_FACTORS = {"dcgan": 2}
DISCRIMINATOR_HEAD_FACTORS = {"dcgan": 2, "resnet": 2}


def _require_odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("must be odd")
    return size


Width = Annotated[int, Field(strict=True, ge=1, le=MAX_WIDTH)]
LatentDim = Annotated[int, Field(strict=True, ge=1, le=MAX_LATENT_DIM)]
OptionalDim = Annotated[int, Field(strict=True, ge=0, le=MAX_LATENT_DIM)]
GridSide = Annotated[int, Field(strict=True, ge=1, le=MAX_GRID_SIDE)]
KernelSize = Annotated[
    int, Field(strict=True, ge=1, le=MAX_KERNEL_SIZE), AfterValidator(_require_odd)
]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(max_length=64)]
LayerId = Annotated[str, Field(pattern=r"^[a-z]\w{0,30}$")]

# Numbers are strict, so that 1.5 channels are an error. Tuples are not, because JSON has lists.
SPEC_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Validated:
    """Report an invalid field as a :class:`UserError` that names the field and its value."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain_invalid_fields(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = first["loc"][0] if first["loc"] else "network spec"
            # A positional argument is reported by its index.
            name = fields(cls)[place].name if isinstance(place, int) else place  # type: ignore[arg-type]
            raise UserError(_explanation(name, first)) from error


def _explanation(name: str, error: ErrorDetails) -> str:
    """Return one line about an invalid field."""
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"a network spec has no field '{name[:MAX_SHOWN_CHARACTERS]}'"
    if error["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    reason = error["msg"].removeprefix("Value error, ")
    reason = reason.replace("Input should", "must").replace("String should", "must")
    try:
        value = repr(error["input"])[:MAX_SHOWN_CHARACTERS]
    except (ValueError, RecursionError):  # a number with too many digits, or a cycle
        value = f"a value of type {type(error['input']).__name__}"
    return f"{name} {reason}, but got {value}"


@pydantic_dataclass(frozen=True, kw_only=True, config=SPEC_CONFIG)
class WeightSpec(_Validated):
    """How the weights of a network are initialized, parametrized and scaled.

    See :class:`growgan.nets.layers.ScaledWeight` for the formulas.

    Attributes:
        init: "default" draws from N(0, gain²/fan_in), "normal" from N(0, 0.02²), and "orthogonal"
            draws a matrix whose singular values are all 1.
        parametrization: "none" stores the effective weight, "equalized" stores a unit normal
            weight and multiplies it in each forward pass, "spectral_norm" divides the stored
            weight by its largest singular value.
        lr_scaling: "width" reduces the step size of wide layers by 1/sqrt(fan_in).
    """

    init: WeightInit = "default"
    parametrization: Parametrization = "equalized"
    lr_scaling: LrScaling = "none"

    @model_validator(mode="after")
    def _check_lr_scaling(self) -> Self:
        if self.uses_spectral_norm and self.lr_scaling != "none":
            raise UserError(
                f"lr_scaling '{self.lr_scaling}' has no effect with parametrization "
                "'spectral_norm', which divides out the scale of the weights; set lr_scaling to "
                "'none'"
            )
        return self

    @property
    def uses_spectral_norm(self) -> bool:
        """Whether the effective weight is divided by its largest singular value."""
        return self.parametrization == "spectral_norm"


@pydantic_dataclass(frozen=True, config=SPEC_CONFIG)
class LayerSpec(_Validated):
    """One layer of a network.

    Attributes:
        id: Name of the layer, unique in its network. Children inherit weights and optimizer
            moments by it.
        block: Name in ``growgan.nets.blocks.BLOCKS``.
        width: Number of channels on the image side: the output of G's layer, the input of D's.
        kernel_size: Side of the convolution kernels in pixels, odd.
        resample_factor: 1, or 2 to double the resolution in G and halve it in D.
        norm: Name in ``growgan.nets.norms.NORMS``.
        activation: Name in ``growgan.nets.layers.ACTIVATIONS``.
    """

    id: LayerId
    block: Name = "conv"
    width: Width = 64
    kernel_size: KernelSize = 3
    resample_factor: Annotated[int, Field(strict=True, ge=1, le=2)] = 1
    norm: Name = "pixel"
    activation: Name = "leaky_relu"

    def __str__(self) -> str:
        doubles = " x2" if self.resample_factor == 2 else ""
        return f"{self.block} {self.kernel_size}x{self.kernel_size} {self.width}{doubles}"


@pydantic_dataclass(frozen=True, kw_only=True, config=SPEC_CONFIG)
class NetworkSpec(_Validated):
    """The fields that the specs of G and D share.

    Attributes:
        role: "generator" or "discriminator".
        base_grid: Height and width of the smallest feature maps in pixels.
        image_channels: Number of channels of the images.
        stem_width: Number of channels on the base grid.
        layers: The layers; the last one is next to the image.
        ends: Name in ``growgan.nets.ends.ENDS``: how the network begins and ends.
        weight_spec: How weights are initialized, parametrized and scaled.
        label_dim: Length of a label: the number of classes and continuous codes, or 0.
        num_continuous_codes: How many entries of a label, the last ones, are continuous codes.
        label_embedding_dim: Length of the learned label embedding; 0 for one-hot labels.
        source_channels: Number of channels of the source image; 0 without source images.
        num_fading_layers: How many of the last layers are fading in beside the previous head.
    """

    role: Role
    base_grid: tuple[GridSide, GridSide] = (4, 4)
    image_channels: Annotated[int, Field(strict=True, ge=1, le=MAX_IMAGE_CHANNELS)] = 1
    stem_width: Width = 64
    layers: Annotated[tuple[LayerSpec, ...], Field(max_length=MAX_LAYERS)] = ()
    ends: Name = "pggan"
    weight_spec: WeightSpec = field(default_factory=WeightSpec)
    label_dim: OptionalDim = 0
    num_continuous_codes: OptionalDim = 0
    label_embedding_dim: OptionalDim = 0
    source_channels: Annotated[int, Field(strict=True, ge=0, le=MAX_IMAGE_CHANNELS)] = 0
    num_fading_layers: Annotated[int, Field(strict=True, ge=0)] = 0

    @model_validator(mode="after")
    def _check_layers_and_labels(self) -> Self:
        ids = [layer.id for layer in self.layers]
        if len(set(ids)) != len(ids):
            raise UserError(f"layer ids must be unique, but got {', '.join(ids)}")
        if reserved := RESERVED_LAYER_IDS & set(ids):
            raise UserError(f"a layer must not have the id '{min(reserved)}'")
        _check_at_most("num_fading_layers", self.num_fading_layers, len(self.layers), "layers")
        _check_at_most(
            "num_continuous_codes", self.num_continuous_codes, self.label_dim, "label_dim"
        )
        if max(self.resolution) > MAX_IMAGE_SIDE:
            raise UserError(
                f"the sides of an image must be at most {MAX_IMAGE_SIDE} pixels, but got "
                f"{self.resolution[0]}x{self.resolution[1]}"
            )
        return self

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        factor = prod(layer.resample_factor for layer in self.layers) * self.head_resample_factor
        return self.base_grid[0] * factor, self.base_grid[1] * factor

    @property
    def head_resample_factor(self) -> int:
        """Factor by which the image head resamples."""
        raise NotImplementedError

    @property
    def num_classes(self) -> int:
        """Number of entries of a label that stand for classes."""
        return self.label_dim - self.num_continuous_codes

    @property
    def cond_dim(self) -> int:
        """Length of the condition of an image: its label and its flattened source image."""
        return self.label_dim + self.source_channels * prod(self.resolution)

    @property
    def embedded_label_dim(self) -> int:
        """Length of a label after its embedding."""
        return (self.label_embedding_dim or self.label_dim) if self.label_dim else 0

    @property
    def settled_layers(self) -> tuple[LayerSpec, ...]:
        """The layers that are not fading in."""
        return self.layers[: len(self.layers) - self.num_fading_layers]

    @property
    def fading_layers(self) -> tuple[LayerSpec, ...]:
        """The layers that are fading in; the last one is next to the image."""
        return self.layers[len(self.layers) - self.num_fading_layers :]

    def width_before(self, index: int) -> int:
        """Return the number of channels on the base-grid side of layer ``index``."""
        return self.layers[index - 1].width if index else self.stem_width

    def next_layer_id(self) -> str:
        """Return an id that is higher than those of all layers."""
        numbers = [int(layer.id[1:]) for layer in self.layers if layer.id[1:].isdigit()]
        return f"{self.role[0]}{max(numbers, default=-1) + 1}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as lists, numbers and strings, for :meth:`from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a spec, of either role if called on the base class.

        Raises:
            UserError: ``data`` is not a valid spec, or one of the other role.
        """
        try:
            spec = SPEC_ADAPTER.validate_python(data)
        except ValidationError as error:
            raise UserError(_explanation("network spec", error.errors()[0])) from error
        if not isinstance(spec, cls):
            raise UserError(f"expected a {cls.__name__}, but got the spec of a {spec.role}")
        return spec


@pydantic_dataclass(frozen=True, kw_only=True, config=SPEC_CONFIG)
class GeneratorSpec(NetworkSpec):
    """Specification of G.

    Attributes:
        latent_dim: Length of the latent vector z.
        latent_chunk_dim: Length of the chunk of z that the stem and each styled layer receive
            (hierarchical latents); 0 if each receives all of z.
        mapping_layers: Number of fully connected layers that map z to styles.
        style_mixing_prob: Probability that a training image mixes the styles of two latents.
        stem_uses_label: Whether the stem receives the label as well as z.
        styles_use_latent: Whether styles contain the latent as well as the label.
        invertible_map_blocks: Number of blocks of the invertible map of latent and label. If
            positive, only the map is trained, and the rest of G is frozen and sees no label.
        residual_output: Whether the output is added to the last channels of the source image.
    """

    role: Literal["generator"] = "generator"
    latent_dim: LatentDim
    latent_chunk_dim: OptionalDim = 0
    mapping_layers: Annotated[int, Field(strict=True, ge=0, le=32)] = 0
    style_mixing_prob: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    stem_uses_label: Flag = True
    styles_use_latent: Flag = True
    invertible_map_blocks: Annotated[int, Field(strict=True, ge=0, le=32)] = 0
    residual_output: Flag = False

    @model_validator(mode="after")
    def _check_latent_and_output(self) -> Self:
        _check_at_most("latent_chunk_dim", self.latent_chunk_dim, self.latent_dim, "latent_dim")
        if self.residual_output and self.image_channels > self.source_channels:
            raise UserError(
                "residual_output needs source images with at least as many channels as the images: "
                f"source_channels is {self.source_channels}, image_channels {self.image_channels}"
            )
        if self.invertible_map_blocks and not self.label_dim:
            raise UserError("invertible_map_blocks must be 0 if label_dim is 0")
        return self

    @property
    def head_resample_factor(self) -> int:
        """Factor by which the image head enlarges its input."""
        return GENERATOR_HEAD_FACTORS.get(self.ends, 1)

    @property
    def input_dim(self) -> int:
        """Length of G's input: the latent followed by the condition."""
        return self.latent_dim + self.cond_dim

    @property
    def embedded_label_dim(self) -> int:
        """Length of a label as the layers receive it; 0 behind an invertible map."""
        return 0 if self.invertible_map_blocks else super().embedded_label_dim

    @property
    def stem_input_dim(self) -> int:
        """Length of the vector that the stem receives."""
        latent_dim = self.latent_chunk_dim or self.latent_dim
        return latent_dim + self.embedded_label_dim * self.stem_uses_label

    @property
    def style_dim(self) -> int:
        """Length of a style that does not come from a mapping network."""
        uses_latent = self.styles_use_latent or not self.label_dim
        latent_dim = (self.latent_chunk_dim or self.latent_dim) if uses_latent else 0
        return latent_dim + self.embedded_label_dim

    @property
    def has_source_encoder(self) -> bool:
        """Whether G has an encoder for source images."""
        return self.source_channels > 0


@pydantic_dataclass(frozen=True, kw_only=True, config=SPEC_CONFIG)
class DiscriminatorSpec(NetworkSpec):
    """Specification of D.

    Attributes:
        logit_conditioning: How the logit depends on the condition; see
            :class:`growgan.nets.networks.Discriminator`.
        linear_heads: Names and output sizes of further linear maps of D's features.
        class_embedding_dim: Length of the learned embedding of each class; 0 for none.
        mbstd_group_size: Group size of the minibatch standard deviation layer; 0 for none.
        minibatch_discrimination_kernels: Number of minibatch discrimination kernels; 0 for none.
        is_autoencoder: Whether D is an autoencoder whose reconstruction error replaces the logit.
        patch_discriminator: Whether D has one logit for each cell of its base grid.
    """

    role: Literal["discriminator"] = "discriminator"
    logit_conditioning: LogitConditioningKind = "none"
    linear_heads: tuple[tuple[Name, Width], ...] = ()
    class_embedding_dim: Annotated[int, Field(strict=True, ge=0, le=MAX_WIDTH)] = 0
    mbstd_group_size: Annotated[int, Field(strict=True, ge=0)] = 0
    minibatch_discrimination_kernels: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    is_autoencoder: Flag = False
    patch_discriminator: Flag = False

    @model_validator(mode="after")
    def _check_patch_discriminator(self) -> Self:
        if self.patch_discriminator and self.ends != "pggan":
            raise UserError(
                f"patch_discriminator needs the ends 'pggan', but the network has '{self.ends}'"
            )
        return self

    @property
    def head_resample_factor(self) -> int:
        """Factor by which the image head reduces the image."""
        return DISCRIMINATOR_HEAD_FACTORS.get(self.ends, 1)

    @property
    def from_image_channels(self) -> int:
        """Number of channels that the image head receives: image, source image and label."""
        sees_source = self.logit_conditioning != "source_projection"
        sees_label = self.logit_conditioning == "concat"
        return (
            self.image_channels
            + self.source_channels * sees_source
            + self.embedded_label_dim * sees_label
        )

    @property
    def has_logit(self) -> bool:
        """Whether D ends in a linear map to one logit."""
        class_logits = self.logit_conditioning in ("per_class_logits", "class_scores")
        return not self.is_autoencoder and not class_logits


AnySpec = GeneratorSpec | DiscriminatorSpec
SPEC_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="role")])
SpecT = TypeVar("SpecT", bound=NetworkSpec)


def without_fade(spec: SpecT) -> SpecT:
    """Return ``spec`` as it is after its fade-in has ended."""
    return replace(spec, num_fading_layers=0)


def _check_at_most(name: str, value: int, limit: int, limit_name: str) -> None:
    if value > limit:
        raise UserError(f"{name} must be at most {limit} ({limit_name}), but got {value}")
