"""How much memory a step needs, how much there is, and what was used at most."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from growgan.nets.cost import activations, parameters
from growgan.nets.spec import StackSpec

# Fitted to the peaks of a dozen presets, sizes and batches (--dry-run measures them), to some 30 %.
CONSTANT = 75 * 2**20  # bytes of code and buffers that the first step brings
A_VALUE = 28  # bytes for each feature value that a forward of G or D writes, for a batch of both
A_PARAMETER = 72  # weights, gradients, two moments and the average, once more for the parent
SHARE = 0.7  # of what is free that a step may be expected to take
CGROUP = Path("/sys/fs/cgroup")
ONEDNN = ("could not create a primitive", "could not create a memory")  # of a lack of memory


def needed(pair: Iterable[StackSpec], batch: int) -> float:
    """Return the bytes that training ``pair`` on so many images at a time will take, roughly."""
    values, weights = 0.0, 0
    for spec in pair:
        values += activations(spec)
        weights += parameters(spec)
    return CONSTANT + A_VALUE * batch * values + A_PARAMETER * weights


def available(device: torch.device) -> float | None:
    """Return the bytes that are free on ``device``; None where the system does not tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    if sys.platform != "linux":
        return None
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with suppress(OSError, ValueError):  # a container may have less than its machine
        limit = float((CGROUP / "memory.max").read_text())
        used = float((CGROUP / "memory.current").read_text())
        free = min(free, limit - used + _reclaimable((CGROUP / "memory.stat").read_text()))
    return free + freed_and_kept()


def _reclaimable(stat: str) -> float:
    """Return the bytes of files that a container's kernel would let go of."""
    known = dict(line.split() for line in stat.splitlines())
    return float(known.get("inactive_file", 0))


def parts_that_fit(
    pair: tuple[StackSpec, StackSpec], batch: int, group: int, device: torch.device
) -> int:
    """Return in how many parts a batch should go through: one, as long as all of it fits.

    Parts are halved while they are of whole groups of ``group`` samples and of two at least.
    """
    free, parts = available(device), 1
    while free is not None and needed(pair, batch // parts) > SHARE * free:
        if batch // parts % (2 * max(2, group)):
            break
        parts *= 2
    return parts


class PeakMemory:
    """The most memory that was in use since it was made: the device's, or this process's own.

    None where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # begins the count anew

    @property
    def mib(self) -> float | None:
        """MiB; files that are mapped, like the images, are not counted."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if sys.platform != "linux":
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        known = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
        return (int(known["VmHWM"]) - int(known["RssFile"]) - int(known["RssShmem"])) / 1024


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of handing them back to the kernel.

    Activations are allocated anew at each step; without this every one is page-faulted in again,
    which took up to half of a step. Elsewhere than on glibc it does nothing.
    """
    mallopt = _allocator("mallopt")
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    if mallopt is not None and mallopt(mmap_threshold, 1 << 30):
        mallopt(trim_threshold, (1 << 31) - 1)


def hand_back_freed_memory() -> None:
    """Let the kernel have what glibc has kept, so that a peak is of what follows alone."""
    trim = _allocator("malloc_trim")
    if trim is not None:
        trim(0)


def freed_and_kept() -> float:
    """Return the bytes that are freed and will be taken again before others; 0 if not known."""
    told = _allocator("mallinfo2")
    if told is None:
        return 0.0
    told.restype = _Allocated
    return float(told().fordblks)


class _Allocated(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        )
    ]


def _allocator(name: str) -> Any:
    """Return a function of glibc's allocator, None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def out_of_memory(error: Exception) -> bool:
    """Return whether ``error`` says that a device, or the machine, has no memory left."""
    words = ("can't allocate memory", "not enough memory", "out of memory", *ONEDNN)
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(each in str(error).lower() for each in words)
