"""What labels do: D's logits, the terms of each conditioning by hand, G's side, and whole runs."""

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

from growgan.cli import main
from growgan.config import make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.growth import grow
from growgan.growth.executor import Silent, Trainer
from growgan.growth.gallery import write_gallery
from growgan.growth.history import Space
from growgan.growth.origin import RAMP, continued, settings_for
from growgan.growth.run import check_names, for_data
from growgan.growth.scoring import batches_of
from growgan.metrics import evaluate
from growgan.nets.edits import Widen, apply
from growgan.nets.modifier import Modifier, spectral_bound
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.nets.wishes import labelled, one_hot
from growgan.objectives import make_objective
from growgan.objectives.conditioning import CONDITIONINGS, make_conditioning
from growgan.objectives.conditioning.classifying import divergence
from growgan.objectives.step import Step
from growgan.training.gan import Gan, inputs, to_uint8
from growgan.training.runtime import make_runtime
from growgan.training.stage import set_rates, step

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = [entry.name for entry in CONDITIONINGS if entry.name != "none"]
CLASSES = 3
Y = one_hot(torch.tensor([0, 2, 1, 2, -1]), CLASSES)  # the last has no label


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(labels: Tensor = Y, **readouts: Tensor) -> Step:
    """Return a step whose D reads off what is given: reals' rows first, then fakes'."""
    n = len(labels)

    class Read:
        def __init__(self, values: Tensor) -> None:
            self.values = values

        def __call__(self, rows: Tensor) -> Tensor:
            return self.values[rows.argmax(1)]

    rows = 7 * torch.eye(2 * n)  # whatever their length
    d = SimpleNamespace(readouts={name: Read(values) for name, values in readouts.items()})
    made = SimpleNamespace(
        discriminator=d, labels=labels, real_features=rows[:n], fake_features=rows[n:]
    )
    return cast(Step, made)


def log_share(logits: Tensor, label: int) -> float:
    """Return the log of a softmax, by hand."""
    weights = [float(v.double().exp()) for v in logits]
    return float(np.log(weights[label] / sum(weights)))


LABELS = [0, 2, 1, 2]


def mean_cross_entropy(logits: Tensor, labels: list[int] = LABELS) -> float:
    return -float(np.mean([log_share(logits[i], y) for i, y in enumerate(labels)]))


def test_the_auxiliary_classifier_is_a_cross_entropy_of_what_has_labels() -> None:
    logits = noise(10, CLASSES)
    seen, ac = view(p=logits), make_conditioning("ac", {"weight": 2.0, "generator_weight": 0.5})
    whole = mean_cross_entropy(logits[:5]) + mean_cross_entropy(logits[5:])
    assert float(ac.discriminator(seen)["class"]) == pytest.approx(2 * whole, rel=1e-5)
    term = float(ac.generator(seen)["class_generator"])
    assert term == pytest.approx(0.5 * mean_cross_entropy(logits[5:]), rel=1e-5)


def test_the_twin_takes_back_what_makes_classes_too_clear() -> None:
    p, q = noise(10, CLASSES), noise(10, CLASSES, seed=2)
    seen, tac = view(p=p, q=q), make_conditioning("tac", {})
    terms = tac.discriminator(seen)
    assert float(terms["class"]) == pytest.approx(mean_cross_entropy(p[:5]), rel=1e-5)
    assert float(terms["twin"]) == pytest.approx(mean_cross_entropy(q[5:]), rel=1e-5)
    gap = mean_cross_entropy(p[5:]) - mean_cross_entropy(q[5:])
    term = float(tac.generator(seen)["class_generator"])
    assert term == pytest.approx(gap, rel=1e-5)
    same = tac.generator(view(p=p, q=p))["class_generator"]
    assert float(same) == pytest.approx(0, abs=1e-6)


def test_adc_tells_real_classes_from_fake_ones() -> None:
    logits = noise(10, 2 * CLASSES)
    seen, adc = view(p=logits), make_conditioning("adc", {})
    real = mean_cross_entropy(logits[:5])
    fake = mean_cross_entropy(logits[5:], [y + CLASSES for y in LABELS])
    assert float(adc.discriminator(seen)["class"]) == pytest.approx(real + fake, rel=1e-5)
    gap = mean_cross_entropy(logits[5:]) - fake
    assert float(adc.generator(seen)["class_generator"]) == pytest.approx(gap, rel=1e-5)


def test_multi_hinge_holds_each_class_above_all_others() -> None:
    values = noise(10, CLASSES + 1)

    def hinge(row: Tensor, label: int) -> float:
        rest = max(float(v) for k, v in enumerate(row) if k != label)
        return max(0.0, 1 - float(row[label]) + rest)

    seen, mh = view(p=values), make_conditioning("mh", {})
    reals = np.mean([hinge(values[i], y) for i, y in enumerate(LABELS)])
    fakes = np.mean([hinge(values[i], CLASSES) for i in range(5, 10)])
    assert float(mh.discriminator(seen)["class"]) == pytest.approx(reals + fakes, rel=1e-5)
    term = np.mean([hinge(values[5 + i], y) for i, y in enumerate(LABELS)])
    assert float(mh.generator(seen)["class_generator"]) == pytest.approx(term, rel=1e-5)


