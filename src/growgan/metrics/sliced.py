"""Sliced Wasserstein distance on Laplacian pyramids; no network needed.

Protocol: Karras et al. 2018 (PGGAN, arXiv 1710.10196, section 5). Images are split into a
Laplacian pyramid (Burt & Adelson 1983), random patches are taken from each level, and the two sets
of patches are compared by the mean difference of their sorted projections on random directions.
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

from growgan.metrics.watch import Progress, unseen

PATCH = 7  # pixels; smaller images give patches of their own smaller side
COARSEST = 16  # the last level's smaller side is at least this, unless the image is smaller
# What is worked on at once is small enough to stay in a processor's cache.
_PIXELS = 2**19  # image values whose pyramid is built
_PATCHES = 2**12  # patches cut
_SEGMENT = 2**16  # projections on a direction that are counted
_BINS = 2**16  # bins that they are counted in
_NEGLIGIBLE = 1e-5  # share of a distance that may lie beyond the bins
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class SlicedWasserstein:
    """``levels``: distance x 10³ by level's "HxW", finest first; ``average``: their mean;
    ``stderr``: the average's standard error over the repeats' directions (None for one repeat)."""

    levels: dict[str, float]
    average: float
    stderr: float | None


@dataclass(frozen=True)
class _Patches:
    """Patches of one level of one set, cut anew on each pass: they are many times the level's size.

    ``level`` is float32 [N, h, w, C] on CPU; ``corners`` int32 [N, P] are row * w + column.
    """

    level: Tensor
    corners: Tensor
    size: int

    @property
    def count(self) -> int:
        return self.corners.numel()

    def chunks(self) -> Iterator[Tensor]:
        """Yield float32 [n * P, size * size * C], the pixels in the order (row, column, channel).

        Each overwrites the last. With channels last a row of a patch is one contiguous run, so
        cutting it is a plain copy.
        """
        size, (_, h, w, c) = self.size, self.level.shape
        step = max(_PATCHES // self.corners.shape[1], 1)
        down = torch.arange(0, size * w, w, dtype=torch.int32)
        buffer = torch.empty(step * self.corners.shape[1] * size, size * c)
        for images, corners in zip(self.level.split(step), self.corners.split(step), strict=True):
            pixels = len(images) * h * w
            runs = images.as_strided((pixels - size + 1, size * c), (c, 1))
            first = torch.arange(0, pixels, h * w, dtype=torch.int32)
            index = ((corners + first.view(-1, 1)).unsqueeze(2) + down).view(-1)
            cut = torch.index_select(runs, 0, index, out=buffer[: len(index)])
            yield cut.view(corners.numel(), -1)


@dataclass(frozen=True)
class _Projected:
    """The projections of all patches: on ``weight`` float32 [D, k], plus ``bias`` [k]."""

    patches: _Patches
    weight: Tensor
    bias: Tensor

    def on(self, directions: slice) -> _Projected:
        """Return the projections on some of the directions."""
        return _Projected(self.patches, self.weight[:, directions], self.bias[directions])

    def scaled(self, low: Tensor, scale: Tensor) -> _Projected:
        """Return the projections less ``low``, times ``scale``, [k] each."""
        return _Projected(self.patches, self.weight * scale, (self.bias - low) * scale)

    def some(self) -> _Projected:
        """Return the projections of some patches from all over the set, a chunk of them."""
        patches = self.patches
        step = max(1, patches.count // _PATCHES)
        few = _Patches(patches.level[::step].contiguous(), patches.corners[::step], patches.size)
        return _Projected(few, self.weight, self.bias)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the next patches' projections, float32 [k, n]."""
        bias, weight = self.bias.view(-1, 1), self.weight.T.contiguous()
        for chunk in self.patches.chunks():
            yield torch.addmm(bias, weight, chunk.T)


