"""Tests of the gallery and of the report page that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growgan.artifacts.gallery import (
    label_sensitivity,
    nearest_images,
    truncation_curve,
    write_gallery,
)
from growgan.cli import main
from growgan.config import NetworkConfig, OptimizerSettings, make_settings
from growgan.data import ImageSet, load_images
from growgan.errors import UserError
from growgan.metrics.features.pixels import PixelExtractor
from growgan.run.grow import grow
from growgan.run.run import Run
from growgan.run.validation import derive_network_settings
from growgan.sampling.trained_generator import SampleSpec, TrainedGenerator
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan

pytestmark = pytest.mark.usefixtures("temporary_cache")


@pytest.fixture(scope="module")
def source(
    make_blob_images: Callable[..., ImageSet], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    images, path = make_blob_images(300, 1, 16, 16), tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, images=images.images.transpose(0, 2, 3, 1), labels=images.labels)
    return path


@pytest.fixture(scope="module")
def data(source: Path) -> ImageSet:
    return load_images(source, resolution=16)


@pytest.fixture(scope="module")
def run(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("gallery") / "run"
    settings = {"policy": "fixed", "batch_size": 8, "network": {"latent_dim": 16, "width": 8}}
    score = {"score": {"kind": "swd", "num_samples": 64}}
    return grow(data, out=out, images=800, settings={**settings, **score})


def test_the_gallery_is_written_and_reported(run: Run, data: ImageSet) -> None:
    folder = write_gallery(run, data)
    assert {p.name for p in folder.iterdir()} == {
        "interpolation.png",
        "nearest.png",
        "truncation.json",
    }
    curve = json.loads((folder / "truncation.json").read_text())
    assert [point["truncation"] for point in curve] == [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, None]
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    for title in ("Interpolation between samples", "nearest training images", "Fidelity against"):
        assert title in page


def test_the_nearest_image_of_a_training_image_is_itself(
    run: Run, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = np.array(data.images[[7, 3, 250]]).transpose(0, 2, 3, 1)
    monkeypatch.setattr(TrainedGenerator, "sample", lambda model, count, **options: copies)
    fakes, reals = nearest_images(run.best, data, PixelExtractor(16))
    assert np.array_equal(fakes, reals)


def test_growgan_sample_shows_nearest_images_and_a_truncation_sweep(
    run: Run, data: ImageSet, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, command = tmp_path / "near.npz", ["sample", str(run.path), "-n", "5", "--seed", "3"]
    assert main([*command, "--nearest", str(source), "--out", str(sheet)]) == 0
    with np.load(sheet) as arrays:
        images = arrays["images"]
    assert len(images) == 10 and np.array_equal(images[:5], run.best.sample(5, seed=3))
    training_images = {image.tobytes() for image in data.images.transpose(0, 2, 3, 1)}
    assert all(image.tobytes() in training_images for image in images[5:])
    assert not any(image.tobytes() in training_images for image in images[:5])
    capsys.readouterr()
    assert main([*command, "--truncation-sweep", str(source), "--out", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["truncation", "precision", "recall"]
    assert [line.split()[0] for line in lines[1:-1]] == "0.25 0.5 0.75 1 1.5 2 none".split()
    with np.load(sheet) as arrays:
        rows = arrays["images"].reshape(7, 8, 16, 16, 1)
    for row, truncation in zip(rows, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, None), strict=True):
        assert np.array_equal(row, run.best.sample(8, seed=3, truncation=truncation))


def test_samples_without_diversity_have_low_recall(
    run: Run, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of all real images have full precision and recall; copies of five have low recall."""

    def sample(
        model: TrainedGenerator, count: int, *, seed: int, truncation: float | None = None
    ) -> np.ndarray:
        rng = np.random.default_rng(1)
        rows = rng.permutation(len(data))[: count if truncation is None else 5]
        picked = np.array(data.images[np.resize(rows, count)])
        noise = rng.integers(0, 2, picked.shape, dtype=np.uint8)
        return (picked // 2 * 2 + noise).transpose(0, 2, 3, 1)

    monkeypatch.setattr(TrainedGenerator, "sample", sample)
    curve = truncation_curve(run.best, data, PixelExtractor(16))
    assert curve[-1]["precision"] == pytest.approx(1, abs=0.05)
    assert curve[-1]["recall"] == pytest.approx(1, abs=0.05)
    assert (curve[0]["recall"] or 0) < 0.5
    assert torch.tensor([p["precision"] for p in curve]).min() > 0.9


def test_the_data_of_a_run_are_preprocessed_as_in_the_run(tmp_path: Path) -> None:
    """The images are stretched to a square, converted to gray, and restricted to one class."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 12, 20, 3), dtype=np.uint8)
    source, sheet = tmp_path / "wide.npz", tmp_path / "near.npz"
    np.savez(source, images=images, labels=np.arange(80) % 2)
    data = load_images(source, resolution=16, channels=1, fit="stretch").only_class(1)
    settings = {
        "policy": "fixed",
        "batch_size": 8,
        "data": {"fit": "stretch", "channels": 1},
        "labels": {"only_class": 1},
        "network": {"latent_dim": 16, "width": 8},
        "score": {"kind": "swd", "num_samples": 32},
    }
    all_classes = load_images(source, resolution=16, channels=1, fit="stretch")
    run = grow(all_classes, out=tmp_path / "run", images=64, settings=settings)
    assert run.best.load_data(source).fingerprint == data.fingerprint
    assert main(["report", str(run.path), "--data", str(source)]) == 0
    assert (run.path / "gallery" / "nearest.png").is_file()
    command = ["sample", str(run.path), "-n", "4", "--out", str(sheet)]
    for option in ("--nearest", "--truncation-sweep"):
        assert main([*command, option, str(source)]) == 0


def test_other_data_is_refused(run: Run, make_blob_images: Callable[..., ImageSet]) -> None:
    with pytest.raises(UserError, match="which differs from"):
        write_gallery(run, make_blob_images(301, 1, 16, 16))


def test_a_run_without_weights_still_has_a_report(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("ledger.jsonl", "config.yaml"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    assert main(["report", str(copy)]) == 0
    assert not (copy / "gallery").exists()


def test_a_conditional_run_shows_its_classes(data: ImageSet, tmp_path: Path) -> None:
    settings = {
        "policy": "fixed",
        "batch_size": 8,
        "conditioning": "projection",
        "network": {"latent_dim": 16, "width": 8},
        "score": {"kind": "swd", "num_samples": 64},
    }
    run = grow(data, out=tmp_path / "run", images=800, settings=settings)
    folder = write_gallery(run, data)
    assert {"classes.png", "class_interpolation.png", "classes.json"} <= {
        p.name for p in folder.iterdir()
    }
    results = json.loads((folder / "classes.json").read_text())
    assert set(results["frechet_distances"]) == set(data.classes)
    assert set(results["label_sensitivity"]) == {
        f"{kind}, {name} label" for kind in ("real", "fake") for name in ("correct", "wrong")
    }
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "Interpolation between classes" in page and "Fréchet distance of each class" in page
    check_sample_modes(run, tmp_path / "samples.npz")


def check_sample_modes(run: Run, sheet: Path) -> None:
    """Check that ``growgan sample`` gives the images of the methods, or refuses the options."""
    sample_spec: SampleSpec = {"count": 9, "seed": 2, "truncation": 0.5, "labels": [1]}
    options = ["--seed", "2", "--truncation", "0.5"]
    generator = run.best
    seed_and_truncation: Any = {"seed": 2, "truncation": 0.5}
    for mode, images in (
        (
            ["--interpolate", "0,8", "--labels", "1"],
            generator.interpolate([0, 8], 8, **sample_spec),
        ),
        (
            ["--latent-arithmetic", "0,1-2", "--labels", "1"],
            generator.latent_arithmetic([[0, 1]], [[2]], **sample_spec),
        ),
        (
            ["--interpolate-classes", "0,1"],
            generator.interpolate_classes([0, 1], 8, **seed_and_truncation),
        ),
    ):
        assert main(["sample", str(run.path), "-n", "9", *options, *mode, "--out", str(sheet)]) == 0
        with np.load(sheet) as file:
            assert np.array_equal(file["images"], images)
    for invalid_options in (
        ["--interpolate-classes", "0,1", "--labels", "1"],
        ["--truncation-sweep", "x", "--truncation", "1"],
    ):
        assert main(["sample", str(run.path), *invalid_options]) == 2


@pytest.mark.parametrize("conditioning", ["ac", "adc", "mh", "semi", "2c"])
def test_label_sensitivity_of_a_classifier_is_its_logit_of_the_label(
    conditioning: str, data: ImageSet
) -> None:
    settings = make_settings(
        {"conditioning": conditioning, "network": {"latent_dim": 8, "width": 8}}
    )
    network = derive_network_settings(settings, data).network
    gan = Gan.create(
        *SearchSpace("pggan", network, 1, (16, 16)).specs_at(2), OptimizerSettings(), seed=0
    )
    name = "embedding" if conditioning == "2c" else "classifier"
    with torch.no_grad():
        head = gan.discriminator.linear_heads[name]
        head.weight.zero_()
        head.bias.zero_()[0] = 1.0
        if conditioning == "2c":  # the class embeddings point along the first two axes
            gan.discriminator.class_embeddings.copy_(
                torch.eye(*gan.discriminator.class_embeddings.shape)
            )
    fraction = float((data.labels == 0).mean())  # type: ignore[union-attr]
    sensitivity = label_sensitivity(gan, data)
    assert sensitivity["real, correct label"] == pytest.approx(fraction, abs=0.05)
    assert sensitivity["real, wrong label"] == pytest.approx(1 - fraction, abs=0.05)


def test_label_sensitivity_shows_whether_d_uses_labels(data: ImageSet) -> None:
    network = NetworkConfig(
        latent_dim=8,
        width=8,
        label_dim=2,
        logit_conditioning="projection",
        linear_heads=(("classifier", 2),),
    )
    gan = Gan.create(
        *SearchSpace("pggan", network, 1, (16, 16)).specs_at(2), OptimizerSettings(), seed=0
    )
    with torch.no_grad():
        head = gan.discriminator.linear_heads["classifier"]
        head.weight.zero_()
    insensitive = label_sensitivity(gan, data)
    assert insensitive["real, correct label"] == pytest.approx(
        insensitive["real, wrong label"], abs=1e-6
    )
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 3.0]))
    fraction = float((data.labels == 1).mean())  # type: ignore[union-attr]
    sensitivity = label_sensitivity(gan, data)
    gap = (1 - fraction) * (1 - 3) + fraction * (3 - 1)
    assert sensitivity["real, correct label"] - sensitivity["real, wrong label"] == pytest.approx(
        gap, abs=0.05
    )
