"""Measures on sets of features, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray
from reference import Array, by_roots, by_sqrtm, gaussian
from torch import Tensor

from growgan.metrics import Moments, distances, frechet, frechet_distance, neighbours
from growgan.metrics.classes import frechet_by_class, inception_score
from growgan.metrics.distances import frechet_at_infinity, frechet_of_samples
from growgan.metrics.kernel import kid, squared_mmd
from growgan.metrics.neighbours import memorisation, neighbourhoods

# Fréchet distance of samples, and at infinity


@pytest.mark.parametrize(("n", "m"), [(90, 70), (70, 20), (20, 70), (25, 30), (40, 40), (2, 2)])
def test_frechet_of_samples_equals_that_of_their_covariances(n: int, m: int) -> None:
    x, y = gaussian(0, n, 40), gaussian(1, m, 40, 0.2)
    expected = by_roots(x.numpy(), y.numpy())
    assert frechet_of_samples(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_samples(y.float(), x.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [2, 30, 40, 41, 300])
def test_frechet_of_samples_is_zero_for_one_set_and_the_shift_for_a_moved_one(n: int) -> None:
    x = gaussian(0, n, 40)
    scale = float(x.var(0).sum())
    assert 0 <= frechet_of_samples(x, x) <= 1e-9 * scale
    assert frechet_of_samples(x + 0.5, x) == pytest.approx(40 * 0.25, abs=1e-9 * scale)
    flat = torch.full_like(x, 3.0)
    assert frechet_of_samples(flat, flat - 1) == pytest.approx(40, rel=1e-12)
    expected = float(((x.mean(0) - 3) ** 2).sum()) + scale
    assert frechet_of_samples(x, flat) == pytest.approx(expected, rel=1e-9)


def test_frechet_over_several_blocks_equals_the_matrix_square_root() -> None:
    d = distances._BLOCK + 44
    x, y = gaussian(0, 2 * d, d), gaussian(1, 2 * d + 9, d, 0.1)
    expected = by_sqrtm(x.numpy(), y.numpy())
    assert frechet(Moments.of(x), Moments.of(y)) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_samples(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decades", [3, 6, 7.9, 12])
@pytest.mark.parametrize("nulls", [0, 1, 150])
def test_frechet_keeps_its_digits_for_any_spectrum(decades: float, nulls: int) -> None:
    """Covariances that share their axes: the distance is the sum of (√a - √b)²."""
    d = 300
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spectrum = np.logspace(0, -decades, d)
    other = spectrum * rng.uniform(0.5, 2, d)
    other[d - nulls :] = 0
    cov_a, cov_b = (torch.from_numpy(axes * s @ axes.T) for s in (spectrum, other))
    expected = float(((spectrum**0.5 - other**0.5) ** 2).sum())
    zero = torch.zeros(d, dtype=torch.float64)
    for x, y in ((cov_a, cov_b), (cov_b, cov_a)):
        assert frechet_distance(zero, x, zero, y) == pytest.approx(expected, rel=1e-7)


def test_the_distance_at_infinity_equals_a_line_through_distances_of_the_same_draws() -> None:
    fake, real = gaussian(0, 400, 6, 0.3), gaussian(1, 900, 6)
    got = frechet_at_infinity(fake, Moments.of(real), points=7, smallest=50, seed=4)
    draws = torch.Generator().manual_seed(4)
    sizes = [50, 108, 167, 225, 283, 342, 400]
    parts = [fake[torch.randperm(400, generator=draws)[:size]] for size in sizes]
    values = [by_sqrtm(part.numpy(), real.numpy()) for part in parts]
    assert got.sizes == tuple(sizes)
    assert got.distances == pytest.approx(values, rel=1e-8)
    intercept = np.polynomial.Polynomial.fit(1 / np.array(sizes), values, 1)(0)
    assert got.value == pytest.approx(float(intercept), rel=1e-6)


def test_the_distance_at_infinity_removes_the_bias_of_few_fakes() -> None:
    """Standard Gaussians against their exact moments: the distance at infinity is 0."""
    d = 10
    real = Moments(10**9, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(1000, d, generator=rng, dtype=torch.float64) for _ in range(20)]
    plain = np.mean([frechet(Moments.of(x), real) for x in draws])
    values = [frechet_at_infinity(x, real).value for x in draws]
    # Of order 1 / n: d / n for the mean, d (d + 1) / (4 n) for the covariance.
    assert plain == pytest.approx((d + d * (d + 1) / 4) / 1000, rel=0.1)
    assert abs(np.mean(values)) < 0.1 * plain


def test_the_smallest_size_is_a_tenth_or_twice_the_dimensions() -> None:
    eye = Moments.of(torch.eye(8))
    for n, d, smallest in ((400, 8, 40), (100, 8, 16), (20, 8, 10), (3, 8, 2)):
        got = frechet_at_infinity(gaussian(0, n, d), eye, points=2)
        assert got.sizes == (smallest, n)


# Kernel distance


def loop_mmd(x: Array, y: Array) -> float:
    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    across = sum(kernel(a, b) for a in x for b in y)
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 5), (2, 2, 30), (7, 20, 1)])
def test_mmd_equals_a_plain_loop(n: int, m: int, d: int) -> None:
    x, y = gaussian(0, n, d), gaussian(1, m, d, 0.4)
    assert squared_mmd(x, y) == pytest.approx(loop_mmd(x.numpy(), y.numpy()), rel=1e-9)


def test_kid_is_the_mean_and_deviation_over_seeded_subsets() -> None:
    fake, real = gaussian(0, 40, 6, 0.3), gaussian(1, 50, 6)
    draws = torch.Generator().manual_seed(7)
    values = []
    for _ in range(5):
        x = fake[torch.randperm(40, generator=draws)[:20]]
        y = real[torch.randperm(50, generator=draws)[:20]]
        values.append(loop_mmd(x.numpy(), y.numpy()))
    got = kid(fake, real, subsets=5, size=20, seed=7)
    assert got.value == pytest.approx(np.mean(values), rel=1e-9)
    assert got.deviation == pytest.approx(np.std(values), rel=1e-9)
    assert kid(fake, real, subsets=5, size=20, seed=8) != got


def test_kid_takes_all_rows_where_there_are_fewer_and_is_zero_for_equal_sets_of_copies() -> None:
    x, y = gaussian(0, 9, 4), gaussian(1, 9, 4, 1.0)
    got = kid(x, y, subsets=3)
    assert got.value == pytest.approx(loop_mmd(x.numpy(), y.numpy()), rel=1e-9)
    assert got.deviation == pytest.approx(0, abs=1e-12)
    flat = torch.full((9, 4), 2.0)
    assert kid(flat, flat).value == pytest.approx(0, abs=1e-12)
    # Kernels of constants c and -c: (c² + 1)³ twice, less twice (1 - c²)³.
    assert kid(flat, -flat).value == pytest.approx(2 * 5**3 + 2 * 3**3, rel=1e-12)


def test_kid_is_unbiased() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 10, 5, generator=draws, dtype=torch.float64)
    values = np.array([squared_mmd(a, b) for a, b in x])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert values.min() < 0 < values.max()


# By class


@pytest.mark.parametrize("counts", [(60, 80), (4, 70), (5, 3)])
def test_the_distance_by_class_is_that_of_each_class_alone(counts: tuple[int, int]) -> None:
    d = 8
    fakes = {label: gaussian(label, counts[0] + label, d, 0.1 * label) for label in (0, 3, 7)}
    reals = {label: gaussian(9, counts[1] + 2 * label, d, 0.2) for label in (0, 3, 7)}
    sets: list[Tensor] = []
    for number, parts in enumerate((fakes, reals)):
        features, labels = torch.cat(list(parts.values())), []
        for label, part in parts.items():
            labels += [label] * len(part)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(number))
        sets += [features[order], torch.tensor(labels)[order]]
    got = frechet_by_class(*sets)
    expected = {c: by_roots(fakes[c].numpy(), reals[c].numpy()) for c in (0, 3, 7)}
    assert list(got.classes) == [0, 3, 7]
    assert list(got.classes.values()) == pytest.approx(list(expected.values()), rel=1e-9)
    assert got.value == pytest.approx(np.mean(list(expected.values())), rel=1e-9)


def loop_inception(p: Array, parts: list[Array]) -> list[float]:
    scores = []
    for index in parts:
        part = p[index]
        marginal = part.mean(0)
        divergences = [float(scipy.special.rel_entr(row, marginal).sum()) for row in part]
        scores.append(float(np.exp(np.mean(divergences))))
    return scores


@pytest.mark.parametrize(("n", "splits"), [(100, 10), (47, 10), (10, 10), (30, 1)])
def test_inception_score_equals_a_plain_loop(n: int, splits: int) -> None:
    logits = 3 * torch.randn(n, 6, generator=torch.Generator().manual_seed(0)).double()
    p = scipy.special.softmax(logits.numpy(), axis=1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5)).numpy()
    scores = loop_inception(p, np.array_split(order, splits))
    got = inception_score(logits, splits=splits, seed=5)
    assert got.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert got.deviation == pytest.approx(np.std(scores), rel=1e-9, abs=1e-12)
    same = inception_score(torch.from_numpy(p), probabilities=True, splits=splits, seed=5)
    assert same.value == pytest.approx(got.value, rel=1e-9)


def test_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    sure = torch.eye(7).repeat(20, 1)
    assert inception_score(sure, probabilities=True, splits=1).value == pytest.approx(7)
    assert inception_score(1e4 * sure, splits=1).value == pytest.approx(7)
    alike = torch.zeros(50, 7)
    got = inception_score(alike)
    assert (got.value, got.deviation) == pytest.approx((1, 0), abs=1e-12)


# Neighbours


def loop_neighbourhoods(fake: Array, real: Array, k: int, k_density: int) -> list[float]:
    def distance(a: Array, b: Array) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(rows: Array, i: int, k: int) -> float:
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    n, m = len(real), len(fake)
    gaps = np.array([[distance(f, r) for r in real] for f in fake])
    fake_radii = np.array([radius(fake, i, k) for i in range(m)])
    radii = np.array([radius(real, i, k) for i in range(n)])
    density_radii = np.array([radius(real, i, k_density) for i in range(n)])
    precision = sum(any(gaps[i, j] <= radii[j] for j in range(n)) for i in range(m)) / m
    recall = sum(any(gaps[i, j] <= fake_radii[i] for i in range(m)) for j in range(n)) / n
    inside = sum(gaps[i, j] <= density_radii[j] for i in range(m) for j in range(n))
    coverage = sum(min(gaps[:, j]) <= density_radii[j] for j in range(n)) / n
    return [precision, recall, inside / (k_density * m), coverage]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("m", "n", "d", "k", "k_density"), [(40, 50, 3, 3, 5), (60, 20, 8, 1, 1), (6, 90, 4, 2, 6)]
)
def test_neighbourhoods_equal_a_plain_loop_whatever_the_block(
    m: int,
    n: int,
    d: int,
    k: int,
    k_density: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A common offset must cost no digits.
    fake, real = (0.7 * gaussian(0, m, d, 0.4) + 100).to(dtype), (gaussian(1, n, d) + 100).to(dtype)
    expected = loop_neighbourhoods(fake.double().numpy(), real.double().numpy(), k, k_density)
    for entries in (2**24, 7 * n, 1):
        monkeypatch.setattr(neighbours, "_ENTRIES", entries)
        got = neighbourhoods(fake, real, k=k, k_density=k_density)
        values = [got.precision, got.recall, got.density, got.coverage]
        assert values == pytest.approx(expected, rel=1e-12)
    assert 0 < got.recall < 1
    assert 0 < got.coverage < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "d"), [(200, 3), (100, 500)])
def test_neighbourhoods_of_one_set_are_whole_for_their_borders_count(
    n: int, d: int, dtype: torch.dtype
) -> None:
    """Each row's ball holds itself and its 5 neighbours, the last on its border."""
    x = gaussian(0, n, d).to(dtype)
    got = neighbourhoods(x.flip(0), x)
    assert (got.precision, got.recall, got.coverage) == (1, 1, 1)
    # In float32 one more pair in a thousand may be a tie.
    assert got.density == pytest.approx(6 / 5, rel=1e-12 if dtype == torch.float64 else 2e-3)


