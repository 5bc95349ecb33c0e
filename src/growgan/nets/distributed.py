"""Operations over a batch that is distributed over several processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")

# What gloo, NCCL and PyTorch report when another process has ended.
LOST_PEER_MESSAGE = re.compile(
    r"connect|timed? ?out|socket|peer|pipe|remote|network|store", re.IGNORECASE
)


class PeerLostError(RuntimeError):
    """Another process of the run has ended."""


def raise_on_lost_peer(collective: Callable[[], T], rank: int, world_size: int) -> T:
    """Return the result of a collective operation.

    Args:
        collective: The operation.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        PeerLostError: Another process has ended.
    """
    try:
        return collective()
    except RuntimeError as error:
        if not LOST_PEER_MESSAGE.search(str(error)):
            raise
        raise PeerLostError(
            f"rank {rank} of {world_size} has lost the connection to another rank; continue the "
            "run with --resume and any number of ranks"
        ) from error


class AllReduceSum(torch.autograd.Function):
    """Sum over all ranks. It can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        raise_on_lost_peer(lambda: dist.all_reduce(total), dist.get_rank(), dist.get_world_size())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return AllReduceSum.apply(grads[0])  # type: ignore[no-untyped-call]


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the images of all processes.

    Unlike ``torch.nn.SyncBatchNorm`` it runs on CPUs and can be differentiated twice.
    """

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        is_distributed = dist.is_available() and dist.is_initialized()
        world_size = dist.get_world_size() if is_distributed else 1
        if world_size == 1 or not self.training:
            return super().forward(x)
        return self._forward_distributed(x, world_size)

    def _forward_distributed(self, x: Tensor, world_size: int) -> Tensor:
        # Average the moments over all processes.
        moments = torch.stack([x.float().mean((0, 2, 3)), x.float().square().mean((0, 2, 3))])
        total: Tensor = AllReduceSum.apply(moments)  # type: ignore[no-untyped-call]
        mean, square = total / world_size
        variance = (square - mean.square()).clamp(min=0)
        # Update the running statistics, with the unbiased variance.
        count = world_size * x.numel() / x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            self.num_batches_tracked += 1
        # Normalize.
        scale = torch.rsqrt(variance + self.eps)
        y = (x.float() - mean[:, None, None]) * scale[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)
