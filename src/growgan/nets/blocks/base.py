"""Kinds of layer. A new kind is one class here: it then grows, trains and is listed.

A block is built as ``Block(layer, inner, role=..., rate=..., style=...)``, where ``inner`` is the
width on the small side. G's block maps ``inner`` to ``layer.width`` channels and may double the
size; D's maps ``layer.width`` to ``inner`` and may halve it. It is called with the features and,
in G, with style vectors of length ``style``, which kinds and norms may use.
"""

from __future__ import annotations

import torch
from torch import nn

from growgan.config import Rate
from growgan.errors import UserError
from growgan.nets.layers import ACTIVATIONS, Conv, Dense
from growgan.nets.norms import NORMS
from growgan.nets.spec import LayerSpec, Role
from growgan.registry import Registry

BLOCKS: Registry[type[Block]] = Registry("block")


class Block(nn.Module):
    """What every kind of layer shares: widths, resampling, and which widths are tied.

    Attributes:
        ties: True if the block adds its input to its output unchanged, so that the widths on its
            two sides must stay equal.
        widens: whether its channels can be duplicated without a change of what it computes.
        resamples: whether it can double the grid.
        keeps_width: whether it has as many channels on either side.
        margin: pixels on each side of its grid that belong to no image; all of a stack agree.
        held: feature values that it writes, beside those of its image side, roughly.
        judges: whether it has a meaning in D, where there are no styles.
    """

    ties = False
    widens = True
    resamples = True
    keeps_width = False
    held = 1.0
    judges = True
    margin = 0

    @property
    def styled(self) -> bool:
        """Whether it uses its style."""
        return self.layer.norm == "conditional"

    @property
    def noisy(self) -> bool:
        """Whether it adds noise of its own."""
        return False

    @property
    def normed(self) -> int:
        """How many channels are normalised: those of the output, unless a kind says otherwise."""
        return self.width_out

    @classmethod
    def multiplications(cls, layer: LayerSpec, inner: int, role: Role, pixels: int) -> float:
        """Return the multiplications for one of the ``pixels`` on the image side, roughly."""
        return layer.kernel**2 * inner * layer.width

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__()
        if layer.resample != 1 and not self.resamples:
            raise UserError(f"a {layer.kind} layer cannot double the grid: resample must be 1")
        if role == "discriminator" and not self.judges:
            raise UserError(f"a {layer.kind} layer has no meaning for D, where there are no styles")
        self.layer, self.role, self.rate = layer, role, rate
        self.up = layer.resample if role == "generator" else 1
        self.down = layer.resample if role == "discriminator" else 1
        sides = (inner, layer.width)
        self.width_in, self.width_out = sides if role == "generator" else sides[::-1]
        self.activation = ACTIVATIONS[layer.activation]()
        self.norm = NORMS[layer.norm](self.normed, style, rate)


class StyledBlock(Block):
    """What convolves with weights that an affine map of the style scales, and adds a bias."""

    widens = False
    styled = True
    judges = False

    def __init__(
        self, layer: LayerSpec, inner: int, *, role: Role, rate: Rate, style: int = 0
    ) -> None:
        super().__init__(layer, inner, role=role, rate=rate, style=style)
        self.affine = Dense(style, self.width_in, rate=rate, bias=1.0)
        self.conv = Conv(self.width_in, self.width_out, layer.kernel, rate=rate, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.width_out))
