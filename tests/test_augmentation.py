"""Augmentations: their effect on images, second derivatives, and the adaptive probability."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.objectives import AUGMENTATIONS, Objective, StepContext, make_augmentation, make_loss
from growgan.objectives.augmentation import (
    _PerImageRandom,
    _random_color_transform,
    _sampling_grid,
    grid_sample_reflect,
)
from growgan.objectives.step_context import Shard

NAMES = [entry.name for entry in AUGMENTATIONS]
SHAPES = [(1, 8, 8), (3, 12, 8), (4, 7, 10)]


class Quadratic(nn.Module):
    """D(x) = ½ ||x - c||²: its gradient at T(x) is T(x) - c."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.c).square().sum((1, 2, 3))


def make_step(shape: tuple[int, ...] = (3, 8, 8), count: int = 16, seed: int = 0) -> StepContext:
    rng = torch.Generator().manual_seed(seed)
    real, fake = (torch.rand(count, *shape, generator=rng) * 2 - 1 for _ in range(2))
    d = Quadratic(shape)
    z = torch.zeros(count, 4)
    return StepContext(nn.Identity(), d, real, fake, z, rng, d(real), d(fake))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_augmentations_are_twice_differentiable(name: str, shape: tuple[int, ...]) -> None:
    augmentation = make_augmentation(name, {"initial_probability": 0.7} if name == "ada" else {})
    step = make_step(shape)
    torch.random.manual_seed(0)

    def gradient_penalty(x: Tensor) -> Tensor:
        step.rng.manual_seed(3)  # the same augmentation each time
        value = step.discriminator(augmentation.augment(x, step)).sum()
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        return gradient.square().sum()

    x = step.real.double().requires_grad_()
    step.discriminator = step.discriminator.double()
    penalty = gradient_penalty(x)
    (gradient,) = torch.autograd.grad(penalty, x)
    direction = torch.randn(
        x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    direction = direction / direction.norm()
    above, below = (
        gradient_penalty((x + sign * 1e-3 * direction).detach().requires_grad_())
        for sign in (1, -1)
    )
    # "ada" resamples in float32, hence the large tolerance.
    expected = float((above - below).detach()) / 2e-3
    assert float((gradient * direction).sum().detach()) == pytest.approx(
        expected, rel=2e-2, abs=1e-2
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_augmentation_keeps_shapes_and_differs_between_samples(
    name: str, shape: tuple[int, ...]
) -> None:
    step = make_step(shape)
    augmentation = make_augmentation(name, {"initial_probability": 1.0} if name == "ada" else {})
    same = step.real[:1].repeat(16, 1, 1, 1)
    augmented = augmentation.augment(same, step)
    assert augmented.shape == same.shape and torch.isfinite(augmented).all()
    if name in ("diffaugment", "ada"):
        assert len(torch.unique(augmented.flatten(1), dim=0)) == 16
    else:
        assert torch.equal(augmented, same)


def test_color_changes_keep_alpha() -> None:
    step = make_step((4, 8, 8))
    augmentation = make_augmentation("diffaugment", {"translation": 0.0, "cutout": 0.0})
    augmented = augmentation.augment(step.real, step)
    assert torch.equal(augmented[:, 3], step.real[:, 3])
    assert not torch.allclose(augmented[:, :3], step.real[:, :3])


def test_translation_shifts_by_whole_pixels_and_fills_with_zeros() -> None:
    step = make_step((1, 16, 8), count=64)
    augmentation = make_augmentation(
        "diffaugment", {"color": 0.0, "cutout": 0.0, "translation": 0.25}
    )
    images = torch.arange(1.0, 129).view(1, 1, 16, 8).repeat(64, 1, 1, 1)
    for image in augmentation.augment(images, step)[:, 0]:
        inside = image[image > 0]
        rows, columns = torch.where(image > 0)
        assert len(inside) >= 12 * 6
        # All pixels are shifted by the same amount.
        from_row, from_column = (inside - 1) // 8, (inside - 1) % 8
        assert len({*(rows - from_row).tolist()}) == len({*(columns - from_column).tolist()}) == 1


def test_the_cutout_has_its_size_unless_it_crosses_the_border() -> None:
    step = make_step((1, 16, 8), count=200)
    augmentation = make_augmentation(
        "diffaugment", {"color": 0.0, "translation": 0.0, "cutout": 0.5}
    )
    empty = (augmentation.augment(torch.ones(200, 1, 16, 8), step) == 0).sum((1, 2, 3))
    assert int(empty.max()) == 8 * 4 and int(empty.min()) < 8 * 4


def test_grid_sampling_equals_torch_and_is_linear() -> None:
    images = torch.randn(2, 3, 6, 5)
    grid = torch.rand(2, 6, 5, 2) * 2.4 - 1.2
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(grid_sample_reflect(images, grid), expected)
    torch.testing.assert_close(grid_sample_reflect(3 * images, grid), 3 * expected)
    x = images.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: grid_sample_reflect(t, grid.double()), x)
    assert torch.autograd.gradgradcheck(lambda t: grid_sample_reflect(t, grid.double()), x)


def test_ada_with_probability_zero_changes_nothing() -> None:
    for shape in SHAPES:
        step = make_step(shape)
        augmented = make_augmentation("ada", {"initial_probability": 0.0}).augment(step.real, step)
        torch.testing.assert_close(augmented, step.real, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16), (16, 16)])
