"""Edits of a stack, and how a child inherits from its parent.

Three edits: :class:`Append` puts layers at the image end and fades them in; :class:`Insert` puts an
identity-initialised residual layer anywhere; :class:`Widen` doubles the width of a layer by
duplicating channels (Net2Net, Chen et al. 2016). Each maps the parent's spec to the child's, and
its tensors (weights, or optimiser moments) to the child's by layer id.

None changes what the stack computes at the moment it is made: ``Append`` because alpha starts at 0,
``Insert`` because the branch starts at zero, ``Widen`` because the weights that read the two copies
of a channel sum to the weight that read the one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from growgan.config import SPECTRAL
from growgan.errors import UserError
from growgan.nets.blocks import BLOCKS
from growgan.nets.forms import FORMS
from growgan.nets.layers import Scaled, unset
from growgan.nets.norms import VirtualNorm
from growgan.nets.players import Decoder, Discriminator, Generator, build
from growgan.nets.spec import LayerSpec, StackSpec, without_fade
from growgan.nets.stack import Stack, misfit, names

SYMMETRY_BREAK = 0.1  # relative difference between the two readers of a duplicated channel


@dataclass(frozen=True)
class Append:
    """Layers at the image end, fading in together. Their ids are assigned when applied."""

    layers: tuple[LayerSpec, ...]

    @property
    def factor(self) -> int:
        """How much larger the images become."""
        return prod(layer.resample for layer in self.layers)

    def obstacle(self, parent: StackSpec) -> str:
        """Return why ``parent`` cannot take it and compute what it did, "" if it can."""
        edge = parent.width_before(len(parent.layers))
        for layer in self.layers:
            kind = BLOCKS[layer.kind]
            if parent.role == "discriminator" and not kind.judges:
                return f"a {layer.kind} layer has no meaning for D"
            if problem := misfit(parent, layer.kind):
                return problem
            if layer.resample > 1 and not kind.resamples:
                return f"a {layer.kind} layer cannot double the grid"
            if layer.width != edge and kind.keeps_width:
                return f"a {layer.kind} layer keeps its width"
            edge = layer.width
        return ""

    def spec(self, parent: StackSpec) -> StackSpec:
        """Return the child's spec."""
        spec = without_fade(parent)
        for layer in self.layers:
            named = replace(layer, id=spec.next_id())
            spec = replace(spec, layers=(*spec.layers, named))
        return replace(spec, fading=len(self.layers))

    def __str__(self) -> str:
        return " + ".join(str(layer) for layer in self.layers)


@dataclass(frozen=True)
class Insert:
    """A residual layer of unchanged size and width behind layer ``after`` (None: the stem)."""

    after: str | None
    kernel: int = 3
    norm: str = "pixel"

    factor = 1

    def obstacle(self, parent: StackSpec) -> str:
        """Return why ``parent`` cannot take it and compute what it did, "" if it can."""
        if parent.rate in SPECTRAL:
            return "no weight of zeros has a largest singular value"
        return misfit(parent, "residual")

    def spec(self, parent: StackSpec) -> StackSpec:
        """Return the child's spec; raise a :class:`UserError` where there is an obstacle."""
        _refuse(self.obstacle(parent), self, parent)
        spec = without_fade(parent)
        at = 0 if self.after is None else _position(spec, self.after) + 1
        layer = LayerSpec(
            spec.next_id(), "residual", spec.width_before(at), self.kernel, norm=self.norm
        )
        return replace(spec, layers=(*spec.layers[:at], layer, *spec.layers[at:]))

    def __str__(self) -> str:
        return f"residual {self.kernel}x{self.kernel} after {self.after or 'stem'}"


