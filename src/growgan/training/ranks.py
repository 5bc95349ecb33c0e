"""Several processes that train one pair together (torch.distributed, begun by torchrun).

Each takes its share of every batch; gradients are averaged by one flat all-reduce a player and
step. All else that a step depends on is a function of the seed and of what the first rank says, so
that N processes with a share each train as one does with the whole batch.
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
from growgan.nets.ranked import guarded

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this is; alone, every method does nothing."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that decides, scores and writes."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([each.float().flatten() for each in tensors])
        self._reduce(flat)
        flat /= self.count
        parts = flat.split([each.numel() for each in tensors])
        for mine, mean in zip(tensors, parts, strict=True):
            mine.copy_(mean.view_as(mine))

    def average_gradients(self, player: nn.Module, terms: dict[str, Tensor]) -> None:
        """Average a player's gradients, and with them the newest ``terms`` of the log."""
        if self.count == 1:
            return
        gradients = [p.grad for p in player.parameters() if p.grad is not None]
        self.average([*gradients, *terms.values()])

    def agree(self, *values: float) -> tuple[float, ...]:
        """Return the first rank's values.

        They go from processor to processor, so that no GPU is waited for.

        Raises:
            KeyboardInterrupt: the first rank is :meth:`leaving`.
        """
        if self.count == 1:
            return values
        told = torch.tensor(values, dtype=torch.float64)
        self._guarded(lambda: dist.broadcast(told, 0))
        if isnan(told[0]):
            raise KeyboardInterrupt
        return tuple(told.tolist())

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Let the others end, too, where the first rank is interrupted within the context.

        They learn of it by the next :meth:`agree`, of two values.
        """
        try:
            yield
        except KeyboardInterrupt:
            self.agree(nan, nan)
            raise

    def tell(self, thing: Any = None) -> Any:
        """Return what the first rank gives."""
        box = [thing]
        if self.count > 1:
            cpu = torch.device("cpu")
            self._guarded(lambda: dist.broadcast_object_list(box, 0, device=cpu))
        return box[0]

    def gather(self, share: Tensor) -> Tensor:
        """Return, on the first rank, the rows that all have in turns; elsewhere the own ``share``.

        Rank k has rows k, k + count, ...
        """
        if self.count == 1:
            return share
        shares: list[Any] | None = [None] * self.count if self.first else None
        self._guarded(lambda: dist.gather_object(share, shares, 0))
        if shares is None:
            return share
        rows = share.new_empty(sum(map(len, shares)), *share.shape[1:])
        for k, each in enumerate(shares):
            rows[k :: self.count] = each
        return rows

    def _reduce(self, flat: Tensor) -> None:
        self._guarded(lambda: dist.all_reduce(flat))

    def _guarded(self, call: Callable[[], T]) -> T:
        return guarded(call, self.rank, self.count)


def join(environment: Mapping[str, str] | None = None) -> Ranks:
    """Return the ranks that torchrun began, joined; this process alone without it.

    Raises:
        UserError: torchrun's variables do not fit each other, or the others cannot be reached.
    """
    told = os.environ if environment is None else environment
    count = int(told.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if not dist.is_initialized():
        # Read before there is a group: its defaults would keep the group, and gloo's threads with
        # it, until Python is torn down under them, which aborts the process.
        import torch.distributed.nn.functional

        gpus = torch.cuda.device_count()
        if gpus:  # SLURM may show each process but one
            torch.cuda.set_device(int(told.get("LOCAL_RANK", "0")) % gpus)
        try:
            # What is on the CPU is exchanged there, also by machines that have GPUs.
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the other ranks cannot be reached: {error}") from error
        atexit.register(leave)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """End what :func:`join` began; the process itself does so as it ends."""
    if dist.is_initialized():
        dist.destroy_process_group()
