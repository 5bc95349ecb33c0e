"""StyleGAN3's ends: waves that the style shifts and turns (Karras et al. 2021, 2106.12423)."""

from __future__ import annotations

from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.config import SPECTRAL
from growgan.nets.blocks.aliasfree import MARGIN
from growgan.nets.forms.base import FORMS, Form
from growgan.nets.forms.progressive import FromImage, ProgressiveEnd
from growgan.nets.forms.style import StyledToImage, StyleStem
from growgan.nets.layers import Conv, Dense
from growgan.nets.spec import StackSpec


class FourierStem(StyleStem):
    """A wave a channel on the base grid with a margin, shifted and turned by the style, and mixed.

    Frequencies are uniform in a disk that the first layers' filters pass, phases uniform; an affine
    map of the style gives the angle and the shift, at first those of no motion (section 3.1).

    Attributes:
        frequencies: cycles an image, [stem, 2] as (x, y); ``phases``: in cycles, [stem].
        moved: [3, 3], moves the waves before the style does; the identity but for tests and users.
    """

    frequencies: Tensor
    phases: Tensor
    moved: Tensor

    def __init__(self, spec: StackSpec) -> None:
        super().__init__(spec)
        del self.constant
        highest = min(spec.base) / 8
        directions = torch.randn(spec.stem, 2)
        directions = directions / directions.norm(dim=1, keepdim=True)
        radius = highest * torch.rand(spec.stem, 1).sqrt()
        self.register_buffer("frequencies", directions * radius)
        self.register_buffer("phases", torch.rand(spec.stem) - 0.5)
        self.register_buffer("moved", torch.eye(3))
        self.motion = Dense(self.style_width(spec), 4, rate=spec.rate)
        self.motion.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        if spec.rate not in SPECTRAL:  # zero has no direction
            self.motion.weight.data.zero_()
        self.mix = Conv(spec.stem, spec.stem, 1, gain=1.0, rate=spec.rate, bias=False)

    def forward(self, w: Float[Tensor, "n w"]) -> Float[Tensor, "n c h w"]:
        with torch.autocast(w.device.type, enabled=False):  # phases need all their digits
            frequencies, phases = self._moved(w.float())
        y, x = self._grid(w.device)
        angle = x * frequencies[:, :, 0, None, None] + y * frequencies[:, :, 1, None, None]
        waves = torch.sin(2 * pi * (angle + phases[:, :, None, None])) * sqrt(2)
        # A frequency that turning has put beyond the disk fades out, lest it alias.
        highest, limit = min(self.spec.base) / 8, min(self.spec.base) / 2
        amplitude = (1 - (frequencies.norm(dim=2) - highest) / (limit - highest)).clamp(0, 1)
        return self.mix(waves * amplitude[:, :, None, None])

    def _moved(self, w: Float[Tensor, "n w"]) -> tuple[Tensor, Tensor]:
        """Return the frequencies [N, c, 2] and phases [N, c] of the waves on a moved grid."""
        motion = self.motion(w)
        cosine, sine, x, y = (motion / motion[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], 1)
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], 1)
        whole = turn.view(-1, 3, 3) @ shift.view(-1, 3, 3) @ self.moved
        phases = self.phases + (self.frequencies @ whole[:, :2, 2:]).squeeze(2)
        return self.frequencies @ whole[:, :2, :2], phases

    def _grid(self, device: torch.device) -> list[Float[Tensor, "h w"]]:
        """Return y and x of the grid, margin included; the image's shorter side is [-½, ½]."""
        sides = [
            (torch.arange(side + 2 * MARGIN, device=device) - (side - 1) / 2 - MARGIN)
            / min(self.spec.base)
            for side in self.spec.base
        ]
        return list(torch.meshgrid(*sides, indexing="ij"))


class CutToImage(StyledToImage):
    """StyleGAN2's head at a quarter of its strength, without the margin."""

    def forward(
        self, h: Float[Tensor, "n d h w"], style: Tensor | None = None
    ) -> Float[Tensor, "n c h w"]:
        return 0.25 * super().forward(h[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN], style)


FORMS.register("fourier", "waves that the style moves, a margin", "Karras et al. 2021, 2106.12423")(
    Form(
        FourierStem,
        CutToImage,
        FromImage,
        ProgressiveEnd,
        widens=False,
        margin=MARGIN,
        decoder="progressive",
    )
)
