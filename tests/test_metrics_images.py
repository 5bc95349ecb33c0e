"""Metrics of images: MS-SSIM, perceptual path length, classification accuracy score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from numpy.typing import NDArray
from reference import smooth_images
from torch import Tensor

from growgan.metrics.features.own_network import to_network_input, train_classifier_network
from growgan.metrics.functional.classification_accuracy_score import classification_accuracy_score
from growgan.metrics.functional.ms_ssim import mean_ms_ssim, ms_ssim
from growgan.metrics.functional.perceptual_path_length import (
    perceptual_path_length,
    slerp_on_normal_sphere,
)

Images = NDArray[np.uint8]


# MS-SSIM


def scipy_ms_ssim(a: Images, b: Images) -> float:
    """Return the MS-SSIM of one pair [C, H, W], by channel, with two-dimensional windows."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = 6.5025, 58.5225  # (0.01 * 255)² and (0.03 * 255)²
    result = 1.0
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        h, w = x.shape[1:]
        size = min(11, h, w)
        offsets = np.arange(size) - (size - 1) / 2
        squares = offsets[:, None] ** 2 + offsets[None] ** 2
        window = np.exp(-squares / (2 * (1.5 * size / 11) ** 2))
        window /= window.sum()
        terms, structures = [], []
        for p, q in zip(x, y, strict=True):
            mp, mq, pp, qq, pq = (
                scipy.signal.convolve2d(image, window, mode="valid")
                for image in (p, q, p * p, q * q, p * q)
            )
            structure = (2 * (pq - mp * mq) + c2) / (pp - mp**2 + qq - mq**2 + c2)
            terms.append((2 * mp * mq + c1) / (mp**2 + mq**2 + c1) * structure)
            structures.append(structure)
        mean = np.mean(terms if scale == 4 else structures)
        result *= max(float(mean), 0.0) ** weight
        h, w = h // 2 * 2, w // 2 * 2
        x, y = (sum(t[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)) / 4.0 for t in (x, y))
    return result


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 20), (3, 28, 28), (1, 45, 180)])
def test_ms_ssim_equals_a_plain_loop(shape: tuple[int, ...]) -> None:
    a = smooth_images(0, (6, *shape), 2.0)
    noise = np.random.default_rng(1).normal(size=a.shape) * 60
    strength = np.linspace(0, 1, 6)[:, None, None, None]
    b = np.clip(a + strength * noise, 0, 255).astype(np.uint8)
    expected = [scipy_ms_ssim(x, y) for x, y in zip(a, b, strict=True)]
    got = ms_ssim(torch.from_numpy(a), torch.from_numpy(b))
    assert got.tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[0] > 1.01 * expected[2] > 1.02 * expected[5] > 0


def test_ms_ssim_of_equal_flat_and_opposite_images() -> None:
    a = torch.from_numpy(smooth_images(0, (4, 1, 32, 32), 2.0))
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0] * 4, abs=1e-12)
    assert ms_ssim(a, 255 - a).tolist() == [0.0] * 4  # a mean is negative, which counts as 0
    black, white = torch.zeros_like(a), torch.full_like(a, 255)
    luminance = 6.5025 / (255**2 + 6.5025)
    assert ms_ssim(black, white).tolist() == pytest.approx([luminance**0.1333] * 4, rel=1e-9)


