"""Compare implementations of the operations of a training step.

    python benchmarks/kernel_variants.py                   # all, about three minutes
    python benchmarks/kernel_variants.py --only pixel-norm

For each operation, the table compares growgan's implementation with alternatives. The times are for
a forward and backward pass, in microseconds, as the median over 50 calls. The data type is bfloat16
if the processor supports it in hardware. The features have the shapes of the default network at
32x32 pixels and of one four times as wide. The last table compares a whole step with and without
``torch.compile``, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from common import median_seconds
from torch import Tensor
from training_speed import BenchmarkCase, ReferencePixelNorm, noise_images

from growgan.config import make_settings
from growgan.data.batches import Batches
from growgan.nets import resampling
from growgan.nets.norms import PixelNorm
from growgan.nets.resampling import (
    CHECKERBOARD_LR_MULTIPLIER,
    ScaledStridedConv2d,
    SmallGridConv2d,
    downsample_blur,
    downsample_lowpass,
    upsample_blur,
    upsample_lowpass,
)
from growgan.nets.spec import WeightSpec
from growgan.objectives import make_objective
from growgan.search.history import SearchSpace
from growgan.training.runtime import describe_machine, make_runtime
from growgan.training.step import training_step

BATCH_SIZE = 32
NUM_WARM_UP_CALLS = 5
NUM_CALLS = 50
FEATURE_SHAPES = ((8, 32), (16, 16), (32, 8), (32, 32), (64, 16), (128, 8))  # channels, side
CHANNELS_PER_GROUP = 16
Variant = Callable[[], Tensor]


class Comparison(NamedTuple):
    """Several implementations of the same operation.

    Attributes:
        name: the shapes.
        variants: implementations by name.
        inputs: tensors for which gradients are computed.
    """

    name: str
    variants: Mapping[str, Variant]
    inputs: tuple[Tensor, ...]


def random_features(channels: int, side: int, batch_size: int = BATCH_SIZE) -> Tensor:
    """Return random features in channels-last format."""
    x = torch.randn(batch_size, channels, side, side, dtype=DTYPE)
    return to_channels_last(x)


def to_channels_last(x: Tensor) -> Tensor:
    """Return a leaf tensor in channels-last format that requires gradients."""
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def median_microseconds(function: Callable[[], object]) -> float:
    """Return the median time of a call."""
    for _ in range(NUM_WARM_UP_CALLS):
        function()
    return 1e6 * median_seconds(function, NUM_CALLS)


def pixel_norm() -> Iterator[Comparison]:
    """Pixel norm: by a matrix product, by a reduction, as published, and by torch's RMS norm."""

    def by_reduction(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x.movedim(1, -1), dim=-1, dtype=torch.float32)
        mean_square = norm.square().unsqueeze(1) / x.shape[1]
        return x * torch.rsqrt(mean_square + 1e-8).to(x.dtype)

    def by_rms_norm(x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), (x.shape[1],), eps=1e-8).movedim(-1, 1)

    for channels, side in FEATURE_SHAPES:
        x = random_features(channels, side)
        variants: dict[str, Variant] = {
            "growgan": partial(PixelNorm(), x),
            "reduction": partial(by_reduction, x),
            "as published": partial(ReferencePixelNorm(), x),
            "torch's RMS norm": partial(by_rms_norm, x),
        }
        yield Comparison(f"{channels} channels, {side}x{side}", variants, (x,))


