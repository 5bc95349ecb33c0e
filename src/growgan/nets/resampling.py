"""Resampling of images and feature maps, with and without low-pass filters.

The filters are the short ones of StyleGAN2 and R3GAN and the long ones of StyleGAN3. Each channel
is filtered separately. A CPU takes ten times as long for a filter that changes the size in
bfloat16 as in float32, so there the columns and then the rows are multiplied by equivalent
matrices.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.layers import EQUALIZED, HE_GAIN, ScaledWeight
from growgan.nets.spec import WeightSpec

BLUR_TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)  # in one direction

# The cutoff frequency as a fraction of the sampling rate: half of the amplitude passes there, and
# nothing from half of the rate on.
LOWPASS_CUTOFF = 2**-1.5
LOWPASS_TAPS_PER_SAMPLE = 6  # filter taps for each sample that resampling adds or merges

# How fast the alternating part of an upsampling kernel learns compared with the rest.
CHECKERBOARD_LR_MULTIPLIER = 0.5
# On a CPU, the weight gradient of a strided convolution is faster as a matrix product if its
# smaller grid has at most this many pixels and its weight at least this many elements.
MATMUL_MAX_PIXELS = 16
MATMUL_MIN_WEIGHTS = 128 * 128 * 16


# Without filters


def upsample_nearest(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Repeat each pixel ``factor`` times in both directions."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def downsample_average(x: Float[Tensor, "n c h w"], factor: int = 2) -> Float[Tensor, "n c h2 w2"]:
    """Average over squares of ``factor`` by ``factor`` pixels."""
    return x if factor == 1 else F.avg_pool2d(x, factor)


# StyleGAN2's filter


def downsample_blur(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Filter with [1 3 3 1] / 8 in both directions, zero-padded, and keep every second pixel."""
    if _is_bfloat16_on_cpu(x):
        return _resample_by_matmul(x, 2, BLUR_TAPS, up=False)
    return F.conv2d(x, _depthwise_blur_kernel(x, 1 / 8), stride=2, padding=1, groups=x.shape[1])


