"""Tests of the explorer: its API, the requests it refuses, and the page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browsing import serious_violations
from PIL import Image

import growgan as gg
from growgan.artifacts.export import export
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.nets.presets import PRESETS
from growgan.sampling.trained_generator import TrainedGenerator

pytest.importorskip("starlette")
testclient = pytest.importorskip("starlette.testclient")
uvicorn = pytest.importorskip("uvicorn")

from starlette.requests import Request  # noqa: E402

from growgan.explore.api import ENDPOINTS, ExplorerApi  # noqa: E402
from growgan.explore.server import MAX_REQUEST_BYTES, _read_json_body, create_app  # noqa: E402

Make = Callable[..., ImageSet]
BASE_URL = "http://127.0.0.1"
# The folder for the screenshots of docs/guides/explore.md; the run to show and its training data.
SCREENSHOT_DIR = os.environ.get("GROWGAN_SCREENSHOTS")
SCREENSHOT_RUN = os.environ.get("GROWGAN_SCREENSHOTS_OF", "runs/fashion fashion-mnist")


@pytest.fixture
def api(run: gg.Run, make_blob_images: Make) -> ExplorerApi:
    return ExplorerApi(run.path, make_blob_images(64, 3, 16, 16))


def pixels(uri: str) -> np.ndarray[Any, Any]:
    """Return the image of a data URI, uint8 [H, W, C]."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


def test_responses_hold_the_images_of_the_generator(api: ExplorerApi, run: gg.Run) -> None:
    model = run.best
    samples = api.handle("sample", {"count": 9, "seed": 3})
    for uri, image in zip(samples["images"], model.sample(9, seed=3), strict=True):
        np.testing.assert_array_equal(pixels(uri), image)
    assert samples["labels"] == [model.classes[i % 2] for i in range(9)]
    one = api.handle("sample", {"count": 4, "labels": [1], "truncation": 0.5})
    expected = model.sample(4, labels=[1], truncation=0.5)
    np.testing.assert_array_equal(pixels(one["images"][3]), expected[3])
    interpolation = api.handle(
        "interpolate", {"indices": [1, 2], "steps": 4, "count": 9, "seed": 3}
    )
    assert len(interpolation["images"]) == 5 and interpolation["columns"] == 4
    np.testing.assert_allclose(
        pixels(interpolation["images"][0]).astype(int), model.sample(9, seed=3)[1], atol=1
    )
    total = api.handle("latent_arithmetic", {"plus": [[0, 1], []], "minus": [[2]], "count": 9})
    expected = model.latent_arithmetic([[0, 1]], [[2]], count=9)
    np.testing.assert_array_equal(pixels(total["images"][0]), expected[0])
    varied = api.handle(
        "edit_latent",
        {"index": 2, "direction_offsets": {"1": 2.5}, "latent_values": {"3": -1}, "count": 9},
    )
    expected = model.edit_latent(2, {1: 2.5}, {3: -1.0}, count=9)
    np.testing.assert_array_equal(pixels(varied["images"][0]), expected[0])
    table = api.handle("interpolate_classes", {"labels": [0, 1], "steps": 3, "rows": 2})
    assert len(table["images"]) == 8 and table["columns"] == 4


@pytest.fixture(params=["plain", "styles"])
def any_api(request: pytest.FixtureRequest, make_blob_images: Make, tmp_path: Path) -> ExplorerApi:
    """Return a short run with two classes, with or without a mapping network."""
    network = {"width": 8, "discriminator_width": 8, "latent_dim": 8}
    common = {
        "policy": "fixed",
        "conditioning": "projection",
        "batch_size": 8,
        "score": {"num_samples": 32},
    }
    settings: Any = {**common, "network": network}
    if request.param == "styles":
        changes = {"preset": "stylegan2", "network": {**network, "mapping_layers": 2}}
        settings = make_settings(PRESETS["stylegan2"].small_settings, {**common, **changes})
    data = make_blob_images(64, 3, 16, 16)
    return ExplorerApi(
        gg.grow(data, out=tmp_path / "any_api", images=64, settings=settings).path, data
    )


def max_difference(a: Any, b: Any) -> int:
    """Return the largest difference of two images, each an array or a data URI."""
    first, second = (pixels(image) if isinstance(image, str) else image for image in (a, b))
    return int(np.abs(first.astype(int) - second).max())


