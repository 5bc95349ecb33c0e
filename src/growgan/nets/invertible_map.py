"""An invertible map of latent and label, in front of a frozen unconditional generator.

InRep+ (Lee, Dabral, Sohn, Yu & Lee 2021, 2112.10930): only the map is trained, so that the
generator becomes conditional. The map is invertible, so no two latents become one, and the
generator can still produce every image that it could before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.layers import ScaledLinear
from growgan.nets.spec import WeightSpec

SPECTRAL_NORM = WeightSpec(parametrization="spectral_norm")
PLAIN = WeightSpec(parametrization="none")
# Upper bound of the Lipschitz constant of a block's branch; below 1 the block is invertible.
MAX_BRANCH_LIPSCHITZ = 0.9
INIT_POWER_ITERATIONS = 20
POWER_ITERATIONS_PER_FORWARD = 5  # in training
# Each iteration replaces a matrix by its Gram matrix; d^(1 / 2^9) is 1.01 for a width d of 128.
GRAM_ITERATIONS = 8
INVERSE_RELATIVE_TOLERANCE = 1e-6
MAX_INVERSE_ITERATIONS = 500  # 0.9^500 is below the precision of float64


def spectral_norm_upper_bound(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """Return a tight upper bound of the largest singular value.

    The matrix is replaced by its Gram matrix ``GRAM_ITERATIONS`` times. The bound is the Frobenius
    norm of the result, to the power 2^-``GRAM_ITERATIONS`` (Delattre et al. 2023, 2305.16173).
    Unlike a singular value decomposition, matrix products can be exported with the generator.
    """
    log_bound: Tensor | float = 0.0
    for k in range(GRAM_ITERATIONS):
        norm = matrix.norm().clamp(min=1e-12)
        log_bound = log_bound + norm.log() / 2**k
        matrix = matrix / norm
        matrix = matrix.T @ matrix
    return (log_bound + matrix.norm().clamp(min=1e-12).log() / 2**GRAM_ITERATIONS).exp()


class LipschitzLinear(ScaledLinear):
    """A dense map with a Lipschitz constant of at most 1.

    In eval mode the bound holds for every weight, including the EMA. In training, power iteration
    gives a lower bound of the largest singular value, which is accurate enough.
    """

    def _power_iteration(self, matrix: Float[Tensor, "m n"], update_u: bool) -> Float[Tensor, ""]:
        if not self.training:
            return spectral_norm_upper_bound(matrix)
        for _ in range(POWER_ITERATIONS_PER_FORWARD - 1):
            super()._power_iteration(matrix, update_u)
        return super()._power_iteration(matrix, update_u)


class IResNetBlock(nn.Module):
    """x + c f(x), float ``[N, d]`` to ``[N, d]``, which is invertible for c < 1.

    f consists of two dense maps, each divided by its largest singular value, and an ELU between
    them (Behrmann et al. 2019, 1811.00995).
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear1 = LipschitzLinear(features, features, weight_spec=SPECTRAL_NORM)
        self.linear2 = LipschitzLinear(features, features, weight_spec=SPECTRAL_NORM)
        for layer in (self.linear1, self.linear2):
            for _ in range(INIT_POWER_ITERATIONS):
                layer.largest_singular_value(update_u=True)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x + self._branch(x, self.linear1.effective_weight, self.linear2.effective_weight)

    def _branch(self, x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
        """Return c f(x) for the effective weights of both maps."""
        h = F.elu(F.linear(x, weight1, self.linear1.bias))
        return MAX_BRANCH_LIPSCHITZ * F.linear(h, weight2, self.linear2.bias)

    def inverse(self, y: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the x that the block maps to ``y``, by fixed-point iteration of y - c f(x).

        Raises:
            RuntimeError: The iteration does not converge, because the weights are damaged.
        """
        weight1, weight2 = self.linear1.effective_weight, self.linear2.effective_weight
        x = y
        for _ in range(MAX_INVERSE_ITERATIONS):
            previous, x = x, y - self._branch(x, weight1, weight2)
            if float((x - previous).norm()) <= INVERSE_RELATIVE_TOLERANCE * float(x.norm()):
                return x
        raise RuntimeError("a block of the invertible map is not invertible: damaged weights")


class InvertibleLatentMap(nn.Module):
    """M(u, y): latents and labels to latents, invertible in u for each y.

    The learned embedding of the label is added first; ``num_blocks`` invertible blocks follow.
    Labels are float ``[N, label_dim]``, one number per class; a mixture of classes gives a mixture
    of their embeddings.
    """

    def __init__(self, latent_dim: int, label_dim: int, num_blocks: int) -> None:
        super().__init__()
        # The small gain makes all classes start close to the images of the frozen generator.
        self.label_embedding = ScaledLinear(
            label_dim, latent_dim, gain=0.1 * label_dim**0.5, weight_spec=PLAIN
        )
        self.blocks = nn.ModuleList(IResNetBlock(latent_dim) for _ in range(num_blocks))

    def forward(self, u: Float[Tensor, "n d"], label: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        z = u + self.label_embedding(label)
        for block in self.blocks:
            z = block(z)
        return z

    @torch.no_grad()
    def inverse(self, z: Float[Tensor, "n d"], label: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Return the latents u with M(u, y) = ``z``. The map must be in eval mode."""
        for block in reversed(self.blocks):
            assert isinstance(block, IResNetBlock)
            z = block.inverse(z)
        return z - self.label_embedding(label)
