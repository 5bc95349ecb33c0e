"""Principal directions of a generator: what its images vary along most (Härkönen et al. 2020).

With a mapping network they are the principal components of the styles, of 512 latents. Without
one, the components of the features behind the stem are taken, and the directions in the space of
latents that raise each of them are found by least squares (GANSpace, 2004.02546, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.players import Generator
from growgan.training.gan import inputs

SEEN = 512  # latents; of twice as many the decomposition takes six times as long
SEED = 0xD1CE


@dataclass(frozen=True)
class Directions:
    """``vectors`` [k, d]: a step along one is a deviation of its component.

    They are moves of the styles if ``styles``, of the latents otherwise. ``shares`` [k] are those
    of the variance.
    """

    vectors: Float[Tensor, "k d"]
    shares: Float[Tensor, " k"]
    styles: bool

    def __len__(self) -> int:
        return len(self.vectors)

    def move(self, amounts: Mapping[int, float]) -> Float[Tensor, " d"]:
        """Return the sum of so many deviations along each of some directions."""
        steps = torch.zeros(len(self))
        for index, amount in amounts.items():
            steps[index] = amount
        return steps @ self.vectors


@torch.no_grad()
def principal(network: Generator, count: int = 10) -> Directions:
    """Return the ``count`` directions along which a generator's images vary most, or all."""
    spec = network.spec
    z = inputs(spec, SEEN, SEED)
    w = network.embed(z)
    features = w if spec.mapping else network.stem(w).flatten(1)
    centred = (features - features.mean(0)).double()
    count = min(count, spec.latent, centred.shape[1])
    squares, scores = torch.linalg.eigh(centred @ centred.T)  # however many features there are
    squares, scores = squares.flip(0)[:count].clamp(min=1e-12), scores.flip(1)[:, :count]
    shares = (squares / centred.square().sum()).float()
    scores = scores * (SEEN - 1) ** 0.5  # of unit deviation
    if spec.mapping:
        return Directions((scores.T @ centred / (SEEN - 1)).float(), shares, styles=True)
    latents = z[:, : spec.latent].double()
    moves = torch.linalg.lstsq(scores, latents - latents.mean(0)).solution
    return Directions(moves.float(), shares, styles=False)
