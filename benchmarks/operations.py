"""Ways to compute the same thing, side by side: what a training step is made of, and why.

    python benchmarks/operations.py                   # all, some three minutes
    python benchmarks/operations.py --only pixel-norm

For each part: what growgan does, and the other ways that were tried, forward and backward, in
bfloat16 where this machine multiplies it, on features as they are in the default stack at 32×32 and
in one four times as wide. Medians of 50 calls, in microseconds; of a whole step, with and without
``torch.compile``, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from training import Case, PublishedNorm, noise, timed

from growgan import nets
from growgan.config import make_settings
from growgan.data.batches import Batches
from growgan.growth.history import Space
from growgan.nets.filters import shrink, smooth_downsample, smooth_upsample, stretch
from growgan.nets.norms import PixelNorm
from growgan.nets.strided import LATTICE, FewPixels, StridedConv
from growgan.objectives import make_objective
from growgan.training.runtime import machine, make_runtime
from growgan.training.stage import step

BATCH = 32
FEATURES = ((8, 32), (16, 16), (32, 8), (32, 32), (64, 16), (128, 8))  # channels, side
Way = Callable[[], Tensor]
Part = Iterator[tuple[str, Mapping[str, Way], tuple[Tensor, ...]]]  # what of, ways, by what


def features(channels: int, side: int, batch: int = BATCH) -> Tensor:
    """Return features as a step has them, channels-last."""
    x = torch.randn(batch, channels, side, side, dtype=DTYPE)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def microseconds(call: Callable[[], object], calls: int = 50) -> float:
    """Return the median time of a call."""
    for _ in range(5):
        call()
    times = [timed(call, torch.device("cpu")) for _ in range(calls)]
    return 1e6 * statistics.median(times)


def pixel_norm() -> Part:
    """Pixel norm: by a product of matrices, by a reduction, as published, by torch's RMS norm."""

    def reduced(x: Tensor) -> Tensor:
        square = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=torch.float32).square()
        return x * torch.rsqrt(square.unsqueeze(1) / x.shape[1] + 1e-8).to(x.dtype)

    for channels, side in FEATURES:
        x = features(channels, side)
        ways: dict[str, Way] = {
            "growgan": lambda x=x: PixelNorm()(x),
            "reduction": lambda x=x: reduced(x),
            "as published": lambda x=x: PublishedNorm()(x),
            "torch's RMS norm": lambda x=x: F.rms_norm(
                x.movedim(1, -1), (x.shape[1],), eps=1e-8
            ).movedim(-1, 1),
        }
        yield f"{channels} channels, {side}×{side}", ways, (x,)


def lattice() -> Part:
    """What alternates in a transposed convolution's weights: by one product, by sums."""
    for width in (32, 128):
        layer = StridedConv(width, width, 4, doubles=True, rate="transfer")
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        turns = torch.tensor([1.0, -1.0, 1.0, -1.0])

        def by_sums(layer: StridedConv = layer, turns: Tensor = turns) -> Tensor:
            weight = layer.weight * layer.scale
            for axis, signs in ((2, turns[:, None]), (3, turns)):
                alternating = (weight * signs).mean(axis, keepdim=True) * signs
                weight = weight - (1 - LATTICE) * alternating
            return weight

        ways = {"growgan": lambda layer=layer: layer.used, "sums": by_sums}
        yield f"{width} to {width} channels", ways, (layer.weight,)


def halving() -> Part:
    """A convolution of stride 2: as it is, and of stride 1 on four times the channels."""

    def folded(x: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        blocks = blocks.reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c).transpose(2, 3)
        blocks = blocks.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c).permute(0, 3, 1, 2)
        kernel = weight.reshape(-1, c, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4)
        kernel = kernel.reshape(-1, 4 * c, 2, 2)
        return F.conv2d(blocks, kernel.contiguous(memory_format=torch.channels_last))

    for channels, side in ((8, 32), (16, 16), (32, 32), (64, 16)):
        x = features(channels, side, 2 * BATCH)
        weight = torch.randn(2 * channels, channels, 4, 4, dtype=DTYPE)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
        ways: dict[str, Way] = {
            "growgan": lambda x=x, w=weight: F.conv2d(x, w, stride=2, padding=1),
            "folded": lambda x=x, w=weight: folded(x, w),
        }
        yield f"{channels} channels, {side}×{side}", ways, (x, weight)


