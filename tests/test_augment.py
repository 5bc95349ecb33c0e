"""Augmentation: what it does to images, that gradients pass twice, and how p adapts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.objectives import AUGMENTATIONS, Objective, Step, make_augmentation, make_loss
from growgan.objectives.augment import _coloured, _Dice, _grid, resample

NAMES = [entry.name for entry in AUGMENTATIONS]
SHAPES = [(1, 8, 8), (3, 12, 8), (4, 7, 10)]


class Quadratic(nn.Module):
    """D(x) = ½ ||x - c||²: its gradient at T(x) is T(x) - c."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.c).square().sum((1, 2, 3))


def a_step(shape: tuple[int, ...] = (3, 8, 8), count: int = 16, seed: int = 0) -> Step:
    rng = torch.Generator().manual_seed(seed)
    real, fake = (torch.rand(count, *shape, generator=rng) * 2 - 1 for _ in range(2))
    d = Quadratic(shape)
    z = torch.zeros(count, 4)
    return Step(nn.Identity(), d, real, fake, z, rng, d(real), d(fake))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_and_pass_again(name: str, shape: tuple[int, ...]) -> None:
    rule = make_augmentation(name, {"p": 0.7} if name == "ada" else {})
    step = a_step(shape)
    torch.random.manual_seed(0)

    def gradient_penalty(x: Tensor) -> Tensor:
        step.rng.manual_seed(3)  # the same augmentation each time
        value = step.discriminator(rule.images(x, step)).sum()
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        return slope.square().sum()

    x = step.real.double().requires_grad_()
    step.discriminator = step.discriminator.double()
    penalty = gradient_penalty(x)
    (slope,) = torch.autograd.grad(penalty, x)
    way = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    way = way / way.norm()
    up, down = (gradient_penalty((x + s * 1e-3 * way).detach().requires_grad_()) for s in (1, -1))
    # The resampling of "ada" works in float32.
    expected = float((up - down).detach()) / 2e-3
    assert float((slope * way).sum().detach()) == pytest.approx(expected, rel=2e-2, abs=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_shapes_stay_and_samples_differ(name: str, shape: tuple[int, ...]) -> None:
    step = a_step(shape)
    rule = make_augmentation(name, {"p": 1.0} if name == "ada" else {})
    same = step.real[:1].repeat(16, 1, 1, 1)
    seen = rule.images(same, step)
    assert seen.shape == same.shape and torch.isfinite(seen).all()
    if name in ("diffaugment", "ada"):
        assert len(torch.unique(seen.flatten(1), dim=0)) == 16
    else:
        assert torch.equal(seen, same)


def test_colours_leave_alpha_alone() -> None:
    step = a_step((4, 8, 8))
    rule = make_augmentation("diffaugment", {"translation": 0.0, "cutout": 0.0})
    seen = rule.images(step.real, step)
    assert torch.equal(seen[:, 3], step.real[:, 3])
    assert not torch.allclose(seen[:, :3], step.real[:, :3])


def test_a_shift_moves_whole_pixels_and_leaves_zeros() -> None:
    step = a_step((1, 16, 8), count=64)
    rule = make_augmentation("diffaugment", {"colour": 0.0, "cutout": 0.0, "translation": 0.25})
    images = torch.arange(1.0, 129).view(1, 1, 16, 8).repeat(64, 1, 1, 1)
    for image in rule.images(images, step)[:, 0]:
        inside = image[image > 0]
        rows, columns = torch.where(image > 0)
        assert len(inside) >= 12 * 6
        # The same step from each pixel to where it came from.
        from_row, from_column = (inside - 1) // 8, (inside - 1) % 8
        assert len({*(rows - from_row).tolist()}) == len({*(columns - from_column).tolist()}) == 1


def test_the_hole_has_its_size_or_is_cut_by_the_border() -> None:
    step = a_step((1, 16, 8), count=200)
    rule = make_augmentation("diffaugment", {"colour": 0.0, "translation": 0.0, "cutout": 0.5})
    empty = (rule.images(torch.ones(200, 1, 16, 8), step) == 0).sum((1, 2, 3))
    assert int(empty.max()) == 8 * 4 and int(empty.min()) < 8 * 4


def test_resampling_is_that_of_torch_and_linear() -> None:
    images = torch.randn(2, 3, 6, 5)
    grid = torch.rand(2, 6, 5, 2) * 2.4 - 1.2
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(resample(images, grid), expected)
    torch.testing.assert_close(resample(3 * images, grid), 3 * expected)
    x = images.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resample(t, grid.double()), x)
    assert torch.autograd.gradgradcheck(lambda t: resample(t, grid.double()), x)


def test_ada_with_p_zero_shows_images_as_they_are() -> None:
    for shape in SHAPES:
        step = a_step(shape)
        seen = make_augmentation("ada", {"p": 0.0}).images(step.real, step)
        torch.testing.assert_close(seen, step.real, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (16, 16)])
