"""Regularizers, compared with values that can be derived for linear networks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.config import NetworkConfig, make_settings
from growgan.errors import UserError
from growgan.nets.layers import ScaledLinear
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.spec import WeightSpec
from growgan.objectives import (
    REGULARIZERS,
    Objective,
    StepContext,
    make_augmentation,
    make_loss,
    make_objective,
    make_regularizer,
)
from growgan.objectives.consistency import flip_and_shift
from growgan.objectives.regularizer import Penalty
from growgan.objectives.step_context import Shard, ShardedRng
from growgan.search.history import SearchSpace
from growgan.training.gan import sample_latents

SPACE = SearchSpace("pggan", NetworkConfig(latent_dim=6, width=8), 3, (8, 8))


class Linear(nn.Module):
    """D(x) = <w, x> with a chosen ||w||; its features are x."""

    spec = SimpleNamespace(is_autoencoder=False, source_channels=0)

    def __init__(self, norm: float, pixels: tuple[int, ...] = (3, 8, 8)) -> None:
        super().__init__()
        w = torch.randn(pixels, generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w * norm / w.norm())

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        # Autocast computes F.linear in bfloat16.
        return F.linear(x.flatten(1), self.w.flatten()[None]).flatten()


class Matrix(nn.Module):
    """G(z) = A z as an image, without normalization. The first ``latent_dim`` inputs are z.

    With several styles, G is the sum of (k + 1) A w_k.
    """

    is_stochastic = False

    def __init__(
        self,
        matrix: Tensor,
        pixels: tuple[int, ...],
        latent_dim: int | None = None,
        num_styles: int = 1,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(matrix)
        self.pixels, self.num_styles = pixels, num_styles
        self.spec = SimpleNamespace(latent_dim=latent_dim or matrix.shape[1])

    def map_to_w(self, z: Tensor) -> Tensor:
        return z

    def synthesize(self, w: Tensor) -> Tensor:
        w = w if w.ndim == 3 else w[:, None].expand(-1, self.num_styles, -1)
        factors = torch.arange(1.0, 1 + self.num_styles)
        return (torch.einsum("nsw,s->nw", w, factors) @ self.weight.T).view(-1, *self.pixels)

    def forward(self, z: Tensor) -> Tensor:
        return self.synthesize(self.map_to_w(z))


def linear_step(norm: float = 2.0, count: int = 16, labels: int = 0) -> StepContext:
    """Return a step of a linear G and a linear D; G's input is 5 latents and ``labels`` entries."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(192, 5 + labels, generator=rng) / 10
    g, d = Matrix(a, (3, 8, 8), latent_dim=5), Linear(norm)
    real, z = (
        torch.rand(count, 3, 8, 8, generator=rng) * 2 - 1,
        torch.randn(count, 5 + labels, generator=rng),
    )
    fake = g(z).detach()
    step = StepContext(g, d, real, fake, z, rng, d(real), d(fake))  # type: ignore[arg-type]
    return replace(step, labels=z[:, 5:]) if labels else step


def split_step(step: StepContext, num_shards: int = 2) -> list[StepContext]:
    """Return the same step with its batch split into shards."""
    fields = ("real", "fake", "generator_input", "labels", "real_logits", "fake_logits")
    shards = []
    for index in range(num_shards):
        rng = torch.Generator()
        rng.set_state(step.rng.get_state())
        shard_rows = {
            name: getattr(step, name).chunk(num_shards)[index]
            for name in fields
            if name != "labels"
        }
        if step.labels.numel():
            shard_rows["labels"] = step.labels.chunk(num_shards)[index]
        shards.append(replace(step, rng=rng, shard=Shard(index, num_shards), **shard_rows))
    return shards


def network_step(count: int = 8) -> StepContext:
    """Return a step of small networks."""
    g, d = (build_network(spec, i) for i, spec in enumerate(SPACE.specs_at(1)))
    assert isinstance(g, Generator) and isinstance(d, Discriminator)
    rng = torch.Generator().manual_seed(0)
    real = torch.rand(count, 3, 8, 8, generator=rng) * 2 - 1
    z = torch.randn(count, 6, generator=rng)
    fake = g(z).detach()
    return StepContext(g, d, real, fake, z, rng, d(real), d(fake))


def penalty_term(role: str, name: str, step: StepContext, **options: float) -> Tensor:
    regularizer = make_regularizer(name, options)
    assert isinstance(regularizer, Penalty)
    if role == "discriminator":
        term = regularizer.discriminator_term(step)
    else:
        term = regularizer.generator_term(step)
    assert term is not None
    return term


