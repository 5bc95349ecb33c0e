"""Data-parallel training of one GAN by several processes (torch.distributed under torchrun).

Each process takes its shard of every batch. Gradients are averaged by one flat all-reduce per
network and step. Everything else is a function of the seed and of values from rank 0, so N
processes train exactly as one process with the whole batch.

:mod:`growgan.nets.distributed` has the layers that need the whole batch, and
:mod:`growgan.execution.distributed` the work of the other processes in a search.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.distributed import raise_on_lost_peer

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """The processes of a run. With one process, no method communicates.

    Attributes:
        rank: Index of this process.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which decides, scores and writes files."""
        return self.rank == 0

    @torch.no_grad()
    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.float().flatten() for tensor in tensors])
        self._raise_on_lost_peer(lambda: dist.all_reduce(flat))
        flat /= self.world_size
        means = flat.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average_gradients(self, network: nn.Module, terms: dict[str, Tensor]) -> None:
        """Average the gradients of ``network``, and the loss terms along with them."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        self.all_reduce_mean([*gradients, *terms.values()])

    def broadcast(self, *values: float) -> tuple[float, ...]:
        """Return the values of rank 0. They are exchanged on the CPU, which needs no GPU sync.

        Raises:
            KeyboardInterrupt: Rank 0 was interrupted; see :meth:`propagate_interrupt`.
        """
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        self._raise_on_lost_peer(lambda: dist.broadcast(tensor, 0))
        if isnan(tensor[0]):
            raise KeyboardInterrupt
        return tuple(tensor.tolist())

    @contextmanager
    def propagate_interrupt(self) -> Iterator[None]:
        """Interrupt the other processes if rank 0 is interrupted within the context.

        They are about to :meth:`broadcast` two values and receive NaN instead.
        """
        try:
            yield
        except KeyboardInterrupt:
            self.broadcast(nan, nan)
            raise

    def broadcast_object(self, value: Any = None) -> Any:
        """Return the object of rank 0."""
        objects = [value]
        if self.world_size > 1:
            cpu = torch.device("cpu")
            self._raise_on_lost_peer(lambda: dist.broadcast_object_list(objects, 0, device=cpu))
        return objects[0]

    def gather(self, local_rows: Tensor) -> Tensor:
        """Return the rows of all processes on rank 0, and ``local_rows`` on the others.

        Rank k holds the rows k, k + world_size, k + 2 world_size, ...
        """
        if self.world_size == 1:
            return local_rows
        shards: list[Any] | None = [None] * self.world_size if self.is_main_process else None
        self._raise_on_lost_peer(lambda: dist.gather_object(local_rows, shards, 0))
        if shards is None:
            return local_rows
        rows = local_rows.new_empty(sum(map(len, shards)), *local_rows.shape[1:])
        for rank, shard in enumerate(shards):
            rows[rank :: self.world_size] = shard
        return rows

    def _raise_on_lost_peer(self, collective: Callable[[], T]) -> T:
        return raise_on_lost_peer(collective, self.rank, self.world_size)


def init_distributed(environment: Mapping[str, str] | None = None) -> DistributedContext:
    """Join the processes that torchrun started; without torchrun, return one process.

    Raises:
        UserError: The other processes cannot be reached.
    """
    environment = os.environ if environment is None else environment
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return DistributedContext()
    if not dist.is_initialized():
        # Import this before there is a process group. Its default arguments would keep the group
        # and gloo's threads alive until Python shuts down, which aborts the process.
        import torch.distributed.nn.functional

        num_gpus = torch.cuda.device_count()
        if num_gpus:  # SLURM may show each process only its own GPU.
            torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % num_gpus)
        try:
            # CPU tensors are exchanged by gloo even on machines with GPUs.
            dist.init_process_group("cpu:gloo,cuda:nccl" if num_gpus else "gloo")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the other processes cannot be reached: {error}") from error
        atexit.register(shutdown_distributed)
    return DistributedContext(dist.get_rank(), dist.get_world_size())


def shutdown_distributed() -> None:
    """Leave the process group that :func:`init_distributed` joined; also called at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
