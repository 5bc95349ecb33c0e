"""Principal directions of a generator (GANSpace, Härkönen et al. 2020, 2004.02546).

With a mapping network they are the principal components of 512 styles. Without one, they are the
directions in latent space that change the principal components of the stem's features, found by
least squares (section 3 of the paper).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.networks import Generator
from growgan.training.gan import make_generator_input

NUM_PCA_SAMPLES = 512  # the decomposition of 1,024 samples takes six times as long
PCA_SEED = 0xD1CE


@dataclass(frozen=True)
class LatentDirections:
    """Directions along which the images vary most, the strongest first.

    Attributes:
        vectors: Offsets, each of one standard deviation of its component, [k, d].
        explained_variance_ratio: Fraction of the variance that each component explains, [k].
        in_style_space: Whether the offsets are added to styles rather than to latents.
    """

    vectors: Float[Tensor, "k d"]
    explained_variance_ratio: Float[Tensor, " k"]
    in_style_space: bool

    def __len__(self) -> int:
        return len(self.vectors)

    def offset(self, stds_by_direction: Mapping[int, float]) -> Float[Tensor, " d"]:
        """Return the offset that moves this many standard deviations along each direction."""
        weights = torch.zeros(len(self))
        for direction, stds in stds_by_direction.items():
            weights[direction] = stds
        return weights @ self.vectors


@torch.no_grad()
def principal_directions(network: Generator, count: int = 10) -> LatentDirections:
    """Return the ``count`` principal directions of a generator, or all if it has fewer."""
    spec = network.spec
    z = make_generator_input(spec, NUM_PCA_SAMPLES, PCA_SEED)
    w = network.map_to_w(z)
    features = w if spec.mapping_layers else network.stem(w).flatten(1)
    centered = (features - features.mean(0)).double()
    count = min(count, spec.latent_dim, centered.shape[1])
    # The Gram matrix has the same size whatever the number of features.
    eigenvalues, scores = torch.linalg.eigh(centered @ centered.T)
    eigenvalues = eigenvalues.flip(0)[:count].clamp(min=1e-12)
    explained_variance_ratio = (eigenvalues / centered.square().sum()).float()
    scores = scores.flip(1)[:, :count] * (NUM_PCA_SAMPLES - 1) ** 0.5  # unit standard deviation
    if spec.mapping_layers:
        vectors = scores.T @ centered / (NUM_PCA_SAMPLES - 1)
        return LatentDirections(vectors.float(), explained_variance_ratio, in_style_space=True)
    latents = z[:, : spec.latent_dim].double()
    vectors = torch.linalg.lstsq(scores, latents - latents.mean(0)).solution
    return LatentDirections(vectors.float(), explained_variance_ratio, in_style_space=False)
