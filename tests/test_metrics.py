"""The Fréchet distance and the sliced Wasserstein distance against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from reference import (
    correlated_gaussian,
    frechet_distance_by_roots,
    frechet_distance_by_sqrtm,
    smooth_images,
)

from growgan.metrics import (
    Moments,
    SlicedWassersteinResult,
    frechet_distance,
    frechet_distance_of_moments,
    frechet_distance_with_stderr,
    laplacian_pyramid,
    sliced_wasserstein,
)
from growgan.metrics.functional.sliced_wasserstein import level_sizes

# Fréchet distance


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_frechet_equals_the_matrix_square_root(d: int, shift: float) -> None:
    a, b = correlated_gaussian(0, 300, d), correlated_gaussian(1, 250, d, shift)
    if d == 1:  # the closed form of one dimension
        expected = float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    else:
        expected = frechet_distance_by_sqrtm(a.numpy(), b.numpy())
    assert frechet_distance_of_moments(
        Moments.from_features(a), Moments.from_features(b)
    ) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(30, 30), (5, 30), (7, 12), (0, 9), (0, 0)])
def test_frechet_of_singular_covariances_is_exact(rank_a: int, rank_b: int) -> None:
    """For covariances with the same axes the distance is the sum of (√a - √b)²."""
    d = 30
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    spectrum_a, spectrum_b = rng.uniform(0.1, 4, (2, d))
    spectrum_a[rank_a:], spectrum_b[rank_b:] = 0, 0
    cov_a, cov_b = (torch.from_numpy(axes * s @ axes.T) for s in (spectrum_a, spectrum_b))
    expected = float(((spectrum_a**0.5 - spectrum_b**0.5) ** 2).sum())
    zero = torch.zeros(d, dtype=torch.float64)
    for x, y in ((cov_a, cov_b), (cov_b, cov_a)):
        assert frechet_distance(zero, x, zero, y) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_frechet_of_ill_conditioned_covariances_is_precise() -> None:
    spectrum = np.logspace(0, -14, 30)
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(30, 30)))[0]
    cov = torch.from_numpy(axes * spectrum @ axes.T)
    zero = torch.zeros(30, dtype=torch.float64)
    assert frechet_distance(zero, cov, zero, 4 * cov) == pytest.approx(spectrum.sum(), rel=1e-9)


def test_frechet_of_identical_sets_is_zero_even_with_fewer_samples_than_dimensions() -> None:
    for n in (10, 500):
        moments = Moments.from_features(correlated_gaussian(0, n, 64))
        assert (
            0
            <= frechet_distance_of_moments(moments, moments)
            <= 1e-10 * float(moments.covariance.trace())
        )


def test_frechet_with_fewer_samples_than_dimensions_equals_the_cross_gram_matrix() -> None:
    """tr (AB)^½ is the nuclear norm of Xc Ycᵀ / √((n - 1)(m - 1))."""
    x, y = correlated_gaussian(0, 12, 50).numpy(), correlated_gaussian(1, 9, 50, 0.2).numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / (11 * 8) ** 0.5
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() - 2 * nuclear
    expected += (xc**2).sum() / 11 + (yc**2).sum() / 8
    got = frechet_distance_of_moments(
        Moments.from_features(torch.from_numpy(x)), Moments.from_features(torch.from_numpy(y))
    )
    assert got == pytest.approx(expected, rel=1e-9)


def test_moments_divide_by_n_minus_one_and_merge_exactly() -> None:
    x = correlated_gaussian(0, 101, 6, 1e3)
    moments = Moments.from_features(x)
    assert moments.count == 101
    np.testing.assert_allclose(
        moments.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-9
    )
    for sizes in ([50, 51], [1, 99, 1], [1] * 101):
        merged = Moments.from_chunks(torch.split(x, sizes))
        assert merged.count == 101
        torch.testing.assert_close(merged.mean, moments.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.covariance, moments.covariance, rtol=1e-9, atol=1e-9)


def test_invalid_features_are_refused_by_name() -> None:
    x = torch.zeros(4, 3)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="features must be finite, but holds 1 NaN"):
        Moments.from_features(x)
    with pytest.raises(
        ValueError, match=r"features must be \[N, d\] with N >= 1, but got shape \[0, 3\]"
    ):
        Moments.from_features(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="chunks must hold at least one"):
        Moments.from_chunks([])
    one = Moments.from_features(torch.ones(1, 3))
    with pytest.raises(ValueError, match="b must hold at least 2"):
        frechet_distance_of_moments(Moments.from_features(torch.ones(2, 3)), one)
    eye, zero = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"features must be at most 1e\+75"):
        Moments.from_features(torch.full((4, 3), 1e160, dtype=torch.float64))
    with pytest.raises(ValueError, match="cov_b must be finite"):
        frechet_distance(zero, eye, zero, eye * torch.inf)
    with pytest.raises(ValueError, match=r"cov_b must be \[3, 3\], but got \[2, 2\]"):
        frechet_distance(zero, eye, zero, torch.eye(2))
    with pytest.raises(ValueError, match="num_groups=8 for 4 rows of fake"):
        frechet_distance_with_stderr(torch.ones(4, 3), Moments.from_features(torch.ones(2, 3)))


@pytest.mark.parametrize(("n", "d"), [(83, 5), (40, 60)])
def test_the_jackknife_equals_leaving_groups_out_one_by_one(n: int, d: int) -> None:
    fake_features, real_features = correlated_gaussian(0, n, d, 0.2), correlated_gaussian(1, 500, d)
    value, stderr = frechet_distance_with_stderr(
        fake_features, Moments.from_features(real_features), num_groups=8
    )
    fake, real = fake_features.numpy(), real_features.numpy()
    assert value == pytest.approx(frechet_distance_by_roots(fake, real), rel=1e-9)
    without_group = [
        frechet_distance_by_roots(fake[np.arange(n) % 8 != group], real) for group in range(8)
    ]
    deviations = np.array(without_group) - np.mean(without_group)
    expected = np.sqrt(7 / 8 * np.square(deviations).sum())
    assert stderr == pytest.approx(expected, rel=1e-6)


def test_the_jackknife_equals_the_spread_over_new_samples() -> None:
    real = Moments.from_features(correlated_gaussian(0, 4000, 4))
    rng = torch.Generator().manual_seed(0)
    results = [
        frechet_distance_with_stderr(1.3 * torch.randn(400, 4, generator=rng) + 0.5, real)
        for _ in range(200)
    ]
    values, errors = np.array(results).T
    ratio = np.sqrt(np.square(errors).mean()) / values.std(ddof=1)
    assert 0.8 < ratio < 1.25


# Sliced Wasserstein distance


def numpy_pyramid(images: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the Laplacian pyramid, computed by scipy's convolution with mirrored borders."""
    binomial = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256

    def down(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(scipy.ndimage.convolve(x, binomial, mode="mirror")[:, :, ::2, ::2])

    def up(x: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
        upsampled = np.zeros((*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2))
        upsampled[:, :, ::2, ::2] = x
        upsampled = scipy.ndimage.convolve(upsampled, 4 * binomial, mode="mirror")
        return np.asarray(upsampled[:, :, : like.shape[2], : like.shape[3]])

    levels = [images]
    while min(levels[-1].shape[2:]) // 2 >= 16:
        levels.append(down(levels[-1]))
    for i in range(len(levels) - 1):
        levels[i] = levels[i] - up(levels[i + 1], levels[i])
    return levels


def numpy_swd(
    fake: NDArray[np.uint8],
    real: NDArray[np.uint8],
    *,
    patches_per_image: int,
    num_repeats: int,
    directions_per_repeat: int,
    seed: int,
) -> list[float]:
    """Return the distances by level, computed patch by patch and direction by direction."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    pyramids = [numpy_pyramid(x.astype(np.float64)) for x in (fake, real)]
    for level in zip(*pyramids, strict=True):
        n, c, h, w = level[0].shape
        size = min(7, h, w)
        descriptors = []
        for images in level:
            shape = (n, patches_per_image)
            rows = torch.randint(h - size + 1, shape, generator=generator).numpy()
            columns = torch.randint(w - size + 1, shape, generator=generator).numpy()
            patches = np.array(
                [
                    images[i, :, rows[i, j] : rows[i, j] + size, columns[i, j] :][:, :, :size]
                    for i in range(n)
                    for j in range(patches_per_image)
                ]
            )
            patches -= patches.mean((0, 2, 3), keepdims=True)
            patches /= patches.std((0, 2, 3), keepdims=True)
            descriptors.append(patches.reshape(n * patches_per_image, -1))
        num_directions = num_repeats * directions_per_repeat
        directions = torch.randn(num_directions, c, size, size, generator=generator)
        distances = []
        for direction in directions.double().reshape(num_directions, -1).numpy():
            a, b = (np.sort(x @ (direction / np.linalg.norm(direction))) for x in descriptors)
            distances.append(np.abs(a - b).mean() * 1e3)
        result.append(float(np.mean(distances)))
    return result


@pytest.mark.parametrize(
    ("shape", "levels"),
    [
        ((6, 1, 32, 32), ["32x32", "16x16"]),
        ((5, 3, 64, 40), ["64x40", "32x20"]),
        ((4, 4, 33, 67), ["33x67", "17x34"]),
        ((6, 3, 28, 28), ["28x28"]),
        ((9, 1, 4, 6), ["4x6"]),
    ],
)
def test_swd_equals_a_plain_loop_on_the_same_draws(
    shape: tuple[int, ...], levels: list[str]
) -> None:
    fake, real = smooth_images(0, shape, 1.0), smooth_images(1, shape, 1.6)
    expected = numpy_swd(
        fake, real, patches_per_image=20, num_repeats=2, directions_per_repeat=8, seed=5
    )
    got = sliced_wasserstein(
        torch.from_numpy(fake),
        torch.from_numpy(real),
        patches_per_image=20,
        num_repeats=2,
        directions_per_repeat=8,
        seed=5,
    )
    assert list(got.levels) == levels
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)
    assert got.mean == pytest.approx(np.mean(expected), rel=1e-4)


def test_swd_equals_the_plain_loop_where_it_stores_patches_instead_of_images() -> None:
    fake, real = smooth_images(0, (3, 3, 40, 40), 1.0), smooth_images(1, (3, 3, 40, 40), 2.0)
    # 5 patches of 49 pixels are smaller than an image of 40 x 40.
    expected = numpy_swd(
        fake, real, patches_per_image=5, num_repeats=1, directions_per_repeat=8, seed=0
    )
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    got = sliced_wasserstein(a, b, patches_per_image=5, num_repeats=1, directions_per_repeat=8)
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", ["mixed", "brightest last", "one bright image"])
def test_swd_by_histograms_equals_sorting(order: str) -> None:
    shape = (600, 1, 16, 16)  # 76,800 patches are counted in bins, not sorted
    fake, real = smooth_images(0, shape, 1.0), smooth_images(1, shape, 1.1)
    if order == "brightest last":  # the first images do not show the range
        fake = np.concatenate([fake[:200] // 40, fake[200:400] // 8, fake[400:]])
    if order == "one bright image":
        fake, real = fake // 16, real // 16
        fake[-1] = 255
    expected = numpy_swd(
        fake, real, patches_per_image=128, num_repeats=1, directions_per_repeat=4, seed=3
    )
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    got = sliced_wasserstein(a, b, num_repeats=1, directions_per_repeat=4, seed=3)
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)


def test_the_laplacian_pyramid_equals_scipys() -> None:
    images = smooth_images(0, (2, 3, 64, 48), 1.0)
    got = laplacian_pyramid(torch.from_numpy(images))
    expected = numpy_pyramid(images.astype(np.float64))
    assert [tuple(level.shape[2:]) for level in got] == level_sizes(64, 48) == [(64, 48), (32, 24)]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-3)


def test_swd_of_one_pixel_equals_the_closed_form() -> None:
    """With one pixel, directions are ±1: the distance is that of the sorted, normalized pixels."""
    fake = torch.tensor([0.0, 0, 0, 4]).view(4, 1, 1, 1)
    real = torch.tensor([0.0, 0, 2, 2]).view(4, 1, 1, 1)
    a = (np.array([0, 0, 0, 4]) - 1) / 3**0.5
    b = np.array([-1, -1, 1, 1])
    expected, mirrored = np.abs(a - b).mean(), np.abs(np.sort(-a) - b).mean()
    assert expected == pytest.approx(mirrored)
    got = sliced_wasserstein(
        fake, real, patches_per_image=1, num_repeats=1, directions_per_repeat=16
    )
    assert got.mean == pytest.approx(1e3 * expected, rel=1e-5)
    assert got.stderr is None


def test_swd_is_reproducible_for_a_seed_whatever_the_memory_limit() -> None:
    a, b = (torch.from_numpy(smooth_images(i, (40, 1, 32, 32), 1 + i)) for i in range(2))

    def distance(seed: int = 0, max_bytes: int = 2**29) -> SlicedWassersteinResult:
        return sliced_wasserstein(
            a, b, patches_per_image=16, num_repeats=3, seed=seed, max_bytes=max_bytes
        )

    assert distance() == distance()
    assert distance(max_bytes=1).mean == pytest.approx(distance().mean, rel=1e-5)
    other = distance(seed=1)
    assert other != distance()
    assert other.mean == pytest.approx(distance().mean, rel=0.1)
    assert other.stderr is not None
    assert 0 < other.stderr < 0.2 * other.mean


def test_swd_is_small_for_equal_sets_and_finite_for_flat_images() -> None:
    a = torch.from_numpy(smooth_images(0, (100, 1, 32, 32), 2.0))
    flat = torch.full_like(a, 7)
    same, collapsed = (sliced_wasserstein(x, a, num_repeats=1).mean for x in (a, flat))
    assert same < 0.03 * collapsed
    assert 500 < collapsed < 1000  # near the mean |x| of a standard Gaussian, 798
    assert sliced_wasserstein(flat, flat, num_repeats=1).mean == 0


def test_swd_names_invalid_arguments() -> None:
    a = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ValueError, match="fake and real must both be"):
        sliced_wasserstein(a, a[:3])
    with pytest.raises(ValueError, match="patches_per_image must be at least 1, but got 0"):
        sliced_wasserstein(a, a, patches_per_image=0)


def test_swd_does_not_estimate_the_bins_from_the_first_images() -> None:
    """Sets sorted by class may begin with flat images; the bins must cover the others too."""
    rng = np.random.default_rng(0)
    sets = []
    for contrast in (np.ones(600), np.exp(rng.normal(size=600))):
        noise = 25 * rng.standard_normal((600, 1, 16, 16)) * contrast[:, None, None, None]
        pixels = (128 + noise).clip(0, 255).astype(np.uint8)
        pixels[:40] = rng.integers(127, 130, (40, 1, 16, 16))
        sets.append(torch.from_numpy(pixels))
    fake, real = sets
    order = torch.from_numpy(rng.permutation(600))
    in_order, shuffled = (
        sliced_wasserstein(a, b, num_repeats=1, directions_per_repeat=4, seed=3).mean
        for a, b in ((fake, real), (fake[order], real[order]))
    )
    assert in_order == pytest.approx(shuffled, rel=0.05)  # the patches differ
