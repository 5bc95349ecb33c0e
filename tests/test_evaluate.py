"""``evaluate``, the streaming ``Metric`` and ``growgan evaluate``."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import growgan as gg
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.metrics import compute_prdc, inception_score, kid, sliced_wasserstein
from growgan.metrics.evaluate import DEFAULT_METRICS, Evaluation, evaluate
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.features.pretrained import InceptionExtractor, load_extractor
from growgan.metrics.functional.frechet_distance import frechet_distance_of_moments
from growgan.metrics.functional.moments import Moments
from growgan.metrics.image_statistics import CachedImageStatistics
from growgan.metrics.metric import STREAMABLE_REQUIREMENTS, Metric
from growgan.metrics.registry import METRICS
from growgan.metrics.result import result_difference

MakeImages = Callable[..., ImageSet]

SMALL_RUN = {"network": {"latent_dim": 8, "width": 8}, "batch_size": 8, "threads": 1}


@pytest.fixture
def fake_and_real(make_blob_images: MakeImages) -> tuple[ImageSet, ImageSet]:
    fake, real = make_blob_images(90, 3, 16, 16, seed=1), make_blob_images(120, 3, 16, 16, seed=2)
    return replace(fake, labels=None), replace(real, labels=None)


def tensor(images: ImageSet) -> Tensor:
    return torch.from_numpy(np.array(images.images))


def test_results_equal_the_functions_and_have_a_protocol(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fake, real = fake_and_real
    results = evaluate(fake, real, features="pixels", cache_dir=tmp_path)
    assert list(results) == list(DEFAULT_METRICS) and not results.skipped
    x, y = (PixelExtractor()(tensor(image_set)) for image_set in fake_and_real)
    prdc = compute_prdc(x, y)
    rows = np.sort(np.random.default_rng(0).permutation(120)[:90])
    swd = sliced_wasserstein(tensor(fake), tensor(real)[rows])
    expected = {
        "fid": frechet_distance_of_moments(Moments.from_features(x), Moments.from_features(y)),
        "kid": kid(x, y, subset_size=45).value,
        "precision": prdc.precision,
        "recall": prdc.recall,
        "density": prdc.density,
        "coverage": prdc.coverage,
        "swd": swd.mean,
    }
    assert {name: results[name].value for name in expected} == pytest.approx(expected, rel=1e-6)
    protocol = results["fid"].protocol
    assert (protocol.features, protocol.num_images) == ("pixels-8", (90, 120))
    assert protocol.resolution == (16, 16) and len(protocol.reference) == 32
    assert results["swd"].protocol.features == "none" and results["swd"].protocol.num_images == (
        90,
        90,
    )
    assert results["swd"].details == swd.levels


def test_equal_sets_are_perfect(make_blob_images: MakeImages, tmp_path: Path) -> None:
    images = make_blob_images(60, 1, 16, 16)
    results = evaluate(images, images, features="pixels", cache_dir=tmp_path)
    assert results["fid"].value == pytest.approx(0, abs=1e-9)
    other = evaluate(
        images, make_blob_images(60, 1, 16, 16, seed=9), features="pixels", cache_dir=tmp_path
    )
    assert (
        results["swd"].value < 0.5 * other["swd"].value
    )  # different patches are drawn for each set
    for name in ("precision", "recall", "coverage"):
        assert results[name].value == 1


def test_metrics_that_need_labels_and_held_out_images(
    make_blob_images: MakeImages, tmp_path: Path
) -> None:
    fake, real, held_out = (make_blob_images(200, 1, 16, 16, seed=seed) for seed in range(3))
    names = ["intra-fid", "cas", "memorization", "fid-infinity"]
    results = evaluate(
        fake, real, metrics=names, held_out=held_out, features="pixels", cache_dir=tmp_path
    )
    assert list(results) == names
    assert set(results["intra-fid"].details) == {"0", "1"}
    assert results["cas"].value > 0.9 and results["cas"].details["real"] > 0.9
    assert results["memorization"].value < 0.2
    copies = evaluate(
        real,
        real,
        metrics=["memorization"],
        held_out=held_out,
        features="pixels",
        cache_dir=tmp_path,
    )
    assert copies["memorization"].value == 1


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("intra-fid", "intra-fid: needs labels, but the fake images have none"),
        ("cas", "pass --held-out DATA"),
        ("memorization", "pass --held-out DATA"),
        ("ppl", "FAKE must be a run"),
        ("is", "needs class probabilities, which only --features inception has"),
        ("fidd", r"unknown metric 'fidd' \(did you mean 'fid'\?\)"),
    ],
)
def test_a_metric_that_cannot_be_computed_states_the_reason(
    metric: str, reason: str, fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        evaluate(*fake_and_real, metrics=[metric], features="pixels", cache_dir=tmp_path)


def test_without_weights_other_metrics_are_computed_and_the_path_is_named(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def offline(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    results = evaluate(*fake_and_real, features="inception", cache_dir=tmp_path)
    assert list(results) == ["swd", "ms-ssim"]
    assert str(tmp_path / "weights" / "inception-2015-12-05.pt") in results.skipped["fid"]
    assert calls == 1  # one download for all metrics
    with pytest.raises(
        UserError, match=r"^fid: weights 'inception-2015-12-05.pt' are not in the cache"
    ):
        evaluate(*fake_and_real, metrics=["fid"], features="inception", cache_dir=tmp_path)


def test_images_of_different_shapes_are_refused(
    make_blob_images: MakeImages, tmp_path: Path
) -> None:
    small, large = make_blob_images(20, 1, 16, 16), make_blob_images(20, 3, 32, 16)
    with pytest.raises(
        UserError, match="16x16 with 1 channel cannot be compared with real images of 32"
    ):
        evaluate(small, large, cache_dir=tmp_path)
    with pytest.raises(UserError, match="fake images must be a run, an ImageSet"):
        evaluate(np.zeros((4, 8, 8)), small, cache_dir=tmp_path)  # type: ignore[arg-type]


def test_an_array_equals_the_image_set(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fake, real = fake_and_real
    array = np.ascontiguousarray(fake.images.transpose(0, 2, 3, 1))
    a, b = (
        evaluate(images, real, metrics=["fid", "swd"], features="pixels", cache_dir=tmp_path)
        for images in (fake, array)
    )
    assert [result_difference(a[name], b[name]) for name in a] == [0, 0]


def test_num_fake_selects_random_images(make_blob_images: MakeImages, tmp_path: Path) -> None:
    images = make_blob_images(100, 1, 16, 16)
    images.images[:50] = 0
    results = evaluate(
        images, images, num_fake=40, metrics=["fid"], features="pixels", cache_dir=tmp_path
    )
    assert results["fid"].protocol.num_images == (40, 100)
    first_images = evaluate(
        images.subset(np.arange(40)), images, metrics=["fid"], features="pixels", cache_dir=tmp_path
    )
    assert results["fid"].value < 0.5 * first_images["fid"].value


def test_features_are_cached_and_an_incomplete_file_is_replaced(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    num_extracted = 0

    class CountingExtractor(PixelExtractor):
        def __call__(self, images: Tensor) -> Tensor:
            nonlocal num_extracted
            num_extracted += len(images)
            return super().__call__(images)

    def features() -> Tensor:
        return CachedImageStatistics(
            fake_and_real[1].images,
            name="real images",
            get_extractor=CountingExtractor,
            cache_key=fake_and_real[1].fingerprint,
            cache_dir=tmp_path,
        ).features

    first = features()
    assert torch.equal(features(), first) and num_extracted == 120
    (cached,) = (tmp_path / "features").iterdir()
    cached.write_bytes(cached.read_bytes()[:-7])
    assert torch.equal(features(), first) and num_extracted == 240
    assert torch.equal(features(), first) and num_extracted == 240


@pytest.mark.parametrize(
    "name",
    [
        entry.name
        for entry in METRICS
        if entry.value.requirements <= STREAMABLE_REQUIREMENTS - {"probabilities"}
    ],
)
def test_a_streaming_metric_equals_one_call(
    name: str, fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fake, real = (replace(images, labels=np.arange(len(images)) % 3) for images in fake_and_real)
    expected = evaluate(fake, real, metrics=[name], features="pixels", cache_dir=tmp_path)[name]
    metrics = []
    for batch_size in (32, 1000):
        metric = Metric(name, features=PixelExtractor())
        for image_set, is_real in ((fake, False), (real, True)):
            assert image_set.labels is not None
            batches = zip(
                tensor(image_set).split(batch_size),
                torch.from_numpy(image_set.labels).split(batch_size),
                strict=True,
            )
            for images, labels in batches:
                metric.update(images, is_real, labels)
        metrics.append(metric)
    in_batches, at_once = (metric.compute_results()[name] for metric in metrics)
    assert float(metrics[0].compute()) == pytest.approx(expected.value, rel=1e-9)  # type: ignore[arg-type]
    assert result_difference(in_batches, at_once) == pytest.approx(0, abs=1e-9)
    assert in_batches.protocol == expected.protocol


def test_a_streaming_metric_resets_quantizes_and_names_what_is_missing() -> None:
    metric = Metric("fid", features=PixelExtractor())
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    metric.update(images, real=True)
    with pytest.raises(ValueError, match="fid needs fake images, but update received none"):
        metric.compute()
    metric.update((images * 127.5 + 128).clamp(0, 255).to(torch.uint8), real=False)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"as in earlier batches, but are \(1, 4, 4\)"):
        metric.update(images[:, :, :4, :4], real=True)
    for out_of_range in (images * torch.nan, images * 127):
        with pytest.raises(ValueError, match=r"must be finite and within about \[-1, 1\]"):
            metric.update(out_of_range, real=True)
    normalizing = Metric("fid", features=PixelExtractor(), normalize=True)
    normalizing.update((images + 1) / 2, real=True)
    normalizing.update((images + 1) / 2)
    protocols = [m.compute_results()["fid"].protocol for m in (metric, normalizing)]
    assert protocols[0] == protocols[1]
    with pytest.warns(UserWarning, match=r"interpreted as \[-1, 1\]: pass normalize=True"):
        metric.update((images + 1) / 2)
    metric.reset()
    with pytest.raises(ValueError, match="received none"):
        metric.compute()
    with pytest.raises(UserError, match="'ppl' cannot be streamed, because it needs: generator"):
        Metric("ppl")


def test_several_metrics_share_a_pass_and_keep_the_real_features(
    fake_and_real: tuple[ImageSet, ImageSet],
) -> None:
    class CountingExtractor(PixelExtractor):
        num_extracted = 0

        def __call__(self, images: Tensor) -> Tensor:
            self.num_extracted += len(images)
            return super().__call__(images)

    extractor = CountingExtractor()
    metric = Metric("fid", "kid", "recall", features=extractor, reset_real_features=False)
    fake, real = map(tensor, fake_and_real)
    metric.update(real, real=True)
    metric.update(fake)
    first = metric.compute()
    assert isinstance(first, dict) and set(first) == {"fid", "kid", "recall"}
    metric.reset()
    metric.update(fake.flip(0))
    second = metric.compute()
    assert isinstance(second, dict)
    assert float(second["fid"]) == pytest.approx(float(first["fid"]))
    assert extractor.num_extracted == 120 + 90 + 90


def test_a_metric_moves_its_network_to_another_device(
    fake_and_real: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def load(features: str, *, device: str, **_: Any) -> PixelExtractor:
        devices.append(str(device))
        return PixelExtractor()

    monkeypatch.setattr("growgan.metrics.metric.load_extractor", load)
    metric = Metric("fid", features="pixels")
    metric.update(tensor(fake_and_real[0]))
    assert metric.to("meta") is metric
    metric.update(tensor(fake_and_real[1]), real=True)
    assert devices == ["cpu", "meta"]
    assert float(metric.compute()) > 0  # type: ignore[arg-type]


def test_a_standard_deviation_is_not_called_a_standard_error(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    results = evaluate(
        *fake_and_real, metrics=["fid", "kid"], features="pixels", cache_dir=tmp_path
    )
    assert results["kid"].stderr is None and (results["kid"].std or 0) > 0
    assert results["fid"].std is None and (results["fid"].stderr or 0) > 0
    assert results.to_json()["metrics"]["kid"]["std"] == results["kid"].std


def test_real_images_of_several_sizes_are_resized_to_the_fake_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, sizes in (("fake", [(16, 16)]), ("real", [(16, 16), (20, 20), (40, 40)])):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    options = ["--features", "pixels", "--metrics", "fid,swd", "--json"]
    assert main(["evaluate", str(tmp_path / "fake"), str(tmp_path / "real"), *options]) == 0
    protocol = json.loads(capsys.readouterr().out)["metrics"]["fid"]["protocol"]
    assert protocol["num_images"] == [12, 12] and protocol["resolution"] == [16, 16]
    assert "Lanczos" in protocol["preprocessing"]


def test_classes_are_matched_by_name(make_blob_images: MakeImages, tmp_path: Path) -> None:
    fake, real = (make_blob_images(60, 1, 16, 16, seed=seed) for seed in (1, 2))
    renamed = replace(fake, classes=("above", "below"))
    with pytest.raises(UserError, match="the same classes in both sets, but the fake images have"):
        evaluate(renamed, real, metrics=["intra-fid"], features="pixels", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "incepton"}, "unknown features 'incepton'"),
        ({"features": "none.pt"}, "weights 'none.pt', which do not exist"),
        ({"features": "none.ts"}, "weights 'none.ts', which do not exist"),
        ({"metrics": "fit"}, "unknown metric 'fit'"),
        ({"features": "inception", "resize": "cleen"}, "unknown resize 'cleen'"),
        ({"resize": "legacy-pytorch"}, "must be 'clean' for the features 'own', but got 'legacy"),
    ],
)
def test_a_misspelled_option_is_refused(
    options: dict[str, Any],
    message: str,
    fake_and_real: tuple[ImageSet, ImageSet],
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(*fake_and_real, cache_dir=tmp_path, **options)


def test_all_computes_every_metric_that_is_possible(
    fake_and_real: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    results = evaluate(*fake_and_real, metrics=["all"], features="pixels", cache_dir=tmp_path)
    assert set(results) == {*DEFAULT_METRICS, "fid-infinity"}
    assert set(results.skipped) == {entry.name for entry in METRICS} - set(results)


def test_results_with_different_protocols_are_refused_with_the_difference(
    fake_and_real: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = []
    for i, changed in enumerate(({}, {}, {"num_fake": 80}, {"features": "own"})):
        options: dict[str, Any] = {"features": "pixels", **changed}
        results = evaluate(*fake_and_real, metrics=["fid"], cache_dir=tmp_path, **options)
        assert Evaluation.from_json(json.loads(json.dumps(results.to_json()))) == results
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(results.to_json()))

    def compare(other: int) -> int:
        return main(["evaluate", "--compare", str(files[0]), str(files[other])])

    assert compare(1) == 0
    assert "difference +0" in capsys.readouterr().out
    assert compare(2) == 2
    assert "num_images: (90, 120) against (80, 120)" in capsys.readouterr().err
    assert compare(3) == 2
    assert "features: pixels-8 against own-" in capsys.readouterr().err
    files[0].write_text("[]")
    assert compare(1) == 2


def write_png_folder(path: Path, images: NDArray[np.uint8]) -> str:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i:03d}.png")
    return str(path)


@pytest.mark.usefixtures("temporary_cache")
def test_the_command_evaluates_two_folders(
    fake_and_real: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake, real = (
        write_png_folder(tmp_path / f"{i}", image_set.images)
        for i, image_set in enumerate(fake_and_real)
    )
    assert main(["evaluate", fake, real, "--features", "pixels", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["metrics"]
    expected = evaluate(*fake_and_real, features="pixels", cache_dir=tmp_path)
    assert list(results) == list(DEFAULT_METRICS)
    assert results["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-9)
    assert results["fid"]["protocol"]["reference"] == expected["fid"].protocol.reference
    assert main(["evaluate", fake, real, "--features", "pixels", "--metrics", "fid,swd"]) == 0
    output = capsys.readouterr().out
    assert "fid" in output and "swd" in output and "kid" not in output
    assert main(["evaluate", fake]) == 2
    assert "FAKE and REAL" in capsys.readouterr().err


@pytest.mark.usefixtures("temporary_cache")
def test_inception_from_a_file_with_each_resize(
    fake_and_real: tuple[ImageSet, ImageSet],
    inception_stand_in: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake, real = (
        write_png_folder(tmp_path / f"{i}", image_set.images)
        for i, image_set in enumerate(fake_and_real)
    )
    features = f"inception:{inception_stand_in}"
    files = []
    for resize in ("clean", "legacy-tensorflow"):
        options = ["--features", features, "--resize", resize, "--metrics", "is,fid", "--json"]
        assert main(["evaluate", fake, real, *options]) == 0
        files.append(tmp_path / f"{resize}.json")
        files[-1].write_text(capsys.readouterr().out)
    clean, legacy = (json.loads(file.read_text())["metrics"] for file in files)
    extractor = load_extractor(features, cache_dir=tmp_path)
    assert isinstance(extractor, InceptionExtractor)
    fake_moments, real_moments = (
        Moments.from_features(extractor(tensor(image_set))) for image_set in fake_and_real
    )
    fid = frechet_distance_of_moments(fake_moments, real_moments)
    assert clean["fid"]["value"] == pytest.approx(fid, rel=1e-6)
    probabilities = extractor.probabilities(tensor(fake_and_real[0]))
    expected_is = inception_score(probabilities, probabilities=True, splits=10).value
    assert clean["is"]["value"] == pytest.approx(expected_is, rel=1e-6)
    assert legacy["fid"]["value"] != pytest.approx(clean["fid"]["value"], rel=1e-6)
    assert main(["evaluate", "--compare", *map(str, files)]) == 2
    assert "features" in capsys.readouterr().err
    options = ["--features", "pixels", "--resize", "legacy-pytorch"]
    assert main(["evaluate", fake, real, *options]) == 2


def test_long_computations_report_their_progress(
    make_blob_images: MakeImages, tmp_path: Path
) -> None:
    progress_by_stage: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        progress_by_stage.setdefault(stage, []).append((done, total))

    fake, real, held_out = (make_blob_images(60, 1, 16, 16, seed=seed) for seed in range(3))
    evaluate(
        fake,
        real,
        metrics=["fid", "cas", "swd"],
        held_out=held_out,
        cache_dir=tmp_path,
        progress=progress,
    )
    for stage in ("Training own features", "Training two classifiers", "Comparing patches", "cas"):
        done, totals = zip(*progress_by_stage[stage], strict=True)
        assert list(done) == sorted(done) and done[-1] == totals[-1] == totals[0]
    assert len(progress_by_stage["Training two classifiers"]) >= 40


@pytest.mark.usefixtures("temporary_cache")
def test_a_run_is_evaluated_by_its_best_generator(
    make_blob_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_blob_images(64, 1, 16, 16)
    settings = make_settings({**SMALL_RUN, "score": {"kind": "swd", "num_samples": 32}})
    run = gg.grow(data, out=tmp_path / "run", policy="fixed", images=160, settings=settings)
    results = gg.evaluate(run, data, metrics=["fid", "ppl"], features="pixels", num_fake=50)
    assert results["fid"].protocol.num_images == (50, 64)
    assert results["fid"].protocol.quantization == "uint8"
    assert results["ppl"].protocol.quantization == "none"
    assert results["ppl"].value > 0
    samples = run.best.sample(50, seed=0)
    expected = gg.evaluate(samples, data, metrics=["fid"], features="pixels", num_fake=50)
    assert results["fid"].value == expected["fid"].value
    real = write_png_folder(tmp_path / "real", np.repeat(data.images, 3, 1))
    command = ["evaluate", str(run.path), real, "--features", "pixels", "-n", "50", "--json"]
    assert main([*command, "--metrics", "fid"]) == 0
    fid = json.loads(capsys.readouterr().out)["metrics"]["fid"]
    assert fid["value"] == pytest.approx(results["fid"].value, rel=1e-9)


def test_a_resumed_run_requires_the_extractor_of_its_scores(
    make_blob_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_blob_images(64, 1, 16, 16)
    settings = make_settings({**SMALL_RUN, "score": {"num_samples": 32}})

    def grow(images: int, resume: bool = False) -> gg.Run:
        return gg.grow(
            data,
            out=tmp_path / "run",
            policy="fixed",
            images=images,
            settings=settings,
            resume=resume,
        )

    def protocols(run: gg.Run) -> list[object]:
        return [event["protocol"] for event in run.events if event["event"] == "protocol"]

    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "first_cache"))
    run = grow(images=80)
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "second_cache"))
    resumed = grow(images=160, resume=True)
    assert protocols(resumed) == protocols(run) != []
    copy = tmp_path / "run" / "extractor.safetensors"
    with safe_open(copy, framework="pt") as file:
        metadata = file.metadata()
    changed = {name: weight + 0.01 for name, weight in load_file(copy).items()}
    save_file(changed, copy, metadata)
    with pytest.raises(UserError, match="features: own-"):
        grow(images=240, resume=True)
