"""Energy score of conditional samples, which rewards accuracy and the right variety."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def energy_score(fake: Float[Tensor, "m d"], target: Float[Tensor, "n d"]) -> tuple[float, float]:
    """Return the energy score of two samples per target, and its standard error. Lower is better.

    It is E|f - t| - ½ E|f - f'| for two samples f and f' of the same condition, with target t.
    Gneiting & Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 21.

    Args:
        fake: Features of the samples, m = 2 n; rows i and n + i belong to target i.
        target: Features of the targets.
    """
    first, second = fake.double().split(len(target))
    distance_to_target = ((first - target).norm(dim=1) + (second - target).norm(dim=1)) / 2
    scores = distance_to_target - (first - second).norm(dim=1) / 2
    return float(scores.mean()), float(scores.std() / len(scores) ** 0.5)