@dataclass(frozen=True)
class Widen:
    """Twice the channels of layer ``layer`` (None: of the whole stack)."""

    layer: str | None = None

    factor = 1

    def wires(self, spec: StackSpec) -> tuple[str, ...]:
        """Return the ids whose widths double: those tied to ``layer`` by shortcuts included."""
        names = ["stem", *(layer.id for layer in spec.layers)]
        if self.layer is None:
            return tuple(names)
        if self.layer != "stem":
            _position(spec, self.layer)
        tied = {self.layer}
        # A shortcut without a convolution ties the widths on its two sides.
        pairs = [
            (names[i], layer.id)
            for i, layer in enumerate(spec.layers)
            if layer.kind == "residual" and spec.width_before(i) == layer.width
        ]
        for _ in pairs:
            tied |= {name for pair in pairs if tied & set(pair) for name in pair}
        return tuple(name for name in names if name in tied)

    def obstacle(self, parent: StackSpec) -> str:
        """Return why ``parent`` cannot take it and compute what it did, "" if it can."""
        fixed = [layer.kind for layer in parent.layers if not BLOCKS[layer.kind].widens]
        if fixed or not FORMS[parent.form].widens:
            return f"{fixed[0] if fixed else parent.form} layers cannot be widened"
        if parent.kernels:
            return "minibatch discrimination would see other features"
        if parent.rate in SPECTRAL:
            return "a weight of duplicated rows has another largest singular value"
        return "" if self._keeps_shortcuts(parent) else "a shortcut would need a convolution"

    def _keeps_shortcuts(self, parent: StackSpec) -> bool:
        """Return whether every shortcut keeps its form: with a convolution, or without one."""

        def plain(spec: StackSpec) -> list[bool]:
            return [spec.width_before(i) == each.width for i, each in enumerate(spec.layers)]

        residual = [layer.kind == "residual" for layer in parent.layers]
        before, after = plain(parent), plain(self._wider(parent))
        return all(a == b for r, a, b in zip(residual, before, after, strict=True) if r)

    def spec(self, parent: StackSpec) -> StackSpec:
        """Return the child's spec; raise a :class:`UserError` where there is an obstacle."""
        _refuse(self.obstacle(parent), self, parent)
        return self._wider(parent)

    def _wider(self, parent: StackSpec) -> StackSpec:
        spec = without_fade(parent)
        wires = self.wires(spec)
        layers = tuple(
            replace(layer, width=layer.width * (1 + (layer.id in wires))) for layer in spec.layers
        )
        return replace(spec, layers=layers, stem=spec.stem * (1 + ("stem" in wires)))

    def __str__(self) -> str:
        return f"widen {self.layer or 'all'} x2"


Edit = Append | Insert | Widen
EDITS: dict[str, type[Append] | type[Insert] | type[Widen]] = {
    "append": Append,
    "insert": Insert,
    "widen": Widen,
}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """Return ``edit`` as plain data."""
    return {"edit": type(edit).__name__.lower(), **asdict(edit)}


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """Rebuild an edit from what :func:`edit_to_json` returned."""
    values = dict(data)
    kind = EDITS[values.pop("edit")]
    if kind is Append:
        return Append(tuple(LayerSpec(**layer) for layer in values["layers"]))
    return kind(**values)


