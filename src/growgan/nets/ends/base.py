"""Base classes for the ends of networks, that is, everything besides the layers.

The ends are four modules: G's stem and image head, D's image head and epilogue. Together with the
layer types in :mod:`growgan.nets.blocks` they make up every architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.layers import LinearMapWidths
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.registry import Registry


class Stem(nn.Module):
    """The first module of G: latents, and labels, to features on the base grid.

    Attributes:
        linear_map_widths: Which widths the linear maps and norms read and write: "stem" or None.
        w_avg: Running mean of w, float ``[W]``; only with a mapping network.
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {}
    w_avg: Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec

    def map_to_w(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        """Return w, of which images are a smooth function: latents followed by embedded labels."""
        return z if label is None else torch.cat([z, label], 1)

    def stem_input(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n r"]:
        """Return the part of w from which the features on the base grid are computed."""
        spec = self.spec
        z, label = w[:, : spec.latent_chunk_dim or spec.latent_dim], w[:, spec.latent_dim :]
        return torch.cat([z, label], 1) if spec.label_dim and spec.stem_uses_label else z

    def style(self, w: Float[Tensor, "n w"], index: int) -> Float[Tensor, "n s"]:
        """Return the style of the layer with this index among those that use a style.

        With ``latent_chunk_dim``, z is split into chunks: the first is for the stem, and each of
        the others for one layer (hierarchical latents: Brock et al. 2019, appendix B).
        """
        spec = self.spec
        z, label = w[:, : spec.latent_dim], w[:, spec.latent_dim :]
        if spec.latent_chunk_dim:
            chunks = z.split(spec.latent_chunk_dim, 1)[: spec.latent_dim // spec.latent_chunk_dim]
            # A network with more layers than chunks starts over with the chunk of the first layer.
            z = chunks[1 + index % (len(chunks) - 1)] if len(chunks) > 1 else chunks[0]
        if not spec.label_dim:
            return z
        return torch.cat([z, label], 1) if spec.styles_use_latent else label

    @staticmethod
    def style_dim(spec: GeneratorSpec) -> int:
        """Return the length of a style."""
        return spec.style_dim

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        """Return the features on the base grid."""
        raise NotImplementedError


class ToImage(nn.Module):
    """Image head of G: features with ``width`` channels, and a style, to images."""

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__()


class FromImage(nn.Module):
    """Image head of D: images to features with ``width`` channels."""

    def __init__(self, spec: DiscriminatorSpec, width: int) -> None:
        super().__init__()


class DiscriminatorEpilogue(nn.Module):
    """The last module of D: features on the base grid to a feature vector and a logit.

    Attributes:
        linear_map_widths: Which widths the linear maps read and write: "stem" or None.
        num_extra_inputs: How many channels some linear maps read besides those of their width.
        logit_layer: Linear map of features float ``[N, D, 1, 1]`` to the logit.
    """

    linear_map_widths: ClassVar[LinearMapWidths] = {}
    num_extra_inputs: Mapping[str, int] = {}
    logit_layer: nn.Module

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Return the features of which the logit is a linear map."""
        raise NotImplementedError

    @staticmethod
    def feature_dim(spec: DiscriminatorSpec) -> int:
        """Return the number of features."""
        return spec.stem_width

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the logit of each feature vector."""
        logits: Tensor = self.logit_layer(features[:, :, None, None])
        return logits.float().flatten()


@dataclass(frozen=True)
class NetworkEnds:
    """The ends of G and D.

    Attributes:
        stem: First module of G.
        to_image: Image head of G.
        from_image: Image head of D.
        epilogue: Last module of D.
        can_widen: Whether their channels can be duplicated without a change of the output.
        output_skips: Whether G has a head for each resolution and sums the upsampled images (Karras
            et al. 2020, section 4.1).
        grid_margin: Width in pixels of the border of G's feature maps that lies outside the image.
        decoder_ends: Name of the ends of an autoencoder D's decoder. If empty, the same ends.
    """

    stem: type[Stem]
    to_image: type[ToImage]
    from_image: type[FromImage]
    epilogue: type[DiscriminatorEpilogue]
    can_widen: bool = True
    output_skips: bool = False
    grid_margin: int = 0
    decoder_ends: str = ""


ENDS: Registry[NetworkEnds] = Registry("ends")