def upsample_blur(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Insert zeros between the pixels and filter with [1 3 3 1] / 4 in both directions."""
    if _is_bfloat16_on_cpu(x):
        return _resample_by_matmul(x, 2, BLUR_TAPS, up=True)
    kernel = _depthwise_blur_kernel(x, 1 / 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def blur(x: Float[Tensor, "n c h w"], padding: int) -> Float[Tensor, "n c h1 w1"]:
    """Filter with [1 3 3 1] / 8 in both directions; each side becomes 2·padding - 3 longer."""
    return F.conv2d(x, _depthwise_blur_kernel(x, 1 / 8), padding=padding, groups=x.shape[1])


def upsample_conv_blur(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h2 w2"]:
    """Insert zeros between the pixels, convolve, and filter with [1 3 3 1] / 4."""
    kernel_size = weight.shape[-1]
    if kernel_size == 1:
        return upsample_blur(F.conv2d(x, weight))
    padding = (kernel_size - 3) // 2
    return 4 * blur(strided_conv2d(x, weight, None, padding, transposed=True), 1)


def blur_conv_downsample(
    x: Float[Tensor, "n c h2 w2"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h w"]:
    """Filter with [1 3 3 1] / 8, convolve, and keep every second pixel."""
    blurred = blur(x, (weight.shape[-1] + 1) // 2)
    return strided_conv2d(blurred, weight, None, 0, transposed=False)


def _depthwise_blur_kernel(x: Tensor, scale: float) -> Float[Tensor, "c 1 4 4"]:
    """Return the filter for each channel of ``x``."""
    return _blur_kernel(scale, x.device, x.dtype).expand(x.shape[1], 1, 4, 4)


@lru_cache
@torch.inference_mode(False)
def _blur_kernel(scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the filter; cached for each device, so that no step waits for a copy."""
    row = torch.tensor(BLUR_TAPS, device=device) * 8 * scale
    return torch.outer(row, row).to(dtype)


# StyleGAN3's filters


@lru_cache
@torch.inference_mode(False)
def lowpass_filter(factor: int, *, radial: bool = False) -> Float[Tensor, "taps ..."]:
    """Return a Kaiser low-pass filter for resampling by ``factor``.

    Half of the amplitude passes at ``LOWPASS_CUTOFF`` of the lower sampling rate, nothing from half
    of that rate on (Karras et al. 2021, 2106.12423, appendix C.1).

    Returns:
        Float64 with sum 1: ``[taps]``, or a disk ``[taps, taps]`` if ``radial``.
    """
    num_taps = LOWPASS_TAPS_PER_SAMPLE * factor
    position = (torch.arange(num_taps, dtype=torch.float64) - (num_taps - 1) / 2) / factor
    # Kaiser's estimate of the attenuation in decibels for this number of taps.
    attenuation = 2.285 * (num_taps - 1) * math.pi * 2 * (1 - 2 * LOWPASS_CUTOFF) / factor + 7.95
    beta = _kaiser_beta(attenuation)
    window = torch.kaiser_window(num_taps, periodic=False, beta=beta, dtype=torch.float64)
    if not radial:
        taps = torch.sinc(2 * LOWPASS_CUTOFF * position) * window
        return taps / taps.sum()
    radius = torch.hypot(position[:, None], position[None, :])
    jinc = torch.special.bessel_j1(2 * math.pi * LOWPASS_CUTOFF * radius) / radius
    taps = jinc * torch.outer(window, window)
    return taps / taps.sum()


def _kaiser_beta(attenuation: float) -> float:
    """Return the shape of Kaiser's window for an attenuation in decibels (Kaiser 1974)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def upsample_lowpass(x: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c h2 w2"]:
    """Resample to ``factor`` times the sampling rate without aliasing, zero-padded."""
    if _is_bfloat16_on_cpu(x):
        return _resample_by_matmul(x, factor, _lowpass_taps(factor), up=True)
    taps = _lowpass_filter_on_device(factor, False, x.device, x.dtype) * factor
    for shape, stride in (((-1, 1), (factor, 1)), ((1, -1), (1, factor))):
        kernel = _depthwise_kernel(x, taps.view(*shape))
        padding = [(size - s) // 2 for size, s in zip(kernel.shape[2:], stride, strict=True)]
        x = F.conv_transpose2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])
    return x


def downsample_lowpass(x: Float[Tensor, "n c h w"], factor: int, *, radial: bool) -> Tensor:
    """Resample to 1/``factor`` of the sampling rate without aliasing, zero-padded."""
    padding = (LOWPASS_TAPS_PER_SAMPLE - 1) * factor // 2
    if radial:
        if _is_bfloat16_on_cpu(x):
            with torch.autocast("cpu", enabled=False):
                return downsample_lowpass(x.float(), factor, radial=True).to(x.dtype)
        kernel = _depthwise_kernel(x, _lowpass_filter_on_device(factor, True, x.device, x.dtype))
        return F.conv2d(x, kernel, stride=factor, padding=padding, groups=x.shape[1])
    if _is_bfloat16_on_cpu(x):
        return _resample_by_matmul(x, factor, _lowpass_taps(factor), up=False)
    taps, groups = _lowpass_filter_on_device(factor, False, x.device, x.dtype), x.shape[1]
    column, row = (_depthwise_kernel(x, taps.view(*shape)) for shape in ((-1, 1), (1, -1)))
    x = F.conv2d(x, column, stride=(factor, 1), padding=(padding, 0), groups=groups)
    return F.conv2d(x, row, stride=(1, factor), padding=(0, padding), groups=groups)


@lru_cache
def _lowpass_taps(factor: int) -> tuple[float, ...]:
    """Return the separable :func:`lowpass_filter` as numbers."""
    return tuple(lowpass_filter(factor).tolist())


def _depthwise_kernel(x: Tensor, kernel: Float[Tensor, "h w"]) -> Float[Tensor, "c 1 h w"]:
    """Return ``kernel`` for each channel of ``x``."""
    return kernel.expand(x.shape[1], 1, *kernel.shape)


@lru_cache
@torch.inference_mode(False)
def _lowpass_filter_on_device(
    factor: int, radial: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return :func:`lowpass_filter` on ``device``, cached."""
    return lowpass_filter(factor, radial=radial).to(device, dtype)


# Resampling by matrix products, for bfloat16 on CPUs


def _is_bfloat16_on_cpu(x: Tensor) -> bool:
    """Return whether convolutions of ``x`` run in bfloat16 on a CPU."""
    is_bfloat16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return is_bfloat16 and x.device.type == "cpu"


def _resample_by_matmul(
    x: Float[Tensor, "n c h w"], factor: int, taps: tuple[float, ...], *, up: bool
) -> Float[Tensor, "n c h2 w2"]:
    """Resample by ``factor`` with a separable filter of sum 1, as two matrix products."""
    n, c, h, w = x.shape
    vertical, horizontal = (
        _resampling_matrix(factor, taps, up, size).to(x.dtype) for size in (h, w)
    )
    y = x.permute(0, 2, 3, 1).reshape(n, h, w * c)
    y = torch.bmm(vertical.expand(n, *vertical.shape), y).view(-1, w, c)
    y = torch.bmm(horizontal.expand(len(y), *horizontal.shape), y)
    return y.view(n, len(vertical), len(horizontal), c).permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)
