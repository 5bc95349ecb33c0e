"""Looks into a finished generator, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growgan.cli import main
from growgan.config import OptimiserSettings, StackSettings, make_settings
from growgan.data import ImageSet, load_images
from growgan.errors import UserError
from growgan.growth import Run, grow
from growgan.growth.gallery import nearest_images, pairings, truncation_curve, write_gallery
from growgan.growth.history import Space
from growgan.growth.model import Model, Sheet
from growgan.growth.run import for_data
from growgan.metrics.features import PixelExtractor
from growgan.training.gan import Gan

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def source(make_images: Callable[..., ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, path = make_images(300, 1, 16, 16), tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, images=made.images.transpose(0, 2, 3, 1), labels=made.labels)
    return path


@pytest.fixture(scope="module")
def data(source: Path) -> ImageSet:
    return load_images(source, resolution=16)


@pytest.fixture(scope="module")
def run(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("gallery") / "run"
    settings = {"policy": "fixed", "batch": 8, "stack": {"latent": 16, "width": 8}}
    score = {"score": {"kind": "swd", "samples": 64}}
    return grow(data, out=out, images=800, settings={**settings, **score})


def test_the_gallery_is_written_and_shown(run: Run, data: ImageSet) -> None:
    folder = write_gallery(run, data)
    assert {p.name for p in folder.iterdir()} == {"walk.png", "neighbours.png", "truncation.json"}
    curve = json.loads((folder / "truncation.json").read_text())
    assert [point["truncation"] for point in curve] == [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, None]
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    for title in ("From one sample to the next", "nearest training images", "Fidelity against"):
        assert title in page


def test_the_nearest_image_of_a_training_image_is_itself(
    run: Run, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = np.array(data.images[[7, 3, 250]]).transpose(0, 2, 3, 1)
    monkeypatch.setattr(Model, "sample", lambda model, count, **how: copies)
    fakes, reals = nearest_images(run.best, data, PixelExtractor(16))
    assert np.array_equal(fakes, reals)


def test_samples_are_drawn_beside_their_nearest_images_and_along_the_curve(
    run: Run, data: ImageSet, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, ask = tmp_path / "near.npz", ["sample", str(run.path), "-n", "5", "--seed", "3"]
    assert main([*ask, "--nearest", str(source), "--out", str(sheet)]) == 0
    with np.load(sheet) as found:
        images = found["images"]
    assert len(images) == 10 and np.array_equal(images[:5], run.best.sample(5, seed=3))
    known = {image.tobytes() for image in data.images.transpose(0, 2, 3, 1)}
    assert all(image.tobytes() in known for image in images[5:])
    assert not any(image.tobytes() in known for image in images[:5])
    capsys.readouterr()
    assert main([*ask, "--curve", str(source), "--out", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["truncation", "precision", "recall"]
    assert [line.split()[0] for line in lines[1:-1]] == "0.25 0.5 0.75 1 1.5 2 none".split()
    with np.load(sheet) as found:
        rows = found["images"].reshape(7, 8, 16, 16, 1)
    for row, cut in zip(rows, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, None), strict=True):
        assert np.array_equal(row, run.best.sample(8, seed=3, truncation=cut))


def test_samples_without_variety_have_no_recall(
    run: Run, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of reals are all right and all there; one image alone leaves the others out."""

    def sample(
        model: Model, count: int, *, seed: int, truncation: float | None = None
    ) -> np.ndarray:
        rng = np.random.default_rng(1)
        rows = rng.permutation(len(data))[: count if truncation is None else 5]
        picked = np.array(data.images[np.resize(rows, count)])
        noise = rng.integers(0, 2, picked.shape, dtype=np.uint8)
        return (picked // 2 * 2 + noise).transpose(0, 2, 3, 1)

    monkeypatch.setattr(Model, "sample", sample)
    curve = truncation_curve(run.best, data, PixelExtractor(16))
    assert curve[-1]["precision"] == pytest.approx(1, abs=0.05)
    assert curve[-1]["recall"] == pytest.approx(1, abs=0.05)
    assert (curve[0]["recall"] or 0) < 0.5
    assert torch.tensor([p["precision"] for p in curve]).min() > 0.9


def test_the_data_of_a_run_are_read_in_its_own_form(tmp_path: Path) -> None:
    """Not square, in colour, and of one label: as they are in the folder, they are other images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 12, 20, 3), dtype=np.uint8)
    source, sheet = tmp_path / "wide.npz", tmp_path / "near.npz"
    np.savez(source, images=images, labels=np.arange(80) % 2)
    data = load_images(source, resolution=16, channels=1, fit="stretch").only(1)
    settings = {
        "policy": "fixed",
        "batch": 8,
        "data": {"fit": "stretch", "channels": 1},
        "labels": {"only": 1},
        "stack": {"latent": 16, "width": 8},
        "score": {"kind": "swd", "samples": 32},
    }
    whole = load_images(source, resolution=16, channels=1, fit="stretch")
    run = grow(whole, out=tmp_path / "run", images=64, settings=settings)
    assert run.best.load_data(source).fingerprint == data.fingerprint
    assert main(["report", str(run.path), "--data", str(source)]) == 0
    assert (run.path / "gallery" / "neighbours.png").is_file()
    ask = ["sample", str(run.path), "-n", "4", "--out", str(sheet)]
    for way in ("--nearest", "--curve"):
        assert main([*ask, way, str(source)]) == 0


def test_other_data_is_refused(run: Run, make_images: Callable[..., ImageSet]) -> None:
    with pytest.raises(UserError, match="is other data than"):
        write_gallery(run, make_images(301, 1, 16, 16))


def test_a_run_without_weights_still_has_a_page(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("ledger.jsonl", "config.yaml"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    assert main(["report", str(copy)]) == 0
    assert not (copy / "gallery").exists()


def test_a_conditional_run_shows_its_classes(data: ImageSet, tmp_path: Path) -> None:
    settings = {
        "policy": "fixed",
        "batch": 8,
        "conditioning": "projection",
        "stack": {"latent": 16, "width": 8},
        "score": {"kind": "swd", "samples": 64},
    }
    run = grow(data, out=tmp_path / "run", images=800, settings=settings)
    folder = write_gallery(run, data)
    assert {"classes.png", "morph.png", "classes.json"} <= {p.name for p in folder.iterdir()}
    found = json.loads((folder / "classes.json").read_text())
    assert set(found["distances"]) == set(data.classes)
    assert set(found["pairings"]) == {
        f"{kind}, {side}" for kind in ("real", "fake") for side in ("right", "wrong")
    }
    assert main(["report", str(run.path)]) == 0
    page = (run.path / "report.html").read_text()
    assert "From one class to the next" in page and "Class by class" in page
    check_ways(run, tmp_path / "way.npz")


def check_ways(run: Run, sheet: Path) -> None:
    """What is drawn from picks is drawn as they are, truncated and of their labels, or refused."""
    how: Sheet = {"count": 9, "seed": 2, "truncation": 0.5, "labels": [1]}
    said = ["--seed", "2", "--truncation", "0.5"]
    made = run.best
    drawn: Any = {"seed": 2, "truncation": 0.5}
    for words, images in (
        (["--walk", "0,8", "--labels", "1"], made.walk([0, 8], 8, **how)),
        (["--combine", "0,1-2", "--labels", "1"], made.combine([[0, 1]], [[2]], **how)),
        (["--morph", "0,1"], made.morph([0, 1], 8, **drawn)),
    ):
        assert main(["sample", str(run.path), "-n", "9", *said, *words, "--out", str(sheet)]) == 0
        with np.load(sheet) as found:
            assert np.array_equal(found["images"], images)
    for words in (["--morph", "0,1", "--labels", "1"], ["--curve", "x", "--truncation", "1"]):
        assert main(["sample", str(run.path), *words]) == 2


@pytest.mark.parametrize("conditioning", ["ac", "adc", "mh", "semi", "2c"])
def test_the_pairings_of_a_d_with_a_classifier_are_its_scores_of_the_label(
    conditioning: str, data: ImageSet
) -> None:
    settings = make_settings({"conditioning": conditioning, "stack": {"latent": 8, "width": 8}})
    stack = for_data(settings, data).stack
    gan = Gan.create(*Space("pggan", stack, 1, (16, 16)).stacks(2), OptimiserSettings(), seed=0)
    name = "h" if conditioning == "2c" else "p"
    with torch.no_grad():
        readout = gan.discriminator.readouts[name]
        readout.weight.zero_()
        readout.bias.zero_()[0] = 1.0
        if conditioning == "2c":  # the directions are those of the first two axes
            gan.discriminator.proxies.copy_(torch.eye(*gan.discriminator.proxies.shape))
    share = float((data.labels == 0).mean())  # type: ignore[union-attr]
    found = pairings(gan, data)
    assert found["real, right"] == pytest.approx(share, abs=0.05)
    assert found["real, wrong"] == pytest.approx(1 - share, abs=0.05)


def test_the_pairings_tell_a_d_that_looks_at_labels(data: ImageSet) -> None:
    shape = StackSettings(latent=8, width=8, classes=2, judging="projection", readouts=(("p", 2),))
    gan = Gan.create(*Space("pggan", shape, 1, (16, 16)).stacks(2), OptimiserSettings(), seed=0)
    with torch.no_grad():
        readout = gan.discriminator.readouts["p"]
        readout.weight.zero_()
    blind = pairings(gan, data)
    assert blind["real, right"] == pytest.approx(blind["real, wrong"], abs=1e-6)
    with torch.no_grad():
        readout.bias.copy_(torch.tensor([1.0, 3.0]))
    share = float((data.labels == 1).mean())  # type: ignore[union-attr]
    told = pairings(gan, data)
    gap = (1 - share) * (1 - 3) + share * (3 - 1)
    assert told["real, right"] - told["real, wrong"] == pytest.approx(gap, abs=0.05)
