"""The smallest parts of a stack: equalised linear maps, normalisations, resampling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import SPECTRAL, Rate
from growgan.errors import UserError
from growgan.registry import Registry

GAIN = math.sqrt(2.0)  # He et al. 2015, for (leaky) rectifiers
REFERENCE = 288  # inputs of a 3x3 kernel on 32 channels, with which the default rate was found


_UNSET: ContextVar[bool] = ContextVar("unset", default=False)


@contextmanager
def unset() -> Iterator[None]:
    """A context in which weights are not drawn, since they will be copied from elsewhere."""
    token = _UNSET.set(True)
    try:
        yield
    finally:
        _UNSET.reset(token)


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
    - "spectral": all of it, but the weight in use is divided by its largest singular value, which
      one step of power iteration a forward follows in training (Miyato et al. 2018, 1802.05957).
    - "orthogonal": as spectral, and it starts orthogonal (Brock et al. 2019, section 3).
    """

    u: Tensor  # unit [out]: where the largest singular value points
    speed: float = 1.0  # how fast it learns beside other maps

    def __init__(self, shape: tuple[int, ...], fan_in: int, gain: float, rate: Rate) -> None:
        super().__init__()
        if fan_in < 1:
            raise UserError("a map needs an input, and one of this stack's has none")
        self.fan_in, self.gain, self.rate = fan_in, gain, rate
        self.weight = nn.Parameter(torch.empty(shape))
        if rate in SPECTRAL:
            self.register_buffer("u", F.normalize(torch.randn(len(self.matrix())), dim=0))
        if not _UNSET.get():
            self.draw()

    @torch.no_grad()
    def draw(self) -> None:
        """Draw the stored weight."""
        if self.rate == "orthogonal":
            rows = nn.init.orthogonal_(torch.empty(len(self.weight), self.weight[0].numel()))
            self.weight.copy_(rows.view(self.weight.shape))
            return
        deviation = 0.02 if self.rate == "normal" else self.gain / math.sqrt(self.fan_in)
        self.weight.normal_().mul_(deviation / self._constant)

    def matrix(self, weight: Tensor | None = None) -> Float[Tensor, "... out in"]:
        """Return the stored weight, or another, as the linear map that it is at one place.

        Where it falls into groups there is a matrix for each.
        """
        weight = self.weight if weight is None else weight
        return weight.movedim(1, -1).flatten(1)  # a view where channels come last

    @property
    def used(self) -> Tensor:
        """The weight in use."""
        return self._in_use()  # compilers cannot follow a property that calls its parent's

    def _in_use(self) -> Tensor:
        if self.rate in SPECTRAL:
            return self.weight / self.singular(follow=self.training)
        constant = self._constant
        return self.weight if constant == 1 else self.weight * constant

    def singular(self, *, follow: bool = False) -> Float[Tensor, ""]:
        """Return the largest singular value of the stored weight, one step on from ``u``.

        With ``follow`` that step is kept.
        """
        device = self.weight.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return self._singular(self.matrix(), follow)

    def _singular(self, matrix: Tensor, follow: bool) -> Float[Tensor, ""]:
        with torch.no_grad():
            v = F.normalize(torch.mv(matrix.T, self.u), dim=0, eps=1e-12)
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12)
            if follow:
                self.u.copy_(u)
        return torch.dot(u, torch.mv(matrix, v)).clamp(min=1e-12)

    @property
    def scale(self) -> float:
        """The factor from the stored weight to the one in use."""
        return 1 / float(self.singular().detach()) if self.rate in SPECTRAL else self._constant

    @property
    def _constant(self) -> float:
        if self.rate in ("plain", "normal", *SPECTRAL):
            return self.speed
        factor = self.speed * self.gain / math.sqrt(self.fan_in)
        excess = self.fan_in / REFERENCE if self.rate == "transfer" else 1.0
        return factor / math.sqrt(max(1.0, excess))


