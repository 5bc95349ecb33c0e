"""Base classes of layer types. A new layer type is one subclass of :class:`Block`.

A block stands between the base-grid side, with ``inner_width`` channels, and the image side, with
``layer_spec.width`` channels. In G it maps from the base-grid side to the image side and may double
the resolution; in D it maps from the image side to the base-grid side and may halve it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from growgan.errors import UserError
from growgan.nets.layers import ACTIVATIONS, LinearMapWidths, ScaledConv2d, ScaledLinear
from growgan.nets.norms import NORMS
from growgan.nets.spec import LayerSpec, Role, WeightSpec
from growgan.registry import Registry

BLOCKS: Registry[type[Block]] = Registry("block")


class Block(nn.Module):
    """A layer of G or D.

    It is called with features and, in G, with a style of length ``style_dim``. Subclasses create
    their modules in :meth:`build` and compute in ``forward(x, style=None)``.

    Args:
        layer_spec: The spec of the layer.
        inner_width: Number of channels on the base-grid side.
        role: "generator" or "discriminator".
        weight_spec: Initialization, parametrization and learning-rate scaling of the weights.
        style_dim: Length of the styles; 0 in D.

    Attributes:
        linear_map_widths: Which widths the linear maps and norms read and write: "in" and "out" for
            the channels of the block's input and output, "width" for ``layer_spec.width``, or None.
            Only blocks that can be widened list them.
        can_widen: Whether channels can be duplicated without a change of the output.
        can_resample: Whether the block can change the resolution.
        preserves_width: Whether it needs as many output as input channels.
        supports_discriminator: Whether it works without styles, and thus in D.
        grid_margin: Width in pixels of the border of its feature maps that lies outside the image.
            All layers of a network have the same margin.
        activation_multiplier: Approximate size of all feature maps that the block writes, as a
            multiple of one map on its image side.
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {}
    can_widen = True
    can_resample = True
    preserves_width = False
    supports_discriminator = True
    grid_margin = 0
    activation_multiplier = 1.0

    def __init__(
        self,
        layer_spec: LayerSpec,
        inner_width: int,
        *,
        role: Role,
        weight_spec: WeightSpec,
        style_dim: int = 0,
    ) -> None:
        super().__init__()
        name = layer_spec.block
        if layer_spec.resample_factor != 1 and not self.can_resample:
            raise UserError(
                f"block '{name}' cannot change the resolution: resample_factor must be 1"
            )
        if role == "discriminator" and not self.supports_discriminator:
            raise UserError(f"block '{name}' needs a style, but the layers of D have none")
        if self.preserves_width and inner_width != layer_spec.width:
            raise UserError(
                f"block '{name}' keeps its number of channels, {inner_width}, but the width is "
                f"{layer_spec.width}"
            )
        self.layer_spec, self.role = layer_spec, role
        self.inner_width, self.style_dim, self.weight_spec = inner_width, style_dim, weight_spec
        if role == "generator":
            self.up, self.down = layer_spec.resample_factor, 1
            self.in_channels, self.out_channels = inner_width, layer_spec.width
        else:
            self.up, self.down = 1, layer_spec.resample_factor
            self.in_channels, self.out_channels = layer_spec.width, inner_width
        self.activation = ACTIVATIONS[layer_spec.activation]()
        self.norm = self.build_norm(self.normalized_channels)
        self.build()

    def build(self) -> None:
        """Create the modules of the block besides ``activation`` and ``norm``."""

    def build_norm(self, num_features: int) -> nn.Module:
        """Return a normalization layer of the type that the layer spec names."""
        return NORMS[self.layer_spec.norm](num_features, self.style_dim, self.weight_spec)

    @property
    def uses_style(self) -> bool:
        """Whether the output depends on the style."""
        return self.layer_spec.norm == "conditional"

    @property
    def adds_noise(self) -> bool:
        """Whether the block adds random noise."""
        return False

    @property
    def normalized_channels(self) -> int:
        """Number of channels that ``norm`` normalizes."""
        return self.out_channels

    @classmethod
    def macs_per_pixel(
        cls, layer_spec: LayerSpec, inner_width: int, role: Role, num_pixels: int
    ) -> float:
        """Return the approximate number of multiplications per pixel of the image side.

        Args:
            layer_spec: The spec of the layer.
            inner_width: Number of channels on the base-grid side.
            role: "generator" or "discriminator".
            num_pixels: Number of pixels of a feature map on the image side.
        """
        return layer_spec.kernel_size**2 * inner_width * layer_spec.width


class StyledBlock(Block):
    """A convolution whose weights are scaled by an affine map of the style, plus a bias; for G."""

    can_widen = False
    uses_style = True
    supports_discriminator = False

    def build(self) -> None:
        self.affine = ScaledLinear(
            self.style_dim, self.in_channels, weight_spec=self.weight_spec, bias_init=1.0
        )
        self.conv = ScaledConv2d(
            self.in_channels,
            self.out_channels,
            self.layer_spec.kernel_size,
            weight_spec=self.weight_spec,
            bias=False,
        )
        self.bias = nn.Parameter(torch.zeros(self.out_channels))
