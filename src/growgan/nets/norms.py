"""Normalization layers, by name.

Every norm is built as ``Norm(num_features, style_dim, weight_spec)`` and called with features and
an optional style, whether it uses them or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.distributed import SyncBatchNorm
from growgan.nets.layers import ScaledLinear
from growgan.nets.spec import WeightSpec
from growgan.registry import Registry

NORMS: Registry[Callable[[int, int, WeightSpec], nn.Module]] = Registry("norm")


@NORMS.register(
    "pixel", "Normalize the feature vector of each pixel.", "Karras et al. 2018, 1710.10196"
)
class PixelNorm(nn.Module):
    """x / sqrt(mean_c x² + 1e-8), with the mean over the channels of each pixel (section 4.2)."""

    MATMUL_MAX_CHANNELS = 64  # up to this width a matrix product is faster on CPUs

    def __init__(self, *unused: object) -> None:
        super().__init__()

    def forward(
        self, x: Float[Tensor, "n c ..."], style: Tensor | None = None
    ) -> Float[Tensor, "n c ..."]:
        if x.ndim == 4 and x.shape[1] <= self.MATMUL_MAX_CHANNELS and x.device.type == "cpu":
            return _normalize_rows(x.movedim(1, -1)).movedim(-1, 1)
        # Otherwise a reduction over the last axis, in float32 or wider, is fastest in eager mode.
        dtype = torch.promote_types(x.dtype, torch.float32)
        square_mean = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=dtype)
        square_mean = square_mean.square().unsqueeze(1) / x.shape[1]
        return x * torch.rsqrt(square_mean + 1e-8).to(x.dtype)


def _normalize_rows(rows: Float[Tensor, "*n c"]) -> Tensor:
    """Return the rows divided by their root mean square."""
    if not torch.is_grad_enabled():
        return rows * _inverse_rms(rows)
    normalized, _ = _RowNormalization.apply(rows)  # type: ignore[no-untyped-call]
    return cast(Tensor, normalized)


def _row_mean(rows: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    """Return the mean of each row, repeated for each of its elements.

    A matrix product does not stride through memory in steps of a few channels.
    """
    c = rows.shape[-1]
    return rows @ rows.new_full((c, c), 1 / c)


def _inverse_rms(rows: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
    return _row_mean(rows * rows).add_(1e-8).rsqrt_()


class _RowNormalization(torch.autograd.Function):
    """Return rows with mean square 1 and the factors that they were multiplied by.

    The explicit gradient takes half the time of autograd's. It can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        factor = _inverse_rms(rows)
        normalized = rows * factor
        ctx.save_for_backward(normalized, factor)
        ctx.set_materialize_grads(False)
        return normalized, factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensor:
        normalized, factor = ctx.saved_tensors
        grad_normalized, grad_factor = grads
        if grad_normalized is None:
            grad_normalized = torch.zeros_like(normalized)
        projection = normalized * _row_mean(grad_normalized * normalized)
        grad_rows = (grad_normalized - projection) * factor
        if grad_factor is not None:
            grad_rows = grad_rows - normalized * factor**2 * _row_mean(grad_factor)
        return grad_rows


@NORMS.register(
    "batch", "Normalize each channel over the batch.", "Ioffe & Szegedy 2015, 1502.03167"
)
class BatchNorm(SyncBatchNorm):
    """Batch normalization with a gain and a bias for each channel (Ioffe & Szegedy 2015).

    The half-life of the running statistics is about seven steps. The EMA of G copies them.
    """

    def __init__(self, num_features: int, *unused: object) -> None:
        super().__init__(num_features)

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        return super().forward(x)


@NORMS.register(
    "conditional",
    "Batch normalization with gain and bias from the style; for G.",
    "de Vries et al. 2017, 1707.00683",
)
class ConditionalBatchNorm(SyncBatchNorm):
    """Batch normalization times 1 + gain(style) plus shift(style), both linear maps.

    If the style contains latents, this is self-modulation (Chen et al. 2019, 1810.01365).
    """

    def __init__(self, num_features: int, style_dim: int, weight_spec: WeightSpec) -> None:
        super().__init__(num_features, affine=False)
        if not style_dim:
            raise UserError("norm 'conditional' needs a style, but the layers of D have none")
        # The small gain makes it start close to plain batch normalization.
        self.gain = ScaledLinear(style_dim, num_features, gain=0.1, weight_spec=weight_spec)
        self.shift = ScaledLinear(style_dim, num_features, gain=0.1, weight_spec=weight_spec)

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        assert style is not None
        gain, shift = self.gain(style)[:, :, None, None], self.shift(style)[:, :, None, None]
        return super().forward(x) * (1 + gain) + shift


@NORMS.register(
    "virtual",
    "Normalize with a fixed reference batch and the sample itself; for G.",
    "Salimans et al. 2016, 1606.03498",
)
class VirtualBatchNorm(nn.Module):
    """Normalization with the statistics of a reference batch and of the sample itself.

    The first ``NUM_REFERENCES`` samples of the input are the reference batch. The other samples do
    not depend on each other (Salimans et al. 2016, section 3.4).
    """

    NUM_REFERENCES = 64

    def __init__(self, num_features: int, style_dim: int, weight_spec: WeightSpec) -> None:
        super().__init__()
        if not style_dim:
            raise UserError("norm 'virtual' needs reference latents, which D does not have")
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Float[Tensor, "n c h w"], style: Tensor | None = None) -> Tensor:
        moments = torch.stack([x.float(), x.float().square()]).mean((3, 4))  # [2, N, c]
        reference = moments[:, : self.NUM_REFERENCES].mean(1, keepdim=True)
        mean, square = torch.lerp(reference, moments, 1 / (self.NUM_REFERENCES + 1))
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + 1e-5) * self.weight
        shift = self.bias - mean * scale
        return x * scale[:, :, None, None].to(x.dtype) + shift[:, :, None, None].to(x.dtype)


@NORMS.register("none", "No normalization.")
class NoNorm(nn.Module):
    """Return the features unchanged."""

    def __init__(self, *unused: object) -> None:
        super().__init__()

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return x