@pytest.mark.parametrize("truncation", [None, 0.5])
@pytest.mark.parametrize("labels", [None, [0], [1]])
def test_every_tool_uses_the_samples_that_are_shown(
    truncation: float | None, labels: list[int] | None, any_api: ExplorerApi
) -> None:
    sheet = {"count": 6, "seed": 3, "truncation": truncation, "labels": labels}
    samples = any_api.handle("sample", sheet)["images"]
    bare = any_api.handle("sample", {"count": 6, "seed": 3})["images"]
    changed = [i for i in range(6) if max_difference(samples[i], bare[i])]
    assert bool(changed) == (truncation is not None or labels is not None)
    pick = changed[0] if changed else 2
    still = any_api.handle("edit_latent", {**sheet, "index": pick})["images"][0]
    interpolation = any_api.handle("interpolate", {**sheet, "indices": [pick, 0], "steps": 2})[
        "images"
    ][0]
    total = any_api.handle("latent_arithmetic", {**sheet, "plus": [[pick]]})["images"][0]
    near = any_api.handle("nearest_images", {**sheet, "index": pick})["sample"]
    for image in (still, interpolation, total, near):
        assert max_difference(image, samples[pick]) <= 1
    if any_api.handle("about", {})["num_styles"]:
        table = any_api.handle(
            "style_mix", {**sheet, "row_indices": [pick], "column_indices": [pick]}
        )["images"]
        assert max_difference(table[0], samples[pick]) <= 1
    params = {"labels": [0, 1], "steps": 1, "rows": 6, "seed": 3, "truncation": truncation}
    first = any_api.handle("interpolate_classes", params)["images"][0]
    of_its_class = any_api.handle("sample", {**sheet, "labels": [0]})["images"][0]
    assert max_difference(first, of_its_class) <= 1


def test_an_image_to_image_run_can_be_explored(make_blob_images: Make, tmp_path: Path) -> None:
    from growgan.tasks.base import prepare_task_data, train_task

    task = "pix2pix:edges"
    pairs = prepare_task_data(task, make_blob_images(64, 3, 16, 16))
    settings = {
        "network": {"width": 8, "latent_dim": 8},
        "batch_size": 8,
        "score": {"num_samples": 32},
    }
    run = train_task(task, pairs, out=tmp_path / "edges", images=64, settings=settings)
    api = ExplorerApi(run.path)
    api.preload()
    about = api.handle("about", {})
    assert about["explained_variance_ratio"] == [] and about["latent_dim"] == 0
    samples = api.handle("sample", {"count": 4})["images"]
    assert (
        max_difference(api.handle("edit_latent", {"index": 1, "count": 4})["images"][0], samples[1])
        == 0
    )
    for name, params in (
        ("interpolate", {"indices": [0, 1]}),
        ("latent_arithmetic", {"plus": [[0]]}),
    ):
        images = api.handle(name, {**params, "count": 4})["images"]
        assert max_difference(images[0], samples[0]) <= 1
    for name in ("tree", "candidate", "timelapse"):
        assert api.handle(name, {})


