"""What nearest neighbours tell: how real fakes are, how varied, and whether they are copies.

Distances are found in blocks of rows, in the features' own precision, on their device. Features are
centred first, so that a common offset costs no digits; a squared distance then errs by about
√d ε (|x|² + |y|²), where ε is 1e-7 for float32 and 2e-16 for float64, and ties are counted as such
within that. Where that is much beside the radii, float64 is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.metrics.checks import check_finite, matrix, pair

_ENTRIES = 2**24  # distances held at once


@dataclass(frozen=True)
class Neighbourhoods:
    """``precision`` and ``density``: how real the fakes are; ``recall`` and ``coverage``: how
    varied. All from 0 to 1 but density, which is 1 on average for fakes from the reals' own
    distribution and can exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Memorisation:
    """The nearest training row of each fake, and how often it is nearer than chance allows.

    ``nearest`` int64 [M] and ``distances`` [M]: the row's index and distance. ``share`` of the
    fakes have a distance below ``threshold``. For fakes that are new draws from the reals'
    distribution it is ``expected`` on average (less, where distances tie).
    """

    nearest: Tensor
    distances: Tensor
    threshold: float
    share: float
    expected: float


def neighbourhoods(fake: Tensor, real: Tensor, *, k: int = 3, k_density: int = 5) -> Neighbourhoods:
    """Return precision, recall, density and coverage of features ``fake`` [M, d], ``real`` [N, d].

    Improved precision and recall with ``k`` neighbours (Kynkäänniemi et al. 2019, arXiv 1904.06991,
    eq. 1 and 2), density and coverage with ``k_density`` (Naeem et al. 2020, arXiv 2002.09797,
    eq. 3 and 4), all with closed balls: a row on the border is inside. Takes the memory of both
    sets once more and a few blocks. Raises ValueError unless each set has more rows than
    neighbours, and for different d, NaN and infinity.
    """
    fake, real = pair(fake, real)
    for name, count, least in (("fake", len(fake), k), ("real", len(real), max(k, k_density))):
        if min(k, k_density) < 1 or count <= least:
            raise ValueError(
                f"k and k_density must be at least 1 and less than the number of rows, but are "
                f"{k} and {k_density} for {count} rows of {name}"
            )
    real, fake = _centred(real=real, fake=fake)
    radii, density_radii = _radii(real, k, k_density)
    if _coarse(fake, real, radii):
        real, fake = real.double(), fake.double()
        radii, density_radii = _radii(real, k, k_density)
    (fake_radii,) = _radii(fake, k)
    precise = dense = 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for rows, squared in _blocks(fake, real, ties=True):
        precise += int((squared <= radii).any(1).sum())
        inside = squared <= density_radii
        dense += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (squared <= fake_radii[rows, None]).any(0)
    return Neighbourhoods(
        precision=precise / len(fake),
        recall=float(recalled.double().mean()),
        density=dense / (k_density * len(fake)),
        coverage=float(covered.double().mean()),
    )


def memorisation(
    fake: Tensor, train: Tensor, held_out: Tensor, *, level: float = 0.01
) -> Memorisation:
    """Return how many of ``fake`` [M, d] lie nearer to ``train`` [N, d] than new images would.

    ``held_out`` [H, d] are features of reals that were not trained on. The threshold is their j-th
    smallest distance to a training row, with j the floor of ``level`` (H + 1): a further draw from
    the same distribution falls below it with probability j / (H + 1), whatever that distribution,
    for all H + 1 ranks are equally likely. Compare Meehan et al. 2020, arXiv 2004.05675, who rank
    all distances, which a few exact copies hardly move. Raises ValueError for a j of 0, different
    d, NaN and infinity, and a threshold of 0.
    """
    fake, train = matrix("fake", fake), matrix("train", train)
    j = int(level * (len(matrix("held_out", held_out)) + 1) + 1e-9)
    if not 0 < level < 1 or j < 1:
        raise ValueError(
            f"level must be less than 1 and at least 1 / (held-out rows + 1), but is {level:g} "
            f"for {len(held_out)} held-out rows"
        )
    widths = [part.shape[1] for part in (fake, train, held_out)]
    if len(set(widths)) > 1:
        raise ValueError(
            f"fake, train and held_out must have features of one length, but have {widths}"
        )
    train, fake, held_out = _centred(train=train, fake=fake, held_out=held_out)
    rows, distances = nearest(fake, train)
    threshold = nearest(held_out, train)[1].kthvalue(j).values
    if threshold == 0:
        raise ValueError(
            f"held_out holds rows of train itself ({j} or more): what is as near is no copy by that"
        )
    share = float((distances < threshold).double().mean())
    return Memorisation(rows, distances, float(threshold), share, j / (len(held_out) + 1))


def _centred(**sets: Tensor) -> list[Tensor]:
    """Return finite features as float32, or float64 if any is, less the mean of the first."""
    for name, features in sets.items():
        check_finite(name, features)
    double = any(features.dtype == torch.float64 for features in sets.values())
    dtype = torch.float64 if double else torch.float32
    mean = next(iter(sets.values())).to(dtype).mean(0)
    return [features.to(dtype) - mean for features in sets.values()]


def _coarse(fake: Tensor, real: Tensor, radii: Tensor) -> bool:
    """Return whether float32 errs by more than a thousandth of a usual squared radius.

    Clusters that are tight beside the distances between them need more digits.
    """
    largest = max(float(each.square().sum(1).max()) for each in (fake, real))
    error = 2 * (real.shape[1] ** 0.5 + 4) * torch.finfo(torch.float32).eps * largest
    return real.dtype == torch.float32 and not error < 1e-3 * float(radii.median())


def _blocks(x: Tensor, y: Tensor, *, ties: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of ``x`` [n, d] and their squared distances to all of ``y`` [m, d], [rows, m].

    With ``ties``, each is less by about its rounding error, so that what equals a radius is found
    within it.
    """
    x_norms, y_norms = x.square().sum(1), y.square().sum(1)
    shrink = 1 - (x.shape[1] ** 0.5 + 4) * torch.finfo(x.dtype).eps if ties else 1.0
    step = max(_ENTRIES // len(y), 1)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        norms = (x_norms[rows, None] + y_norms).mul_(shrink)
        yield rows, norms.addmm_(x[rows], y.T, alpha=-2).clamp_(min=0)


def _radii(x: Tensor, *ks: int) -> Tensor:
    """Return, for each k, the squared distance of ``x`` [n, d] to the k-th nearest other row.

    Shape [ks, n].
    """
    # The nearest of all is the row itself.
    blocks = [squared.topk(max(ks) + 1, largest=False).values for _, squared in _blocks(x, x)]
    return torch.cat(blocks).T[list(ks)]


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index in ``y`` of the row nearest to each of ``x``, int64 [n], and its distance.

    The distance is that of the two rows' difference: exactly 0 for a copy.
    """
    indices = torch.cat([squared.argmin(1) for _, squared in _blocks(x, y)])
    pairs = zip(x.split(4096), indices.split(4096), strict=True)
    return indices, torch.cat([(rows - y[index]).norm(dim=1) for rows, index in pairs])
