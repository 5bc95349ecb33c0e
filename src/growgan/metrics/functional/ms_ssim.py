"""Multi-scale structural similarity (MS-SSIM): how similar the images of one set are.

Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment". The
mean over random pairs of generated images measures their lack of diversity: Odena et al. 2017,
arXiv 1610.09585, section 4.2; over 10,000 pairs in Karras et al. 2018 (PGGAN).

This implementation is our own because torchmetrics needs more than 160 pixels for five scales; this
one needs 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.metrics.functional.ssim import luminance_and_contrast
from growgan.metrics.validation import check_uint8_images

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
MIN_SIDE_PIXELS = 2 ** (len(SCALE_WEIGHTS) - 1)  # leaves one pixel at the coarsest scale

_MAX_VALUES_PER_CHUNK = 2**20  # pixel values compared at once


def mean_ms_ssim(images: Tensor, *, num_pairs: int = 10_000, seed: int = 0) -> float:
    """Return the mean MS-SSIM of random pairs of ``images``; 1 means that all are equal.

    Args:
        images: uint8 [N, C, H, W], N >= 2.
        num_pairs: Number of pairs. The two images of a pair are different rows.
        seed: Random seed of the pairs.

    Raises:
        ValueError: Fewer than 2 images or 1 pair, or images that :func:`ms_ssim` refuses.
    """
    if num_pairs < 1:
        raise ValueError(f"num_pairs must be at least 1, but got {num_pairs}")
    _check_images("images", images)
    n = len(images)
    if n < 2:
        raise ValueError(f"images must hold at least 2 images to form a pair, but holds {n}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(n, (num_pairs,), generator=generator)
    second = (first + torch.randint(1, n, (num_pairs,), generator=generator)) % n
    step = max(_MAX_VALUES_PER_CHUNK // images[0].numel(), 1)
    chunks = zip(first.split(step), second.split(step), strict=True)
    total = sum(float(ms_ssim(images[i], images[j]).sum()) for i, j in chunks)
    return total / num_pairs


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the MS-SSIM of each image of ``a`` with that of ``b``, float64 [N], from 0 to 1.

    At each scale the window is as large as the image allows, up to 11 pixels, and its Gaussian
    narrower in proportion. Each scale averages 2x2 pixels of the one above; an odd last row or
    column is dropped. Terms are averaged over pixels and channels, and negative means become 0.

    Args:
        a: uint8 [N, C, H, W], at least 16x16 pixels, which five scales need.
        b: uint8 [N, C, H, W], the same shape as ``a``.

    Raises:
        ValueError: Other shapes or dtypes.
    """
    for name, images in (("a", a), ("b", b)):
        _check_images(name, images)
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have the same shape, but got {list(a.shape)} and {list(b.shape)}"
        )
    # Apple GPUs do not support float64, without which flat regions lose their variance.
    x, y = ((t.cpu() if t.device.type == "mps" else t).double() for t in (a, b))
    result = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale > 0:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, contrast = luminance_and_contrast(x, y)
        is_coarsest = scale == len(SCALE_WEIGHTS) - 1
        similarity = (luminance * contrast if is_coarsest else contrast).mean((1, 2, 3))
        result *= similarity.clamp(min=0) ** weight
    return result


def _check_images(name: str, images: Tensor) -> None:
    """Raise ValueError unless ``images`` is uint8 [N, C, H, W], N >= 1, and large enough."""
    check_uint8_images(name, images)
    if min(images.shape[2:]) < MIN_SIDE_PIXELS:
        raise ValueError(
            f"{name} must be at least {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} pixels for five scales,"
            f" but got {images.shape[2]}x{images.shape[3]}"
        )
