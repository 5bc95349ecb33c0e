"""Looking into a generator: truncation, walks, sums of latents, mixed styles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from growgan.config import make_settings
from growgan.errors import UserError
from growgan.growth.model import Model, slerp, truncate
from growgan.nets.presets import PRESETS
from growgan.training.checkpoint import save_gan
from growgan.training.gan import Gan, latents, to_uint8


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


def test_picks_that_are_not_there_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match="pick 16 is none of the 16 images: 0 to 15"):
        model.walk([0, 16], 3, count=16)
    with pytest.raises(UserError, match="a walk needs two picks and a step, but got 1 and 3"):
        model.walk([0], 3)
