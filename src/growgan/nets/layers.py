"""Linear maps with a parametrization: convolutions, dense layers and activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.spec import WeightSpec
from growgan.registry import Registry

ModuleT = TypeVar("ModuleT", bound=nn.Module)
# For each linear map or norm of a module by its attribute name: the width that it reads and the
# width that it writes, None for a size that never grows. The names of the widths depend on the
# module: see `Block.linear_map_widths` and `Stem.linear_map_widths`.
LinearMapWidths = Mapping[str, tuple[str | None, str | None]]

HE_GAIN = math.sqrt(2.0)  # He et al. 2015, for (leaky) rectifiers
NORMAL_INIT_STD = 0.02  # Radford et al. 2016
# Above this fan-in, lr_scaling "width" reduces the step. It is that of a 3x3 kernel on
# 32 channels, for which the default learning rate was tuned.
LR_SCALING_REFERENCE_FAN_IN = 288
EQUALIZED = WeightSpec(parametrization="equalized")

_SKIP_INIT: ContextVar[bool] = ContextVar("skip_init", default=False)


@contextmanager
def skip_init() -> Iterator[None]:
    """Build modules without initial weights, because weights will be copied into them."""
    token = _SKIP_INIT.set(True)
    try:
        yield
    finally:
        _SKIP_INIT.reset(token)


class ScaledWeight(nn.Module):
    """Base class of linear maps whose effective weight is a function of the stored weight.

    The effective weight starts with the distribution that ``weight_spec.init`` names: N(0,
    gain²/fan_in) for "default", N(0, 0.02²) for "normal" (Radford et al. 2016) and a matrix with
    all singular values 1 for "orthogonal" (Brock et al. 2019, section 3). The parametrization says
    how it follows from the stored weight W, and thereby how far a step of Adam, which does not
    depend on the scale of W, moves it:

    - "none": it is W.
    - "equalized": it is W · gain/sqrt(fan_in), and W starts as N(0, 1) (equalized learning rate,
      Karras et al. 2018, section 4.1).
    - "spectral_norm": it is W / σ(W), where σ is the largest singular value. Each training forward
      pass refines σ by one step of power iteration (Miyato et al. 2018, 1802.05957).

    With ``lr_scaling="width"``, the scale of maps with a fan-in above
    ``LR_SCALING_REFERENCE_FAN_IN`` additionally falls as 1/sqrt(fan_in). A step then changes an
    output equally at every width, so that a learning rate that suits a small network suits the
    network that it grows into (Yang et al. 2021, 2203.03466).

    Attributes:
        lr_multiplier: How fast the map learns compared with other maps.
        u: Left singular vector of the largest singular value, unit length, float ``[out]``; only
            with spectral norm.
    """

    u: Tensor
    lr_multiplier: float = 1.0

    def __init__(
        self, shape: tuple[int, ...], fan_in: int, gain: float, weight_spec: WeightSpec
    ) -> None:
        super().__init__()
        if fan_in < 1:
            raise UserError(f"a layer needs at least 1 input, but one has {fan_in}")
        self.fan_in, self.gain, self.weight_spec = fan_in, gain, weight_spec
        self.weight = nn.Parameter(torch.empty(shape))
        if weight_spec.uses_spectral_norm:
            self.register_buffer("u", F.normalize(torch.randn(len(self.weight_matrix())), dim=0))
        if not _SKIP_INIT.get():
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weight."""
        if self.weight_spec.init == "orthogonal":
            self.weight.copy_(self._orthogonal_weight())
            if not self.weight_spec.uses_spectral_norm:
                self.weight.div_(self._static_scale)
            return
        is_normal = self.weight_spec.init == "normal"
        std = NORMAL_INIT_STD if is_normal else self.gain / math.sqrt(self.fan_in)
        self.weight.normal_().mul_(std / self._static_scale)

    def _orthogonal_weight(self) -> Tensor:
        matrix = nn.init.orthogonal_(torch.empty(len(self.weight), self.weight[0].numel()))
        return matrix.view(self.weight.shape)

    def weight_matrix(self, weight: Tensor | None = None) -> Float[Tensor, "... out in"]:
        """Return ``weight`` (the stored one if None) as the matrix of the linear map at one pixel.

        A grouped map returns one matrix for each group.
        """
        weight = self.weight if weight is None else weight
        return weight.movedim(1, -1).flatten(1)  # a view in channels-last memory format

    @property
    def effective_weight(self) -> Tensor:
        """The weight that multiplies the input."""
        # torch.compile cannot trace a property that calls a property of the base class.
        return self._effective_weight()

    def _effective_weight(self) -> Tensor:
        if self.weight_spec.uses_spectral_norm:
            return self.weight / self.largest_singular_value(update_u=self.training)
        scale = self._static_scale
        return self.weight if scale == 1 else self.weight * scale

    def largest_singular_value(self, *, update_u: bool = False) -> Float[Tensor, ""]:
        """Return the largest singular value of the stored weight by one step of power iteration.

        Args:
            update_u: Whether to keep the new singular vector in ``u``.
        """
        device = self.weight.device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            return self._power_iteration(self.weight_matrix(), update_u)

    def _power_iteration(self, matrix: Tensor, update_u: bool) -> Float[Tensor, ""]:
        with torch.no_grad():
            v = F.normalize(torch.mv(matrix.T, self.u), dim=0, eps=1e-12)
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12)
            if update_u:
                self.u.copy_(u)
        return torch.dot(u, torch.mv(matrix, v)).clamp(min=1e-12)

    @property
    def weight_scale(self) -> float:
        """Ratio of the effective to the stored weight."""
        if self.weight_spec.uses_spectral_norm:
            return 1 / float(self.largest_singular_value().detach())
        return self._static_scale

    @property
    def _static_scale(self) -> float:
        """The part of the scale that does not depend on the weight."""
        scale = self.lr_multiplier
        if self.weight_spec.parametrization == "equalized":
            scale = scale * self.gain / math.sqrt(self.fan_in)
        if self.weight_spec.lr_scaling == "width":
            scale = scale / math.sqrt(max(1.0, self.fan_in / LR_SCALING_REFERENCE_FAN_IN))
        return scale


