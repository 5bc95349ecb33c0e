"""Measures that ask for classes: the distance within each, and the inception score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.checks import finite, matrix, pair
from growgan.metrics.distances import Estimate, frechet_of_samples


@dataclass(frozen=True)
class ByClass:
    """``value``: the mean over ``classes``, which maps each class number to its own value."""

    value: float
    classes: dict[int, float]


def frechet_by_class(
    fake: Tensor, fake_labels: Tensor, real: Tensor, real_labels: Tensor
) -> ByClass:
    """Return the squared Fréchet distance within each class, and its mean: the intra-class FID.

    ``fake`` and ``real`` are features [N, d], their labels class numbers int64 [N]. Miyato & Koyama
    2018, arXiv 1802.05637, section 4. The fewer a class's rows the larger its bias: compare equal
    numbers only. Raises ValueError where a class of either set has fewer than 2 rows in the other.
    """
    fake, real = pair(fake, real)
    for name, labels, count in (
        ("fake_labels", fake_labels, len(fake)),
        ("real_labels", real_labels, len(real)),
    ):
        if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
            got = f"{labels.dtype} {list(labels.shape)}"
            raise ValueError(f"{name} must be class numbers [{count}], but are {got}")
    classes: dict[int, float] = {}
    for label in torch.cat([fake_labels.unique(), real_labels.unique()]).unique().tolist():
        rows = {"fake": fake[fake_labels == label], "real": real[real_labels == label]}
        for name, part in rows.items():
            if len(part) < 2:
                raise ValueError(
                    f"{name} must hold at least 2 rows of class {label}, but has {len(part)}"
                )
        classes[label] = frechet_of_samples(**rows)
    return ByClass(sum(classes.values()) / len(classes), classes)


def inception_score(
    predictions: Tensor, *, probabilities: bool = False, splits: int = 10, seed: int = 0
) -> Estimate:
    """Return the inception score of a classifier's ``predictions`` [N, K] for the fakes.

    They are logits, or ``probabilities``. exp E KL(p(y|x) || p(y)) on each of ``splits`` equal
    parts of the shuffled rows; from 1 (no better than one image) to K. Salimans et al. 2016, arXiv
    1606.03498, section 4. Raises ValueError for fewer rows than splits, NaN or infinity, and
    probabilities that are negative or do not sum to 1 within 1e-3.
    """
    p = finite("predictions", matrix("predictions", predictions))
    if not 1 <= splits <= len(p):
        raise ValueError(
            f"splits must be from 1 to the number of predictions, {len(p)}, but got {splits}"
        )
    if not probabilities:
        p = p.softmax(1)
    elif bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-3).any()):
        raise ValueError(
            f"predictions must be probabilities that sum to 1, but range from {float(p.min()):g} "
            f"and sum to from {float(p.sum(1).min()):g} to {float(p.sum(1).max()):g}"
        )
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(seed))
    # The mean divergence is the entropy of the mean less the mean entropy.
    gains = [
        _entropy(part.mean(0)) - _entropy(part).mean() for part in p[order].tensor_split(splits)
    ]
    return Estimate.over(torch.stack(gains).exp())


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)
