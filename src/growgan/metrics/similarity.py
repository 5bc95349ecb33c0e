"""Multi-scale structural similarity: how alike the images of one set are, so how little it varies.

Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment". Its
mean over random pairs of generated images is a measure of diversity: Odena et al. 2017, arXiv
1610.09585, section 4.2; as in Karras et al. 2018 (PGGAN) over 10,000 pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first
WINDOW, SIGMA = 11, 1.5  # pixels
LEAST_SIDE = 2 ** (len(WEIGHTS) - 1)  # leaves a pixel at the coarsest scale

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_PIXELS = 2**20  # image values compared at once


def mean_ms_ssim(images: Tensor, *, pairs: int = 10_000, seed: int = 0) -> float:
    """Return the mean MS-SSIM of random pairs of ``images``, uint8 [N, C, H, W]; 1 is no diversity.

    A pair holds two different images; ``seed`` decides the pairs. Raises ValueError for fewer than
    2 images or less than 1 pair, and as :func:`ms_ssim`.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, but got {pairs}")
    _check("images", images)
    n = len(images)
    if n < 2:
        raise ValueError(f"images must be at least 2 to make a pair, but are {n}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    step = max(_PIXELS // images[0].numel(), 1)
    chunks = zip(first.split(step), second.split(step), strict=True)
    total = sum(float(ms_ssim(images[i], images[j]).sum()) for i, j in chunks)
    return total / pairs


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the MS-SSIM of each image of ``a`` with that of ``b``, float64 [N], from 0 to 1.

    ``a`` and ``b`` are uint8 [N, C, H, W]. At each scale the window is as large as the image allows
    and its Gaussian narrower in proportion; a scale below averages 2x2 pixels (an odd last row or
    column is left out). So five scales need 16 pixels a side, and smaller images raise ValueError,
    as do other shapes and dtypes. The means are over pixels and channels, those below 0 become 0.
    """
    for name, images in (("a", a), ("b", b)):
        _check(name, images)
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, but have {list(a.shape)}, {list(b.shape)}")
    # Apple's GPUs know no float64, without which flat regions lose their variance.
    x, y = ((t.cpu() if t.device.type == "mps" else t).double() for t in (a, b))
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(WEIGHTS):
        if scale > 0:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, contrast = _compare(x, y)
        last = scale == len(WEIGHTS) - 1
        similarity = (luminance * contrast if last else contrast).mean((1, 2, 3))
        result *= similarity.clamp(min=0) ** weight
    return result


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM of each image of ``a`` with that of ``b``, float64 [N], from -1 to 1.

    Wang et al. 2004, at one scale: the means over pixels and channels. Images are as for
    :func:`ms_ssim`, but may be of any size.
    """
    luminance, contrast = _compare(a.double(), b.double())
    return (luminance * contrast).mean((1, 2, 3))


def _compare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the luminance and the contrast-structure term at each place of the window."""
    size = min(WINDOW, *x.shape[2:])
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-0.5 * (place / (SIGMA * size / WINDOW)) ** 2)
    moments = torch.cat([x, y, x * x, y * y, x * y])
    mx, my, xx, yy, xy = _blur(moments, (window / window.sum()).tolist()).chunk(5)
    luminance = (2 * mx * my + _C1) / (mx**2 + my**2 + _C1)
    contrast = (2 * (xy - mx * my) + _C2) / (xx - mx**2 + yy - my**2 + _C2)
    return luminance, contrast


def _blur(images: Tensor, window: list[float]) -> Tensor:
    """Convolve the rows, then the columns, with ``window``, where it lies within the image."""
    for dim in (2, 3):
        extent = images.shape[dim] - len(window) + 1
        total = torch.zeros_like(images.narrow(dim, 0, extent))
        for start, weight in enumerate(window):
            total.add_(images.narrow(dim, start, extent), alpha=weight)
        images = total
    return images


def _check(name: str, images: Tensor) -> None:
    """Raise ValueError unless ``images`` are uint8 [N, C, H, W], N >= 1, and large enough."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"{name} must be torch.uint8 [N, C, H, W], but is {got}")
    if min(images.shape[2:]) < LEAST_SIDE:
        size = f"{images.shape[2]}x{images.shape[3]}"
        least = f"{LEAST_SIDE}x{LEAST_SIDE}"
        raise ValueError(f"{name} must be at least {least} for five scales, but is {size}")