def _resampling_matrix(
    factor: int, taps: tuple[float, ...], up: bool, size: int
) -> Float[Tensor, "out in"]:
    """Return the matrix that filters and resamples a row of ``size`` pixels, zero-padded."""
    pixels, kernel = torch.eye(size).unsqueeze(1), torch.tensor(taps).view(1, 1, -1)
    padding = (len(taps) - factor) // 2
    with torch.autocast("cpu", enabled=False):
        if up:
            y = F.conv_transpose1d(pixels, factor * kernel, stride=factor, padding=padding)
        else:
            y = F.conv1d(pixels, kernel, stride=factor, padding=padding)
    return y.squeeze(1).T.contiguous()


# Strided convolutions


class ScaledStridedConv2d(ScaledWeight):
    """A convolution with an even kernel and stride 2, or its transpose.

    Input float ``[N, in, H, W]``; output ``[N, out, H/2, W/2]``, or ``[N, out, 2H, 2W]`` if
    ``transposed``. In the transposed case a quarter of the weights reach each output pixel, hence
    the fan-in.

    The part of a kernel whose sign alternates from pixel to pixel causes checkerboard artifacts
    (Aitken et al. 2017, 1707.02937). With the parametrization "equalized" a transposed convolution
    therefore starts without that part, as a nearest-neighbor upsampling followed by a convolution,
    and learns it ``CHECKERBOARD_LR_MULTIPLIER`` times as fast as the rest.

    Attributes:
        checkerboard_damping: Matrix that multiplies the values of each kernel, ``[k², k²]``.
    """

    checkerboard_damping: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        transposed: bool,
        weight_spec: WeightSpec = EQUALIZED,
    ) -> None:
        fan_in = in_channels * kernel_size**2 // (4 if transposed else 1)
        self.transposed, self.padding = transposed, kernel_size // 2 - 1
        self.damp_checkerboard = transposed and weight_spec.parametrization == "equalized"
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        super().__init__(shape, fan_in, HE_GAIN, weight_spec)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if self.damp_checkerboard:
            damping = _checkerboard_damping_matrix(kernel_size, CHECKERBOARD_LR_MULTIPLIER)
            self.register_buffer("checkerboard_damping", damping, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial weight, without its alternating part if that is damped."""
        super().reset_parameters()
        if self.damp_checkerboard:
            kernel_size = self.weight.shape[-1]
            # Rescale, so that the variance is as large as with the alternating part.
            removal = _checkerboard_damping_matrix(kernel_size, 0.0) / (1 - 1 / kernel_size)
            self.weight.copy_(self._transform_kernels(removal))

    def _effective_weight(self) -> Tensor:
        if not self.damp_checkerboard:
            return super()._effective_weight()
        with torch.autocast(self.weight.device.type, enabled=False):
            return self._transform_kernels(self.checkerboard_damping * self.weight_scale)

    def _transform_kernels(self, matrix: Float[Tensor, "k2 k2"]) -> Tensor:
        """Return the stored weight with the values of each kernel multiplied by ``matrix``."""
        outputs, inputs, *kernel = self.weight.shape
        values = self.weight.permute(0, 2, 3, 1).reshape(outputs, -1, inputs)
        # One matrix product: sums along either axis take ten times as long.
        return (matrix @ values).view(outputs, *kernel, inputs).permute(0, 3, 1, 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        weight, bias = self.effective_weight, cast(Tensor, self.bias)
        return strided_conv2d(x, weight, bias, self.padding, transposed=self.transposed)


def _checkerboard_damping_matrix(kernel_size: int, remaining: float) -> Float[Tensor, "k2 k2"]:
    """Return the matrix that keeps the fraction ``remaining`` of the alternating part."""
    signs = torch.ones(kernel_size)
    signs[1::2] = -1
    damping = torch.eye(kernel_size) - (1 - remaining) / kernel_size * torch.outer(signs, signs)
    return torch.kron(damping, damping)


def strided_conv2d(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "d c k k"],
    bias: Float[Tensor, " d"] | None,
    padding: int,
    *,
    transposed: bool,
) -> Float[Tensor, "n d h2 w2"]:
    """Convolve with stride 2, or with its transpose."""
    output_grid = [(side + 2 * padding - weight.shape[-1]) // 2 + 1 for side in x.shape[2:]]
    small_grid = math.prod(x.shape[2:] if transposed else output_grid)
    use_matmul = (
        small_grid <= MATMUL_MAX_PIXELS
        and weight.numel() >= MATMUL_MIN_WEIGHTS
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
    )
    if use_matmul and torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    weight = weight.transpose(0, 1) if transposed else weight
    if use_matmul:
        y = SmallGridConv2d.apply(x, weight, bias, padding, transposed)  # type: ignore[no-untyped-call]
        return cast(Tensor, y)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    return convolve(x, weight, bias, stride=2, padding=padding)


class SmallGridConv2d(torch.autograd.Function):
    """A convolution of stride 2 whose weight gradient is one matrix product.

    CPU libraries compute that gradient slowly if the grid is small and the weight large: with 512
    to 1024 channels from 8x8 to 4x4 pixels, at a quarter of this speed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding, ctx.transposed = padding, transposed
        convolve = F.conv_transpose2d if transposed else F.conv2d
        return convolve(x, weight, bias, stride=2, padding=padding)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # Gradient penalties differentiate the gradient again; then PyTorch computes all of it.
        use_matmul = needs_weight and not torch.is_grad_enabled()
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_output,
            x,
            weight,
            None,  # bias sizes
            [2, 2],  # stride
            [ctx.padding] * 2,
            [1, 1],  # dilation
            ctx.transposed,
            [0, 0],  # output padding
            1,  # groups
            [needs_x, needs_weight and not use_matmul, False],
        )
        if use_matmul:
            large, small = (grad_output, x) if ctx.transposed else (x, grad_output)
            grad_weight = _weight_gradient(
                small,
                large,
                kernel_size=weight.shape[-1],
                padding=ctx.padding,
                transposed=ctx.transposed,
            )
        grad_bias = grad_output.sum((0, 2, 3)) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(
    small_grid: Float[Tensor, "n s h w"],
    large_grid: Float[Tensor, "n c h2 w2"],
    *,
    kernel_size: int,
    padding: int,
    transposed: bool,
) -> Float[Tensor, "s c k k"]:
    """Return the gradient of the weight between two grids, in channels-last memory format."""
    n, channels, height, width = small_grid.shape
    padded = F.pad(large_grid.movedim(1, -1), (0, 0, *[padding] * 4))
    image_stride, row_stride, pixel_stride, channel_stride = padded.stride()
    windows = padded.as_strided(
        (n, height, width, kernel_size, kernel_size, large_grid.shape[1]),
        (
            image_stride,
            2 * row_stride,
            2 * pixel_stride,
            row_stride,
            pixel_stride,
            channel_stride,
        ),
    )
    windows = windows.reshape(n * height * width, -1)
    pixels = small_grid.movedim(1, -1).reshape(-1, channels)
    if transposed:
        gradient = (windows.T @ pixels).view(kernel_size, kernel_size, -1, channels)
        return gradient.permute(3, 2, 0, 1)
    gradient = (pixels.T @ windows).view(channels, kernel_size, kernel_size, -1)
    return gradient.permute(0, 3, 1, 2)