def sliced_wasserstein(
    fake: Tensor,
    real: Tensor,
    *,
    patches: int = 128,
    repeats: int = 4,
    directions: int = 128,
    seed: int = 0,
    memory: int = 35 * 2**24,
    progress: Progress = unseen,
) -> SlicedWasserstein:
    """Return the sliced Wasserstein distance of two equally large sets of images, x 10³.

    ``fake`` and ``real`` are [N, C, H, W], uint8 or float, on one scale; each level of each is
    normalised per channel to mean 0 and deviation 1. The published protocol is N = 16,384 and the
    defaults here. ``seed`` fixes patches (drawn for each set) and directions (shared); ``memory``
    bounds the bytes of levels and projections held at once, as far as it can, and does not change
    the result beyond rounding.
    Raises ValueError for shapes that differ or are no images.
    """
    if fake.ndim != 4 or fake.shape != real.shape or fake.numel() == 0:
        shapes = f"{list(fake.shape)} and {list(real.shape)}"
        raise ValueError(f"fake and real must both be [N, C, H, W] of one shape, but are {shapes}")
    for name, value in (("patches", patches), ("repeats", repeats), ("directions", directions)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
    generator = torch.Generator().manual_seed(seed)
    sizes = level_sizes(fake.shape[2], fake.shape[3])
    table = torch.empty(len(sizes), repeats, dtype=torch.float64)
    for depth, size in enumerate(sizes):
        side = min(PATCH, *size)
        cut = [
            _cut(images, depth, _corners(images, size, side, patches, generator), side)
            for images in (fake, real)
        ]
        axes = _directions(fake.shape[1], side, repeats * directions, generator)
        distances = _distances(cut[0], cut[1], axes, memory)
        progress(depth + 1, len(sizes))
        table[depth] = distances.view(repeats, directions).mean(1) * 1e3
    averages = table.mean(0)
    names = [f"{h}x{w}" for h, w in sizes]
    return SlicedWasserstein(
        levels=dict(zip(names, table.mean(1).tolist(), strict=True)),
        average=float(averages.mean()),
        stderr=float(averages.std() / repeats**0.5) if repeats > 1 else None,
    )


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the (h, w) of each pyramid level, finest first, halved (up) while at least 16 wide."""
    sizes = [(height, width)]
    while min(height, width) // 2 >= COARSEST:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Return the Laplacian pyramid of float ``images`` [N, C, H, W]: differences, then the rest."""
    count = len(level_sizes(images.shape[2], images.shape[3]))
    return [_level(images, depth) for depth in range(count)]


def _level(images: Tensor, depth: int) -> Tensor:
    """Return one level of the pyramid of ``images`` [N, C, H, W], float32 [N, C, h, w]."""
    last = depth == len(level_sizes(images.shape[2], images.shape[3])) - 1
    level = images.float()
    for _ in range(depth):
        level = _blur(level, 1.0, 2)
    if last:
        return level
    smaller = _blur(level, 1.0, 2)
    n, c, h, w = level.shape
    # Zeros between the pixels, and a gain of 4 for the energy that they lack.
    up = smaller.new_zeros(n, c, 2 * smaller.shape[2], 2 * smaller.shape[3])
    up[:, :, ::2, ::2] = smaller
    return level - _blur(up, 4.0, 1)[:, :, :h, :w]


def _blur(images: Tensor, gain: float, stride: int) -> Tensor:
    """Convolve with the 5x5 binomial filter times ``gain``, keeping each ``stride``-th pixel.

    The border is mirrored at its pixel.
    """
    h, w = images.shape[2:]
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
    rows = _weighted([padded[:, :, i : i + h : stride] for i in range(5)], 1.0)
    return _weighted([rows[:, :, :, i : i + w : stride] for i in range(5)], gain)


def _weighted(shifted: list[Tensor], gain: float) -> Tensor:
    """Return the sum of five images, weighted by the filter times ``gain``."""
    total = gain * _KERNEL[0] * shifted[0]
    for weight, image in zip(_KERNEL[1:], shifted[1:], strict=True):
        total.add_(image, alpha=gain * weight)
    return total


def _corners(
    images: Tensor, size: tuple[int, int], side: int, patches: int, generator: torch.Generator
) -> Tensor:
    """Draw the rows, then the columns, of the patches' corners: int32 [N, P], row * w + column."""
    shape = (len(images), patches)
    rows = torch.randint(size[0] - side + 1, shape, generator=generator).int()
    columns = torch.randint(size[1] - side + 1, shape, generator=generator).int()
    return rows.mul_(size[1]).add_(columns)


def _cut(images: Tensor, depth: int, corners: Tensor, side: int) -> _Patches:
    """Return the patches of one level, holding the level, or the patches where they are smaller."""
    n, c = images.shape[:2]
    patches = corners.shape[1]
    h, w = level_sizes(images.shape[2], images.shape[3])[depth]
    whole = h * w <= patches * side * side
    held = torch.empty(n, h, w, c) if whole else torch.empty(n * patches, side, side, c)
    step = max(_PIXELS // images[0].numel(), 1)
    for start in range(0, n, step):
        chunk = slice(start, start + step)
        level = _level(images[chunk], depth).cpu().permute(0, 2, 3, 1)
        if whole:
            held[chunk] = level
            continue
        place = held[start * patches :]
        for cut in _Patches(level.contiguous(), corners[chunk], side).chunks():
            place[: len(cut)] = cut.view(-1, side, side, c)
            place = place[len(cut) :]
    return _Patches(held, corners if whole else corners.new_zeros(n * patches, 1), side)


def _directions(channels: int, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw unit vectors [C, side, side] and return them in the order of the patches, [D, K]."""
    axes = torch.randn(count, channels, side, side, generator=generator)
    axes = axes / axes.square().sum((1, 2, 3), keepdim=True).sqrt()
    return axes.permute(0, 2, 3, 1).reshape(count, -1).T


def _distances(fake: _Patches, real: _Patches, axes: Tensor, memory: int) -> Tensor:
    """Return the Wasserstein-1 distance on each of ``axes`` [D, K], float64 [K]."""
    sets = [_Projected(patches, *_normalise(patches, axes)) for patches in (fake, real)]
    few = fake.count <= _SEGMENT
    left = memory - sum(4 * patches.level.numel() for patches in (fake, real))
    step = max(left // (4 * (3 * fake.count if few else _SEGMENT + _BINS)), 1)
    # numpy's vectorised sort is twenty times torch's, and its loops free the interpreter.
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    distances = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, axes.shape[1], step):
            some = [each.on(slice(start, start + step)) for each in sets]
            distances.append(_sorted(some, pool) if few else _counted(some, pool))
    return torch.cat(distances)


def _sorted(sets: list[_Projected], pool: Executor) -> Tensor:
    """Return the distances [k] of two sets of few patches: the mean gap of what is sorted."""
    rows = [torch.cat(list(each.chunks()), 1).numpy() for each in sets]
    return torch.tensor(list(pool.map(_gap, *rows)), dtype=torch.float64)


def _gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the mean |difference| of two equally large samples once sorted; overwrites both."""
    a.sort()
    b.sort()
    return float(np.abs(a - b).mean(dtype=np.float64))


def _counted(sets: list[_Projected], pool: Executor) -> Tensor:
    """Return the distances [k] of two sets of many patches, from histograms.

    The distance is the area between the two distribution functions, whose difference the counts
    give exactly at the edges of the bins. Beyond the bins, which reach half as far again as some of
    the patches, it is read off the means of what lies there; where that is not negligible the bins
    are spread wider.
    """
    low, high = _range(sets)
    while True:
        distances, unsure = _count_within(sets, low, high, pool)
        if bool((unsure <= _NEGLIGIBLE * distances).all()):
            return distances
        reach = high - low
        low, high = low - reach, high + reach


def _count_within(
    sets: list[_Projected], low: Tensor, high: Tensor, pool: Executor
) -> tuple[Tensor, Tensor]:
    """Return the distances [k] by bins from ``low`` to ``high``, and how far they may be wrong."""
    scale = (_BINS - 1) / (high - low)
    table = np.zeros((len(scale), _BINS), dtype=np.int32)
    beyond = torch.zeros(2, len(scale), dtype=torch.float64)
    mass = torch.zeros(len(scale), dtype=torch.float64)
    for sign, each in zip((1, -1), sets, strict=True):
        for places, outside in _places(each, low, scale):
            beyond += sign * outside
            mass += outside.abs().sum(0)
            list(pool.map(partial(_count, sign), table, places))
    areas = torch.tensor(list(pool.map(_area, table)), dtype=torch.float64)
    whole = scale.double() * sets[0].patches.count
    return (areas + beyond.abs().sum(0)) / whole, mass / whole


def _range(sets: list[_Projected]) -> tuple[Tensor, Tensor]:
    """Return the least and largest projections, [k] each, that have a bin of their own."""
    first = torch.cat([next(each.some().chunks()) for each in sets], 1)
    low, high = first.amin(1), first.amax(1)
    margin = (high - low) / 4 + 1e-6
    return low - margin, high + margin


def _places(
    projected: _Projected, low: Tensor, scale: Tensor
) -> Iterator[tuple[NDArray[np.int32], Tensor]]:
    """Yield the bins of the next patches, [k, n], and by how many bins they lie below and above.

    The latter are summed, float64 [2, k].
    """
    held = torch.empty(len(scale), _SEGMENT, dtype=torch.int32)
    length, outside = 0, torch.zeros(2, len(scale), dtype=torch.float64)
    for chunk in projected.scaled(low, scale).chunks():
        n = chunk.shape[1]
        if length + n > _SEGMENT:
            yield held[:, :length].numpy(), outside
            length, outside = 0, torch.zeros_like(outside)
        least, largest = torch.aminmax(chunk)
        if least < 0 or largest > _BINS - 1:
            outside[0] += chunk.clamp(max=0).sum(1)
            outside[1] += (chunk - (_BINS - 1)).clamp_(min=0).sum(1)
            chunk.clamp_(0, _BINS - 1)
        held[:, length : length + n] = chunk
        length += n
    yield held[:, :length].numpy(), outside


def _count(sign: int, counts: NDArray[np.int32], places: NDArray[np.int32]) -> None:
    """Add ``sign`` to ``counts`` [bins] for each of ``places`` [n]."""
    np.add(counts, sign * np.bincount(places, minlength=_BINS), out=counts, casting="unsafe")


def _area(counts: NDArray[np.int32]) -> int:
    """Return the sum of the absolute running sums."""
    return int(np.abs(np.cumsum(counts, dtype=np.int64)).sum())


def _normalise(patches: _Patches, axes: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [D, K] and bias [K] that project raw patches as if each channel were standard.

    A channel without deviation stays zero.
    """
    channels = patches.level.shape[3]
    total = torch.zeros(len(axes), dtype=torch.float64)
    square = torch.zeros(len(axes), dtype=torch.float64)
    # Squares are summed about a mean of some patches, lest they cancel.
    shifts = patches.level[:64].mean((0, 1, 2))
    shift = shifts.repeat(len(axes) // channels)
    for chunk in patches.chunks():
        chunk -= shift
        total += chunk.sum(0)
        square += chunk.square_().sum(0)
    total, square = (sums.view(-1, channels).sum(0) for sums in (total, square))
    count = patches.count * patches.size**2
    offset = total / count
    deviation = (square / count - offset.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    weight = axes.double().view(-1, channels, axes.shape[1]) / deviation.view(channels, 1)
    bias = -(weight * (shifts.double() + offset).view(channels, 1)).sum((0, 1))
    return weight.reshape(axes.shape).float(), bias.float()
