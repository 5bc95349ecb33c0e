"""Edits of a network's spec, and the weights that the grown network inherits.

There are three edits. :class:`Append` adds layers next to the image, which fade in.
:class:`Insert` adds a residual layer that starts as the identity. :class:`Widen` doubles the width
of a layer by duplicating channels (Net2Net, Chen et al. 2016). :func:`grow_network` applies one.

No edit changes the output of the network at first: after ``Append`` because ``alpha`` is 0, after
``Insert`` because the residual branch is 0, and after ``Widen`` because the weights that read the
two copies of a channel sum to the weight that read the original.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.blocks import BLOCKS
from growgan.nets.ends import ENDS
from growgan.nets.layers import ScaledWeight, skip_init
from growgan.nets.networks import (
    IMAGE,
    Discriminator,
    Generator,
    Network,
    build_network,
    incompatibility,
    join_names,
    layer_names,
)
from growgan.nets.spec import LayerSpec, NetworkSpec, SpecT, without_fade

Moments = dict[str, dict[str, Tensor]]  # {key of GRADIENT_POWERS: {parameter name: value}}
NetworkT = TypeVar("NetworkT", Generator, Discriminator, Generator | Discriminator)

# The step count and the moments in Adam's state, with the power of the gradient that each averages.
GRADIENT_POWERS = {"step": 0, "exp_avg": 1, "exp_avg_sq": 2}
# Relative difference between the weights that read the two copies of a channel, so that the copies
# do not learn the same.
SYMMETRY_BREAKING_NOISE = 0.1
MAX_NOISE = 3.0  # standard deviations


# Edits


class NetworkEdit(ABC):
    """Base class of the edits."""

    @property
    def resample_factor(self) -> int:
        """Factor by which the images become larger."""
        return 1

    @abstractmethod
    def reason_illegal(self, parent_spec: NetworkSpec) -> str:
        """Return why the edit is impossible or would change the output, or "" if it is legal."""

    @abstractmethod
    def child_spec(self, parent_spec: SpecT) -> SpecT:
        """Return the spec after the edit. An unfinished fade-in is completed first."""

    def moved_heads(self, child_spec: NetworkSpec) -> dict[str, str]:
        """Return the image heads that the child has in other places, from old to new key."""
        return {}

    def duplicated_widths(self, parent_spec: NetworkSpec) -> tuple[str, ...]:
        """Return "stem" or the ids of the layers whose channels are duplicated."""
        return ()


@dataclass(frozen=True)
class Append(NetworkEdit):
    """Add layers next to the image, which fade in together.

    Attributes:
        layers: The new layers. Their ids are assigned when the edit is applied.
    """

    layers: tuple[LayerSpec, ...]

    @property
    def resample_factor(self) -> int:
        """Factor by which the images become larger."""
        return prod(layer.resample_factor for layer in self.layers)

    def reason_illegal(self, parent_spec: NetworkSpec) -> str:
        """Return why the layers cannot be appended, or "" if they can."""
        width_before = parent_spec.width_before(len(parent_spec.layers))
        for layer in self.layers:
            block = BLOCKS[layer.block]
            if parent_spec.role == "discriminator" and not block.supports_discriminator:
                return f"block '{layer.block}' needs a style, but the layers of D have none"
            if reason := incompatibility(parent_spec, layer.block):
                return reason
            if layer.resample_factor > 1 and not block.can_resample:
                return f"block '{layer.block}' cannot change the resolution"
            if layer.width != width_before and block.preserves_width:
                return f"block '{layer.block}' keeps its number of channels"
            width_before = layer.width
        return ""

    def child_spec(self, parent_spec: SpecT) -> SpecT:
        """Return the spec with the new layers fading in."""
        spec = without_fade(parent_spec)
        for layer in self.layers:
            new_layer = replace(layer, id=spec.next_layer_id())
            spec = replace(spec, layers=(*spec.layers, new_layer))
        return replace(spec, num_fading_layers=len(self.layers))

    def moved_heads(self, child_spec: NetworkSpec) -> dict[str, str]:
        """Return the place of the previous image head, before the first new layer."""
        return {IMAGE: child_spec.fading_layers[0].id} if self.layers else {}

    def __str__(self) -> str:
        return " + ".join(str(layer) for layer in self.layers)


@dataclass(frozen=True)
class Insert(NetworkEdit):
    """Add a residual layer that keeps size and width.

    Attributes:
        after: Id of the layer before the new one. If None, the new one follows the stem.
        kernel_size: Side of its convolution kernels in pixels.
        norm: Name of its normalization layer.
    """

    after: str | None
    kernel_size: int = 3
    norm: str = "pixel"

    def reason_illegal(self, parent_spec: NetworkSpec) -> str:
        """Return why the layer cannot be inserted, or "" if it can."""
        if parent_spec.weight_spec.uses_spectral_norm:
            return "spectral norm cannot normalize the zero weights of the new layer"
        return incompatibility(parent_spec, "residual")

    def child_spec(self, parent_spec: SpecT) -> SpecT:
        """Return the spec with the new layer.

        Raises:
            UserError: The edit is illegal.
        """
        _raise_if_illegal(self.reason_illegal(parent_spec), self, parent_spec)
        spec = without_fade(parent_spec)
        index = 0 if self.after is None else _layer_index(spec, self.after) + 1
        layer = LayerSpec(
            id=spec.next_layer_id(),
            block="residual",
            width=spec.width_before(index),
            kernel_size=self.kernel_size,
            norm=self.norm,
        )
        return replace(spec, layers=(*spec.layers[:index], layer, *spec.layers[index:]))

    def __str__(self) -> str:
        return f"residual {self.kernel_size}x{self.kernel_size} after {self.after or 'stem'}"


@dataclass(frozen=True)
class Widen(NetworkEdit):
    """Double the number of channels of a layer, and of those that a shortcut ties to it.

    Attributes:
        layer_id: Id of the layer, or "stem". If None, the width of all layers is doubled.
    """

    layer_id: str | None = None

    def duplicated_widths(self, parent_spec: NetworkSpec) -> tuple[str, ...]:
        """Return "stem" or the ids of all layers whose widths double."""
        spec = without_fade(parent_spec)
        names = layer_names(spec)
        if self.layer_id is None:
            return tuple(names)
        if self.layer_id != "stem":
            _layer_index(spec, self.layer_id)
        # A shortcut without a convolution needs the same width on both sides.
        pairs = [
            (names[i], layer.id)
            for i, layer in enumerate(spec.layers)
            if layer.block == "residual" and spec.width_before(i) == layer.width
        ]
        tied = {self.layer_id}
        for _ in pairs:
            for pair in pairs:
                tied |= set(pair) if tied & set(pair) else set()
        return tuple(name for name in names if name in tied)

    def reason_illegal(self, parent_spec: NetworkSpec) -> str:
        """Return why the layer cannot be widened, or "" if it can."""
        for layer in parent_spec.layers:
            if not BLOCKS[layer.block].can_widen:
                return f"block '{layer.block}' cannot be widened"
        if not ENDS[parent_spec.ends].can_widen:
            return f"the ends '{parent_spec.ends}' cannot be widened"
        if getattr(parent_spec, "minibatch_discrimination_kernels", 0):
            return "minibatch discrimination would receive different features"
        if parent_spec.weight_spec.uses_spectral_norm:
            return "duplicated channels change the largest singular value of a weight"
        if not self._preserves_shortcuts(parent_spec):
            return "a shortcut without a convolution would need one"
        return ""

    def _preserves_shortcuts(self, parent_spec: NetworkSpec) -> bool:
        """Return whether exactly the shortcuts that have a convolution need one afterwards."""
        child_spec = self._widened_spec(parent_spec)
        for i, layer in enumerate(parent_spec.layers):
            had_conv = parent_spec.width_before(i) != layer.width
            needs_conv = child_spec.width_before(i) != child_spec.layers[i].width
            if layer.block == "residual" and had_conv != needs_conv:
                return False
        return True

    def child_spec(self, parent_spec: SpecT) -> SpecT:
        """Return the spec with the wider layers.

        Raises:
            UserError: The edit is illegal.
        """
        _raise_if_illegal(self.reason_illegal(parent_spec), self, parent_spec)
        return self._widened_spec(parent_spec)

    def _widened_spec(self, parent_spec: SpecT) -> SpecT:
        spec = without_fade(parent_spec)
        wider = self.duplicated_widths(spec)
        layers = tuple(
            replace(layer, width=2 * layer.width) if layer.id in wider else layer
            for layer in spec.layers
        )
        stem_width = 2 * spec.stem_width if "stem" in wider else spec.stem_width
        return replace(spec, layers=layers, stem_width=stem_width)

    def __str__(self) -> str:
        return f"widen {self.layer_id or 'all'} x2"


Edit = Append | Insert | Widen
EDITS: dict[str, type[Append] | type[Insert] | type[Widen]] = {
    "append": Append,
    "insert": Insert,
    "widen": Widen,
}


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """Return an edit as lists, numbers and strings, for :func:`edit_from_json`."""
    return {"edit": type(edit).__name__.lower(), **asdict(edit)}


def edit_from_json(data: Mapping[str, Any]) -> Edit:
    """Rebuild an edit from the result of :func:`edit_to_json`."""
    values = dict(data)
    edit_type = EDITS[values.pop("edit")]
    if edit_type is Append:
        return Append(tuple(LayerSpec(**layer) for layer in values["layers"]))
    return edit_type(**values)


def _raise_if_illegal(reason: str, edit: Insert | Widen, spec: NetworkSpec) -> None:
    if reason:
        raise UserError(f"cannot apply '{edit}' to the {spec.role}: {reason}")


def _layer_index(spec: NetworkSpec, layer_id: str) -> int:
    ids = [layer.id for layer in spec.layers]
    if layer_id not in ids:
        raise UserError(
            f"the {spec.role} has no layer '{layer_id}'; its layers are: {', '.join(ids) or 'none'}"
        )
    return ids.index(layer_id)


# Growth of a network


def apply_edit(network: NetworkT, edit: Edit, seed: int) -> NetworkT:
    """Return the network after an edit, as :func:`grow_network` does, without moments."""
    return grow_network(network, edit, seed)[0]


def grow_network(
    parent: NetworkT, edit: Edit, seed: int, moments: Moments | None = None
) -> tuple[NetworkT, Moments]:
    """Return the network after an edit, and the optimizer moments that it inherits.

    Args:
        parent: The network before the edit. The child shares no memory with it. A fade-in, if
            unfinished, is completed in the child.
        edit: The edit.
        seed: Random seed of new weights and of the noise that breaks the symmetry of duplicated
            channels.
        moments: The parent's step counts and moments by parameter name, by the keys of
            ``GRADIENT_POWERS``.

    Returns:
        The child on the device of its parent, and its moments. New parameters have none. Moments
        may share memory with those of the parent.

    Raises:
        UserError: The edit is illegal.
    """
    # Edit the spec.
    spec = edit.child_spec(parent.spec)

    # Build its network. Weights that will be inherited are not drawn.
    with skip_init():
        child = build_network(spec, seed)

    # Inherit the weights of the parent slot by slot, and draw those of new slots.
    transfers = plan_transfers(parent, child, edit)
    weights = _transfer(parent.state_dict(), transfers, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for slot in child.slots().values():
            if isinstance(slot.module, ScaledWeight) and f"{slot.name}.weight" not in weights:
                slot.module.reset_parameters()
    child.load_state_dict(weights, strict=False)

    # Start the fade-in of appended layers.
    if isinstance(edit, Append):
        child.set_alpha(0.0)

    # Inherit step counts and moments, which scale with powers of the gradients.
    inherited_moments = {
        key: _transfer(tensors, transfers, seed, GRADIENT_POWERS[key])
        for key, tensors in (moments or {}).items()
    }
    return child.to(next(parent.parameters()).device), inherited_moments


@dataclass(frozen=True)
class TensorTransfer:
    """How a tensor of the child follows from one of the parent.

    Attributes:
        child_name: Name of the tensor in the child.
        duplicates_outputs: Whether its outputs, the first axis, are duplicated.
        num_duplicated_inputs: How many of its inputs, the second axis, are duplicated. Further
            inputs stay single.
        scale_ratio: The scale from stored to effective weights in the child relative to the parent.
    """

    child_name: str
    duplicates_outputs: bool = False
    num_duplicated_inputs: int = 0
    scale_ratio: float = 1.0


def plan_transfers(parent: Network, child: Network, edit: Edit) -> dict[str, TensorTransfer]:
    """Return how the child inherits the tensors of its parent, by their names in the parent.

    The tensors of a slot that the child does not have, the previous head of a fade-in that is
    complete, are not inherited.
    """
    wider = edit.duplicated_widths(parent.spec)
    child_slots, child_tensors = child.slots(), child.state_dict().keys()
    transfers: dict[str, TensorTransfer] = {}
    for child_slot_name, slot in parent.slots(edit.moved_heads(child.spec)).items():
        if child_slot_name not in child_slots:
            continue
        module, widths = child_slots[child_slot_name].module, slot.widths
        for key, tensor in local_tensors(slot.module).items():
            child_name = join_names(child_slot_name, key)
            is_alpha = isinstance(slot.module, Network) and key == "alpha"
            if is_alpha or child_name not in child_tensors:
                continue
            num_inputs, scale_ratio = 0, 1.0
            is_weight = key == "weight" and isinstance(slot.module, ScaledWeight)
            if is_weight and widths.inputs in wider:
                assert isinstance(module, ScaledWeight) and isinstance(slot.module, ScaledWeight)
                num_inputs = tensor.shape[1] - widths.num_extra_inputs
                scale_ratio = module.weight_scale / slot.module.weight_scale
            transfers[join_names(slot.name, key)] = TensorTransfer(
                child_name,
                duplicates_outputs=widths.outputs in wider and tensor.ndim > 0,
                num_duplicated_inputs=num_inputs,
                scale_ratio=scale_ratio,
            )
    return transfers


def _transfer(
    tensors: Mapping[str, Tensor],
    transfers: Mapping[str, TensorTransfer],
    seed: int,
    gradient_power: int = 0,
) -> dict[str, Tensor]:
    """Return the child's weights, or its moments that average this power of the gradient."""
    return {
        transfers[name].child_name: _transfer_tensor(tensor, transfers[name], seed, gradient_power)
        for name, tensor in tensors.items()
        if name in transfers
    }


