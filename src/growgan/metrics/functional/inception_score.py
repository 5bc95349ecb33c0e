"""Inception score: confident predictions for each image, varied predictions over all images.

This implementation is our own because torchmetrics ties the score to its own Inception weights;
this one takes the predictions of any classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.metrics.functional.subset_estimate import SubsetEstimate
from growgan.metrics.validation import check_matrix, to_finite_float64


def inception_score(
    predictions: Tensor, *, probabilities: bool = False, splits: int = 10, seed: int = 0
) -> SubsetEstimate:
    """Return exp E KL(p(y|x) || p(y)), from 1 (no better than a single image) to K (best).

    Salimans et al. 2016, arXiv 1606.03498, section 4.

    Args:
        predictions: A classifier's logits for the generated images, [N, K].
        probabilities: Whether ``predictions`` are probabilities instead of logits.
        splits: Number of equal parts of the shuffled rows over which the score is averaged.
        seed: Random seed of the shuffling.

    Raises:
        ValueError: Fewer rows than splits, NaN or infinity, or probabilities that are negative or
            do not sum to 1 within 1e-3.
    """
    check_matrix("predictions", predictions)
    p = to_finite_float64("predictions", predictions)
    if not 1 <= splits <= len(p):
        raise ValueError(
            f"splits must be from 1 to the number of predictions, {len(p)}, but got {splits}"
        )
    if not probabilities:
        p = p.softmax(1)
    elif bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-3).any()):
        raise ValueError(
            "predictions must be probabilities, at least 0 with rows that sum to 1, but the"
            f" smallest is {float(p.min()):g} and rows sum to between {float(p.sum(1).min()):g} and"
            f" {float(p.sum(1).max()):g}"
        )
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))
    # The mean divergence is the entropy of the mean minus the mean entropy.
    divergences = [
        _entropy(part.mean(0)) - _entropy(part).mean() for part in p[order].tensor_split(splits)
    ]
    return SubsetEstimate.from_subsets(torch.stack(divergences).exp())


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