def from_image() -> Part:
    """A convolution of 1×1 from colours to features: as it is, and as a linear map of pixels."""
    for channels in (8, 32):
        x = features(3, 32, 2 * BATCH)
        weight = torch.randn(channels, 3, 1, 1, dtype=DTYPE).requires_grad_()
        ways: dict[str, Way] = {
            "growgan": lambda x=x, w=weight: F.conv2d(x, w),
            "linear": lambda x=x, w=weight: F.linear(x.permute(0, 2, 3, 1), w[:, :, 0, 0]).permute(
                0, 3, 1, 2
            ),
        }
        yield f"to {channels} channels", ways, (x, weight)


def few_pixels() -> Part:
    """A weight's gradient between small grids: by one product, and by torch's convolution."""
    for inside, outside, side in ((32, 32, 8), (64, 64, 8), (128, 128, 8), (512, 1024, 8)):
        layer = StridedConv(inside, outside, 4, doubles=False, rate="plain")
        weight = layer.weight.detach().to(DTYPE).contiguous(memory_format=torch.channels_last)
        weight, x = weight.requires_grad_(), features(inside, side, 2 * BATCH)
        bias = layer.bias.detach().to(DTYPE).requires_grad_()
        ways: dict[str, Way] = {
            "growgan": lambda x=x, w=weight, b=bias: FewPixels.apply(x, w, b, 1, False),
            "torch": lambda x=x, w=weight, b=bias: F.conv2d(x, w, b, stride=2, padding=1),
        }
        yield f"{inside} to {outside} channels, {side}×{side}", ways, (x, weight, bias)


