"""Conditioning: D's logits, the terms of each conditioning, G's labels, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.artifacts.gallery import write_gallery
from growgan.cli import main
from growgan.config import make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.scoring import build_batches
from growgan.execution.warm_start import (
    PU_PRIOR_RAMP_IMAGES,
    finetune_settings,
    init_from_pretrained,
)
from growgan.metrics import evaluate
from growgan.nets.conditioning import append_condition, one_hot
from growgan.nets.growth_ops import Widen, apply_edit
from growgan.nets.invertible_map import InvertibleLatentMap, spectral_norm_upper_bound
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.spec import DiscriminatorSpec, LayerSpec, NetworkSpec
from growgan.objectives import Objective, make_objective
from growgan.objectives.conditioning import CONDITIONINGS, LogitConditioning, make_conditioning
from growgan.objectives.conditioning.classification import f_divergence
from growgan.objectives.step_context import StepContext
from growgan.run.grow import grow
from growgan.run.validation import derive_network_settings, validate_settings
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan, generate_uint8, make_generator_input
from growgan.training.loop import set_learning_rates
from growgan.training.runtime import make_runtime
from growgan.training.step import training_step

pytestmark = pytest.mark.usefixtures("temporary_cache")

NAMES = [entry.name for entry in CONDITIONINGS if entry.name != "none"]
CLASSES = 3
DIVERGENCES = ("reverse-kl", "kl", "pearson", "squared-hellinger", "jensen-shannon")
Y = one_hot(torch.tensor([0, 2, 1, 2, -1]), CLASSES)  # the last row has no label


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_with_heads(labels: Tensor = Y, **head_outputs: Tensor) -> StepContext:
    """Return a step in which each linear head of D outputs fixed rows, first for real images."""
    n = len(labels)

    class FixedHead:
        def __init__(self, values: Tensor) -> None:
            self.values = values

        def __call__(self, rows: Tensor) -> Tensor:
            return self.values[rows.argmax(1)]

    rows = 7 * torch.eye(2 * n)  # heads must not depend on the norm of features
    d = SimpleNamespace(
        linear_heads={name: FixedHead(values) for name, values in head_outputs.items()}
    )
    step = SimpleNamespace(
        discriminator=d, labels=labels, real_features=rows[:n], fake_features=rows[n:]
    )
    return cast(StepContext, step)


def log_softmax(logits: Tensor, label: int) -> float:
    """Return the log-softmax of ``label`` in float64."""
    weights = [float(v.double().exp()) for v in logits]
    return float(np.log(weights[label] / sum(weights)))


LABELS = [0, 2, 1, 2]


def mean_cross_entropy(logits: Tensor, labels: list[int] = LABELS) -> float:
    return -float(np.mean([log_softmax(logits[i], y) for i, y in enumerate(labels)]))


def test_ac_is_the_cross_entropy_of_labeled_rows() -> None:
    logits = noise(10, CLASSES)
    step, ac = (
        step_with_heads(classifier=logits),
        make_conditioning("ac", {"weight": 2.0, "generator_weight": 0.5}),
    )
    expected = mean_cross_entropy(logits[:5]) + mean_cross_entropy(logits[5:])
    assert float(ac.discriminator_terms(step)["class"]) == pytest.approx(2 * expected, rel=1e-5)
    term = float(ac.generator_terms(step)["class_generator"])
    assert term == pytest.approx(0.5 * mean_cross_entropy(logits[5:]), rel=1e-5)


def test_tac_subtracts_the_cross_entropy_of_the_second_classifier() -> None:
    p, q = noise(10, CLASSES), noise(10, CLASSES, seed=2)
    step, tac = step_with_heads(classifier=p, fake_classifier=q), make_conditioning("tac", {})
    terms = tac.discriminator_terms(step)
    assert float(terms["class"]) == pytest.approx(mean_cross_entropy(p[:5]), rel=1e-5)
    assert float(terms["class_fake"]) == pytest.approx(mean_cross_entropy(q[5:]), rel=1e-5)
    gap = mean_cross_entropy(p[5:]) - mean_cross_entropy(q[5:])
    term = float(tac.generator_terms(step)["class_generator"])
    assert term == pytest.approx(gap, rel=1e-5)
    same = tac.generator_terms(step_with_heads(classifier=p, fake_classifier=p))["class_generator"]
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_adc_has_a_real_and_a_fake_output_per_class() -> None:
    logits = noise(10, 2 * CLASSES)
    step, adc = step_with_heads(classifier=logits), make_conditioning("adc", {})
    real = mean_cross_entropy(logits[:5])
    fake = mean_cross_entropy(logits[5:], [y + CLASSES for y in LABELS])
    assert float(adc.discriminator_terms(step)["class"]) == pytest.approx(real + fake, rel=1e-5)
    gap = mean_cross_entropy(logits[5:]) - fake
    assert float(adc.generator_terms(step)["class_generator"]) == pytest.approx(gap, rel=1e-5)


def test_multi_hinge_compares_each_class_with_the_largest_other() -> None:
    values = noise(10, CLASSES + 1)

    def hinge(row: Tensor, label: int) -> float:
        largest_other = max(float(v) for k, v in enumerate(row) if k != label)
        return max(0.0, 1 - float(row[label]) + largest_other)

    step, mh = step_with_heads(classifier=values), make_conditioning("mh", {})
    reals = np.mean([hinge(values[i], y) for i, y in enumerate(LABELS)])
    fakes = np.mean([hinge(values[i], CLASSES) for i in range(5, 10)])
    assert float(mh.discriminator_terms(step)["class"]) == pytest.approx(reals + fakes, rel=1e-5)
    term = np.mean([hinge(values[5 + i], y) for i, y in enumerate(LABELS)])
    assert float(mh.generator_terms(step)["class_generator"]) == pytest.approx(term, rel=1e-5)


def test_2c_matches_equation_8_of_its_paper() -> None:
    rows, proxies = F.normalize(noise(5, 6), dim=1), F.normalize(noise(CLASSES, 6, seed=2), dim=1)
    conditioning = make_conditioning("2c", {"temperature": 0.5})
    losses = []
    for i, y in enumerate(LABELS):
        positive = np.exp(float(rows[i] @ proxies[y]) / 0.5)
        similarities = {k: np.exp(float(rows[i] @ rows[k]) / 0.5) for k in range(4) if k != i}
        same = sum(value for k, value in similarities.items() if LABELS[k] == y)
        losses.append(-np.log((positive + same) / (positive + sum(similarities.values()))))
    result = conditioning.contrastive_loss(rows, proxies, Y)  # type: ignore[attr-defined]
    assert float(result) == pytest.approx(np.mean(losses), rel=1e-5)


def test_d2d_ce_matches_equation_5_of_its_paper() -> None:
    rows, proxies = F.normalize(noise(5, 6), dim=1), F.normalize(noise(CLASSES, 6, seed=2), dim=1)
    options = {"temperature": 0.5, "positive_margin": 0.9, "negative_margin": 0.1}
    conditioning = make_conditioning("d2d-ce", options)
    losses = []
    for i, y in enumerate(LABELS):
        positive = np.exp(min(0.0, float(rows[i] @ proxies[y]) - 0.9) / 0.5)
        negatives = [
            np.exp(max(0.0, float(rows[i] @ rows[k]) - 0.1) / 0.5)
            for k in range(4)
            if LABELS[k] != y
        ]
        losses.append(-np.log(positive / (positive + sum(negatives))))
    result = conditioning.contrastive_loss(rows, proxies, Y)  # type: ignore[attr-defined]
    assert float(result) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("adaptive", [0, 1])
def test_p2gan_trains_both_classifiers(adaptive: int) -> None:
    p, q, w = noise(10, CLASSES), noise(10, CLASSES, seed=2), noise(10, 1, seed=3)
    conditioning = make_conditioning("p2gan", {"adaptive_weighting": adaptive})
    assert set(conditioning.linear_heads(CLASSES)) == (
        {"classifier", "fake_classifier", "adaptive_weight"}
        if adaptive
        else {"classifier", "fake_classifier"}
    )
    terms = conditioning.discriminator_terms(
        step_with_heads(classifier=p, fake_classifier=q, adaptive_weight=w)
    )
    for name, logits, start in (("class", p, 0), ("class_fake", q, 5)):
        losses = [-log_softmax(logits[start + i], y) for i, y in enumerate(LABELS)]
        if adaptive:
            weights = [1 / (1 + np.exp(float(w[start + i, 0]))) for i in range(4)]
            losses = [v * e - np.log(v) for v, e in zip(weights, losses, strict=True)]
        assert float(terms[name]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_adaptive_weights_of_confidently_classified_images_are_bounded() -> None:
    """For CE = 0 the paper's exp(-w) CE + w has no lower bound; -log λ is bounded by 0."""
    confident = step_with_heads(
        classifier=100 * Y.repeat(2, 1),
        fake_classifier=100 * Y.repeat(2, 1),
        adaptive_weight=torch.full((10, 1), -1e4),
    )
    conditioning = make_conditioning("p2gan", {"adaptive_weighting": 1})
    assert all(float(term) == 0 for term in conditioning.discriminator_terms(confident).values())
    # The head receives detached float32 features of unit norm.
    inputs: list[Tensor] = []
    features = (1e6 * noise(5, 4)).requires_grad_()

    def record_input(rows: Tensor) -> Tensor:
        inputs.append(rows)
        return rows[:, :1]

    step = step_with_heads(
        classifier=noise(10, CLASSES),
        fake_classifier=noise(10, CLASSES),
        adaptive_weight=noise(10, 1),
    )
    step.real_features = features
    for name in ("classifier", "fake_classifier"):
        step.discriminator.linear_heads[name] = lambda rows: rows[:, :3]
    step.discriminator.linear_heads["adaptive_weight"] = record_input
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conditioning.discriminator_terms(step)
    assert inputs[0].dtype == torch.float32 and not inputs[0].requires_grad
    torch.testing.assert_close(inputs[0].norm(dim=1), torch.ones(5))