def test_mean_ms_ssim_is_the_mean_over_pairs_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three images have three pairs, which are drawn about equally often."""
    images = smooth_images(0, (3, 1, 32, 32), 3.0)
    tensor = torch.from_numpy(images)
    values = [scipy_ms_ssim(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    got = mean_ms_ssim(tensor, num_pairs=600)
    spread = np.std(values) / 600**0.5
    assert got == pytest.approx(np.mean(values), abs=4 * spread)
    assert 0 < spread < 0.1 * got
    assert got == mean_ms_ssim(tensor, num_pairs=600)
    assert got != mean_ms_ssim(tensor, num_pairs=600, seed=1)
    monkeypatch.setattr("growgan.metrics.functional.ms_ssim._MAX_VALUES_PER_CHUNK", 1024 * 7)
    assert mean_ms_ssim(tensor, num_pairs=600) == pytest.approx(got, rel=1e-12)


def test_mean_ms_ssim_is_one_for_collapse_and_less_for_variety() -> None:
    varied = torch.from_numpy(smooth_images(0, (50, 1, 32, 32), 2.0))
    assert mean_ms_ssim(varied[:1].expand(50, -1, -1, -1), num_pairs=50) == pytest.approx(
        1, abs=1e-12
    )
    assert mean_ms_ssim(varied, num_pairs=50) < 0.5
    # A pair never holds the same image twice, which would give 1.
    assert mean_ms_ssim(torch.stack([varied[0], 255 - varied[0]]), num_pairs=50) == 0


def test_ms_ssim_names_invalid_arguments() -> None:
    a = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"a must be uint8 .*, but got float32"):
        ms_ssim(a.float(), a)
    with pytest.raises(
        ValueError, match="b must be at least 16x16 pixels for five scales, but got 8x16"
    ):
        ms_ssim(a, a[:, :, :8])
    with pytest.raises(
        ValueError, match=r"same shape, but got \[2, 3, 16, 16\] and \[1, 3, 16, 16\]"
    ):
        ms_ssim(a, a[:1])
    with pytest.raises(
        ValueError, match="images must hold at least 2 images to form a pair, but holds 1"
    ):
        mean_ms_ssim(a[:1])
    with pytest.raises(ValueError, match="num_pairs must be at least 1, but got 0"):
        mean_ms_ssim(a, num_pairs=0)


# Perceptual path length


def as_images(latents: Tensor) -> Tensor:
    return latents.view(len(latents), 1, 1, -1)


def as_features(images: Tensor) -> Tensor:
    return images.flatten(1)


def test_slerp_has_constant_speed_along_an_arc() -> None:
    a, b = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[0.0, 0.5, 0, 0]])
    t = torch.tensor([[0.0], [1 / 3], [1.0], [2.0]], dtype=torch.float64)
    expected = torch.tensor([[2, 0], [3**0.5, 1], [0, 2], [-2, 0]], dtype=torch.float64)
    got = slerp_on_normal_sphere(a.expand(4, 4), b.expand(4, 4), t)
    torch.testing.assert_close(got[:, :2], expected, atol=1e-12, rtol=0)
    assert got[:, 2:].abs().max() == 0
    torch.testing.assert_close(
        slerp_on_normal_sphere(a, 3 * a, t[1:2]), a.double(), atol=1e-12, rtol=0
    )


def test_ppl_of_a_linear_generator_equals_the_squared_chords() -> None:
    """A step of the angle θ ε on radius √d has a chord of 2 √d sin(θ ε / 2), wherever it starts."""
    d, num_paths, epsilon, gain = 5, 400, 1e-2, 3.0
    ends = torch.randn(num_paths, 2, d, generator=torch.Generator().manual_seed(7)).double().numpy()
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in ends]
    chords = np.sort(2 * d**0.5 * np.sin(np.arccos(cosines) * epsilon / 2))
    middle = chords[3:-3]  # the quantiles are at 3.99 and 395.01 of 0 to 399, rounded outwards
    expected = float(np.mean((gain * middle / epsilon) ** 2))
    got = perceptual_path_length(
        lambda z: gain * as_images(z), as_features, d, num_paths=num_paths, epsilon=epsilon, seed=7
    )
    assert got == pytest.approx(expected, rel=1e-5)


def test_ppl_on_a_circle_equals_the_closed_form() -> None:
    """In two dimensions θ is uniform on (0, π): the mean of 2 θ² without 1 % at each end."""
    got = perceptual_path_length(as_images, as_features, 2, num_paths=20_000, batch_size=20_000)
    expected = 2 * np.pi**2 * (0.99**3 - 0.01**3) / (3 * 0.98)
    assert got == pytest.approx(expected, rel=0.025)  # 4 standard errors of 20,000 paths


def test_ppl_does_not_depend_on_the_batch_size_and_is_zero_for_collapse() -> None:
    def length(batch_size: int, seed: int = 0) -> float:
        return perceptual_path_length(
            as_images, as_features, 8, num_paths=50, batch_size=batch_size, seed=seed
        )

    assert length(7) == pytest.approx(length(50), rel=1e-9)
    assert length(50) == length(50) != length(50, seed=1)
    collapsed = perceptual_path_length(lambda z: as_images(0 * z), as_features, 8, num_paths=1)
    assert collapsed == 0


def test_ppl_drops_the_outliers_at_both_ends() -> None:
    """The features jump on one path of 200, which would raise the mean to 5e17."""

    def jump(images: Tensor) -> Tensor:
        offset = torch.zeros(len(images), 1)
        offset[0] = 1e6
        return offset + images[:, 0, :, 0]

    got = perceptual_path_length(as_images, jump, 4, num_paths=200, batch_size=200)
    assert 0 < got < 100


def test_ppl_names_invalid_arguments() -> None:
    def length(
        generate: Any = as_images,
        features: Any = as_features,
        latent_dim: int = 4,
        num_paths: int = 3,
        epsilon: float = 1e-4,
    ) -> float:
        return perceptual_path_length(
            generate, features, latent_dim, num_paths=num_paths, epsilon=epsilon
        )

    with pytest.raises(ValueError, match="latent_dim must be at least 2, but got 1"):
        length(latent_dim=1)
    with pytest.raises(ValueError, match="num_paths must be at least 1, but got 0"):
        length(num_paths=0)
    with pytest.raises(ValueError, match="epsilon must be above 0 and below 1, but got 0"):
        length(epsilon=0.0)
    with pytest.raises(ValueError, match=r"must return float images, but returned torch.uint8"):
        length(lambda z: as_images(z).to(torch.uint8))
    with pytest.raises(ValueError, match="features must be finite, but holds 24 NaN"):
        length(features=lambda images: as_features(images) * torch.nan)


# Classification accuracy score


def labeled_bars(seed: int, count: int, num_classes: int = 3) -> tuple[Images, NDArray[np.int64]]:
    """Return gray noise of 8x8 with two brighter columns, whose position is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    images = rng.integers(60, 140, (count, 1, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, :, 2 * label : 2 * label + 2] += 100
    return images.astype(np.uint8), labels


def test_cas_detects_wrong_labels_of_generated_images() -> None:
    fake, real, held_out = labeled_bars(0, 240), labeled_bars(1, 300), labeled_bars(2, 600)
    good = classification_accuracy_score(fake, real, held_out)
    assert good.fake_accuracy > 0.97
    assert good.real_accuracy > 0.97
    assert good.num_train_images == 240
    assert good == classification_accuracy_score(fake, real, held_out)
    shuffled = fake[0], np.random.default_rng(3).permutation(fake[1])
    bad = classification_accuracy_score(shuffled, real, held_out)
    assert 0.15 < bad.fake_accuracy < 0.55  # chance is 1/3
    assert bad.real_accuracy == good.real_accuracy
    rotated = fake[0], (fake[1] + 1) % 3
    assert classification_accuracy_score(rotated, real, held_out).fake_accuracy < 0.03


def test_cas_without_a_class_misses_that_class() -> None:
    fake, real, held_out = labeled_bars(0, 300), labeled_bars(1, 200), labeled_bars(2, 600)
    two_classes = fake[1] < 2
    subset = fake[0][two_classes], fake[1][two_classes]
    got = classification_accuracy_score(subset, real, held_out)
    assert got.fake_accuracy == pytest.approx(float((held_out[1] < 2).mean()), abs=0.02)
    assert got.num_train_images == min(two_classes.sum(), 200)


def test_cas_of_the_real_images_is_their_own_accuracy_and_sizes_may_differ() -> None:
    real, held_out = labeled_bars(1, 200), labeled_bars(2, 100)
    state = torch.get_rng_state()
    got = classification_accuracy_score(real, real, held_out)
    assert torch.equal(torch.get_rng_state(), state)
    assert got.fake_accuracy == got.real_accuracy > 0.97
    small = np.ascontiguousarray(real[0][:, :, ::2, :]), real[1]
    assert classification_accuracy_score(small, real, held_out).fake_accuracy > 0.9


def test_the_classifier_of_cas_is_the_own_network_with_a_linear_layer() -> None:
    images, labels = labeled_bars(0, 64)
    device = torch.device("cpu")
    classifier = train_classifier_network(images, labels, 5, (16, 16), seed=0, device=device)
    assert classifier(to_network_input(torch.from_numpy(images), (16, 16))).shape == (64, 5)


def test_cas_names_invalid_arguments() -> None:
    images, labels = labeled_bars(0, 20)
    good = images, labels

    def score(fake: Any, held_out: Any = good) -> object:
        return classification_accuracy_score(fake, good, held_out)

    with pytest.raises(ValueError, match=r"images of fake must be uint8 .* but got float64"):
        score((images.astype(np.float64), labels))
    with pytest.raises(ValueError, match=r"labels of fake must be \[20\], .* but got \[19\]"):
        score((images, labels[:19]))
    with pytest.raises(
        ValueError, match=r"labels of fake must be \[20\], .* but got \[20\], from -1"
    ):
        score((images, labels - 1))
    with pytest.raises(
        ValueError, match="images of fake must have as many channels as held_out, 1, but have 3"
    ):
        score((images.repeat(3, 1), labels))
    with pytest.raises(ValueError, match="at least 2 classes, but all its labels are 1"):
        score(good, (images, np.ones_like(labels)))
    with pytest.raises(ValueError, match=r"images of fake must be uint8 .* \[0, 1, 8, 8\]"):
        score((images[:0], labels[:0]))
