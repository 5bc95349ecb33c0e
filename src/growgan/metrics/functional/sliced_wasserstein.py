"""Sliced Wasserstein distance (SWD) between Laplacian pyramids of images. It needs no network.

Protocol: Karras et al. 2018 (PGGAN, arXiv 1710.10196, section 5). Images are decomposed into a
Laplacian pyramid (Burt & Adelson 1983), random patches are taken from each level, and the two sets
of patches are compared by the mean difference of their sorted projections on random directions.

Patches are cut again for each pass instead of being stored, and large sets are counted in
histograms instead of being sorted. This saves memory and time; it changes the result by rounding
errors only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growgan.metrics.progress import ProgressFn, no_progress

PATCH_SIZE_PIXELS = 7  # side of a patch; smaller images have patches of their own smaller side
MIN_LEVEL_PIXELS = 16  # smallest side of the last level, unless the image itself is smaller

# Chunks are small enough to stay in the processor's cache.
_MAX_VALUES_PER_PYRAMID_CHUNK = 2**19  # pixel values whose pyramid is computed at once
_MAX_PATCHES_PER_CHUNK = 2**12  # patches cut at once
_MAX_PROJECTIONS_PER_CHUNK = 2**16  # projections on one direction that are counted at once
_NUM_BINS = 2**16  # bins of a histogram of projections
_MAX_TAIL_FRACTION = 1e-5  # fraction of a distance that may lie outside the bins
_NUM_IMAGES_FOR_SHIFT = 64  # images whose mean is subtracted before squares are summed
_BINOMIAL_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class SlicedWassersteinResult:
    """Sliced Wasserstein distances x 10³; lower is better.

    Attributes:
        levels: Distance by pyramid level, keyed by "HxW", finest first.
        mean: Mean over the levels.
        stderr: Standard error of the mean over repeated random directions; None for one repeat.
    """

    levels: dict[str, float]
    mean: float
    stderr: float | None


@dataclass(frozen=True)
class _LevelPatches:
    """Patches of one pyramid level, cut again on each pass: they are many times the level's size.

    ``level`` is float32 [N, h, w, C] on the CPU; ``corners`` is int32 [N, P], row * w + column.
    """

    level: Tensor
    corners: Tensor
    patch_size: int

    @property
    def count(self) -> int:
        return self.corners.numel()

    def chunks(self) -> Iterator[Tensor]:
        """Yield float32 [n * P, size * size * C], with the pixels in (row, column, channel) order.

        Each chunk overwrites the previous one. With channels last, a row of a patch is contiguous,
        so cutting it is a plain copy.
        """
        size, (_, h, w, c) = self.patch_size, self.level.shape
        step = max(_MAX_PATCHES_PER_CHUNK // self.corners.shape[1], 1)
        row_offsets = torch.arange(0, size * w, w, dtype=torch.int32)
        buffer = torch.empty(step * self.corners.shape[1] * size, size * c)
        for images, corners in zip(self.level.split(step), self.corners.split(step), strict=True):
            num_pixels = len(images) * h * w
            rows = images.as_strided((num_pixels - size + 1, size * c), (c, 1))
            image_offsets = torch.arange(0, num_pixels, h * w, dtype=torch.int32)
            index = ((corners + image_offsets.view(-1, 1)).unsqueeze(2) + row_offsets).view(-1)
            patches = torch.index_select(rows, 0, index, out=buffer[: len(index)])
            yield patches.view(corners.numel(), -1)


@dataclass(frozen=True)
class _ProjectedPatches:
    """Projections of all patches: ``weight`` float32 [D, k] times a patch, plus ``bias`` [k]."""

    patches: _LevelPatches
    weight: Tensor
    bias: Tensor

    def select_directions(self, directions: slice) -> _ProjectedPatches:
        """Return the projections on some of the directions."""
        return _ProjectedPatches(self.patches, self.weight[:, directions], self.bias[directions])

    def shift_and_scale(self, low: Tensor, scale: Tensor) -> _ProjectedPatches:
        """Return the projections minus ``low`` [k], times ``scale`` [k]."""
        return _ProjectedPatches(self.patches, self.weight * scale, (self.bias - low) * scale)

    def subset(self) -> _ProjectedPatches:
        """Return the projections of about one chunk of patches, evenly spaced over the set."""
        patches = self.patches
        step = max(1, patches.count // _MAX_PATCHES_PER_CHUNK)
        subset = _LevelPatches(
            patches.level[::step].contiguous(), patches.corners[::step], patches.patch_size
        )
        return _ProjectedPatches(subset, self.weight, self.bias)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the projections of successive patches, float32 [k, n]."""
        bias, weight = self.bias.view(-1, 1), self.weight.T.contiguous()
        for chunk in self.patches.chunks():
            yield torch.addmm(bias, weight, chunk.T)


