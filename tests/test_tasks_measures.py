"""How tasks are trained and measured: fair baselines, scores that stand alone, what a run tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.metrics import domain
from growgan.nets.edits import Append, Widen, apply
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.nets.wishes import one_hot
from growgan.objectives import make_objective
from growgan.objectives.regulariser import make_regulariser
from growgan.objectives.step import Step
from growgan.report.page import write_report
from growgan.tasks import TASKS, anogan, base, prepare, train_task
from growgan.tasks.augment import equally_many
from growgan.tasks.text2image import agreement
from growgan.training.gan import Gan
from growgan.training.ranks import Ranks
from growgan.training.stage import rates, set_rates

SMALL = {"batch": 8, "stack": {"width": 8, "latent": 4}, "score": {"samples": 32}, "threads": 1}


def judge(**more: object) -> Discriminator:
    layers = (LayerSpec("x0", "strided", 8, 3, 2), LayerSpec("x1", "strided", 8, 3, 2))
    made = build(StackSpec("discriminator", (4, 4), 1, 12, layers, **more), 0)  # type: ignore[arg-type]
    assert isinstance(made, Discriminator)
    return made


def maker(**more: object) -> Generator:
    layers = (LayerSpec("x0", "strided", 8, 3, 2), LayerSpec("x1", "strided", 8, 3, 2))
    made = build(StackSpec("generator", (4, 4), 1, 12, layers, latent=4, **more), 1)  # type: ignore[arg-type]
    assert isinstance(made, Generator)
    return made


def step_of(fake: Tensor, labels: Tensor | None = None) -> Step:
    """A step whose players nobody asks; its fakes are all reals, too."""
    rng, nothing = torch.Generator().manual_seed(0), torch.zeros(len(fake))
    y = torch.empty(len(fake), 0) if labels is None else labels
    z = torch.zeros(len(fake), 4)
    return Step(maker(), judge(), fake, fake, z, rng, nothing, nothing, labels=y)


def test_each_way_of_augmenting_learns_for_as_many_steps() -> None:
    rng = np.random.default_rng(0)
    for reals, fakes in ((20, 400), (900, 400)):
        sets = [
            (rng.integers(0, 255, (n, 1, 8, 8), dtype=np.uint8), np.arange(n) % 2)
            for n in (reals, fakes)
        ]
        found = equally_many(*sets)
        counts = {len(images) for images, _ in found.values()}
        assert counts == {2 * max(reals, fakes)}
        assert len({domain._steps(n, 460) for n in counts}) == 1
        for name, (images, labels) in found.items():
            known = sets[name == "fakes"]
            whole = {x.tobytes(): y for x, y in zip(*known, strict=True)}
            if name != "both":
                assert {x.tobytes() for x in images} == set(whole)
                assert all(whole[x.tobytes()] == y for x, y in zip(images, labels, strict=True))
        images, _ = found["both"]
        assert {x.tobytes() for x in images} == {x.tobytes() for s in sets for x in s[0]}


@pytest.mark.parametrize(
    "own",
    [{}, {"anneal": 0.0}, {"optimiser": {"discriminator_lr": 3e-3, "decay": 1_000}}],
)
def test_a_classifier_without_a_gan_has_the_rates_of_d(own: dict[str, object]) -> None:
    settings = make_settings(TASKS["semi"].small, own)
    gan = Gan(maker(), judge(), settings.optimiser)
    for progress, images in ((0.0, 0), (0.5, 20_000), (0.9, 300_000), (0.99, 1_000_000)):
        gan.images = images
        set_rates(gan, settings, progress)
        wanted = gan.discriminator_optimiser.param_groups[0]["lr"]
        assert rates(settings, progress, images)[1] == pytest.approx(wanted)
    first, last = (rates(settings, progress, 0)[1] for progress in (0.0, 1.0))
    assert last == (first if own.get("anneal") == 0 else 0)


def test_an_image_scored_among_others_scores_as_it_does_alone() -> None:
    """By the settings that the task itself begins with: no statistic of a batch is in the way."""
    for name in ("anogan", "semi"):
        settings = make_settings(TASKS[name].small, {"stack": {"width": 8, "latent": 4}})
        pair = [
            build(PRESETS["pggan"].stack(role, settings.stack, 1, (16, 16)), 0)
            for role in ("generator", "discriminator")
        ]
        g, d = (each.eval() for each in pair)
        assert isinstance(g, Generator) and isinstance(d, Discriminator)
        x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        order = torch.tensor([3, 1, 7, 0, 2])
        torch.testing.assert_close(d(x)[order], d(x[order]))
        if name == "anogan":
            _check_scores(g, d, x, order)


def _check_scores(g: Generator, d: Discriminator, x: Tensor, order: Tensor) -> None:
    def scored(images: Tensor) -> Tensor:
        return anogan.distance(anogan.sought(g, d, images), images, d).detach()

    torch.testing.assert_close(scored(x)[order], scored(x[order]), rtol=2e-3, atol=1e-2)


def test_an_encoder_is_asked_one_image_at_a_time(
    sides: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where D's layers normalise over the batch, as published."""
    monkeypatch.setattr(anogan, "ENCODER_STEPS", 3)
    settings = make_settings(PRESETS["dcgan"].small, {"stack": {"width": 8, "latent": 4}})
    g, d = (
        build(PRESETS["dcgan"].stack(role, settings.stack, 1, (16, 16)), 0).eval()
        for role in ("generator", "discriminator")
    )
    assert isinstance(g, Generator) and isinstance(d, Discriminator)

    def shown(pixels: Tensor) -> Tensor:
        big = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return big.float() / 127.5 - 1

    x = shown(torch.from_numpy(sides.images[:6]))
    whole, part = (anogan.encoded(g, d, each, shown, sides) for each in (x, x[2:4]))
    torch.testing.assert_close(whole[2:4], part, rtol=1e-3, atol=1e-3)


