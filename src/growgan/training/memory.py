"""Estimate of the memory that a training step needs, free memory, and peak memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from growgan.nets.flops import activation_elements, count_parameters
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, NetworkSpec

# Fitted to the peak memory of a dozen presets, resolutions and batch sizes, as measured by
# --dry-run; accurate to about 30 %.
BASE_BYTES = 75 * 2**20  # code and buffers that the first step loads
BYTES_PER_ACTIVATION = 28  # per feature value and image, for the forward passes of G and D
BYTES_PER_PARAMETER = 72  # weight, gradient, two moments and average, twice (parent and child)
MAX_FREE_MEMORY_FRACTION = 0.7  # of the free memory that a step may be expected to use
CGROUP_DIR = Path("/sys/fs/cgroup")
OUT_OF_MEMORY_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a primitive",  # oneDNN
    "could not create a memory",  # oneDNN
)


def estimate_bytes(specs: Iterable[NetworkSpec], batch_size: int) -> float:
    """Return a rough estimate of the bytes that training networks of these specs needs."""
    activations, parameters = 0.0, 0
    for spec in specs:
        activations += activation_elements(spec)
        parameters += count_parameters(spec)
    per_batch = BYTES_PER_ACTIVATION * batch_size * activations
    return BASE_BYTES + per_batch + BYTES_PER_PARAMETER * parameters


def free_bytes(device: torch.device) -> float | None:
    """Return the free bytes on ``device``, or None for a device that does not report them."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type != "cpu":
        return None
    free = float(psutil.virtual_memory().available)
    # psutil reports the machine; a container may be limited to less.
    with suppress(OSError, ValueError):
        limit = float((CGROUP_DIR / "memory.max").read_text())
        used = float((CGROUP_DIR / "memory.current").read_text())
        stat = (CGROUP_DIR / "memory.stat").read_text()
        free = min(free, limit - used + _reclaimable_bytes(stat))
    return free + free_heap_bytes()


def _reclaimable_bytes(stat: str) -> float:
    """Return the bytes of cached files in a cgroup's ``memory.stat``, which can be reclaimed."""
    values = dict(line.split() for line in stat.splitlines())
    return float(values.get("inactive_file", 0))


def choose_num_micro_batches(
    specs: tuple[GeneratorSpec, DiscriminatorSpec],
    batch_size: int,
    group_size: int,
    device: torch.device,
) -> int:
    """Return the number of micro-batches with which a step is expected to fit into memory.

    It is a power of two. Micro-batches consist of whole groups of ``group_size`` samples, for the
    minibatch standard deviation, and of at least two samples.
    """
    free, num_micro_batches = free_bytes(device), 1
    if free is None:
        return 1
    while (
        estimate_bytes(specs, batch_size // num_micro_batches) > MAX_FREE_MEMORY_FRACTION * free
        and batch_size // num_micro_batches % (2 * max(2, group_size)) == 0
    ):
        num_micro_batches *= 2
    return num_micro_batches


class PeakMemory:
    """Peak memory of the device, or of this process on the CPU, since the object was created."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    @property
    def mib(self) -> float | None:
        """Peak in MiB without mapped files such as the images; None if it is not known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if sys.platform != "linux":
            return None
        # psutil has no peak without mapped files.
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
        return (int(kib["VmHWM"]) - int(kib["RssFile"]) - int(kib["RssShmem"])) / 1024


def keep_freed_heap() -> None:
    """Make glibc keep large freed blocks instead of returning them to the kernel.

    Each step allocates its activations again. Without this, all their pages fault in again, which
    took up to half the time of a step. Without glibc this does nothing.
    """
    mallopt = _glibc_function("mallopt")
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    if mallopt is not None and mallopt(mmap_threshold, 1 << 30):
        mallopt(trim_threshold, (1 << 31) - 1)


def trim_heap() -> None:
    """Return glibc's free blocks to the kernel, so that they do not count as peak memory."""
    malloc_trim = _glibc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def free_heap_bytes() -> float:
    """Return the bytes of glibc's free blocks, which are reused before others; 0 without glibc."""
    mallinfo2 = _glibc_function("mallinfo2")
    if mallinfo2 is None:
        return 0.0
    mallinfo2.restype = _Mallinfo2
    return float(mallinfo2().fordblks)


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def _glibc_function(name: str) -> Any:
    """Return a function of glibc's allocator, or None on other systems."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def is_out_of_memory(error: Exception) -> bool:
    """Return whether ``error`` reports that a device or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(message in str(error).lower() for message in OUT_OF_MEMORY_MESSAGES)