def test_contrastive_losses_are_finite_at_a_low_temperature() -> None:
    """For equal rows, 2 of the 4 similarities are positives at any temperature."""
    rows, proxies = F.normalize(torch.ones(4, 6), dim=1), F.normalize(torch.ones(2, 6), dim=1)
    rows.requires_grad_()
    y = one_hot(torch.tensor([0, 0, 1, 1]), 2)
    for temperature in (0.5, 0.01, 0.001):
        conditioning = make_conditioning("2c", {"temperature": temperature})
        result = conditioning.contrastive_loss(rows, proxies, y)  # type: ignore[attr-defined]
        rounded = float(torch.finfo(torch.float32).eps) / temperature
        assert float(result.detach()) == pytest.approx(np.log(2), abs=1e-6 + 2 * rounded)
        (gradient,) = torch.autograd.grad(result, rows)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("index", range(5))
def test_gradients_of_divergences_are_bounded_and_do_not_vanish(index: int) -> None:
    """The gradient by log r is that of f(r) - r f'(r) within ±3, and constant beyond."""

    def slope(x: float) -> float:
        r = np.exp(x)
        return float((-1, -r, -2 * r**2, -(r**0.5) / 2, -r / (2 * (r + 1)))[index])

    for log_ratio, clamped in ((-15.0, -3.0), (15.0, 3.0), (-2.0, -2.0), (0.5, 0.5)):
        log_r = torch.tensor(log_ratio, dtype=torch.float64, requires_grad=True)
        f_divergence(DIVERGENCES[index], log_r).backward()
        assert log_r.grad is not None
        assert float(log_r.grad) == pytest.approx(slope(clamped), rel=1e-6)