def test_2c_is_equation_8_of_its_paper() -> None:
    rows, proxies = F.normalize(noise(5, 6), dim=1), F.normalize(noise(CLASSES, 6, seed=2), dim=1)
    conditioning = make_conditioning("2c", {"temperature": 0.5})
    losses = []
    for i, y in enumerate(LABELS):
        own = np.exp(float(rows[i] @ proxies[y]) / 0.5)
        alike = {k: np.exp(float(rows[i] @ rows[k]) / 0.5) for k in range(4) if k != i}
        same = sum(value for k, value in alike.items() if LABELS[k] == y)
        losses.append(-np.log((own + same) / (own + sum(alike.values()))))
    found = conditioning.contrast(rows, proxies, Y)  # type: ignore[attr-defined]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_d2d_ce_is_equation_5_of_its_paper() -> None:
    rows, proxies = F.normalize(noise(5, 6), dim=1), F.normalize(noise(CLASSES, 6, seed=2), dim=1)
    how = {"temperature": 0.5, "positive_margin": 0.9, "negative_margin": 0.1}
    conditioning = make_conditioning("d2d-ce", how)
    losses = []
    for i, y in enumerate(LABELS):
        own = np.exp(min(0.0, float(rows[i] @ proxies[y]) - 0.9) / 0.5)
        others = [
            np.exp(max(0.0, float(rows[i] @ rows[k]) - 0.1) / 0.5)
            for k in range(4)
            if LABELS[k] != y
        ]
        losses.append(-np.log(own / (own + sum(others))))
    found = conditioning.contrast(rows, proxies, Y)  # type: ignore[attr-defined]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("adaptive", [0, 1])
def test_p2gan_learns_both_classifiers(adaptive: int) -> None:
    p, q, w = noise(10, CLASSES), noise(10, CLASSES, seed=2), noise(10, 1, seed=3)
    conditioning = make_conditioning("p2gan", {"adaptive": adaptive})
    assert set(conditioning.readouts(CLASSES)) == ({"p", "q", "w"} if adaptive else {"p", "q"})
    terms = conditioning.discriminator(view(p=p, q=q, w=w))
    for name, logits, start in (("class", p, 0), ("twin", q, 5)):
        each = [-log_share(logits[start + i], y) for i, y in enumerate(LABELS)]
        if adaptive:
            shares = [1 / (1 + np.exp(float(w[start + i, 0]))) for i in range(4)]
            each = [v * e - np.log(v) for v, e in zip(shares, each, strict=True)]
        assert float(terms[name]) == pytest.approx(np.mean(each), rel=1e-5)


def test_the_weights_of_sure_images_have_a_floor() -> None:
    """With CE = 0 the paper's exp(-w) CE + w falls for ever; -log λ stops at 0."""
    sure = view(p=100 * Y.repeat(2, 1), q=100 * Y.repeat(2, 1), w=torch.full((10, 1), -1e4))
    conditioning = make_conditioning("p2gan", {"adaptive": 1})
    assert all(float(term) == 0 for term in conditioning.discriminator(sure).values())
    # The readout sees features of unit length, without a gradient to them, in float32.
    seen: list[Tensor] = []
    features = (1e6 * noise(5, 4)).requires_grad_()

    def read(rows: Tensor) -> Tensor:
        seen.append(rows)
        return rows[:, :1]

    step = view(p=noise(10, CLASSES), q=noise(10, CLASSES), w=noise(10, 1))
    step.real_features = features
    step.discriminator.readouts["p"] = step.discriminator.readouts["q"] = lambda rows: rows[:, :3]
    step.discriminator.readouts["w"] = read
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conditioning.discriminator(step)
    assert seen[0].dtype == torch.float32 and not seen[0].requires_grad
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(5))


def test_contrasts_of_a_low_temperature_are_finite() -> None:
    """Rows that agree with all others: (1 + 1) of (1 + 3) are their own, at any temperature."""
    rows, proxies = F.normalize(torch.ones(4, 6), dim=1), F.normalize(torch.ones(2, 6), dim=1)
    rows.requires_grad_()
    y = one_hot(torch.tensor([0, 0, 1, 1]), 2)
    for temperature in (0.5, 0.01, 0.001):
        conditioning = make_conditioning("2c", {"temperature": temperature})
        found = conditioning.contrast(rows, proxies, y)  # type: ignore[attr-defined]
        rounded = float(torch.finfo(torch.float32).eps) / temperature
        assert float(found.detach()) == pytest.approx(np.log(2), abs=1e-6 + 2 * rounded)
        (gradient,) = torch.autograd.grad(found, rows)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", range(5))
