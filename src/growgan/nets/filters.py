"""Resampling with low-pass filters: short ones, as StyleGAN2 and R3GAN do, and StyleGAN3's.

A filter convolves each channel by itself. Where that changes the size, a processor takes ten times
as long in bfloat16 as in float32, forward or backward; so there the columns and then the rows are
multiplied by matrices that do the same.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.nets.strided import strided

SHORT = (1 / 8, 3 / 8, 3 / 8, 1 / 8)  # in one direction


def smooth_downsample(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Filter with [1 3 3 1] / 8 in both directions, zeros outside, and keep each second pixel."""
    if _convolves_slowly(x):
        return _multiplied(x, 2, SHORT, up=False)
    return F.conv2d(x, _taps(x, 1 / 8), stride=2, padding=1, groups=x.shape[1])


def smooth_upsample(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """Put zeros between the pixels, and filter with [1 3 3 1] / 4 in both directions."""
    if _convolves_slowly(x):
        return _multiplied(x, 2, SHORT, up=True)
    return F.conv_transpose2d(x, _taps(x, 1 / 4), stride=2, padding=1, groups=x.shape[1])


def smooth(x: Float[Tensor, "n c h w"], padding: int) -> Float[Tensor, "n c h1 w1"]:
    """Filter with [1 3 3 1] / 8 both ways, ``padding`` zeros outside; three pixels less."""
    return F.conv2d(x, _taps(x, 1 / 8), padding=padding, groups=x.shape[1])


def smooth_double(
    x: Float[Tensor, "n c h w"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h2 w2"]:
    """Put zeros between the pixels, convolve, and filter with [1 3 3 1] / 4 in both directions."""
    kernel = weight.shape[-1]
    if kernel == 1:
        return smooth_upsample(F.conv2d(x, weight))
    return 4 * smooth(strided(x, weight, None, (kernel - 3) // 2, doubles=True), 1)


def smooth_halve(
    x: Float[Tensor, "n c h2 w2"], weight: Float[Tensor, "d c k k"]
) -> Float[Tensor, "n d h w"]:
    """Filter with [1 3 3 1] / 8 in both directions, convolve, and keep each second pixel."""
    smoothed = smooth(x, (weight.shape[-1] + 1) // 2)
    return strided(smoothed, weight, None, 0, doubles=False)


def _taps(x: Tensor, scale: float) -> Tensor:
    """Return the filter for each channel of ``x``, [c, 1, 4, 4]."""
    return _smoothing(scale, x.device, x.dtype).expand(x.shape[1], 1, 4, 4)


@lru_cache
@torch.inference_mode(False)
def _smoothing(scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the filter once for each device, so that no step waits for a copy of it."""
    row = torch.tensor(SHORT, device=device) * 8 * scale
    return torch.outer(row, row).to(dtype)


CUTOFF = 2**-1.5  # of the sampling rate: half of an amplitude passes; from a half on nothing does
TAPS = 6  # of a filter, for each sample that it makes or merges


@lru_cache
@torch.inference_mode(False)
def lowpass(factor: int, *, radial: bool = False) -> Float[Tensor, "taps ..."]:
    """Return a Kaiser low-pass filter for resampling by ``factor``, float64 of sum 1.

    Half of an amplitude passes at ``CUTOFF`` of the lower rate, nothing from half of that rate on
    (Karras et al. 2021, 2106.12423, appendix C.1). [taps], or a disk [taps, taps] if ``radial``.
    """
    taps = TAPS * factor
    place = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / factor
    # Kaiser's estimate of the attenuation that so many taps give, and the window for it.
    attenuation = 2.285 * (taps - 1) * math.pi * 2 * (1 - 2 * CUTOFF) / factor + 7.95
    beta = _kaiser_beta(attenuation)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    if not radial:
        weights = torch.sinc(2 * CUTOFF * place) * window
        return weights / weights.sum()
    radius = torch.hypot(place[:, None], place[None, :])
    jinc = torch.special.bessel_j1(2 * math.pi * CUTOFF * radius) / radius
    weights = jinc * torch.outer(window, window)
    return weights / weights.sum()


def _kaiser_beta(attenuation: float) -> float:
    """Return the shape of Kaiser's window for an attenuation in decibels (Kaiser 1974)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def stretch(x: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c h2 w2"]:
    """Resample to ``factor`` times the rate without aliasing; zeros outside."""
    if _convolves_slowly(x):
        return _multiplied(x, factor, _row(factor), up=True)
    taps = _placed(factor, False, x.device, x.dtype) * factor
    for shape, stride in (((-1, 1), (factor, 1)), ((1, -1), (1, factor))):
        kernel = _each(x, taps.view(*shape))
        padding = [(size - s) // 2 for size, s in zip(kernel.shape[2:], stride, strict=True)]
        x = F.conv_transpose2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])
    return x


def shrink(x: Float[Tensor, "n c h w"], factor: int, *, radial: bool) -> Tensor:
    """Resample to a ``factor``-th of the rate without aliasing; zeros outside."""
    padding = (TAPS - 1) * factor // 2
    if radial:
        if _convolves_slowly(x):
            with torch.autocast("cpu", enabled=False):
                return shrink(x.float(), factor, radial=True).to(x.dtype)
        kernel = _each(x, _placed(factor, True, x.device, x.dtype))
        return F.conv2d(x, kernel, stride=factor, padding=padding, groups=x.shape[1])
    if _convolves_slowly(x):
        return _multiplied(x, factor, _row(factor), up=False)
    taps, groups = _placed(factor, False, x.device, x.dtype), x.shape[1]
    rows, columns = (_each(x, taps.view(*shape)) for shape in ((-1, 1), (1, -1)))
    x = F.conv2d(x, rows, stride=(factor, 1), padding=(padding, 0), groups=groups)
    return F.conv2d(x, columns, stride=(1, factor), padding=(0, padding), groups=groups)


@lru_cache
def _row(factor: int) -> tuple[float, ...]:
    """Return the separable :func:`lowpass` as numbers, read off its tensor once."""
    return tuple(lowpass(factor).tolist())


def _each(x: Tensor, kernel: Tensor) -> Tensor:
    """Return a kernel [h, w] for each channel of ``x``."""
    return kernel.expand(x.shape[1], 1, *kernel.shape)


@lru_cache
@torch.inference_mode(False)
def _placed(factor: int, radial: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return :func:`lowpass` as it is used, once for each device."""
    return lowpass(factor, radial=radial).to(device, dtype)


def _convolves_slowly(x: Tensor) -> bool:
    """Return whether these are bfloat16 convolutions on a processor."""
    low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return low and x.device.type == "cpu"


def _multiplied(
    x: Float[Tensor, "n c h w"], factor: int, taps: tuple[float, ...], *, up: bool
) -> Float[Tensor, "n c h2 w2"]:
    """Resample by ``factor`` with ``taps`` of sum 1, as two products of matrices."""
    n, c, h, w = x.shape
    columns, rows = (_matrix(factor, taps, up, size).to(x.dtype) for size in (h, w))
    y = x.permute(0, 2, 3, 1).reshape(n, h, w * c)
    y = torch.bmm(columns.expand(n, *columns.shape), y).view(-1, w, c)
    y = torch.bmm(rows.expand(len(y), *rows.shape), y)
    return y.view(n, len(columns), len(rows), c).permute(0, 3, 1, 2)


@lru_cache
@torch.inference_mode(False)
def _matrix(factor: int, taps: tuple[float, ...], up: bool, size: int) -> Float[Tensor, "to from"]:
    """Return what filtering and resampling makes of ``size`` pixels in a row, zeros outside."""
    pixels, kernel = torch.eye(size).unsqueeze(1), torch.tensor(taps).view(1, 1, -1)
    padding = (len(taps) - factor) // 2
    with torch.autocast("cpu", enabled=False):
        if up:
            y = F.conv_transpose1d(pixels, factor * kernel, stride=factor, padding=padding)
        else:
            y = F.conv1d(pixels, kernel, stride=factor, padding=padding)
    return y.squeeze(1).T.contiguous()
