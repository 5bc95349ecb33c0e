"""Device, precision, compilation and threads."""

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
from growgan.data.parallel import num_available_cores
from growgan.errors import UserError, unknown_name_error
from growgan.nets.layers import to_channels_last
from growgan.nets.resampling import downsample_average
from growgan.training.distributed import DistributedContext
from growgan.training.memory import keep_freed_heap

DEVICE_TYPES = ("auto", "cpu", "cuda", "mps")
MAX_COMPILED_VARIANTS = 256  # compiled versions of a layer class, one per shape
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Runtime:
    """The device and precision of a run.

    Attributes:
        device: Device of the networks and batches.
        use_bfloat16: Whether forward passes run under autocast to bfloat16.
        distributed: The processes that train together.
        compile_backend: Backend of torch.compile; "" to compile nothing.
    """

    device: torch.device
    use_bfloat16: bool
    distributed: DistributedContext = DistributedContext()
    compile_backend: str = ""

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16)

    def compile(self, layers: Iterable[nn.Module]) -> None:
        """Compile each layer at its first call, if there is a backend.

        Layers are compiled separately. Layers of the same class and shape share their code, so
        only the new layers of a grown GAN have to be compiled.
        """
        if not self.compile_backend:
            return
        torch._dynamo.config.recompile_limit = MAX_COMPILED_VARIANTS
        torch._functorch.config.donated_buffer = False  # gradient penalties keep graphs
        for layer in layers:
            if layer._compiled_call_impl is None:
                layer.compile(backend=self.compile_backend)

    def fork_rng(self, enabled: bool) -> AbstractContextManager[object]:
        """Return a context after which torch's global random state is restored, if ``enabled``."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices, enabled=enabled)

    def to_float_images(self, images: Tensor, downsample_factor: int = 1) -> Tensor:
        """Return uint8 images [N, C, H, W] as float32 in [-1, 1] on the device, channels-last.

        Height and width are divided by ``downsample_factor`` by averaging, on the device, so that
        large images do not slow down a low-resolution GAN.
        """
        scaled = downsample_average(self.to_device(images).float(), downsample_factor) / 127.5 - 1
        return scaled.contiguous(memory_format=torch.channels_last)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` on the device."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # makes the copy asynchronous
        return tensor.to(self.device, non_blocking=True)


def make_runtime(
    device: str = "auto", precision: str = "auto", *, compile: bool = False
) -> Runtime:
    """Return the runtime for a device and a precision.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best available one.
        precision: "float32", "bfloat16", or "auto" for bfloat16 if the hardware supports it.
        compile: Whether to compile layers with torch.compile.

    Raises:
        UserError: A name is unknown, or the device is not available.
    """
    if device.partition(":")[0] not in DEVICE_TYPES:
        raise unknown_name_error("device", device, DEVICE_TYPES)
    if precision not in PRECISIONS:
        raise unknown_name_error("precision", precision, PRECISIONS)
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    device_type = device.partition(":")[0]
    if not available[device_type]:
        choices = ", ".join(name for name, is_available in available.items() if is_available)
        raise UserError(
            f"device '{device}' is not available on this machine; it must be one of: auto,"
            f" {choices}"
        )
    if device_type == "cpu":
        keep_freed_heap()
    if device_type == "cuda":  # Metrics switch TF32 off for themselves.
        allow_tf32 = precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        torch.backends.cudnn.allow_tf32 = allow_tf32
    use_bfloat16 = precision == "bfloat16" or (
        precision == "auto" and _has_fast_bfloat16(device_type)
    )
    return Runtime(
        torch.device(device), use_bfloat16, compile_backend="inductor" if compile else ""
    )


def runtime_from_settings(settings: Settings) -> Runtime:
    """Return the runtime for ``settings``; raise the errors of :func:`make_runtime`."""
    return make_runtime(settings.device, settings.precision, compile=settings.compile)


def _has_fast_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def fastest_num_threads() -> int:
    """Return the number of threads that trains small networks fastest: one or all.

    "All" are the cores this process may use, divided by the number of its peers under torchrun.
    More threads can be slower if cores share hardware or the machine is busy. The speed is
    therefore measured, which takes about a tenth of a second.
    """
    num_threads_before = torch.get_num_threads()
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    all_threads = max(1, num_available_cores() // local_world_size)
    seconds = {n: _convolution_seconds(n) for n in (1, all_threads)}
    torch.set_num_threads(num_threads_before)
    return all_threads if seconds[all_threads] < 0.8 * seconds[1] else 1


def _convolution_seconds(num_threads: int) -> float:
    """Return the shortest time of a small convolution's forward and backward pass, in seconds."""
    torch.set_num_threads(num_threads)
    layer = to_channels_last(nn.Conv2d(32, 32, 3, padding=1))
    images = torch.ones(32, 32, 16, 16).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        for _ in range(3):
            layer(images).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe_machine() -> str:
    """Return one line with the processor, its cores, the GPU and torch's version."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as lines:
            models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"