def test_divergences_still_teach_where_g_is_most_wrong(kind: int) -> None:
    """Gradients are those of f(r) - r f'(r) by log r; beyond ±3 they stay as they are there."""

    def slope(x: float) -> float:
        r = np.exp(x)
        return float((-1, -r, -2 * r**2, -(r**0.5) / 2, -r / (2 * (r + 1)))[kind])

    for far, bound in ((-15.0, -3.0), (15.0, 3.0), (-2.0, -2.0), (0.5, 0.5)):
        log_r = torch.tensor(far, dtype=torch.float64, requires_grad=True)
        divergence(kind, log_r).backward()
        assert log_r.grad is not None
        assert float(log_r.grad) == pytest.approx(slope(bound), rel=1e-6)


@pytest.mark.parametrize("kind", range(5))
def test_the_gradient_is_that_of_the_divergence_of_what_g_draws(kind: int) -> None:
    """Fakes m + z, reals N(0, 1): the gradient by m is that of the integral of q f(p/q), by m.

    The integral's own derivative is taken by differences, on a grid where q moves with m.
    """
    shift, wide = 0.4, torch.linspace(-9, 9, 20_001, dtype=torch.float64)

    def total(m: float) -> float:
        log_q = -0.5 * (wide - m).square() - 0.5 * np.log(2 * np.pi)
        log_r = -0.5 * wide.square() + 0.5 * (wide - m).square()
        values = log_q.exp() * divergence(kind, log_r)
        return float(torch.trapezoid(values, wide))

    expected = (total(shift + 1e-4) - total(shift - 1e-4)) / 2e-4
    z = wide - shift
    m = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    fakes = m + z
    log_r = -0.5 * fakes.square() + 0.5 * (fakes - shift).square()  # densities as they are
    weights = torch.exp(-0.5 * z.square()) / np.sqrt(2 * np.pi)
    torch.trapezoid(weights * divergence(kind, log_r), wide).backward()
    assert m.grad is not None
    assert float(m.grad) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("kind", range(5))
def test_divergences_are_those_of_two_distributions(kind: int) -> None:
    """The mean of f(p/q) under q is the divergence, here of two distributions on four points."""
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    m = (p + q) / 2
    known = (
        (q * np.log(q / p)).sum(),
        (p * np.log(p / q)).sum(),
        ((p - q) ** 2 / q).sum(),
        ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(),
        0.5 * ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()),
    )
    found = divergence(kind, torch.tensor(np.log(p / q)))
    assert float((found * torch.tensor(q)).sum()) == pytest.approx(known[kind], rel=1e-6)


def test_f_cgan_measures_the_gap_of_the_two_classifiers() -> None:
    p, q = noise(10, CLASSES), noise(10, CLASSES, seed=2)
    seen, y = view(p=p, q=q), LABELS
    conditioning = make_conditioning("f-cgan", {"divergence": 1})
    log_r = [log_share(p[5 + i], y[i]) - log_share(q[5 + i], y[i]) for i in range(4)]
    expected = np.mean([np.exp(v) * v for v in log_r])
    term = float(conditioning.generator(seen)["class_generator"])
    assert term == pytest.approx(expected, rel=1e-4)


def test_infogan_reads_codes_off_fakes() -> None:
    guess = noise(4, 5)
    numbers = noise(2, 2, seed=2)
    labels = torch.cat([one_hot(torch.tensor([1, 0]), 3), numbers], 1)
    conditioning = make_conditioning("infogan", {"categories": 3, "numbers": 2, "weight": 0.5})
    surprise = [
        -log_share(guess[2 + i, :3], y)
        + 0.5 * float((guess[2 + i, 3:] - numbers[i]).square().sum())
        for i, y in enumerate((1, 0))
    ]
    seen = view(labels, p=guess)
    for term in (
        conditioning.discriminator(seen)["code"],
        conditioning.generator(seen)["code_generator"],
    ):
        assert float(term) == pytest.approx(0.5 * np.mean(surprise), rel=1e-5)


# The players


def stacks(name: str, preset: str = "pggan", **values: Any) -> tuple[StackSpec, StackSpec]:
    settings = make_settings(
        PRESETS[preset].small,
        {"preset": preset, "conditioning": name, "stack": {"width": 16, **values}},
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 1, 16, 16), dtype=np.uint8)
    data = ImageSet("noise", images, np.arange(8) % CLASSES, ("a", "b", "c"), "noise")
    shape = for_data(check_names(settings), data).stack
    g, d = (PRESETS[preset].stack(role, shape, 1, (16, 16)) for role in ROLES)
    return g, d


