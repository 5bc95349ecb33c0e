"""Tests of trained generators: truncation, interpolation, latent arithmetic and style mixing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from growgan.config import make_settings
from growgan.errors import UserError
from growgan.nets.presets import PRESETS
from growgan.sampling.directions import NUM_PCA_SAMPLES, PCA_SEED
from growgan.sampling.latents import slerp, truncate_latents
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.training.checkpoint import save_gan
from growgan.training.gan import Gan, generate_uint8, make_generator_input, sample_latents


@pytest.fixture(params=["pggan", "biggan", "stylegan2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedGenerator:
    """Return an untrained generator in which no layer is an identity."""
    preset = PRESETS[request.param]
    settings = make_settings(preset.small_settings, {"network": {"width": 16}})
    g, d = (
        preset.network_spec(role, settings.network, 3, (16, 16))  # type: ignore[arg-type]
        for role in ("generator", "discriminator")
    )
    gan = Gan.create(g, d, settings.optimizer, seed=0)
    with torch.no_grad():
        if g.mapping_layers:
            gan.ema.stem.w_avg.copy_(torch.randn(g.latent_dim))
    save_gan(gan, tmp_path / "gan")
    return TrainedGenerator(tmp_path / "gan")


def test_slerp_moves_evenly_along_a_great_circle() -> None:
    a, b = sample_latents(2, 8, 0)
    points = torch.stack([slerp(a, b, torch.tensor(i / 10)) for i in range(11)])
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)
    units = points / points.norm(dim=1, keepdim=True)
    angles = torch.acos((units[1:] * units[:-1]).sum(1).clamp(-1, 1))
    total_angle = math.acos(float((units[0] * units[-1]).sum()))
    assert angles.tolist() == pytest.approx([total_angle / 10] * 10, rel=1e-3)
    assert points.norm(dim=1).diff().tolist() == pytest.approx(
        [float(b.norm() - a.norm()) / 10] * 10, abs=1e-5
    )
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor(0.5)), 1.5 * a)


def test_interpolation_passes_through_the_selected_samples(model: TrainedGenerator) -> None:
    images = model.sample(16, seed=3)
    frames = model.interpolate([5, 2, 9], 4, count=16, seed=3)
    assert len(frames) == 9
    for position, index in ((0, 5), (4, 2), (8, 9)):
        np.testing.assert_allclose(frames[position].astype(int), images[index], atol=1)
    assert not np.array_equal(frames[2], frames[0])
    assert not np.array_equal(frames[2], frames[4])


def test_latent_arithmetic_uses_mean_latents(model: TrainedGenerator) -> None:
    z = sample_latents(16, model.load_network().spec.latent_dim, 0)
    total = z[[1, 2]].mean(0) - z[[3]].mean(0) + z[[4, 5, 6]].mean(0)
    expected = generate_uint8(model.load_network().requires_grad_(False), total[None])[0].permute(
        1, 2, 0
    )
    results = model.latent_arithmetic([[1, 2], [4, 5, 6]], [[3]], count=16)
    assert results.shape[0] == 9
    np.testing.assert_allclose(results[0].astype(int), expected.numpy(), atol=1)
    assert len({image.tobytes() for image in results}) == 9


def test_a_sample_mixed_with_itself_is_unchanged(model: TrainedGenerator) -> None:
    if model.load_network().num_styles < 2:
        with pytest.raises(UserError, match="the layers of this generator have no styles"):
            model.style_mix([0], [1])
        return
    images, table = model.sample(16), model.style_mix([3, 4], [4, 3, 5], count=16)
    assert len(table) == 6
    np.testing.assert_allclose(table[1].astype(int), images[3], atol=1)
    np.testing.assert_allclose(table[3].astype(int), images[4], atol=1)
    assert not np.array_equal(table[0], images[3]) and not np.array_equal(table[0], images[4])


def test_truncation_reduces_diversity(model: TrainedGenerator) -> None:
    full_std = model.sample(64).astype(float).std(0).mean()
    truncated_std = model.sample(64, truncation=0.3).astype(float).std(0).mean()
    assert truncated_std < full_std
    if model.load_network().spec.mapping_layers:
        images = model.sample(4, truncation=0.0)
        assert all(np.array_equal(image, images[0]) for image in images)
    else:
        assert float(truncate_latents(sample_latents(8, 16, 0), 0.3, 0).abs().max()) <= 0.3


@pytest.mark.parametrize("truncation", [math.nan, math.inf, -0.5, 1e6])
def test_truncation_out_of_range_is_refused(model: TrainedGenerator, truncation: float) -> None:
    with pytest.raises(UserError, match=r"truncation must be from .* to 10, but got"):
        model.sample(4, truncation=truncation)
    if model.load_network().num_styles > 1:
        with pytest.raises(UserError, match="truncation must be from"):
            model.style_mix([0], [1], truncation=truncation)


def test_invalid_indices_are_refused(model: TrainedGenerator) -> None:
    with pytest.raises(UserError, match="index must be from 0 to 15, but got 16"):
        model.interpolate([0, 16], 3, count=16)
    with pytest.raises(UserError, match=r"at least two indices and one step, but got \[0\] and 3"):
        model.interpolate([0], 3)


def test_directions_are_the_principal_components(model: TrainedGenerator) -> None:
    network, directions = model.load_network(), model.directions
    z = make_generator_input(network.spec, NUM_PCA_SAMPLES, PCA_SEED)
    with torch.no_grad():
        w = network.map_to_w(z)
        features = w if network.spec.mapping_layers else network.stem(w).flatten(1)
    values = np.linalg.svd((features - features.mean(0)).double().numpy(), compute_uv=False)
    ratios = values**2 / (values**2).sum()
    assert len(directions) == 10
    assert directions.explained_variance_ratio.tolist() == pytest.approx(
        ratios[:10].tolist(), rel=1e-4
    )
    if network.spec.mapping_layers:
        assert directions.in_style_space
        lengths = directions.vectors.norm(dim=1).numpy()
        assert lengths == pytest.approx(values[:10] / (NUM_PCA_SAMPLES - 1) ** 0.5, rel=1e-4)
    else:  # least squares approximately agree with the correlation of latents and scores
        centered = (features - features.mean(0)).double()
        left_vectors, _, _ = torch.linalg.svd(centered, full_matrices=False)
        slopes = (
            left_vectors[:, :10].T
            @ z[:, : network.spec.latent_dim].double()
            / (NUM_PCA_SAMPLES - 1) ** 0.5
        )
        cosine = torch.cosine_similarity(slopes, directions.vectors.double(), dim=1)
        assert bool((cosine.abs() > 0.9).all())


def test_latents_are_edited_along_directions_and_in_single_dimensions(
    model: TrainedGenerator,
) -> None:
    images = model.sample(9, seed=2)
    unedited = model.edit_latent(4, {0: 0.0}, count=9, seed=2)
    np.testing.assert_allclose(unedited[0].astype(int), images[4], atol=1)
    near, far = (model.edit_latent(4, {0: x}, count=9, seed=2)[0].astype(int) for x in (0.5, 3.0))
    assert 0 < np.abs(near - images[4]).mean() < np.abs(far - images[4]).mean()
    z = sample_latents(9, model.load_network().spec.latent_dim, 2)
    original = {1: float(z[4, 1])}
    np.testing.assert_array_equal(model.edit_latent(4, {}, original, count=9, seed=2), unedited)
    edited = model.edit_latent(4, {}, {1: 5.0}, count=9, seed=2)
    assert not np.array_equal(edited, unedited)
    for index in (10, -1):
        with pytest.raises(UserError, match=f"direction must be from 0 to 9, but got {index}"):
            model.edit_latent(0, {index: 1.0})
    with pytest.raises(UserError, match=r"latent dimension must be from 0 to .*, but got 9999"):
        model.edit_latent(0, {}, {9999: 0.0})
