"""Distances against independent references."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from reference import by_roots, by_sqrtm, gaussian

from growgan.metrics import (
    Moments,
    SlicedWasserstein,
    frechet,
    frechet_distance,
    frechet_with_error,
    laplacian_pyramid,
    sliced_wasserstein,
)
from growgan.metrics.sliced import level_sizes

# Fréchet distance


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_frechet_equals_the_matrix_square_root(d: int, shift: float) -> None:
    a, b = gaussian(0, 300, d), gaussian(1, 250, d, shift)
    if d == 1:  # the closed form of one dimension
        expected = float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    else:
        expected = by_sqrtm(a.numpy(), b.numpy())
    assert frechet(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(30, 30), (5, 30), (7, 12), (0, 9), (0, 0)])
def test_frechet_of_singular_covariances_is_exact(rank_a: int, rank_b: int) -> None:
    """Covariances that share their axes: the distance is the sum of (√a - √b)²."""
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


def test_frechet_of_an_ill_conditioned_pair_keeps_its_digits() -> None:
    spectrum = np.logspace(0, -14, 30)
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(30, 30)))[0]
    cov = torch.from_numpy(axes * spectrum @ axes.T)
    zero = torch.zeros(30, dtype=torch.float64)
    assert frechet_distance(zero, cov, zero, 4 * cov) == pytest.approx(spectrum.sum(), rel=1e-9)


def test_frechet_of_identical_sets_is_zero_also_with_fewer_samples_than_dimensions() -> None:
    for n in (10, 500):
        moments = Moments.of(gaussian(0, n, 64))
        assert 0 <= frechet(moments, moments) <= 1e-10 * float(moments.covariance.trace())


def test_frechet_with_fewer_samples_than_dimensions_equals_the_cross_gram_matrix() -> None:
    """tr (AB)^½ is the nuclear norm of Xc Ycᵀ / √((n - 1)(m - 1)), which needs no covariance."""
    x, y = gaussian(0, 12, 50).numpy(), gaussian(1, 9, 50, 0.2).numpy()
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / (11 * 8) ** 0.5
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() - 2 * nuclear
    expected += (xc**2).sum() / 11 + (yc**2).sum() / 8
    got = frechet(Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y)))
    assert got == pytest.approx(expected, rel=1e-9)


def test_moments_divide_by_n_minus_one_and_merge_exactly() -> None:
    x = gaussian(0, 101, 6, 1e3)
    whole = Moments.of(x)
    assert whole.count == 101
    np.testing.assert_allclose(whole.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-9)
    for sizes in ([50, 51], [1, 99, 1], [1] * 101):
        merged = Moments.of_chunks(torch.split(x, sizes))
        assert merged.count == 101
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-9)


def test_bad_features_are_refused_by_name() -> None:
    x = torch.zeros(4, 3)
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="features must be finite, but holds 1 NaN"):
        Moments.of(x)
    with pytest.raises(ValueError, match=r"features must be \[N, d\].* is \[0, 3\]"):
        Moments.of(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="chunks must hold at least one"):
        Moments.of_chunks([])
    one = Moments.of(torch.ones(1, 3))
    with pytest.raises(ValueError, match="b must hold at least 2"):
        frechet(Moments.of(torch.ones(2, 3)), one)
    eye, zero = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match=r"features must be at most 1e\+75"):
        Moments.of(torch.full((4, 3), 1e160, dtype=torch.float64))
    with pytest.raises(ValueError, match="cov_b must be finite"):
        frechet_distance(zero, eye, zero, eye * torch.inf)
    with pytest.raises(ValueError, match=r"cov_b must be \[3, 3\], but is \[2, 2\]"):
        frechet_distance(zero, eye, zero, torch.eye(2))
    with pytest.raises(ValueError, match="groups=8 for 4 fakes"):
        frechet_with_error(torch.ones(4, 3), Moments.of(torch.ones(2, 3)))


@pytest.mark.parametrize(("n", "d"), [(83, 5), (40, 60)])
def test_the_jackknife_equals_leaving_groups_out_one_by_one(n: int, d: int) -> None:
    fakes, reals = gaussian(0, n, d, 0.2), gaussian(1, 500, d)
    value, stderr = frechet_with_error(fakes, Moments.of(reals), groups=8)
    fakes, reals = fakes.numpy(), reals.numpy()
    assert value == pytest.approx(by_roots(fakes, reals), rel=1e-9)
    left = [by_roots(fakes[np.arange(n) % 8 != group], reals) for group in range(8)]
    expected = np.sqrt(7 / 8 * np.square(np.array(left) - np.mean(left)).sum())
    assert stderr == pytest.approx(expected, rel=1e-6)


def test_the_jackknife_is_as_large_as_the_spread_over_new_draws() -> None:
    real = Moments.of(gaussian(0, 4000, 4))
    rng = torch.Generator().manual_seed(0)
    results = [
        frechet_with_error(1.3 * torch.randn(400, 4, generator=rng) + 0.5, real) for _ in range(200)
    ]
    values, errors = np.array(results).T
    ratio = np.sqrt(np.square(errors).mean()) / values.std(ddof=1)
    assert 0.8 < ratio < 1.25


# Sliced Wasserstein distance


def numpy_pyramid(images: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The Laplacian pyramid by scipy's convolution with mirrored borders."""
    binomial = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256

    def down(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(scipy.ndimage.convolve(x, binomial, mode="mirror")[:, :, ::2, ::2])

    def up(x: NDArray[np.float64], like: NDArray[np.float64]) -> NDArray[np.float64]:
        wide = np.zeros((*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2))
        wide[:, :, ::2, ::2] = x
        wide = scipy.ndimage.convolve(wide, 4 * binomial, mode="mirror")
        return np.asarray(wide[:, :, : like.shape[2], : like.shape[3]])

    levels = [images]
    while min(levels[-1].shape[2:]) // 2 >= 16:
        levels.append(down(levels[-1]))
    for i in range(len(levels) - 1):
        levels[i] = levels[i] - up(levels[i + 1], levels[i])
    return levels


def numpy_swd(
    fake: NDArray[np.uint8],
    real: NDArray[np.uint8],
    patches: int,
    repeats: int,
    directions: int,
    seed: int,
) -> list[float]:
    """The published protocol, patch by patch and direction by direction."""
    draws = torch.Generator().manual_seed(seed)
    result = []
    pyramids = [numpy_pyramid(x.astype(np.float64)) for x in (fake, real)]
    for level in zip(*pyramids, strict=True):
        n, c, h, w = level[0].shape
        side = min(7, h, w)
        descriptors = []
        for images in level:
            rows = torch.randint(h - side + 1, (n, patches), generator=draws).numpy()
            columns = torch.randint(w - side + 1, (n, patches), generator=draws).numpy()
            cut = np.array(
                [
                    images[i, :, rows[i, j] : rows[i, j] + side, columns[i, j] :][:, :, :side]
                    for i in range(n)
                    for j in range(patches)
                ]
            )
            cut -= cut.mean((0, 2, 3), keepdims=True)
            cut /= cut.std((0, 2, 3), keepdims=True)
            descriptors.append(cut.reshape(n * patches, -1))
        axes = torch.randn(repeats * directions, c, side, side, generator=draws)
        gaps = []
        for axis in axes.double().reshape(len(axes), -1).numpy():
            a, b = (np.sort(x @ (axis / np.linalg.norm(axis))) for x in descriptors)
            gaps.append(np.abs(a - b).mean() * 1e3)
        result.append(float(np.mean(gaps)))
    return result


def pictures(seed: int, shape: tuple[int, ...], smooth: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=shape)
    noise = scipy.ndimage.gaussian_filter(noise, (0, 0, smooth, smooth))
    pixels: NDArray[np.uint8] = np.clip(noise / noise.std() * 50 + 120, 0, 255).astype(np.uint8)
    return pixels


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
    fake, real = pictures(0, shape, 1.0), pictures(1, shape, 1.6)
    expected = numpy_swd(fake, real, 20, 2, 8, seed=5)
    got = sliced_wasserstein(
        torch.from_numpy(fake), torch.from_numpy(real), patches=20, repeats=2, directions=8, seed=5
    )
    assert list(got.levels) == levels
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)
    assert got.average == pytest.approx(np.mean(expected), rel=1e-4)


