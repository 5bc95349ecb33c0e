"""What turns latents and a label into latents that an unconditional generator draws as that class.

InRep+ (Lee, Dabral, Sohn, Yu & Lee 2021, 2112.10930): the generator itself is frozen, and an
invertible map in front of it is learnt. Invertible, since two latents that became one would be
two images that became one: what the generator can draw, it still can.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from growgan.nets.layers import Dense

CONTRACTION = 0.9  # Lipschitz constant of a block's branch, at most: below 1 it can be undone
SETTLED = 20  # forwards' worth of power iteration with which a block begins
STEPS = 5  # of power iteration a forward in training
SQUARES = 8  # of a map with itself: d^(1 / 2^9) is 1.01 for a width of 128
CLOSE = 1e-6  # of an inverse, beside its length
PATIENCE = 500  # steps of the inverse: 0.9^500 is nothing


def spectral_bound(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """Return what the largest singular value is at most, hardly more than it.

    The Frobenius norm of the matrix's Gram matrix, of that one's, and so on, to the power
    2^-``SQUARES`` (Delattre et al. 2023, 2305.16173): no decomposition, and products can be
    exported to wherever the generator is.
    """
    log: Tensor | float = 0.0
    for k in range(SQUARES):
        norm = matrix.norm().clamp(min=1e-12)
        log = log + norm.log() / 2**k
        matrix = matrix / norm
        matrix = matrix.T @ matrix
    return (log + matrix.norm().clamp(min=1e-12).log() / 2**SQUARES).exp()


class Bounded(Dense):
    """A dense map that makes no difference of vectors longer.

    In eval mode it holds of any weight, the running average's too. In training power iteration
    follows the weight from below, closely enough to learn by.
    """

    def _singular(self, matrix: Float[Tensor, "m n"], follow: bool) -> Float[Tensor, ""]:
        if not self.training:
            return spectral_bound(matrix)
        for _ in range(STEPS - 1):
            super()._singular(matrix, follow)
        return super()._singular(matrix, follow)


class Contraction(nn.Module):
    """x + c f(x), invertible since f stretches nothing: float ``[N, d]`` to ``[N, d]``.

    f is two dense maps, each divided by its largest singular value, with an ELU between them
    (Behrmann et al. 2019, 1811.00995).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = (Bounded(width, width, rate="spectral") for _ in range(2))
        for layer in (self.inner, self.outer):
            for _ in range(SETTLED):
                layer.singular(follow=True)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x + self._branch(x, self.inner.used, self.outer.used)

    def _branch(self, x: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """Return c f(x) by the weights in use."""
        h = F.elu(F.linear(x, inner, self.inner.bias))
        return CONTRACTION * F.linear(h, outer, self.outer.bias)

    def inverse(self, y: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the x that becomes ``y``: the fixed point of y - c f(x) (Banach)."""
        x, weights = y, (self.inner.used, self.outer.used)
        for _ in range(PATIENCE):
            before, x = x, y - self._branch(x, *weights)
            if float((x - before).norm()) <= CLOSE * float(x.norm()):
                return x
        raise RuntimeError("a block of the modifier does not contract: its weights are damaged")


class Modifier(nn.Module):
    """Latents and labels to latents: M(u, y), invertible in u for each y.

    The label's learnt vector is added, then come ``blocks`` contractions. Labels are float
    ``[N, classes]``, one number a class; mixtures of classes are mixtures of their vectors.
    """

    def __init__(self, latent: int, classes: int, blocks: int) -> None:
        super().__init__()
        # As small as a step or two, so that all classes begin as what the generator draws.
        self.label = Dense(classes, latent, gain=0.1 * classes**0.5, rate="plain")
        self.blocks = nn.ModuleList(Contraction(latent) for _ in range(blocks))

    def forward(self, u: Float[Tensor, "n d"], y: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        z = u + self.label(y)
        for block in self.blocks:
            z = block(z)
        return z

    @torch.no_grad()
    def inverse(self, z: Float[Tensor, "n d"], y: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """Return the latents u with M(u, y) = ``z``; the modules must be in eval mode."""
        for block in reversed(self.blocks):
            assert isinstance(block, Contraction)
            z = block.inverse(z)
        return z - self.label(y)
