"""Precision, recall, density and coverage of features.

Each feature vector is surrounded by a ball that reaches to its k-th nearest neighbor. Precision and
density measure how realistic the generated images are; recall and coverage, how varied.
torchmetrics does not have these metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.functional.nearest_neighbors import (
    center_features,
    squared_distance_blocks,
    squared_kth_neighbor_distances,
)
from growgan.metrics.validation import check_same_width


@dataclass(frozen=True)
class PRDC:
    """Precision, recall, density and coverage; higher is better.

    All are from 0 to 1, except that density can exceed 1. It is 1 on average for samples from the
    distribution of the real images.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compute_prdc(fake: Tensor, real: Tensor, *, k: int = 3, k_density_coverage: int = 5) -> PRDC:
    """Return precision, recall, density and coverage of ``fake`` [m, d] and ``real`` [n, d].

    All balls are closed: a row on the border is inside. Float32 features are computed in float64
    where the rounding error would be large relative to the balls. The function uses as much memory
    as both sets and a few blocks of distances.

    Args:
        fake: Features of generated images.
        real: Features of real images.
        k: Neighbors for precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1
            and 2).
        k_density_coverage: Neighbors for density and coverage (Naeem et al. 2020, arXiv 2002.09797,
            eq. 3 and 4).

    Raises:
        ValueError: A set does not have more rows than neighbors, different d, NaN or infinity.
    """
    check_same_width(fake=fake, real=real)
    for name, num_rows, largest_k in (
        ("fake", len(fake), k),
        ("real", len(real), max(k, k_density_coverage)),
    ):
        if min(k, k_density_coverage) < 1 or num_rows <= largest_k:
            raise ValueError(
                "k and k_density_coverage must be at least 1 and less than the number of rows, but"
                f" got k={k} and k_density_coverage={k_density_coverage} for {num_rows} rows of"
                f" {name}"
            )
    real, fake = center_features(real=real, fake=fake)
    radii, density_radii = squared_kth_neighbor_distances(real, k, k_density_coverage)
    if _needs_float64(fake, real, radii):
        real, fake = real.double(), fake.double()
        radii, density_radii = squared_kth_neighbor_distances(real, k, k_density_coverage)
    (fake_radii,) = squared_kth_neighbor_distances(fake, k)
    num_precise = num_inside = 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for rows, squared in squared_distance_blocks(fake, real, include_rounding_ties=True):
        num_precise += int((squared <= radii).any(1).sum())
        inside = squared <= density_radii
        num_inside += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (squared <= fake_radii[rows, None]).any(0)
    return PRDC(
        precision=num_precise / len(fake),
        recall=float(recalled.double().mean()),
        density=num_inside / (k_density_coverage * len(fake)),
        coverage=float(covered.double().mean()),
    )


def _needs_float64(fake: Tensor, real: Tensor, radii: Tensor) -> bool:
    """Return whether float32 is off by more than a thousandth of the median squared radius.

    Clusters that are tight compared with the distances between them need more digits.
    """
    largest = max(float(features.square().sum(1).max()) for features in (fake, real))
    error = 2 * (real.shape[1] ** 0.5 + 4) * torch.finfo(torch.float32).eps * largest
    return real.dtype == torch.float32 and not error < 1e-3 * float(radii.median())
