"""What labels do: D's logits, the terms of each conditioning by hand, G's side, and whole runs."""

from __future__ import annotations

from collections.abc import Callable
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
from growgan.growth.history import Space
from growgan.growth.run import check_names, for_data
from growgan.metrics import evaluate
from growgan.nets.edits import Widen, apply
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.spec import StackSpec
from growgan.nets.wishes import labelled, one_hot
from growgan.objectives import make_objective
from growgan.objectives.conditioning import CONDITIONINGS, make_conditioning
from growgan.objectives.conditioning.classifying import divergence
from growgan.objectives.step import Step
from growgan.training.gan import Gan
from growgan.training.runtime import make_runtime
from growgan.training.stage import step

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
            return self.values[rows[:, 0].long()]

    rows = torch.arange(2 * n, dtype=torch.float32)[:, None]
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
    term = float(
        tac.generator(view(Y[:4], p=p[[0, 1, 2, 3, 5, 6, 7, 8]], q=q[[0, 1, 2, 3, 5, 6, 7, 8]]))[
            "class_generator"
        ]
    )
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
            weights = [float(w[start + i, 0]) for i in range(4)]
            each = [np.exp(-v) * e + v for v, e in zip(weights, each, strict=True)]
        assert float(terms[name]) == pytest.approx(np.mean(each), rel=1e-5)


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
    p, q = noise(8, CLASSES), noise(8, CLASSES, seed=2)
    seen, y = view(Y[:4], p=p, q=q), LABELS
    conditioning = make_conditioning("f-cgan", {"divergence": 1})
    log_r = [log_share(p[4 + i], y[i]) - log_share(q[4 + i], y[i]) for i in range(4)]
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
    if name in ("image", "domains"):
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
    ],
)
def test_what_has_no_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_names(make_settings(values))
