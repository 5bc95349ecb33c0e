"""The smallest parts of a stack: equalised linear maps, normalisations, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import Rate
from growgan.registry import Registry

GAIN = math.sqrt(2.0)  # He et al. 2015, for (leaky) rectifiers
REFERENCE = 288  # inputs of a 3x3 kernel on 32 channels, with which the default rate was found


class Scaled(nn.Module):
    """A linear map whose weight may be scaled at run time (equalised learning rate).

    The weight in use starts as N(0, gain²/fan_in). ``rate`` says how much of that factor is stored,
    and so how large one of Adam's steps, which know no scale, is beside it:

    - "plain": all of it, as usual.
    - "normal": all of it, and it starts as N(0, 0.02²) whatever the inputs (Radford et al. 2016).
    - "equalised": nothing. The stored weight is N(0, 1) and multiplied by ``gain/sqrt(fan_in)`` in
      every forward (Karras et al. 2018, section 4.1).
    - "transfer": as equalised, but beyond ``REFERENCE`` inputs the steps shrink as 1/sqrt(fan_in),
      so that what an output moves by in a step does not depend on the width, and a rate that suits
      a small stack suits the larger one that it grows into (Yang et al. 2021, 2203.03466).
    """

    def __init__(self, shape: tuple[int, ...], fan_in: int, gain: float, rate: Rate) -> None:
        super().__init__()
        self.fan_in, self.gain, self.rate = fan_in, gain, rate
        deviation = 0.02 if rate == "normal" else gain / math.sqrt(fan_in) / self.scale
        self.weight = nn.Parameter(torch.randn(shape) * deviation)

    @property
    def scale(self) -> float:
        """The factor from the stored weight to the one in use."""
        if self.rate in ("plain", "normal"):
            return 1.0
        factor = self.gain / math.sqrt(self.fan_in)
        excess = self.fan_in / REFERENCE if self.rate == "transfer" else 1.0
        return factor / math.sqrt(max(1.0, excess))


class Conv(Scaled):
    """A same-size convolution with bias, stride 1 (or valid, with ``padding=0``).

    Input float ``[N, in, H, W]``, output ``[N, out, H, W]``.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        kernel: int | tuple[int, int],
        *,
        gain: float = GAIN,
        rate: Rate = "equalised",
        padding: int | None = None,
        zero: bool = False,
    ) -> None:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        super().__init__((width_out, width_in, *size), width_in * math.prod(size), gain, rate)
        self.padding = size[0] // 2 if padding is None else padding
        self.bias = nn.Parameter(torch.zeros(width_out))
        if zero:
            nn.init.zeros_(self.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class StridedConv(Scaled):
    """A convolution of even size and stride 2: halves the grid, or doubles it (transposed).

    Each output of the doubling one is reached by a quarter of the weights, hence its fan-in.
    """

    def __init__(
        self, width_in: int, width_out: int, kernel: int, *, doubles: bool, rate: Rate = "equalised"
    ) -> None:
        fan_in = width_in * kernel**2 // (4 if doubles else 1)
        super().__init__((width_out, width_in, kernel, kernel), fan_in, GAIN, rate)
        self.doubles, self.padding = doubles, kernel // 2 - 1
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        weight = self.weight * self.scale
        if self.doubles:
            weight = weight.transpose(0, 1)
            return F.conv_transpose2d(x, weight, self.bias, stride=2, padding=self.padding)
        return F.conv2d(x, weight, self.bias, stride=2, padding=self.padding)


class Project(Scaled):
    """A dense map from a vector to a grid: ``[N, latent]`` to ``[N, width, h, w]``."""

    def __init__(
        self, latent: int, width: int, grid: tuple[int, int], *, gain: float, rate: Rate
    ) -> None:
        super().__init__((width, latent, *grid), latent, gain, rate)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        width, latent, height, breadth = self.weight.shape
        weight = (self.weight * self.scale).permute(2, 3, 0, 1).reshape(-1, latent)
        flat = F.linear(z, weight, self.bias.repeat(height * breadth))
        # Rows are ordered (h, w, c): the grid is born channels-last.
        return flat.view(-1, height, breadth, width).permute(0, 3, 1, 2)


class PixelNorm(nn.Module):
    """x / sqrt(mean_c x² + 1e-8), the mean over channels at each pixel (PGGAN, section 4.2)."""

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        # A reduction over the last axis, float32 inside, is the fastest eager form on a CPU.
        square_mean = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=torch.float32)
        square_mean = square_mean.square().unsqueeze(1) / x.shape[1]
        return x * torch.rsqrt(square_mean + 1e-8).to(x.dtype)


class MinibatchDeviation(nn.Module):
    """Append one map holding the mean deviation of features within a group of samples.

    Groups are runs of neighbours, so that a batch of reals followed by fakes can share a forward
    and no group mixes the two. Biased variance + 1e-8, averaged over channels and pixels
    (PGGAN, section 3). Input ``[N, C, H, W]``, output ``[N, C + 1, H, W]``.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c1 h w"]:
        group = math.gcd(len(x), self.group)
        # A sample is one run of memory; torch's own variance walks it crosswise, ten times slower.
        grouped = x.float().movedim(1, -1).reshape(-1, group, x[0].numel())  # [N/g, g, H * W * C]
        centred = grouped - grouped.mean(1, keepdim=True)
        deviation = (centred.square().mean(1) + 1e-8).sqrt().mean(1)
        maps = deviation.repeat_interleave(group).to(x.dtype)[:, None, None, None]
        return torch.cat([x, maps.expand(-1, 1, *x.shape[2:])], 1)


def upsample(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Repeat each pixel ``factor`` times in both directions."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def downsample(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Average over squares of ``factor`` by ``factor`` pixels."""
    return x if factor == 1 else F.avg_pool2d(x, factor)


def channels_last(stack: Any) -> Any:
    """Lay out every weight channels-last, the fastest form on CPUs and GPUs."""
    return stack.to(memory_format=torch.channels_last)


class BatchNorm(nn.BatchNorm2d):
    """Normalisation over the batch, with a gain and a bias a channel (Ioffe & Szegedy 2015).

    The running averages halve in some seven steps; the average of G takes them over as they are.
    """


NORMS: Registry[Callable[[int], nn.Module]] = Registry("norm")  # made for so many channels
NORMS.register("pixel", "pixelwise feature normalisation", "Karras et al. 2018")(
    lambda width: PixelNorm()
)
NORMS.register("batch", "normalisation over the batch", "Ioffe & Szegedy 2015")(BatchNorm)
NORMS.register("none", "no normalisation")(lambda width: nn.Identity())


class LeakyReLU(nn.LeakyReLU):
    """max(x, 0.2 x)."""

    def __init__(self) -> None:
        super().__init__(0.2)


ACTIVATIONS: Registry[type[nn.Module]] = Registry("activation")
ACTIVATIONS.register("leaky_relu", "leaky rectifier, slope 0.2")(LeakyReLU)
ACTIVATIONS.register("relu", "rectifier")(nn.ReLU)
