"""Looking into a generator: truncation, walks, sums of latents, mixed styles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from growgan.config import make_settings
from growgan.errors import UserError
from growgan.growth.directions import SEED, SEEN
from growgan.growth.model import Model, slerp, truncate
from growgan.nets.presets import PRESETS
from growgan.training.checkpoint import save_gan
from growgan.training.gan import Gan, inputs, latents, to_uint8


@pytest.fixture(params=["pggan", "biggan", "stylegan2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """Return the generator of an untrained pair whose layers do something."""
    preset = PRESETS[request.param]
    settings = make_settings(preset.small, {"stack": {"width": 16}})
    g, d = (
        preset.stack(role, settings.stack, 3, (16, 16))  # type: ignore[arg-type]
        for role in ("generator", "discriminator")
    )
    gan = Gan.create(g, d, settings.optimiser, seed=0)
    with torch.no_grad():
        if g.mapping:
            gan.average.stem.mean.copy_(torch.randn(g.latent))
    save_gan(gan, tmp_path / "gan")
    return Model(tmp_path / "gan")


def test_a_great_circle_is_walked_evenly() -> None:
    a, b = latents(2, 8, 0)
    points = torch.stack([slerp(a, b, torch.tensor(i / 10)) for i in range(11)])
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)
    units = points / points.norm(dim=1, keepdim=True)
    angles = torch.acos((units[1:] * units[:-1]).sum(1).clamp(-1, 1))
    whole = math.acos(float((units[0] * units[-1]).sum()))
    assert angles.tolist() == pytest.approx([whole / 10] * 10, rel=1e-3)
    assert points.norm(dim=1).diff().tolist() == pytest.approx(
        [float(b.norm() - a.norm()) / 10] * 10, abs=1e-5
    )
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor(0.5)), 1.5 * a)


def test_a_walk_passes_through_its_picks(model: Model) -> None:
    images, way = model.sample(16, seed=3), model.walk([5, 2, 9], 4, count=16, seed=3)
    assert len(way) == 9
    for place, pick in ((0, 5), (4, 2), (8, 9)):
        np.testing.assert_allclose(way[place].astype(int), images[pick], atol=1)
    assert not np.array_equal(way[2], way[0]) and not np.array_equal(way[2], way[4])


def test_sums_are_of_mean_latents(model: Model) -> None:
    z = latents(16, model.network().spec.latent, 0)
    total = z[[1, 2]].mean(0) - z[[3]].mean(0) + z[[4, 5, 6]].mean(0)
    expected = to_uint8(model.network().requires_grad_(False), total[None])[0].permute(1, 2, 0)
    made = model.combine([[1, 2], [4, 5, 6]], [[3]], count=16)
    assert made.shape[0] == 9
    np.testing.assert_allclose(made[0].astype(int), expected.numpy(), atol=1)
    assert len({image.tobytes() for image in made}) == 9


def test_a_mix_with_itself_is_the_image_itself(model: Model) -> None:
    if model.network().styles < 2:
        with pytest.raises(UserError, match="this generator's layers have none"):
            model.mix([0], [1])
        return
    images, table = model.sample(16), model.mix([3, 4], [4, 3, 5], count=16)
    assert len(table) == 6
    np.testing.assert_allclose(table[1].astype(int), images[3], atol=1)
    np.testing.assert_allclose(table[3].astype(int), images[4], atol=1)
    assert not np.array_equal(table[0], images[3]) and not np.array_equal(table[0], images[4])


def test_truncation_draws_images_together(model: Model) -> None:
    free = model.sample(64).astype(float).std(0).mean()
    near = model.sample(64, truncation=0.3).astype(float).std(0).mean()
    assert near < free
    if model.network().spec.mapping:
        same = model.sample(4, truncation=0.0)
        assert all(np.array_equal(image, same[0]) for image in same)
    else:
        assert float(truncate(latents(8, 16, 0), 0.3, 0).abs().max()) <= 0.3


@pytest.mark.parametrize("truncation", [math.nan, math.inf, -0.5, 1e6])
def test_a_truncation_that_means_nothing_is_refused(model: Model, truncation: float) -> None:
    with pytest.raises(UserError, match=r"truncation must be from .* to 10, but got"):
        model.sample(4, truncation=truncation)
    if model.network().styles > 1:
        with pytest.raises(UserError, match="truncation must be from"):
            model.mix([0], [1], truncation=truncation)


def test_picks_that_are_not_there_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="pick 16 is none of the 16 images: 0 to 15"):
        model.walk([0, 16], 3, count=16)
    with pytest.raises(UserError, match="a walk needs two picks and a step, but got 1 and 3"):
        model.walk([0], 3)


def test_directions_are_the_principal_components(model: Model) -> None:
    network, found = model.network(), model.directions
    z = inputs(network.spec, SEEN, SEED)
    with torch.no_grad():
        w = network.embed(z)
        features = w if network.spec.mapping else network.stem(w).flatten(1)
    values = np.linalg.svd((features - features.mean(0)).double().numpy(), compute_uv=False)
    shares = values**2 / (values**2).sum()
    assert len(found) == 10
    assert found.shares.tolist() == pytest.approx(shares[:10].tolist(), rel=1e-4)
    if network.spec.mapping:
        assert found.styles
        lengths = found.vectors.norm(dim=1).numpy()
        assert lengths == pytest.approx(values[:10] / (SEEN - 1) ** 0.5, rel=1e-4)
    else:  # a step raises its own component by what least squares say, and the most of all
        centred = (features - features.mean(0)).double()
        left, _, _ = torch.linalg.svd(centred, full_matrices=False)
        slopes = left[:, :10].T @ z[:, : network.spec.latent].double() / (SEEN - 1) ** 0.5
        cosine = torch.cosine_similarity(slopes, found.vectors.double(), dim=1)
        assert bool((cosine.abs() > 0.9).all())


def test_a_pick_is_varied_along_directions_and_latents(model: Model) -> None:
    images = model.sample(9, seed=2)
    still = model.vary(4, {0: 0.0}, count=9, seed=2)
    np.testing.assert_allclose(still[0].astype(int), images[4], atol=1)
    near, far = (model.vary(4, {0: x}, count=9, seed=2)[0].astype(int) for x in (0.5, 3.0))
    assert 0 < np.abs(near - images[4]).mean() < np.abs(far - images[4]).mean()
    z = latents(9, model.network().spec.latent, 2)
    own = {1: float(z[4, 1])}
    np.testing.assert_array_equal(model.vary(4, {}, own, count=9, seed=2), still)
    other = model.vary(4, {}, {1: 5.0}, count=9, seed=2)
    assert not np.array_equal(other, still)
    for bad, words in (({10: 1.0}, "direction 10 is none of the 10"), ({-1: 1.0}, "direction -1")):
        with pytest.raises(UserError, match=words):
            model.vary(0, bad)
    with pytest.raises(UserError, match="latent 9999 is none of the"):
        model.vary(0, {}, {9999: 0.0})
