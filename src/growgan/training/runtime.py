"""Where the numbers are computed: device, precision, threads."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growgan.config import Settings
from growgan.data.parallel import cores
from growgan.errors import UserError, unknown
from growgan.nets.layers import channels_last, downsample
from growgan.training.memory import keep_freed_memory
from growgan.training.ranks import Ranks

DEVICES = ("auto", "cpu", "cuda", "mps")
COMPILED = 256  # forms of layers that are kept compiled
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Runtime:
    """A device and a precision, both decided.

    Attributes:
        device: where players and batches live.
        bfloat16: whether forwards run under autocast to bfloat16.
        ranks: the processes that train one pair together.
        compiler: what torch compiles layers with, "" for none.
    """

    device: torch.device
    bfloat16: bool
    ranks: Ranks = Ranks()
    compiler: str = ""

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forwards run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def compile(self, blocks: Iterable[nn.Module]) -> None:
        """Let layers be compiled when they are first called, if layers are to be compiled.

        Each by itself: layers of one kind and form share their code, and a pair that has grown is
        compiled where it is new.
        """
        if not self.compiler:
            return
        torch._dynamo.config.recompile_limit = COMPILED
        torch._functorch.config.donated_buffer = False  # penalties keep graphs
        for block in blocks:
            if block._compiled_call_impl is None:
                block.compile(backend=self.compiler)

    def randomness(self, own: bool) -> AbstractContextManager[object]:
        """Return a context that gives torch's own random numbers back as they were, if ``own``."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices, enabled=own)

    def images(self, batch: Tensor, factor: int = 1) -> Tensor:
        """Return uint8 images as float32 in [-1, 1] on the device, channels-last.

        With a ``factor`` they are that many times smaller, by averages: what a small pair sees of
        large images costs less than the pair itself.
        """
        scaled = downsample(self.moved(batch).float(), factor) / 127.5 - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def moved(self, batch: Tensor) -> Tensor:
        """Return a batch on the device."""
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # else the copy would hold up the host
        return batch.to(self.device, non_blocking=True)


def make_runtime(
    device: str = "auto", precision: str = "auto", *, compiled: bool = False
) -> Runtime:
    """Choose the best device there is, and bfloat16 where the hardware multiplies it.

    Raises:
        UserError: an unknown name, or a device that this machine lacks.
    """
    if device.partition(":")[0] not in DEVICES:
        raise unknown("device", device, DEVICES)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if present[name])
    kind = device.partition(":")[0]
    if not present[kind]:
        choices = ", ".join(name for name, there in present.items() if there)
        raise UserError(f"device '{device}' is not present here; it may be: auto, {choices}")
    if kind == "cpu":
        keep_freed_memory()
    if kind == "cuda":  # metrics compute in float32 itself all the same
        exact = precision == "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
    fast = _multiplies_bfloat16(kind)
    bfloat16 = precision == "bfloat16" or (precision == "auto" and fast)
    return Runtime(torch.device(device), bfloat16, compiler="inductor" if compiled else "")


def runtime_of(settings: Settings) -> Runtime:
    """Return the runtime that settings ask for; raise as :func:`make_runtime` does."""
    return make_runtime(settings.device, settings.precision, compiled=settings.compile)


def _multiplies_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def best_threads() -> int:
    """Return how many threads train small stacks fastest on this machine: one, or all.

    Two processors that share a core, or a machine that is busy, make a second thread a burden;
    so it is measured, in about a tenth of a second, instead of assumed. All are those that this
    process may use; torchrun's processes on one machine share them.
    """
    before = torch.get_num_threads()
    everything = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    times = {n: _time_convolution(n) for n in (1, everything)}
    torch.set_num_threads(before)
    return everything if times[everything] < 0.8 * times[1] else 1


def _time_convolution(threads: int) -> float:
    """Return the best time of a small convolution, forward and backward, in seconds."""
    torch.set_num_threads(threads)
    layer = channels_last(nn.Conv2d(32, 32, 3, padding=1))
    images = torch.ones(32, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(8):
        begun = time.perf_counter()
        for _ in range(3):
            layer(images).square().mean().backward()
        times.append(time.perf_counter() - begun)
    return min(times)


def machine() -> str:
    """Return one line that names the processor, its cores and torch's version."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:
            models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"
