"""Each regulariser where its value is known: a linear critic, a weight of known singular values."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.config import StackSettings, make_settings
from growgan.errors import UserError
from growgan.growth.history import Space
from growgan.nets.layers import Dense
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.objectives import (
    REGULARISERS,
    Objective,
    Step,
    make_augmentation,
    make_loss,
    make_objective,
    make_regulariser,
)
from growgan.objectives.consistency import moved
from growgan.objectives.regulariser import Penalty
from growgan.objectives.step import Chance
from growgan.training.gan import latents

SPACE = Space("pggan", StackSettings(latent=6, width=8), 3, (8, 8))


class Linear(nn.Module):
    """D(x) = <w, x>, with ||w|| given; its features are x itself."""

    spec = SimpleNamespace(energy=False, given=0)

    def __init__(self, norm: float, pixels: tuple[int, ...] = (3, 8, 8)) -> None:
        super().__init__()
        w = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w * norm / w.norm())

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return F.linear(x.flatten(1), self.w.flatten()[None]).flatten()  # one that autocast knows


class Matrix(nn.Module):
    """G(z) = A z as an image; z is not normalised. Of a row's numbers ``latent`` are z.

    Where it has several styles the k-th one is read by (k + 1) A, and G is the sum of them.
    """

    noisy = False

    def __init__(
        self,
        matrix: Tensor,
        pixels: tuple[int, ...],
        latent: int | None = None,
        styles: int = 1,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix)
        self.pixels, self.styles = pixels, styles
        self.spec = SimpleNamespace(latent=matrix.shape[1] if latent is None else latent)

    def embed(self, z: Tensor) -> Tensor:
        return z

    def synthesise(self, w: Tensor) -> Tensor:
        w = w if w.ndim == 3 else w[:, None].expand(-1, self.styles, -1)
        speeds = torch.arange(1.0, 1 + self.styles)
        return (torch.einsum("nsw,s->nw", w, speeds) @ self.weight.T).view(-1, *self.pixels)

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesise(self.embed(z))


def linear_step(norm: float = 2.0, count: int = 16, labels: int = 0) -> Step:
    """A step of a linear G and a linear D; behind 5 latents stand so many numbers of a label."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(192, 5 + labels, generator=rng) / 10
    g, d = Matrix(a, (3, 8, 8), latent=5), Linear(norm)
    real, z = (
        torch.rand(count, 3, 8, 8, generator=rng) * 2 - 1,
        torch.randn(count, 5 + labels, generator=rng),
    )
    fake = g(z).detach()
    step = Step(g, d, real, fake, z, rng, d(real), d(fake))  # type: ignore[arg-type]
    return replace(step, labels=z[:, 5:]) if labels else step


def shares_of(step: Step, count: int = 2) -> list[Step]:
    """The same step with its batch in shares, as training takes them."""
    rows = ("real", "fake", "latents", "labels", "real_logits", "fake_logits")
    shares = []
    for place in range(count):
        rng = torch.Generator()
        rng.set_state(step.rng.get_state())
        own = {name: getattr(step, name).chunk(count)[place] for name in rows if name != "labels"}
        if step.labels.numel():
            own["labels"] = step.labels.chunk(count)[place]
        shares.append(replace(step, rng=rng, place=(place, count), **own))
    return shares


def stack_step(count: int = 8) -> Step:
    """A step of small real stacks."""
    g, d = (build(spec, i) for i, spec in enumerate(SPACE.stacks(1)))
    assert isinstance(g, Generator) and isinstance(d, Discriminator)
    rng = torch.Generator().manual_seed(0)
    real = torch.rand(count, 3, 8, 8, generator=rng) * 2 - 1
    z = torch.randn(count, 6, generator=rng)
    fake = g(z).detach()
    return Step(g, d, real, fake, z, rng, d(real), d(fake))


def term_of(player: str, name: str, step: Step, **options: float) -> Tensor:
    rule = make_regulariser(name, options)
    assert isinstance(rule, Penalty)
    found = rule.discriminator(step) if player == "discriminator" else rule.generator(step)
    assert found is not None
    return found