def test_a_run_is_read_again_only_if_its_files_changed(
    api: ExplorerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    before = api.record
    monkeypatch.setattr("growgan.explore.api.read_run", lambda path: read.append(path) or before)
    for name in ("about", "tree", "candidate", "timelapse"):
        api.handle(name, {})
    assert not read
    os.utime(api.run_dir / "ledger.jsonl", ns=(1, 1))
    assert api.record is before and len(read) == 1


def test_a_candidate_of_default_size_opens_fast(make_blob_images: Make, tmp_path: Path) -> None:
    settings = {"policy": "fixed", "batch_size": 16, "score": {"kind": "swd", "num_samples": 64}}
    run = gg.grow(
        make_blob_images(64, 1, 32, 32), out=tmp_path / "usual", images=16, settings=settings
    )
    cpu_seconds = []
    for _ in range(3):  # CPU time, because other processes may be running
        api = ExplorerApi(run.path)
        before = time.process_time()
        assert len(api.handle("about", {})["explained_variance_ratio"]) == 10
        cpu_seconds.append(time.process_time() - before)
    assert min(cpu_seconds) < 0.45


def test_the_nearest_images_are_the_nearest_by_the_runs_features(api: ExplorerApi) -> None:
    assert api.data is not None
    response = api.handle("nearest_images", {"index": 1, "num_neighbors": 20, "count": 4})
    assert response["distances"] == sorted(response["distances"]) and len(response["images"]) == 20
    training_images = {image.transpose(1, 2, 0).tobytes() for image in api.data.images}
    assert {pixels(uri).tobytes() for uri in response["images"]} <= training_images
    with pytest.raises(UserError, match="index must be from 0 to 3, but got 4"):
        api.handle("nearest_images", {"index": 4, "count": 4})
    with pytest.raises(UserError, match="start with --data DATA"):
        ExplorerApi(api.run_dir).handle("nearest_images", {})


def test_growth_is_described(api: ExplorerApi, run: gg.Run) -> None:
    about, tree = api.handle("about", {}), api.handle("tree", {})["nodes"]
    assert about["best_id"] == run.best_id and about["classes"] == list(run.best.classes)
    assert about["num_styles"] == 0 and about["has_data"]
    assert len(about["explained_variance_ratio"]) == 8
    assert [node["id"] for node in tree if node["status"] == "best"] == [run.best_id]
    details = api.handle("candidate", {"candidate": run.best_id})
    generator_spec = run.best.load_network().spec
    assert (
        len(details["generator"]) == 1 + len(generator_spec.layers)
        and "upsamples" in details["generator"][1]
    )
    assert details["facts"]["score"] and pixels(details["sample_sheet"]).shape == (96, 96, 3)
    frames = api.handle("timelapse", {})["frames"]
    assert frames[-1]["id"] == run.best_id and pixels(frames[0]["sample_sheet"]).shape == (
        64,
        64,
        3,
    )


@pytest.mark.parametrize(
    ("endpoint", "params", "message"),
    [
        ("sampel", {}, "unknown endpoint 'sampel'"),
        ("sample", {"count": 100_000}, "less than or equal to 144"),
        ("sample", {"cuont": 3}, "Extra inputs are not permitted"),
        ("sample", {"candidate": "9999"}, "has no weights"),
        (
            "sample",
            {"candidate": "../.."},
            "an id must be a word of at most 20 characters, but got '../..'",
        ),
        ("sample", {"labels": [7]}, "label must be from 0 to 1, but got 7"),
        ("candidate", {"candidate": "9999"}, "this run has no candidate '9999'"),
        ("interpolate", {"indices": [0, 99]}, "index must be from 0 to 35, but got 99"),
        ("latent_arithmetic", {"plus": [[]]}, "needs at least one set with a sample"),
        (
            "interpolate",
            {"indices": list(range(16)), "steps": 10},
            "at most 144 images, but this request needs 151",
        ),
        ("style_mix", {"row_indices": [0], "column_indices": []}, "at least one sample for rows"),
        (
            "style_mix",
            {"row_indices": [1] * 13, "column_indices": [2] * 12},
            "at most 144 images, but this request needs 156",
        ),
        (
            "interpolate_classes",
            {"labels": [0, 1] * 4, "rows": 4},
            "at most 144 images, but this request needs 172",
        ),
        ("edit_latent", {"latent_values": {"0": 1e300}}, "less than or equal to 100"),
        ("edit_latent", {"direction_offsets": {"0": -101}}, "greater than or equal to -100"),
        ("style_mix", {"row_indices": [0], "column_indices": [1]}, "styles cannot be mixed"),
        ("edit_latent", {"direction_offsets": {"99": 1.0}}, "direction must be from 0 to 7"),
        ("nearest_images", {"index": -1}, "index must be from 0 to 35, but got -1"),
    ],
)
def test_invalid_requests_get_an_error_of_one_line(
    endpoint: str, params: dict[str, Any], message: str, api: ExplorerApi
) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    response = client.post(f"/api/{endpoint}", json=params)
    assert response.status_code == 400 and message in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_offsets_must_be_finite(value: str, api: ExplorerApi) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    request = {
        "content": '{"direction_offsets": {"0": VALUE}}'.replace("VALUE", value),
        "headers": {"content-type": "application/json"},
    }
    assert client.post("/api/edit_latent", **request).status_code == 400


def test_an_edit_starts_from_the_latent_of_the_sample(api: ExplorerApi) -> None:
    sheet = {"count": 9, "seed": 3, "index": 4, "truncation": 0.5}
    still = api.handle("edit_latent", sheet)
    assert len(still["latent"]) == 8 and max(map(abs, still["latent"])) <= 0.5
    overrides = {"1": 2.0, "6": -2.0}
    one, other = (
        api.handle("edit_latent", {**sheet, "latent_values": {k: v}}) for k, v in overrides.items()
    )
    both = api.handle("edit_latent", {**sheet, "latent_values": overrides})
    assert both["latent"] == still["latent"]
    assert max_difference(both["images"][0], one["images"][0]) and max_difference(
        both["images"][0], other["images"][0]
    )
    same_values = {str(i): value for i, value in enumerate(still["latent"])}
    again = api.handle("edit_latent", {**sheet, "latent_values": same_values})
    assert max_difference(again["images"][0], still["images"][0]) <= 1


def test_all_training_segments_are_candidates(make_blob_images: Make, tmp_path: Path) -> None:
    settings: Any = {"policy": "dynamic", "batch_size": 8, "network": {"width": 8, "latent_dim": 8}}
    settings |= {"score": {"num_samples": 32}, "growth": {"trial_budget_fraction": 0.0}}
    run = gg.grow(
        make_blob_images(64, 3, 8, 8), out=tmp_path / "run", images=960, settings=settings
    )
    api = ExplorerApi(run.path)
    nodes = api.handle("tree", {})["nodes"]
    members = [member["id"] for node in nodes for member in node["segments"]]
    candidates = [event for event in run.events if event["event"] == "candidate"]
    assert sorted(members) == sorted(event["id"] for event in candidates)
    (long,) = [node for node in nodes if len(node["segments"]) > 1][:1]
    for number, member in enumerate(long["segments"], 1):
        details = api.handle("candidate", {"candidate": member["id"]})
        assert details["segments"] == long["segments"]
        assert details["has_weights"] == member["has_weights"]
        expected = f"{long['growth']}, segment {number} of {len(long['segments'])}"
        assert details["facts"]["growth"] == expected
        assert "for all segments" in details["facts"]["segment time"]


def test_the_page_is_self_contained_and_other_hosts_are_refused(api: ExplorerApi) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    page = client.get("/")
    assert page.status_code == 200 and "http" not in page.text.replace("http-equiv", "")
    assert "--paper" in client.get("/page.css").text
    script = client.get("/page.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/api.py").status_code == 404
    assert client.get("/..%2Fapi.py").status_code == 404
    for host in ("evil.example", "testserver"):
        assert client.get("/", headers={"host": host}).status_code == 400
    for host, name, status in (
        ("192.0.2.7", "192.0.2.7", 200),
        ("192.0.2.7", "evil.example", 400),
        ("0.0.0.0", "my.machine", 200),
    ):
        other = testclient.TestClient(create_app(api, host), BASE_URL)
        assert other.get("/", headers={"host": name}).status_code == status
    # A form of another website would send this.
    assert client.post("/api/about", content="{}").status_code == 400
    for body in ("[]", "{", "[" * 60_000, "\x00", " " * 70_000):
        response = client.post(
            "/api/about", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    about = client.post("/api/about", json={}).json()
    assert about["best_id"] == api.run.best_id


def test_a_request_is_not_read_beyond_its_size_limit() -> None:
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1 << 12
        return {"type": "http.request", "body": bytes(1 << 12), "more_body": sent < 1 << 23}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(UserError, match="the request must not exceed 65536 bytes"):
        asyncio.run(_read_json_body(Request(scope, receive)))
    assert sent <= MAX_REQUEST_BYTES + (1 << 12)


def test_the_page_calls_all_endpoints() -> None:
    source = Path(create_app.__code__.co_filename).with_name("page.js").read_text()
    called = {part.partition('"')[0] for part in source.split('callApi("')[1:]}
    assert called == {entry.name for entry in ENDPOINTS}


def test_samples_and_the_generator_can_be_downloaded(api: ExplorerApi, run: gg.Run) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    sheet = client.get("/download/png?count=4&seed=1")
    assert sheet.headers["content-disposition"].endswith('-1.png"')
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.size == (32, 32)
    arrays = np.load(io.BytesIO(client.get("/download/npz?count=4&seed=1").content))
    np.testing.assert_array_equal(arrays["images"], run.best.sample(4, seed=1))
    assert arrays["labels"].tolist() == [0, 1, 0, 1]
    export_zip = client.get("/download/safetensors").content
    with zipfile.ZipFile(io.BytesIO(export_zip)) as archive:
        names = archive.namelist()
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert client.get("/download/exe").status_code == 400
    for query in ("count=x", "count=-5", "count=4097", "seed=-1", "truncation=nan", "cuont=3"):
        assert client.get(f"/download/png?{query}").status_code == 400
    assert client.get("/download/npz?candidate=&count=1&truncation=").status_code == 200
    labeled = client.get("/download/npz?count=4&seed=1&labels=1,0&truncation=0.5").content
    arrays = np.load(io.BytesIO(labeled))
    expected = run.best.sample(4, seed=1, labels=[1, 0], truncation=0.5)
    np.testing.assert_array_equal(arrays["images"], expected)
    assert arrays["labels"].tolist() == [1, 0, 1, 0]
    assert client.get("/download/png?labels=x").status_code == 400


def test_the_generator_can_be_downloaded_as_onnx(api: ExplorerApi, run: gg.Run) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    client = testclient.TestClient(create_app(api), BASE_URL)
    with zipfile.ZipFile(io.BytesIO(client.get("/download/onnx").content)) as archive:
        assert archive.testzip() is None
        session = runtime.InferenceSession(
            archive.read("model.onnx"), providers=["CPUExecutionProvider"]
        )
    network = run.best.load_network()
    both = network.append_cycled_labels(torch.randn(3, network.spec.latent_dim))
    z, y = both.split([network.spec.latent_dim, network.spec.label_dim], 1)
    (images,) = session.run(["images"], {"z": z.numpy(), "y": y.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(images, network(both).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["猫と犬", 'a "b"; c', "naïve"])
def test_downloads_work_for_any_folder_name(name: str, api: ExplorerApi) -> None:
    renamed_dir = api.run_dir.rename(api.run_dir.with_name(name))
    client = testclient.TestClient(create_app(ExplorerApi(renamed_dir)), BASE_URL)
    response = client.get("/download/png?count=1")
    assert response.status_code == 200
    disposition = response.headers["content-disposition"]
    plain, _, full = disposition.removeprefix("attachment; filename=").partition(
        "; filename*=UTF-8''"
    )
    assert re.fullmatch(r'"[\w. -]+"', plain, flags=re.ASCII)
    assert unquote(full).startswith(f"{name}-")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_websites_are_refused(site: str, api: ExplorerApi) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL, headers={"sec-fetch-site": site})
    assert client.get("/").status_code == 200
    assert client.post("/api/about", json={}).status_code == 403
    assert client.get("/download/png?count=1").status_code == 403
    headers = {"sec-fetch-site": "same-origin"}
    assert client.post("/api/about", json={}, headers=headers).status_code == 200


def test_downloads_wait_for_the_inference_lock(api: ExplorerApi) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    done: list[int] = []
    with api.inference_lock:
        request_thread = threading.Thread(
            target=lambda: done.append(client.get("/download/png?count=1").status_code)
        )
        request_thread.start()
        request_thread.join(0.5)
        assert not done
    request_thread.join()
    assert done == [200]


def test_an_export_does_not_block_the_page(
    api: ExplorerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = testclient.TestClient(create_app(api), BASE_URL)
    started, may_finish, done = threading.Event(), threading.Event(), []

    def slow_export(model: TrainedGenerator, kind: str, out: Path) -> Path:
        started.set()
        assert may_finish.wait(20) and model is not api.generator()
        return export(model, "safetensors", out)

    monkeypatch.setattr("growgan.explore.server.export", slow_export)
    request_thread = threading.Thread(
        target=lambda: done.append(client.get("/download/onnx").status_code)
    )
    request_thread.start()
    assert started.wait(20)
    assert len(api.handle("sample", {"count": 4})["images"]) == 4 and not done
    may_finish.set()
    request_thread.join()
    assert done == [200]


def test_a_candidate_of_another_run_cannot_be_downloaded(api: ExplorerApi, run: gg.Run) -> None:
    shutil.copytree(run.path, run.path.parent / "other")
    client = testclient.TestClient(create_app(api), BASE_URL)
    outside = f"../../other/candidates/{run.best_id}"
    assert (run.path / "candidates" / outside).is_dir()
    for kind in ("png", "safetensors"):
        response = client.get(f"/download/{kind}", params={"candidate": outside})
        assert response.status_code == 400 and "an id must be a word" in response.text
    with pytest.raises(UserError, match="an id must be a word"):
        api.generator(outside)


def test_a_folder_without_a_run_and_a_port_in_use_are_refused(
    run: gg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        assert main(["explore", str(run.path), "--port", port, "--no-browser"]) == 2
    assert f"--port {port} is in use" in capsys.readouterr().err
    assert main(["explore", str(run.path), "--host", "192.0.2.7", "--no-browser"]) == 2
    assert "cannot listen on '192.0.2.7'" in capsys.readouterr().err


def test_the_explorer_listens_on_this_machine_by_default(
    run: gg.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts: list[str] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, *, host, **others: hosts.append(host))
    for options in ([], ["--host", "0.0.0.0"]):
        assert main(["explore", str(run.path), "--port", "0", "--no-browser", *options]) == 0
    assert hosts == ["127.0.0.1", "0.0.0.0"]
    assert "anyone who can reach this address" in capsys.readouterr().err


def test_slow_steps_of_the_start_are_announced(
    make_blob_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_blob_images(64, 3, 16, 16)
    source = tmp_path / "blobs.npz"
    np.savez(source, images=images.images.transpose(0, 2, 3, 1), labels=images.labels)
    data = gg.load_images(source, resolution=16)
    settings = {"policy": "fixed", "batch_size": 8, "network": {"width": 8, "latent_dim": 8}}
    settings |= {"score": {"num_samples": 32}}
    run = gg.grow(data, out=tmp_path / "run", images=64, settings=settings)
    order: list[str] = []
    monkeypatch.setattr("typer.echo", lambda text, err=False: order.append(text))
    monkeypatch.setattr(ExplorerApi, "preload", lambda api: order.append("preload"))
    monkeypatch.setattr(uvicorn, "run", lambda app, **others: order.append("serve"))
    command = ["explore", str(run.path), "--data", str(source), "--port", "0", "--no-browser"]
    assert main(command) == 0
    assert [text.partition("/ ")[2] or text for text in order] == [
        "...",
        "computing features of 64 training images ...",
        "preload",
        " (press Ctrl-C to stop)",
        "serve",
    ]
    assert order[0].startswith("starting http://127.0.0.1:")


# Tests in a real browser


class TimedApi(ExplorerApi):
    """An API that records the longest CPU time in seconds by endpoint."""

    def __init__(self, *arguments: Any) -> None:
        self.max_seconds: dict[str, float] = {}
        super().__init__(*arguments)

    def handle(self, endpoint_name: str, params: Any) -> dict[str, Any]:
        before = time.thread_time()
        try:
            return super().handle(endpoint_name, params)
        finally:
            self.max_seconds[endpoint_name] = max(
                self.max_seconds.get(endpoint_name, 0.0), time.thread_time() - before
            )


@pytest.fixture
def styled(make_blob_images: Make, tmp_path: Path) -> TimedApi:
    """Return the API of a run with growth, styles, classes and training images."""
    values = {
        "preset": "stylegan2",
        "policy": "progressive",
        "conditioning": "projection",
        "network": {"width": 16, "discriminator_width": 16, "latent_dim": 16, "mapping_layers": 2},
        "batch_size": 8,
        "score": {"num_samples": 32},
    }
    data = make_blob_images(96, 3, 32, 32)
    settings = make_settings(PRESETS["stylegan2"].small_settings, values)
    run = gg.grow(data, out=tmp_path / "styled", images=640, settings=settings)
    return TimedApi(run.path, data)


@contextmanager
def served(api: ExplorerApi) -> Iterator[str]:
    """Serve the explorer on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api.preload()
    config = uvicorn.Config(create_app(api), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def address(styled: ExplorerApi) -> Iterator[str]:
    with served(styled) as url:
        yield url


class WatchedPage:
    """A page that records the time of each response, and all errors."""

    def __init__(self, browser: Any, address: str, width: int, height: int, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.errors: list[str] = []
        self.max_milliseconds: dict[str, float] = {}
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfinished", self._finished)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]")

    def _finished(self, request: Any) -> None:
        if "/api/" in request.url:
            name = request.url.rpartition("/")[2]
            timing = request.timing
            longest = max(self.max_milliseconds.get(name, 0), timing["responseEnd"])
            self.max_milliseconds[name] = longest

    def settle(self) -> None:
        self.page.wait_for_load_state("networkidle")

    def count(self, selector: str) -> int:
        number: int = self.page.locator(selector).count()
        return number

    def open_generate_tab(self) -> Any:
        """Open the tab with the samples and return the page."""
        self.page.get_by_role("tab", name="Generate").click()
        self.wait("#samples img", 36)
        return self.page

    def wait(self, selector: str, min_count: int = 1) -> None:
        script = "([s, n]) => document.querySelectorAll(s).length >= n"
        self.page.wait_for_function(script, arg=[selector, min_count], timeout=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_panel_works_in_a_browser(
    width: int, scheme: str, styled: TimedApi, address: str, browser: Any
) -> None:
    styled.max_seconds.clear()
    watched = WatchedPage(browser, address, width, 900, color_scheme=scheme)
    page = watched.page
    assert watched.count("#tree li") >= 1 and watched.count("#detail dd") == 7
    page.locator("#tree button").first.click()
    page.wait_for_selector('#tree li:first-child button[aria-current="true"]')
    page.locator("#timelapse-frame").fill("0")
    assert page.locator("#timelapse-caption").inner_text().startswith("0000")
    assert not serious_violations(page)
    watched.settle()
    watched.open_generate_tab()
    for index in (3, 5, 7, 8):
        page.locator(f'#samples [data-index="{index}"]').click()
    assert page.locator("#selection").inner_text() == "Selected: 3, 5, 7, 8."
    for index, pressed in ((3, "true"), (4, "false")):
        button = page.locator(f'#samples [data-index="{index}"]')
        assert button.get_attribute("aria-pressed") == pressed
        assert button.get_attribute("draggable") == "true"
        assert button.locator("img").get_attribute("draggable") == "false"
    assert page.locator("#samples .badge").first.get_attribute("aria-hidden") == "true"
    before = page.locator("#edit-after").get_attribute("src")
    page.locator("#direction-0").fill("3")
    page.wait_for_function("src => document.querySelector('#edit-after').src !== src", arg=before)
    watched.settle()
    assert not serious_violations(page)
    for name, images, min_count in (
        ("Interpolate", "#interpolate-images img", 25),
        ("Style mixing", "#style-mix-images img", 4),
        ("Classes", "#classes-images img", 28),
        ("Nearest images", "#nearest-images img", 6),
    ):
        page.get_by_role("tab", name=name).click()
        watched.wait(images, min_count)
        watched.settle()
        assert not serious_violations(page), name
    page.get_by_role("tab", name="Latent arithmetic").click()
    page.locator('#samples [data-index="0"]').drag_to(page.locator('[data-set="a"]'))
    watched.wait('[data-set="a"] img', 1)
    page.get_by_role("button", name="Add selection to the second").click()
    page.locator('#samples [data-index="1"]').drag_to(page.locator('[data-set="c"]'))
    watched.wait('[data-set="b"] img', 4)
    watched.wait("#arithmetic-images img", 9)
    watched.settle()
    assert not serious_violations(page)
    result = page.locator("#arithmetic-images img").first
    before = result.get_attribute("src")
    page.get_by_role("tab", name="Interpolate").click()
    page.locator("#class").select_option("1")
    page.get_by_role("tab", name="Latent arithmetic").click()
    changed = "src => document.querySelector('#arithmetic-images img').src !== src"
    page.wait_for_function(changed, arg=before)
    page.locator('[data-set="b"] li button').first.click()
    assert page.evaluate("document.activeElement.closest('[data-set]').dataset.set") == "b"
    page.get_by_role("button", name="New samples").click()
    page.wait_for_function("() => !document.querySelector('#arithmetic-images img')")
    page.get_by_role("tab", name="Download").click()
    with page.expect_download() as download:
        page.get_by_text("npz file").click()
    arrays = np.load(download.value.path())
    assert arrays["images"].shape == (36, 32, 32, 3) and set(arrays["labels"]) == {1}
    watched.settle()
    assert not serious_violations(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not watched.errors and page.locator("#message").inner_text() == ""
    slow = {name: duration for name, duration in styled.max_seconds.items() if duration > 0.3}
    slow |= {
        name: duration for name, duration in watched.max_milliseconds.items() if duration > 2000
    }  # ms, on a busy machine
    assert not slow and len(watched.max_milliseconds) == len(ENDPOINTS)


@pytest.mark.slow
def test_the_largest_responses_are_fast_and_fields_are_clamped(
    styled: TimedApi, address: str, browser: Any
) -> None:
    watched = WatchedPage(browser, address, 1280, 900)
    page = watched.open_generate_tab()

    def fill_field(field: str, value: str, expected: str) -> None:
        page.locator(field).fill(value)
        page.locator(field).blur()
        script = "([s, expected]) => document.querySelector(s).value === expected"
        page.wait_for_function(script, arg=[field, expected], timeout=10_000)

    for value, expected in (("0", "4"), ("-1", "4"), ("1000", "144"), ("", "36"), ("12.4", "12")):
        fill_field("#count", value, expected)
    has_count = "n => document.querySelectorAll('#samples img').length === n"
    page.wait_for_function(has_count, arg=12)
    fill_field("#seed", "-1", "4294967295")
    page.get_by_role("button", name="New samples").click()
    assert page.locator("#seed").input_value() == "0"
    fill_field("#count", "144", "144")
    page.wait_for_function(has_count, arg=144)
    styled.max_seconds.clear()

    def pick(numbers: range) -> None:
        page.evaluate(
            """numbers => numbers.forEach(i =>
                document.querySelector(`#samples [data-index="${i}"]`).click())""",
            list(numbers),
        )

    page.get_by_role("tab", name="Interpolate").click()
    pick(range(16))
    fill_field("#interpolate-steps", "1000", "9")
    watched.wait("#interpolate-images img", 136)
    assert "At most 9 images per segment" in page.locator("#interpolate-note").inner_text()
    pick(range(16, 40))
    page.get_by_role("tab", name="Style mixing").click()
    watched.wait("#style-mix-images img", 144)
    assert "only the first 12 samples of each half" in page.locator("#style-mix-note").inner_text()
    watched.settle()
    assert not serious_violations(page) and not watched.errors
    assert page.locator("#message").inner_text() == ""
    assert not {name: duration for name, duration in styled.max_seconds.items() if duration > 0.3}


@pytest.mark.slow
def test_several_dimensions_are_changed_and_reset(
    styled: TimedApi, address: str, browser: Any
) -> None:
    watched = WatchedPage(browser, address, 390, 900)
    page = watched.open_generate_tab()
    page.locator('#samples [data-index="2"]').click()
    watched.settle()
    latent = styled.handle("edit_latent", {"index": 2})["latent"]
    slider, number = page.locator("#dimension-value"), page.locator("#dimension")

    def check_slider(value: float) -> None:
        assert abs(float(slider.input_value()) - max(-3, min(3, value))) <= 0.051

    check_slider(latent[0])
    requests: list[Any] = []
    page.on(
        "request", lambda r: requests.append(r.post_data_json) if "edit_latent" in r.url else None
    )

    def wait_for_overrides(expected: dict[str, float]) -> None:
        for _ in range(200):
            if requests and requests[-1]["latent_values"] == expected:
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"{requests[-1:]} asks for other latents than {expected}")

    slider.fill("3")
    number.fill("5")
    number.blur()
    check_slider(latent[5])
    slider.fill("-2")
    wait_for_overrides({"0": 3, "5": -2})
    buttons = page.locator("#overrides button")
    assert buttons.all_inner_texts() == ["Reset dimension 0: 3", "Reset dimension 5: -2"]
    buttons.first.click()
    wait_for_overrides({"5": -2})
    assert not serious_violations(page)
    page.locator("#edit-reset").click()
    wait_for_overrides({})
    assert page.locator("#no-overrides").is_visible()
    check_slider(latent[5])
    assert (
        page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not watched.errors
    )


@pytest.mark.slow
def test_the_page_can_be_used_with_the_keyboard(
    styled: ExplorerApi, address: str, browser: Any
) -> None:
    watched = WatchedPage(browser, address, 1280, 900)
    page = watched.page

    def focused() -> str:
        element: str = page.evaluate(
            "document.activeElement.id || document.activeElement.className"
        )
        return element

    def tab_to(selector: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"the keyboard never comes to {selector}, but ended at {focused()}")

    page.keyboard.press("Tab")
    assert focused() == "skip-link"
    tab_to("#tab-growth")
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-generate"
    watched.wait("#samples img", 36)
    tab_to('#samples [data-index="0"]')
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#selection").inner_text() == "Selected: 0, 1."
    tab_to("#tab-edit")
    tab_to("#direction-0")
    before = page.locator("#edit-after").get_attribute("src")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("src => document.querySelector('#edit-after').src !== src", arg=before)
    page.locator("#tab-edit").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-arithmetic"
    tab_to('[data-set="a"] .add')
    page.keyboard.press("Enter")
    watched.wait("#arithmetic-images img", 9)
    assert not watched.errors


def test_responses_are_json(api: ExplorerApi) -> None:
    for entry in ENDPOINTS:
        if entry.name in ("about", "tree", "candidate", "timelapse"):
            assert json.loads(json.dumps(api.handle(entry.name, {})))


@pytest.mark.slow
def test_errors_are_shown_in_view(styled: ExplorerApi, address: str, browser: Any) -> None:
    page = WatchedPage(browser, address, 390, 700).open_generate_tab()
    page.get_by_role("tab", name="Download").click()

    def download_with_response(status: int, body: str) -> None:
        page.route("**/download/**", lambda route: route.fulfill(status=status, body=body))
        page.get_by_text("npz file").scroll_into_view_if_needed()
        page.get_by_text("npz file").click()

    def check_message(text: str) -> None:
        script = "w => document.querySelector('#message').textContent.includes(w)"
        page.wait_for_function(script, arg=text)
        box = page.locator("#message").bounding_box()
        assert box is not None and 0 <= box["y"] < 700

    download_with_response(400, "this cannot be written")
    check_message("this cannot be written")
    download_with_response(500, "Internal Server Error")
    check_message("The explorer failed (500)")
    page.unroute("**/download/**")
    page.route("**/api/**", lambda route: route.abort())
    page.get_by_role("button", name="New samples").click()
    check_message("is not responding")
    page.unroute("**/api/**")
    page.get_by_role("button", name="New samples").click()
    page.wait_for_function("() => document.querySelector('#message').textContent === ''")


@pytest.mark.slow
def test_the_last_clicked_candidate_is_shown(
    styled: ExplorerApi, address: str, browser: Any
) -> None:
    watched = WatchedPage(browser, address, 1280, 900)
    page, ids = watched.page, [node["id"] for node in styled.handle("tree", {})["nodes"]]
    assert len(ids) > 1
    script = "n => document.querySelectorAll('#tree button').forEach((b, i) => i < n && b.click())"
    page.evaluate(script, len(ids))
    page.wait_for_function(
        "id => document.querySelector('#detail h2').textContent === `Candidate ${id}`", arg=ids[-1]
    )
    page.wait_for_load_state("networkidle")
    assert page.locator("#detail h2").inner_text() == f"Candidate {ids[-1]}"
    (current,) = page.locator('#tree [aria-current="true"]').all()
    assert current.get_attribute("data-id") == ids[-1] and not watched.errors


@pytest.mark.slow
def test_dropped_files_are_ignored(styled: ExplorerApi, address: str, browser: Any) -> None:
    page = WatchedPage(browser, address, 1280, 900).open_generate_tab()
    page.get_by_role("tab", name="Latent arithmetic").click()
    drop = """() => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], "photo.png"));
        const options = { dataTransfer: data, bubbles: true, cancelable: true };
        document.querySelector('[data-set="a"]').dispatchEvent(new DragEvent("drop", options));
    }"""
    page.evaluate(drop)
    assert page.locator('[data-set="a"] li').count() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SCREENSHOT_DIR, reason="GROWGAN_SCREENSHOTS names no folder")
def test_take_screenshots(browser: Any) -> None:
    run, data = SCREENSHOT_RUN.split()
    opened = gg.Run.open(run)
    api = ExplorerApi(opened.path, opened.best.load_data(data))
    with served(api) as address:
        watched = WatchedPage(browser, address, 1180, 700)
        page = watched.page

        def take_screenshot(name: str) -> None:
            watched.settle()
            page.wait_for_timeout(500)
            page.screenshot(path=str(Path(str(SCREENSHOT_DIR)) / f"explore-{name}.png"))

        take_screenshot("growth")
        watched.open_generate_tab()
        for index in (3, 5, 7, 8):
            page.locator(f'#samples [data-index="{index}"]').click()
        page.locator("#direction-0").fill("3")
        take_screenshot("vary")
        for tab_name, file_name in (
            ("Interpolate", "between"),
            ("Nearest images", "nearest"),
            ("Style mixing", "styles"),
            ("Classes", "classes"),
        ):
            tab = page.get_by_role("tab", name=tab_name)
            if tab.is_visible():
                tab.click()
                take_screenshot(file_name)
        page.get_by_role("tab", name="Latent arithmetic").click()
        for index, set_name in enumerate("abc"):
            dragged = page.locator(f'#samples [data-index="{index}"]')
            dragged.drag_to(page.locator(f'[data-set="{set_name}"]'))
        take_screenshot("arithmetic")
        assert not watched.errors