discriminator_term = partial(penalty_term, "discriminator")
generator_term = partial(penalty_term, "generator")


@pytest.mark.parametrize("norm", [0.5, 3.0])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_gradient_penalties_of_a_linear_critic(norm: float, bfloat16: bool) -> None:
    expected = {
        "r1": norm**2 / 2,
        "r2": norm**2 / 2,
        "gp": (norm - 1) ** 2,
        "dragan": (norm - 1) ** 2,
        "max-gp": norm**2,
    }
    for name, value in expected.items():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            term = discriminator_term(name, linear_step(norm))
        # bfloat16 has 8 significant bits.
        assert float(term.detach()) == pytest.approx(value, rel=2e-2 if bfloat16 else 1e-4), name


def test_dragan_adds_noise_of_half_the_standard_deviation() -> None:
    inputs: list[Tensor] = []

    class RecordingLinear(Linear):
        def forward(self, x: Tensor) -> Tensor:
            inputs.append(x.detach())
            return super().forward(x)

    step = linear_step()
    step.discriminator = RecordingLinear(1.0)  # type: ignore[assignment]
    discriminator_term("dragan", step)
    shift = (inputs[0] - step.real) / (0.5 * step.real.std())
    assert 0 <= float(shift.min()) < 0.01 and 0.99 < float(shift.max()) <= 1


def test_label_smoothing_is_a_cross_entropy_with_target_0_9() -> None:
    step = linear_step()
    original = F.softplus(-step.real_logits).mean()
    smooth = original + 0.1 * discriminator_term("label-smoothing", step)
    target = torch.full_like(step.real_logits, 0.9)
    expected = F.binary_cross_entropy_with_logits(step.real_logits, target)
    torch.testing.assert_close(smooth, expected)


def test_lecam_compares_logits_with_averages_after_its_start_step() -> None:
    step = linear_step()
    lecam = make_regularizer("lecam", {"start_step": 1, "ema_decay": 0.5})
    assert isinstance(lecam, Penalty)
    assert lecam.discriminator_term(step) is None
    real, fake = step.real_logits.mean(), step.fake_logits.mean()
    step = replace(
        step, index=1, real_logits=step.real_logits + 1, fake_logits=step.fake_logits - 1
    )
    term = lecam.discriminator_term(step)
    above = F.relu(step.real_logits - (fake - 0.5)).square().mean()
    below = F.relu((real + 0.5) - step.fake_logits).square().mean()
    assert term is not None
    torch.testing.assert_close(term, above + below)


def test_consistency_is_zero_only_for_an_invariant_critic() -> None:
    step = linear_step()

    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))

    for name in ("cr", "bcr"):
        assert float(discriminator_term(name, step).detach()) > 0.01
    constant = replace(step, real=torch.ones_like(step.real) / 2, fake=torch.ones_like(step.real))
    constant.discriminator = Mean()  # type: ignore[assignment]
    for name in ("cr", "bcr"):
        assert float(discriminator_term(name, constant)) == pytest.approx(0, abs=1e-12)


