"""Tasks without given pairs: semi, next-frame, anogan, augment, cyclegan and style."""

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
from growgan.nets.conditioning import one_hot
from growgan.nets.spec import DiscriminatorSpec, LayerSpec
from growgan.report.page import write_report
from growgan.tasks import TASKS, prepare_task_data, train_task
from growgan.tasks.anogan import auroc, reconstruct_by_pca
from growgan.tasks.next_frame import (
    NUM_CONTEXT_FRAMES,
    NUM_PREDICTED_FRAMES,
    bouncing_positions,
    sharpness,
)
from growgan.tasks.semi_supervised import (
    LABELED_BATCH_FRACTION,
    class_logits,
    labeled_accuracy,
    train_supervised_baseline,
)
from growgan.training.runtime import make_runtime

SMALL = {
    "batch_size": 8,
    "network": {"width": 8, "latent_dim": 4},
    "score": {"num_samples": 32},
    "threads": 1,
}


def test_semi_keeps_equally_many_labels_per_class_and_repeats_labeled_images(
    two_class_images: ImageSet,
) -> None:
    task = TASKS["semi"]
    train_set = task.make_training_set(two_class_images, "20", seed=3)
    assert train_set.labels is not None and two_class_images.labels is not None
    labels = train_set.labels[: len(two_class_images)]
    assert np.bincount(labels + 1).tolist() == [180, 10, 10]
    assert (labels[labels >= 0] == two_class_images.labels[labels >= 0]).all()
    assert (train_set.labels >= 0).mean() == pytest.approx(LABELED_BATCH_FRACTION, abs=0.03)
    other_seed = task.make_training_set(two_class_images, "20", seed=4)
    assert other_seed.labels is not None
    assert not np.array_equal(labels, other_seed.labels[: len(two_class_images)])
    for variant in ("", "x", "1", "21", "2000"):
        with pytest.raises(UserError, match="semi"):
            task.make_training_set(two_class_images, variant, seed=0)
    with pytest.raises(UserError, match="needs labels"):
        task.make_training_set(replace(two_class_images, labels=None, classes=()), "20", seed=0)


def test_semi_trains_d_and_the_baseline_as_classifiers(
    two_class_images: ImageSet, tmp_path: Path
) -> None:
    settings = {**SMALL, "policy": "fixed"}
    run = train_task(
        "semi:20", two_class_images, out=tmp_path / "run", images=3200, settings=settings
    )
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert metrics["accuracy"] > 0.8 and metrics["accuracy, supervised baseline"] > 0.8
    assert not run.best.classes and run.best.sample(2).shape == (2, 8, 8, 1)
    sheet = np.array(Image.open(run.path / "gallery" / "task.png"))
    assert sheet.shape == (3 * 8, 16 * 8), "two classes and a row of generated images"
    above, below = (sheet[8 * k : 8 * k + 8].astype(float) for k in (0, 1))
    assert above[:4].mean() > above[4:].mean() and below[:4].mean() < below[4:].mean()
    write_report(run.path)


def test_class_logits_and_accuracy_by_hand(two_class_images: ImageSet) -> None:
    settings = make_settings(TASKS["semi"].small_overrides, {**SMALL, "precision": "float32"})
    layer = LayerSpec("x", "conv", width=8, kernel_size=3, resample_factor=2)
    spec = DiscriminatorSpec(
        base_grid=(4, 4),
        image_channels=1,
        stem_width=8,
        layers=(layer,),
        mbstd_group_size=0,
        label_dim=2,
        logit_conditioning="class_scores",
        linear_heads=(("classifier", 2),),
    )
    network = train_supervised_baseline(spec, two_class_images, settings, 0)
    with torch.no_grad():
        network.linear_heads["classifier"].weight.zero_()  # type: ignore[operator, union-attr]
        network.linear_heads["classifier"].bias.copy_(torch.tensor([0.0, 1.0]))  # type: ignore[operator, union-attr]
        x = torch.from_numpy(two_class_images.images[:3])
        logits_by_class = class_logits(network, x, make_runtime("cpu", "float32"))
        # For class logits (0, 1), D's logit is log(e⁰ + e¹).
        y = one_hot(torch.zeros(3, dtype=torch.int64), 2)
        logits = network(x.float() / 127.5 - 1, y)
    assert logits_by_class.tolist() == [[0.0, 1.0]] * 3
    torch.testing.assert_close(logits, torch.full((3,), float(np.log(1 + np.e))))
    assert labeled_accuracy(network, two_class_images) == 0.5


@pytest.fixture(scope="module")
def discs() -> ImageSet:
    """Return 12 images of 16x16 with white discs of different sizes."""
    y, x = np.mgrid[:16, :16] - 7.5
    radii = 3 + np.arange(12) / 4
    images = ((y**2 + x**2)[None] < radii[:, None, None] ** 2).astype(np.uint8)[:, None] * 255
    return ImageSet("discs", images, labels=None, classes=(), fingerprint="discs")