def test_scores_of_anomalies_by_hand() -> None:
    d = judge()
    made, x = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    x[1] = 0.5
    apart = (d.features(made) - d.features(x))[1]
    found = anogan.distance(made, x, d).detach()
    assert found[0] == 0
    assert float(found[1]) == pytest.approx(
        0.9 * 128 + 0.1 * float(apart.detach().abs().sum()), rel=1e-5
    )
    assert anogan.residual(made, x, None).tolist() == [0, 0.25]
    both = float(anogan.residual(made, x, d).detach()[1])
    assert both == pytest.approx(0.25 + float(apart.detach().square().mean()), rel=1e-5)


def test_all_unusual_images_are_measured_on_and_none_without_a_label(sides: ImageSet) -> None:
    labels = sides.labels.copy()  # type: ignore[union-attr]
    labels[:50] = -1
    given = replace(sides, labels=labels)
    seen, new = TASKS["anogan"].split(given, "below")
    odd = sides.classes.index("below")
    assert seen.labels is not None and new.labels is not None
    assert set(seen.labels) == {1 - odd} and (new.labels == odd).sum() == (labels == odd).sum()
    held = (new.labels != odd).sum()
    assert held == round(0.1 * (labels == 1 - odd).sum()) and (new.labels >= 0).all()
    assert len(seen) + held == (labels == 1 - odd).sum()
    with pytest.raises(UserError, match="compares unusual images with a tenth of the usual"):
        TASKS["anogan"].split(given.subset(np.flatnonzero(labels == odd)), "below")


def test_some_images_are_of_all_classes_where_rows_are_sorted(sides: ImageSet) -> None:
    labels = np.sort(sides.labels)  # type: ignore[arg-type]
    found = base.some(replace(sides, labels=labels), 40)
    assert len(found) == 40 and 8 < (found.labels == 0).sum() < 32
    assert len(base.some(sides, 10**6)) == len(sides)


def test_likeness_of_many_images_is_the_mean_of_its_parts() -> None:
    rng = torch.Generator().manual_seed(0)
    made, truth = torch.randint(0, 256, (2, 150, 1, 16, 16), generator=rng, dtype=torch.uint8)
    whole = base.likeness(made, truth)
    each = [base.likeness(made[k : k + 1], truth[k : k + 1]) for k in range(150)]
    for name, value in whole.items():
        assert value == pytest.approx(np.mean([found[name] for found in each]), rel=1e-9)


@pytest.mark.parametrize("judging", ["heads", "projection"])
def test_each_patch_is_judged_for_its_own_class(judging: str) -> None:
    d = judge(patches=True, classes=3, judging=judging, readouts=(("p", 3),))
    assert d.readouts["p"].weight.shape == (3, 12)  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(0)
    for weight in d.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=rng)
    x = torch.rand(16, 1, 16, 16, generator=rng)  # as many images as patches
    y = one_hot(torch.arange(16) % 3, 3)
    logits = d(x, y)
    assert logits.shape == (16, 16)
    changed = x.clone()
    changed[:, :, 15, 15] += 1
    moved = (d(changed, y) - logits).abs().view(16, 4, 4)
    assert moved[:, 3, 3].min() > 1e-6 and moved[:, 0, 0].max() < 1e-6
    for row in (0, 7):  # each image is judged by its own label
        torch.testing.assert_close(d(x[row : row + 1], y[row : row + 1])[0], logits[row])
    for edit in (Widen(), Append((LayerSpec("x", "strided", 8, 3, 2),))):
        child = apply(d, edit, 3)
        assert isinstance(child, Discriminator)
        seen = x if isinstance(edit, Widen) else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        torch.testing.assert_close(child(seen, y), logits, rtol=1e-3, atol=1e-4)


