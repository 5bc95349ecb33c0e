"""What a stack is, written down: plain, frozen, JSON-able, and enough to rebuild it exactly.

Both players are described in the same direction, from the small end to the image end, so that D's
stack is the mirror of G's and "append" means the same for both: put a layer next to the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any, Literal, get_args

from growgan.config import Rate
from growgan.errors import UserError

Role = Literal["generator", "discriminator"]
Judging = Literal["plain", "concat", "projection", "difference", "heads", "classes", "image"]

# Bounds that are checked before anything is allocated: a spec may come from a stranger's file.
# By how much the heads of a form resample, where they do.
HEAD_FACTORS: dict[tuple[str, Role], int] = {
    ("dcgan", "generator"): 2,
    ("dcgan", "discriminator"): 2,
    ("resnet", "discriminator"): 2,
}
LIMITS = {"width": 8192, "kernel": 15, "latent": 8192, "base": 1024, "side": 8192, "layers": 512}
LIMITS |= {"parameters": 1 << 30}  # 4 GiB; of those published here the largest has a tenth
TYPES = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
WORD = 64  # characters of a name, at most


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a stack.

    Attributes:
        id: stable name, unique in its stack; weights and moments are inherited by it.
        kind: name of a block in ``growgan.nets.blocks.BLOCKS``.
        width: channels at the layer's image side (G's output, D's input).
        kernel: odd size of its convolutions, in pixels.
        resample: 1, or 2 to double the resolution (G) or halve it (D).
        norm: name of a normalisation in ``growgan.nets.norms.NORMS``.
        activation: name of an activation in ``growgan.nets.layers.ACTIVATIONS``.
    """

    id: str
    kind: str = "conv"
    width: int = 64
    kernel: int = 3
    resample: int = 1
    norm: str = "pixel"
    activation: str = "leaky_relu"

    def __post_init__(self) -> None:
        _check("layer id", re.fullmatch(r"[a-z]\w{0,30}", self.id), self.id, "a short word")
        _check("width", 1 <= self.width <= LIMITS["width"], self.width, "1 to 8192")
        odd = self.kernel % 2 == 1 and 1 <= self.kernel <= LIMITS["kernel"]
        _check("kernel", odd, self.kernel, "odd, 1 to 15")
        _check("resample", self.resample in (1, 2), self.resample, "1 or 2")

    def __str__(self) -> str:
        arrow = " x2" if self.resample == 2 else ""
        return f"{self.kind} {self.kernel}x{self.kernel} {self.width}{arrow}"