def checkerboard() -> Iterator[Comparison]:
    """Damping the checkerboard pattern in a transposed convolution: by one product, and by sums."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])

    def by_sums(layer: ScaledStridedConv2d) -> Tensor:
        weight = layer.weight * layer.weight_scale
        for axis, axis_signs in ((2, signs[:, None]), (3, signs)):
            alternating = (weight * axis_signs).mean(axis, keepdim=True) * axis_signs
            weight = weight - (1 - CHECKERBOARD_LR_MULTIPLIER) * alternating
        return weight

    def by_product(layer: ScaledStridedConv2d) -> Tensor:
        return layer.effective_weight

    for width in (32, 128):
        layer = ScaledStridedConv2d(
            width, width, 4, transposed=True, weight_spec=WeightSpec(lr_scaling="width")
        )
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
        variants: dict[str, Variant] = {
            "growgan": partial(by_product, layer),
            "sums": partial(by_sums, layer),
        }
        yield Comparison(f"{width} to {width} channels", variants, (layer.weight,))


def strided_conv() -> Iterator[Comparison]:
    """A convolution of stride 2: direct, and of stride 1 on four times the channels."""

    def by_space_to_depth(x: Tensor, weight: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)
        blocks = blocks.reshape(n, h // 2 + 1, 2, w // 2 + 1, 2, c).transpose(2, 3)
        blocks = blocks.reshape(n, h // 2 + 1, w // 2 + 1, 4 * c).permute(0, 3, 1, 2)
        kernel = weight.reshape(-1, c, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4)
        kernel = kernel.reshape(-1, 4 * c, 2, 2)
        return F.conv2d(blocks, kernel.contiguous(memory_format=torch.channels_last))

    for channels, side in ((8, 32), (16, 16), (32, 32), (64, 16)):
        x = random_features(channels, side, 2 * BATCH_SIZE)
        weight = to_channels_last(torch.randn(2 * channels, channels, 4, 4, dtype=DTYPE))
        variants: dict[str, Variant] = {
            "growgan": partial(F.conv2d, x, weight, stride=2, padding=1),
            "space to depth": partial(by_space_to_depth, x, weight),
        }
        yield Comparison(f"{channels} channels, {side}x{side}", variants, (x, weight))


def from_image() -> Iterator[Comparison]:
    """A 1x1 convolution from colors to features: as a convolution, and as a linear layer."""

    def by_linear(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0]).permute(0, 3, 1, 2)

    for channels in (8, 32):
        x = random_features(3, 32, 2 * BATCH_SIZE)
        weight = torch.randn(channels, 3, 1, 1, dtype=DTYPE).requires_grad_()
        variants: dict[str, Variant] = {
            "growgan": partial(F.conv2d, x, weight),
            "linear": partial(by_linear, x, weight),
        }
        yield Comparison(f"to {channels} channels", variants, (x, weight))


def small_grid() -> Iterator[Comparison]:
    """The weight gradient between small grids: by a matrix product, and by torch's convolution."""
    for in_channels, out_channels, side in (
        (32, 32, 8),
        (64, 64, 8),
        (128, 128, 8),
        (512, 1024, 8),
    ):
        layer = ScaledStridedConv2d(
            in_channels,
            out_channels,
            4,
            transposed=False,
            weight_spec=WeightSpec(parametrization="none"),
        )
        weight = to_channels_last(layer.weight.detach().to(DTYPE))
        bias = layer.bias.detach().to(DTYPE).requires_grad_()
        x = random_features(in_channels, side, 2 * BATCH_SIZE)
        variants: dict[str, Variant] = {
            "growgan": partial(SmallGridConv2d.apply, x, weight, bias, 1, False),
            "torch": partial(F.conv2d, x, weight, bias, stride=2, padding=1),
        }
        name = f"{in_channels} to {out_channels} channels, {side}x{side}"
        yield Comparison(name, variants, (x, weight, bias))


def full_kernel() -> Iterator[Comparison]:
    """A convolution whose kernel covers the whole grid: as a linear layer, and as a convolution."""

    def by_linear(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1).flatten(1), weight.movedim(1, -1).flatten(1))

    for in_channels, out_channels in ((32, 32), (512, 512), (1024, 1)):
        x = random_features(in_channels, 4, 2 * BATCH_SIZE)
        weight = to_channels_last(torch.randn(out_channels, in_channels, 4, 4, dtype=DTYPE))
        variants: dict[str, Variant] = {
            "growgan": partial(by_linear, x, weight),
            "convolution": partial(F.conv2d, x, weight),
        }
        yield Comparison(f"{in_channels} to {out_channels} channels, 4x4", variants, (x, weight))