@pytest.mark.parametrize("index", range(5))
def test_gradients_through_fakes_match_those_of_the_divergence(index: int) -> None:
    """For fakes m + z and reals N(0, 1), the gradient by m is that of the integral of q f(p/q).

    The expected derivative is a central difference of the integral, in which q moves with m.
    """
    shift, grid = 0.4, torch.linspace(-9, 9, 20_001, dtype=torch.float64)

    def divergence_at(m: float) -> float:
        log_q = -0.5 * (grid - m).square() - 0.5 * np.log(2 * np.pi)
        log_r = -0.5 * grid.square() + 0.5 * (grid - m).square()
        values = log_q.exp() * f_divergence(DIVERGENCES[index], log_r)
        return float(torch.trapezoid(values, grid))

    expected = (divergence_at(shift + 1e-4) - divergence_at(shift - 1e-4)) / 2e-4
    z = grid - shift
    m = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    fakes = m + z
    log_r = -0.5 * fakes.square() + 0.5 * (fakes - shift).square()  # constant densities
    weights = torch.exp(-0.5 * z.square()) / np.sqrt(2 * np.pi)
    torch.trapezoid(weights * f_divergence(DIVERGENCES[index], log_r), grid).backward()
    assert m.grad is not None
    assert float(m.grad) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("index", range(5))
def test_f_divergences_match_those_of_known_distributions(index: int) -> None:
    """The mean of f(p/q) under q is the divergence of two distributions on four points."""
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    m = (p + q) / 2
    expected = (
        (q * np.log(q / p)).sum(),
        (p * np.log(p / q)).sum(),
        ((p - q) ** 2 / q).sum(),
        ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(),
        0.5 * ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()),
    )
    result = f_divergence(DIVERGENCES[index], torch.tensor(np.log(p / q)))
    assert float((result * torch.tensor(q)).sum()) == pytest.approx(expected[index], rel=1e-6)


def test_f_cgan_is_the_divergence_of_the_two_classifiers() -> None:
    p, q = noise(10, CLASSES), noise(10, CLASSES, seed=2)
    step, y = step_with_heads(classifier=p, fake_classifier=q), LABELS
    conditioning = make_conditioning("f-cgan", {"divergence": "kl"})
    log_r = [log_softmax(p[5 + i], y[i]) - log_softmax(q[5 + i], y[i]) for i in range(4)]
    expected = np.mean([np.exp(v) * v for v in log_r])
    term = float(conditioning.generator_terms(step)["class_generator"])
    assert term == pytest.approx(expected, rel=1e-4)


def test_infogan_is_the_negative_log_likelihood_of_the_codes() -> None:
    predictions = noise(4, 5)
    continuous_codes = noise(2, 2, seed=2)
    labels = torch.cat([one_hot(torch.tensor([1, 0]), 3), continuous_codes], 1)
    conditioning = make_conditioning(
        "infogan", {"num_categories": 3, "num_continuous": 2, "weight": 0.5}
    )
    losses = [
        -log_softmax(predictions[2 + i, :3], y)
        + 0.5 * float((predictions[2 + i, 3:] - continuous_codes[i]).square().sum())
        for i, y in enumerate((1, 0))
    ]
    step = step_with_heads(labels, classifier=predictions)
    for term in (
        conditioning.discriminator_terms(step)["code"],
        conditioning.generator_terms(step)["code_generator"],
    ):
        assert float(term) == pytest.approx(0.5 * np.mean(losses), rel=1e-5)


# Networks


def network_specs(
    name: str, preset: str = "pggan", **values: Any
) -> tuple[NetworkSpec, NetworkSpec]:
    settings = make_settings(
        PRESETS[preset].small_settings,
        {"preset": preset, "conditioning": name, "network": {"width": 16, **values}},
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 1, 16, 16), dtype=np.uint8)
    data = ImageSet("noise", images, np.arange(8) % CLASSES, ("a", "b", "c"), "noise")
    shape = derive_network_settings(validate_settings(settings), data).network
    g, d = (PRESETS[preset].network_spec(role, shape, 1, (16, 16)) for role in ROLES)
    return g, d