def test_bouncing_motion_has_constant_speed_and_stays_inside() -> None:
    for seed in range(20):
        positions = bouncing_positions(np.random.default_rng(seed), 8, 40)
        assert positions.min() >= 0 and positions.max() <= 8
        steps = np.abs(np.diff(positions))
        speed = int(steps.max())
        # Every step has the same length, except where the motion is reflected within a step.
        assert speed in (1, 2, 3) and np.median(steps) == speed
    assert len({tuple(bouncing_positions(np.random.default_rng(s), 8, 9)) for s in range(20)}) > 10


def test_each_frame_of_a_moving_clip_has_the_previous_frames_as_source(discs: ImageSet) -> None:
    clips = prepare_task_data("next-frame:moving", discs)
    assert len(clips) == 12 * NUM_PREDICTED_FRAMES and clips.source_images is not None
    assert clips.source_images.shape == (12 * NUM_PREDICTED_FRAMES, NUM_CONTEXT_FRAMES, 16, 16)
    for row in range(1, NUM_PREDICTED_FRAMES):
        assert np.array_equal(clips.source_images[row, :-1], clips.source_images[row - 1, 1:])
        assert np.array_equal(clips.source_images[row, -1:], clips.images[row - 1])
    assert (
        np.ptp(clips.images.reshape(len(clips), -1).sum(1)[:NUM_PREDICTED_FRAMES].astype(int)) == 0
    )
    train_split, test_set = TASKS["next-frame"].split(clips)
    assert len(test_set) == NUM_PREDICTED_FRAMES
    assert len(train_split) == 11 * NUM_PREDICTED_FRAMES
    with pytest.raises(UserError, match="needs at least 2 clips of 13 consecutive frames"):
        prepare_task_data("next-frame:frames", discs)
    sequence = prepare_task_data("next-frame:frames", discs.subset(np.arange(40) % 12))
    assert len(sequence) == 3 * NUM_PREDICTED_FRAMES
    assert np.array_equal(sequence.images[0], discs.images[NUM_CONTEXT_FRAMES])


def test_next_frame_is_trained_and_evaluated(discs: ImageSet, tmp_path: Path) -> None:
    clips = prepare_task_data("next-frame:moving", discs)
    run = train_task("next-frame:moving", clips, out=tmp_path / "run", images=64, settings=SMALL)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert {
        "psnr, frame +1",
        f"last frame ssim, frame +{NUM_PREDICTED_FRAMES}",
        "relative sharpness, frame +1",
    } <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert (run.path / "gallery" / "task.png").exists()


def test_sharpness_by_hand() -> None:
    image = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    image[..., 2:] = 30
    assert sharpness(image) == pytest.approx(
        (0 + 10) / 2
    )  # along one axis, one of three differences is 30


def test_auroc_by_hand() -> None:
    assert auroc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auroc(np.array([0.0, 3.0]), np.array([1.0, 2.0])) == 0.5
    assert auroc(np.array([1.0]), np.array([1.0, 0.0])) == 0.75


def test_pca_reconstructs_its_own_subspace_only() -> None:
    rng = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 64, generator=rng)
    normal = (torch.randn(50, 3, generator=rng) @ basis).view(50, 1, 8, 8)
    torch.testing.assert_close(
        reconstruct_by_pca(normal[:5], normal), normal[:5], rtol=1e-3, atol=1e-3
    )
    anomalous = torch.randn(5, 1, 8, 8, generator=rng)
    assert float((reconstruct_by_pca(anomalous, normal) - anomalous).abs().mean()) > 0.1