def test_swd_holds_patches_alone_where_images_are_larger() -> None:
    fake, real = pictures(0, (3, 3, 40, 40), 1.0), pictures(1, (3, 3, 40, 40), 2.0)
    expected = numpy_swd(fake, real, 5, 1, 8, seed=0)  # 5 x 49 pixels of patches < 40 x 40
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    got = sliced_wasserstein(a, b, patches=5, repeats=1, directions=8)
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", ["mixed", "the brightest last", "one alone bright"])
def test_swd_of_many_patches_is_that_of_sorting(order: str) -> None:
    shape = (600, 1, 16, 16)  # 76,800 patches are counted, not sorted
    fake, real = pictures(0, shape, 1.0), pictures(1, shape, 1.1)
    if order == "the brightest last":  # what comes first says nothing of the range
        fake = np.concatenate([fake[:200] // 40, fake[200:400] // 8, fake[400:]])
    if order == "one alone bright":
        fake, real = fake // 16, real // 16
        fake[-1] = 255
    expected = numpy_swd(fake, real, 128, 1, 4, seed=3)
    a, b = torch.from_numpy(fake), torch.from_numpy(real)
    got = sliced_wasserstein(a, b, repeats=1, directions=4, seed=3)
    assert list(got.levels.values()) == pytest.approx(expected, rel=1e-4)


def test_the_pyramid_is_the_published_one() -> None:
    images = pictures(0, (2, 3, 64, 48), 1.0)
    got = laplacian_pyramid(torch.from_numpy(images))
    expected = numpy_pyramid(images.astype(np.float64))
    assert [tuple(level.shape[2:]) for level in got] == level_sizes(64, 48) == [(64, 48), (32, 24)]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-3)


def test_swd_of_one_pixel_is_known_in_closed_form() -> None:
    """One pixel: axis ±1, patches the pixels: |sorted differences| after normalising."""
    fake = torch.tensor([0.0, 0, 0, 4]).view(4, 1, 1, 1)
    real = torch.tensor([0.0, 0, 2, 2]).view(4, 1, 1, 1)
    a = (np.array([0, 0, 0, 4]) - 1) / 3**0.5
    b = np.array([-1, -1, 1, 1])
    straight, mirrored = np.abs(a - b).mean(), np.abs(np.sort(-a) - b).mean()
    assert straight == pytest.approx(mirrored)
    got = sliced_wasserstein(fake, real, patches=1, repeats=1, directions=16)
    assert got.average == pytest.approx(1e3 * straight, rel=1e-5)
    assert got.stderr is None


def test_swd_repeats_for_a_seed_whatever_the_memory() -> None:
    a, b = (torch.from_numpy(pictures(i, (40, 1, 32, 32), 1 + i)) for i in range(2))

    def distance(seed: int = 0, memory: int = 2**29) -> SlicedWasserstein:
        return sliced_wasserstein(a, b, patches=16, repeats=3, seed=seed, memory=memory)

    assert distance() == distance()
    assert distance(memory=1).average == pytest.approx(distance().average, rel=1e-5)
    other = distance(seed=1)
    assert other != distance()
    assert other.average == pytest.approx(distance().average, rel=0.1)
    assert other.stderr is not None
    assert 0 < other.stderr < 0.2 * other.average


def test_swd_is_small_for_one_set_and_flat_images_do_no_harm() -> None:
    a = torch.from_numpy(pictures(0, (100, 1, 32, 32), 2.0))
    flat = torch.full_like(a, 7)
    kinds = [sliced_wasserstein(x, a, repeats=1).average for x in (a, flat)]
    assert kinds[0] < 0.03 * kinds[1]
    assert 500 < kinds[1] < 1000  # near the mean |x| of a standard Gaussian, 798
    assert sliced_wasserstein(flat, flat, repeats=1).average == 0


def test_swd_refuses_what_it_cannot_compare() -> None:
    a = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ValueError, match="fake and real must both be"):
        sliced_wasserstein(a, a[:3])
    with pytest.raises(ValueError, match="patches must be at least 1, but got 0"):
        sliced_wasserstein(a, a, patches=0)


def test_swd_counts_what_dull_first_images_would_have_left_out() -> None:
    """Both sets begin with flat images, as folders of classes may: the bins must reach the rest."""
    rng = np.random.default_rng(0)
    sets = []
    for contrast in (np.ones(600), np.exp(rng.normal(size=600))):
        noise = 25 * rng.standard_normal((600, 1, 16, 16)) * contrast[:, None, None, None]
        pixels = (128 + noise).clip(0, 255).astype(np.uint8)
        pixels[:40] = rng.integers(127, 130, (40, 1, 16, 16))
        sets.append(torch.from_numpy(pixels))
    how = {"repeats": 1, "directions": 4, "seed": 3}
    counted = sliced_wasserstein(*sets, **how)  # type: ignore[arg-type]
    order = torch.from_numpy(rng.permutation(600))
    mixed = sliced_wasserstein(*(each[order] for each in sets), **how)  # type: ignore[arg-type]
    assert counted.average == pytest.approx(mixed.average, rel=0.05)  # other patches are drawn
