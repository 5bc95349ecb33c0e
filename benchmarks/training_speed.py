"""Measure the speed of a training step, compared with a reference implementation.

    python benchmarks/training_speed.py                    # every preset at every resolution
    python benchmarks/training_speed.py --only default     # one network
    python benchmarks/training_speed.py --only pggan --resolution 128 --batch-size 8

For each preset and resolution, the table shows:

- growgan: images per second of growgan's training step.
- reference: images per second with the same networks and loss, in the way of published code. It
  uses eager float32, NCHW, an Adam optimizer that is neither fused nor foreach, and the default
  memory allocator. D sees real and fake images separately and is frozen in G's step. G runs without
  gradients for D's step, and again for its own.
- MFLOP per image, including lazy penalties; a multiply-add counts as two operations.
- The floating-point throughput as a fraction of the peak of a convolution in the same process.

The batch size is the published one, up to 64, and small enough for a repeat to take less than ten
seconds. Both implementations take turns with the same number of threads. Values are medians over
repeats.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.nets.layers import ScaledConv2d, to_channels_last
from growgan.nets.networks import Generator
from growgan.nets.norms import PixelNorm
from growgan.nets.presets import PRESETS
from growgan.nets.resampling import ScaledStridedConv2d
from growgan.objectives import Objective, StepContext, make_objective
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan
from growgan.training.memory import keep_freed_heap
from growgan.training.runtime import Runtime, describe_machine, fastest_num_threads, make_runtime
from growgan.training.step import training_step

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
MIN_REPEAT_SECONDS = 1.0  # a repeat has at least one cycle of the lazy penalties
MAX_REPEAT_SECONDS = 10.0  # the batch size is halved until a repeat is shorter
MIN_BATCH_SIZE = 4  # regardless of the duration
MAX_BATCH_SIZE = 64
MAX_ROW_SECONDS = 40.0  # afterwards no new repeat of a row starts
EMA_RATE = 0.001  # of the reference implementation
WIDE_NETWORK = {"network": {"width": 128}}  # a width that a search may reach
# glibc's mallopt parameters and the values that it reaches by itself.
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 64 << 20
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20


@dataclass
class BenchmarkCase:
    """One row of the table: networks at one resolution.

    Attributes:
        name: name of the network.
        settings: settings of the run.
        space: networks by resolution level.
        level: resolution level.
        batch_size: images per step.
    """

    name: str
    settings: Settings
    space: SearchSpace
    level: int
    batch_size: int

    def create_gan(self, device: torch.device) -> Gan:
        """Return a GAN with initial weights."""
        specs = self.space.specs_at(self.level)
        return Gan.create(*specs, self.settings.optimizer, seed=0, device=device)


def cases(
    resolution: int, channels: int, batch_size: int | None, only: str | None
) -> Iterator[BenchmarkCase]:
    """Yield the default networks and every preset, at every resolution up to ``resolution``."""
    settings_by_name: dict[str, dict[str, Any]] = {
        "default": {},
        "default, four times as wide": WIDE_NETWORK,
    }
    for entry in PRESETS:
        values = {"preset": entry.name, **entry.value.published_settings}
        settings_by_name[f"{entry.name}, published"] = values
    for name, values in settings_by_name.items():
        if only not in (None, name.partition(",")[0], name):
            continue
        settings = make_settings(values)
        size = (resolution, resolution)
        space = SearchSpace(settings.preset, settings.network, channels, size)
        for level in range(space.max_level + 1):
            case_batch_size = batch_size or min(MAX_BATCH_SIZE, settings.batch_size)
            yield BenchmarkCase(
                name=name, settings=settings, space=space, level=level, batch_size=case_batch_size
            )


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions.

    A multiply-add counts as two operations. For the gradients of convolutions, PyTorch's own
    counter ignores groups.
    """

    total: int = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function and count its operations."""
        result, packet = function(*args, **(kwargs or {})), function.overloadpacket
        if packet is torch.ops.aten.convolution:
            self.total += convolution_flops(args[0], args[1], result, transposed=args[6])
        elif packet is torch.ops.aten.convolution_backward:
            forward = convolution_flops(args[1], args[2], args[0], transposed=args[7])
            num_gradients = sum(args[10][:2])  # of the input and of the weight
            self.total += num_gradients * forward
        elif (count := flop_registry.get(packet)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def convolution_flops(x: Tensor, weight: Tensor, y: Tensor, *, transposed: bool) -> int:
    """Return the floating-point operations of a convolution from ``x`` to ``y``."""
    positions = (x if transposed else y).numel()
    return 2 * positions * weight[0].numel()


def use_plain_convolution(module: Any) -> None:
    """Replace growgan's faster implementations of convolutions with torch's."""

    def conv(x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, module.effective_weight, module.bias, padding=module.padding)

    def strided_conv(x: Tensor) -> Tensor:
        weight, bias = module.effective_weight, module.bias
        if module.transposed:
            weight = weight.transpose(0, 1)
            return nn.functional.conv_transpose2d(x, weight, bias, stride=2, padding=module.padding)
        return nn.functional.conv2d(x, weight, bias, stride=2, padding=module.padding)

    if isinstance(module, ScaledConv2d):
        module.forward = conv
    if isinstance(module, ScaledStridedConv2d):
        module.forward = strided_conv


def configure_allocator(*, keep_freed_memory: bool) -> None:
    """Let glibc keep freed memory, as growgan does, or return it, as it does by default."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if keep_freed_memory:
        keep_freed_heap()
    elif mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


