"""Metrics of features, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray
from reference import (
    Array,
    correlated_gaussian,
    frechet_distance_by_roots,
    frechet_distance_by_sqrtm,
)
from torch import Tensor

from growgan.metrics.functional.frechet_distance import (
    _COLUMN_BLOCK_SIZE,
    frechet_distance,
    frechet_distance_of_features,
    frechet_distance_of_moments,
)
from growgan.metrics.functional.frechet_distance_at_infinity import frechet_distance_at_infinity
from growgan.metrics.functional.inception_score import inception_score
from growgan.metrics.functional.intra_class_frechet_distance import intra_class_frechet_distance
from growgan.metrics.functional.kid import kid, unbiased_squared_mmd
from growgan.metrics.functional.memorization import compute_memorization
from growgan.metrics.functional.moments import Moments
from growgan.metrics.functional.prdc import compute_prdc

BLOCK_SIZE_NAME = "growgan.metrics.functional.nearest_neighbors._MAX_DISTANCES_PER_BLOCK"

# Fréchet distance of samples, and at infinity


@pytest.mark.parametrize(("n", "m"), [(90, 70), (70, 20), (20, 70), (25, 30), (40, 40), (2, 2)])
def test_frechet_of_features_equals_that_of_their_covariances(n: int, m: int) -> None:
    x, y = correlated_gaussian(0, n, 40), correlated_gaussian(1, m, 40, 0.2)
    expected = frechet_distance_by_roots(x.numpy(), y.numpy())
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(y.float(), x.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n", [2, 30, 40, 41, 300])
def test_frechet_of_features_is_zero_for_equal_sets_and_the_squared_shift_for_shifted_ones(
    n: int,
) -> None:
    x = correlated_gaussian(0, n, 40)
    scale = float(x.var(0).sum())
    assert 0 <= frechet_distance_of_features(x, x) <= 1e-9 * scale
    assert frechet_distance_of_features(x + 0.5, x) == pytest.approx(40 * 0.25, abs=1e-9 * scale)
    flat = torch.full_like(x, 3.0)
    assert frechet_distance_of_features(flat, flat - 1) == pytest.approx(40, rel=1e-12)
    expected = float(((x.mean(0) - 3) ** 2).sum()) + scale
    assert frechet_distance_of_features(x, flat) == pytest.approx(expected, rel=1e-9)


def test_frechet_over_several_blocks_equals_the_matrix_square_root() -> None:
    d = _COLUMN_BLOCK_SIZE + 44
    x, y = correlated_gaussian(0, 2 * d, d), correlated_gaussian(1, 2 * d + 9, d, 0.1)
    expected = frechet_distance_by_sqrtm(x.numpy(), y.numpy())
    assert frechet_distance_of_moments(
        Moments.from_features(x), Moments.from_features(y)
    ) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decades", [3, 6, 7.9, 12])
@pytest.mark.parametrize("num_zeros", [0, 1, 150])
def test_frechet_is_precise_for_any_spectrum(decades: float, num_zeros: int) -> None:
    """For covariances with the same axes the distance is the sum of (√a - √b)²."""
    d = 300
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spectrum = np.logspace(0, -decades, d)
    other = spectrum * rng.uniform(0.5, 2, d)
    other[d - num_zeros :] = 0
    cov_a, cov_b = (torch.from_numpy(axes * s @ axes.T) for s in (spectrum, other))
    expected = float(((spectrum**0.5 - other**0.5) ** 2).sum())
    zero = torch.zeros(d, dtype=torch.float64)
    for x, y in ((cov_a, cov_b), (cov_b, cov_a)):
        assert frechet_distance(zero, x, zero, y) == pytest.approx(expected, rel=1e-7)


def test_the_distance_at_infinity_is_the_intercept_of_a_fitted_line() -> None:
    fake, real = correlated_gaussian(0, 400, 6, 0.3), correlated_gaussian(1, 900, 6)
    got = frechet_distance_at_infinity(
        fake, Moments.from_features(real), num_points=7, min_samples=50, seed=4
    )
    generator = torch.Generator().manual_seed(4)
    sizes = [50, 108, 167, 225, 283, 342, 400]
    subsets = [fake[torch.randperm(400, generator=generator)[:size]] for size in sizes]
    values = [frechet_distance_by_sqrtm(subset.numpy(), real.numpy()) for subset in subsets]
    assert got.sizes == tuple(sizes)
    assert got.distances == pytest.approx(values, rel=1e-8)
    intercept = np.polynomial.Polynomial.fit(1 / np.array(sizes), values, 1)(0)
    assert got.value == pytest.approx(float(intercept), rel=1e-6)


def test_the_distance_at_infinity_removes_the_bias_of_few_samples() -> None:
    """For standard Gaussians and their exact moments the distance at infinity is 0."""
    d = 10
    real = Moments(10**9, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(1000, d, generator=rng, dtype=torch.float64) for _ in range(20)]
    plain = np.mean([frechet_distance_of_moments(Moments.from_features(x), real) for x in draws])
    values = [frechet_distance_at_infinity(x, real).value for x in draws]
    # Of order 1 / n: d / n for the mean, d (d + 1) / (4 n) for the covariance.
    assert plain == pytest.approx((d + d * (d + 1) / 4) / 1000, rel=0.1)
    assert abs(np.mean(values)) < 0.1 * plain


def test_the_smallest_subset_is_a_tenth_of_the_rows_or_twice_the_dimensions() -> None:
    eye = Moments.from_features(torch.eye(8))
    for n, d, min_samples in ((400, 8, 40), (100, 8, 16), (20, 8, 10), (3, 8, 2)):
        got = frechet_distance_at_infinity(correlated_gaussian(0, n, d), eye, num_points=2)
        assert got.sizes == (min_samples, n)


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
    x, y = correlated_gaussian(0, n, d), correlated_gaussian(1, m, d, 0.4)
    assert unbiased_squared_mmd(x, y) == pytest.approx(loop_mmd(x.numpy(), y.numpy()), rel=1e-9)


def test_kid_is_the_mean_and_standard_deviation_over_seeded_subsets() -> None:
    fake, real = correlated_gaussian(0, 40, 6, 0.3), correlated_gaussian(1, 50, 6)
    generator = torch.Generator().manual_seed(7)
    values = []
    for _ in range(5):
        x = fake[torch.randperm(40, generator=generator)[:20]]
        y = real[torch.randperm(50, generator=generator)[:20]]
        values.append(loop_mmd(x.numpy(), y.numpy()))
    got = kid(fake, real, subsets=5, subset_size=20, seed=7)
    assert got.value == pytest.approx(np.mean(values), rel=1e-9)
    assert got.std == pytest.approx(np.std(values), rel=1e-9)
    assert kid(fake, real, subsets=5, subset_size=20, seed=8) != got


def test_kid_uses_all_rows_of_a_small_set_and_is_zero_for_equal_constants() -> None:
    x, y = correlated_gaussian(0, 9, 4), correlated_gaussian(1, 9, 4, 1.0)
    got = kid(x, y, subsets=3)
    assert got.value == pytest.approx(loop_mmd(x.numpy(), y.numpy()), rel=1e-9)
    assert got.std == pytest.approx(0, abs=1e-12)
    flat = torch.full((9, 4), 2.0)
    assert kid(flat, flat).value == pytest.approx(0, abs=1e-12)
    # The kernels of constants c and -c give (c² + 1)³ twice, minus twice (1 - c²)³.
    assert kid(flat, -flat).value == pytest.approx(2 * 5**3 + 2 * 3**3, rel=1e-12)


def test_kid_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, 10, 5, generator=generator, dtype=torch.float64)
    values = np.array([unbiased_squared_mmd(a, b) for a, b in x])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5
    assert values.min() < 0 < values.max()


# Intra-class Fréchet distance and Inception score


@pytest.mark.parametrize("counts", [(60, 80), (4, 70), (5, 3)])
def test_the_intra_class_distance_is_that_of_each_class_alone(counts: tuple[int, int]) -> None:
    d = 8
    fake = {
        label: correlated_gaussian(label, counts[0] + label, d, 0.1 * label) for label in (0, 3, 7)
    }
    real = {label: correlated_gaussian(9, counts[1] + 2 * label, d, 0.2) for label in (0, 3, 7)}

    def shuffled(by_class: dict[int, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        features = torch.cat(list(by_class.values()))
        labels = torch.cat([torch.full([len(rows)], c) for c, rows in by_class.items()])
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
        return features[order], labels[order]

    got = intra_class_frechet_distance(*shuffled(fake, 0), *shuffled(real, 1))
    expected = {
        label: frechet_distance_by_roots(fake[label].numpy(), real[label].numpy())
        for label in (0, 3, 7)
    }
    assert list(got.by_class) == [0, 3, 7]
    assert list(got.by_class.values()) == pytest.approx(list(expected.values()), rel=1e-9)
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
    assert got.std == pytest.approx(np.std(scores), rel=1e-9, abs=1e-12)
    same = inception_score(torch.from_numpy(p), probabilities=True, splits=splits, seed=5)
    assert same.value == pytest.approx(got.value, rel=1e-9)


def test_inception_score_runs_from_one_to_the_number_of_classes() -> None:
    confident = torch.eye(7).repeat(20, 1)
    assert inception_score(confident, probabilities=True, splits=1).value == pytest.approx(7)
    assert inception_score(1e4 * confident, splits=1).value == pytest.approx(7)
    uniform = torch.zeros(50, 7)
    got = inception_score(uniform)
    assert (got.value, got.std) == pytest.approx((1, 0), abs=1e-12)


# Precision, recall, density and coverage


def loop_prdc(fake: Array, real: Array, k: int, k_density_coverage: int) -> list[float]:
    def distance(a: Array, b: Array) -> float:
        return float(np.sqrt(((a - b) ** 2).sum()))

    def radius(rows: Array, i: int, k: int) -> float:
        return sorted(distance(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    n, m = len(real), len(fake)
    distances = np.array([[distance(f, r) for r in real] for f in fake])
    fake_radii = np.array([radius(fake, i, k) for i in range(m)])
    radii = np.array([radius(real, i, k) for i in range(n)])
    density_radii = np.array([radius(real, i, k_density_coverage) for i in range(n)])
    precision = sum(any(distances[i, j] <= radii[j] for j in range(n)) for i in range(m)) / m
    recall = sum(any(distances[i, j] <= fake_radii[i] for i in range(m)) for j in range(n)) / n
    num_inside = sum(distances[i, j] <= density_radii[j] for i in range(m) for j in range(n))
    coverage = sum(min(distances[:, j]) <= density_radii[j] for j in range(n)) / n
    return [precision, recall, num_inside / (k_density_coverage * m), coverage]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("m", "n", "d", "k", "k_density_coverage"),
    [(40, 50, 3, 3, 5), (60, 20, 8, 1, 1), (6, 90, 4, 2, 6)],
)
def test_prdc_equals_a_plain_loop_whatever_the_block_size(
    m: int,
    n: int,
    d: int,
    k: int,
    k_density_coverage: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A common offset must cost no precision.
    fake, real = (
        (0.7 * correlated_gaussian(0, m, d, 0.4) + 100).to(dtype),
        (correlated_gaussian(1, n, d) + 100).to(dtype),
    )
    expected = loop_prdc(fake.double().numpy(), real.double().numpy(), k, k_density_coverage)
    for max_distances in (2**24, 7 * n, 1):
        monkeypatch.setattr(BLOCK_SIZE_NAME, max_distances)
        got = compute_prdc(fake, real, k=k, k_density_coverage=k_density_coverage)
        values = [got.precision, got.recall, got.density, got.coverage]
        assert values == pytest.approx(expected, rel=1e-12)
    assert 0 < got.recall < 1
    assert 0 < got.coverage < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "d"), [(200, 3), (100, 500)])
def test_prdc_of_equal_sets_is_perfect_because_balls_are_closed(
    n: int, d: int, dtype: torch.dtype
) -> None:
    """The ball of a row holds the row and its 5 neighbors, the last one on the border."""
    x = correlated_gaussian(0, n, d).to(dtype)
    got = compute_prdc(x.flip(0), x)
    assert (got.precision, got.recall, got.coverage) == (1, 1, 1)
    # In float32, one more pair in a thousand may tie.
    assert got.density == pytest.approx(6 / 5, rel=1e-12 if dtype == torch.float64 else 2e-3)


def test_prdc_of_constants_and_of_distant_sets() -> None:
    flat = torch.full((20, 3), 0.1)
    same = compute_prdc(flat, flat.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(20 / 5)
    x = correlated_gaussian(0, 20, 3)
    for distant in (compute_prdc(flat + 1, flat), compute_prdc(x + 100, x)):
        assert (distant.precision, distant.recall, distant.density, distant.coverage) == (
            0,
            0,
            0,
            0,
        )
    collapsed = compute_prdc(x[:1].repeat(30, 1), x)  # one real row, repeated
    assert (collapsed.precision, collapsed.recall) == (1, pytest.approx(1 / 20))


# Memorization


def test_memorization_equals_a_plain_loop_whatever_the_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, held_out = correlated_gaussian(0, 60, 4), correlated_gaussian(1, 49, 4)
    fake = correlated_gaussian(2, 33, 4)
    fake[:5] = train[[7, 0, 59, 7, 31]]  # copies

    def nearest(x: Tensor) -> tuple[Array, NDArray[np.int64]]:
        distances = np.array([[np.linalg.norm(a - b) for b in train.numpy()] for a in x.numpy()])
        return distances.min(1), distances.argmin(1)

    distances, indices = nearest(fake)
    threshold = np.sort(nearest(held_out)[0])[4]  # significance level 0.1 of 49 + 1
    for max_distances in (2**24, 1):
        monkeypatch.setattr(BLOCK_SIZE_NAME, max_distances)
        got = compute_memorization(fake, train, held_out, significance_level=0.1)
        np.testing.assert_array_equal(got.nearest_indices.numpy(), indices)
        np.testing.assert_allclose(got.distances.numpy(), distances, rtol=1e-9)
        assert got.distances[:5].tolist() == [0] * 5
        assert got.threshold == pytest.approx(threshold, rel=1e-9)
        assert got.fraction == pytest.approx(np.mean(distances < threshold))
        assert got.expected_fraction == pytest.approx(0.1)
    assert got.fraction >= 5 / 33


def test_new_samples_lie_below_the_threshold_as_often_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    results = []
    for _ in range(400):
        fake, train, held_out = (torch.randn(n, 3, generator=generator) for n in (50, 100, 39))
        results.append(compute_memorization(fake, train, held_out, significance_level=0.1))
    fractions = np.array([result.fraction for result in results])
    assert results[0].expected_fraction == pytest.approx(4 / 40)
    assert abs(fractions.mean() - 0.1) < 3 * fractions.std() / 400**0.5
    assert 3 * fractions.std() / 400**0.5 < 0.02


def test_memorization_refuses_held_out_copies() -> None:
    flat = torch.full((30, 2), 5.0)
    with pytest.raises(ValueError, match="held_out must not hold copies of train"):
        compute_memorization(flat, flat, flat, significance_level=0.1)
    shifted = compute_memorization(flat, flat, flat + 1, significance_level=0.1)
    assert (shifted.fraction, shifted.threshold) == (1, pytest.approx(2**0.5))


# Invalid arguments


def test_invalid_features_are_refused_by_name() -> None:
    x, wider = torch.zeros(9, 3), torch.zeros(9, 4)
    with_nan = x.clone()
    with_nan[2, 1] = torch.nan
    labels = torch.zeros(9, dtype=torch.long)
    for metric in (kid, compute_prdc, frechet_distance_of_features):
        with pytest.raises(ValueError, match="fake must be finite, but holds 1 NaN"):
            metric(with_nan, x)
        with pytest.raises(ValueError, match="real must be finite, but holds 1 NaN"):
            metric(x, with_nan)
        with pytest.raises(ValueError, match=r"same number of features d, but got d = \[3, 4\]"):
            metric(x, wider)
    for metric in (kid, frechet_distance_of_features):
        with pytest.raises(ValueError, match=r"real must be \[N, d\] with N >= 2.*1, 3"):
            metric(x, x[:1])
    with pytest.raises(ValueError, match="subsets=0 and subset_size=1000"):
        kid(x, x, subsets=0)
    with pytest.raises(ValueError, match="k=3 and k_density_coverage=5 for 5 rows of real"):
        compute_prdc(x, x[:5])
    with pytest.raises(ValueError, match="k=3 and k_density_coverage=5 for 3 rows of fake"):
        compute_prdc(x[:3], x)
    with pytest.raises(ValueError, match="fake must be finite"):
        intra_class_frechet_distance(with_nan, labels, x, labels)
    with pytest.raises(ValueError, match="predictions must be finite"):
        inception_score(with_nan)


def test_invalid_options_are_refused_with_their_value() -> None:
    x = torch.zeros(9, 3)
    with pytest.raises(ValueError, match="min_samples=9, num_points=15 for 9 rows of fake and 9"):
        frechet_distance_at_infinity(x, Moments.from_features(x), min_samples=9)
    with pytest.raises(ValueError, match="min_samples=2, num_points=15 for 2 rows of fake"):
        frechet_distance_at_infinity(x[:2], Moments.from_features(x))
    with pytest.raises(ValueError, match=r"fake must be \[N, 2\] like real, but got \[9, 3\]"):
        frechet_distance_at_infinity(x, Moments.from_features(x[:, :2]))
    with pytest.raises(ValueError, match="fake must be finite"):
        frechet_distance_at_infinity(x + torch.inf, Moments.from_features(x))
    labels = torch.tensor([0, 0, 0, 4, 4, 4, 4, 4, 1])
    with pytest.raises(ValueError, match="fake must hold at least 2 rows of class 1, but has 1"):
        intra_class_frechet_distance(x, labels, x, labels)
    with pytest.raises(ValueError, match="real must hold at least 2 rows of class 4, but has 0"):
        intra_class_frechet_distance(x[:8], labels[:8], x, torch.zeros(9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"fake_labels must be integers \[9\], but got"):
        intra_class_frechet_distance(x, labels[:8], x, labels)
    with pytest.raises(ValueError, match=r"splits must be .* 9, but got 10"):
        inception_score(x)
    with pytest.raises(
        ValueError, match="sum to 1, but the smallest is 0 and rows sum to between 0 and 0"
    ):
        inception_score(x, probabilities=True, splits=2)
    with pytest.raises(ValueError, match=r"is 0\.01 for 98 rows of held_out"):
        compute_memorization(x, x, torch.zeros(98, 3))
    with pytest.raises(ValueError, match=r"same number of features d, but got d = \[3, 3, 2\]"):
        compute_memorization(x, x, torch.zeros(99, 2))
    with pytest.raises(ValueError, match="held_out must be finite"):
        compute_memorization(x, x, torch.full((99, 3), torch.nan))


@pytest.mark.parametrize("width", [0.05, 0.004, 0.001])
def test_prdc_of_tight_clusters_is_precise_in_float32(width: float) -> None:
    rng = np.random.default_rng(0)
    centers = np.repeat([[0.0], [1.0]], 150, 0)
    real = centers + width * rng.standard_normal((300, 192))
    fake = centers + width * (0.35 + rng.standard_normal((300, 192)))
    exact = compute_prdc(torch.from_numpy(fake), torch.from_numpy(real))
    got = compute_prdc(torch.from_numpy(fake).float(), torch.from_numpy(real).float())
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(got, name) == pytest.approx(getattr(exact, name), abs=0.02), name