def test_half_of_the_fakes_are_old_ones_of_their_label_and_make_room() -> None:
    rule = make_regulariser("replay", {"size": 50, "share": 0.5})
    labels = one_hot(torch.arange(16) % 2, 2)
    memory: dict[str, Tensor] = {}
    for turn in range(12):
        fake = torch.full((16, 1, 16, 16), float(turn))
        fake += 1000 * labels[:, 1].view(-1, 1, 1, 1)
        step = replace(step_of(fake, labels), memory=memory, index=turn)
        step.rng.manual_seed(turn)
        before = memory.get("replay.fakes", fake[:0])[:, 0, 0, 0].tolist()
        shown = rule.presented(step)[1][:, 0, 0, 0]
        assert ((shown >= 1000) == (labels[:, 1] > 0)).all()
        old = [value for value in shown.tolist() if value % 1000 != turn]
        after = memory["replay.fakes"][:, 0, 0, 0].tolist()
        assert len(old) == (8 if turn else 0) and set(old) <= set(before)
        if len(before) == 50:  # what was handed out has made room, and nothing else has
            gone = sum(value % 1000 == turn for value in after)
            assert len(after) == 50 and gone == 8
            assert sorted(before) == sorted(old + [v for v in after if v % 1000 != turn])


def test_one_row_has_no_contrary() -> None:
    settings = make_settings(
        TASKS["pix2pix"].small, {"conditioning_options": {"contrary": 1.0}, "loss": "hinge"}
    )
    d = judge(given=1)
    x, given = torch.rand(2, 1, 16, 16), torch.rand(2, 256)
    for rows in (1, 2):
        logits = d(x[:rows], given[:rows])
        step = replace(step_of(x[:rows]), discriminator=d, given=given[:rows])
        step.real_logits = step.fake_logits = logits
        term = make_objective(settings).discriminator(step)["contrary"]
        assert (float(term.detach()) == 0) == (rows == 1)


def test_feature_matching_alone_takes_the_place_of_the_verdict() -> None:
    x = torch.rand(4, 1, 16, 16)
    for alone in (0, 1):
        rule = make_regulariser("feature-matching", {"alone": alone})
        logits = torch.randn(4, requires_grad=True)
        kept = rule.kept(step_of(x), logits)
        assert torch.equal(kept, logits)
        kept.sum().backward()
        assert logits.grad is not None and (float(logits.grad.abs().sum()) == 0) == (alone == 1)
    for form in (TASKS["semi"].small, TASKS["semi"].published):
        assert form["regularisers"]["feature-matching"] == {"alone": 1}


@pytest.mark.parametrize(("task", "preset"), [("anogan", "dcgan"), ("augment", "biggan")])
def test_a_task_of_a_preset_is_trained_as_that_is(task: str, preset: str) -> None:
    for side in (32, 128):
        known, own = PRESETS[preset].settings(side), TASKS[task].start(side)
        settings, wanted = make_settings(own), make_settings({"preset": preset}, known)
        same = ("preset", "loss", "regularisers", "batch", "optimiser", "stack", "anneal")
        assert all(getattr(settings, name) == getattr(wanted, name) for name in same)
        assert settings.policy == "fixed"


@pytest.mark.slow
def test_a_task_of_a_preset_runs_as_published(sides: ImageSet, tmp_path: Path) -> None:
    own = {**SMALL, "stack": {"width": 8, "discriminator_width": 8, "latent": 8}}
    for task, kind in (("anogan", "below"), ("augment", "10")):
        if task == "augment":
            own = {**own, "stack": {**own["stack"], "chunk": 4}, "batch": 8}
        images = sides.images.repeat(2, 2).repeat(2, 3)
        run = train_task(
            f"{task}:{kind}", replace(sides, images=images, fingerprint="large"), images=32,
            out=tmp_path / task, settings=own, published=True,
        )  # fmt: skip
        found = json.loads((run.path / "gallery" / "task.json").read_text())
        assert all(0 <= value <= 1 for value in found.values())