class ScaledConv2d(ScaledWeight):
    """A convolution of stride 1 that keeps the size, or a valid one with ``padding=0``.

    Input float ``[N, in, H, W]``, output ``[N, out, H, W]``.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Side of the kernel in pixels, or its height and width.
        gain: Factor of the initial standard deviation.
        weight_spec: Initialization, parametrization and learning-rate scaling.
        padding: Zeros on each side in pixels. If None, half of the kernel.
        zero_init: Whether the weight starts as zeros; has no effect with spectral norm, which
            cannot divide by the norm of a zero matrix.
        bias: Whether there is a bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        gain: float = HE_GAIN,
        weight_spec: WeightSpec = EQUALIZED,
        padding: int | None = None,
        zero_init: bool = False,
        bias: bool = True,
    ) -> None:
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.zero_init = zero_init and not weight_spec.uses_spectral_norm
        super().__init__(
            (out_channels, in_channels, *kernel), in_channels * math.prod(kernel), gain, weight_spec
        )
        self.padding = kernel[0] // 2 if padding is None else padding
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def reset_parameters(self) -> None:
        """Draw the initial weight, or set it to zero."""
        if self.zero_init:
            nn.init.zeros_(self.weight)
        else:
            super().reset_parameters()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        weight = self.effective_weight
        is_single_pixel = x.shape[2:] == (1, 1) or self.padding == 0
        if is_single_pixel and x.shape[2:] == weight.shape[2:]:
            # A matrix product is several times faster than a convolution with one output pixel.
            rows, matrix = x.movedim(1, -1).flatten(1), weight.movedim(1, -1).flatten(1)
            return F.linear(rows, matrix, self.bias)[:, :, None, None]
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class ScaledGroupedConv2d(ScaledWeight):
    """A grouped convolution of stride 1 that keeps the size.

    Input and output float ``[N, channels, H, W]``. Each group of ``group_width`` channels reads
    only itself.
    """

    def __init__(
        self,
        channels: int,
        group_width: int,
        kernel_size: int,
        *,
        gain: float,
        weight_spec: WeightSpec,
    ) -> None:
        if weight_spec.uses_spectral_norm:
            raise UserError("parametrization 'spectral_norm' does not support grouped convolutions")
        shape = (channels, group_width, kernel_size, kernel_size)
        super().__init__(shape, group_width * kernel_size**2, gain, weight_spec)
        self.groups = channels // group_width
        self.bias = nn.Parameter(torch.zeros(channels))

    def weight_matrix(self, weight: Tensor | None = None) -> Float[Tensor, "groups out in"]:
        """Return one matrix for each group."""
        return super().weight_matrix(weight).unflatten(0, (self.groups, -1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        padding = self.weight.shape[-1] // 2
        return F.conv2d(x, self.effective_weight, self.bias, padding=padding, groups=self.groups)


class ScaledLinear(ScaledWeight):
    """A dense map of vectors, float ``[N, in]`` to ``[N, out]``.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        gain: Factor of the initial standard deviation.
        weight_spec: Initialization, parametrization and learning-rate scaling.
        lr_multiplier: How fast the map learns compared with other maps. The stored weight and bias
            are larger by its inverse.
        bias_init: Initial value of the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        gain: float = 1.0,
        weight_spec: WeightSpec,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        self.lr_multiplier = lr_multiplier
        super().__init__((out_features, in_features), in_features, gain, weight_spec)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))

    def forward(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n out"]:
        return F.linear(x, self.effective_weight, self.bias * self.lr_multiplier)


class LinearToGrid(ScaledWeight):
    """A dense map of vectors to feature maps, float ``[N, in]`` to ``[N, out, height, width]``."""

    def __init__(
        self,
        in_features: int,
        out_channels: int,
        grid_size: tuple[int, int],
        *,
        gain: float,
        weight_spec: WeightSpec,
    ) -> None:
        super().__init__((out_channels, in_features, *grid_size), in_features, gain, weight_spec)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def _orthogonal_weight(self) -> Tensor:
        super()._orthogonal_weight()  # keeps the random numbers of earlier versions
        channels, in_features, height, width = self.weight.shape
        matrix = nn.init.orthogonal_(torch.empty(height * width * channels, in_features))
        return matrix.view(height, width, channels, in_features).permute(2, 3, 0, 1)

    def weight_matrix(self, weight: Tensor | None = None) -> Float[Tensor, "out in"]:
        """Return the matrix with one row for each pixel and channel."""
        weight = self.weight if weight is None else weight
        return weight.permute(2, 3, 0, 1).flatten(0, 2)

    def forward(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n c h w"]:
        channels, in_features, height, width = self.weight.shape
        weight = self.effective_weight.permute(2, 3, 0, 1).reshape(-1, in_features)
        flat = F.linear(x, weight, self.bias.repeat(height * width))
        # Rows are ordered (h, w, c), so the result is in channels-last memory format.
        return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)


def to_channels_last(network: ModuleT) -> ModuleT:
    """Store all weights in channels-last memory format, the fastest one on CPUs and GPUs."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class LeakyReLU(nn.LeakyReLU):
    """max(x, 0.2 x), as in DCGAN and its successors."""

    def __init__(self) -> None:
        super().__init__(0.2)


ACTIVATIONS: Registry[type[nn.Module]] = Registry("activation")
ACTIVATIONS.register("leaky_relu", "Leaky rectifier with slope 0.2.")(LeakyReLU)
ACTIVATIONS.register("relu", "Rectifier.")(nn.ReLU)
