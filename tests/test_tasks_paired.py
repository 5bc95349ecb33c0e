"""Paired tasks (pix2pix, srgan): making pairs, training, metrics, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import growgan as gg
from growgan.artifacts.export import export
from growgan.cli.app import main
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.metrics.functional.ssim import ssim
from growgan.tasks import TASKS, prepare_task_data, train_task
from growgan.tasks.evaluation import image_similarity
from growgan.tasks.paired import PairedTranslationTask
from growgan.tasks.pix2pix import edges_to_image_pair, foreground_mask, mean_iou
from growgan.tasks.srgan import low_to_high_res_pair

SMALL = {
    "batch_size": 8,
    "network": {"width": 8, "latent_dim": 4},
    "score": {"num_samples": 32},
    "threads": 1,
}


@pytest.fixture(scope="module")
def squares() -> ImageSet:
    """Return 64 color images of 16x16 with bright squares on dark backgrounds."""
    rng = np.random.default_rng(0)
    images = np.empty((64, 3, 16, 16), np.uint8)
    for image in images:
        image[:] = rng.integers(0, 60, (3, 1, 1))
        y, x = rng.integers(2, 8, 2)
        image[:, y : y + 5, x : x + 5] = rng.integers(160, 256, (3, 1, 1))
    return ImageSet("squares", images, labels=None, classes=(), fingerprint="squares")


def test_edges_are_drawn_where_the_image_changes() -> None:
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[..., 4:] = 255
    source, target = edges_to_image_pair(image)
    assert target is image
    assert (source[..., 3:5] == 0).all() and (source[..., :2] == 255).all()


def test_the_foreground_differs_from_the_border() -> None:
    for background, foreground in ((0, 200), (255, 90)):
        image = torch.full((1, 3, 9, 9), background, dtype=torch.uint8)
        image[..., 3:6, 2:7] = foreground
        mask = foreground_mask(image)
        assert mask.shape == (1, 1, 9, 9)
        assert (mask[..., 3:6, 2:7] == 255).all() and int((mask == 255).sum()) == 15


def test_downscaling_keeps_the_mean() -> None:
    image = torch.full((1, 1, 32, 32), 77, dtype=torch.uint8)
    source, target = low_to_high_res_pair(image, 4)
    assert target is image and (source == 77).all()
    with pytest.raises(UserError, match="sides are multiples of 4 pixels and at least 32"):
        low_to_high_res_pair(torch.zeros(1, 1, 16, 16, dtype=torch.uint8), 4)


def test_image_similarity_by_hand() -> None:
    target = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    generated = torch.full_like(target, 51)  # a fifth of the range
    similarity = image_similarity(generated, target)
    assert similarity["l1"] == pytest.approx(51)
    assert similarity["psnr"] == pytest.approx(-20 * np.log10(0.2))
    c1 = (0.01 * 255) ** 2
    assert similarity["ssim"] == pytest.approx(c1 / (51**2 + c1), rel=1e-6)
    equal = {"l1": 0.0, "psnr": 100.0, "ssim": pytest.approx(1.0)}
    assert image_similarity(target, target) == equal
    assert float(ssim(generated, generated)) == pytest.approx(1.0)


def test_mean_iou_of_two_classes_by_hand() -> None:
    target = torch.zeros(1, 1, 2, 4, dtype=torch.uint8)
    target[..., :2] = 255
    generated = torch.zeros_like(target)
    generated[..., 1:3] = 255  # for both classes, the intersection is 2 and the union 6
    assert mean_iou(generated, generated, target) == {"miou": pytest.approx(1 / 3)}
    many_colors = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    assert mean_iou(generated, generated, many_colors) == {}


def test_mean_iou_of_three_classes_takes_the_nearest_color() -> None:
    colors = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 250]], dtype=torch.uint8)
    target_classes = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    generated_classes = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 0]])
    target, generated = (
        colors[classes].permute(2, 0, 1)[None] for classes in (target_classes, generated_classes)
    )
    # Intersections: 1, 2, 3. Unions: 3, 3, 4.
    expected = {"miou": pytest.approx((1 / 3 + 2 / 3 + 3 / 4) / 3)}
    assert mean_iou(generated, generated, target) == expected
    darker = generated.clone()
    darker[generated > 0] -= 40
    assert mean_iou(generated, darker, target) == expected
    blank = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert mean_iou(blank, blank, blank) == {"miou": 1.0}  # there is only one class


@pytest.mark.parametrize(
    "name",
    [
        f"{entry.name}:{variant}"
        for entry in TASKS
        if isinstance(entry.value, PairedTranslationTask)
        for variant in entry.value.pair_functions
        if variant not in ("4", "8")
    ],
)
def test_paired_tasks_are_trained_and_evaluated(
    name: str, squares: ImageSet, tmp_path: Path
) -> None:
    pairs = prepare_task_data(name, squares)
    assert pairs.source_images is not None and len(pairs.source_images) == len(pairs)
    run = train_task(name, pairs, out=tmp_path / "run", images=64, settings=SMALL)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert {"l1", "psnr", "ssim"} <= set(metrics) and all(np.isfinite(v) for v in metrics.values())
    generated = run.best.sample(3, source_images=np.moveaxis(pairs.source_images[:3], 1, 3))
    assert generated.shape == (3, 16, 16, pairs.channels)
    assert run.best.sample(2).shape == (
        2,
        16,
        16,
        pairs.channels,
    )  # from the source images saved with the run
    page = (run.path / "report.html").read_text()  # as written at the end of the run
    assert "target images" in page and "psnr" in page
    assert "miou" in metrics or name != "pix2pix:segment"
    if name.startswith("srgan"):
        assert {"bicubic psnr", "std of samples"} <= set(metrics)
        assert metrics["bicubic psnr"] > 10


def test_labels_can_be_used_together_with_source_images(squares: ImageSet, tmp_path: Path) -> None:
    labels = np.arange(64) % 2
    data = replace(squares, labels=labels, classes=("a", "b"), fingerprint="labeled")
    settings = {**SMALL, "policy": "fixed", "conditioning": "projection"}
    run = train_task(
        "srgan:2",
        prepare_task_data("srgan:2", data),
        out=tmp_path / "r",
        images=32,
        settings=settings,
    )
    spec = run.best.load_network().spec
    assert spec.label_dim == 2 and spec.source_channels == 3 and run.best.classes == ("a", "b")
    requested_labels: list[object] = []
    sample = type(run.best).sample

    class RecordingGenerator:
        classes = run.best.classes

        def sample(self, *args: object, **kwargs: object) -> object:
            requested_labels.append(kwargs["labels"])
            return sample(run.best, *args, **kwargs)  # type: ignore[arg-type]

    task = TASKS["srgan"]
    assert isinstance(task, PairedTranslationTask)
    test_pairs = prepare_task_data("srgan:2", data).subset(np.arange(3, 8))
    task.compare_to_targets(RecordingGenerator(), test_pairs)  # type: ignore[arg-type]
    assert requested_labels == [[1, 0, 1, 0, 1]]  # each image is generated for its own label


def test_operations_that_need_latents_only_are_refused(squares: ImageSet, tmp_path: Path) -> None:
    pairs = prepare_task_data("pix2pix:edges", squares)
    run = train_task("pix2pix:edges", pairs, out=tmp_path / "run", images=64, settings=SMALL)
    with pytest.raises(UserError, match="cannot be exported yet"):
        export(run.best, "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="image-to-image generators have no latent directions"):
        _ = run.best.directions
    with pytest.raises(UserError, match="source images must have the shape"):
        run.best.sample(1, source_images=np.zeros((1, 8, 8, 1), np.uint8))


def test_a_task_grows(squares: ImageSet, tmp_path: Path) -> None:
    pairs = prepare_task_data("pix2pix:segment", squares)
    settings = {**SMALL, "policy": "progressive"}
    run = train_task("pix2pix:segment", pairs, out=tmp_path / "run", images=128, settings=settings)
    resolutions = [tuple(e["resolution"]) for e in run.events if e["event"] == "candidate"]
    assert resolutions[0] < resolutions[-1] == (16, 16)


def test_pix2pix_learns_the_target_images(squares: ImageSet, tmp_path: Path) -> None:
    pairs = prepare_task_data("pix2pix:segment", squares)
    target = pairs.images
    error_of_mean_image = float(np.abs(target - target.mean(0)).mean())
    settings = {**SMALL, "policy": "fixed", "network": {"width": 16, "latent_dim": 4}}
    run = train_task("pix2pix:segment", pairs, out=tmp_path / "r", images=3000, settings=settings)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert metrics["l1"] < 0.5 * error_of_mean_image and metrics["miou"] > 0.6


def test_a_constant_image_is_not_reported_as_a_collapse(squares: ImageSet, tmp_path: Path) -> None:
    # All source images are equal, so the mean of the target images has the lowest loss.
    data = replace(squares, source_images=np.zeros_like(squares.images))
    settings = {**SMALL, "policy": "fixed", "regularizers": {"l1": {"weight": 1e4}}}
    run = train_task("pix2pix", data, out=tmp_path / "run", images=2000, settings=settings)
    health = [event["health_metrics"] for event in run.events if event.get("health_metrics")]
    assert not [event for event in run.events if event["event"] == "mitigation"]
    assert health[-1]["diversity_ratio"] < 0.02 and health[-1]["score"] > 0.95, "one gray image"


def test_two_sets_form_pairs(squares: ImageSet) -> None:
    pairs = prepare_task_data("pix2pix", squares, replace(squares, fingerprint="other"))
    assert pairs.source_images is squares.images
    with pytest.raises(UserError, match="cannot be paired: they have 64 images of"):
        prepare_task_data("pix2pix", squares, squares.subset(np.arange(8)))
    for task in ("srgan", "pix2pix:edges"):
        with pytest.raises(UserError, match=f"'{task}' makes its pairs from one set"):
            prepare_task_data(task, squares, squares)
    with pytest.raises(UserError, match="unknown variant of task 'pix2pix' 'nonsense'"):
        prepare_task_data("pix2pix:nonsense", squares, squares)


def test_mistakes_give_clear_errors(squares: ImageSet, tmp_path: Path) -> None:
    for task, message in (
        ("pix2pix", "task 'pix2pix' needs a variant: pix2pix:color, pix2pix:edges"),
        ("pix2pix:egdes", "did you mean 'edges'"),
        ("pixpix", "did you mean 'pix2pix'"),
    ):
        with pytest.raises(UserError, match=message):
            prepare_task_data(task, squares)
    with pytest.raises(UserError, match="has no source images"):
        gg.grow(squares, out=tmp_path / "a", images=8, settings={"conditioning": "source-concat"})
    pairs = prepare_task_data("pix2pix:edges", squares)
    with pytest.raises(UserError, match="augmentation has no meaning for image-to-image tasks"):
        gg.grow(pairs, out=tmp_path / "b", images=8, settings={"augmentation": "diffaugment"})


def test_the_command_trains_a_task_and_prints_its_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["glyphs:count=64", "--resolution", "16", "--images", "64", "--out", str(out)]
    small = [
        f"--set={override}"
        for override in ("batch_size=8", "network.width=8", "score.num_samples=32", "threads=1")
    ]
    assert main(["grow", *options, "--task", "pix2pix:edges", *small]) == 0
    assert "psnr" in capsys.readouterr().out
    assert main(["train", "pixpix", *options]) == 2
    assert "preset or task" in capsys.readouterr().err
    assert main(["train", "pggan", "glyphs", "digits"]) == 2
    assert "takes at most 1 DATA, but got 2" in capsys.readouterr().err
    assert main(["train", "cyclegan", "glyphs", "digits", "glyphs:rgb"]) == 2
    assert "takes at most 2 DATA, but got 3" in capsys.readouterr().err
    dry_run = ["--resolution", "16", "--dry-run"]
    for task, message in (
        ("semi", "needs the number of labels"),
        ("anogan:99", "needs the anomalous class"),
        ("augment:50", "needs the number of images per class"),
    ):
        assert main(["grow", "glyphs:count=200", *dry_run, "--task", task]) == 2
        assert message in capsys.readouterr().err
    for task in ("text2image", "text2image:direct"):
        assert main(["grow", "glyphs:captions,count=200", *dry_run, "--task", task]) == 0
        assert "16x16" in capsys.readouterr().out