def apply(stack: Generator | Discriminator, edit: Edit, seed: int) -> Generator | Discriminator:
    """Return a new stack with ``edit`` applied; it shares no memory with ``stack``.

    A fade that is still going on is ended first. New weights, and the noise that breaks the
    symmetry of duplicated channels, are functions of ``seed``.
    """
    with unset():  # drawing all would take longer than all the rest
        child = build(edit.spec(stack.spec), seed)
    weights = inherit(stack, child, edit, dict(stack.state_dict()), seed, fresh=child.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in child.named_modules():
            if isinstance(module, Scaled) and f"{name}.weight" not in weights:
                module.draw()
    child.load_state_dict(weights, strict=False)
    if isinstance(edit, Append):
        child.set_alpha(0.0)
    return child


def inherit(
    parent: Stack,
    child: Stack,
    edit: Edit,
    tensors: Mapping[str, Tensor],
    seed: int,
    *,
    fresh: Mapping[str, Tensor],
    power: int = 0,
) -> dict[str, Tensor]:
    """Map the parent's ``tensors`` (by parameter name) to the child's.

    Args:
        fresh: the child's own tensors.
        power: 0 for weights; 1 for first and 2 for second moments of their gradients, which are
            scaled as the gradients are.

    Returns:
        What the parent has to give, by the child's names; it may share its memory.
    """
    result: dict[str, Tensor] = {}
    for inner, part in parent.inner.items():
        stacks, new = (part, child.inner[inner]), under(fresh, inner)
        within = inherit(*stacks, edit, under(tensors, inner), seed, fresh=new, power=power)
        result |= {f"{inner}.{name}": value for name, value in within.items()}
    for name, value in tensors.items():
        if name.partition(".")[0] in parent.inner or name == "alpha":
            continue
        target = renamed(name, edit, parent.spec, child.spec)
        if target not in fresh:  # a head that a fade-in has left behind
            continue
        if isinstance(edit, Widen):
            value = _widened(parent, child, edit, name, value, seed, power)
        result[target] = value.to(fresh[target].dtype)
    return result


def renamed(name: str, edit: Edit, before: StackSpec, after: StackSpec) -> str:
    """Return the child's name of the parent's ``name``: an insertion may move the head."""
    last, new = names(before)[-1], names(after)[-1]
    if isinstance(edit, Insert) and (edit.after or "stem") == last:
        return re.sub(rf"^((\w+\.)?heads)\.{last}\.", rf"\1.{new}.", name)
    return name


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries below ``prefix``, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def _widened(
    parent: Stack, child: Stack, edit: Widen, name: str, value: Tensor, seed: int, power: int
) -> Tensor:
    """Return ``value`` (a weight, or a moment) with the channels of widened wires duplicated."""
    wires = edit.wires(without_fade(parent.spec))
    module = name.rpartition(".")[0]
    before, after = parent.get_submodule(module), child.get_submodule(module)
    inside, outside = _wires_of(parent, module)
    if isinstance(before, (nn.BatchNorm2d, VirtualNorm)):
        copies = outside in wires and value.ndim > 0
        return torch.cat([value, value]) * 0.5**power if copies else value
    if not isinstance(before, Scaled) or not isinstance(after, Scaled):
        return value
    if outside in wires:
        # Each copy gets half the gradient, since each is read by half the weight.
        value = torch.cat([value, value]) * 0.5**power
    if name.endswith(".weight") and inside in wires:
        split = before.weight.shape[1] - _extra(parent, module)
        ratio = after.scale / before.scale
        if power:
            halves: tuple[Tensor, ...] = (value[:, :split] * ratio**power,) * 2
        else:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(value[:, :split].shape, generator=generator).to(value)
            noise = SYMMETRY_BREAK * noise.clamp(-3, 3)
            halves = (value[:, :split] * (1 + noise), value[:, :split] * (1 - noise))
            halves = tuple(half / (2 * ratio) for half in halves)
        rest = value[:, split:] * ratio**power if power else value[:, split:] / ratio
        value = torch.cat([*halves, rest], 1)
    return value


def _extra(stack: Stack, module: str) -> int:
    """Return how many maps a linear map reads beside those of its width."""
    part, _, name = module.partition(".")
    return stack.end.extra.get(name, 0) if part == "end" and isinstance(stack, Discriminator) else 0


def _wires_of(stack: Stack, module: str) -> tuple[str | None, str | None]:
    """Return the ids of the widths that a linear map reads and writes (None: neither)."""
    spec = stack.spec
    names: list[str] = ["stem", *(layer.id for layer in spec.layers)]
    generator = spec.role == "generator"
    last = names[-1]
    parts = module.split(".")
    if parts[0] == "layers":
        inner, own = names[names.index(parts[1]) - 1], parts[1]
        ends = (inner, own) if generator else (own, inner)
        residual = spec.layers[names.index(parts[1]) - 1].kind == "residual"
        inside = (None, own if residual else ends[1])  # of a normalisation, which reads nothing
        special = {"conv1": (ends[0], own), "conv2": (own, ends[1]), "norm": inside}
        return special.get(parts[2], ends)
    if parts[0] == "stem" and isinstance(stack, Generator):
        reads, writes = stack.stem.ends[parts[1]]
        return ("stem" if isinstance(stack, Decoder) else reads), writes
    if parts[0] == "readouts":
        return "stem", None
    if parts[0] == "label":
        return None, None
    if parts[0] == "end" and isinstance(stack, Discriminator):
        return stack.end.ends[parts[1]]
    return (last, None) if generator else (None, last)


def _refuse(obstacle: str, edit: Insert | Widen, spec: StackSpec) -> None:
    if obstacle:
        raise UserError(f"this {spec.role} cannot take '{edit}': {obstacle}")


def _position(spec: StackSpec, layer_id: str) -> int:
    for i, layer in enumerate(spec.layers):
        if layer.id == layer_id:
            return i
    names = ", ".join(layer.id for layer in spec.layers) or "none"
    raise UserError(f"no layer '{layer_id}' in this {spec.role}; its layers are: {names}")