@pytest.mark.parametrize("preset", ["pggan", "dcgan", "sngan", "r3gan", "stylegan2"])
def test_logits_are_those_of_the_formulas(preset: str) -> None:
    x, y = noise(5, 1, 16, 16), Y
    for name in ("projection", "md", "p2gan"):
        d = build(stacks(name, preset)[1], 0)
        assert isinstance(d, Discriminator)
        d.eval()
        features = d.features(x)
        own = torch.zeros(5)
        for i, label in enumerate(LABELS):  # the last row has no label
            own[i] = d.readouts["p"](features)[i, label]
            if name == "p2gan":
                own[i] -= d.readouts["q"](features)[i, label]
        base = torch.zeros(5) if name == "md" else d.end.judge(features)
        torch.testing.assert_close(d(x, y), base + own)


def test_a_label_beside_the_image_is_seen_through_a_fade() -> None:
    from growgan.nets.presets.pggan import ProgressiveFamily

    spec = stacks("concat")[1]
    parent = build(spec, 0).eval().requires_grad_(False)
    shape = make_settings({"stack": {"width": 16}}).stack
    child = apply(parent, ProgressiveFamily().doubling(shape, spec), 1).eval()
    x, y = noise(5, 1, 16, 16), Y
    assert isinstance(parent, Discriminator) and isinstance(child, Discriminator)
    large = F.interpolate(x, scale_factor=2)
    torch.testing.assert_close(child(large, y), parent(x, y), rtol=1e-4, atol=1e-5)
    assert not torch.equal(parent(x, y), parent(x, y.roll(1, 0)))


@pytest.mark.parametrize("name", ["projection", "ac", "2c"])
def test_widening_keeps_what_a_conditional_pair_computes(name: str) -> None:
    for spec in stacks(name, "pggan", embedding=4):
        parent = build(spec, 0).eval().requires_grad_(False)
        child = apply(parent, Widen(), 1).eval()
        if isinstance(parent, Generator):
            z = labelled(spec, noise(5, spec.latent))
            torch.testing.assert_close(child(z), parent(z), rtol=1e-4, atol=1e-5)
        else:
            assert isinstance(parent, Discriminator) and isinstance(child, Discriminator)
            x = noise(5, 1, 16, 16)
            torch.testing.assert_close(child(x, Y), parent(x, Y), rtol=1e-4, atol=1e-5)
            for key, readout in parent.readouts.items():
                wide = child.readouts[key](child.features(x))
                torch.testing.assert_close(wide, readout(parent.features(x)), rtol=1e-4, atol=1e-5)


def test_labels_reach_the_stem_the_styles_or_both() -> None:
    z = noise(4, 64)
    for values in (
        {"norm": "conditional", "label_stem": False},
        {"norm": "conditional", "latent_style": False},
        {"norm": "pixel"},
        {"norm": "conditional", "embedding": 5},
    ):
        spec = stacks("projection", latent=64, **values)[0]
        g = build(spec, 0).eval()
        assert isinstance(g, Generator)
        both = [torch.cat([z, one_hot(torch.full((4,), label), CLASSES)], 1) for label in (0, 1)]
        stems = [g.stem(g.embed(each)) for each in both]
        assert torch.equal(*stems) == (not spec.label_stem)
        assert not torch.equal(g(both[0]), g(both[1]))
        width = {"embedding": 5}.get("embedding" if spec.embedding else "", CLASSES)
        assert spec.style_width == width + 64 * spec.latent_style


def test_labels_take_turns_and_none_is_all_zeros() -> None:
    spec = stacks("projection")[0]
    y = labelled(spec, noise(7, spec.latent))[:, spec.latent :]
    assert y.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0] and (y.sum(1) == 1).all()
    assert (
        labelled(spec, noise(3, spec.latent), [2])[:, spec.latent :].argmax(1).tolist() == [2] * 3
    )
    assert Y[-1].tolist() == [0, 0, 0]


# Steps and runs


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(200, 1, 16, 16)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_conditioning_trains_every_parameter(
    name: str, missing: bool, data: ImageSet
) -> None:
    if missing:
        labels = np.where(np.arange(200) % 3 == 0, -1, np.asarray(data.labels))
        data = replace(data, labels=labels)
    if name in ("image", "image-projection", "domains"):
        data = replace(data, given=np.array(data.images))
    options = {"p2gan": {"adaptive": 1}, "projection": {"contrary": 1.0}}.get(name, {})
    settings = make_settings(
        {
            "batch": 16,
            "loss": "non-saturating",
            "conditioning": name,
            "conditioning_options": options,
            "optimiser": {"epsilon": 1e-30, "lr": 1e-3},
            "stack": {"latent": 8, "width": 8, "norm": "conditional", "embedding": 4},
        }
    )
    settings = for_data(check_names(settings), data)
    space = Space("pggan", settings.stack, 1, (16, 16))
    gan = Gan.create(*space.stacks(2), settings.optimiser, seed=0)
    before = {n: p.clone() for n, p in named(gan)}
    objective, runtime = make_objective(settings), make_runtime("cpu", "bfloat16")
    for _ in range(3):
        terms = step(gan, Batches(data, 16, 0), objective, settings, runtime)
        assert all(bool(torch.isfinite(value).all()) for value in terms.values())
    still = [n for n, p in named(gan) if torch.equal(p, before[n])]
    assert still == [], still


