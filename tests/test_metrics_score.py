"""Features and scores: trained, cached, and noticing what they must."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.errors import UserError
from growgan.metrics import (
    DomainExtractor,
    Moments,
    PixelExtractor,
    Score,
    Scorer,
    domain,
    domain_extractor,
    frechet,
)
from growgan.metrics.score import energy

FASHION = Path("/usr/share/datasets/fashion-mnist")


def by_sqrtm(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The textbook formula, with scipy's matrix square root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(cov_a + cov_b - 2 * root.real))


def pictures(seed: int, shape: tuple[int, ...], smooth: float) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=shape)
    noise = scipy.ndimage.gaussian_filter(noise, (0, 0, smooth, smooth))
    pixels: NDArray[np.uint8] = np.clip(noise / noise.std() * 50 + 120, 0, 255).astype(np.uint8)
    return pixels


def first_of(images: Tensor, count: int) -> Tensor:
    return images[:count]


# Features


def test_pixels_are_averages() -> None:
    images = torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4)
    expected = torch.tensor([[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]) / 255
    torch.testing.assert_close(PixelExtractor(2)(images), expected)
    assert PixelExtractor(8)(images).shape == (1, 128)
    with pytest.raises(ValueError, match=r"uint8 \[N, C, H, W\], but are torch.float32"):
        PixelExtractor()(images.float())


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (32, 32)), ((8, 8), (16, 16)), ((128, 64), (64, 32)), ((48, 24), (48, 24))],
)
def test_the_training_resolution_lies_within_bounds(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert domain.training_resolution(*size) == expected


def blobs(count: int, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return pictures(7, (count, channels, *size), 2.0)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("channels", "size"), [(1, (16, 16)), (3, (24, 16)), (4, (8, 12))])
def test_training_repeats_is_cached_and_survives_a_torn_file(
    labelled: bool, channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    images = blobs(60, channels, size)
    labels = np.arange(60) % 3 - (np.arange(60) % 7 == 0) if labelled else None

    def make(cache: str) -> DomainExtractor:
        return domain_extractor(images, labels, fingerprint="f", cache=tmp_path / cache)

    first = make("a")
    (file,) = (tmp_path / "a" / "extractors").iterdir()
    written = file.stat().st_mtime_ns
    assert make("a").fingerprint == first.fingerprint == make("b").fingerprint
    assert file.stat().st_mtime_ns == written
    file.write_bytes(file.read_bytes()[:100])
    assert make("a").fingerprint == first.fingerprint
    assert first.metadata["supervision"] == ("labels" if labelled else "none")
    assert set(first.metadata["quality"]) == (
        {"accuracy"} if labelled else {"retrieval", "rotation"}
    )
    assert all(0 <= value <= 1 for value in first.metadata["quality"].values())
    features = first(torch.from_numpy(images))
    assert features.shape == (60, 128)
    assert features.dtype == torch.float32
    part = first(torch.from_numpy(images[:7]))
    torch.testing.assert_close(features[:7], part, rtol=1e-4, atol=1e-5)
    assert first(torch.from_numpy(images[:, :, ::2, ::2])).shape == (60, 128)
    with pytest.raises(ValueError, match=f"images must have {channels} channels"):
        first(torch.zeros(1, channels + 1, 8, 8, dtype=torch.uint8))


def test_other_data_seed_or_supervision_make_another_network(tmp_path: Path) -> None:
    images, labels = blobs(40, 1, (16, 16)), np.arange(40) % 2
    seen = {
        domain_extractor(images, y, fingerprint=f, cache=tmp_path, seed=seed).fingerprint
        for y, f, seed in ((labels, "f", 0), (labels, "f", 1), (None, "f", 0), (labels, "g", 0))
    }
    assert len(seen) == 3  # "g" trains on the same images, but into a file of its own
    assert len(list((tmp_path / "extractors").iterdir())) == 4
    one_class = domain_extractor(images, labels * 0, fingerprint="f", cache=tmp_path)
    assert one_class.metadata["supervision"] == "none"
    few = domain_extractor(
        images, np.where(labels + np.arange(40) < 19, labels, -1), fingerprint="f", cache=tmp_path
    )
    assert few.metadata["supervision"] == "none"


def test_features_name_what_keeps_them_from_being_learnt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at least 16 images, but there are 3; swd needs"):
        domain_extractor(blobs(3, 1, (8, 8)), None, fingerprint="f", cache=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache '.*file.*' cannot be written"):
        domain_extractor(
            blobs(16, 1, (16, 16)), None, fingerprint="f", cache=tmp_path / "file" / "cache"
        )


# What features and scores must notice, on Fashion-MNIST


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
) -> DomainExtractor:
    """A network trained for a tenth of the usual time."""
    images, labels = fashion[0][:2000], fashion[1][:2000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domain, "_EPOCHS", 6)
        return domain_extractor(
            images,
            labels if request.param == "labels" else None,
            fingerprint="fashion",
            cache=tmp_path_factory.mktemp("cache"),
        )


def test_the_domain_distance_grows_with_each_fault(
    extractor: DomainExtractor, fashion: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    images, labels = fashion
    real = Moments.of(extractor(torch.from_numpy(images[2000:4000])))
    clean, kinds = images[4000:6000], labels[4000:6000]
    noise = np.random.default_rng(0).normal(size=clean.shape)

    def distance(changed: NDArray[Any]) -> float:
        as_images = torch.from_numpy(np.clip(np.round(changed), 0, 255).astype(np.uint8))
        value = frechet(Moments.of(extractor(as_images)), real)
        return value / float(real.covariance.trace())

    floor = distance(clean)
    assert 0 <= floor < 0.01
    blur = [distance(scipy.ndimage.gaussian_filter(clean, (0, 0, s, s))) for s in (1, 1.5, 2)]
    grain = [distance(clean + s * noise) for s in (16, 32, 64)]
    fewer = [distance(clean[kinds < k]) for k in (8, 5, 2)]
    for faults in (blur, grain, fewer):
        assert floor < faults[0] < faults[1] < faults[2]
        assert faults[2] > 10 * floor


def test_the_score_is_zero_for_reals_one_for_collapse_at_any_resolution(
    extractor: DomainExtractor, fashion: tuple[NDArray[np.uint8], NDArray[np.int64]]
) -> None:
    images, labels = fashion
    scorer = Scorer(images[:4000], extractor, samples=500)
    rest = np.arange(4000, 10_000)
    few = rest[labels[rest] < 5]
    one = np.full(500, 4000)

    def score(index: NDArray[np.int64], size: int) -> Score:
        def generate(count: int) -> Tensor:
            chosen = torch.from_numpy(images[index[:count]]).float()
            return domain.resize(chosen, (size, size)).round().to(torch.uint8)

        return scorer.score(generate, (size, size))

    for size in (8, 16, 32):
        good = score(rest, size)
        assert good == score(rest, size)
        assert 0 < good.value < 0.03
        assert 0 < good.stderr < 0.01
        assert good.resolution == (size, size)
        assert score(one, size).value > 1
    dropped = [score(few, size).value for size in (8, 16, 32)]
    assert max(dropped) < 1.6 * min(dropped)


# Scores without a network


def test_the_fd_score_is_the_distance_over_the_reals_own_spread() -> None:
    reals, fakes = pictures(0, (80, 3, 12, 8), 1.0), pictures(1, (40, 3, 12, 8), 2.0)
    pixels = PixelExtractor(4)
    score = Scorer(reals, pixels, samples=40, swd=True).score(
        lambda n: torch.from_numpy(fakes[:n]), (12, 8)
    )
    a, b = (pixels(torch.from_numpy(x)).double().numpy() for x in (fakes, reals))
    assert score.parts["fd"] == pytest.approx(by_sqrtm(a, b), rel=1e-6)
    spread = np.trace(np.cov(b, rowvar=False))
    assert score.value == pytest.approx(score.parts["fd"] / spread, rel=1e-9)
    assert set(score.parts) == {"fd", "swd"}


def test_the_swd_score_needs_no_network() -> None:
    reals = pictures(0, (600, 1, 16, 16), 1.5)
    scorer = Scorer(reals[:300], None, samples=300, kind="swd")
    sets = (reals[300:], pictures(1, (300, 1, 16, 16), 0.8), np.zeros_like(reals[300:]))
    good, bad, flat = (
        scorer.score(partial(first_of, torch.from_numpy(images)), (16, 16)) for images in sets
    )
    assert set(good.parts) == {"swd"}
    assert good.value < 0.1 < bad.value < flat.value
    assert flat.value == pytest.approx(1)
    assert 0 < good.stderr < 0.05
    assert flat.stderr == pytest.approx(0, abs=0.02)


def test_reals_in_order_of_class_are_drawn_from_all() -> None:
    reals = np.repeat(np.arange(0, 250, 10, dtype=np.uint8), 40).reshape(1000, 1, 1, 1)
    reals = np.broadcast_to(reals, (1000, 1, 8, 8))
    seen: list[Tensor] = []

    class Recorder(PixelExtractor):
        def __call__(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().__call__(images)

    scorer = Scorer(reals, Recorder(2), samples=16, swd=True)
    scorer.score(lambda n: torch.from_numpy(reals[:n].copy()), (8, 8))
    first = next(x for x in seen if len(x) > 16)
    assert len(first) == 1000
    known = scorer._reals((8, 8)).images
    assert known is not None
    assert len(known) == 16
    assert len(np.unique(known.numpy())) > 8


def test_the_scorer_names_what_is_wrong() -> None:
    reals = blobs(20, 1, (8, 8))
    with pytest.raises(UserError, match=r"unknown score kind 'fid' \(did you mean 'fd'"):
        Scorer(reals, None, kind="fid")
    with pytest.raises(ValueError, match="extractor must be given for kind 'fd'"):
        Scorer(reals, None)
    with pytest.raises(UserError, match="the number of reals must be at least 16 to score"):
        Scorer(reals[:15], PixelExtractor())
    with pytest.raises(UserError, match="samples must be at least 16 to score, but is 4"):
        Scorer(reals, PixelExtractor(), samples=4)
    scorer = Scorer(reals, PixelExtractor(), samples=16)
    with pytest.raises(ValueError, match=r"must return torch.uint8 \[16, 1, 8, 8\], but gave"):
        scorer.score(lambda n: torch.zeros(n, 1, 8, 8), (8, 8))
    with pytest.raises(ValueError, match=r"resolution must be at most \(8, 8\), but is \(16, 16\)"):
        scorer.score(lambda n: torch.zeros(n, 1, 16, 16, dtype=torch.uint8), (16, 16))


def test_a_score_within_classes_is_the_mean_of_distances_over_the_mean_of_traces() -> None:
    reals = pictures(0, (120, 1, 8, 8), 1.0)
    labels = np.arange(120) % 3 - (np.arange(120) >= 114) * 9  # the last have none
    fakes = pictures(1, (96, 1, 8, 8), 1.5)
    extractor = PixelExtractor(2)
    scorer = Scorer(reals, extractor, samples=96, kind="intra-fd", labels=labels.clip(-1))
    asked = scorer.labels()
    assert asked is not None and np.bincount(asked).tolist() == [32, 32, 32]
    assert {tuple(np.bincount(asked[g::8])) for g in range(8)} == {(4, 4, 4)}
    score = scorer.score(partial(first_of, torch.from_numpy(fakes)), (8, 8))

    def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return extractor(torch.from_numpy(images)).double().numpy()

    kinds = [(features(fakes[asked == c]), features(reals[labels == c])) for c in range(3)]
    mean = np.mean([by_sqrtm(a, b) for a, b in kinds])
    traces = [np.trace(np.cov(b, rowvar=False)) for _, b in kinds]
    assert score.parts["intra-fd"] == pytest.approx(mean, rel=1e-6)
    assert score.value == pytest.approx(mean / np.mean(traces), rel=1e-6)
    assert 0 < score.stderr < score.value
    plain = Scorer(reals, extractor, samples=96)
    assert plain.labels() is None and plain.protocol.differences(scorer.protocol)
    with pytest.raises(UserError, match="samples must be at least 48 to score within each class"):
        Scorer(reals, extractor, samples=47, kind="intra-fd", labels=labels.clip(-1))
    for few in (None, np.full(120, 1)):
        with pytest.raises(UserError, match="class 0 has 0 images, too few"):
            Scorer(reals, extractor, samples=96, kind="intra-fd", labels=few)


def test_a_score_of_pairs_is_the_energy_score_over_that_of_the_mean() -> None:
    reals, truth = pictures(0, (120, 1, 8, 8), 1.0), pictures(1, (40, 1, 8, 8), 1.0)
    near = (truth.astype(np.int64) + np.random.default_rng(2).integers(-9, 10, truth.shape)).clip(
        0, 255
    )
    fakes = np.concatenate([near.astype(np.uint8), truth])
    extractor = PixelExtractor(2)
    scorer = Scorer(reals, extractor, samples=80, kind="pairs")
    wanted = torch.from_numpy(truth)
    score = scorer.score(partial(first_of, torch.from_numpy(fakes)), (8, 8), truth=wanted)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return extractor(torch.from_numpy(images)).double().numpy()

    def away(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.mean([np.sqrt(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True)]))

    one, other, true, all_ = map(features, (fakes[:40], fakes[40:], truth, reals))
    found = (away(one, true) + away(other, true)) / 2 - away(one, other) / 2
    mean = away(all_, np.repeat(all_.mean(0, keepdims=True), 120, 0))
    assert score.parts == {"pairs": pytest.approx(found, abs=1e-5)}
    assert score.value == pytest.approx(found / mean, abs=1e-6)
    # What is right scores 0; the right images of others do not, however near as a set.
    both = np.concatenate([truth, truth])
    for turn, least, most in ((0, 0.0, 1e-6), (1, 0.5, 2.0)):
        drawn = torch.from_numpy(np.roll(both, turn, 0))
        value = scorer.score(partial(first_of, drawn), (8, 8), truth=wanted).value
        assert least <= value <= most
    for kind in ("fd", "pairs"):
        given = None if kind == "pairs" else wanted
        with pytest.raises(ValueError, match="truth must be given for kind 'pairs'"):
            Scorer(reals, extractor, samples=80, kind=kind).score(
                partial(first_of, torch.from_numpy(fakes)), (8, 8), truth=given
            )


def test_the_energy_score_prefers_to_draw_what_is_open_to_the_mean_and_to_a_guess() -> None:
    rng = np.random.default_rng(0)
    c = rng.normal(size=(4000, 1, 2))
    truth, *drawn = (c[:, 0] + rng.normal(size=(4000, 2)) for _ in range(3))
    as_it_is = energy(torch.from_numpy(np.concatenate(drawn)), torch.from_numpy(truth))
    mean = energy(torch.from_numpy(np.concatenate([c[:, 0]] * 2)), torch.from_numpy(truth))
    guess = energy(torch.from_numpy(np.concatenate([drawn[0]] * 2)), torch.from_numpy(truth))
    apart = energy(torch.from_numpy(rng.normal(size=(8000, 2)) * 2**0.5), torch.from_numpy(truth))
    for worse in (mean, guess, apart):
        assert worse[0] - as_it_is[0] > 4 * (worse[1] + as_it_is[1])
