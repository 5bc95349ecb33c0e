"""Tasks: pairs of images, the runs that learn them, and how what is made is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import growgan as gg
from growgan.cli.app import main
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.export import export
from growgan.metrics.similarity import ssim
from growgan.tasks import TASKS, prepare, train_task
from growgan.tasks.base import Pairs, likeness
from growgan.tasks.pix2pix import from_edges, mask, overlap
from growgan.tasks.srgan import coarse

SMALL = {"batch": 8, "stack": {"width": 8, "latent": 4}, "score": {"samples": 32}, "threads": 1}


@pytest.fixture(scope="module")
def squares() -> ImageSet:
    """Bright squares on dark grounds, 64 of 16×16 in colour."""
    rng = np.random.default_rng(0)
    images = np.empty((64, 3, 16, 16), np.uint8)
    for image in images:
        image[:] = rng.integers(0, 60, (3, 1, 1))
        y, x = rng.integers(2, 8, 2)
        image[:, y : y + 5, x : x + 5] = rng.integers(160, 256, (3, 1, 1))
    return ImageSet("squares", images, None, (), "squares")


def test_edges_are_where_an_image_changes() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255
    given, truth = from_edges(image)
    assert truth is image
    assert (given[..., 3:5] == 0).all() and (given[..., :2] == 255).all()


def test_a_mask_is_what_differs_from_the_rim() -> None:
    for ground, ink in ((0, 200), (255, 90)):
        image = torch.full((1, 3, 9, 9), ground, dtype=torch.uint8)
        image[..., 3:6, 2:7] = ink
        found = mask(image)
        assert found.shape == (1, 1, 9, 9)
        assert (found[..., 3:6, 2:7] == 255).all() and int((found == 255).sum()) == 15


def test_a_coarse_image_has_the_means_of_the_fine_one() -> None:
    fine = torch.full((1, 1, 32, 32), 77, dtype=torch.uint8)
    given, truth = coarse(fine, 4)
    assert truth is fine and (given == 77).all()
    with pytest.raises(UserError, match="cannot be made 4 times as coarse"):
        coarse(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), 4)


def test_likeness_by_hand() -> None:
    truth = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    made = torch.full_like(truth, 51)  # a fifth of the range
    found = likeness(made, truth)
    assert found["l1"] == pytest.approx(51)
    assert found["psnr"] == pytest.approx(-20 * np.log10(0.2))
    c1 = (0.01 * 255) ** 2
    assert found["ssim"] == pytest.approx(c1 / (51**2 + c1), rel=1e-6)
    assert likeness(truth, truth) == {"l1": 0.0, "psnr": 100.0, "ssim": pytest.approx(1.0)}
    assert float(ssim(made, made)) == pytest.approx(1.0)


def test_overlap_is_the_mean_of_both_classes() -> None:
    truth = torch.zeros(1, 1, 2, 4, dtype=torch.uint8)
    truth[..., :2] = 255
    made = torch.zeros_like(truth)
    made[..., 1:3] = 255  # 2 of 6 in common of what is drawn, 2 of 6 of what is not
    assert overlap(made, made, truth) == {"miou": pytest.approx(1 / 3)}
    assert overlap(made, made, torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)) == {}


def test_overlap_of_three_classes_takes_the_nearest_and_leaves_out_the_empty() -> None:
    colours = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 250]], dtype=torch.uint8)
    wanted = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    found = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 0]])
    truth, made = (colours[each].permute(2, 0, 1)[None] for each in (wanted, found))
    # In common: 1, 2, 3; in either: 3, 3, 4.
    expected = {"miou": pytest.approx((1 / 3 + 2 / 3 + 3 / 4) / 3)}
    assert overlap(made, made, truth) == expected
    near = made.clone()
    near[made > 0] -= 40
    assert overlap(made, near, truth) == expected
    blank = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert overlap(blank, blank, blank) == {"miou": 1.0}  # no pixel is of another class


@pytest.mark.parametrize(
    "name",
    [
        f"{e.name}:{kind}"
        for e in TASKS
        if isinstance(e.value, Pairs)
        for kind in e.value.kinds
        if kind not in ("4", "8")
    ],
)
def test_images_are_made_from_images_and_measured(
    name: str, squares: ImageSet, tmp_path: Path
) -> None:
    pairs = prepare(name, squares)
    assert pairs.given is not None and len(pairs.given) == len(pairs)
    run = train_task(name, pairs, out=tmp_path / "run", images=64, settings=SMALL)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert {"l1", "psnr", "ssim"} <= set(found) and all(np.isfinite(v) for v in found.values())
    made = run.best.sample(3, given=np.moveaxis(pairs.given[:3], 1, 3))
    assert made.shape == (3, 16, 16, pairs.channels)
    assert run.best.sample(2).shape == (2, 16, 16, pairs.channels)  # of what the run kept
    page = (run.path / "report.html").read_text()  # as the run itself left it
    assert "what it should be" in page and "psnr" in page
    assert "miou" in found or name != "pix2pix:segment"
    if name.startswith("srgan"):
        more = {"bicubic psnr", "deviation of samples"}
        assert more <= set(found) and found["bicubic psnr"] > 10


def test_labels_may_be_told_beside_what_is_given(squares: ImageSet, tmp_path: Path) -> None:
    labels = np.arange(64) % 2
    data = replace(squares, labels=labels, classes=("a", "b"), fingerprint="labelled")
    settings = {**SMALL, "policy": "fixed", "conditioning": "projection"}
    run = train_task(
        "srgan:2", prepare("srgan:2", data), out=tmp_path / "r", images=32, settings=settings
    )
    spec = run.best.network().spec
    assert spec.classes == 2 and spec.given == 3 and run.best.classes == ("a", "b")
    asked: list[object] = []
    draw = type(run.best).sample

    class Asked:
        classes = run.best.classes

        def sample(self, *args: object, **how: object) -> object:
            asked.append(how["labels"])
            return draw(run.best, *args, **how)  # type: ignore[arg-type]

    task, rows = TASKS["srgan"], prepare("srgan:2", data).subset(np.arange(3, 8))
    task.compared(Asked(), rows)  # type: ignore[attr-defined]
    assert asked == [[1, 0, 1, 0, 1]]  # each is made for its own label


def test_what_has_no_meaning_for_a_task_says_so(squares: ImageSet, tmp_path: Path) -> None:
    run = train_task("pix2pix:edges", prepare("pix2pix:edges", squares), out=tmp_path / "run",
                     images=64, settings=SMALL)  # fmt: skip
    with pytest.raises(UserError, match="cannot be exported yet"):
        export(run.best, "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="directions have no meaning"):
        _ = run.best.directions
    with pytest.raises(UserError, match="given images must be"):
        run.best.sample(1, given=np.zeros((1, 8, 8, 1), np.uint8))


def test_a_task_grows(squares: ImageSet, tmp_path: Path) -> None:
    pairs = prepare("pix2pix:segment", squares)
    settings = {**SMALL, "policy": "progressive"}
    run = train_task("pix2pix:segment", pairs, out=tmp_path / "run", images=128, settings=settings)
    sizes = [tuple(e["resolution"]) for e in run.events if e["event"] == "candidate"]
    assert sizes[0] < sizes[-1] == (16, 16)


def test_the_error_falls_when_the_truth_is_told(squares: ImageSet, tmp_path: Path) -> None:
    pairs = prepare("pix2pix:segment", squares)
    given, truth = pairs.given, pairs.images
    assert given is not None
    flat = float(np.abs(truth - truth.mean(0)).mean())  # of the mean image
    settings = {**SMALL, "policy": "fixed", "stack": {"width": 16, "latent": 4}}
    run = train_task("pix2pix:segment", pairs, out=tmp_path / "r", images=3000, settings=settings)
    found = json.loads((run.path / "gallery" / "task.json").read_text())
    assert found["l1"] < 0.5 * flat and found["miou"] > 0.6


def test_a_mean_is_no_collapse(squares: ImageSet, tmp_path: Path) -> None:
    blind = replace(squares, given=np.zeros_like(squares.images))  # nothing tells one from another
    settings = {**SMALL, "policy": "fixed", "regularisers": {"l1": {"weight": 1e4}}}
    run = train_task("pix2pix", blind, out=tmp_path / "run", images=2000, settings=settings)
    vitals = [event["vitals"] for event in run.events if event.get("vitals")]
    assert not [event for event in run.events if event["event"] == "doctor"]
    assert vitals[-1]["diversity"] < 0.02 and vitals[-1]["score"] > 0.95, "one gray image"


def test_pairs_of_two_sets(squares: ImageSet) -> None:
    pairs = prepare("pix2pix", squares, replace(squares, fingerprint="other"))
    assert pairs.given is squares.images
    with pytest.raises(UserError, match="are no pairs: 64 of"):
        prepare("pix2pix", squares, squares.subset(np.arange(8)))
    for task in ("srgan", "pix2pix:edges"):
        with pytest.raises(UserError, match=f"'{task}' makes its own pairs"):
            prepare(task, squares, squares)
    with pytest.raises(UserError, match="unknown kind of task 'pix2pix' 'nonsense'"):
        prepare("pix2pix:nonsense", squares, squares)


def test_mistakes_are_named(squares: ImageSet, tmp_path: Path) -> None:
    for name, words in (
        ("pix2pix", "task 'pix2pix' needs a kind: pix2pix:colour, pix2pix:edges"),
        ("pix2pix:egdes", "did you mean 'edges'"),
        ("pixpix", "did you mean 'pix2pix'"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(name, squares)
    with pytest.raises(UserError, match="no image is given"):
        gg.grow(squares, out=tmp_path / "a", images=8, settings={"conditioning": "image"})
    pairs = prepare("pix2pix:edges", squares)
    with pytest.raises(UserError, match="augment has no meaning"):
        gg.grow(pairs, out=tmp_path / "b", images=8, settings={"augment": "diffaugment"})


def test_the_command_trains_a_task_and_prints_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["glyphs:count=64", "--resolution", "16", "--images", "64", "--out", str(out)]
    small = [f"--set={s}" for s in ("batch=8", "stack.width=8", "score.samples=32", "threads=1")]
    assert main(["grow", *words, "--task", "pix2pix:edges", *small]) == 0
    assert "psnr" in capsys.readouterr().out
    assert main(["train", "pixpix", *words]) == 2
    assert "preset or task" in capsys.readouterr().err
    assert main(["train", "pggan", "glyphs", "digits"]) == 2
    assert "takes one DATA" in capsys.readouterr().err
    assert main(["train", "cyclegan", "glyphs", "digits", "glyphs:rgb"]) == 2
    assert "one DATA or two, but got 3" in capsys.readouterr().err
    dry = ["glyphs:count=200", "--resolution", "16", "--dry-run"]
    for task, words in (
        ("semi", "needs the number of labels"),
        ("anogan:99", "the class that is unusual"),
        ("augment:50", "needs the images of a class"),
    ):
        assert main(["grow", *dry, "--task", task]) == 2
        assert words in capsys.readouterr().err
    dry[0] = "glyphs:captions,count=200"
    for task in ("text2image", "text2image:direct"):
        assert main(["grow", *dry, "--task", task]) == 0
        assert "16x16" in capsys.readouterr().out