def test_neighbourhoods_of_constants_and_of_sets_far_apart() -> None:
    flat = torch.full((20, 3), 0.1)
    same = neighbourhoods(flat, flat.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(20 / 5)
    x = gaussian(0, 20, 3)
    for far in (neighbourhoods(flat + 1, flat), neighbourhoods(x + 100, x)):
        assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = neighbourhoods(x[:1].repeat(30, 1), x)  # one real, again and again
    assert (collapsed.precision, collapsed.recall) == (1, pytest.approx(1 / 20))


def test_memorisation_finds_the_nearest_rows_by_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, held_out = gaussian(0, 60, 4), gaussian(1, 49, 4)
    fake = gaussian(2, 33, 4)
    fake[:5] = train[[7, 0, 59, 7, 31]]  # copies

    def nearest(x: Tensor) -> tuple[Array, NDArray[np.int64]]:
        gaps = np.array([[np.linalg.norm(a - b) for b in train.numpy()] for a in x.numpy()])
        return gaps.min(1), gaps.argmin(1)

    distance, index = nearest(fake)
    threshold = np.sort(nearest(held_out)[0])[4]  # level 0.1 of 49 + 1
    for entries in (2**24, 1):
        monkeypatch.setattr(neighbours, "_ENTRIES", entries)
        got = memorisation(fake, train, held_out, level=0.1)
        np.testing.assert_array_equal(got.nearest.numpy(), index)
        np.testing.assert_allclose(got.distances.numpy(), distance, rtol=1e-9)
        assert got.distances[:5].tolist() == [0] * 5
        assert got.threshold == pytest.approx(threshold, rel=1e-9)
        assert got.share == pytest.approx(np.mean(distance < threshold))
        assert got.expected == pytest.approx(0.1)
    assert got.share >= 5 / 33


def test_new_draws_lie_below_the_threshold_as_often_as_expected() -> None:
    draws = torch.Generator().manual_seed(0)
    results = [
        memorisation(*(torch.randn(n, 3, generator=draws) for n in (50, 100, 39)), level=0.1)
        for _ in range(400)
    ]
    shares = np.array([result.share for result in results])
    assert results[0].expected == pytest.approx(4 / 40)
    assert abs(shares.mean() - 0.1) < 3 * shares.std() / 400**0.5
    assert 3 * shares.std() / 400**0.5 < 0.02


def test_memorisation_says_nothing_where_new_reals_are_copies_too() -> None:
    flat = torch.full((30, 2), 5.0)
    with pytest.raises(ValueError, match="held_out holds rows of train itself"):
        memorisation(flat, flat, flat, level=0.1)
    moved = memorisation(flat, flat, flat + 1, level=0.1)
    assert (moved.share, moved.threshold) == (1, pytest.approx(2**0.5))


# What is refused


def test_bad_sets_are_refused_by_name() -> None:
    x, wide = torch.zeros(9, 3), torch.zeros(9, 4)
    bad = x.clone()
    bad[2, 1] = torch.nan
    labels = torch.zeros(9, dtype=torch.long)
    for measure in (kid, neighbourhoods, frechet_of_samples):
        with pytest.raises(ValueError, match="fake must be finite, but holds 1 NaN"):
            measure(bad, x)
        with pytest.raises(ValueError, match="real must be finite, but holds 1 NaN"):
            measure(x, bad)
        with pytest.raises(ValueError, match=r"of one length, but are \[9, 3\] and \[9, 4\]"):
            measure(x, wide)
    for measure in (kid, frechet_of_samples):
        with pytest.raises(ValueError, match=r"real must be \[N, d\] with N of at least 2.*1, 3"):
            measure(x, x[:1])
    with pytest.raises(ValueError, match="are 0 and 1000"):
        kid(x, x, subsets=0)
    with pytest.raises(ValueError, match="are 3 and 5 for 5 rows of real"):
        neighbourhoods(x, x[:5])
    with pytest.raises(ValueError, match="are 3 and 5 for 3 rows of fake"):
        neighbourhoods(x[:3], x)
    with pytest.raises(ValueError, match="fake must be finite"):
        frechet_by_class(bad, labels, x, labels)
    with pytest.raises(ValueError, match="predictions must be finite"):
        inception_score(bad)


def test_bad_settings_are_refused_by_value() -> None:
    x = torch.zeros(9, 3)
    with pytest.raises(ValueError, match="smallest=9, points=15 for 9 fakes and 9 reals"):
        frechet_at_infinity(x, Moments.of(x), smallest=9)
    with pytest.raises(ValueError, match="smallest=2, points=15 for 2 fakes"):
        frechet_at_infinity(x[:2], Moments.of(x))
    with pytest.raises(ValueError, match=r"fake must be \[N, 2\] as real is, but is \[9, 3\]"):
        frechet_at_infinity(x, Moments.of(x[:, :2]))
    with pytest.raises(ValueError, match="fake must be finite"):
        frechet_at_infinity(x + torch.inf, Moments.of(x))
    labels = torch.tensor([0, 0, 0, 4, 4, 4, 4, 4, 1])
    with pytest.raises(ValueError, match="fake must hold at least 2 rows of class 1, but has 1"):
        frechet_by_class(x, labels, x, labels)
    with pytest.raises(ValueError, match="real must hold at least 2 rows of class 4, but has 0"):
        frechet_by_class(x[:8], labels[:8], x, torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"fake_labels must be class numbers \[9\], but are"):
        frechet_by_class(x, labels[:8], x, labels)
    with pytest.raises(ValueError, match=r"splits must be .* 9, but got 10"):
        inception_score(x)
    with pytest.raises(ValueError, match="sum to 1, but range from 0 and sum to from 0 to 0"):
        inception_score(x, probabilities=True, splits=2)
    with pytest.raises(ValueError, match=r"is 0\.01 for 98 held-out rows"):
        memorisation(x, x, torch.zeros(98, 3))
    with pytest.raises(ValueError, match=r"of one length, but have \[3, 3, 2\]"):
        memorisation(x, x, torch.zeros(99, 2))
    with pytest.raises(ValueError, match="held_out must be finite"):
        memorisation(x, x, torch.full((99, 3), torch.nan))


@pytest.mark.parametrize("width", [0.05, 0.004, 0.001])
def test_tight_clusters_are_told_apart_in_float32(width: float) -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0], [1.0]], 150, 0)
    real = centres + width * rng.standard_normal((300, 192))
    fake = centres + width * (0.35 + rng.standard_normal((300, 192)))
    exact = neighbourhoods(torch.from_numpy(fake), torch.from_numpy(real))
    found = neighbourhoods(torch.from_numpy(fake).float(), torch.from_numpy(real).float())
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), abs=0.02), name