def named(gan: Gan) -> list[tuple[str, Tensor]]:
    players = (("G", gan.generator), ("D", gan.discriminator))
    return [(f"{r}.{n}", p) for r, player in players for n, p in player.named_parameters()]


def test_no_image_keeps_its_label_in_the_contrary_term(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"conditioning": "projection", "conditioning_options": {"contrary": 1.0}, "batch": 8}
    settings = for_data(check_names(make_settings(values)), data)
    objective = make_objective(settings)
    asked: list[Tensor] = []

    def judge(images: Tensor, wrong: Tensor) -> Tensor:
        asked.append(wrong)
        return images.mean((1, 2, 3))

    y = one_hot(torch.arange(8), 8)
    x = noise(8, 1, 4, 4)
    made = SimpleNamespace(
        labels=y, real=x, fake=x, rng=torch.Generator().manual_seed(3), memory={},
        discriminator=judge, augment=lambda images: images, real_logits=noise(8),
        given=torch.empty(0), labels_of=lambda images: (y,),
    )  # fmt: skip
    term = objective._contrary(cast(Step, made))
    assert torch.isfinite(term) and len(asked) == 2
    assert all(torch.equal(wrong.sort(0).values, y.sort(0).values) for wrong in asked)


def test_the_first_given_channels_alone_may_be_another_images() -> None:
    options = {"contrary": 1.0, "turned": 2}
    values = {"conditioning": "image", "conditioning_options": options, "batch": 6}
    objective = make_objective(make_settings(values))
    asked: list[Tensor] = []

    def judge(images: Tensor, wrong: Tensor) -> Tensor:
        asked.append(wrong.view(6, 3, 4, 4))
        return images.mean((1, 2, 3))

    x = noise(6, 1, 4, 4)
    given = noise(6, 3, 4, 4)
    made = SimpleNamespace(
        labels=torch.empty(6, 0), real=x, fake=x, rng=torch.Generator().manual_seed(3), memory={},
        discriminator=judge, augment=lambda images: images, real_logits=noise(6),
        given=given, labels_of=lambda images: (given.flatten(1),),
    )  # fmt: skip
    objective._contrary(cast(Step, made))
    for wrong in asked:
        assert torch.equal(wrong[:, 2:], given[:, 2:])
        assert all(not torch.equal(wrong[k, :2], given[k, :2]) for k in range(6))
        assert torch.equal(wrong[:, :2].sort(0).values, given[:, :2].sort(0).values)


@pytest.mark.parametrize("patches", [False, True])
def test_a_projection_of_the_given_image_is_its_product_with_features(patches: bool) -> None:
    layers = (LayerSpec("x0", "strided", 8, 3, 2),)
    spec = StackSpec(
        "discriminator", (4, 4), 1, 12, layers, given=2, judging="image", patches=patches
    )
    d = build(spec, 0)
    assert isinstance(d, Discriminator) and spec.seen == 1
    x, c = noise(3, 1, 8, 8), noise(3, 2, 8, 8)
    features = d.features(x, c.flatten(1))
    told = d.judge(features, c.flatten(1)) - d.judge(features, torch.zeros(3, 128))
    # The given image is as fine as half of the 4 x 4 pixels a place: each is seen twice a side.
    cells = c.repeat_interleave(2, 2).repeat_interleave(2, 3).view(3, 2, 4, 4, 4, 4)
    places = cells.permute(0, 2, 4, 1, 3, 5).reshape(3, 16, 32)
    read = d.readouts["c"]
    if patches:
        expected = (read(features.view(3, 12, 16).mT) * places).sum(-1)
    else:
        flat = places.mT.reshape(3, 32 * 16)
        expected = (read(features) * flat).sum(-1)
    assert told.shape == expected.shape and torch.allclose(told, expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["relativistic", "wasserstein"])
def test_the_contrary_term_does_not_move_all_logits_of_a_loss_of_differences(loss: str) -> None:
    values = {"conditioning": "projection", "conditioning_options": {"contrary": 1.0}}
    objective = make_objective(make_settings({**values, "loss": loss}))
    shift, y = torch.zeros((), requires_grad=True), one_hot(torch.arange(8), 8)
    made = SimpleNamespace(
        labels=y, real=noise(8, 1, 4, 4), fake=noise(8, 1, 4, 4), memory={},
        rng=torch.Generator().manual_seed(0), augment=lambda images: images,
        discriminator=lambda images, wrong: images.mean((1, 2, 3)) + shift,
        real_logits=noise(8) + shift, given=torch.empty(0), labels_of=lambda images: (y,),
    )  # fmt: skip
    (moved,) = torch.autograd.grad(objective._contrary(cast(Step, made)), shift)
    assert float(moved) == pytest.approx(0, abs=1e-6)