def resampling_filters() -> Iterator[Comparison]:
    """The resampling filters of StyleGAN2, R3GAN and StyleGAN3, on 16 images."""

    def by_convolution(resample: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with patch.object(resampling, "_is_bfloat16_on_cpu", lambda x: False):
            return resample(x)

    def by_float32_convolution(resample: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return resample(x.float()).to(x.dtype)

    upsample_stylegan3 = partial(upsample_lowpass, factor=2)
    downsample_stylegan3 = partial(downsample_lowpass, factor=2, radial=False)
    for filter_name, resample, shapes in (
        ("blur, up", upsample_blur, ((64, 32), (256, 16), (512, 8))),
        ("blur, down", downsample_blur, ((64, 32), (256, 16), (512, 8))),
        ("StyleGAN3, up", upsample_stylegan3, ((16, 36), (64, 36), (64, 84))),
        ("StyleGAN3, down", downsample_stylegan3, ((64, 40), (64, 72))),
    ):
        for channels, side in shapes:
            x = random_features(channels, side, batch_size=16)
            variants: dict[str, Variant] = {
                "growgan": partial(resample, x),
                "convolutions": partial(by_convolution, resample, x),
                "convolutions in float32": partial(by_float32_convolution, resample, x),
            }
            name = f"{filter_name}, {channels} channels, {side}x{side}"
            yield Comparison(name, variants, (x,))


def grouped_conv() -> Iterator[Comparison]:
    """Convolutions in groups of 16 channels: direct, and with two or four groups merged."""

    def with_merged_groups(x: Tensor, weight: Tensor, num_merged: int) -> Tensor:
        blocks = weight.view(-1, num_merged, CHANNELS_PER_GROUP, 1, CHANNELS_PER_GROUP, 3, 3)
        block_diagonal = torch.eye(num_merged, dtype=DTYPE)[:, None, :, None, None, None]
        wide = (blocks * block_diagonal).reshape(len(weight), -1, 3, 3)
        wide = wide.contiguous(memory_format=torch.channels_last)
        groups = x.shape[1] // CHANNELS_PER_GROUP // num_merged
        return F.conv2d(x, wide, padding=1, groups=groups)

    for channels, side in ((256, 16), (768, 8)):
        x = random_features(channels, side)
        weight = to_channels_last(torch.randn(channels, CHANNELS_PER_GROUP, 3, 3, dtype=DTYPE))
        groups = channels // CHANNELS_PER_GROUP
        variants: dict[str, Variant] = {
            "growgan": partial(F.conv2d, x, weight, padding=1, groups=groups),
            "pairs merged": partial(with_merged_groups, x, weight, 2),
            "fours merged": partial(with_merged_groups, x, weight, 4),
        }
        yield Comparison(f"{channels} channels, {side}x{side}", variants, (x, weight))


def batched_candidates() -> Iterator[Comparison]:
    """The same layer of four candidates: one by one, and as a grouped convolution."""
    num_candidates = 4

    def one_by_one(x: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([F.conv2d(x, weight, padding=1) for _ in range(num_candidates)])

    for channels, side in ((32, 4), (32, 8), (32, 16), (16, 32)):
        x, all_x = (
            random_features(channels, side),
            random_features(num_candidates * channels, side),
        )
        weight, all_weights = (
            to_channels_last(torch.randn(n * channels, channels, 3, 3, dtype=DTYPE))
            for n in (1, num_candidates)
        )
        variants: dict[str, Variant] = {
            "growgan": partial(one_by_one, x, weight),
            "grouped": partial(F.conv2d, all_x, all_weights, padding=1, groups=num_candidates),
        }
        name = f"{num_candidates} x {channels} channels, {side}x{side}"
        yield Comparison(name, variants, (x, weight, all_x, all_weights))


PARTS: dict[str, Callable[[], Iterator[Comparison]]] = {
    "pixel-norm": pixel_norm,
    "checkerboard": checkerboard,
    "strided-conv": strided_conv,
    "from-image": from_image,
    "small-grid": small_grid,
    "full-kernel": full_kernel,
    "resampling": resampling_filters,
    "grouped-conv": grouped_conv,
    "batched-candidates": batched_candidates,
}


def print_comparisons(comparisons: Iterator[Comparison]) -> None:
    """Print the times of each variant."""
    is_first = True
    for name, variants, inputs in comparisons:
        if is_first:
            print("| shapes | " + " | ".join(variants) + " |\n|---|" + "---|" * len(variants))
            is_first = False
        cells = []
        for variant in variants.values():
            grad_output = torch.randn_like(variant())
            step = partial(forward_backward, variant, inputs, grad_output)
            cells.append(f"{median_microseconds(step):,.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def forward_backward(variant: Variant, inputs: tuple[Tensor, ...], grad_output: Tensor) -> None:
    """Run a forward and a backward pass."""
    torch.autograd.grad(variant(), inputs, grad_output, allow_unused=True)


def compiled() -> None:
    """A whole step without penalties, eager and with each layer compiled."""
    runtime = make_runtime("cpu")
    print("| width | eager, ms | compiled, ms | compilation, s |\n|---|---|---|---|")
    for width in (32, 128):
        settings = make_settings({"network": {"width": width}, "regularizers": {}})
        space = SearchSpace(settings.preset, settings.network, 3, (32, 32))
        case = BenchmarkCase(
            name="", settings=settings, space=space, level=space.max_level, batch_size=BATCH_SIZE
        )
        gan = case.create_gan(runtime.device)
        batches = Batches(noise_images(512, 3, 32, 32), BATCH_SIZE, 0)
        step = partial(
            training_step, gan, batches, make_objective(settings), settings, runtime=runtime
        )
        eager_ms = median_microseconds(step) / 1e3
        start = time.perf_counter()
        layers = [*gan.generator.blocks(), *gan.discriminator.blocks()]
        replace(runtime, compile_backend="inductor").compile(layers)
        step()
        seconds = time.perf_counter() - start
        compiled_ms = median_microseconds(step) / 1e3
        print(f"| {width} | {eager_ms:.1f} | {compiled_ms:.1f} | {seconds:.0f} |", flush=True)


DTYPE = torch.bfloat16 if make_runtime("cpu").use_bfloat16 else torch.float32


def main() -> None:
    """Read the command line and print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", choices=(*PARTS, "compiled"), help="operation to compare; all by default"
    )
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype_name = str(DTYPE).removeprefix("torch.")
    print(f"{describe_machine()}, {args.threads} threads, {dtype_name}\n")
    for name, part in PARTS.items():
        if args.only in (None, name):
            print(f"\n{part.__doc__}\n")
            print_comparisons(part())
    if args.only in (None, "compiled"):
        print(f"\n{compiled.__doc__}\n")
        compiled()


if __name__ == "__main__":
    main()
