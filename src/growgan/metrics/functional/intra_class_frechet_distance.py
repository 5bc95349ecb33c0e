"""Mean Fréchet distance within classes (intra-class FID)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.functional.frechet_distance import frechet_distance_of_features
from growgan.metrics.validation import check_same_width


@dataclass(frozen=True)
class IntraClassFrechet:
    """The mean distance over classes, ``value``, and the distance of each class number."""

    value: float
    by_class: dict[int, float]


def intra_class_frechet_distance(
    fake: Tensor, fake_labels: Tensor, real: Tensor, real_labels: Tensor
) -> IntraClassFrechet:
    """Return the squared Fréchet distance within each class, and the mean over classes.

    Miyato & Koyama 2018, arXiv 1802.05637, section 4. The distance of a class is biased upward, the
    more so the fewer rows it has, so compare equal numbers of rows only.

    Args:
        fake: Features of generated images, [n, d].
        fake_labels: Their class numbers, integers [n].
        real: Features of real images, [m, d].
        real_labels: Their class numbers, integers [m].

    Raises:
        ValueError: Shapes that do not match, or a class with fewer than 2 rows in either set.
    """
    check_same_width(fake=fake, real=real)
    for name, labels, count in (
        ("fake_labels", fake_labels, len(fake)),
        ("real_labels", real_labels, len(real)),
    ):
        if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"{name} must be integers [{count}], but got {labels.dtype} {list(labels.shape)}"
            )
    by_class: dict[int, float] = {}
    for label in torch.cat([fake_labels.unique(), real_labels.unique()]).unique().tolist():
        fake_rows, real_rows = fake[fake_labels == label], real[real_labels == label]
        for name, rows in (("fake", fake_rows), ("real", real_rows)):
            if len(rows) < 2:
                raise ValueError(
                    f"{name} must hold at least 2 rows of class {label}, but has {len(rows)}"
                )
        by_class[label] = frechet_distance_of_features(fake_rows, real_rows)
    return IntraClassFrechet(sum(by_class.values()) / len(by_class), by_class)