def test_an_unknown_label_is_not_taken_for_a_wrong_one() -> None:
    """D's loss is that of the four rows of which both labels are known."""
    settings = make_settings(
        {"conditioning": "projection", "conditioning_options": {"contrary": 1}, "loss": "hinge"}
    )
    objective = make_objective(settings)
    y = one_hot(torch.tensor([0, 1, 2, -1, 0, 1, 2, -1]), CLASSES)
    logits = noise(8)
    made = SimpleNamespace(
        labels=y, real=noise(8, 1, 4, 4), fake=noise(8, 1, 4, 4), memory={},
        rng=torch.Generator().manual_seed(0), discriminator=lambda images, wrong: logits,
        augment=lambda images: images, real_logits=torch.zeros(8),
        given=torch.empty(0), labels_of=lambda images: (y,),
    )  # fmt: skip
    turn = int(torch.randint(1, 8, (), generator=torch.Generator().manual_seed(0)))
    labels = y.argmax(1).masked_fill(y.sum(1) == 0, -1).tolist()
    pairs = [(labels[i], labels[(i - turn) % 8]) for i in range(8)]
    rows = [i for i, (a, b) in enumerate(pairs) if a >= 0 and b >= 0 and a != b]
    assert 0 < len(rows) < 6
    expected = 1 + np.mean([max(0.0, 1 + float(logits[i])) for i in rows])
    assert float(objective._contrary(cast(Step, made))) == pytest.approx(expected, rel=1e-5)
    made.labels = one_hot(torch.full((8,), -1), CLASSES)
    assert float(objective._contrary(cast(Step, made))) == 0


def test_a_conditional_search_grows_and_samples_by_label(data: ImageSet, tmp_path: Path) -> None:
    tries = {"images": 1, "shown": 1e-6, "threshold": 100.0, "reach": 0.06, "keep": 1.0, "start": 8}
    settings = {
        "batch": 8,
        "conditioning": "projection",
        "stack": {"latent": 16, "width": 8, "embedding": 4},
        "score": {"kind": "swd", "samples": 64},
        "growth": tries,
        "actions": {"widest": 16},
    }
    run = grow(data, out=tmp_path / "run", images=1600, settings=settings)
    best = run.best
    assert best.network().spec.classes == 2
    same = best.sample(6, labels=[1])
    both = best.sample(6)
    assert np.array_equal(same[1], both[1]) and not np.array_equal(same[0], both[0])
    table = best.morph([0, 1, 0], 2, rows=3, seed=4)
    assert table.shape == (3 * 5, 16, 16, 1)
    rows = table.reshape(3, 5, 16, 16, 1)
    assert np.array_equal(rows[:, 0], rows[:, 4])
    assert np.array_equal(rows[:, 2], best.sample(3, seed=4, labels=[1]))
    sheet = tmp_path / "morph.png"
    command = ["sample", str(run.path), "--morph", "0,1", "--steps", "3", "--out", str(sheet)]
    assert main(command) == 0 and sheet.stat().st_size > 0
    with pytest.raises(UserError, match="a morph needs two labels"):
        best.morph([0], 2)
    with pytest.raises(UserError, match="label 2 is none of the 2 classes: 0 to 1"):
        best.sample(4, labels=[2])
    out = tmp_path / "samples.npz"
    assert main(["sample", str(run.path), "-n", "5", "--labels", "1,0", "--out", str(out)]) == 0
    with np.load(out) as found:
        assert found["labels"].tolist() == [1, 0, 1, 0, 1]
    again = grow(data, out=run.path, images=2000, resume=True)
    assert again.best.network().spec.classes == 2
    drawn = evaluate(again, data, metrics="intra-fid", features="pixels", count=60, cache=tmp_path)
    made = again.best.sample(60).transpose(0, 3, 1, 2).copy()
    labelled = ImageSet("drawn", made, again.best.labels(60), data.classes, "")
    told = evaluate(labelled, data, metrics="intra-fid", features="pixels", cache=tmp_path)
    assert drawn["intra-fid"].value == told["intra-fid"].value