@pytest.mark.parametrize("preset", ["pggan", "dcgan", "sngan", "r3gan", "stylegan2"])
def test_conditional_logits_match_their_formulas(preset: str) -> None:
    x, y = noise(5, 1, 16, 16), Y
    for name in ("projection", "md", "p2gan"):
        d = build_network(network_specs(name, preset)[1], 0)
        assert isinstance(d, Discriminator)
        d.eval()
        features = d.features(x)
        conditional = torch.zeros(5)
        for i, label in enumerate(LABELS):  # the last row has no label
            conditional[i] = d.linear_heads["classifier"](features)[i, label]
            if name == "p2gan":
                conditional[i] -= d.linear_heads["fake_classifier"](features)[i, label]
        base = torch.zeros(5) if name == "md" else d.epilogue.logits(features)
        torch.testing.assert_close(d(x, y), base + conditional)


def test_a_fade_in_preserves_a_discriminator_with_label_channels() -> None:
    from growgan.nets.presets.pggan import PGGANFamily

    spec = network_specs("concat")[1]
    parent = build_network(spec, 0).eval().requires_grad_(False)
    shape = make_settings({"network": {"width": 16}}).network
    child = apply_edit(parent, PGGANFamily().doubling_edit(shape, spec), 1).eval()
    x, y = noise(5, 1, 16, 16), Y
    assert isinstance(parent, Discriminator) and isinstance(child, Discriminator)
    large = F.interpolate(x, scale_factor=2)
    torch.testing.assert_close(child(large, y), parent(x, y), rtol=1e-4, atol=1e-5)
    assert not torch.equal(parent(x, y), parent(x, y.roll(1, 0)))


@pytest.mark.parametrize("name", ["projection", "ac", "2c"])
def test_widening_preserves_conditional_networks(name: str) -> None:
    for spec in network_specs(name, "pggan", label_embedding_dim=4):
        parent = build_network(spec, 0).eval().requires_grad_(False)
        child = apply_edit(parent, Widen(), 1).eval()
        if isinstance(parent, Generator):
            z = append_condition(spec, noise(5, spec.latent_dim))
            torch.testing.assert_close(child(z), parent(z), rtol=1e-4, atol=1e-5)
        else:
            assert isinstance(parent, Discriminator) and isinstance(child, Discriminator)
            x = noise(5, 1, 16, 16)
            torch.testing.assert_close(child(x, Y), parent(x, Y), rtol=1e-4, atol=1e-5)
            for key, head in parent.linear_heads.items():
                wide = child.linear_heads[key](child.features(x))
                torch.testing.assert_close(wide, head(parent.features(x)), rtol=1e-4, atol=1e-5)


def test_labels_reach_the_stem_the_styles_or_both() -> None:
    z = noise(4, 64)
    for values in (
        {"norm": "conditional", "stem_uses_label": False},
        {"norm": "conditional", "styles_use_latent": False},
        {"norm": "pixel"},
        {"norm": "conditional", "label_embedding_dim": 5},
    ):
        spec = network_specs("projection", latent_dim=64, **values)[0]
        g = build_network(spec, 0).eval()
        assert isinstance(g, Generator)
        inputs_of_labels = [
            torch.cat([z, one_hot(torch.full((4,), label), CLASSES)], 1) for label in (0, 1)
        ]
        stems = [g.stem(g.map_to_w(inputs)) for inputs in inputs_of_labels]
        assert torch.equal(*stems) == (not spec.stem_uses_label)
        assert not torch.equal(g(inputs_of_labels[0]), g(inputs_of_labels[1]))
        label_width = 5 if spec.label_embedding_dim else CLASSES
        assert spec.style_dim == label_width + 64 * spec.styles_use_latent


def test_labels_are_cycled_and_a_missing_label_is_all_zeros() -> None:
    spec = network_specs("projection")[0]
    y = append_condition(spec, noise(7, spec.latent_dim))[:, spec.latent_dim :]
    assert y.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0] and (y.sum(1) == 1).all()
    assert (
        append_condition(spec, noise(3, spec.latent_dim), [2])[:, spec.latent_dim :]
        .argmax(1)
        .tolist()
        == [2] * 3
    )
    assert Y[-1].tolist() == [0, 0, 0]


# Steps and runs


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(200, 1, 16, 16)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_conditioning_trains_every_parameter(
    name: str, missing: bool, data: ImageSet
) -> None:
    if missing:
        labels = np.where(np.arange(200) % 3 == 0, -1, np.asarray(data.labels))
        data = replace(data, labels=labels)
    if name in ("source-concat", "source-projection", "unpaired"):
        data = replace(data, source_images=np.array(data.images))
    options = {"p2gan": {"adaptive_weighting": 1}, "projection": {"mismatch_weight": 1.0}}.get(
        name, {}
    )
    settings = make_settings(
        {
            "batch_size": 16,
            "loss": "non-saturating",
            "conditioning": name,
            "conditioning_options": options,
            "optimizer": {"eps": 1e-30, "lr": 1e-3},
            "network": {
                "latent_dim": 8,
                "width": 8,
                "norm": "conditional",
                "label_embedding_dim": 4,
            },
        }
    )
    settings = derive_network_settings(validate_settings(settings), data)
    space = SearchSpace("pggan", settings.network, 1, (16, 16))
    gan = Gan.create(*space.specs_at(2), settings.optimizer, seed=0)
    before = {n: p.clone() for n, p in named_parameters(gan)}
    objective, runtime = make_objective(settings), make_runtime("cpu", "bfloat16")
    for _ in range(3):
        terms = training_step(gan, Batches(data, 16, 0), objective, settings, runtime=runtime)
        assert all(bool(torch.isfinite(value).all()) for value in terms.values())
    unchanged = [n for n, p in named_parameters(gan) if torch.equal(p, before[n])]
    assert unchanged == [], unchanged