def test_cyclegan_says_how_often_what_is_shown_is_still_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 60, (160, 1, 8, 8), dtype=np.uint8), np.arange(160) % 2
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    dark = ImageSet("dark", images, labels, ("above", "below"), "dark")
    light = replace(dark, name="light", images=255 - images, fingerprint="light")
    data = prepare("cyclegan:aligned", dark, light)
    settings = {**SMALL, "policy": "fixed"}
    run = train_task("cyclegan:aligned", data, out=tmp_path / "r", images=64, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    for way in ("dark to light", "light to dark"):
        assert found[f"{way}, recognised of the true"] > 0.9
        # A classifier of the other kind takes the dark half for the light one.
        assert found[f"{way}, recognised untouched"] < 0.3
        assert 0 <= found[f"{way}, recognised"] <= 1
    page = (run.path / "report.html").read_text()
    assert "made into the second kind" in page and "light to dark, recognised" in page
    # Without labels a sample is of the images kept with the run, each for what it was kept for.
    told, turns = run.best.labels(6), run.best.labels(6, given=images[:3].transpose(0, 2, 3, 1))
    with np.load(run.path / "given.npz") as kept:
        assert told is not None and told.tolist() == np.resize(kept["labels"], 6).tolist()
    assert turns is not None and turns.tolist() == [0, 1, 0, 1, 0, 1] != told.tolist()
    assert np.array_equal(run.best.sample(6), run.best.sample(6, labels=told.tolist()))


def test_a_run_that_ends_small_is_measured_at_its_size(
    sides: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sides.images.repeat(2, 2).repeat(2, 3)
    data = replace(sides, images=images, fingerprint="large")
    seen: list[tuple[int, int]] = []
    grown: Callable[..., object] = base.grow

    def early(taught: ImageSet, **how: object) -> object:
        return grown(base.shrunk(taught, (8, 8)), **how)

    monkeypatch.setattr(base, "grow", early)
    for task in ("pix2pix:mask", "semi:20", "augment:10"):
        run = train_task(
            task, prepare(task, data), out=tmp_path / task.replace(":", "-"), images=32,
            settings={**SMALL, "policy": "fixed"},
        )  # fmt: skip
        seen.append(run.best.network().spec.resolution)
        found = json.loads((run.path / "gallery" / "task.json").read_text())
        assert found and all(np.isfinite(value) for value in found.values())
        assert "ended at 8x8 pixels" in (run.path / "gallery" / "task.txt").read_text()
    assert seen == [(8, 8)] * 3


def test_the_first_rank_alone_measures(
    sides: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nothing:
        path = tmp_path

    monkeypatch.setattr(base, "grow", lambda *args, **how: Nothing())
    monkeypatch.setattr(base, "join", lambda: Ranks(1, 2))
    train_task("semi:20", sides, out=tmp_path, settings=SMALL)
    assert not list(tmp_path.iterdir())


def test_a_report_tells_a_tasks_figures(sides: ImageSet, tmp_path: Path) -> None:
    run = train_task("semi:20", sides, out=tmp_path / "run", images=32, settings=SMALL)
    (run.path / "gallery" / "task.json").write_text('{"<b>accuracy": 0.123}')
    assert "&lt;b&gt;accuracy" in write_report(run.path).read_text()
    for broken in ("[1, 2]", '{"a": "b"}', "{"):
        (run.path / "gallery" / "task.json").write_text(broken)
        assert "The task, on new images" not in write_report(run.path).read_text()


@pytest.mark.slow
def test_captions_that_nobody_saw_are_judged_by_their_words() -> None:
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in ("red", "blue", "green") for b in ("sand", "snow", "sea")]
    captions, labels = tuple(f"a {a} over {b}" for a, b in pairs), np.arange(900) % 9
    images = rng.integers(0, 40, (900, 3, 8, 8), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, label // 3, :4] += 180
        images[row, label % 3, 4:] += 180
    data = ImageSet("x", images, labels, captions, "x")
    held = labels % 4 == 0  # red over sand, blue over snow, green over sea
    old, new = (data.subset(np.flatnonzero(part)) for part in (~held, held))
    turned = np.roll(new.images, 1, 1)  # the next colour, and the next ground
    found = agreement(old, new, {"": new.images, "turned ": turned})
    assert set(found) == {"words", "turned words"}
    assert found["words"] > 0.8 and found["turned words"] < 0.5
    # Of one caption all words are said by all images: there is nothing to tell apart.
    one = data.subset(np.flatnonzero(labels == 0))
    assert agreement(old, one, {"": one.images}) == {}
