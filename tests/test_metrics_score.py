"""Own features and scores: training, caching, and the faults that they must detect."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from reference import frechet_distance_by_sqrtm, smooth_images
from torch import Tensor

from growgan.errors import UserError
from growgan.metrics.features import own_network
from growgan.metrics.features.own import OwnExtractor, load_or_train_own_extractor
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.functional.energy_score import energy_score
from growgan.metrics.functional.frechet_distance import frechet_distance_of_moments
from growgan.metrics.functional.moments import Moments
from growgan.metrics.image_resize import resize_images
from growgan.metrics.scorer import Score, Scorer

FASHION = Path("/usr/share/datasets/fashion-mnist")


def first_images(images: Tensor, count: int) -> Tensor:
    return images[:count]


# Own features


def test_pixel_features_are_averages() -> None:
    images = torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4)
    expected = torch.tensor([[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]) / 255
    torch.testing.assert_close(PixelExtractor(2)(images), expected)
    assert PixelExtractor(8)(images).shape == (1, 128)
    with pytest.raises(ValueError, match=r"uint8 \[N, C, H, W\] and not empty, but got float32"):
        PixelExtractor()(images.float())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (32, 32)), ((8, 8), (16, 16)), ((128, 64), (64, 32)), ((48, 24), (48, 24))],
)
def test_the_training_resolution_is_within_bounds(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert own_network.training_resolution(*size) == expected


def smooth_noise(count: int, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return smooth_images(7, (count, channels, *size), 2.0)


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (24, 16)), (4, (8, 12))])
def test_training_is_reproducible_cached_and_survives_an_incomplete_file(
    with_labels: bool, channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    images = smooth_noise(60, channels, size)
    labels = np.arange(60) % 3 - (np.arange(60) % 7 == 0) if with_labels else None

    def extractor_from(cache: str) -> OwnExtractor:
        return load_or_train_own_extractor(
            images, labels, fingerprint="f", cache_dir=tmp_path / cache
        )

    first = extractor_from("a")
    (file,) = (tmp_path / "a" / "extractors").iterdir()
    modified = file.stat().st_mtime_ns
    assert extractor_from("a").fingerprint == first.fingerprint == extractor_from("b").fingerprint
    assert file.stat().st_mtime_ns == modified
    file.write_bytes(file.read_bytes()[:100])
    assert extractor_from("a").fingerprint == first.fingerprint
    assert first.metadata["supervision"] == ("labels" if with_labels else "none")
    assert set(first.metadata["quality"]) == (
        {"accuracy"} if with_labels else {"retrieval", "rotation"}
    )
    assert all(0 <= value <= 1 for value in first.metadata["quality"].values())
    features = first(torch.from_numpy(images))
    assert features.shape == (60, 128)
    assert features.dtype == torch.float32
    features_of_some = first(torch.from_numpy(images[:7]))
    torch.testing.assert_close(features[:7], features_of_some, rtol=1e-4, atol=1e-5)
    assert first(torch.from_numpy(images[:, :, ::2, ::2])).shape == (60, 128)
    with pytest.raises(ValueError, match=f"images must have {channels} channels"):
        first(torch.zeros(1, channels + 1, 8, 8, dtype=torch.uint8))


def test_the_network_depends_on_data_seed_and_supervision(tmp_path: Path) -> None:
    images, labels = smooth_noise(40, 1, (16, 16)), np.arange(40) % 2
    fingerprints = {
        load_or_train_own_extractor(
            images, y, fingerprint=f, cache_dir=tmp_path, seed=seed
        ).fingerprint
        for y, f, seed in ((labels, "f", 0), (labels, "f", 1), (None, "f", 0), (labels, "g", 0))
    }
    assert len(fingerprints) == 3  # "g" has the same images, but is a different cache entry
    assert len(list((tmp_path / "extractors").iterdir())) == 4
    one_class = load_or_train_own_extractor(images, labels * 0, fingerprint="f", cache_dir=tmp_path)
    assert one_class.metadata["supervision"] == "none"
    few_labels = load_or_train_own_extractor(
        images,
        np.where(labels + np.arange(40) < 19, labels, -1),
        fingerprint="f",
        cache_dir=tmp_path,
    )
    assert few_labels.metadata["supervision"] == "none"


def test_own_features_name_why_they_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"at least 16 images to train on, but there are 3; the metric 'swd'"
    ):
        load_or_train_own_extractor(
            smooth_noise(3, 1, (8, 8)), None, fingerprint="f", cache_dir=tmp_path
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache '.*file.*' cannot be written"):
        load_or_train_own_extractor(
            smooth_noise(16, 1, (16, 16)),
            None,
            fingerprint="f",
            cache_dir=tmp_path / "file" / "cache",
        )


# Faults that features and scores must detect, on Fashion-MNIST


def read_idx(path: Path) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        content = file.read()
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


@pytest.fixture(scope="module")
def fashion() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not FASHION.is_dir():
        pytest.skip("needs the package dataset-fashion-mnist")
    images = read_idx(FASHION / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FASHION / "t10k-labels-idx1-ubyte.gz").astype(np.int64)
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None], labels


@pytest.fixture(scope="module", params=["labels", "none"])
def extractor(
    request: pytest.FixtureRequest,
    fashion: tuple[NDArray[np.uint8], NDArray[np.int64]],
    tmp_path_factory: pytest.TempPathFactory,
) -> OwnExtractor:
    """Return an extractor that is trained for fewer epochs than usual."""
    images, labels = fashion[0][:2000], fashion[1][:2000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_network, "_MAX_EPOCHS", 6)
        return load_or_train_own_extractor(
            images,
            labels if request.param == "labels" else None,
            fingerprint="fashion",
            cache_dir=tmp_path_factory.mktemp("cache"),
        )


def test_the_own_distance_increases_with_each_fault(
    extractor: OwnExtractor, fashion: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    images, labels = fashion
    real = Moments.from_features(extractor(torch.from_numpy(images[2000:4000])))
    clean, classes = images[4000:6000], labels[4000:6000]
    noise = np.random.default_rng(0).normal(size=clean.shape)

    def distance(degraded: NDArray[Any]) -> float:
        fake = torch.from_numpy(np.clip(np.round(degraded), 0, 255).astype(np.uint8))
        value = frechet_distance_of_moments(Moments.from_features(extractor(fake)), real)
        return value / float(real.covariance.trace())

    floor = distance(clean)
    assert 0 <= floor < 0.01
    blurred = [distance(scipy.ndimage.gaussian_filter(clean, (0, 0, s, s))) for s in (1, 1.5, 2)]
    noisy = [distance(clean + s * noise) for s in (16, 32, 64)]
    missing_classes = [distance(clean[classes < k]) for k in (8, 5, 2)]
    for distances in (blurred, noisy, missing_classes):
        assert floor < distances[0] < distances[1] < distances[2]
        assert distances[2] > 10 * floor


def test_the_score_is_near_zero_for_real_images_and_above_one_for_collapse(
    extractor: OwnExtractor, fashion: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    images, labels = fashion
    scorer = Scorer(images[:4000], extractor, num_samples=500)
    held_out = np.arange(4000, 10_000)
    half_of_classes = held_out[labels[held_out] < 5]
    single_image = np.full(500, 4000)

    def score(rows: NDArray[np.int64], size: int) -> Score:
        def generate(count: int) -> Tensor:
            samples = torch.from_numpy(images[rows[:count]]).float()
            return resize_images(samples, (size, size)).round().to(torch.uint8)

        return scorer.score(generate, (size, size))

    for size in (8, 16, 32):
        good = score(held_out, size)
        assert good == score(held_out, size)
        assert 0 < good.value < 0.03
        assert 0 < good.stderr < 0.01
        assert good.resolution == (size, size)
        assert score(single_image, size).value > 1
    values = [score(half_of_classes, size).value for size in (8, 16, 32)]
    assert max(values) < 1.6 * min(values)


# Scores without trained features


def test_the_fd_score_is_the_distance_over_the_trace_of_the_covariance() -> None:
    real, fake = smooth_images(0, (80, 3, 12, 8), 1.0), smooth_images(1, (40, 3, 12, 8), 2.0)
    pixels = PixelExtractor(4)
    score = Scorer(real, pixels, num_samples=40, with_swd=True).score(
        lambda n: torch.from_numpy(fake[:n]), (12, 8)
    )
    a, b = (pixels(torch.from_numpy(x)).double().numpy() for x in (fake, real))
    assert score.components["fd"] == pytest.approx(frechet_distance_by_sqrtm(a, b), rel=1e-6)
    trace = np.trace(np.cov(b, rowvar=False))
    assert score.value == pytest.approx(score.components["fd"] / trace, rel=1e-9)
    assert set(score.components) == {"fd", "swd"}


def test_the_swd_score_needs_no_network() -> None:
    real = smooth_images(0, (600, 1, 16, 16), 1.5)
    scorer = Scorer(real[:300], None, num_samples=300, kind="swd")
    sets = (real[300:], smooth_images(1, (300, 1, 16, 16), 0.8), np.zeros_like(real[300:]))
    good, bad, flat = (
        scorer.score(partial(first_images, torch.from_numpy(images)), (16, 16)) for images in sets
    )
    assert set(good.components) == {"swd"}
    assert good.value < 0.1 < bad.value < flat.value
    assert flat.value == pytest.approx(1)
    assert 0 < good.stderr < 0.05
    assert flat.stderr == pytest.approx(0, abs=0.02)


def test_real_images_sorted_by_class_are_subsampled_from_all_classes() -> None:
    real = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 40).reshape(1000, 1, 1, 1)
    real = np.broadcast_to(real, (1000, 1, 8, 8))
    batches: list[Tensor] = []

    class Recorder(PixelExtractor):
        def __call__(self, images: Tensor) -> Tensor:
            batches.append(images)
            return super().__call__(images)

    scorer = Scorer(real, Recorder(2), num_samples=16, with_swd=True)
    scorer.score(lambda n: torch.from_numpy(real[:n].copy()), (8, 8))
    real_batch = next(batch for batch in batches if len(batch) > 16)
    assert len(real_batch) == 1000
    swd_images = scorer._real_statistics((8, 8)).images
    assert swd_images is not None
    assert len(swd_images) == 16
    assert len(np.unique(swd_images.numpy())) > 8


def test_the_scorer_names_invalid_arguments() -> None:
    real = smooth_noise(20, 1, (8, 8))
    with pytest.raises(UserError, match=r"unknown score kind 'fid' \(did you mean 'fd'"):
        Scorer(real, None, kind="fid")
    with pytest.raises(ValueError, match="extractor must be given for kind 'fd'"):
        Scorer(real, None)
    with pytest.raises(UserError, match="the number of real images must be at least 16 to score"):
        Scorer(real[:15], PixelExtractor())
    with pytest.raises(UserError, match="num_samples must be at least 16 to score, but is 4"):
        Scorer(real, PixelExtractor(), num_samples=4)
    scorer = Scorer(real, PixelExtractor(), num_samples=16)
    with pytest.raises(ValueError, match=r"must return torch.uint8 \[16, 1, 8, 8\], but returned"):
        scorer.score(lambda n: torch.zeros(n, 1, 8, 8), (8, 8))
    with pytest.raises(ValueError, match=r"resolution must be at most \(8, 8\), but is \(16, 16\)"):
        scorer.score(lambda n: torch.zeros(n, 1, 16, 16, dtype=torch.uint8), (16, 16))


def test_a_score_within_classes_is_the_mean_of_distances_over_the_mean_of_traces() -> None:
    real = smooth_images(0, (120, 1, 8, 8), 1.0)
    labels = np.arange(120) % 3 - (np.arange(120) >= 114) * 9  # the last images have no label
    fake = smooth_images(1, (96, 1, 8, 8), 1.5)
    extractor = PixelExtractor(2)
    scorer = Scorer(real, extractor, num_samples=96, kind="intra-fd", labels=labels.clip(-1))
    sample_labels = scorer.sample_labels()
    assert sample_labels is not None and np.bincount(sample_labels).tolist() == [32, 32, 32]
    assert {tuple(np.bincount(sample_labels[g::8])) for g in range(8)} == {(4, 4, 4)}
    score = scorer.score(partial(first_images, torch.from_numpy(fake)), (8, 8))

    def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return extractor(torch.from_numpy(images)).double().numpy()

    by_class = [(features(fake[sample_labels == c]), features(real[labels == c])) for c in range(3)]
    mean = np.mean([frechet_distance_by_sqrtm(a, b) for a, b in by_class])
    traces = [np.trace(np.cov(b, rowvar=False)) for _, b in by_class]
    assert score.components["intra-fd"] == pytest.approx(mean, rel=1e-6)
    assert score.value == pytest.approx(mean / np.mean(traces), rel=1e-6)
    assert 0 < score.stderr < score.value
    unconditional = Scorer(real, extractor, num_samples=96)
    assert unconditional.sample_labels() is None
    assert unconditional.protocol.differences(scorer.protocol)
    with pytest.raises(
        UserError, match="num_samples must be at least 48 to score within 3 classes"
    ):
        Scorer(real, extractor, num_samples=47, kind="intra-fd", labels=labels.clip(-1))
    for too_few_labels in (None, np.full(120, 1)):
        with pytest.raises(UserError, match="at least 2 images of each class, but class 0 has 0"):
            Scorer(real, extractor, num_samples=96, kind="intra-fd", labels=too_few_labels)


def test_the_energy_score_is_relative_to_the_distance_of_the_mean() -> None:
    real, target = smooth_images(0, (120, 1, 8, 8), 1.0), smooth_images(1, (40, 1, 8, 8), 1.0)
    noise = np.random.default_rng(2).integers(-9, 10, target.shape)
    near_target = (target.astype(np.int64) + noise).clip(0, 255).astype(np.uint8)
    fake = np.concatenate([near_target, target])
    extractor = PixelExtractor(2)
    scorer = Scorer(real, extractor, num_samples=80, kind="energy-score")
    target_images = torch.from_numpy(target)
    generate = partial(first_images, torch.from_numpy(fake))
    score = scorer.score(generate, (8, 8), target=target_images)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return extractor(torch.from_numpy(images)).double().numpy()

    def mean_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.mean([np.sqrt(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True)]))

    first, second = features(fake[:40]), features(fake[40:])
    targets, real_features = features(target), features(real)
    expected = (mean_distance(first, targets) + mean_distance(second, targets)) / 2
    expected -= mean_distance(first, second) / 2
    collapse = mean_distance(real_features, np.repeat(real_features.mean(0, keepdims=True), 120, 0))
    assert score.components == {"energy-score": pytest.approx(expected, abs=1e-5)}
    assert score.value == pytest.approx(expected / collapse, abs=1e-6)
    # Exact results score 0. The results of other sources do not, although the sets are equal.
    exact = np.concatenate([target, target])
    for shift, low, high in ((0, 0.0, 1e-6), (1, 0.5, 2.0)):
        samples = torch.from_numpy(np.roll(exact, shift, 0))
        value = scorer.score(partial(first_images, samples), (8, 8), target=target_images).value
        assert low <= value <= high
    for kind, wrong_target in (("fd", target_images), ("energy-score", None)):
        with pytest.raises(ValueError, match="target must be given for kind 'energy-score'"):
            Scorer(real, extractor, num_samples=80, kind=kind).score(
                generate, (8, 8), target=wrong_target
            )


def test_the_energy_score_prefers_the_true_distribution_to_the_mean_and_to_a_guess() -> None:
    rng = np.random.default_rng(0)
    condition = rng.normal(size=(4000, 1, 2))[:, 0]
    target, first, second = (condition + rng.normal(size=(4000, 2)) for _ in range(3))

    def score(*samples: NDArray[np.float64]) -> tuple[float, float]:
        return energy_score(torch.from_numpy(np.concatenate(samples)), torch.from_numpy(target))

    true_score, true_stderr = score(first, second)
    marginal = rng.normal(size=(8000, 2)) * 2**0.5
    for value, stderr in (score(condition, condition), score(first, first), score(marginal)):
        assert value - true_score > 4 * (stderr + true_stderr)
