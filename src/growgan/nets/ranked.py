"""What looks at a whole batch, where several processes hold a share of it each."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

T = TypeVar("T")
# What gloo, NCCL and torch say when another process is gone.
LOST = re.compile(r"connect|timed? ?out|socket|peer|pipe|remote|network|store", re.IGNORECASE)


class LostRank(RuntimeError):
    """Another process of the run is gone."""


def guarded(call: Callable[[], T], rank: int, count: int) -> T:
    """Return what an exchange between ``count`` ranks returns, of which this is ``rank``.

    Raises:
        LostRank: another one is gone.
    """
    try:
        return call()
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise LostRank(
            f"rank {rank} of {count} has lost another one: the run stops here; "
            "go on with --resume, with as many ranks as there are"
        ) from error


class Summed(torch.autograd.Function):
    """The sum over all ranks, where each rank's gradient is the sum of theirs; twice, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        guarded(lambda: dist.all_reduce(total), dist.get_rank(), dist.get_world_size())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return Summed.apply(grads[0])  # type: ignore[no-untyped-call]


class RankedNorm(nn.BatchNorm2d):
    """Normalisation over the batch, whatever processes its images are spread over."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        return super().forward(x) if ranks == 1 or not self.training else self._across(x, ranks)

    def _across(self, x: Tensor, ranks: int) -> Tensor:
        own = torch.stack([x.float().mean((0, 2, 3)), x.float().square().mean((0, 2, 3))])
        total: Tensor = Summed.apply(own)  # type: ignore[no-untyped-call]
        mean, square = total / ranks
        variance = (square - mean.square()).clamp(min=0)
        count = ranks * x.numel() / x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            share = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps)
        y = (x.float() - mean[:, None, None]) * scale[:, None, None]
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)
