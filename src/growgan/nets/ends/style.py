"""StyleGAN2's ends: a learned constant, a mapping network, and images summed over resolutions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.ends.base import ENDS, NetworkEnds, Stem, ToImage
from growgan.nets.ends.progressive import ActivatedFromImage, ProgressiveEpilogue
from growgan.nets.layers import ACTIVATIONS, ScaledConv2d, ScaledLinear
from growgan.nets.norms import PixelNorm
from growgan.nets.spec import GeneratorSpec

MAPPING_LR_MULTIPLIER = 0.01  # learning rate of the mapping network relative to the other layers
W_AVG_DECAY = 0.998  # per batch


class StyleStem(Stem):
    """A learned constant on the base grid, and a mapping network from z to the styles."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.norm_latent = PixelNorm()
        self.mapping = nn.ModuleList()
        for i in range(spec.mapping_layers):
            label_dim = spec.embedded_label_dim if i == 0 else 0
            self.mapping.append(
                ScaledLinear(
                    spec.latent_dim + label_dim,
                    spec.latent_dim,
                    gain=2**0.5,
                    weight_spec=spec.weight_spec,
                    lr_multiplier=MAPPING_LR_MULTIPLIER,
                )
            )
        self.activation = ACTIVATIONS["leaky_relu"]()
        self.constant = nn.Parameter(torch.randn(spec.stem_width, *spec.base_grid))
        self.register_buffer("w_avg", torch.zeros(self.style_dim(spec)))

    def map_to_w(self, z: Float[Tensor, "n z"], label: Tensor | None) -> Float[Tensor, "n w"]:
        """Return the output of the mapping network, and update its running mean in training."""
        w = self.norm_latent(z)
        if label is not None:
            w = torch.cat([w, self.norm_latent(label)], 1)
        for layer in self.mapping:
            w = self.activation(layer(w))
        if self.training:
            self.w_avg.lerp_(w.detach().float().mean(0), 1 - W_AVG_DECAY)
        return w

    def style(self, w: Float[Tensor, "n w"], index: int) -> Float[Tensor, "n w"]:
        """Return w, which is the style of every layer."""
        return w

    @staticmethod
    def style_dim(spec: GeneratorSpec) -> int:
        """Return the length of a style."""
        return spec.latent_dim if spec.mapping_layers else spec.latent_dim + spec.embedded_label_dim

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        return self.constant.to(w.dtype).expand(w.shape[0], *self.constant.shape)


class StyledToImage(ToImage):
    """A 1×1 convolution to image channels whose input is scaled by the style."""

    def __init__(self, spec: GeneratorSpec, width: int) -> None:
        super().__init__(spec, width)
        self.affine = ScaledLinear(
            StyleStem.style_dim(spec), width, weight_spec=spec.weight_spec, bias_init=1.0
        )
        self.conv = ScaledConv2d(
            width, spec.image_channels, 1, gain=1.0, weight_spec=spec.weight_spec
        )

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return self.conv(h * self.affine(style).to(h.dtype)[:, :, None, None])


ENDS.register(
    "stylegan2",
    "Learned constant, mapping network, images summed over all resolutions.",
    "Karras et al. 2020, 1912.04958",
)(
    NetworkEnds(
        stem=StyleStem,
        to_image=StyledToImage,
        from_image=ActivatedFromImage,
        epilogue=ProgressiveEpilogue,
        can_widen=False,
        output_skips=True,
        decoder_ends="pggan",
    )
)
