"""Layers of D that compare the samples of a minibatch with each other."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.layers import ScaledLinear
from growgan.nets.spec import WeightSpec


class MinibatchStdDev(nn.Module):
    """Append a feature map with the mean standard deviation within a group of samples.

    A group consists of consecutive samples, so that reals followed by fakes can share a forward
    pass without a group that mixes them. The biased variance + 1e-8 is taken over the group, and
    its root averaged over channels and pixels (PGGAN, section 3). Input float ``[N, C, H, W]``,
    output ``[N, C + 1, H, W]``.
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c1 h w"]:
        group_size = math.gcd(len(x), self.group_size)
        # Rows of contiguous memory: torch.var strides across samples and is ten times slower.
        grouped = x.float().movedim(1, -1).reshape(-1, group_size, x[0].numel())  # [N/g, g, H·W·C]
        centered = grouped - grouped.mean(1, keepdim=True)
        std = (centered.square().mean(1) + 1e-8).sqrt().mean(1)
        maps = std.repeat_interleave(group_size).to(x.dtype)[:, None, None, None]
        return torch.cat([x, maps.expand(-1, 1, *x.shape[2:])], 1)


class MinibatchDiscrimination(nn.Module):
    """o_b(x_i) = Σ_j exp(-||M_ib - M_jb||₁), where M_i is a linear map of features to B rows.

    Salimans et al. 2016, 1606.03498, section 3.2. Features float ``[N, D]``, output ``[N, B]``.
    """

    KERNEL_DIM = 5  # length of a row of M

    def __init__(self, in_features: int, num_kernels: int, weight_spec: WeightSpec) -> None:
        super().__init__()
        self.projection = ScaledLinear(
            in_features, num_kernels * self.KERNEL_DIM, weight_spec=weight_spec
        )

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n b"]:
        rows = self.projection(features).float().view(len(features), -1, self.KERNEL_DIM)
        return torch.exp(-(rows[:, None] - rows[None]).abs().sum(3)).sum(1)
