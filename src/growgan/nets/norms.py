"""Normalisations of features, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import Rate
from growgan.errors import UserError
from growgan.nets.layers import Dense
from growgan.nets.ranked import RankedNorm
from growgan.registry import Registry


class PixelNorm(nn.Module):
    """x / sqrt(mean_c x² + 1e-8), the mean over channels at each pixel (PGGAN, section 4.2)."""

    NARROW = 64  # channels up to which a CPU is faster by a product of matrices

    def __init__(self, *of: object) -> None:
        super().__init__()

    def forward(
        self, x: Float[Tensor, "n c ..."], style: Tensor | None = None
    ) -> Float[Tensor, "n c ..."]:
        if x.ndim == 4 and x.shape[1] <= self.NARROW and x.device.type == "cpu":
            rows = x.movedim(1, -1)
            unit = _unit(rows)
            return unit.movedim(-1, 1)
        # A reduction over the last axis, float32 or wider inside, is the next fastest eager form.
        wide = torch.promote_types(x.dtype, torch.float32)
        square_mean = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=wide)
        square_mean = square_mean.square().unsqueeze(1) / x.shape[1]
        return x * torch.rsqrt(square_mean + 1e-8).to(x.dtype)


def _unit(rows: Float[Tensor, "*n c"]) -> Tensor:
    if not torch.is_grad_enabled():
        return rows * _shrinking(rows)
    unit, _ = _Unit.apply(rows)  # type: ignore[no-untyped-call]
    return cast(Tensor, unit)


def _mean(rows: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Return the mean of each row in each of its places.

    As a product with a matrix, so that nothing walks memory in steps of a few channels.
    """
    c = rows.shape[-1]
    return rows @ rows.new_full((c, c), 1 / c)


def _shrinking(rows: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    return _mean(rows * rows).add_(1e-8).rsqrt_()


class _Unit(torch.autograd.Function):
    """Rows of mean square 1, and what they were multiplied by; differentiable any number of times.

    Written out, its gradient takes half of the time of what autograd would put together.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        factor = _shrinking(rows)
        unit = rows * factor
        ctx.save_for_backward(unit, factor)
        ctx.set_materialize_grads(False)
        return unit, factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor:
        unit, factor = ctx.saved_tensors
        by_unit, by_factor = grads
        if by_unit is None:
            by_unit = torch.zeros_like(unit)
        by_rows = (by_unit - unit * _mean(by_unit * unit)) * factor
        if by_factor is not None:
            by_rows = by_rows - unit * factor**2 * _mean(by_factor)
        return by_rows


class BatchNorm(RankedNorm):
    """Normalisation over the batch, with a gain and a bias a channel (Ioffe & Szegedy 2015).

    The running averages halve in some seven steps; the average of G takes them over as they are.
    """

    def __init__(self, width: int, *of: object) -> None:
        super().__init__(width)

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        return super().forward(x)


class ConditionalNorm(RankedNorm):
    """Normalisation over the batch, times 1 + gain(style), plus bias(style): linear maps both.

    With latents for a style this is self-modulation (Chen et al. 2019, 1810.01365).
    """

    def __init__(self, width: int, style: int, rate: Rate) -> None:
        super().__init__(width, affine=False)
        if not style:
            raise UserError("norm 'conditional' has no meaning for D, whose layers have no style")
        # Small at first: it begins as plain batch norm.
        self.gain = Dense(style, width, gain=0.1, rate=rate)
        self.shift = Dense(style, width, gain=0.1, rate=rate)

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        assert style is not None
        gain, shift = (part(style)[:, :, None, None] for part in (self.gain, self.shift))
        return super().forward(x) * (1 + gain) + shift


class VirtualNorm(nn.Module):
    """Normalisation by a reference batch, the first ``REFERENCES`` samples, and the sample itself.

    Salimans et al. 2016, 1606.03498, section 3.4: samples do not depend on each other.
    """

    REFERENCES = 64

    def __init__(self, width: int, style: int, rate: Rate) -> None:
        super().__init__()
        if not style:
            raise UserError("norm 'virtual' has no meaning for D: its reference would be latents")
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        moments = torch.stack([x.float(), x.float().square()]).mean((3, 4))  # [2, N, c]
        known = moments[:, : self.REFERENCES].mean(1, keepdim=True)
        share = 1 / (self.REFERENCES + 1)
        mean, square = torch.lerp(known, moments, share)
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + 1e-5) * self.weight
        shift = self.bias - mean * scale
        return x * scale[:, :, None, None].to(x.dtype) + shift[:, :, None, None].to(x.dtype)


class NoNorm(nn.Module):
    """x as it is."""

    def __init__(self, *of: object) -> None:
        super().__init__()

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return x


# Made for so many channels, a length of the style vector and a rate; called with both.
NORMS: Registry[Callable[[int, int, Rate], nn.Module]] = Registry("norm")
NORMS.register("pixel", "pixelwise feature normalisation", "Karras et al. 2018, 1710.10196")(
    PixelNorm
)
NORMS.register("batch", "normalisation over the batch", "Ioffe & Szegedy 2015, 1502.03167")(
    BatchNorm
)
NORMS.register(
    "conditional", "over the batch, gain and bias by the style", "de Vries et al. 2017, 1707.00683"
)(ConditionalNorm)
NORMS.register("virtual", "by a reference batch", "Salimans et al. 2016, 1606.03498")(VirtualNorm)
NORMS.register("none", "no normalisation")(NoNorm)
