"""Measure the effect of each optimization on the time of a training step.

    python benchmarks/ablation.py          # about five minutes

The table shows milliseconds per training step of G and D, averaged over a cycle of the lazy
penalties, as the median over repeats. The variants of a network are measured in turn. The networks
are growgan's default, one four times as wide, and DCGAN and PGGAN with their published widths.

"casts" is the fraction of the time spent on converting weights and features to bfloat16 and back.
Keeping bfloat16 copies of the weights could save at most that. "batch x 4" is the time for the same
number of images in batches four times as large.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import PropertyMock, patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training_speed import (
    BenchmarkCase,
    configure_allocator,
    elapsed_seconds,
    noise_images,
)

from growgan.config import Settings, make_settings
from growgan.data.batches import Batches
from growgan.nets.networks import Network
from growgan.nets.presets import PRESETS
from growgan.nets.resampling import downsample_average
from growgan.objectives import make_objective
from growgan.search.history import SearchSpace
from growgan.training.runtime import Runtime, describe_machine, make_runtime
from growgan.training.step import training_step

CPU = torch.device("cpu")
NUM_REPEATS = 5
STEPS_PER_CYCLE = 16  # a multiple of the intervals of the lazy penalties
CONFIGURATIONS: tuple[tuple[str, dict[str, Any], int, int], ...] = (
    # name, settings, side in pixels, batch size
    ("default, 4x4", {}, 4, 32),
    ("default, 32x32", {}, 32, 32),
    ("four times as wide, 32x32", {"network": {"width": 128}}, 32, 32),
    ("dcgan, 16x16", {"preset": "dcgan"}, 16, 32),
    ("pggan, 4x4", {"preset": "pggan"}, 4, 16),
)


@contextmanager
def release_freed_memory() -> Iterator[None]:
    """Let the allocator return freed memory to the system."""
    configure_allocator(keep_freed_memory=False)
    try:
        yield
    finally:
        configure_allocator(keep_freed_memory=True)


def separate_discriminator_passes() -> AbstractContextManager[Any]:
    """Run D on real and fake images separately, as if it used batch statistics."""
    return patch.object(
        Network, "uses_batch_statistics", new_callable=PropertyMock, return_value=True
    )


class NCHWRuntime(Runtime):
    """A runtime with images, and therefore features, in NCHW memory format."""

    def to_float_images(self, images: Tensor, downsample_factor: int = 1) -> Tensor:
        """Return images in [-1, 1]."""
        return downsample_average(images.float(), downsample_factor) / 127.5 - 1


@dataclass
class Cycle:
    """A cycle of training steps.

    Attributes:
        case: the networks and settings.
        runtime: device and precision.
        steps: number of steps.
        context: entered around the steps.
    """

    case: BenchmarkCase
    runtime: Runtime
    steps: int
    context: Callable[[], AbstractContextManager[Any]] | None = None
    gan: Any = field(init=False)

    def __post_init__(self) -> None:
        settings = self.case.settings
        self.gan = self.case.create_gan(CPU)
        if isinstance(self.runtime, NCHWRuntime):
            for network in (self.gan.generator, self.gan.discriminator):
                network.to(memory_format=torch.contiguous_format)
        self._batches = Batches(noise_images(512, 3, 32, 32), self.case.batch_size, 0)
        self._objective = make_objective(settings)

    def __call__(self) -> None:
        """Run the steps."""
        if self.context is None:
            self._run()
            return
        with self.context():
            self._run()

    def _run(self) -> None:
        for _ in range(self.steps):
            training_step(
                self.gan,
                self._batches,
                objective=self._objective,
                settings=self.case.settings,
                runtime=self.runtime,
            )


def build_variants(values: dict[str, Any], side_pixels: int, batch_size: int) -> dict[str, Cycle]:
    """Return a cycle of training steps for each variant."""
    preset = values.get("preset")
    settings = make_settings(PRESETS[preset].published_settings if preset else {}, values)
    space = SearchSpace(settings.preset, settings.network, 3, (32, 32))
    level = next(
        k for k in range(space.max_level + 1) if max(space.resolution_at(k)) == side_pixels
    )
    runtime = make_runtime("cpu")

    def cycle(
        runtime: Runtime = runtime,
        *,
        settings: Settings = settings,
        batch_size_factor: int = 1,
        context: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Cycle:
        case = BenchmarkCase(
            name="",
            settings=settings,
            space=space,
            level=level,
            batch_size=batch_size_factor * batch_size,
        )
        return Cycle(case, runtime, STEPS_PER_CYCLE // batch_size_factor, context)

    eager_penalties = {
        name: {**options, "interval": 1} for name, options in settings.regularizers.items()
    }
    variants = {
        "baseline": cycle(),
        "no bfloat16": cycle(replace(runtime, use_bfloat16=False)),
        "NCHW": cycle(NCHWRuntime(runtime.device, runtime.use_bfloat16)),
        "foreach Adam": cycle(),
        "separate D passes": cycle(context=separate_discriminator_passes),
        "penalties every step": cycle(
            settings=settings.model_copy(update={"regularizers": eager_penalties})
        ),
        "release freed memory": cycle(context=release_freed_memory),
        "batch x 4": cycle(batch_size_factor=4),
    }
    gan = variants["foreach Adam"].gan
    for optimizer in (gan.generator_optimizer, gan.discriminator_optimizer):
        for group in optimizer.param_groups:
            group |= {"fused": False, "foreach": True}
    return variants


def cast_time_fraction(function: Callable[[], None]) -> float:
    """Return the fraction of the time spent on copies to another type or memory format."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(e.self_cpu_time_total for e in events if e.key == "aten::copy_") / total


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{describe_machine()}, {args.threads} threads; milliseconds per step\n")
    for k, (name, values, side_pixels, batch_size) in enumerate(CONFIGURATIONS):
        variants = build_variants(values, side_pixels, batch_size)
        if k == 0:
            print("| network | " + " | ".join(variants) + " | casts |")
            print("|---|" + "---|" * (len(variants) + 1))
        for cycle in variants.values():
            cycle()
        times: dict[str, list[float]] = {variant: [] for variant in variants}
        for _ in range(NUM_REPEATS):
            for variant, cycle in variants.items():
                times[variant].append(elapsed_seconds(cycle, CPU) / STEPS_PER_CYCLE * 1e3)
        cells = [f"{statistics.median(values):.1f}" for values in times.values()]
        casts = cast_time_fraction(variants["baseline"])
        print(f"| {name} | {' | '.join(cells)} | {casts:.0%} |", flush=True)


if __name__ == "__main__":
    main()