def _transfer_tensor(
    value: Tensor, transfer: TensorTransfer, seed: int, gradient_power: int
) -> Tensor:
    if value.ndim == 0:  # a step count
        return value
    # Half of the weight reads each copy of a channel, so each copy gets half of the gradient.
    if transfer.duplicates_outputs:
        value = torch.cat([value, value]) * 0.5**gradient_power
    if not transfer.num_duplicated_inputs:
        return value
    inputs = value[:, : transfer.num_duplicated_inputs]
    extra_inputs = value[:, transfer.num_duplicated_inputs :]
    # A larger fan-in changes the scale from stored to effective weights.
    ratio = transfer.scale_ratio
    if gradient_power:
        scaled = inputs * ratio**gradient_power
        return torch.cat([scaled, scaled, extra_inputs * ratio**gradient_power], 1)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(inputs.shape, generator=rng).to(value).clamp(-MAX_NOISE, MAX_NOISE)
    noise = SYMMETRY_BREAKING_NOISE * noise
    first, second = inputs * (1 + noise) / (2 * ratio), inputs * (1 - noise) / (2 * ratio)
    return torch.cat([first, second, extra_inputs / ratio], 1)


# More inputs


@torch.no_grad()
def copy_shared_slots(parent: Network, child: Network) -> None:
    """Copy the weights of all slots that both networks have. New inputs get zero weights."""
    child_slots = child.slots()
    for name, slot in parent.slots().items():
        if name not in child_slots:
            continue
        module = child_slots[name].module
        child_tensors = local_tensors(module)
        for key, tensor in local_tensors(slot.module).items():
            if key not in child_tensors:
                continue
            child_tensor, value = child_tensors[key], tensor.to(child_tensors[key].device)
            if value.shape == child_tensor.shape:
                child_tensor.copy_(value)
            elif (
                key == "weight"
                and isinstance(module, ScaledWeight)
                and isinstance(slot.module, ScaledWeight)
            ):
                # The scale depends on the number of inputs, but the product must stay the same.
                ratio = 1.0
                if not module.weight_spec.uses_spectral_norm:
                    ratio = slot.module.weight_scale / module.weight_scale
                child_tensor.zero_()
                child_tensor[:, : value.shape[1]] = value * ratio


def local_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``module`` itself, without its children."""
    parameters = module.named_parameters(recurse=False)
    return dict(parameters) | dict(module.named_buffers(recurse=False))


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names start with ``prefix`` and a dot, without both."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