class Conv(Scaled):
    """A same-size convolution, stride 1 (or valid, with ``padding=0``).

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
        bias: bool = True,
    ) -> None:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.zero = zero and rate not in SPECTRAL  # zero has no direction
        super().__init__((width_out, width_in, *size), width_in * math.prod(size), gain, rate)
        self.padding = size[0] // 2 if padding is None else padding
        self.bias = nn.Parameter(torch.zeros(width_out)) if bias else None

    def draw(self) -> None:
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            super().draw()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        weight = self.used
        one = x.shape[2:] == weight.shape[2:] and (self.padding == 0 or x.shape[2:] == (1, 1))
        if one:  # one place: several times as fast
            x, weight = (each.movedim(1, -1).flatten(1) for each in (x, weight))
            return F.linear(x, weight, self.bias)[:, :, None, None]
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class GroupedConv(Scaled):
    """A same-size convolution of groups of ``group`` channels, each of which sees itself alone.

    Input and output float ``[N, width, H, W]``.
    """

    def __init__(self, width: int, group: int, kernel: int, *, gain: float, rate: Rate) -> None:
        if rate in SPECTRAL:
            raise UserError(f"rate '{rate}' has no meaning for grouped convolutions")
        super().__init__((width, group, kernel, kernel), group * kernel**2, gain, rate)
        self.groups = width // group
        self.bias = nn.Parameter(torch.zeros(width))

    def matrix(self, weight: Tensor | None = None) -> Float[Tensor, "groups out in"]:
        return super().matrix(weight).unflatten(0, (self.groups, -1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.used, self.bias, padding=padding, groups=self.groups)


class Dense(Scaled):
    """A linear map of vectors, ``[N, in]`` to ``[N, out]``.

    Args:
        speed: how fast it learns beside other maps: what is stored is so many times larger.
        bias: what each output's bias starts as.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        gain: float = 1.0,
        rate: Rate,
        speed: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        self.speed = speed
        super().__init__((width_out, width_in), width_in, gain, rate)
        self.bias = nn.Parameter(torch.full((width_out,), bias / speed))

    def forward(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.used, self.bias * self.speed)


class Project(Scaled):
    """A dense map from a vector to a grid: ``[N, latent]`` to ``[N, width, h, w]``."""

    def __init__(
        self, latent: int, width: int, grid: tuple[int, int], *, gain: float, rate: Rate
    ) -> None:
        super().__init__((width, latent, *grid), latent, gain, rate)
        self.bias = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def draw(self) -> None:
        super().draw()
        if self.rate == "orthogonal":
            width, latent, height, breadth = self.weight.shape
            rows = nn.init.orthogonal_(torch.empty(height * breadth * width, latent))
            self.weight.copy_(rows.view(height, breadth, width, latent).permute(2, 3, 0, 1))

    def matrix(self, weight: Tensor | None = None) -> Float[Tensor, "out z"]:
        weight = self.weight if weight is None else weight
        return weight.permute(2, 3, 0, 1).flatten(0, 2)

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        width, latent, height, breadth = self.weight.shape
        weight = self.used.permute(2, 3, 0, 1).reshape(-1, latent)
        flat = F.linear(z, weight, self.bias.repeat(height * breadth))
        # Rows are ordered (h, w, c): the grid is born channels-last.
        return flat.view(-1, height, breadth, width).permute(0, 3, 1, 2)


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


class MinibatchDiscrimination(nn.Module):
    """o_b(x_i) = Σ_j exp(-||M_ib - M_jb||₁), M_i a linear map of features to B rows of five.

    Salimans et al. 2016, 1606.03498, section 3.2. Features float ``[N, D]``, output ``[N, B]``.
    """

    ROW = 5

    def __init__(self, features: int, kernels: int, rate: Rate) -> None:
        super().__init__()
        self.rows = Dense(features, kernels * self.ROW, rate=rate)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n b"]:
        rows = self.rows(features).float().view(len(features), -1, self.ROW)
        return torch.exp(-(rows[:, None] - rows[None]).abs().sum(3)).sum(1)


def upsample(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Repeat each pixel ``factor`` times in both directions."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def downsample(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Average over squares of ``factor`` by ``factor`` pixels."""
    return x if factor == 1 else F.avg_pool2d(x, factor)


def channels_last(stack: Any) -> Any:
    """Lay out every weight channels-last, the fastest form on CPUs and GPUs."""
    return stack.to(memory_format=torch.channels_last)


class LeakyReLU(nn.LeakyReLU):
    """max(x, 0.2 x)."""

    def __init__(self) -> None:
        super().__init__(0.2)


ACTIVATIONS: Registry[type[nn.Module]] = Registry("activation")
ACTIVATIONS.register("leaky_relu", "leaky rectifier, slope 0.2")(LeakyReLU)
ACTIVATIONS.register("relu", "rectifier")(nn.ReLU)
