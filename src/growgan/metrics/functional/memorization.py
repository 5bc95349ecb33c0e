"""Fraction of generated images that are closer to a training image than chance allows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from growgan.metrics.functional.nearest_neighbors import center_features, nearest_neighbors
from growgan.metrics.validation import check_same_width


@dataclass(frozen=True)
class Memorization:
    """The training row nearest to each generated row, and how often it is suspiciously near.

    Attributes:
        nearest_indices: Index of the nearest training row, int64 [m].
        distances: Distance to it, [m].
        threshold: Distance below which a generated row counts as a copy.
        fraction: Fraction of the generated rows below the threshold. Lower is better.
        expected_fraction: Mean of ``fraction`` for new samples from the distribution of the real
            images (it is less where distances tie).
    """

    nearest_indices: Tensor
    distances: Tensor
    threshold: float
    fraction: float
    expected_fraction: float


def compute_memorization(
    fake: Tensor, train: Tensor, held_out: Tensor, *, significance_level: float = 0.01
) -> Memorization:
    """Return how many rows of ``fake`` are nearer to ``train`` than new real images would be.

    The threshold is the j-th smallest distance of a held-out row to its nearest training row, where
    j is the floor of ``significance_level`` * (h + 1). Another sample from the same distribution
    falls below it with probability j / (h + 1), whatever the distribution, because all h + 1 ranks
    are equally likely. Compare Meehan et al. 2020, arXiv 2004.05675, who rank all distances; a few
    exact copies hardly change their statistic.

    Args:
        fake: Features of generated images, [m, d].
        train: Features of training images, [n, d].
        held_out: Features of real images that were not trained on, [h, d].
        significance_level: Probability that a new image counts as a copy, at least 1 / (h + 1).

    Raises:
        ValueError: ``significance_level`` is out of range, different d, NaN or infinity, or the
            threshold is 0 because held-out rows are copies of training rows.
    """
    check_same_width(fake=fake, train=train, held_out=held_out)
    rank = int(significance_level * (len(held_out) + 1) + 1e-9)
    if not 0 < significance_level < 1 or rank < 1:
        raise ValueError(
            "significance_level must be less than 1 and at least 1 / (rows of held_out + 1), but is"
            f" {significance_level:g} for {len(held_out)} rows of held_out"
        )
    train, fake, held_out = center_features(train=train, fake=fake, held_out=held_out)
    nearest_indices, distances = nearest_neighbors(fake, train)
    threshold = nearest_neighbors(held_out, train)[1].kthvalue(rank).values
    if threshold == 0:
        raise ValueError(
            f"held_out must not hold copies of train, but at least {rank} of its rows are copies"
        )
    return Memorization(
        nearest_indices=nearest_indices,
        distances=distances,
        threshold=float(threshold),
        fraction=float((distances < threshold).double().mean()),
        expected_fraction=rank / (len(held_out) + 1),
    )