def test_codes_need_no_labels(data: ImageSet, tmp_path: Path) -> None:
    bare = replace(data, labels=None, classes=())
    settings = {
        "policy": "fixed",
        "batch": 8,
        "conditioning": "infogan",
        "conditioning_options": {"categories": 4, "numbers": 1},
        "stack": {"latent": 8, "width": 8},
        "score": {"kind": "swd", "samples": 64},
    }
    run = grow(bare, out=tmp_path / "run", images=400, settings=settings)
    spec = run.best.network().spec
    assert (spec.classes, spec.continuous) == (5, 1)
    assert run.best.sample(8, labels=[3]).shape == (8, 16, 16, 1)
    table = run.best.sweep(0, 4, rows=2, seed=1).reshape(2, 5, -1).astype(float)
    assert np.diff(table, axis=1).any(2).all(), "each step moves each row"
    z = inputs(spec, 2, 1)
    z[:, -1] = 2.0
    ends = to_uint8(run.best.network(), z).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(table[:, -1], ends.reshape(2, -1))
    with pytest.raises(UserError, match="a sweep needs one of 1 continuous codes"):
        run.best.sweep(1, 4)
    sheet = tmp_path / "codes.png"
    assert main(["sample", str(run.path), "--code", "0", "--steps", "3", "--out", str(sheet)]) == 0
    assert (write_gallery(run) / "codes.png").exists() and sheet.stat().st_size > 0
    assert run.best.classes == ()  # codes are no classes of the data
    with pytest.raises(
        UserError, match="needs labels of two classes or more, but 'blobs' has none"
    ):
        grow(bare, out=tmp_path / "no", images=400, settings={**settings, "conditioning": "ac",
             "conditioning_options": {}})  # fmt: skip
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conditioning": "projektion"}, "unknown conditioning 'projektion'.*did you mean"),
        ({"conditioning": "ac", "conditioning_options": {"x": 1}}, "unknown conditioning_options"),
        ({"conditioning": "ac", "loss": "began"}, "has no meaning for the loss 'began'"),
        ({"conditioning": "infogan", "regularisers": "replay"}, "made for something else"),
        *(
            ({"conditioning": name, "conditioning_options": {option: value}}, message)
            for name, option, value, message in (
                ("2c", "temperature", 0, "temperature' must be a number above 0, but got 0"),
                ("d2d-ce", "width", 0, "width' must be a whole number of at least 1, but got 0"),
                ("2c", "width", 2.5, "width' must be a whole number of at least 1, but got 2.5"),
                ("f-cgan", "divergence", 5, "a whole number from 0 to 4, but got 5"),
                ("f-cgan", "divergence", 1.5, "a whole number from 0 to 4, but got 1.5"),
                ("p2gan", "adaptive", 2, "a whole number from 0 to 1, but got 2"),
                ("infogan", "categories", 0.5, "categories' must be a whole number"),
            )
        ),
        (
            {"conditioning": "infogan", "conditioning_options": {"categories": 0, "numbers": 0}},
            "needs a code",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_names(make_settings(values))


# Labels that come later


@pytest.fixture(scope="module")
def taught(data: ImageSet) -> Gan:
    """A pair without labels, reprogrammed for 120 steps by the settings of a run of lr 2e-2."""
    known = make_settings({"batch": 16, "stack": {"latent": 16, "width": 8, "mixing": 0}})
    values = settings_for("reprogram", known, len(data.classes), 1920)
    settings = for_data(check_names(make_settings(values)), data)
    assert (settings.optimiser.lr, settings.optimiser.discriminator_lr) == (1e-3, 2e-2)
    parent = Gan.create(
        *Space("pggan", known.stack, 1, (16, 16)).stacks(2), known.optimiser, seed=0
    )
    g, d = parent.generator.spec, parent.discriminator.spec
    stacks = (
        replace(g, classes=2, modifier=3),
        replace(d, classes=2, judging="heads", readouts=(("p", 2),)),
    )
    gan = continued(parent, stacks, settings.optimiser, seed=1)
    objective, runtime = make_objective(settings), make_runtime("cpu", "float32")
    for _ in range(120):
        set_rates(gan, settings, 0.0)
        step(gan, Batches(data, 16, 0), objective, settings, runtime)
    return gan


def test_classes_are_not_torn_out_of_what_the_generator_was_trained_on(taught: Gan) -> None:
    g, u = taught.generator.eval(), noise(256, 16)
    start = continued_modifier(taught)
    for label in (0, 1):
        y = one_hot(torch.full((256,), label), 2)
        with torch.no_grad():
            m, before = g.modifier(u, y), start(u, y)
            images, free = g(torch.cat([u, y], 1)), g.synthesise(g.stem.embed(u, None))
        assert not torch.equal(m, before)
        assert float((m.norm(dim=1) / u.norm(dim=1)).mean()) < 1.3
        assert float(images.std(0).mean()) > 0.8 * float(free.std(0).mean())


def continued_modifier(gan: Gan) -> Modifier:
    """Return the map that the pair began with."""
    made = build(gan.generator.spec, 2)
    assert isinstance(made, Generator)
    return made.modifier.eval()


def test_the_average_of_a_trained_map_contracts(taught: Gan) -> None:
    rng = torch.Generator().manual_seed(0)
    far = deepcopy(taught.generator.modifier)
    with torch.no_grad():
        for p in far.parameters():  # an average of weights that have moved fast
            p.add_(torch.randn(p.shape, generator=rng))
    for modifier in (taught.average.modifier, far.eval()):
        for block in modifier.blocks:
            inner, outer = block.inner.used.detach(), block.outer.used.detach()
            stretch = 0.9 * torch.linalg.svdvals(inner)[0] * torch.linalg.svdvals(outer)[0]
            assert 0.85 < float(stretch) < 0.9 + 1e-5
        u, y = noise(8, 16), one_hot(torch.arange(8), 2)
        with torch.no_grad():
            back = modifier.inverse(modifier(u, y), y)
        torch.testing.assert_close(back, u, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [1, 3, 64])
def test_the_bound_of_a_map_is_its_largest_singular_value_or_a_hair_more(width: int) -> None:
    for matrix in (noise(width, width), torch.eye(width), noise(width, 1) @ noise(1, width)):
        exact = float(torch.linalg.svdvals(matrix)[0])
        assert exact * (1 - 1e-5) <= float(spectral_bound(matrix)) <= exact * 1.01


def test_what_d_takes_for_good_begins_as_one_class(data: ImageSet) -> None:
    known = make_settings({"optimiser": {"lr": 1e-2, "discriminator_lr": 3e-3}})
    values = settings_for("reprogram", known, 4, 1000)
    assert values["loss_options"] == {"prior": 0.25, "ramp": 1000}
    assert values["optimiser"]["discriminator_lr"] == 3e-3
    assert settings_for("reprogram", known, 4)["loss_options"] == {"prior": 0.25, "ramp": RAMP}
    tuned = settings_for("fine-tune", known, 4, 1000)
    assert tuned["optimiser"]["lr"] == 1e-2 and tuned["loss_options"] == {}


# What is drawn for scores and metrics


def test_codes_are_not_the_labels_of_the_data(data: ImageSet) -> None:
    partly = replace(data, labels=np.where(np.arange(200) < 50, -1, np.asarray(data.labels)))
    counts = {}
    for name in ("none", "infogan", "projection", "md"):
        batches = batches_of(partly, make_settings({"conditioning": name}))
        counts[name] = batches.count, batches.known_labels is not None
    # A D of one logit a class has none for images without a label.
    assert counts == {
        "none": (200, False),
        "infogan": (200, False),
        "projection": (200, True),
        "md": (150, True),
    }
    asked = Trainer(
        batches_of(data, make_settings({"conditioning": "infogan"})),
        make_runtime("cpu", "float32"), None, Silent(),
    )._labels(160)  # fmt: skip
    codes = one_hot(torch.tensor(asked), 10)
    assert (codes.sum(0) == 16).all()
    assert (codes.view(-1, 8, 10).sum(0) == 2).all()  # of each group of the jackknife


def test_numbers_alone_are_codes_too(data: ImageSet) -> None:
    options = {"categories": 0, "numbers": 2}
    settings = make_settings({"conditioning": "infogan", "conditioning_options": options})
    shape = for_data(check_names(settings), data).stack
    spec = Space("pggan", shape, 1, (16, 16)).stacks(1)[0]
    rows = labelled(spec, noise(5, spec.latent), seed=3)
    assert rows.shape == (5, spec.latent + 2)
    assert torch.equal(rows, labelled(spec, noise(5, spec.latent), seed=3))
    assert len(rows[:, -1].unique()) == 5


def test_a_run_is_measured_with_classes_as_frequent_as_they_are(data: ImageSet) -> None:
    asked: list[list[int] | None] = []

    class Drawing:
        classes = data.classes

        def labels(self, count: int) -> Any:
            return np.arange(count) % 2

        def sample(self, count: int, *, seed: int = 0, labels: list[int] | None = None) -> Any:
            asked.append(labels)
            return np.full((count, 16, 16, 1), 50, np.uint8)

    labels = np.array([0] * 180 + [1] * 10 + [-1] * 10)
    reals, how = replace(data, labels=labels), {"features": "pixels", "count": 400}
    evaluate(Drawing(), reals, metrics="fid", **how)  # type: ignore[arg-type]
    (drawn,) = asked
    assert drawn is not None and len(drawn) == 400
    assert np.mean(drawn) == pytest.approx(10 / 190, abs=0.04)
    evaluate(Drawing(), reals, metrics="intra-fid", **how)  # type: ignore[arg-type]
    assert asked[1:] == [None]
    evaluate(Drawing(), reals, metrics=["fid", "intra-fid"], **how)  # type: ignore[arg-type]
    assert asked[2:] == [drawn, None]
    evaluate(Drawing(), replace(reals, labels=None), metrics="fid", **how)  # type: ignore[arg-type]
    assert asked[4:] == [None]