def test_anogan_detects_a_class_that_was_not_trained_on(
    two_class_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("growgan.tasks.anogan.ENCODER_STEPS", 300)
    settings = {**SMALL, "policy": "fixed", "network": {"width": 16, "latent_dim": 4}}
    run = train_task(
        "anogan:below", two_class_images, out=tmp_path / "run", images=4000, settings=settings
    )
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert metrics["auroc, latent search"] > 0.9 and metrics["auroc, encoder"] > 0.9
    for variant in ("", "2", "left"):
        with pytest.raises(UserError, match="an index or one of: above, below"):
            TASKS["anogan"].make_training_set(two_class_images, variant, 0)


def test_augment_compares_real_and_generated_training_images(
    two_class_images: ImageSet, tmp_path: Path
) -> None:
    task = TASKS["augment"]
    train_set = task.make_training_set(two_class_images, "10", seed=0)
    assert train_set.labels is not None and np.bincount(train_set.labels).tolist() == [10, 10]
    for variant in ("0", "many", "101"):
        with pytest.raises(UserError, match="needs the number of images per class, 1 to 100"):
            task.make_training_set(two_class_images, variant, 0)
    run = train_task(
        "augment:10", two_class_images, out=tmp_path / "run", images=64, settings=SMALL
    )
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    names = ("real", "generated", "real and generated")
    assert set(metrics) == {f"accuracy, {name}" for name in names}
    assert metrics["accuracy, real"] > 0.9


@pytest.fixture(scope="module")
def dark_and_light() -> tuple[ImageSet, ImageSet]:
    """Return the same squares dark on light and light on dark: 48 images of 8x8 each."""
    rng = np.random.default_rng(0)
    dark = np.full((48, 1, 8, 8), 230, np.uint8)
    for image in dark:
        y, x = rng.integers(0, 5, 2)
        image[:, y : y + 3, x : x + 3] = 20
    sets = (("dark", dark), ("light", 255 - dark))
    first, second = (
        ImageSet(name, images, labels=None, classes=(), fingerprint=name) for name, images in sets
    )
    return first, second


def test_cyclegan_interleaves_domains_and_shuffles_sources_for_training(
    dark_and_light: tuple[ImageSet, ImageSet],
) -> None:
    task = TASKS["cyclegan"]
    data = prepare_task_data("cyclegan:aligned", *dark_and_light)
    assert data.labels is not None and data.source_images is not None
    assert data.labels[:4].tolist() == [1, 0, 1, 0] and data.classes == ("dark", "light")
    assert np.array_equal(data.images[1::2], dark_and_light[0].images)
    assert np.array_equal(data.source_images, 255 - data.images)  # each aligned with its target
    train_split, test_set = task.split(data)
    assert len(test_set) == 10 and len(train_split) == 86
    assert np.array_equal(test_set.source_images, 255 - test_set.images)  # type: ignore[operator]
    train_set = task.make_training_set(train_split, "aligned", 0)
    assert train_set.source_images is not None
    assert (
        train_set.source_images[::2].mean((1, 2, 3)) > 128
    ).all()  # light images have dark-on-light sources
    assert (train_set.source_images != 255 - train_set.images).any((1, 2, 3)).mean() > 0.8
    known = {image.tobytes() for image in train_split.images}
    assert all(image.tobytes() in known for image in train_set.source_images)


def test_cyclegan_translates_between_domains(
    dark_and_light: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    data = prepare_task_data("cyclegan:aligned", *dark_and_light)
    settings = {**SMALL, "policy": "fixed", "network": {"width": 16, "latent_dim": 4}}
    run = train_task("cyclegan:aligned", data, out=tmp_path / "r", images=4000, settings=settings)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    for source, target in (("dark", "light"), ("light", "dark")):
        direction = f"{source} to {target}"
        assert metrics[f"{direction}, l1"] < 0.5 * metrics[f"{direction}, source l1"]
        assert metrics[f"{direction} to {source}, l1"] < 40
    assert run.best.sample(4).shape == (4, 8, 8, 1)
    write_report(run.path)


def test_cyclegan_needs_two_sets_of_the_same_shape(
    dark_and_light: tuple[ImageSet, ImageSet],
) -> None:
    dark, light = dark_and_light
    with pytest.raises(UserError, match="takes two sets"):
        prepare_task_data("cyclegan", dark)
    with pytest.raises(UserError, match="needs two sets of the same size"):
        prepare_task_data("cyclegan:aligned", dark, light.subset(np.arange(9)))
    with pytest.raises(UserError, match="must have the same channels and resolution"):
        prepare_task_data("cyclegan", dark, replace(light, images=light.images[:, :, :4]))
    with pytest.raises(UserError, match="unknown variant of task 'cyclegan' 'loose'"):
        prepare_task_data("cyclegan:loose", dark, light)
    assert len(prepare_task_data("cyclegan", dark, light.subset(np.arange(9)))) == 96


@pytest.mark.usefixtures("temporary_cache")
def test_style_generates_and_mixes_classes(two_class_images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs labels"):
        prepare_task_data("style", replace(two_class_images, labels=None, classes=()))
    settings = {
        **SMALL,
        "network": {**SMALL["network"], "mapping_layers": 1, "mbstd_group_size": 4},
    }
    run = train_task("style", two_class_images, out=tmp_path / "run", images=64, settings=settings)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    assert metrics["class accuracy, real"] > 0.8
    assert {f"style mixes, class of {kind} styles" for kind in ("coarse", "fine")} < set(metrics)
    assert run.best.settings.network.style_mixing_prob == 0.9
    assert run.best.classes == ("above", "below")
    assert run.best.style_mix([0, 1], [2]).shape == (2, 8, 8, 1)