def named_parameters(gan: Gan) -> list[tuple[str, Tensor]]:
    networks = (("G", gan.generator), ("D", gan.discriminator))
    return [(f"{r}.{n}", p) for r, network in networks for n, p in network.named_parameters()]


def mismatch_loss(objective: Objective, step: SimpleNamespace) -> Tensor:
    conditioning = objective.conditioning
    assert isinstance(conditioning, LogitConditioning)
    return objective._mismatch_loss(conditioning, cast(StepContext, step))


def test_the_mismatch_term_gives_every_image_another_label(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "conditioning": "projection",
        "conditioning_options": {"mismatch_weight": 1.0},
        "batch_size": 8,
    }
    settings = derive_network_settings(validate_settings(make_settings(values)), data)
    objective = make_objective(settings)
    received_conditions: list[Tensor] = []

    def critic(images: Tensor, wrong: Tensor) -> Tensor:
        received_conditions.append(wrong)
        return images.mean((1, 2, 3))

    y = one_hot(torch.arange(8), 8)
    x = noise(8, 1, 4, 4)
    step = SimpleNamespace(
        labels=y, real=x, fake=x, rng=torch.Generator().manual_seed(3),
        objective_state={},
        discriminator=critic, augment=lambda images: images, real_logits=noise(8),
        source=torch.empty(0), condition_args=lambda images: (y,),
    )  # fmt: skip
    term = mismatch_loss(objective, step)
    assert torch.isfinite(term) and len(received_conditions) == 2
    assert all(torch.equal(wrong.sort(0).values, y.sort(0).values) for wrong in received_conditions)


def test_only_the_leading_source_channels_are_mismatched() -> None:
    options = {"mismatch_weight": 1.0, "mismatch_channels": 2}
    values = {"conditioning": "source-concat", "conditioning_options": options, "batch_size": 6}
    objective = make_objective(make_settings(values))
    received_conditions: list[Tensor] = []

    def critic(images: Tensor, wrong: Tensor) -> Tensor:
        received_conditions.append(wrong.view(6, 3, 4, 4))
        return images.mean((1, 2, 3))

    x = noise(6, 1, 4, 4)
    source = noise(6, 3, 4, 4)
    step = SimpleNamespace(
        labels=torch.empty(6, 0), real=x, fake=x, rng=torch.Generator().manual_seed(3),
        objective_state={},
        discriminator=critic, augment=lambda images: images, real_logits=noise(6),
        source=source, condition_args=lambda images: (source.flatten(1),),
    )  # fmt: skip
    mismatch_loss(objective, step)
    for wrong in received_conditions:
        assert torch.equal(wrong[:, 2:], source[:, 2:])
        assert all(not torch.equal(wrong[k, :2], source[k, :2]) for k in range(6))
        assert torch.equal(wrong[:, :2].sort(0).values, source[:, :2].sort(0).values)


@pytest.mark.parametrize("patches", [False, True])
def test_source_projection_is_an_inner_product_with_features(patches: bool) -> None:
    layers = (LayerSpec("x0", "strided", 8, 3, 2),)
    spec = DiscriminatorSpec(
        base_grid=(4, 4),
        image_channels=1,
        stem_width=12,
        layers=layers,
        source_channels=2,
        logit_conditioning="source_projection",
        patch_discriminator=patches,
    )
    d = build_network(spec, 0)
    assert isinstance(d, Discriminator) and spec.from_image_channels == 1
    x, c = noise(3, 1, 8, 8), noise(3, 2, 8, 8)
    features = d.features(x, c.flatten(1))
    difference = d.logits(features, c.flatten(1)) - d.logits(features, torch.zeros(3, 128))
    # Each grid cell compares 4x4 pixels, but the source has only 2x2 per cell: repeat them.
    cells = c.repeat_interleave(2, 2).repeat_interleave(2, 3).view(3, 2, 4, 4, 4, 4)
    source_patches = cells.permute(0, 2, 4, 1, 3, 5).reshape(3, 16, 32)
    head = d.linear_heads["source"]
    if patches:
        expected = (head(features.view(3, 12, 16).mT) * source_patches).sum(-1)
    else:
        flat = source_patches.mT.reshape(3, 32 * 16)
        expected = (head(features) * flat).sum(-1)
    assert difference.shape == expected.shape and torch.allclose(difference, expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["relativistic", "wasserstein"])
