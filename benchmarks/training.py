"""Images a second of a whole training step, beside the way in which published code runs.

    python benchmarks/training.py                          # every preset, every stage: some minutes
    python benchmarks/training.py --only default           # one row group
    python benchmarks/training.py --only pggan --resolution 128 --batch 8

A preset's batch is the published one, up to 64 images and to what a turn can hold; ``--batch`` sets
another.
For each preset and each growth stage: growgan's step; ``plain``, the same networks and loss as
published code has them (eager float32, NCHW, Adam neither fused nor by lists, the allocator as it
comes, D run on reals and on fakes apart and frozen in G's step, G run without a graph for D's step
and anew for its own); and the step's floating-point operations (counted by torch, lazy penalties
included, two to a multiplication) as a share of the convolution peak measured in the same process.
Both sides run in turns, on as many threads, and the medians over the turns are given.
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
from growgan.growth.history import Space
from growgan.nets.layers import Conv, channels_last
from growgan.nets.norms import PixelNorm
from growgan.nets.players import Generator
from growgan.nets.presets import PRESETS
from growgan.nets.strided import StridedConv
from growgan.objectives import Objective, Step, make_objective
from growgan.training.gan import Gan
from growgan.training.memory import keep_freed_memory
from growgan.training.runtime import Runtime, best_threads, machine, make_runtime
from growgan.training.stage import step

RESULTS = Path(__file__).parent / "results" / "training.json"
TURN = 1.0  # seconds of a turn, at least one cycle
LONGEST = 10.0  # seconds that a turn should take at most: a batch is halved until it would
FEWEST = 4  # images a batch, however long that takes
PATIENCE = 40.0  # seconds after which no other turn of a row begins
BATCH = 64  # at most: some published batches would fill a cluster
WIDE = {"stack": {"width": 128}}  # the default stack as search may grow it: 64 and more at 32x32


@dataclass
class Case:
    """One row: a pair of players at one stage."""

    name: str
    settings: Settings
    space: Space
    level: int
    batch: int

    def gan(self, device: torch.device) -> Gan:
        """Return the pair with fresh weights."""
        stacks = self.space.stacks(self.level)
        return Gan.create(*stacks, self.settings.optimiser, seed=0, device=device)


def cases(resolution: int, channels: int, batch: int | None, only: str | None) -> Iterator[Case]:
    """Yield every preset at every stage on the way to ``resolution``, and the default stacks."""
    named: dict[str, dict[str, Any]] = {"default": {}, "default, four times as wide": WIDE}
    named |= {f"{e.name}, published": {"preset": e.name, **e.value.published} for e in PRESETS}
    for name, values in named.items():
        if only not in (None, name.partition(",")[0], name):
            continue
        settings = make_settings(values)
        size = (resolution, resolution)
        space = Space(settings.preset, settings.stack, channels, size)
        for level in range(space.levels + 1):
            yield Case(name, settings, space, level, batch or min(BATCH, settings.batch))


class Operations(TorchDispatchMode):
    """Counts floating-point operations of products and convolutions, two to a multiplication."""

    total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result, packet = function(*args, **(kwargs or {})), function.overloadpacket
        # torch's own count of a convolution's gradient takes no notice of groups.
        if packet is torch.ops.aten.convolution:
            self.total += convolved(args[0], args[1], result, transposed=args[6])
        elif packet is torch.ops.aten.convolution_backward:
            once = convolved(args[1], args[2], args[0], transposed=args[7])
            self.total += sum(args[10][:2]) * once
        elif (count := flop_registry.get(packet)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def convolved(x: Tensor, weight: Tensor, y: Tensor, *, transposed: bool) -> int:
    """Return the operations of a convolution: two for each weight at each place that it is put."""
    places = (x if transposed else y).numel()
    return 2 * places * weight[0].numel()


def as_published(module: nn.Module) -> None:
    """Let a convolution be just that, where growgan computes it otherwise."""

    def conv(x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, module.used, module.bias, padding=module.padding)

    def strided(x: Tensor) -> Tensor:
        how = {"stride": 2, "padding": module.padding}
        if module.doubles:
            weight = module.used.transpose(0, 1)
            return nn.functional.conv_transpose2d(x, weight, module.bias, **how)
        return nn.functional.conv2d(x, module.used, module.bias, **how)

    if isinstance(module, Conv):
        module.forward = conv
    if isinstance(module, StridedConv):
        module.forward = strided


def allocate(*, kept: bool) -> None:
    """Let freed memory be kept, as growgan does, or given back, as glibc comes to do by itself."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if kept:
        keep_freed_memory()
    elif mallopt is not None:
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at the most that it rises to
        mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD, twice that