class ReferencePixelNorm(nn.Module):
    """Pixel norm as it is usually written."""

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """Return the normalized features."""
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def to_reference_gan(gan: Gan) -> Gan:
    """Convert a GAN in place to the reference implementation: NCHW, plain Adam."""
    for network in (gan.generator, gan.discriminator, gan.ema):
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module in list(network.modules()):
            use_plain_convolution(module)
            for name, child in module.named_children():
                if isinstance(child, PixelNorm):
                    setattr(module, name, ReferencePixelNorm())
        if isinstance(network, Generator):
            network.stem.register_forward_hook(lambda module, args, output: output.contiguous())
    settings = gan.optimizer_settings

    def plain_adam(network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(
            network.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            foreach=False,
            fused=False,
        )

    gan.generator_optimizer = plain_adam(gan.generator)
    gan.discriminator_optimizer = plain_adam(gan.discriminator)
    return gan


def reference_step(
    gan: Gan, batches: Batches, objective: Objective, critic_steps: int, device: torch.device
) -> None:
    """Take one step of D and, once per ``critic_steps``, one of G, in the way of published code."""
    g, d = gan.generator, gan.discriminator
    pixels, _ = batches.batch_at(gan.images_seen)
    images = pixels.to(device).float() / 127.5 - 1
    factor = images.shape[-1] // gan.resolution[1]
    real = nn.functional.avg_pool2d(images, factor).contiguous()
    rng = torch.Generator(device).manual_seed(gan.steps)

    def sample_z() -> Tensor:
        return torch.randn(len(real), g.spec.latent_dim, generator=rng, device=device)

    z = sample_z()
    with torch.no_grad():
        fake = g(z)
    step = StepContext(
        generator=g,
        discriminator=d,
        real=real,
        fake=fake,
        generator_input=z,
        rng=rng,
        real_logits=d(real),
        fake_logits=d(fake),
        index=gan.steps,
        objective_state=gan.objective_state,
    )
    terms = objective.discriminator_terms(step)
    gan.discriminator_optimizer.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    gan.discriminator_optimizer.step()

    if (gan.steps + 1) % critic_steps == 0:
        d.requires_grad_(False)
        step.fake = g(sample_z())
        step.fake_logits = d(step.fake)
        step.real_logits = d(real) if objective.needs_real_logits else step.real_logits
        terms = objective.generator_terms(step)
        gan.generator_optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        d.requires_grad_(True)
        gan.generator_optimizer.step()
        with torch.no_grad():
            for mean, weight in zip(gan.ema.parameters(), g.parameters(), strict=True):
                mean.lerp_(weight, EMA_RATE)
    gan.images_seen, gan.steps = gan.images_seen + len(real), gan.steps + 1


def peak_convolution_flops(device: torch.device, precision: str) -> float:
    """Return the highest measured throughput of a 3x3 convolution in FLOP/s."""
    dtype = getattr(torch, precision)
    batch_size, peak = 32, 0.0
    for width, side in ((64, 64), (128, 32), (256, 32), (256, 16), (512, 16)):
        layer = to_channels_last(nn.Conv2d(width, width, 3, padding=1).to(device, dtype))
        x = torch.randn(batch_size, width, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            layer(x)
            seconds = min(elapsed_seconds(partial(layer, x), device) for _ in range(5))
        peak = max(peak, 2 * 9 * width * width * batch_size * side * side / seconds)
    return peak


def elapsed_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, including the work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: BenchmarkCase, runtime: Runtime, num_repeats: int, peak: float) -> dict[str, Any]:
    """Return the row of a case.

    Args:
        case: networks and settings.
        runtime: device and precision.
        num_repeats: maximum number of repeats.
        peak: peak throughput of a convolution in FLOP/s.
    """
    device, settings = runtime.device, case.settings
    objective = make_objective(settings)
    images = noise_images(512, case.space.channels, *case.space.target_resolution)
    gan, reference_gan = case.create_gan(device), to_reference_gan(case.create_gan(device))

    # In a cycle, each lazy penalty is computed once and G takes at least one step.
    intervals = [getattr(r, "interval", 1) for r in objective.regularizers.values()]
    steps = math.lcm(settings.critic_steps, *map(int, intervals))
    batches = Batches(images, MIN_BATCH_SIZE, 0)
    # Count in float32, in which no operation uses sparse matrices.
    float32_runtime = Runtime(device, use_bfloat16=False)
    with FlopCounter() as counter:
        for _ in range(steps):
            training_step(
                gan, batches, objective=objective, settings=settings, runtime=float32_runtime
            )
    flops_per_image, batch_size = counter.total / (steps * MIN_BATCH_SIZE), case.batch_size
    max_flops = MAX_REPEAT_SECONDS * peak / 2  # at half of the peak throughput
    while batch_size >= 2 * MIN_BATCH_SIZE and steps * batch_size * flops_per_image > max_flops:
        batch_size //= 2
    batches = Batches(images, batch_size, 0)

    def run_growgan() -> None:
        configure_allocator(keep_freed_memory=True)
        for _ in range(steps):
            training_step(gan, batches, objective=objective, settings=settings, runtime=runtime)

    def run_reference() -> None:
        configure_allocator(keep_freed_memory=False)
        for _ in range(steps):
            reference_step(
                reference_gan,
                batches,
                objective=objective,
                critic_steps=settings.critic_steps,
                device=device,
            )

    training_step(gan, batches, objective=objective, settings=settings, runtime=runtime)
    reference_step(
        reference_gan,
        batches,
        objective=objective,
        critic_steps=settings.critic_steps,
        device=device,
    )
    if batch_size == case.batch_size:  # otherwise one cycle takes long enough
        steps *= max(1, round(MIN_REPEAT_SECONDS / elapsed_seconds(run_growgan, device)))
    start = time.perf_counter()
    times: list[tuple[float, float]] = []
    while len(times) < num_repeats and (not times or time.perf_counter() - start < MAX_ROW_SECONDS):
        times.append((elapsed_seconds(run_growgan, device), elapsed_seconds(run_reference, device)))
    images_per_second, reference_images_per_second = (
        steps * batch_size / statistics.median(seconds) for seconds in zip(*times, strict=True)
    )
    return {
        "name": case.name,
        "resolution": max(gan.resolution),
        "parameters": gan.generator.num_parameters() + gan.discriminator.num_parameters(),
        "batch_size": batch_size,
        "images_per_second": images_per_second,
        "reference_images_per_second": reference_images_per_second,
        "speedup": statistics.median(reference / growgan for growgan, reference in times),
        "mflop_per_image": flops_per_image / 1e6,
        "peak_fraction": flops_per_image * images_per_second / peak,
        "repeats": len(times),
    }


def noise_images(num_images: int, channels: int, height: int, width: int) -> ImageSet:
    """Return noise; the content of the images does not affect the speed."""
    shape = (num_images, channels, height, width)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    return ImageSet("noise", pixels, labels=None, classes=(), fingerprint="noise")


def format_rate(images_per_second: float) -> str:
    """Return images per second with at least two digits."""
    if images_per_second >= 10:
        return f"{images_per_second:,.0f}"
    return f"{images_per_second:.2g}"


def table_row(row: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    return (
        f"| {row['name']} | {row['resolution']} | {row['parameters'] / 1e6:.2f} "
        f"| {row['batch_size']} | {format_rate(row['images_per_second'])} "
        f"| {format_rate(row['reference_images_per_second'])} | {row['speedup']:.2f} "
        f"| {row['mflop_per_image']:,.0f} | {row['peak_fraction']:.0%} |"
    )


def save_row(row: dict[str, Any], peaks: dict[str, float]) -> None:
    """Save a row; it replaces an older one of the same network and resolution.

    The file holds rows of one machine and number of threads. Other rows are not saved.
    """
    conditions = {"machine": describe_machine(), "threads": torch.get_num_threads()}
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if saved and not conditions.items() <= saved.items():
        print(
            f"not saved: {RESULTS.name} has the rows of {saved['machine']},"
            f" {saved['threads']} threads"
        )
        return
    key = (row["name"], row["resolution"])
    rows = [other for other in saved.get("rows", []) if (other["name"], other["resolution"]) != key]
    RESULTS.parent.mkdir(exist_ok=True)
    results = {**conditions, "peaks": peaks, "rows": [*rows, row]}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    """Read the command line, measure, and print and save the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="a preset, or 'default'; all by default")
    parser.add_argument("--resolution", type=int, default=32, help="largest resolution in pixels")
    parser.add_argument("--channels", type=int, default=3, help="image channels")
    parser.add_argument("--batch-size", type=int, help="images per step; by default as published")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement")
    parser.add_argument("--threads", type=int, help="CPU threads; by default the fastest number")
    parser.add_argument("--device", default="auto", help="device, such as cpu or cuda")
    args = parser.parse_args()
    runtime = make_runtime(args.device)
    torch.set_num_threads(args.threads or fastest_num_threads())
    peaks = {name: peak_convolution_flops(runtime.device, name) for name in ("float32", "bfloat16")}
    peak = peaks["bfloat16" if runtime.use_bfloat16 else "float32"]
    peak_list = ", ".join(f"{value / 1e12:.3f} in {name}" for name, value in peaks.items())
    print(f"{describe_machine()}, {torch.get_num_threads()} threads")
    print(f"Peak throughput of a convolution in TFLOP/s: {peak_list}\n")
    print(
        "| network | resolution | parameters, M | batch size | growgan, images/s "
        "| reference, images/s | speedup | MFLOP per image | fraction of peak |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases(args.resolution, args.channels, args.batch_size, args.only):
        row = measure(case, runtime, args.repeats, peak)
        print(table_row(row), flush=True)
        save_row(row, peaks)


if __name__ == "__main__":
    main()