def test_the_mismatch_term_does_not_shift_all_logits_of_a_relativistic_loss(loss: str) -> None:
    values = {"conditioning": "projection", "conditioning_options": {"mismatch_weight": 1.0}}
    objective = make_objective(make_settings({**values, "loss": loss}))
    shift, y = torch.zeros((), requires_grad=True), one_hot(torch.arange(8), 8)
    step = SimpleNamespace(
        labels=y, real=noise(8, 1, 4, 4), fake=noise(8, 1, 4, 4), objective_state={},
        rng=torch.Generator().manual_seed(0), augment=lambda images: images,
        discriminator=lambda images, wrong: images.mean((1, 2, 3)) + shift,
        real_logits=noise(8) + shift, source=torch.empty(0), condition_args=lambda images: (y,),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(mismatch_loss(objective, step), shift)
    assert float(gradient) == pytest.approx(0, abs=1e-6)


def test_a_missing_label_is_not_a_mismatch() -> None:
    """The term ignores rows in which either label is missing."""
    settings = make_settings(
        {
            "conditioning": "projection",
            "conditioning_options": {"mismatch_weight": 1},
            "loss": "hinge",
        }
    )
    objective = make_objective(settings)
    y = one_hot(torch.tensor([0, 1, 2, -1, 0, 1, 2, -1]), CLASSES)
    logits = noise(8)
    step = SimpleNamespace(
        labels=y, real=noise(8, 1, 4, 4), fake=noise(8, 1, 4, 4), objective_state={},
        rng=torch.Generator().manual_seed(0), discriminator=lambda images, wrong: logits,
        augment=lambda images: images, real_logits=torch.zeros(8),
        source=torch.empty(0), condition_args=lambda images: (y,),
    )  # fmt: skip
    roll = int(torch.randint(1, 8, (), generator=torch.Generator().manual_seed(0)))
    labels = y.argmax(1).masked_fill(y.sum(1) == 0, -1).tolist()
    pairs = [(labels[i], labels[(i - roll) % 8]) for i in range(8)]
    rows = [i for i, (a, b) in enumerate(pairs) if a >= 0 and b >= 0 and a != b]
    assert 0 < len(rows) < 6
    expected = 1 + np.mean([max(0.0, 1 + float(logits[i])) for i in rows])
    assert float(mismatch_loss(objective, step)) == pytest.approx(expected, rel=1e-5)
    step.labels = one_hot(torch.full((8,), -1), CLASSES)
    assert float(mismatch_loss(objective, step)) == 0


def test_a_conditional_search_grows_and_samples_by_label(data: ImageSet, tmp_path: Path) -> None:
    growth_options = {
        "min_trial_images": 1,
        "images_per_parameter": 1e-6,
        "plateau_slope": 100.0,
        "max_fraction_per_resolution": 0.06,
        "sample_prob": 1.0,
        "start_resolution": 8,
    }
    settings = {
        "batch_size": 8,
        "conditioning": "projection",
        "network": {"latent_dim": 16, "width": 8, "label_embedding_dim": 4},
        "score": {"kind": "swd", "num_samples": 64},
        "growth": growth_options,
        "edits": {"max_width": 16},
    }
    run = grow(data, out=tmp_path / "run", images=1600, settings=settings)
    best = run.best
    assert best.load_network().spec.label_dim == 2
    class_1 = best.sample(6, labels=[1])
    cycled = best.sample(6)
    assert np.array_equal(class_1[1], cycled[1]) and not np.array_equal(class_1[0], cycled[0])
    interpolation = best.interpolate_classes([0, 1, 0], 2, rows=3, seed=4)
    assert interpolation.shape == (3 * 5, 16, 16, 1)
    rows = interpolation.reshape(3, 5, 16, 16, 1)
    assert np.array_equal(rows[:, 0], rows[:, 4])
    assert np.array_equal(rows[:, 2], best.sample(3, seed=4, labels=[1]))
    sheet = tmp_path / "morph.png"
    command = [
        "sample",
        str(run.path),
        "--interpolate-classes",
        "0,1",
        "--steps",
        "3",
        "--out",
        str(sheet),
    ]
    assert main(command) == 0 and sheet.stat().st_size > 0
    with pytest.raises(UserError, match="a class interpolation needs at least two labels"):
        best.interpolate_classes([0], 2)
    with pytest.raises(UserError, match="label must be from 0 to 1, but got 2"):
        best.sample(4, labels=[2])
    out = tmp_path / "samples.npz"
    assert main(["sample", str(run.path), "-n", "5", "--labels", "1,0", "--out", str(out)]) == 0
    with np.load(out) as result:
        assert result["labels"].tolist() == [1, 0, 1, 0, 1]
    resumed = grow(data, out=run.path, images=2000, resume=True)
    assert resumed.best.load_network().spec.label_dim == 2
    from_run = evaluate(
        resumed, data, metrics="intra-fid", features="pixels", num_fake=60, cache_dir=tmp_path
    )
    samples = resumed.best.sample(60).transpose(0, 3, 1, 2).copy()
    sample_set = ImageSet("samples", samples, resumed.best.sample_labels(60), data.classes, "")
    from_samples = evaluate(
        sample_set, data, metrics="intra-fid", features="pixels", cache_dir=tmp_path
    )
    assert from_run["intra-fid"].value == from_samples["intra-fid"].value


def test_infogan_needs_no_labels(data: ImageSet, tmp_path: Path) -> None:
    unlabeled = replace(data, labels=None, classes=())
    settings = {
        "policy": "fixed",
        "batch_size": 8,
        "conditioning": "infogan",
        "conditioning_options": {"num_categories": 4, "num_continuous": 1},
        "network": {"latent_dim": 8, "width": 8},
        "score": {"kind": "swd", "num_samples": 64},
    }
    run = grow(unlabeled, out=tmp_path / "run", images=400, settings=settings)
    spec = run.best.load_network().spec
    assert (spec.label_dim, spec.num_continuous_codes) == (5, 1)
    assert run.best.sample(8, labels=[3]).shape == (8, 16, 16, 1)
    traversal = run.best.traverse_code(0, 4, rows=2, seed=1).reshape(2, 5, -1).astype(float)
    assert np.diff(traversal, axis=1).any(2).all(), "every step changes every image"
    z = make_generator_input(spec, 2, 1)
    z[:, -1] = 2.0
    last_images = generate_uint8(run.best.load_network(), z).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(traversal[:, -1], last_images.reshape(2, -1))
    with pytest.raises(
        UserError, match="code must be below the number of continuous codes, 1, but got 1"
    ):
        run.best.traverse_code(1, 4)
    sheet = tmp_path / "codes.png"
    assert (
        main(["sample", str(run.path), "--traverse-code", "0", "--steps", "3", "--out", str(sheet)])
        == 0
    )
    assert (write_gallery(run) / "codes.png").exists() and sheet.stat().st_size > 0
    assert run.best.classes == ()  # codes are not classes of the data
    with pytest.raises(
        UserError, match="needs labels of at least two classes, but 'blobs' has none"
    ):
        grow(unlabeled, out=tmp_path / "no", images=400, settings={**settings, "conditioning": "ac",
             "conditioning_options": {}})  # fmt: skip
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditioning": "projektion"}, "unknown conditioning 'projektion'.*did you mean"),
        ({"conditioning": "ac", "conditioning_options": {"x": 1}}, "unknown conditioning_options"),
        ({"conditioning": "ac", "loss": "began"}, "cannot be combined with loss 'began'"),
        (
            {"conditioning": "infogan", "regularizers": "replay"},
            "replayed fakes have another condition",
        ),
        *(
            ({"conditioning": name, "conditioning_options": {option: value}}, message)
            for name, option, value, message in (
                ("2c", "temperature", 0, "temperature' must be greater than 0, but got 0"),
                (
                    "d2d-ce",
                    "embedding_size",
                    0,
                    "embedding_size' must be greater than 0, but got 0",
                ),
                (
                    "2c",
                    "embedding_size",
                    2.5,
                    "embedding_size' must be a valid integer, .* but got 2.5",
                ),
                ("f-cgan", "divergence", 5, "must be 'reverse-kl', 'kl', .* but got 5"),
                ("f-cgan", "divergence", "k", "must be 'reverse-kl', 'kl', .* but got 'k'"),
                ("p2gan", "adaptive_weighting", 2, "must be a valid boolean, .* but got 2"),
                ("infogan", "num_categories", 0.5, "num_categories' must be a valid integer"),
            )
        ),
        (
            {
                "conditioning": "infogan",
                "conditioning_options": {"num_categories": 0, "num_continuous": 0},
            },
            "needs a code",
        ),
    ],
)
def test_invalid_conditionings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate_settings(make_settings(values))