def sliced_wasserstein(
    fake: Tensor,
    real: Tensor,
    *,
    patches_per_image: int = 128,
    num_repeats: int = 4,
    directions_per_repeat: int = 128,
    seed: int = 0,
    max_bytes: int = 35 * 2**24,
    progress: ProgressFn = no_progress,
) -> SlicedWassersteinResult:
    """Return the sliced Wasserstein distance between two sets of images of equal size, x 10³.

    Each level of each set is normalized per channel to mean 0 and standard deviation 1. The
    published protocol is 16,384 images and the defaults.

    Args:
        fake: Generated images [N, C, H, W], uint8 or float.
        real: Real images, the same shape and range of values as ``fake``.
        patches_per_image: Patches per image and level.
        num_repeats: Sets of directions; the standard error is that over the sets.
        directions_per_repeat: Random directions per set.
        seed: Random seed of the patches, drawn for each set of images, and of the directions,
            shared by both.
        max_bytes: Approximate limit of the memory for levels and projections. It changes the result
            by rounding errors only.
        progress: Called with the number of finished levels.

    Raises:
        ValueError: Shapes that differ or are not images, or arguments below 1.
    """
    if fake.ndim != 4 or fake.shape != real.shape or fake.numel() == 0:
        shapes = f"{list(fake.shape)} and {list(real.shape)}"
        raise ValueError(
            f"fake and real must both be [N, C, H, W] with the same shape, but got {shapes}"
        )
    for name, value in (
        ("patches_per_image", patches_per_image),
        ("num_repeats", num_repeats),
        ("directions_per_repeat", directions_per_repeat),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
    generator = torch.Generator().manual_seed(seed)
    sizes = level_sizes(fake.shape[2], fake.shape[3])
    table = torch.empty(len(sizes), num_repeats, dtype=torch.float64)
    for level_index, size in enumerate(sizes):
        patch_size = min(PATCH_SIZE_PIXELS, *size)
        fake_patches, real_patches = (
            _extract_patches(
                images,
                level_index,
                _sample_patch_corners(images, size, patch_size, patches_per_image, generator),
                patch_size,
            )
            for images in (fake, real)
        )
        directions = _sample_directions(
            fake.shape[1], patch_size, num_repeats * directions_per_repeat, generator
        )
        distances = _distances_per_direction(fake_patches, real_patches, directions, max_bytes)
        table[level_index] = distances.view(num_repeats, directions_per_repeat).mean(1) * 1e3
        progress(level_index + 1, len(sizes))
    mean_by_repeat = table.mean(0)
    level_names = [f"{h}x{w}" for h, w in sizes]
    return SlicedWassersteinResult(
        levels=dict(zip(level_names, table.mean(1).tolist(), strict=True)),
        mean=float(mean_by_repeat.mean()),
        stderr=float(mean_by_repeat.std() / num_repeats**0.5) if num_repeats > 1 else None,
    )


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the (h, w) of each pyramid level, finest first.

    Sides are halved, rounding up, while the smaller side stays at least 16 pixels.
    """
    sizes = [(height, width)]
    while min(height, width) // 2 >= MIN_LEVEL_PIXELS:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Return the Laplacian pyramid of ``images`` [N, C, H, W], each level float32 [N, C, h, w].

    All levels but the last are differences; the last is the downscaled image.
    """
    num_levels = len(level_sizes(images.shape[2], images.shape[3]))
    return [_pyramid_level(images, level_index) for level_index in range(num_levels)]


def _pyramid_level(images: Tensor, level_index: int) -> Tensor:
    """Return one level of the pyramid of ``images`` [N, C, H, W], float32 [N, C, h, w]."""
    is_last = level_index == len(level_sizes(images.shape[2], images.shape[3])) - 1
    level = images.float()
    for _ in range(level_index):
        level = _binomial_filter(level, 1.0, 2)
    if is_last:
        return level
    smaller = _binomial_filter(level, 1.0, 2)
    n, c, h, w = level.shape
    # Insert zeros between the pixels; a gain of 4 makes up for them.
    upsampled = smaller.new_zeros(n, c, 2 * smaller.shape[2], 2 * smaller.shape[3])
    upsampled[:, :, ::2, ::2] = smaller
    return level - _binomial_filter(upsampled, 4.0, 1)[:, :, :h, :w]


def _binomial_filter(images: Tensor, gain: float, stride: int) -> Tensor:
    """Filter with the 5x5 binomial kernel times ``gain``, keeping every ``stride``-th pixel.

    The border is reflected.
    """
    h, w = images.shape[2:]
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = _weighted_sum([padded[:, :, i : i + h : stride] for i in range(5)], 1.0)
    return _weighted_sum([rows[:, :, :, i : i + w : stride] for i in range(5)], gain)


def _weighted_sum(shifted_images: list[Tensor], gain: float) -> Tensor:
    """Return the sum of five images, weighted by the binomial kernel times ``gain``."""
    total = gain * _BINOMIAL_KERNEL[0] * shifted_images[0]
    for weight, image in zip(_BINOMIAL_KERNEL[1:], shifted_images[1:], strict=True):
        total.add_(image, alpha=gain * weight)
    return total


def _sample_patch_corners(
    images: Tensor,
    size: tuple[int, int],
    patch_size: int,
    patches_per_image: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw the rows, then the columns, of the patches' corners: int32 [N, P], row * w + column."""
    shape = (len(images), patches_per_image)
    rows = torch.randint(size[0] - patch_size + 1, shape, generator=generator).int()
    columns = torch.randint(size[1] - patch_size + 1, shape, generator=generator).int()
    return rows.mul_(size[1]).add_(columns)


def _extract_patches(
    images: Tensor, level_index: int, corners: Tensor, patch_size: int
) -> _LevelPatches:
    """Return the patches of one level. It stores the level, or the patches if they are smaller."""
    n, c = images.shape[:2]
    patches_per_image = corners.shape[1]
    h, w = level_sizes(images.shape[2], images.shape[3])[level_index]
    keep_level = h * w <= patches_per_image * patch_size * patch_size
    stored = (
        torch.empty(n, h, w, c)
        if keep_level
        else torch.empty(n * patches_per_image, patch_size, patch_size, c)
    )
    step = max(_MAX_VALUES_PER_PYRAMID_CHUNK // images[0].numel(), 1)
    for start in range(0, n, step):
        chunk = slice(start, start + step)
        level = _pyramid_level(images[chunk], level_index).cpu().permute(0, 2, 3, 1)
        if keep_level:
            stored[chunk] = level
            continue
        remaining = stored[start * patches_per_image :]
        for patches in _LevelPatches(level.contiguous(), corners[chunk], patch_size).chunks():
            remaining[: len(patches)] = patches.view(-1, patch_size, patch_size, c)
            remaining = remaining[len(patches) :]
    if not keep_level:
        corners = corners.new_zeros(n * patches_per_image, 1)
    return _LevelPatches(stored, corners, patch_size)


def _sample_directions(
    channels: int, patch_size: int, num_directions: int, generator: torch.Generator
) -> Tensor:
    """Draw unit vectors [C, size, size]; return them in the order of the patches, [D, k]."""
    directions = torch.randn(num_directions, channels, patch_size, patch_size, generator=generator)
    directions = directions / directions.square().sum((1, 2, 3), keepdim=True).sqrt()
    return directions.permute(0, 2, 3, 1).reshape(num_directions, -1).T


def _distances_per_direction(
    fake: _LevelPatches, real: _LevelPatches, directions: Tensor, max_bytes: int
) -> Tensor:
    """Return the Wasserstein-1 distance on each of ``directions`` [D, k], float64 [k]."""
    fake_projections, real_projections = (
        _ProjectedPatches(patches, *_normalizing_projection(patches, directions))
        for patches in (fake, real)
    )
    use_sorting = fake.count <= _MAX_PROJECTIONS_PER_CHUNK
    bytes_left = max_bytes - sum(4 * patches.level.numel() for patches in (fake, real))
    values_per_direction = 3 * fake.count if use_sorting else _MAX_PROJECTIONS_PER_CHUNK + _NUM_BINS
    step = max(bytes_left // (4 * values_per_direction), 1)
    # numpy's vectorized sort is 20 times as fast as torch's, and numpy releases the GIL.
    num_threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    distances = []
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, directions.shape[1], step):
            selected = slice(start, start + step)
            sets = [
                projections.select_directions(selected)
                for projections in (fake_projections, real_projections)
            ]
            compute = _distances_by_sorting if use_sorting else _distances_by_histogram
            distances.append(compute(sets, pool))
    return torch.cat(distances)


def _distances_by_sorting(sets: list[_ProjectedPatches], pool: Executor) -> Tensor:
    """Return the distances [k] of two small sets of patches: mean differences after sorting."""
    fake, real = (torch.cat(list(projections.chunks()), 1).numpy() for projections in sets)
    return torch.tensor(list(pool.map(_mean_sorted_difference, fake, real)), dtype=torch.float64)


def _mean_sorted_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the mean |a - b| after sorting two samples of equal size; overwrites both."""
    a.sort()
    b.sort()
    return float(np.abs(a - b).mean(dtype=np.float64))


def _distances_by_histogram(sets: list[_ProjectedPatches], pool: Executor) -> Tensor:
    """Return the distances [k] of two large sets of patches, from histograms.

    The distance is the area between the two distribution functions. The counts give their
    difference exactly at the edges of the bins. The range of the bins is estimated from a subset of
    the patches. The area outside it is estimated from the means of the values there; where that
    area is not negligible, the range is widened.
    """
    low, high = _estimate_bin_range(sets)
    while True:
        distances, uncertainty = _histogram_distances(sets, low, high, pool)
        if bool((uncertainty <= _MAX_TAIL_FRACTION * distances).all()):
            return distances
        extent = high - low
        low, high = low - extent, high + extent


def _histogram_distances(
    sets: list[_ProjectedPatches], low: Tensor, high: Tensor, pool: Executor
) -> tuple[Tensor, Tensor]:
    """Return the distances [k] by bins from ``low`` to ``high``, and how far off they may be."""
    scale = (_NUM_BINS - 1) / (high - low)
    counts = np.zeros((len(scale), _NUM_BINS), dtype=np.int32)
    tail_difference = torch.zeros(2, len(scale), dtype=torch.float64)
    tail_area = torch.zeros(len(scale), dtype=torch.float64)
    for sign, projections in zip((1, -1), sets, strict=True):
        for bin_indices, tails in _bin_index_chunks(projections, low, scale):
            tail_difference += sign * tails
            tail_area += tails.abs().sum(0)
            list(pool.map(partial(_add_to_histogram, sign), counts, bin_indices))
    areas = torch.tensor(list(pool.map(_area_between_cdfs, counts)), dtype=torch.float64)
    normalizer = scale.double() * sets[0].patches.count
    return (areas + tail_difference.abs().sum(0)) / normalizer, tail_area / normalizer


def _estimate_bin_range(sets: list[_ProjectedPatches]) -> tuple[Tensor, Tensor]:
    """Return the lower and upper ends of the bins, [k] each, with a margin of a quarter."""
    projections = torch.cat([next(patches.subset().chunks()) for patches in sets], 1)
    low, high = projections.amin(1), projections.amax(1)
    margin = (high - low) / 4 + 1e-6
    return low - margin, high + margin


def _bin_index_chunks(
    projected: _ProjectedPatches, low: Tensor, scale: Tensor
) -> Iterator[tuple[NDArray[np.int32], Tensor]]:
    """Yield the bins of successive patches, [k, n], and the sums of their distances to the bins.

    The sums are float64 [2, k], in bins: below the first bin, and above the last.
    """
    buffer = torch.empty(len(scale), _MAX_PROJECTIONS_PER_CHUNK, dtype=torch.int32)
    length, tails = 0, torch.zeros(2, len(scale), dtype=torch.float64)
    for chunk in projected.shift_and_scale(low, scale).chunks():
        n = chunk.shape[1]
        if length + n > _MAX_PROJECTIONS_PER_CHUNK:
            yield buffer[:, :length].numpy(), tails
            length, tails = 0, torch.zeros_like(tails)
        smallest, largest = torch.aminmax(chunk)
        if smallest < 0 or largest > _NUM_BINS - 1:
            tails[0] += chunk.clamp(max=0).sum(1)
            tails[1] += (chunk - (_NUM_BINS - 1)).clamp_(min=0).sum(1)
            chunk.clamp_(0, _NUM_BINS - 1)
        buffer[:, length : length + n] = chunk
        length += n
    yield buffer[:, :length].numpy(), tails


def _add_to_histogram(sign: int, counts: NDArray[np.int32], bin_indices: NDArray[np.int32]) -> None:
    """Add ``sign`` to ``counts`` [bins] for each of ``bin_indices`` [n]."""
    np.add(
        counts, sign * np.bincount(bin_indices, minlength=_NUM_BINS), out=counts, casting="unsafe"
    )


def _area_between_cdfs(counts: NDArray[np.int32]) -> int:
    """Return the sum of the absolute cumulative differences of the counts."""
    return int(np.abs(np.cumsum(counts, dtype=np.int64)).sum())


def _normalizing_projection(patches: _LevelPatches, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [D, k] and bias [k] that project raw patches as if channels were standardized.

    A channel that does not vary is only shifted to zero.
    """
    channels = patches.level.shape[3]
    sums = torch.zeros(len(directions), dtype=torch.float64)
    squares = torch.zeros(len(directions), dtype=torch.float64)
    # Subtract an approximate mean first, so that the variance does not cancel.
    shift = patches.level[:_NUM_IMAGES_FOR_SHIFT].mean((0, 1, 2))
    repeated_shift = shift.repeat(len(directions) // channels)
    for chunk in patches.chunks():
        chunk -= repeated_shift
        sums += chunk.sum(0)
        squares += chunk.square_().sum(0)
    sums, squares = (values.view(-1, channels).sum(0) for values in (sums, squares))
    count = patches.count * patches.patch_size**2
    offset = sums / count
    std = (squares / count - offset.square()).clamp(min=0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)
    weight = directions.double().view(-1, channels, directions.shape[1]) / std.view(channels, 1)
    bias = -(weight * (shift.double() + offset).view(channels, 1)).sum((0, 1))
    return weight.reshape(directions.shape).float(), bias.float()