of_discriminator = partial(term_of, "discriminator")
of_generator = partial(term_of, "generator")


@pytest.mark.parametrize("norm", [0.5, 3.0])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_gradient_penalties_of_a_linear_critic(norm: float, bfloat16: bool) -> None:
    expected = {
        "r1": norm**2 / 2,
        "r2": norm**2 / 2,
        "gp": (norm - 1) ** 2,
        "dragan": (norm - 1) ** 2,
        "maxgp": norm**2,
    }
    for name, value in expected.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = of_discriminator(name, linear_step(norm))
        # A number in bfloat16 has eight bits.
        assert float(found.detach()) == pytest.approx(value, rel=2e-2 if bfloat16 else 1e-4), name


def test_dragan_looks_around_reals_at_half_of_their_deviation() -> None:
    seen: list[Tensor] = []

    class Watching(Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    step = linear_step()
    step.discriminator = Watching(1.0)  # type: ignore[assignment]
    of_discriminator("dragan", step)
    shift = (seen[0] - step.real) / (0.5 * step.real.std())
    assert 0 <= float(shift.min()) < 0.01 and 0.99 < float(shift.max()) <= 1


def test_label_smoothing_is_a_cross_entropy_with_a_target_of_nine_tenths() -> None:
    step = linear_step()
    plain = F.softplus(-step.real_logits).mean()
    smooth = plain + 0.1 * of_discriminator("smoothing", step)
    target = torch.full_like(step.real_logits, 0.9)
    expected = F.binary_cross_entropy_with_logits(step.real_logits, target)
    torch.testing.assert_close(smooth, expected)


def test_lecam_holds_logits_to_averages_once_it_has_begun() -> None:
    step = linear_step()
    lecam = make_regulariser("lecam", {"start": 1, "decay": 0.5})
    assert isinstance(lecam, Penalty)
    assert lecam.discriminator(step) is None
    real, fake = step.real_logits.mean(), step.fake_logits.mean()
    step = replace(
        step, index=1, real_logits=step.real_logits + 1, fake_logits=step.fake_logits - 1
    )
    found = lecam.discriminator(step)
    above = F.relu(step.real_logits - (fake - 0.5)).square().mean()
    below = F.relu((real + 0.5) - step.fake_logits).square().mean()
    assert found is not None
    torch.testing.assert_close(found, above + below)


def test_consistency_of_a_critic_that_sees_the_shift_and_of_one_that_does_not() -> None:
    step = linear_step()

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    for name in ("cr", "bcr"):
        assert float(of_discriminator(name, step).detach()) > 0.01
    constant = replace(step, real=torch.ones_like(step.real) / 2, fake=torch.ones_like(step.real))
    constant.discriminator = Mean()  # type: ignore[assignment]
    for name in ("cr", "bcr"):
        assert float(of_discriminator(name, constant)) == pytest.approx(0, abs=1e-12)


def test_moved_images_are_flipped_and_shifted_ones() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(64, 1, 1, 1)
    result = moved(images, Chance(torch.Generator().manual_seed(0), len(images)))
    corners = {tuple(image[0, 2:6, 2:6].flatten().tolist()) for image in result}
    legal = {
        tuple(each[0, 0, 2 + dy : 6 + dy, 2 + dx : 6 + dx].flatten().tolist())
        for each in (images, images.flip(3))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert corners <= legal and len(corners) > 10


def test_zcr_of_linear_players() -> None:
    """D(G(z)) - D(G(z + σ ε)) = -σ <w, A ε>, whose square has the mean σ² ||Aᵀ w||²."""
    step = linear_step(count=4096)
    a, w = step.generator.weight, step.discriminator.w.flatten()  # type: ignore[union-attr]
    found = of_discriminator("zcr", step, noise=0.07)
    expected = 0.07**2 * (a.T @ w).square().sum()  # type: ignore[operator]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=0.1)
    with torch.no_grad():
        found = of_generator("zcr", step, noise=0.07, generator_weight=1.0)
        expected = -(0.07**2) * a.square().sum() / 192  # type: ignore[operator]
    assert float(found) == pytest.approx(float(expected), rel=0.1)


def test_path_length_of_a_linear_generator() -> None:
    """||Aᵀ y|| has the mean square ||A||² / pixels; with A = s I the lengths are s ||y||."""
    step = linear_step()
    eye = torch.eye(192) * 3
    step.generator = Matrix(eye, (3, 8, 8))  # type: ignore[assignment]
    step.latents = torch.randn(512, 192)
    found = of_generator("path-length", step, share=1.0)
    mean = step.memory["path.mean"]
    # y has 192 values of variance 1/64.
    assert float(mean) == pytest.approx(3 * (192 / 64) ** 0.5, rel=0.02)
    assert float(found.detach()) < 0.05 * float(mean) ** 2
    found.backward()
    assert step.generator.weight.grad is not None  # type: ignore[union-attr]
    far = step.memory["path.mean"].clone()
    step.generator = Matrix(eye * 2, (3, 8, 8))  # type: ignore[assignment]
    found = of_generator("path-length", replace(step, index=1), share=1.0, decay=1.0)
    assert float(found.detach()) == pytest.approx(float(far) ** 2, rel=0.1)


def test_latent_optimisation_follows_the_gradient() -> None:
    step = linear_step()
    a, w = step.generator.weight.detach(), step.discriminator.w.detach().flatten()  # type: ignore[union-attr]
    slope = a.T @ w  # type: ignore[operator]
    expected = step.latents + 0.9 * slope / (5.0 + slope.square().sum())
    torch.testing.assert_close(make_regulariser("latent", {}).latents(step), expected)


def test_orthogonal_looks_at_angles_and_not_at_lengths() -> None:
    step = linear_step()
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    step.generator = Dense(2, 3, rate="plain")  # type: ignore[assignment]
    step.generator.weight.data = rows  # type: ignore[union-attr]
    # Off the diagonal: 0, 3 and 0.5, each twice.
    assert float(of_generator("orthogonal", step).detach()) == pytest.approx(2 * (9 + 0.25))


def test_weights_in_use_are_clipped_whatever_their_scale() -> None:
    step = stack_step()
    with torch.no_grad():
        for each in step.discriminator.parameters():
            each.sub_(0.5)
    make_regulariser("clip", {"largest": 0.02}).after(step.discriminator, step)
    biases = [each for each in step.discriminator.parameters() if each.ndim == 1]
    assert biases and all(float(each.detach().abs().max()) <= 0.02 for each in biases)
    used = [m.weight * m.scale for m in step.discriminator.modules() if hasattr(m, "scale")]
    largest = [float(each.abs().max().detach()) for each in used]
    assert max(largest) == pytest.approx(0.02, rel=1e-5) and len(largest) > 3
    before = [p.clone() for p in step.generator.parameters()]
    make_regulariser("clip", {}).after(step.generator, step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.generator.parameters(), strict=True))


def test_the_largest_singular_value_is_clamped_to_the_second() -> None:
    step = stack_step()
    weights = [m.weight for m in step.discriminator.modules() if hasattr(m, "scale")]
    before = [torch.linalg.svdvals(w.detach().flatten(1)) for w in weights]
    make_regulariser("singular-clamp", {}).after(step.discriminator, step)
    for w, values in zip(weights, before, strict=True):
        after = torch.linalg.svdvals(w.detach().flatten(1))
        if len(after) > 1:
            assert float(after[0]) == pytest.approx(float(values[1]), rel=1e-4)
            torch.testing.assert_close(after[2:], values[2:], rtol=1e-3, atol=1e-5)


def test_historical_averaging_pulls_to_the_mean_over_time() -> None:
    step = stack_step()
    rule = make_regulariser("historical", {})
    assert isinstance(rule, Penalty)
    start = [p.detach().clone() for p in step.discriminator.parameters()]
    for shift in (0.0, 1.0, 2.0):
        with torch.no_grad():
            for p, first in zip(step.discriminator.parameters(), start, strict=True):
                p.copy_(first + shift)
        rule.after(step.discriminator, step)
    found = rule.discriminator(step)
    assert found is not None
    assert float(found.detach()) == pytest.approx(sum(p.numel() for p in start), rel=1e-4)


def test_feature_matching_and_pulling_away() -> None:
    step = linear_step()
    gap = (step.real.flatten(1).mean(0) - step.fake.flatten(1).mean(0)).square().mean()
    torch.testing.assert_close(of_generator("feature-matching", step), gap)
    same = replace(step, fake=step.fake[:1].repeat(16, 1, 1, 1))
    assert float(of_generator("pulling-away", same)) == pytest.approx(1, rel=1e-5)
    apart = torch.zeros(3, 3, 8, 8)
    apart[range(3), range(3), 0, 0] = 1.0
    assert float(of_generator("pulling-away", replace(step, fake=apart))) == 0


def test_top_k_keeps_the_best_and_fewer_as_time_goes_by() -> None:
    step, rule = linear_step(), make_regulariser("top-k", {"decay": 0.5, "least": 0.25})
    logits = torch.arange(16.0)
    assert len(rule.kept(step, logits)) == 16
    later = rule.kept(replace(step, images=50_000), logits)
    assert sorted(later.tolist()) == list(range(8, 16))
    assert len(rule.kept(replace(step, images=10**9), logits)) == 4


def test_replay_shows_old_fakes_and_forgets_them_when_the_size_changes() -> None:
    rule = make_regulariser("replay", {"size": 32, "share": 0.5})
    step = linear_step()
    step.fake = torch.zeros_like(step.fake)
    assert torch.equal(rule.presented(step)[1], step.fake)
    for value in (1.0, 2.0, 3.0):
        step.fake = torch.full_like(step.fake, value)
        shown = rule.presented(step)[1]
        assert (shown[:8] < value).all() and (shown[8:] == value).all()
        assert len(step.memory["replay.fakes"]) <= 32
    step.real = step.fake = torch.zeros(16, 3, 16, 16)
    assert rule.presented(step)[1].shape == step.fake.shape


def test_adversarial_training_moves_reals_towards_fakes_in_the_eyes_of_d() -> None:
    step = linear_step(norm=0.5)
    step.real = torch.full_like(step.real, 0.2) * step.discriminator.w.sign().detach()  # type: ignore[union-attr]
    step.fake = -step.real
    real, fake = make_regulariser("dat", {}).presented(step)
    judge = step.discriminator
    before = float((judge(step.real).mean() - judge(step.fake).mean()).detach())
    after = float((judge(real).mean() - judge(fake).mean()).detach())
    assert 0 < after < before
    # The gradient of a mean over 16 images is w/16.
    torch.testing.assert_close(real, step.real - step.discriminator.w.detach() / 16)  # type: ignore[union-attr]
    assert float(real.abs().max()) <= 1 and not real.requires_grad


@pytest.mark.parametrize("name", ["r1", "r2", "gp", "drift", "cr", "bcr", "zcr", "l1"])
def test_a_term_of_a_batch_is_the_mean_of_its_shares(name: str) -> None:
    step = linear_step(labels=3)
    for player in ("discriminator", "generator"):
        if player == "generator" and name not in ("zcr", "l1"):
            continue
        if player == "discriminator" and name == "l1":
            continue
        shares = torch.stack([term_of(player, name, each) for each in shares_of(step)])
        torch.testing.assert_close(shares.mean(), term_of(player, name, step))


@pytest.mark.parametrize("name", ["latent", "dat"])
def test_what_is_done_to_a_batch_is_done_to_its_shares(name: str) -> None:
    step, rule = linear_step(labels=3), make_regulariser(name, {})
    made = [(rule.latents(each), *rule.presented(each)) for each in [*shares_of(step), step]]
    for *shares, whole in zip(*made, strict=True):
        torch.testing.assert_close(torch.cat(shares), whole)


def test_shares_of_a_batch_move_a_running_average_as_the_whole_does() -> None:
    whole, shares = linear_step(), linear_step()
    for index in range(3):
        values = torch.randn(4, generator=torch.Generator().manual_seed(index))
        replace(whole, index=index).average("a", values.mean(), 0.9)
        for place, value in enumerate(values):
            replace(shares, index=index, place=(place, 4)).average("a", value, 0.9)
        torch.testing.assert_close(shares.memory["a"], whole.memory["a"])


def test_lecam_and_path_length_in_shares_remember_what_the_whole_does() -> None:
    for player, name, keys in (
        ("discriminator", "lecam", ("lecam.real", "lecam.fake")),
        ("generator", "path-length", ("path.mean",)),
    ):
        whole, parted = linear_step(), linear_step()
        options = {"start": 0.0} if name == "lecam" else {"share": 1.0}
        for index in range(3):
            now = replace(parted, index=index)
            for each in shares_of(now):
                term_of(player, name, each, **options)
            state = whole.rng.get_state()
            term_of(player, name, replace(whole, index=index), **options)
            for step in (whole, parted):  # another batch
                step.rng.set_state(state)
                step.rng.manual_seed(index)
                step.real_logits, step.fake_logits = step.real_logits + 1, step.fake_logits * 2
        for key in keys:
            torch.testing.assert_close(parted.memory[key], whole.memory[key])


def test_labels_stay_where_latents_move() -> None:
    step = linear_step(count=4096, labels=3)
    a, w = step.generator.weight.detach(), step.discriminator.w.detach().flatten()  # type: ignore[union-attr]
    slope = (a.T @ w)[:5]  # type: ignore[operator]
    moved = make_regulariser("latent", {}).latents(step)
    torch.testing.assert_close(moved[:, 5:], step.latents[:, 5:])
    expected = step.latents[:, :5] + 0.9 * slope / (5.0 + slope.square().sum())
    torch.testing.assert_close(moved[:, :5], expected)
    found = of_discriminator("zcr", step, noise=0.07)
    assert float(found.detach()) == pytest.approx(0.07**2 * float(slope.square().sum()), rel=0.1)


def test_zcr_compares_what_g_made_whatever_d_is_shown() -> None:
    step = linear_step()
    objective = Objective(make_loss("hinge", {}), {"dat": make_regulariser("dat", {})})
    objective.presented(step)
    assert not torch.equal(step.fake, step.generator(step.latents))
    assert float(of_discriminator("zcr", step, noise=0.0).detach()) == 0


@pytest.mark.parametrize("augment", ["none", "diffaugment"])
def test_zcr_sees_no_difference_where_z_does_not_move(augment: str) -> None:
    """However G mixes styles and adds noise, and however D's images are augmented."""
    preset = PRESETS["stylegan2"]
    settings = make_settings(preset.small, {"stack": {"width": 8, "mixing": 0.9}})
    g, d = (build(preset.stack(role, settings.stack, 3, (8, 8)), 0) for role in ROLES)
    assert isinstance(g, Generator) and isinstance(d, Discriminator) and g.noisy
    with torch.no_grad():
        for name, weight in g.named_parameters():
            if name.endswith("strength"):
                weight.fill_(1.0)
    objective = Objective(make_loss("hinge", {}), {}, make_augmentation(augment, {}))
    z = latents(8, g.spec.latent, 0)
    assert not torch.equal(g(z), g(z)), "its noise differs from call to call"
    rng, real = torch.Generator().manual_seed(0), torch.zeros(8, 3, 8, 8)
    step = Step(g, d, real, g(z), z, rng, z[:, 0], z[:, 0])
    objective.prepare(step)
    for noise, same in ((0.0, True), (0.5, False)):
        for term_of_player in (of_discriminator, of_generator):
            found = float(term_of_player("zcr", step, noise=noise).detach())
            assert (abs(found) < 1e-6) == same


def test_replay_keeps_what_g_made_whatever_d_is_shown() -> None:
    step = linear_step()
    made = step.fake.clone()
    parts = {name: make_regulariser(name, {}) for name in ("dat", "replay")}
    Objective(make_loss("hinge", {}), parts).presented(step)
    assert not torch.equal(step.fake, made)
    torch.testing.assert_close(step.memory["replay.fakes"], made)


def test_where_d_gives_errors_the_small_ones_are_the_best() -> None:
    step = linear_step()
    likes = make_regulariser("latent", {}).latents(step) - step.latents
    step.discriminator.spec = SimpleNamespace(energy=True, given=0)  # type: ignore[assignment]
    torch.testing.assert_close(make_regulariser("latent", {}).latents(step) - step.latents, -likes)
    kept = make_regulariser("top-k", {"least": 0.25}).kept(
        replace(step, images=10**9), torch.arange(16.0)
    )
    assert sorted(kept.tolist()) == [0, 1, 2, 3]


def test_lecam_is_refused_where_d_gives_errors() -> None:
    settings = make_settings({"loss": "began", "regularisers": {"lecam": {}}})
    with pytest.raises(UserError, match=r"'lecam' has no meaning for the loss 'began'; .*hinge"):
        make_objective(settings)


def test_clip_is_refused_where_weights_are_divided_by_their_singular_value() -> None:
    settings = make_settings(
        {"regularisers": {"clip": {}}, "stack": {"discriminator_rate": "spectral"}}
    )
    with pytest.raises(UserError, match="'clip' has no meaning for D's rate 'spectral'"):
        make_objective(settings)


def test_top_k_keeps_whole_images_where_d_judges_patches() -> None:
    logits = torch.tensor([[9.0, -9], [1, 1], [3, -2], [2, 2]])  # means 0, 1, 0.5, 2
    step = replace(linear_step(), images=10**9)
    kept = make_regulariser("top-k", {"least": 0.5}).kept(step, logits)
    assert kept.tolist() == [[2, 2], [1, 1]]


def test_path_length_takes_the_mean_over_the_styles_of_all_layers() -> None:
    """With s A for each style s the squares are s² ||A y||²; the label's columns do not count."""
    step = linear_step()
    a = torch.cat([torch.eye(192) * 3, torch.full((192, 4), 100.0)], 1)
    step.generator = Matrix(a, (3, 8, 8), latent=192, styles=2)  # type: ignore[assignment]
    step.latents = torch.randn(512, 196)
    of_generator("path-length", step, share=1.0)
    expected = 3 * (192 / 64) ** 0.5 * ((1 + 4) / 2) ** 0.5
    assert float(step.memory["path.mean"]) == pytest.approx(expected, rel=0.02)


def test_a_new_weight_is_near_the_mean_of_its_own_life() -> None:
    step, rule = linear_step(), make_regulariser("historical", {})
    d = step.discriminator
    for _ in range(10):
        rule.after(d, step)
    d.w = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    d.new = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    for value in (0.0, 1.0, 2.0):
        for each in (d.w, d.new):
            nn.init.constant_(each, value)  # type: ignore[arg-type]
        rule.after(d, step)
    for name in ("w", "new"):
        mean = step.memory[f"historical.discriminator.{name}"]
        torch.testing.assert_close(mean, torch.ones(2))


@pytest.mark.parametrize("entry", list(REGULARISERS), ids=lambda entry: str(entry.name))
def test_every_regulariser_moves_something_on_a_real_pair(entry: object) -> None:
    """Whatever it does, it does it with gradients or with its own hands."""
    name = str(entry.name)  # type: ignore[attr-defined]
    rule = make_regulariser(name, {"start": 0} if name == "lecam" else {})
    step = stack_step()
    players = step.discriminator, step.generator
    if name == "historical":
        for player in players:
            rule.after(player, step)
            with torch.no_grad():
                for p in player.parameters():
                    p.add_(0.1)
    before = [p.detach().clone() for player in players for p in player.parameters()]
    did = not torch.equal(rule.latents(step), step.latents)
    rule.presented(step)
    did |= not torch.equal(rule.presented(step)[1], step.fake)
    did |= len(rule.kept(replace(step, images=10**8), step.fake_logits)) < len(step.fake_logits)
    step.real_logits, step.fake_logits = players[0](step.real), players[0](step.fake)
    terms = [rule.discriminator(step)] if isinstance(rule, Penalty) else []
    step.fake = players[1](step.latents)
    terms += [rule.generator(step)] if isinstance(rule, Penalty) else []
    for found in terms:
        if found is not None:
            assert torch.isfinite(found) and found.ndim == 0
            did |= found.requires_grad
            if found.requires_grad:
                found.backward()
    for player in players:
        rule.after(player, step)
    after = [p.detach() for player in players for p in player.parameters()]
    did |= any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert did