# Reprogramming


@pytest.fixture(scope="module")
def reprogrammed_gan(data: ImageSet) -> Gan:
    """Return an unconditional GAN that was reprogrammed to two classes for 120 steps."""
    parent_settings = make_settings(
        {"batch_size": 16, "network": {"latent_dim": 16, "width": 8, "style_mixing_prob": 0}}
    )
    values = finetune_settings("reprogram", parent_settings, len(data.classes), 1920)
    settings = derive_network_settings(validate_settings(make_settings(values)), data)
    assert (settings.optimizer.lr, settings.optimizer.discriminator_lr) == (1e-3, 2e-2)
    parent = Gan.create(
        *SearchSpace("pggan", parent_settings.network, 1, (16, 16)).specs_at(2),
        parent_settings.optimizer,
        seed=0,
    )
    g, d = parent.generator.spec, parent.discriminator.spec
    conditional_specs = (
        replace(g, label_dim=2, invertible_map_blocks=3),
        replace(
            d, label_dim=2, logit_conditioning="per_class_logits", linear_heads=(("classifier", 2),)
        ),
    )
    gan = init_from_pretrained(parent, conditional_specs, settings.optimizer, seed=1)
    objective, runtime = make_objective(settings), make_runtime("cpu", "float32")
    for _ in range(120):
        set_learning_rates(gan, settings, 0.0)
        training_step(gan, Batches(data, 16, 0), objective, settings, runtime=runtime)
    return gan


def test_reprogramming_keeps_latents_near_their_distribution(reprogrammed_gan: Gan) -> None:
    g, latents = reprogrammed_gan.generator.eval(), noise(256, 16)
    untrained_map = initial_map(reprogrammed_gan)
    for label in (0, 1):
        y = one_hot(torch.full((256,), label), 2)
        with torch.no_grad():
            mapped, untrained = g.invertible_map(latents, y), untrained_map(latents, y)
            images, unmapped = (
                g(torch.cat([latents, y], 1)),
                g.synthesize(g.stem.map_to_w(latents, None)),
            )
        assert not torch.equal(mapped, untrained)
        assert float((mapped.norm(dim=1) / latents.norm(dim=1)).mean()) < 1.3
        assert float(images.std(0).mean()) > 0.8 * float(unmapped.std(0).mean())


def initial_map(gan: Gan) -> InvertibleLatentMap:
    """Return the invertible map before training."""
    generator = build_network(gan.generator.spec, 2)
    assert isinstance(generator, Generator)
    return generator.invertible_map.eval()


