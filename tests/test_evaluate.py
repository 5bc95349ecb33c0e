"""``evaluate``: every metric of two sets by name, with protocols that must agree to be compared."""

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
from growgan.metrics import inception_score, kid, neighbourhoods, sliced_wasserstein
from growgan.metrics.distances import Moments, frechet
from growgan.metrics.evaluate import USUAL, Evaluation, evaluate
from growgan.metrics.features import PixelExtractor
from growgan.metrics.networks import load_extractor
from growgan.metrics.protocol import compare
from growgan.metrics.side import Stored
from growgan.metrics.streaming import FEEDABLE, Metric
from growgan.metrics.suite import METRICS

Make = Callable[..., ImageSet]


@pytest.fixture
def two(make_images: Make) -> tuple[ImageSet, ImageSet]:
    fake, real = make_images(90, 3, 16, 16, seed=1), make_images(120, 3, 16, 16, seed=2)
    return replace(fake, labels=None), replace(real, labels=None)


def tensor(images: ImageSet) -> Tensor:
    return torch.from_numpy(np.array(images.images))


def test_figures_are_those_of_the_functions_and_name_their_protocol(
    two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fake, real = two
    found = evaluate(fake, real, features="pixels", cache=tmp_path)
    assert list(found) == list(USUAL) and not found.skipped
    x, y = (PixelExtractor()(tensor(side)) for side in two)
    near = neighbourhoods(x, y)
    rows = np.sort(np.random.default_rng(0).permutation(120)[:90])
    swd = sliced_wasserstein(tensor(fake), tensor(real)[rows])
    expected = {
        "fid": frechet(Moments.of(x), Moments.of(y)),
        "kid": kid(x, y, size=45).value,
        "precision": near.precision,
        "recall": near.recall,
        "density": near.density,
        "coverage": near.coverage,
        "swd": swd.average,
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, rel=1e-6)
    protocol = found["fid"].protocol
    assert (protocol.features, protocol.counts) == ("pixels-8", (90, 120))
    assert protocol.resolution == (16, 16) and len(protocol.reals) == 32
    assert found["swd"].protocol.features == "none" and found["swd"].protocol.counts == (90, 90)
    assert found["swd"].details == swd.levels


def test_a_set_measured_against_itself_is_perfect(make_images: Make, tmp_path: Path) -> None:
    same = make_images(60, 1, 16, 16)
    found = evaluate(same, same, features="pixels", cache=tmp_path)
    assert found["fid"].value == pytest.approx(0, abs=1e-9)
    other = evaluate(same, make_images(60, 1, 16, 16, seed=9), features="pixels", cache=tmp_path)
    assert found["swd"].value < 0.5 * other["swd"].value  # the patches are other draws
    for name in ("precision", "recall", "coverage"):
        assert found[name].value == 1


def test_metrics_that_ask_for_more(make_images: Make, tmp_path: Path) -> None:
    def labelled(seed: int) -> ImageSet:
        return make_images(200, 1, 16, 16, seed=seed)  # two classes, above and below

    fake, real, held = (labelled(seed) for seed in range(3))
    names = ["intra-fid", "cas", "memorisation", "fid-infinity"]
    found = evaluate(fake, real, metrics=names, held_out=held, features="pixels", cache=tmp_path)
    assert list(found) == names
    assert set(found["intra-fid"].details) == {"0", "1"}
    assert found["cas"].value > 0.9 and found["cas"].details["reals"] > 0.9
    assert found["memorisation"].value < 0.2
    copied = evaluate(
        real, real, metrics=["memorisation"], held_out=held, features="pixels", cache=tmp_path
    )
    assert copied["memorisation"].value == 1


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        ("intra-fid", "intra-fid: needs labels, but the fakes have none"),
        ("cas", "give them as --held-out DATA"),
        ("memorisation", "give them as --held-out DATA"),
        ("ppl", "FAKE must be a run"),
        ("is", "needs class probabilities: --features inception"),
        ("fidd", r"unknown metric 'fidd' \(did you mean 'fid'\?\)"),
    ],
)
def test_what_cannot_be_taken_says_why(
    metric: str, reason: str, two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        evaluate(*two, metrics=[metric], features="pixels", cache=tmp_path)


def test_without_weights_the_rest_is_measured_and_one_line_says_where_to_put_them(
    two: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def offline(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    found = evaluate(*two, features="inception", cache=tmp_path)
    assert list(found) == ["swd", "ms-ssim"]
    assert str(tmp_path / "weights" / "inception-2015-12-05.pt") in found.skipped["fid"]
    assert calls == 1  # not once for each metric
    with pytest.raises(UserError, match=r"^fid: weights 'inception-2015-12-05.pt' are not here"):
        evaluate(*two, metrics=["fid"], features="inception", cache=tmp_path)


def test_images_of_other_sizes_are_refused(make_images: Make, tmp_path: Path) -> None:
    small, large = make_images(20, 1, 16, 16), make_images(20, 3, 32, 16)
    with pytest.raises(UserError, match="16x16 with 1 channel cannot be compared with reals of 32"):
        evaluate(small, large, cache=tmp_path)
    with pytest.raises(UserError, match="fakes must be a run, an ImageSet"):
        evaluate(np.zeros((4, 8, 8)), small, cache=tmp_path)  # type: ignore[arg-type]


def test_arrays_are_taken_as_they_are_sampled(
    two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    fake, real = two
    rows = np.ascontiguousarray(fake.images.transpose(0, 2, 3, 1))
    a, b = (
        evaluate(each, real, metrics=["fid", "swd"], features="pixels", cache=tmp_path)
        for each in (fake, rows)
    )
    assert [compare(a[name], b[name]) for name in a] == [0, 0]


def test_a_count_draws_by_chance_and_not_the_first(make_images: Make, tmp_path: Path) -> None:
    images = make_images(100, 1, 16, 16)
    images.images[:50] = 0
    found = evaluate(images, images, count=40, metrics=["fid"], features="pixels", cache=tmp_path)
    assert found["fid"].protocol.counts == (40, 100)
    black = evaluate(
        images.subset(np.arange(40)), images, metrics=["fid"], features="pixels", cache=tmp_path
    )
    assert found["fid"].value < 0.5 * black["fid"].value


def test_features_of_a_set_are_kept_and_a_torn_file_is_replaced(
    two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    seen = 0

    class Counting(PixelExtractor):
        def __call__(self, images: Tensor) -> Tensor:
            nonlocal seen
            seen += len(images)
            return super().__call__(images)

    def features() -> Tensor:
        side = Stored(
            two[1].images,
            name="reals",
            extractor=Counting,
            identity=two[1].fingerprint,
            cache=tmp_path,
        )
        return side.features

    first = features()
    assert torch.equal(features(), first) and seen == 120
    (kept,) = (tmp_path / "features").iterdir()
    kept.write_bytes(kept.read_bytes()[:-7])
    assert torch.equal(features(), first) and seen == 240
    assert torch.equal(features(), first) and seen == 240


@pytest.mark.parametrize(
    "name", [e.name for e in METRICS if e.value.needs <= FEEDABLE - {"probabilities"}]
)
def test_a_metric_fed_in_batches_equals_one_call(
    name: str, two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    labels = [np.arange(len(each)) % 3 for each in two]
    sets = [replace(each, labels=own) for each, own in zip(two, labels, strict=True)]
    whole = evaluate(sets[0], sets[1], metrics=[name], features="pixels", cache=tmp_path)[name]
    metric = Metric(name, features=PixelExtractor())
    for real, images, own in zip((False, True), map(tensor, two), labels, strict=True):
        for size in range(0, len(images), 32):
            part = slice(size, size + 32)
            metric.update(images[part], real, torch.from_numpy(own[part]))
    assert float(metric.compute()) == pytest.approx(whole.value, rel=1e-9)
    again = Metric(name, features=PixelExtractor())
    again.update(tensor(two[0]), real=False, labels=torch.from_numpy(labels[0]))
    again.update(tensor(two[1]), real=True, labels=torch.from_numpy(labels[1]))
    assert compare(metric.figures()[name], again.figures()[name]) == pytest.approx(0, abs=1e-9)
    assert metric.figures()[name].protocol == whole.protocol


def test_a_fed_metric_starts_again_quantises_and_says_what_is_missing() -> None:
    metric = Metric("fid", features=PixelExtractor())
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    metric.update(images, real=True)
    with pytest.raises(ValueError, match="fid needs fakes, but was fed none"):
        metric.compute()
    metric.update((images * 127.5 + 128).clamp(0, 255).to(torch.uint8), real=False)
    assert float(metric.compute()) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"as before, but are \(1, 4, 4\)"):
        metric.update(images[:, :, :4, :4], real=True)
    for bad in (images * torch.nan, images * 127):
        with pytest.raises(ValueError, match=r"must be finite and about \[-1, 1\]"):
            metric.update(bad, real=True)
    half = Metric("fid", features=PixelExtractor(), normalize=True)
    half.update((images + 1) / 2, real=True)
    half.update(images=(images + 1) / 2)
    assert half.figures()["fid"].protocol == metric.figures()["fid"].protocol
    with pytest.warns(UserWarning, match=r"taken as \[-1, 1\]: pass normalize=True"):
        metric.update((images + 1) / 2)
    metric.reset()
    with pytest.raises(ValueError, match="fed none"):
        metric.compute()
    with pytest.raises(UserError, match="ppl cannot be fed: it needs a generator"):
        Metric("ppl")


def test_several_metrics_share_a_pass_and_reals_may_stay(two: tuple[ImageSet, ImageSet]) -> None:
    class Counting(PixelExtractor):
        seen = 0

        def __call__(self, images: Tensor) -> Tensor:
            self.seen += len(images)
            return super().__call__(images)

    extractor = Counting()
    metric = Metric("fid", "kid", "recall", features=extractor, reset_real_features=False)
    fake, real = map(tensor, two)
    metric.update(real, real=True)
    metric.update(fake)
    first = metric.compute()
    assert isinstance(first, dict) and set(first) == {"fid", "kid", "recall"}
    metric.reset()
    metric.update(fake.flip(0))
    again = metric.compute()
    assert isinstance(again, dict) and float(again["fid"]) == pytest.approx(float(first["fid"]))
    assert extractor.seen == 120 + 90 + 90


def test_a_metric_that_moves_takes_its_network_along(
    two: tuple[ImageSet, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(features: str, *, device: str, **how: Any) -> PixelExtractor:
        asked.append(str(device))
        return PixelExtractor()

    monkeypatch.setattr("growgan.metrics.streaming.load_extractor", load)
    metric = Metric("fid", features="pixels")
    metric.update(tensor(two[0]))
    assert metric.to("meta") is metric
    metric.update(tensor(two[1]), real=True)
    assert asked == ["cpu", "meta"] and float(metric.compute()) > 0


def test_a_deviation_is_not_called_an_error(two: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    found = evaluate(*two, metrics=["fid", "kid"], features="pixels", cache=tmp_path)
    assert found["kid"].stderr is None and (found["kid"].deviation or 0) > 0
    assert found["fid"].deviation is None and (found["fid"].stderr or 0) > 0
    assert found.to_json()["metrics"]["kid"]["deviation"] == found["kid"].deviation


def test_reals_of_many_sizes_are_brought_to_the_fakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name, sizes in (("fakes", [(16, 16)]), ("reals", [(16, 16), (20, 20), (40, 40)])):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 256, (*sizes[i % len(sizes)], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    ends = ["--features", "pixels", "--metrics", "fid,swd", "--json"]
    assert main(["evaluate", str(tmp_path / "fakes"), str(tmp_path / "reals"), *ends]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]
    protocol = told["fid"]["protocol"]
    assert protocol["counts"] == [12, 12] and protocol["resolution"] == [16, 16]
    assert "brought to the fakes' form" in protocol["preparation"]


def test_classes_are_matched_by_name(make_images: Make, tmp_path: Path) -> None:
    fake, real = make_images(60, 1, 16, 16, seed=1), make_images(60, 1, 16, 16, seed=2)
    renamed = replace(fake, classes=("above", "below"))
    with pytest.raises(UserError, match="intra-fid: needs the same classes, but the fakes have ab"):
        evaluate(renamed, real, metrics=["intra-fid"], features="pixels", cache=tmp_path)


def test_a_typing_error_is_never_passed_over(
    two: tuple[ImageSet, ImageSet], tmp_path: Path
) -> None:
    for how, message in (
        ({"features": "incepton"}, "unknown features 'incepton'"),
        ({"features": "none.pt"}, "weights 'none.pt' of the features are not there"),
        ({"features": "none.ts"}, "weights 'none.ts' of the features are not there"),
        ({"metrics": "fit"}, "unknown metric 'fit'"),
        ({"features": "inception", "resize": "cleen"}, "unknown resize 'cleen'"),
        ({"resize": "legacy-pytorch"}, "is of the features 'inception', not of 'domain'"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(*two, cache=tmp_path, **how)  # type: ignore[arg-type]


def test_all_takes_what_can_be_had(two: tuple[ImageSet, ImageSet], tmp_path: Path) -> None:
    found = evaluate(*two, metrics=["all"], features="pixels", cache=tmp_path)
    assert set(found) == {*USUAL, "fid-infinity"}
    assert set(found.skipped) == {e.name for e in METRICS} - set(found)


def test_figures_of_other_protocols_are_refused_with_the_difference_named(
    two: tuple[ImageSet, ImageSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = two
    files = []
    for i, more in enumerate(({}, {}, {"count": 80}, {"features": "domain"})):
        how: dict[str, Any] = {"features": "pixels", "metrics": ["fid"], "cache": tmp_path, **more}
        found = evaluate(fake, real, **how)
        assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
        files.append(tmp_path / f"{i}.json")
        files[-1].write_text(json.dumps(found.to_json()))
    assert main(["evaluate", "--compare", str(files[0]), str(files[1])]) == 0
    assert "difference +0" in capsys.readouterr().out
    assert main(["evaluate", "--compare", str(files[0]), str(files[2])]) == 2
    assert "fid: these figures do not compare: counts: (90, 120) against (80, 120)" in (
        capsys.readouterr().err
    )
    assert main(["evaluate", "--compare", str(files[0]), str(files[3])]) == 2
    assert "features: pixels-8 against domain-" in capsys.readouterr().err
    files[0].write_text("[]")
    assert main(["evaluate", "--compare", str(files[0]), str(files[1])]) == 2


def folder(path: Path, images: NDArray[np.uint8]) -> str:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(path / f"{i:03d}.png")
    return str(path)


def test_the_command_measures_two_folders_of_any_program(
    two: tuple[ImageSet, ImageSet],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    a, b = (folder(tmp_path / f"{i}", each.images) for i, each in enumerate(two))
    assert main(["evaluate", a, b, "--features", "pixels", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    expected = evaluate(*two, features="pixels", cache=tmp_path)
    assert list(found) == list(USUAL)
    assert found["fid"]["value"] == pytest.approx(expected["fid"].value, rel=1e-9)
    assert found["fid"]["protocol"]["reals"] == expected["fid"].protocol.reals
    assert main(["evaluate", a, b, "--features", "pixels", "--metrics", "fid,swd"]) == 0
    shown = capsys.readouterr().out
    assert "fid" in shown and "swd" in shown and "kid" not in shown
    assert main(["evaluate", a]) == 2
    assert "takes FAKE and REAL" in capsys.readouterr().err


def test_inception_by_path_with_each_resize(
    two: tuple[ImageSet, ImageSet],
    stand_in: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    a, b = (folder(tmp_path / f"{i}", each.images) for i, each in enumerate(two))
    files = []
    for resize in ("clean", "legacy-tensorflow"):
        how = ["--features", f"inception:{stand_in}", "--resize", resize]
        assert main(["evaluate", a, b, *how, "--metrics", "is,fid", "--json"]) == 0
        files.append(tmp_path / f"{resize}.json")
        files[-1].write_text(capsys.readouterr().out)
    clean, legacy = (json.loads(file.read_text())["metrics"] for file in files)
    extractor = load_extractor(f"inception:{stand_in}", cache=tmp_path)
    features = [extractor(tensor(side)) for side in two]
    assert clean["fid"]["value"] == pytest.approx(
        frechet(*(Moments.of(each) for each in features)), rel=1e-6
    )
    chances = extractor.probabilities(tensor(two[0]))
    assert clean["is"]["value"] == pytest.approx(
        inception_score(chances, probabilities=True, splits=10).value, rel=1e-6
    )
    assert legacy["fid"]["value"] != pytest.approx(clean["fid"]["value"], rel=1e-6)
    assert main(["evaluate", "--compare", *map(str, files)]) == 2
    assert "features" in capsys.readouterr().err
    assert main(["evaluate", a, b, "--features", "pixels", "--resize", "legacy-pytorch"]) == 2


def test_what_takes_long_says_how_far_it_has_come(make_images: Make, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def watch(what: str, done: int, count: int) -> None:
        seen.setdefault(what, []).append((done, count))

    fake, real, held = (make_images(60, 1, 16, 16, seed=seed) for seed in range(3))
    evaluate(fake, real, metrics=["fid", "cas", "swd"], held_out=held, cache=tmp_path, watch=watch)
    for what in ("training of the features", "training of two classifiers", "patches", "cas"):
        dones, counts = zip(*seen[what], strict=True)
        assert list(dones) == sorted(dones) and dones[-1] == counts[-1] == counts[0]
    assert len(seen["training of two classifiers"]) >= 40


def test_a_run_is_measured_by_its_best_generator(
    make_images: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    data = make_images(64, 1, 16, 16)
    shape = {"stack": {"latent": 8, "width": 8}, "batch": 8, "threads": 1}
    settings = make_settings({**shape, "score": {"kind": "swd", "samples": 32}})
    run = gg.grow(data, out=tmp_path / "run", policy="fixed", images=160, settings=settings)
    how: dict[str, Any] = {"features": "pixels", "count": 50}
    found = gg.evaluate(run, data, metrics=["fid", "ppl"], **how)
    assert found["fid"].protocol.counts == (50, 64)
    assert found["fid"].protocol.quantisation == "uint8"
    assert found["ppl"].value > 0
    expected = gg.evaluate(run.best.sample(50, seed=0), data, metrics=["fid"], **how)
    assert found["fid"].value == expected["fid"].value
    reals = folder(tmp_path / "reals", np.repeat(data.images, 3, 1))
    command = ["evaluate", str(run.path), reals, "--features", "pixels", "-n", "50", "--json"]
    assert main([*command, "--metrics", "fid"]) == 0
    told = json.loads(capsys.readouterr().out)["metrics"]["fid"]
    assert told["value"] == pytest.approx(found["fid"].value, rel=1e-9)


def test_a_run_goes_on_with_the_network_that_it_keeps_and_with_no_other(
    make_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(64, 1, 16, 16)
    shape = {"stack": {"latent": 8, "width": 8}, "batch": 8, "threads": 1}
    settings = make_settings({**shape, "score": {"samples": 32}})
    how: dict[str, Any] = {"out": tmp_path / "run", "policy": "fixed", "settings": settings}
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "here"))
    run = gg.grow(data, images=80, **how)
    protocol = [e["protocol"] for e in run.events if e["event"] == "protocol"]
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "elsewhere"))
    again = gg.grow(data, images=160, resume=True, **how)
    assert [e["protocol"] for e in again.events if e["event"] == "protocol"] == protocol
    kept = tmp_path / "run" / "extractor.safetensors"
    network = load_file(kept)
    with safe_open(kept, framework="pt") as file:
        metadata = file.metadata()
    save_file({name: each + 0.01 for name, each in network.items()}, kept, metadata)
    with pytest.raises(UserError, match="would not compare: features: domain-"):
        gg.grow(data, images=240, resume=True, **how)
