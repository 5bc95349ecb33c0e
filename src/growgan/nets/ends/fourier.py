"""StyleGAN3's ends: Fourier features that the style transforms (Karras et al. 2021, 2106.12423)."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.blocks.alias_free import GRID_MARGIN_PIXELS
from growgan.nets.ends.base import ENDS, NetworkEnds
from growgan.nets.ends.progressive import ActivatedFromImage, ProgressiveEpilogue
from growgan.nets.ends.style import StyledToImage, StyleStem
from growgan.nets.layers import ScaledConv2d, ScaledLinear
from growgan.nets.spec import GeneratorSpec


class FourierStem(StyleStem):
    """Sine waves on the base grid with a margin, translated and rotated by the style, and mixed.

    Frequencies are uniform in a disk that the filters of the first layers pass, phases uniform. An
    affine map of the style gives the angle and the translation, at first those of the identity
    (section 3.1).

    Attributes:
        frequencies: Cycles per image as (x, y), float ``[C, 2]``.
        phases: In cycles, float ``[C]``.
        transform: Transformation of the waves before that of the style, float ``[3, 3]``; the
            identity unless tests or users change it.
    """

    frequencies: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        del self.constant
        max_frequency = min(spec.base_grid) / 8
        directions = torch.randn(spec.stem_width, 2)
        directions = directions / directions.norm(dim=1, keepdim=True)
        radius = max_frequency * torch.rand(spec.stem_width, 1).sqrt()
        self.register_buffer("frequencies", directions * radius)
        self.register_buffer("phases", torch.rand(spec.stem_width) - 0.5)
        self.register_buffer("transform", torch.eye(3))
        self.affine = ScaledLinear(self.style_dim(spec), 4, weight_spec=spec.weight_spec)
        self.affine.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        if not spec.weight_spec.uses_spectral_norm:  # which cannot normalize a zero matrix
            self.affine.weight.data.zero_()
        self.channel_mix = ScaledConv2d(
            spec.stem_width,
            spec.stem_width,
            1,
            gain=1.0,
            weight_spec=spec.weight_spec,
            bias=False,
        )

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        with torch.autocast(w.device.type, enabled=False):  # phases need full precision
            frequencies, phases = self._transformed_waves(w.float())
        y, x = self._sampling_grid(w.device)
        angle = x * frequencies[:, :, 0, None, None] + y * frequencies[:, :, 1, None, None]
        waves = torch.sin(2 * pi * (angle + phases[:, :, None, None])) * sqrt(2)
        # Attenuate frequencies that the rotation has moved out of the disk, to avoid aliasing.
        max_frequency, limit = min(self.spec.base_grid) / 8, min(self.spec.base_grid) / 2
        norm = frequencies.norm(dim=2)
        amplitude = (1 - (norm - max_frequency) / (limit - max_frequency)).clamp(0, 1)
        return self.channel_mix(waves * amplitude[:, :, None, None])

    def _transformed_waves(self, w: Float[Tensor, "n w"]) -> tuple[Tensor, Tensor]:
        """Return the frequencies ``[N, C, 2]`` and phases ``[N, C]`` after the transformations."""
        motion = self.affine(w)
        cosine, sine, x, y = (motion / motion[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        rotation = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], 1)
        translation = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1)
        matrix = rotation.view(-1, 3, 3) @ translation.view(-1, 3, 3) @ self.transform
        phases = self.phases + (self.frequencies @ matrix[:, :2, 2:]).squeeze(2)
        return self.frequencies @ matrix[:, :2, :2], phases

    def _sampling_grid(self, device: torch.device) -> list[Float[Tensor, "h w"]]:
        """Return y and x of the grid with its margin; the shorter side of the image is [-½, ½]."""
        sides = []
        for side in self.spec.base_grid:
            pixels = torch.arange(side + 2 * GRID_MARGIN_PIXELS, device=device)
            centered = pixels - (side - 1) / 2 - GRID_MARGIN_PIXELS
            sides.append(centered / min(self.spec.base_grid))
        return list(torch.meshgrid(*sides, indexing="ij"))


class CroppedToImage(StyledToImage):
    """StyleGAN2's head at a quarter of its strength, without the margin."""

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        inside = slice(GRID_MARGIN_PIXELS, -GRID_MARGIN_PIXELS)
        return 0.25 * super().forward(h[:, :, inside, inside], style)


ENDS.register(
    "stylegan3",
    "Fourier features that the style transforms, feature maps with a margin.",
    "Karras et al. 2021, 2106.12423",
)(
    NetworkEnds(
        stem=FourierStem,
        to_image=CroppedToImage,
        from_image=ActivatedFromImage,
        epilogue=ProgressiveEpilogue,
        can_widen=False,
        grid_margin=GRID_MARGIN_PIXELS,
        decoder_ends="pggan",
    )
)