def test_the_ema_of_an_invertible_map_is_invertible(reprogrammed_gan: Gan) -> None:
    rng = torch.Generator().manual_seed(0)
    perturbed = deepcopy(reprogrammed_gan.generator.invertible_map)
    with torch.no_grad():
        for p in perturbed.parameters():  # not normalized, like an average of changing weights
            p.add_(torch.randn(p.shape, generator=rng))
    for invertible_map in (reprogrammed_gan.ema.invertible_map, perturbed.eval()):
        for block in invertible_map.blocks:
            first_weight, second_weight = (
                layer.effective_weight.detach() for layer in (block.linear1, block.linear2)
            )
            lipschitz_bound = (
                0.9 * torch.linalg.svdvals(first_weight)[0] * torch.linalg.svdvals(second_weight)[0]
            )
            assert 0.85 < float(lipschitz_bound) < 0.9 + 1e-5
        u, y = noise(8, 16), one_hot(torch.arange(8), 2)
        with torch.no_grad():
            inverted = invertible_map.inverse(invertible_map(u, y), y)
        torch.testing.assert_close(inverted, u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1, 3, 64])
def test_the_spectral_norm_bound_is_tight(width: int) -> None:
    for matrix in (noise(width, width), torch.eye(width), noise(width, 1) @ noise(1, width)):
        exact = float(torch.linalg.svdvals(matrix)[0])
        assert exact * (1 - 1e-5) <= float(spectral_norm_upper_bound(matrix)) <= exact * 1.01


def test_the_prior_of_reprogramming_is_the_share_of_one_class(data: ImageSet) -> None:
    parent_settings = make_settings({"optimizer": {"lr": 1e-2, "discriminator_lr": 3e-3}})
    values = finetune_settings("reprogram", parent_settings, 4, 1000)
    assert values["loss_options"] == {"prior": 0.25, "ramp_images": 1000}
    assert values["optimizer"]["discriminator_lr"] == 3e-3
    assert finetune_settings("reprogram", parent_settings, 4)["loss_options"] == {
        "prior": 0.25,
        "ramp_images": PU_PRIOR_RAMP_IMAGES,
    }
    tuned = finetune_settings("finetune", parent_settings, 4, 1000)
    assert tuned["optimizer"]["lr"] == 1e-2 and tuned["loss_options"] == {}


# Samples for scores and metrics


def test_codes_are_not_the_labels_of_the_data(data: ImageSet) -> None:
    partly_labeled = replace(
        data, labels=np.where(np.arange(200) < 50, -1, np.asarray(data.labels))
    )
    counts = {}
    for name in ("none", "infogan", "projection", "md"):
        batches = build_batches(partly_labeled, make_settings({"conditioning": name}))
        counts[name] = batches.num_images, batches.training_labels is not None
    # With one logit per class, D has no logit for unlabeled images.
    assert counts == {
        "none": (200, False),
        "infogan": (200, False),
        "projection": (200, True),
        "md": (150, True),
    }
    batches = build_batches(data, make_settings({"conditioning": "infogan"}))
    score_labels = CandidateScorer(batches, make_runtime("cpu", "float32"), None)._score_labels(160)
    codes = one_hot(torch.tensor(score_labels), 10)
    assert (codes.sum(0) == 16).all()
    assert (codes.view(-1, 8, 10).sum(0) == 2).all()  # in each jackknife group


def test_codes_may_be_continuous_only(data: ImageSet) -> None:
    options = {"num_categories": 0, "num_continuous": 2}
    settings = make_settings({"conditioning": "infogan", "conditioning_options": options})
    shape = derive_network_settings(validate_settings(settings), data).network
    spec = SearchSpace("pggan", shape, 1, (16, 16)).specs_at(1)[0]
    rows = append_condition(spec, noise(5, spec.latent_dim), seed=3)
    assert rows.shape == (5, spec.latent_dim + 2)
    assert torch.equal(rows, append_condition(spec, noise(5, spec.latent_dim), seed=3))
    assert len(rows[:, -1].unique()) == 5


def test_a_run_is_evaluated_with_the_class_frequencies_of_the_data(data: ImageSet) -> None:
    received_labels: list[list[int] | None] = []

    class RecordingSampler:
        classes = data.classes

        def sample_labels(self, count: int) -> Any:
            return np.arange(count) % 2

        def sample(self, count: int, *, seed: int = 0, labels: list[int] | None = None) -> Any:
            received_labels.append(labels)
            return np.full((count, 16, 16, 1), 50, np.uint8)

    labels = np.array([0] * 180 + [1] * 10 + [-1] * 10)
    reals, options = replace(data, labels=labels), {"features": "pixels", "num_fake": 400}
    evaluate(RecordingSampler(), reals, metrics="fid", **options)  # type: ignore[arg-type]
    (drawn_labels,) = received_labels
    assert drawn_labels is not None and len(drawn_labels) == 400
    assert np.mean(drawn_labels) == pytest.approx(10 / 190, abs=0.04)
    evaluate(RecordingSampler(), reals, metrics="intra-fid", **options)  # type: ignore[arg-type]
    assert received_labels[1:] == [None]
    evaluate(RecordingSampler(), reals, metrics=["fid", "intra-fid"], **options)  # type: ignore[arg-type]
    assert received_labels[2:] == [drawn_labels, None]
    evaluate(RecordingSampler(), replace(reals, labels=None), metrics="fid", **options)  # type: ignore[arg-type]
    assert received_labels[4:] == [None]
