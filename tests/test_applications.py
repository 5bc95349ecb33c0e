"""Tasks beyond images from images: few labels, films, anomalies, few images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.nets.wishes import one_hot
from growgan.report.page import write_report
from growgan.tasks import TASKS, prepare, train_task
from growgan.tasks.anogan import auroc, rebuilt
from growgan.tasks.frames import AHEAD, SEEN, bounce, sharpness
from growgan.tasks.semi import SHARE, accuracy, alone, classes_of
from growgan.training.runtime import make_runtime

SMALL = {"batch": 8, "stack": {"width": 8, "latent": 4}, "score": {"samples": 32}, "threads": 1}


def test_few_labels_are_kept_as_many_of_each_class_and_come_often(sides: ImageSet) -> None:
    task = TASKS["semi"]
    seen = task.taught(sides, "20", seed=3)
    assert seen.labels is not None and sides.labels is not None
    first = seen.labels[: len(sides)]
    assert np.bincount(first + 1).tolist() == [180, 10, 10]
    assert (first[first >= 0] == sides.labels[first >= 0]).all()
    assert (seen.labels >= 0).mean() == pytest.approx(SHARE, abs=0.03)
    assert not np.array_equal(first, task.taught(sides, "20", seed=4).labels[: len(sides)])  # type: ignore[index]
    for kind in ("", "x", "1", "21", "2000"):
        with pytest.raises(UserError, match="semi"):
            task.taught(sides, kind, seed=0)
    with pytest.raises(UserError, match="needs labels"):
        task.taught(replace(sides, labels=None, classes=()), "20", seed=0)


def test_a_classifier_learns_from_few_labels_beside_a_gan(sides: ImageSet, tmp_path: Path) -> None:
    settings = {**SMALL, "policy": "fixed"}
    run = train_task("semi:20", sides, out=tmp_path / "run", images=3200, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert found["accuracy"] > 0.8 and found["accuracy without a GAN"] > 0.8
    assert not run.best.classes and run.best.sample(2).shape == (2, 8, 8, 1)
    sheet = np.array(Image.open(run.path / "gallery" / "task.png"))
    assert sheet.shape == (3 * 8, 16 * 8), "two classes, and what G draws"
    above, below = (sheet[8 * k : 8 * k + 8].astype(float) for k in (0, 1))
    assert above[:4].mean() > above[4:].mean() and below[:4].mean() < below[4:].mean()
    write_report(run.path)


def test_the_accuracy_of_a_classifier_is_the_share_that_it_gets_right(sides: ImageSet) -> None:
    settings = make_settings(TASKS["semi"].small, {**SMALL, "precision": "float32"})
    spec = StackSpec(
        "discriminator", (4, 4), 1, 8, (LayerSpec("x", "conv", 8, 3, 2),), deviation_group=0,
        classes=2, judging="classes", readouts=(("p", 2),),
    )  # fmt: skip
    player = alone(spec, sides, settings, 0)
    with torch.no_grad():
        player.readouts["p"].weight.zero_()  # type: ignore[operator, union-attr]
        player.readouts["p"].bias.copy_(torch.tensor([0.0, 1.0]))  # type: ignore[operator, union-attr]
        x = torch.from_numpy(sides.images[:3])
        scores = classes_of(player, x, make_runtime("cpu", "float32"))
        # Of K scores (0, 1) the logit is log(e⁰ + e¹).
        y = one_hot(torch.zeros(3, dtype=torch.int64), 2)
        logits = player(x.float() / 127.5 - 1, y)
    assert scores.tolist() == [[0.0, 1.0]] * 3
    torch.testing.assert_close(logits, torch.full((3,), float(np.log(1 + np.e))))
    assert accuracy(player, sides) == 0.5


@pytest.fixture(scope="module")
def disc() -> ImageSet:
    """White discs of several sizes, 12 of 16×16."""
    y, x = np.mgrid[:16, :16] - 7.5
    radii = 3 + np.arange(12) / 4
    images = ((y**2 + x**2)[None] < radii[:, None, None] ** 2).astype(np.uint8)[:, None] * 255
    return ImageSet("discs", images, None, (), "discs")


def test_what_flies_keeps_its_speed_and_stays_inside() -> None:
    for seed in range(20):
        way = bounce(np.random.default_rng(seed), 8, 40)
        assert way.min() >= 0 and way.max() <= 8
        steps = np.abs(np.diff(way))
        speed = int(steps.max())
        # A step is the speed, but where it turns on the way.
        assert speed in (1, 2, 3) and np.median(steps) == speed
    assert len({tuple(bounce(np.random.default_rng(s), 8, 9)) for s in range(20)}) > 10


def test_a_film_is_frames_in_order_each_with_those_before(disc: ImageSet) -> None:
    films = prepare("next-frame:moving", disc)
    assert len(films) == 12 * AHEAD and films.given is not None
    assert films.given.shape == (12 * AHEAD, SEEN, 16, 16)
    for row in range(1, AHEAD):
        assert np.array_equal(films.given[row, :-1], films.given[row - 1, 1:])
        assert np.array_equal(films.given[row, -1:], films.images[row - 1])
    assert np.ptp(films.images.reshape(len(films), -1).sum(1)[:AHEAD].astype(int)) == 0
    seen, new = TASKS["next-frame"].split(films)
    assert len(new) == AHEAD and len(seen) == 11 * AHEAD
    with pytest.raises(UserError, match="two films need 26"):
        prepare("next-frame:frames", disc)
    whole = prepare("next-frame:frames", disc.subset(np.arange(40) % 12))
    assert len(whole) == 3 * AHEAD and np.array_equal(whole.images[0], disc.images[SEEN])


def test_a_film_goes_on_and_is_measured(disc: ImageSet, tmp_path: Path) -> None:
    films = prepare("next-frame:moving", disc)
    run = train_task("next-frame:moving", films, out=tmp_path / "run", images=64, settings=SMALL)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert {"psnr, 1 ahead", f"copied ssim, {AHEAD} ahead", "sharpness, 1 ahead"} <= set(found)
    assert all(np.isfinite(value) for value in found.values())
    assert (run.path / "gallery" / "task.png").exists()


def test_sharpness_by_hand() -> None:
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 2:] = 30
    assert sharpness(image) == pytest.approx((0 + 10) / 2)  # one step of 30 among three, one axis


def test_auroc_by_hand() -> None:
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([0.0, 3.0]), np.array([1.0, 2.0])) == 0.5
    assert auroc(np.array([1.0]), np.array([1.0, 0.0])) == 0.75


def test_components_rebuild_what_they_span() -> None:
    rng = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 64, generator=rng)
    usual = (torch.randn(50, 3, generator=rng) @ basis).view(50, 1, 8, 8)
    torch.testing.assert_close(rebuilt(usual[:5], usual), usual[:5], rtol=1e-3, atol=1e-3)
    odd = torch.randn(5, 1, 8, 8, generator=rng)
    assert float((rebuilt(odd, usual) - odd).abs().mean()) > 0.1


def test_what_a_gan_never_saw_stands_out(
    sides: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("growgan.tasks.anogan.ENCODER_STEPS", 300)
    settings = {**SMALL, "policy": "fixed", "stack": {"width": 16, "latent": 4}}
    run = train_task("anogan:below", sides, out=tmp_path / "run", images=4000, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert found["AUROC by search"] > 0.9 and found["AUROC by an encoder"] > 0.9
    for kind in ("", "2", "left"):
        with pytest.raises(UserError, match="there are: above, below"):
            TASKS["anogan"].taught(sides, kind, 0)


def test_few_images_of_each_class_and_generated_ones(sides: ImageSet, tmp_path: Path) -> None:
    task = TASKS["augment"]
    seen = task.taught(sides, "10", seed=0)
    assert seen.labels is not None and np.bincount(seen.labels).tolist() == [10, 10]
    for kind in ("0", "many", "101"):
        with pytest.raises(UserError, match="needs the images of a class, 1 to 100"):
            task.taught(sides, kind, 0)
    run = train_task("augment:10", sides, out=tmp_path / "run", images=64, settings=SMALL)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert set(found) == {f"accuracy from {what}" for what in ("reals", "fakes", "both")}
    assert found["accuracy from reals"] > 0.9


@pytest.fixture(scope="module")
def shades() -> tuple[ImageSet, ImageSet]:
    """The same squares, dark on light and light on dark: 48 of 8×8 each."""
    rng = np.random.default_rng(0)
    dark = np.full((48, 1, 8, 8), 230, np.uint8)
    for image in dark:
        y, x = rng.integers(0, 5, 2)
        image[:, y : y + 3, x : x + 3] = 20
    sets = (("dark", dark), ("light", 255 - dark))
    first, second = (ImageSet(name, images, None, (), name) for name, images in sets)
    return first, second


def test_two_kinds_take_turns_and_are_mixed_for_training(
    shades: tuple[ImageSet, ImageSet],
) -> None:
    task = TASKS["cyclegan"]
    data = prepare("cyclegan:aligned", *shades)
    assert data.labels is not None and data.given is not None
    assert data.labels[:4].tolist() == [1, 0, 1, 0] and data.classes == ("dark", "light")
    assert np.array_equal(data.images[1::2], shades[0].images)
    assert np.array_equal(data.given, 255 - data.images)  # each beside its partner
    seen, new = task.split(data)
    assert len(new) == 10 and len(seen) == 86
    assert np.array_equal(new.given, 255 - new.images)  # type: ignore[operator]
    mixed = task.taught(seen, "aligned", 0)
    assert mixed.given is not None
    assert (mixed.given[::2].mean((1, 2, 3)) > 128).all()  # light ones are made of dark on light
    assert (mixed.given != 255 - mixed.images).any((1, 2, 3)).mean() > 0.8
    whole = {image.tobytes() for image in seen.images}
    assert all(image.tobytes() in whole for image in mixed.given)


def test_one_kind_becomes_the_other(shades: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    data = prepare("cyclegan:aligned", *shades)
    settings = {**SMALL, "policy": "fixed", "stack": {"width": 16, "latent": 4}}
    run = train_task("cyclegan:aligned", data, out=tmp_path / "r", images=4000, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    for way in ("dark to light", "light to dark"):
        assert found[f"{way}, l1"] < 0.5 * found[f"{way}, untouched l1"]
        assert found[f"{way} and back, l1"] < 40
    assert run.best.sample(4).shape == (4, 8, 8, 1)
    write_report(run.path)


def test_translation_needs_two_sets_of_one_form(shades: tuple[ImageSet, ImageSet]) -> None:
    dark, light = shades
    with pytest.raises(UserError, match="takes two sets"):
        prepare("cyclegan", dark)
    with pytest.raises(UserError, match="cannot be aligned"):
        prepare("cyclegan:aligned", dark, light.subset(np.arange(9)))
    with pytest.raises(UserError, match="differ in form"):
        prepare("cyclegan", dark, replace(light, images=light.images[:, :, :4]))
    with pytest.raises(UserError, match="knows one kind"):
        prepare("cyclegan:loose", dark, light)
    assert len(prepare("cyclegan", dark, light.subset(np.arange(9)))) == 96


@pytest.mark.usefixtures("own_cache")
def test_genres_are_drawn_and_mixed(sides: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs labels"):
        prepare("style", replace(sides, labels=None, classes=()))
    settings = {**SMALL, "stack": {**SMALL["stack"], "mapping": 1, "deviation_group": 4}}
    run = train_task("style", sides, out=tmp_path / "run", images=64, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert found["true genre"] > 0.8 and set(found) > {"mixes, of the coarse", "mixes, of the fine"}
    assert run.best.settings.stack.mixing == 0.9 and run.best.classes == ("above", "below")
    assert run.best.mix([0, 1], [2]).shape == (2, 8, 8, 1)