class PublishedNorm(nn.Module):
    """Pixel norm as it is usually written."""

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def plainly(gan: Gan) -> Gan:
    """Return the pair as published code has it: NCHW, Adam unfused."""
    for player in (gan.generator, gan.discriminator, gan.average):
        player.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module in list(player.modules()):
            as_published(module)
            for name, child in module.named_children():
                if isinstance(child, PixelNorm):
                    setattr(module, name, PublishedNorm())
        if isinstance(player, Generator):
            player.stem.register_forward_hook(lambda *call: call[2].contiguous())
    s = gan.optimiser_settings
    for side in ("generator", "discriminator"):
        how = {"lr": s.lr, "betas": (s.beta1, s.beta2), "eps": s.epsilon}
        adam = torch.optim.Adam(getattr(gan, side).parameters(), foreach=False, fused=False, **how)
        setattr(gan, f"{side}_optimiser", adam)
    return gan


def plain_step(
    gan: Gan, batches: Batches, objective: Objective, critic_steps: int, device: torch.device
) -> None:
    """Take one step of D, and one of G where it is G's turn, as published code does."""
    g, d = gan.generator, gan.discriminator
    pixels, _ = batches.batch_at(gan.images)
    full = pixels.to(device).float() / 127.5 - 1
    real = nn.functional.avg_pool2d(full, full.shape[-1] // gan.resolution[1]).contiguous()
    rng = torch.Generator(device).manual_seed(gan.steps)

    def draw() -> Tensor:
        return torch.randn(len(real), g.spec.latent, generator=rng, device=device)

    z = draw()
    with torch.no_grad():
        fake = g(z)
    view = Step(g, d, real, fake, z, rng, d(real), d(fake), index=gan.steps, memory=gan.memory)
    terms = objective.discriminator(view)
    gan.discriminator_optimiser.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    gan.discriminator_optimiser.step()

    if (gan.steps + 1) % critic_steps == 0:
        d.requires_grad_(False)
        view.fake = g(draw())
        view.fake_logits = d(view.fake)
        view.real_logits = d(real) if objective.paired else view.real_logits
        terms = objective.generator(view)
        gan.generator_optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        d.requires_grad_(True)
        gan.generator_optimiser.step()
        with torch.no_grad():
            for mean, weight in zip(gan.average.parameters(), g.parameters(), strict=True):
                mean.lerp_(weight, 0.001)
    gan.images, gan.steps = gan.images + len(real), gan.steps + 1


def convolution_peak(device: torch.device, precision: str) -> float:
    """Return the most floating-point operations a second that a 3x3 convolution was seen to do."""
    dtype = getattr(torch, precision)
    best = 0.0
    for width, side in ((64, 64), (128, 32), (256, 32), (256, 16), (512, 16)):
        layer = channels_last(nn.Conv2d(width, width, 3, padding=1).to(device, dtype))
        x = torch.randn(32, width, side, side, device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            layer(x)
            seconds = min(timed(partial(layer, x), device) for _ in range(5))
        best = max(best, 2 * 9 * width * width * 32 * side * side / seconds)
    return best


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure(case: Case, runtime: Runtime, turns: int, peak: float) -> dict[str, Any]:
    """Return a row: images/s of both ways, their ratio, operations an image, share of peak."""
    device, objective = runtime.device, make_objective(case.settings)
    height, width = case.space.target
    images = noise(512, case.space.channels, height, width)
    ours, plain = case.gan(device), plainly(case.gan(device))

    critic = case.settings.critic_steps
    # Each lazy penalty acts once in a cycle, and G moves at least once.
    lazy = [getattr(each, "every", 1) for each in objective.regularisers.values()]
    steps = math.lcm(critic, *map(int, lazy))
    batches = Batches(images, FEWEST, 0)
    # In float32, where nothing is multiplied by a matrix that is zero in most places.
    exact = Runtime(device, bfloat16=False)
    with Operations() as counter:
        for _ in range(steps):
            step(ours, batches, objective, case.settings, exact)
    operations, batch = counter.total / (steps * FEWEST), case.batch
    while batch >= 2 * FEWEST and steps * batch * operations > LONGEST * peak / 2:
        batch //= 2
    batches = Batches(images, batch, 0)

    def run_ours() -> None:
        allocate(kept=True)
        for _ in range(steps):
            step(ours, batches, objective, case.settings, runtime)

    def run_plain() -> None:
        allocate(kept=False)
        for _ in range(steps):
            plain_step(plain, batches, objective, critic, device)

    step(ours, batches, objective, case.settings, runtime)
    plain_step(plain, batches, objective, critic, device)
    if batch == case.batch:  # else a cycle is long enough
        steps *= max(1, round(TURN / timed(run_ours, device)))
    begun, times = time.perf_counter(), []
    while len(times) < turns and (not times or time.perf_counter() - begun < PATIENCE):
        times.append((timed(run_ours, device), timed(run_plain, device)))
    mine, theirs = (steps * batch / statistics.median(t) for t in zip(*times, strict=True))
    return {
        "preset": case.name,
        "resolution": max(ours.resolution),
        "parameters": ours.generator.parameter_count() + ours.discriminator.parameter_count(),
        "batch": batch,
        "images/s": mine,
        "plain": theirs,
        "ratio": statistics.median(b / a for a, b in times),
        "MFLOP an image": operations / 1e6,
        "share of peak": operations * mine / peak,
        "turns": len(times),
    }


def noise(count: int, channels: int, height: int, width: int) -> ImageSet:
    """Return random images: speed does not depend on what they show."""
    shape = (count, channels, height, width)
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    return ImageSet("noise", pixels, None, (), "noise")


def rate(images: float) -> str:
    """Return images a second with two digits at least."""
    return f"{images:,.0f}" if images >= 10 else f"{images:.2g}"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    return (
        f"| {row['preset']} | {row['resolution']} | {row['parameters'] / 1e6:.2f} | {row['batch']} "
        f"| {rate(row['images/s'])} | {rate(row['plain'])} | {row['ratio']:.2f} "
        f"| {row['MFLOP an image']:,.0f} | {row['share of peak']:.0%} |"
    )


def main() -> None:
    """Read the command line, measure, print the table and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="a preset, or 'default'")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, help="images a step; the settings' own by default")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, help="measured by default, as growgan does")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    runtime = make_runtime(given.device)
    torch.set_num_threads(given.threads or best_threads())
    peaks = {name: convolution_peak(runtime.device, name) for name in ("float32", "bfloat16")}
    peak = peaks["bfloat16" if runtime.bfloat16 else "float32"]
    told = ", ".join(f"{value / 1e12:.3f} in {name}" for name, value in peaks.items())
    print(f"{machine()}, {torch.get_num_threads()} threads; convolutions, TFLOP/s: {told}\n")
    print("| stack | pixels | M parameters | batch | images/s | plain | times | MFLOP | of peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases(given.resolution, given.channels, given.batch, given.only):
        row = measure(case, runtime, given.turns, peak)
        print(line(row), flush=True)
        keep(row, peaks)


def keep(row: dict[str, Any], peaks: dict[str, float]) -> None:
    """Write a row beside those of the same machine, in place of an older one of the same stage."""
    where = {"machine": machine(), "threads": torch.get_num_threads()}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if kept and not where.items() <= kept.items():
        print(f"not kept: {RESULTS.name} has rows of {kept['machine']}, {kept['threads']} threads")
        return
    rows = kept.get("rows", [])
    stage = ("preset", "resolution")
    rows = [each for each in rows if any(each[key] != row[key] for key in stage)] + [row]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**where, "peaks": peaks, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