def test_flip_and_shift_flips_and_shifts() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8).repeat(64, 1, 1, 1)
    result = flip_and_shift(images, ShardedRng(torch.Generator().manual_seed(0), len(images)))
    corners = {tuple(image[0, 2:6, 2:6].flatten().tolist()) for image in result}
    legal = {
        tuple(image[0, 0, 2 + dy : 6 + dy, 2 + dx : 6 + dx].flatten().tolist())
        for image in (images, images.flip(3))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert corners <= legal and len(corners) > 10


def test_zcr_of_linear_networks() -> None:
    """D(G(z)) - D(G(z + σ ε)) = -σ <w, A ε>, whose square has the mean σ² ||Aᵀ w||²."""
    step = linear_step(count=4096)
    a, w = step.generator.weight, step.discriminator.w.flatten()  # type: ignore[union-attr]
    term = discriminator_term("zcr", step, noise_std=0.07)
    expected = 0.07**2 * (a.T @ w).square().sum()  # type: ignore[operator]
    assert float(term.detach()) == pytest.approx(float(expected.detach()), rel=0.1)
    with torch.no_grad():
        term = generator_term("zcr", step, noise_std=0.07, generator_weight=1.0)
        expected = -(0.07**2) * a.square().sum() / 192  # type: ignore[operator]
    assert float(term) == pytest.approx(float(expected), rel=0.1)


def test_path_length_of_a_linear_generator() -> None:
    """||Aᵀ y|| has the mean square ||A||² / pixels; with A = s I the lengths are s ||y||."""
    step = linear_step()
    eye = torch.eye(192) * 3
    step.generator = Matrix(eye, (3, 8, 8))  # type: ignore[assignment]
    step.generator_input = torch.randn(512, 192)
    term = generator_term("path-length", step, batch_fraction=1.0)
    mean = step.objective_state["path.mean"]
    # y has 192 values of variance 1/64.
    assert float(mean) == pytest.approx(3 * (192 / 64) ** 0.5, rel=0.02)
    assert float(term.detach()) < 0.05 * float(mean) ** 2
    term.backward()
    assert step.generator.weight.grad is not None  # type: ignore[union-attr]
    far = step.objective_state["path.mean"].clone()
    step.generator = Matrix(eye * 2, (3, 8, 8))  # type: ignore[assignment]
    term = generator_term("path-length", replace(step, index=1), batch_fraction=1.0, ema_decay=1.0)
    assert float(term.detach()) == pytest.approx(float(far) ** 2, rel=0.1)


def test_latent_optimization_follows_the_gradient() -> None:
    step = linear_step()
    a, w = step.generator.weight.detach(), step.discriminator.w.detach().flatten()  # type: ignore[union-attr]
    slope = a.T @ w  # type: ignore[operator]
    expected = step.generator_input + 0.9 * slope / (5.0 + slope.square().sum())
    torch.testing.assert_close(
        make_regularizer("latent-optimization", {}).transform_generator_input(step), expected
    )


def test_orthogonal_regularization_ignores_norms() -> None:
    step = linear_step()
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    step.generator = ScaledLinear(2, 3, weight_spec=WeightSpec(parametrization="none"))  # type: ignore[assignment]
    step.generator.weight.data = rows  # type: ignore[union-attr]
    # Off the diagonal: 0, 3 and 0.5, each twice.
    assert float(generator_term("orthogonal", step).detach()) == pytest.approx(2 * (9 + 0.25))


def test_clip_applies_to_effective_weights_regardless_of_their_scale() -> None:
    step = network_step()
    with torch.no_grad():
        for parameter in step.discriminator.parameters():
            parameter.sub_(0.5)
    make_regularizer("clip", {"clip_value": 0.02}).after_update(step.discriminator, step)
    biases = [parameter for parameter in step.discriminator.parameters() if parameter.ndim == 1]
    assert biases and all(float(parameter.detach().abs().max()) <= 0.02 for parameter in biases)
    effective_weights = [
        m.weight * m.weight_scale
        for m in step.discriminator.modules()
        if hasattr(m, "weight_scale")
    ]
    maxima = [float(weight.abs().max().detach()) for weight in effective_weights]
    assert max(maxima) == pytest.approx(0.02, rel=1e-5) and len(maxima) > 3
    before = [p.clone() for p in step.generator.parameters()]
    make_regularizer("clip", {}).after_update(step.generator, step)
    assert all(torch.equal(a, b) for a, b in zip(before, step.generator.parameters(), strict=True))


def test_the_largest_singular_value_is_clamped_to_the_second() -> None:
    step = network_step()
    weights = [m.weight for m in step.discriminator.modules() if hasattr(m, "weight_scale")]
    before = [torch.linalg.svdvals(w.detach().flatten(1)) for w in weights]
    make_regularizer("singular-value-clamp", {}).after_update(step.discriminator, step)
    for w, values in zip(weights, before, strict=True):
        after = torch.linalg.svdvals(w.detach().flatten(1))
        if len(after) > 1:
            assert float(after[0]) == pytest.approx(float(values[1]), rel=1e-4)
            torch.testing.assert_close(after[2:], values[2:], rtol=1e-3, atol=1e-5)


def test_historical_averaging_penalizes_the_distance_to_the_mean_over_time() -> None:
    step = network_step()
    regularizer = make_regularizer("historical-averaging", {})
    assert isinstance(regularizer, Penalty)
    start = [p.detach().clone() for p in step.discriminator.parameters()]
    for shift in (0.0, 1.0, 2.0):
        with torch.no_grad():
            for p, first in zip(step.discriminator.parameters(), start, strict=True):
                p.copy_(first + shift)
        regularizer.after_update(step.discriminator, step)
    term = regularizer.discriminator_term(step)
    assert term is not None
    assert float(term.detach()) == pytest.approx(sum(p.numel() for p in start), rel=1e-4)


def test_feature_matching_and_pulling_away_match_their_formulas() -> None:
    step = linear_step()
    gap = (step.real.flatten(1).mean(0) - step.fake.flatten(1).mean(0)).square().mean()
    torch.testing.assert_close(generator_term("feature-matching", step), gap)
    identical = replace(step, fake=step.fake[:1].repeat(16, 1, 1, 1))
    assert float(generator_term("pulling-away", identical)) == pytest.approx(1, rel=1e-5)
    orthogonal = torch.zeros(3, 3, 8, 8)
    orthogonal[range(3), range(3), 0, 0] = 1.0
    assert float(generator_term("pulling-away", replace(step, fake=orthogonal))) == 0


def test_top_k_selects_the_largest_logits_and_its_fraction_decays() -> None:
    step, regularizer = (
        linear_step(),
        make_regularizer("top-k", {"decay": 0.5, "min_fraction": 0.25}),
    )
    logits = torch.arange(16.0)
    assert len(regularizer.select_logits(step, logits)) == 16
    later = regularizer.select_logits(replace(step, images_seen=50_000), logits)
    assert sorted(later.tolist()) == list(range(8, 16))
    assert len(regularizer.select_logits(replace(step, images_seen=10**9), logits)) == 4


def test_replay_mixes_in_old_fakes_and_starts_over_at_a_new_resolution() -> None:
    regularizer = make_regularizer("replay", {"buffer_size": 32, "replay_fraction": 0.5})
    step = linear_step()
    step.fake = torch.zeros_like(step.fake)
    assert torch.equal(regularizer.transform_batch(step)[1], step.fake)
    for value in (1.0, 2.0, 3.0):
        step.fake = torch.full_like(step.fake, value)
        batch = regularizer.transform_batch(step)[1]
        assert (batch[:8] < value).all() and (batch[8:] == value).all()
        assert len(step.objective_state["replay.fakes"]) <= 32
    step.real = step.fake = torch.zeros(16, 3, 16, 16)
    assert regularizer.transform_batch(step)[1].shape == step.fake.shape


def test_dat_reduces_the_gap_between_the_mean_logits() -> None:
    step = linear_step(norm=0.5)
    step.real = torch.full_like(step.real, 0.2) * step.discriminator.w.sign().detach()  # type: ignore[union-attr]
    step.fake = -step.real
    real, fake = make_regularizer("dat", {}).transform_batch(step)
    critic = step.discriminator
    before = float((critic(step.real).mean() - critic(step.fake).mean()).detach())
    after = float((critic(real).mean() - critic(fake).mean()).detach())
    assert 0 < after < before
    # The gradient of a mean over 16 images is w/16.
    torch.testing.assert_close(real, step.real - step.discriminator.w.detach() / 16)  # type: ignore[union-attr]
    assert float(real.abs().max()) <= 1 and not real.requires_grad


@pytest.mark.parametrize("name", ["r1", "r2", "gp", "drift", "cr", "bcr", "zcr", "l1"])
def test_a_term_of_a_batch_is_the_mean_over_its_shards(name: str) -> None:
    step = linear_step(labels=3)
    for role in ("discriminator", "generator"):
        if role == "generator" and name not in ("zcr", "l1"):
            continue
        if role == "discriminator" and name == "l1":
            continue
        shards = torch.stack([penalty_term(role, name, shard) for shard in split_step(step)])
        torch.testing.assert_close(shards.mean(), penalty_term(role, name, step))


@pytest.mark.parametrize("name", ["latent-optimization", "dat"])
def test_shards_are_transformed_like_the_whole_batch(name: str) -> None:
    step, regularizer = linear_step(labels=3), make_regularizer(name, {})
    transformed = [
        (regularizer.transform_generator_input(shard), *regularizer.transform_batch(shard))
        for shard in [*split_step(step), step]
    ]
    for *shards, full_batch in zip(*transformed, strict=True):
        torch.testing.assert_close(torch.cat(shards), full_batch)


def test_shards_update_an_average_like_the_whole_batch() -> None:
    full_batch, shards = linear_step(), linear_step()
    for index in range(3):
        values = torch.randn(4, generator=torch.Generator().manual_seed(index))
        replace(full_batch, index=index).update_ema("a", values.mean(), 0.9)
        for shard_index, value in enumerate(values):
            replace(shards, index=index, shard=Shard(shard_index, 4)).update_ema("a", value, 0.9)
        torch.testing.assert_close(shards.objective_state["a"], full_batch.objective_state["a"])


def test_lecam_and_path_length_averages_of_shards_equal_those_of_the_batch() -> None:
    for role, name, keys in (
        ("discriminator", "lecam", ("lecam.real", "lecam.fake")),
        ("generator", "path-length", ("path.mean",)),
    ):
        full_batch, sharded = linear_step(), linear_step()
        options = {"start_step": 0.0} if name == "lecam" else {"batch_fraction": 1.0}
        for index in range(3):
            for shard in split_step(replace(sharded, index=index)):
                penalty_term(role, name, shard, **options)
            state = full_batch.rng.get_state()
            penalty_term(role, name, replace(full_batch, index=index), **options)
            for step in (full_batch, sharded):  # the next batch
                step.rng.set_state(state)
                step.rng.manual_seed(index)
                step.real_logits, step.fake_logits = step.real_logits + 1, step.fake_logits * 2
        for key in keys:
            torch.testing.assert_close(
                sharded.objective_state[key], full_batch.objective_state[key]
            )


def test_latent_optimization_keeps_labels() -> None:
    step = linear_step(count=4096, labels=3)
    a, w = step.generator.weight.detach(), step.discriminator.w.detach().flatten()  # type: ignore[union-attr]
    slope = (a.T @ w)[:5]  # type: ignore[operator]
    optimized = make_regularizer("latent-optimization", {}).transform_generator_input(step)
    torch.testing.assert_close(optimized[:, 5:], step.generator_input[:, 5:])
    expected = step.generator_input[:, :5] + 0.9 * slope / (5.0 + slope.square().sum())
    torch.testing.assert_close(optimized[:, :5], expected)
    term = discriminator_term("zcr", step, noise_std=0.07)
    assert float(term.detach()) == pytest.approx(0.07**2 * float(slope.square().sum()), rel=0.1)


def test_zcr_compares_raw_fakes() -> None:
    step = linear_step()
    objective = Objective(make_loss("hinge", {}), {"dat": make_regularizer("dat", {})})
    objective.prepare_discriminator_batch(step)
    assert not torch.equal(step.fake, step.generator(step.generator_input))
    assert float(discriminator_term("zcr", step, noise_std=0.0).detach()) == 0


@pytest.mark.parametrize("augment", ["none", "diffaugment"])
def test_zcr_is_zero_without_noise_even_for_a_stochastic_generator(augment: str) -> None:
    """This holds although G mixes styles and adds noise, with and without augmentation."""
    preset = PRESETS["stylegan2"]
    settings = make_settings(
        preset.small_settings, {"network": {"width": 8, "style_mixing_prob": 0.9}}
    )
    g, d = (
        build_network(preset.network_spec(role, settings.network, 3, (8, 8)), 0) for role in ROLES
    )
    assert isinstance(g, Generator) and isinstance(d, Discriminator) and g.is_stochastic
    with torch.no_grad():
        for name, weight in g.named_parameters():
            if name.endswith("strength"):
                weight.fill_(1.0)
    objective = Objective(make_loss("hinge", {}), {}, make_augmentation(augment, {}))
    z = sample_latents(8, g.spec.latent_dim, 0)
    assert not torch.equal(g(z), g(z)), "the noise differs between calls"
    rng, real = torch.Generator().manual_seed(0), torch.zeros(8, 3, 8, 8)
    step = StepContext(g, d, real, g(z), z, rng, z[:, 0], z[:, 0])
    objective.bind_augmentation(step)
    for noise_std, is_zero in ((0.0, True), (0.5, False)):
        for make_term in (discriminator_term, generator_term):
            term = float(make_term("zcr", step, noise_std=noise_std).detach())
            assert (abs(term) < 1e-6) == is_zero


def test_replay_stores_raw_fakes() -> None:
    step = linear_step()
    raw_fake = step.fake.clone()
    regularizers = {name: make_regularizer(name, {}) for name in ("dat", "replay")}
    Objective(make_loss("hinge", {}), regularizers).prepare_discriminator_batch(step)
    assert not torch.equal(step.fake, raw_fake)
    torch.testing.assert_close(step.objective_state["replay.fakes"], raw_fake)


def test_for_autoencoders_small_errors_are_the_best() -> None:
    step = linear_step()
    change = (
        make_regularizer("latent-optimization", {}).transform_generator_input(step)
        - step.generator_input
    )
    step.discriminator.spec = SimpleNamespace(is_autoencoder=True, source_channels=0)  # type: ignore[assignment]
    torch.testing.assert_close(
        make_regularizer("latent-optimization", {}).transform_generator_input(step)
        - step.generator_input,
        -change,
    )
    selected = make_regularizer("top-k", {"min_fraction": 0.25}).select_logits(
        replace(step, images_seen=10**9), torch.arange(16.0)
    )
    assert sorted(selected.tolist()) == [0, 1, 2, 3]


def test_lecam_is_refused_with_an_energy_based_loss() -> None:
    settings = make_settings({"loss": "began", "regularizers": {"lecam": {}}})
    with pytest.raises(UserError, match=r"'lecam' cannot be combined with loss 'began'; .*hinge"):
        make_objective(settings)


def test_clip_is_refused_with_spectral_normalization() -> None:
    settings = make_settings(
        {
            "regularizers": {"clip": {}},
            "network": {
                "discriminator_parametrization": "spectral_norm",
                "discriminator_lr_scaling": "none",
            },
        }
    )
    with pytest.raises(UserError, match="'clip' has no effect with parametrization 'spectral"):
        make_objective(settings)


def test_top_k_selects_whole_images_if_d_classifies_patches() -> None:
    logits = torch.tensor([[9.0, -9], [1, 1], [3, -2], [2, 2]])  # means 0, 1, 0.5, 2
    step = replace(linear_step(), images_seen=10**9)
    selected = make_regularizer("top-k", {"min_fraction": 0.5}).select_logits(step, logits)
    assert selected.tolist() == [[2, 2], [1, 1]]


def test_path_length_is_the_mean_over_the_styles_of_all_layers() -> None:
    """With s A for style s, the squared lengths are s² ||Aᵀ y||²; labels are left out."""
    step = linear_step()
    a = torch.cat([torch.eye(192) * 3, torch.full((192, 4), 100.0)], 1)
    step.generator = Matrix(a, (3, 8, 8), latent_dim=192, num_styles=2)  # type: ignore[assignment]
    step.generator_input = torch.randn(512, 196)
    generator_term("path-length", step, batch_fraction=1.0)
    expected = 3 * (192 / 64) ** 0.5 * ((1 + 4) / 2) ** 0.5
    assert float(step.objective_state["path.mean"]) == pytest.approx(expected, rel=0.02)


def test_historical_averaging_starts_over_for_a_new_weight() -> None:
    step, regularizer = linear_step(), make_regularizer("historical-averaging", {})
    d = step.discriminator
    for _ in range(10):
        regularizer.after_update(d, step)
    d.w = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    d.new = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    for value in (0.0, 1.0, 2.0):
        for parameter in (d.w, d.new):
            nn.init.constant_(parameter, value)  # type: ignore[arg-type]
        regularizer.after_update(d, step)
    for name in ("w", "new"):
        mean = step.objective_state[f"historical.discriminator.{name}"]
        torch.testing.assert_close(mean, torch.ones(2))


@pytest.mark.parametrize("entry", list(REGULARIZERS), ids=lambda entry: str(entry.name))
def test_every_regularizer_has_an_effect_on_real_networks(entry: object) -> None:
    """A regularizer has a gradient, changes the batch, or changes weights."""
    name = str(entry.name)  # type: ignore[attr-defined]
    regularizer = make_regularizer(name, {"start_step": 0} if name == "lecam" else {})
    step = network_step()
    networks = step.discriminator, step.generator
    if name == "historical-averaging":
        for network in networks:
            regularizer.after_update(network, step)
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(0.1)
    before = [p.detach().clone() for network in networks for p in network.parameters()]
    has_effect = not torch.equal(regularizer.transform_generator_input(step), step.generator_input)
    regularizer.transform_batch(step)
    has_effect |= not torch.equal(regularizer.transform_batch(step)[1], step.fake)
    has_effect |= len(
        regularizer.select_logits(replace(step, images_seen=10**8), step.fake_logits)
    ) < len(step.fake_logits)
    step.real_logits, step.fake_logits = networks[0](step.real), networks[0](step.fake)
    terms = [regularizer.discriminator_term(step)] if isinstance(regularizer, Penalty) else []
    step.fake = networks[1](step.generator_input)
    terms += [regularizer.generator_term(step)] if isinstance(regularizer, Penalty) else []
    for term in terms:
        if term is not None:
            assert torch.isfinite(term) and term.ndim == 0
            has_effect |= term.requires_grad
            if term.requires_grad:
                term.backward()
    for network in networks:
        regularizer.after_update(network, step)
    after = [p.detach() for network in networks for p in network.parameters()]
    has_effect |= any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert has_effect