def one_place() -> Part:
    """A convolution whose kernel covers all pixels: as a linear map, and as it is."""
    for channels, outside in ((32, 32), (512, 512), (1024, 1)):
        x = features(channels, 4, 2 * BATCH)
        weight = torch.randn(outside, channels, 4, 4, dtype=DTYPE)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()

        def linear(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return F.linear(x.movedim(1, -1).flatten(1), weight.movedim(1, -1).flatten(1))

        ways = {"growgan": linear, "convolution": lambda x=x, w=weight: F.conv2d(x, w)}
        yield f"{channels} to {outside} channels, 4×4", ways, (x, weight)


def filters() -> Part:
    """Resampling filters of StyleGAN2, R3GAN and StyleGAN3, on 16 images."""
    for name, resample, sizes in (
        ("up", smooth_upsample, ((64, 32), (256, 16), (512, 8))),
        ("down", smooth_downsample, ((64, 32), (256, 16), (512, 8))),
        ("StyleGAN3's, up", partial(stretch, factor=2), ((16, 36), (64, 36), (64, 84))),
        ("StyleGAN3's, down", partial(shrink, factor=2, radial=False), ((64, 40), (64, 72))),
    ):
        for channels, side in sizes:
            x = features(channels, side, batch=16)

            def convolved(x: Tensor = x, resample: Any = resample) -> Tensor:
                with patch.object(nets.filters, "_convolves_slowly", lambda x: False):
                    return resample(x)

            def exactly(x: Tensor = x, resample: Any = resample) -> Tensor:
                return resample(x.float()).to(x.dtype)

            ways = {
                "growgan": partial(resample, x),
                "convolutions": convolved,
                "convolutions in float32": exactly,
            }
            yield f"{name}, {channels} channels, {side}×{side}", ways, (x,)


def grouped() -> Part:
    """Convolutions of groups of 16 channels: as they are, and two or four groups as one."""
    for channels, side in ((256, 16), (768, 8)):
        x = features(channels, side)
        weight = torch.randn(channels, 16, 3, 3, dtype=DTYPE)
        weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()

        def merged(together: int, x: Tensor = x, weight: Tensor = weight) -> Tensor:
            blocks = weight.view(-1, together, 16, 1, 16, 3, 3)
            own = torch.eye(together, dtype=DTYPE)[:, None, :, None, None, None]
            wide = (blocks * own).reshape(len(weight), -1, 3, 3)
            wide = wide.contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, wide, padding=1, groups=x.shape[1] // 16 // together)

        ways = {
            "growgan": lambda x=x, w=weight: F.conv2d(x, w, padding=1, groups=x.shape[1] // 16),
            "by twos": partial(merged, 2),
            "by fours": partial(merged, 4),
        }
        yield f"{channels} channels, {side}×{side}", ways, (x, weight)


def together() -> Part:
    """The same layer of four candidates: one after another, and as one grouped convolution."""
    for channels, side in ((32, 4), (32, 8), (32, 16), (16, 32)):
        one, all_ = features(channels, side), features(4 * channels, side)
        weight, weights = (
            torch.randn(many * channels, channels, 3, 3, dtype=DTYPE)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
            for many in (1, 4)
        )

        def apart(x: Tensor = one, w: Tensor = weight) -> Tensor:
            return torch.stack([F.conv2d(x, w, padding=1) for _ in range(4)])

        ways = {
            "growgan": apart,
            "grouped": lambda x=all_, w=weights: F.conv2d(x, w, padding=1, groups=4),
        }
        yield f"4 × {channels} channels, {side}×{side}", ways, (one, weight, all_, weights)


PARTS = {
    "pixel-norm": pixel_norm,
    "lattice": lattice,
    "halving": halving,
    "from-image": from_image,
    "few-pixels": few_pixels,
    "one-place": one_place,
    "filters": filters,
    "grouped": grouped,
    "together": together,
}


def compare(part: Part) -> None:
    """Print the times of each way."""
    named: list[str] = []
    for what, ways, by in part:
        if not named:
            named = list(ways)
            print("| | " + " | ".join(named) + " |\n|---|" + "---|" * len(named))
        times = []
        for way in ways.values():
            times.append(microseconds(partial(differentiate, way, by, torch.randn_like(way()))))
        print(f"| {what} | " + " | ".join(f"{t:,.0f}" for t in times) + " |", flush=True)


def differentiate(way: Way, by: tuple[Tensor, ...], gradient: Tensor) -> None:
    """Compute it, forward and backward."""
    torch.autograd.grad(way(), by, gradient, allow_unused=True)


def compiled() -> None:
    """A whole step without penalties, eager and with each layer compiled."""
    runtime = make_runtime("cpu")
    print("| width | eager, ms | compiled, ms | compiling, s |\n|---|---|---|---|")
    for width in (32, 128):
        settings = make_settings({"stack": {"width": width}, "regularisers": {}})
        space = Space(settings.preset, settings.stack, 3, (32, 32))
        gan = Case("", settings, space, space.levels, BATCH).gan(runtime.device)
        objective, batches = make_objective(settings), Batches(noise(512, 3, 32, 32), BATCH, 0)

        def run(gan: Any = gan, how: tuple[Any, ...] = (batches, objective, settings)) -> None:
            step(gan, *how, runtime)

        eager = microseconds(run) / 1e3
        begun = time.perf_counter()
        replace(runtime, compiler="inductor").compile(
            [*gan.generator.blocks(), *gan.discriminator.blocks()]
        )
        run()
        seconds = time.perf_counter() - begun
        fast = microseconds(run) / 1e3
        print(f"| {width} | {eager:.1f} | {fast:.1f} | {seconds:.0f} |", flush=True)


DTYPE = torch.bfloat16 if make_runtime("cpu").bfloat16 else torch.float32


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=(*PARTS, "compiled"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{machine()}, {given.threads} threads, {str(DTYPE).removeprefix('torch.')}\n")
    for name, part in PARTS.items():
        if given.only in (None, name):
            print(f"\n{part.__doc__}\n")
            compare(part())
    if given.only in (None, "compiled"):
        print(f"\n{compiled.__doc__}\n")
        compiled()


if __name__ == "__main__":
    main()