def test_a_quarter_turn_of_a_non_square_image_is_one_in_pixels(height: int, width: int) -> None:
    """What lies in the square in the middle turns as a square image does, none of it stretched."""
    images = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    turned = resample(images, _grid(quarter, images))
    top, left = (height - 16) // 2, (width - 16) // 2
    square, found = (t[:, :, top : top + 16, left : left + 16] for t in (images, turned))
    torch.testing.assert_close(found, square.rot90(1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.32), (-1.0, 0.0)])
def test_p_follows_the_overfitting(sign: float, expected: float) -> None:
    rule = make_augmentation("ada", {"pace": 1000, "interval": 4})
    objective = Objective(make_loss("non-saturating", {}), {}, rule)
    step = a_step(count=16)
    for index in range(20):
        step = replace(step, index=index, real_logits=torch.full((16,), sign), curves={})
        objective.after(step.discriminator, step)
    # 20 steps of 16 images at 1,000 images from 0 to 1.
    assert float(step.memory["augment.p"]) == pytest.approx(expected)
    assert float(step.curves["augment_p"]) == pytest.approx(expected)


class Twin(nn.Module):
    """G(z) has the row of inputs as its pixels: four latents, two numbers of a label."""

    spec = SimpleNamespace(latent=4)

    def forward(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 3)


def test_apa_shows_a_share_p_of_fresh_fakes_as_reals() -> None:
    step = a_step(count=4000, shape=(1, 2, 3))
    step.generator = Twin()  # type: ignore[assignment]
    step.latents = torch.randn(4000, 6)
    step.real, step.fake = torch.full_like(step.real, 9.0), Twin()(step.latents)
    real, fake = make_augmentation("apa", {"p": 0.3}).presented(step)
    deceived = (real != 9).flatten(1).all(1)
    assert float(deceived.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(fake, step.fake)
    rows, own = real[deceived].flatten(1), step.latents[deceived]
    assert torch.equal(rows[:, 4:], own[:, 4:]), "made for the same label"
    together = torch.corrcoef(torch.stack([rows[:, :4].flatten(), own[:, :4].flatten()]))
    assert float(together[0, 1].abs()) < 0.06 and float(rows[:, :4].std()) == pytest.approx(1, 0.1)


def test_apa_asks_nothing_of_g_where_it_deceives_nobody() -> None:
    step = a_step(count=16)
    step.generator = SimpleNamespace(spec=SimpleNamespace(latent=4))  # type: ignore[assignment]
    real, _ = make_augmentation("apa", {"p": 0.0}).presented(step)
    assert torch.equal(real, step.real)


def test_apa_in_shares_is_that_of_the_whole_batch() -> None:
    step = a_step(count=8, shape=(1, 2, 3))
    step = replace(step, generator=Twin(), latents=torch.randn(8, 6))  # type: ignore[arg-type]
    rule, state, shares = make_augmentation("apa", {"p": 0.5}), step.rng.get_state(), []
    for place in range(2):
        step.rng.set_state(state)
        rows = slice(4 * place, 4 * place + 4)
        own = {name: getattr(step, name)[rows] for name in ("real", "fake", "latents")}
        shares.append(rule.presented(replace(step, place=(place, 2), **own))[0])
    step.rng.set_state(state)
    torch.testing.assert_close(torch.cat(shares), rule.presented(step)[0])


@pytest.mark.parametrize("side", [0.375, 0.5])
def test_holes_reach_as_far_over_one_border_as_over_the_other(side: float) -> None:
    step = a_step((1, 8, 8), count=500)
    rule = make_augmentation("diffaugment", {"colour": 0.0, "translation": 0.0, "cutout": side})
    empty = rule.images(torch.ones(500, 1, 8, 8), step)[:, 0] == 0
    for axis in (1, 2):
        lines = {tuple(line.tolist()) for line in empty.any(axis)}
        assert lines == {line[::-1] for line in lines} and len(lines) > 6


def test_ada_mirrors_the_luma_of_gray_images_and_adds_brightness_first() -> None:
    """x becomes ±c (x + b): black and white tell c and b."""
    dice = _Dice(20_000, a_step().chance)
    ends = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(20_000, 1, 1, 2)
    low, high = _coloured(ends, dice, torch.tensor(1.0)).flatten(1).unbind(1)
    slope = (high - low) / 2
    assert float((slope < 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(((low + high) / 2 / slope).std()) == pytest.approx(0.2, rel=0.03)
    assert float(slope.abs().log2().std()) == pytest.approx(0.5, rel=0.03)


def test_what_is_fixed_stays_fixed() -> None:
    rule = make_augmentation("ada", {"p": 0.4, "pace": 0})
    objective = Objective(make_loss("hinge", {}), {}, rule)
    step = a_step()
    for index in range(8):
        objective.after(step.discriminator, replace(step, index=index))
    assert float(step.memory["augment.p"]) == pytest.approx(0.4)