def test_a_quarter_turn_of_a_non_square_image_keeps_pixels_square(height: int, width: int) -> None:
    """The central square rotates like a square image, without stretching."""
    images = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    rotation = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    rotated = grid_sample_reflect(images, _sampling_grid(rotation, images))
    top, left = (height - 16) // 2, (width - 16) // 2
    square, result = (t[:, :, top : top + 16, left : left + 16] for t in (images, rotated))
    torch.testing.assert_close(result, square.rot90(1, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.32), (-1.0, 0.0)])
def test_the_probability_follows_the_overfitting_heuristic(sign: float, expected: float) -> None:
    augmentation = make_augmentation("ada", {"ramp_images": 1000, "interval": 4})
    objective = Objective(make_loss("non-saturating", {}), {}, augmentation)
    step = make_step(count=16)
    for index in range(20):
        step = replace(step, index=index, real_logits=torch.full((16,), sign), log_scalars={})
        objective.after_update(step.discriminator, step)
    # 20 steps of 16 images, at 1,000 images from 0 to 1.
    assert float(step.objective_state["augmentation.p"]) == pytest.approx(expected)
    assert float(step.log_scalars["augment_p"]) == pytest.approx(expected)


class IdentityGenerator(nn.Module):
    """G(z) has its inputs as pixels: four latents and two label entries."""

    spec = SimpleNamespace(latent_dim=4)

    def forward(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 3)


def test_apa_replaces_a_fraction_p_of_real_images_by_new_fakes() -> None:
    step = make_step(count=4000, shape=(1, 2, 3))
    step.generator = IdentityGenerator()  # type: ignore[assignment]
    step.generator_input = torch.randn(4000, 6)
    step.real, step.fake = (
        torch.full_like(step.real, 9.0),
        IdentityGenerator()(step.generator_input),
    )
    real, fake = make_augmentation("apa", {"initial_probability": 0.3}).transform_batch(step)
    replaced = (real != 9).flatten(1).all(1)
    assert float(replaced.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(fake, step.fake)
    rows, inputs = real[replaced].flatten(1), step.generator_input[replaced]
    assert torch.equal(rows[:, 4:], inputs[:, 4:]), "same label"
    correlation = torch.corrcoef(torch.stack([rows[:, :4].flatten(), inputs[:, :4].flatten()]))
    assert float(correlation[0, 1].abs()) < 0.06 and float(rows[:, :4].std()) == pytest.approx(
        1, 0.1
    )


def test_apa_does_not_call_g_if_no_image_is_replaced() -> None:
    step = make_step(count=16)
    step.generator = SimpleNamespace(spec=SimpleNamespace(latent_dim=4))  # type: ignore[assignment]
    real, _ = make_augmentation("apa", {"initial_probability": 0.0}).transform_batch(step)
    assert torch.equal(real, step.real)


def test_apa_of_shards_equals_apa_of_the_whole_batch() -> None:
    step = make_step(count=8, shape=(1, 2, 3))
    step = replace(step, generator=IdentityGenerator(), generator_input=torch.randn(8, 6))  # type: ignore[arg-type]
    augmentation, state, shards = (
        make_augmentation("apa", {"initial_probability": 0.5}),
        step.rng.get_state(),
        [],
    )
    for shard_index in range(2):
        step.rng.set_state(state)
        rows = slice(4 * shard_index, 4 * shard_index + 4)
        shard_rows = {
            name: getattr(step, name)[rows] for name in ("real", "fake", "generator_input")
        }
        shards.append(
            augmentation.transform_batch(replace(step, shard=Shard(shard_index, 2), **shard_rows))[
                0
            ]
        )
    step.rng.set_state(state)
    torch.testing.assert_close(torch.cat(shards), augmentation.transform_batch(step)[0])


@pytest.mark.parametrize("side", [0.375, 0.5])
def test_cutouts_are_symmetric(side: float) -> None:
    step = make_step((1, 8, 8), count=500)
    augmentation = make_augmentation(
        "diffaugment", {"color": 0.0, "translation": 0.0, "cutout": side}
    )
    empty = augmentation.augment(torch.ones(500, 1, 8, 8), step)[:, 0] == 0
    for axis in (1, 2):
        profiles = {tuple(profile.tolist()) for profile in empty.any(axis)}
        assert profiles == {profile[::-1] for profile in profiles} and len(profiles) > 6


def test_ada_inverts_the_luma_of_gray_images_and_applies_brightness_first() -> None:
    """A pixel x becomes ±c (x + b), so black and white pixels determine c and b."""
    per_image_random = _PerImageRandom(20_000, make_step().sharded_rng)
    black_and_white = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).expand(20_000, 1, 1, 2)
    black, white = (
        _random_color_transform(black_and_white, per_image_random, torch.tensor(1.0))
        .flatten(1)
        .unbind(1)
    )
    slope = (white - black) / 2
    assert float((slope < 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float(((black + white) / 2 / slope).std()) == pytest.approx(0.2, rel=0.03)
    assert float(slope.abs().log2().std()) == pytest.approx(0.5, rel=0.03)


def test_a_fixed_probability_stays_constant() -> None:
    augmentation = make_augmentation("ada", {"initial_probability": 0.4, "ramp_images": 0})
    objective = Objective(make_loss("hinge", {}), {}, augmentation)
    step = make_step()
    for index in range(8):
        objective.after_update(step.discriminator, replace(step, index=index))
    assert float(step.objective_state["augmentation.p"]) == pytest.approx(0.4)