@dataclass(frozen=True)
class StackSpec:
    """One player: a stem, layers from the small end to the image end, and an image head.

    Attributes:
        role: "generator" or "discriminator".
        base: height and width of the grid at the small end, in pixels.
        channels: image channels, 1 to N.
        stem: channels of the base grid.
        layers: the layers, the one nearest the image last.
        latent: length of z (G only; 0 for D).
        rate: how weights are scaled, and with them Adam's steps: see ``nets.layers.Scaled``.
        deviation_group: samples a group of the minibatch standard deviation (D only; 0 for none).
        kernels: of minibatch discrimination (D only; 0 for none).
        form: name in ``growgan.nets.forms.FORMS``: how the stack begins and ends.
        chunk: length of the piece of z that the stem and each styled layer get; 0: all of z.
        classes: labels that images may have, 0 if they have none.
        embedding: length of a label's learnt embedding; 0: one number a class.
        label_stem: whether the stem reads the label beside z (G only).
        latent_style: whether styles hold latents beside the label (G only).
        modifier: blocks of an invertible map of latents and label, which alone learns (G only):
            all behind it is frozen, and knows no labels; 0 for none.
        judging: how D uses the label: "plain", "concat", "projection", "difference" or "heads";
            "classes": not at all, its logit is what its scores of the classes come to; "image": a
            projection of the image that is given, which its layers then do not see.
        continuous: how many of the classes, the last ones, are numbers and no classes.
        given: channels of the image that each sample is made from; 0: of latents alone.
        difference: True if what the layers make is added to the last of these channels (G only).
        proxies: length of D's learnt direction for each class; 0 for none.
        readouts: further linear maps of D's features: names and numbers of outputs.
        mapping: dense layers between z and the styles (G only).
        mixing: chance that an image in training has styles of two latents (G only).
        energy: True if D is an autoencoder, whose errors take the place of logits.
        patches: True if D judges each place of its base grid, and not the whole (D only).
        fading: how many of the outermost layers are still fading in beside the previous head.
    """

    role: Role
    base: tuple[int, int] = (4, 4)
    channels: int = 1
    stem: int = 64
    layers: tuple[LayerSpec, ...] = ()
    latent: int = 0
    rate: Rate = "equalised"
    deviation_group: int = 0
    kernels: int = 0
    form: str = "progressive"
    chunk: int = 0
    classes: int = 0
    embedding: int = 0
    label_stem: bool = True
    latent_style: bool = True
    modifier: int = 0
    judging: Judging = "plain"
    continuous: int = 0
    given: int = 0
    difference: bool = False
    proxies: int = 0
    readouts: tuple[tuple[str, int], ...] = ()
    mapping: int = 0
    mixing: float = 0.0
    energy: bool = False
    patches: bool = False
    fading: int = 0

    def __post_init__(self) -> None:
        _check("role", self.role in ("generator", "discriminator"), self.role, "a player")
        _check("base", all(1 <= s <= LIMITS["base"] for s in self.base), self.base, "1 to 1024")
        _check("rate", self.rate in get_args(Rate), self.rate, ", ".join(get_args(Rate)))
        _check("channels", 1 <= self.channels <= 64, self.channels, "1 to 64")
        _check("stem", 1 <= self.stem <= LIMITS["width"], self.stem, "1 to 8192")
        _check("latent", 0 <= self.latent <= LIMITS["latent"], self.latent, "0 to 8192")
        _check("chunk", 0 <= self.chunk <= self.latent, self.chunk, f"0 to {self.latent}")
        _check("classes", 0 <= self.classes <= LIMITS["latent"], self.classes, "0 to 8192")
        _check("embedding", 0 <= self.embedding <= LIMITS["latent"], self.embedding, "0 to 8192")
        _check(
            "judging", self.judging in get_args(Judging), self.judging, ", ".join(get_args(Judging))
        )
        _check(
            "continuous", 0 <= self.continuous <= self.classes, self.continuous, "at most classes"
        )
        _check("given", 0 <= self.given <= 64, self.given, "0 to 64")
        added = not self.difference or self.channels <= self.given
        _check("difference", added, self.given, "of images with as many channels given")
        patched = not self.patches or self.form == "progressive"
        _check("patches", patched, self.form, "of the form 'progressive'")
        _check("proxies", 0 <= self.proxies <= LIMITS["width"], self.proxies, "0 to 8192")
        sizes = [size for _, size in self.readouts]
        _check("readouts", all(1 <= size <= LIMITS["width"] for size in sizes), sizes, "1 to 8192")
        _check("modifier", 0 <= self.modifier <= 32, self.modifier, "0 to 32")
        _check("mapping", 0 <= self.mapping <= 32, self.mapping, "0 to 32")
        _check("mixing", 0 <= self.mixing <= 1, self.mixing, "0 to 1")
        _check("kernels", 0 <= self.kernels <= 1024, self.kernels, "0 to 1024")
        _check("layers", len(self.layers) <= LIMITS["layers"], len(self.layers), "at most 512")
        _check("fading", 0 <= self.fading <= len(self.layers), self.fading, "at most the layers")
        names = [layer.id for layer in self.layers]
        _check("layer ids", len(set(names)) == len(names), names, "unique")
        _check(
            "resolution", max(self.resolution) <= LIMITS["side"], self.resolution, "8192 at most"
        )

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        factor = prod(layer.resample for layer in self.layers) * self.head_factor
        return self.base[0] * factor, self.base[1] * factor

    @property
    def head_factor(self) -> int:
        """By how much the head resamples."""
        return HEAD_FACTORS.get((self.form, self.role), 1)

    @property
    def categories(self) -> int:
        """How many of the classes are classes, and no numbers."""
        return self.classes - self.continuous

    @property
    def inputs(self) -> int:
        """Length of what G is called with: latents, and what each sample is made for."""
        return self.latent + self.wish

    @property
    def wish(self) -> int:
        """Length of what a sample is made for: the label, one number a class; the given image."""
        return self.classes + self.given * prod(self.resolution)

    @property
    def label_width(self) -> int:
        """Length of a label as the layers read it."""
        if not self.classes or self.modifier:
            return 0
        return self.embedding or self.classes

    @property
    def stem_reads(self) -> int:
        """Length of what the stem's map reads."""
        return (self.chunk or self.latent) + self.label_width * self.label_stem

    @property
    def style_width(self) -> int:
        """Length of a style that is no mapping network's."""
        latents = (self.chunk or self.latent) if self.latent_style or not self.classes else 0
        return latents + self.label_width

    @property
    def seen(self) -> int:
        """Maps that D's head reads: the image's channels, the given one's, those of a label."""
        given = self.given * (self.judging != "image")
        return self.channels + given + self.label_width * (self.judging == "concat")

    @property
    def encodes(self) -> bool:
        """Whether G has an encoder, of its own layers, for what it is given."""
        return self.role == "generator" and self.given > 0

    @property
    def has_logit(self) -> bool:
        """Whether D ends in a linear map to one logit."""
        return not self.energy and self.judging not in ("heads", "classes")

    @property
    def kept(self) -> tuple[LayerSpec, ...]:
        """The layers that are not fading in."""
        return self.layers[: len(self.layers) - self.fading]

    @property
    def arriving(self) -> tuple[LayerSpec, ...]:
        """The layers that are fading in, the one nearest the image last."""
        return self.layers[len(self.layers) - self.fading :]

    def width_before(self, index: int) -> int:
        """Return the channels on the small side of layer ``index``."""
        return self.layers[index - 1].width if index else self.stem

    def next_id(self) -> str:
        """Return an id that no layer of this stack has had."""
        numbers = [int(layer.id[1:]) for layer in self.layers if layer.id[1:].isdigit()]
        return f"{self.role[0]}{max(numbers, default=-1) + 1}"

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings that :meth:`from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StackSpec:
        """Rebuild a spec; raise a :class:`UserError` for anything that is not one."""
        try:
            unknown = set(data) - {field.name for field in fields(cls)}
            _check("spec keys", not unknown, sorted(unknown), "those of StackSpec")
            for each in (data, *data["layers"]):
                _check_types(cls if each is data else LayerSpec, each)
            layers = tuple(LayerSpec(**layer) for layer in data["layers"])
            base = (int(data["base"][0]), int(data["base"][1]))
            readouts = tuple((str(name), int(size)) for name, size in data.get("readouts", ()))
            spec = cls(**{**data, "layers": layers, "base": base, "readouts": readouts})
        except (TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
            raise UserError(f"this is no stack spec: {error}") from error
        draws = spec.role == "generator"
        _check("latent", spec.latent or not draws, spec.latent, "1 to 8192 for a generator")
        _check("modifier", spec.classes or not spec.modifier, spec.modifier, "0 without classes")
        return spec


def without_fade(spec: StackSpec) -> StackSpec:
    """Return ``spec`` as it is once its fade-in has ended."""
    return replace(spec, fading=0)


def _check_types(cls: type[Any], data: Mapping[str, Any]) -> None:
    """Raise a :class:`UserError` for a value of another type than its field's: half a channel."""
    for field in fields(cls):
        if field.name in data and field.type in TYPES:
            value = data[field.name]
            short = not isinstance(value, str) or len(value) <= WORD
            good = type(value) in TYPES[field.type] and short
            _check(field.name, good, str(value)[:WORD], f"of type {field.type}")


def _check(what: str, good: object, value: object, may_be: str) -> None:
    if not good:
        raise UserError(f"{what} must be {may_be}, but got {value!r}")
