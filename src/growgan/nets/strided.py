"""Convolutions of stride 2."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import Rate
from growgan.nets.layers import GAIN, Scaled

LATTICE = 0.5  # of what alternates between the pixels of a doubled grid, beside the rest
FEW = 16  # pixels of the smaller grid up to which a CPU is faster by a product of matrices,
MANY = 128 * 128 * 16  # where there are so many weights


def _calming(kernel: int, share: float) -> Float[Tensor, "k2 k2"]:
    """Return the map of a kernel's values that leaves ``share`` of what alternates, either way."""
    turns = torch.ones(kernel)
    turns[1::2] = -1
    along = torch.eye(kernel) - (1 - share) / kernel * torch.outer(turns, turns)
    return torch.kron(along, along)


class StridedConv(Scaled):
    """A convolution of even size and stride 2: halves the grid, or doubles it (transposed).

    Each output of the doubling one is reached by a quarter of the weights, hence its fan-in. What
    alternates from weight to weight draws a lattice (Aitken et al. 2017, 1707.02937): at the rates
    "equalised" and "transfer" there is none of it at first, and it is learnt ``LATTICE`` times as
    fast as the rest, which is a nearest doubling and a convolution.
    """

    calming: Tensor  # [kernel², kernel²]: what a kernel's values become

    def __init__(
        self, width_in: int, width_out: int, kernel: int, *, doubles: bool, rate: Rate = "equalised"
    ) -> None:
        fan_in = width_in * kernel**2 // (4 if doubles else 1)
        self.doubles, self.padding = doubles, kernel // 2 - 1
        self.calm = doubles and rate in ("equalised", "transfer")
        super().__init__((width_out, width_in, kernel, kernel), fan_in, GAIN, rate)
        self.bias = nn.Parameter(torch.zeros(width_out))
        if self.calm:
            self.register_buffer("calming", _calming(kernel, LATTICE), persistent=False)

    @torch.no_grad()
    def draw(self) -> None:
        super().draw()
        if self.calm:  # what is taken out, on average, the rest makes up for
            kernel = self.weight.shape[-1]
            self.weight.copy_(self._mixed(_calming(kernel, 0.0) / (1 - 1 / kernel)))

    def _in_use(self) -> Tensor:
        if not self.calm:
            return super()._in_use()
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._mixed(self.calming * self.scale)

    def _mixed(self, matrix: Tensor) -> Tensor:
        """Return the stored weight, the values of each kernel sent through a matrix."""
        outputs, inputs, *kernel = self.weight.shape
        values = self.weight.permute(0, 2, 3, 1).reshape(outputs, -1, inputs)
        mixed = matrix @ values  # one product: sums along either axis take ten times as long
        return mixed.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        weight, bias = self.used, cast(Tensor, self.bias)
        return strided(x, weight, bias, self.padding, doubles=self.doubles)


def strided(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c k k"],
    bias: Float[Tensor, " d"] | None,
    padding: int,
    *,
    doubles: bool,
) -> Float[Tensor, "n d h2 w2"]:
    """Convolve with stride 2, or transposed if it ``doubles``."""
    halved = [(side + 2 * padding - weight.shape[-1]) // 2 + 1 for side in x.shape[2:]]
    pixels = math.prod(x.shape[2:] if doubles else halved)
    few = pixels <= FEW and weight.numel() >= MANY and x.device.type == "cpu"
    few = few and torch.is_grad_enabled()
    if few and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    weight = weight.transpose(0, 1) if doubles else weight
    if few:
        y = FewPixels.apply(x, weight, bias, padding, doubles)  # type: ignore[no-untyped-call]
        return cast(Tensor, y)
    call = F.conv_transpose2d if doubles else F.conv2d
    return call(x, weight, bias, stride=2, padding=padding)


class FewPixels(torch.autograd.Function):
    """A convolution of stride 2 whose weight's gradient is one product of matrices.

    Where the grid is small and the weight large, CPU libraries find that gradient at a fraction of
    their speed: on 512 to 1024 channels from 8x8 to 4x4 pixels at a quarter of it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, doubles: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.doubles = padding, doubles
        call = F.conv_transpose2d if doubles else F.conv2d
        return call(x, weight, bias, stride=2, padding=padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias, *_ = ctx.needs_input_grad
        # What is differentiated again (gradient penalties) is left to torch.
        ours = wanted_weight and not torch.is_grad_enabled()
        along = ([2, 2], [ctx.padding] * 2, [1, 1], ctx.doubles, [0, 0], 1)
        wanted = [wanted_x, wanted_weight and not ours, False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, *along, wanted
        )
        if ours:
            large, small = (gradient, x) if ctx.doubles else (x, gradient)
            of_weight = _correlation(small, large, weight.shape[-1], ctx.padding, ctx.doubles)
        of_bias = gradient.sum((0, 2, 3)) if wanted_bias else None
        return of_x, of_weight, of_bias, None, None


def _correlation(
    small: Float[Tensor, "n s h w"],
    large: Float[Tensor, "n c h2 w2"],
    kernel: int,
    padding: int,
    doubles: bool,
) -> Float[Tensor, "s c k k"]:
    """Return the gradient of the weight between two grids, the larger one of about twice the sides.

    Its memory runs along the inputs, as that of the stored weight does.
    """
    n, channels, height, width = small.shape
    rows = F.pad(large.movedim(1, -1), (0, 0, *[padding] * 4))
    by_image, by_row, by_pixel, by_channel = rows.stride()
    shape = (n, height, width, kernel, kernel, large.shape[1])
    strides = (by_image, 2 * by_row, 2 * by_pixel, by_row, by_pixel, by_channel)
    windows = rows.as_strided(shape, strides).reshape(n * height * width, -1)
    pixels = small.movedim(1, -1).reshape(-1, channels)
    if doubles:
        return (windows.T @ pixels).view(kernel, kernel, -1, channels).permute(3, 2, 0, 1)
    return (pixels.T @ windows).view(channels, kernel, kernel, -1).permute(0, 3, 1, 2)
