"""The explorer: its answers, what it refuses, and every panel in a real browser."""

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
from browsing import serious
from PIL import Image

import growgan as gg
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.export import export
from growgan.growth.model import Model
from growgan.nets.presets import PRESETS

pytest.importorskip("starlette")
testclient = pytest.importorskip("starlette.testclient")
uvicorn = pytest.importorskip("uvicorn")

from starlette.requests import Request  # noqa: E402

from growgan.explore.server import LARGEST, _question, application  # noqa: E402
from growgan.explore.studio import QUESTIONS, Studio  # noqa: E402

Make = Callable[..., ImageSet]
HERE = "http://127.0.0.1"
# A folder, where the pictures of docs/guides/explore.md are wanted; a run, and its training images.
SHOTS = os.environ.get("GROWGAN_SCREENSHOTS")
SHOWN = os.environ.get("GROWGAN_SCREENSHOTS_OF", "runs/fashion fashion-mnist")


@pytest.fixture
def studio(run: gg.Run, make_images: Make) -> Studio:
    return Studio(run.path, make_images(64, 3, 16, 16))


def pixels(uri: str) -> np.ndarray[Any, Any]:
    """Return the image of a data URI, uint8 [H, W, C]."""
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture)


def test_answers_are_what_the_model_draws(studio: Studio, run: gg.Run) -> None:
    model = run.best
    drawn = studio.ask("sample", {"count": 9, "seed": 3})
    for uri, image in zip(drawn["images"], model.sample(9, seed=3), strict=True):
        np.testing.assert_array_equal(pixels(uri), image)
    assert drawn["labels"] == [model.classes[i % 2] for i in range(9)]
    one = studio.ask("sample", {"count": 4, "labels": [1], "truncation": 0.5})
    expected = model.sample(4, labels=[1], truncation=0.5)
    np.testing.assert_array_equal(pixels(one["images"][3]), expected[3])
    way = studio.ask("walk", {"picks": [1, 2], "steps": 4, "count": 9, "seed": 3})
    assert len(way["images"]) == 5 and way["columns"] == 4
    np.testing.assert_allclose(
        pixels(way["images"][0]).astype(int), model.sample(9, seed=3)[1], atol=1
    )
    total = studio.ask("combine", {"plus": [[0, 1], []], "minus": [[2]], "count": 9})
    expected = model.combine([[0, 1]], [[2]], count=9)
    np.testing.assert_array_equal(pixels(total["images"][0]), expected[0])
    varied = studio.ask("vary", {"pick": 2, "along": {"1": 2.5}, "latents": {"3": -1}, "count": 9})
    expected = model.vary(2, {1: 2.5}, {3: -1.0}, count=9)
    np.testing.assert_array_equal(pixels(varied["images"][0]), expected[0])
    table = studio.ask("morph", {"labels": [0, 1], "steps": 3, "rows": 2})
    assert len(table["images"]) == 8 and table["columns"] == 4


@pytest.fixture(params=["plain", "styles"])
def either(request: pytest.FixtureRequest, make_images: Make, tmp_path: Path) -> Studio:
    """Return a short run of two classes, without a mapping network or with one."""
    stack = {"width": 8, "discriminator_width": 8, "latent": 8}
    own = {"policy": "fixed", "conditioning": "projection", "batch": 8, "score": {"samples": 32}}
    settings: Any = {**own, "stack": stack}
    if request.param == "styles":
        more = {"preset": "stylegan2", "stack": {**stack, "mapping": 2}}
        settings = make_settings(PRESETS["stylegan2"].small, {**own, **more})
    data = make_images(64, 3, 16, 16)
    return Studio(gg.grow(data, out=tmp_path / "either", images=64, settings=settings).path, data)


def far(a: Any, b: Any) -> int:
    """Return the largest difference of two images, each an array or a data URI."""
    one, other = (pixels(each) if isinstance(each, str) else each for each in (a, b))
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("truncation", [None, 0.5])
@pytest.mark.parametrize("labels", [None, [0], [1]])
def test_every_tool_plays_with_what_the_shelf_shows(
    truncation: float | None, labels: list[int] | None, either: Studio
) -> None:
    sheet = {"count": 6, "seed": 3, "truncation": truncation, "labels": labels}
    shelf = either.ask("sample", sheet)["images"]
    bare = either.ask("sample", {"count": 6, "seed": 3})["images"]
    changed = [i for i in range(6) if far(shelf[i], bare[i])]
    assert bool(changed) == (truncation is not None or labels is not None)
    pick = changed[0] if changed else 2
    still = either.ask("vary", {**sheet, "pick": pick})["images"][0]
    way = either.ask("walk", {**sheet, "picks": [pick, 0], "steps": 2})["images"][0]
    total = either.ask("combine", {**sheet, "plus": [[pick]]})["images"][0]
    near = either.ask("nearest", {**sheet, "pick": pick})["sample"]
    for found in (still, way, total, near):
        assert far(found, shelf[pick]) <= 1
    if either.ask("about", {})["styles"]:
        table = either.ask("mix", {**sheet, "rows": [pick], "columns": [pick]})["images"]
        assert far(table[0], shelf[pick]) <= 1
    morph = {"labels": [0, 1], "steps": 1, "rows": 6, "seed": 3, "truncation": truncation}
    first = either.ask("morph", morph)["images"][0]
    of_its_class = either.ask("sample", {**sheet, "labels": [0]})["images"][0]
    assert far(first, of_its_class) <= 1


def test_a_run_that_makes_images_from_images_is_opened(make_images: Make, tmp_path: Path) -> None:
    from growgan.tasks.base import prepare, train_task

    task = "pix2pix:edges"
    pairs = prepare(task, make_images(64, 3, 16, 16))
    settings = {"stack": {"width": 8, "latent": 8}, "batch": 8, "score": {"samples": 32}}
    run = train_task(task, pairs, out=tmp_path / "edges", images=64, settings=settings)
    studio = Studio(run.path)
    studio.warm()
    about = studio.ask("about", {})
    assert about["directions"] == [] and about["latent"] == 0
    shelf = studio.ask("sample", {"count": 4})["images"]
    assert far(studio.ask("vary", {"pick": 1, "count": 4})["images"][0], shelf[1]) == 0
    for name, form in (("walk", {"picks": [0, 1]}), ("combine", {"plus": [[0]]})):
        found = studio.ask(name, {**form, "count": 4})["images"]
        assert far(found[0], shelf[0]) <= 1
    for name in ("tree", "candidate", "timelapse"):
        assert studio.ask(name, {})


def test_a_run_is_read_again_only_where_it_has_grown(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    before = studio.record
    monkeypatch.setattr("growgan.explore.studio.read_run", lambda path: read.append(path) or before)
    for name in ("about", "tree", "candidate", "timelapse"):
        studio.ask(name, {})
    assert not read
    os.utime(studio.path / "ledger.jsonl", ns=(1, 1))
    assert studio.record is before and len(read) == 1


def test_a_candidate_of_the_usual_size_is_soon_open(make_images: Make, tmp_path: Path) -> None:
    own = {"policy": "fixed", "batch": 16, "score": {"kind": "swd", "samples": 64}}
    run = gg.grow(make_images(64, 1, 32, 32), out=tmp_path / "usual", images=16, settings=own)
    spent = []
    for _ in range(3):  # of the processor: others may be at work here, too
        studio = Studio(run.path)
        before = time.process_time()
        assert len(studio.ask("about", {})["directions"]) == 10
        spent.append(time.process_time() - before)
    assert min(spent) < 0.45


def test_the_nearest_images_are_the_nearest_by_the_runs_features(studio: Studio) -> None:
    assert studio.data is not None
    found = studio.ask("nearest", {"pick": 1, "shown": 20, "count": 4})
    assert found["distances"] == sorted(found["distances"]) and len(found["images"]) == 20
    known = {image.transpose(1, 2, 0).tobytes() for image in studio.data.images}
    assert {pixels(uri).tobytes() for uri in found["images"]} <= known
    with pytest.raises(UserError, match="pick 4 is none of the 4 images"):
        studio.ask("nearest", {"pick": 4, "count": 4})
    with pytest.raises(UserError, match="add --data DATA"):
        Studio(studio.path).ask("nearest", {})


def test_growth_is_told(studio: Studio, run: gg.Run) -> None:
    about, tree = studio.ask("about", {}), studio.ask("tree", {})["nodes"]
    assert about["best"] == run.best_id and about["classes"] == list(run.best.classes)
    assert about["styles"] == 0 and about["data_given"] and len(about["directions"]) == 8
    assert [node["id"] for node in tree if node["status"] == "best"] == [run.best_id]
    own = studio.ask("candidate", {"candidate": run.best_id})
    g = run.best.network().spec
    assert len(own["generator"]) == 1 + len(g.layers) and "doubles" in own["generator"][1]
    assert own["facts"]["score"] and pixels(own["samples"]).shape == (96, 96, 3)
    frames = studio.ask("timelapse", {})["frames"]
    assert frames[-1]["id"] == run.best_id and pixels(frames[0]["samples"]).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("question", "form", "words"),
    [
        ("sampel", {}, "unknown question 'sampel'"),
        ("sample", {"count": 100_000}, "less than or equal to 144"),
        ("sample", {"cuont": 3}, "Extra inputs are not permitted"),
        ("sample", {"candidate": "9999"}, "has no weights"),
        ("sample", {"candidate": "../.."}, "an id is a short word, not '../..'"),
        ("sample", {"labels": [7]}, "label 7 is none of the 2 classes"),
        ("candidate", {"candidate": "9999"}, "there is no candidate '9999'"),
        ("walk", {"picks": [0, 99]}, "pick 99 is none of the 36 images"),
        ("combine", {"plus": [[]]}, "needs a set with an image"),
        (
            "walk",
            {"picks": list(range(16)), "steps": 10},
            "144 images at most, and this would have",
        ),
        ("mix", {"rows": [0], "columns": []}, "of one sample or more for rows, and for columns"),
        ("mix", {"rows": [1] * 13, "columns": [2] * 12}, "144 images at most, and this would have"),
        ("morph", {"labels": [0, 1] * 4, "rows": 4}, "144 images at most, and this would have 172"),
        ("vary", {"latents": {"0": 1e300}}, "less than or equal to 100"),
        ("vary", {"along": {"0": -101}}, "greater than or equal to -100"),
        ("mix", {"rows": [0], "columns": [1]}, "styles cannot be mixed"),
        ("vary", {"along": {"99": 1.0}}, "direction 99 is none of"),
        ("nearest", {"pick": -1}, "pick -1"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_line(
    question: str, form: dict[str, Any], words: str, studio: Studio
) -> None:
    client = testclient.TestClient(application(studio), HERE)
    response = client.post(f"/ask/{question}", json=form)
    assert response.status_code == 400 and words in response.json()["error"]
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(value: str, studio: Studio) -> None:
    client = testclient.TestClient(application(studio), HERE)
    how = {
        "content": '{"along": {"0": VALUE}}'.replace("VALUE", value),
        "headers": {"content-type": "application/json"},
    }
    assert client.post("/ask/vary", **how).status_code == 400


def test_a_latent_begins_at_the_picks_own_value(studio: Studio) -> None:
    sheet = {"count": 9, "seed": 3, "pick": 4, "truncation": 0.5}
    still = studio.ask("vary", sheet)
    assert len(still["latents"]) == 8 and max(map(abs, still["latents"])) <= 0.5
    moved = {"1": 2.0, "6": -2.0}
    one, other = (studio.ask("vary", {**sheet, "latents": {k: v}}) for k, v in moved.items())
    both = studio.ask("vary", {**sheet, "latents": moved})
    assert both["latents"] == still["latents"]
    assert far(both["images"][0], one["images"][0]) and far(both["images"][0], other["images"][0])
    own = {str(i): value for i, value in enumerate(still["latents"])}
    again = studio.ask("vary", {**sheet, "latents": own})
    assert far(again["images"][0], still["images"][0]) <= 1


def test_candidates_that_only_trained_on_are_offered_too(make_images: Make, tmp_path: Path) -> None:
    own: Any = {"policy": "dynamic", "batch": 8, "stack": {"width": 8, "latent": 8}}
    own |= {"score": {"samples": 32}, "growth": {"search": 0.0}}
    run = gg.grow(make_images(64, 3, 8, 8), out=tmp_path / "run", images=960, settings=own)
    studio = Studio(run.path)
    nodes = studio.ask("tree", {})["nodes"]
    members = [member["id"] for node in nodes for member in node["members"]]
    known = [event for event in run.events if event["event"] == "candidate"]
    assert sorted(members) == sorted(event["id"] for event in known)
    (long,) = [node for node in nodes if len(node["members"]) > 1][:1]
    for number, member in enumerate(long["members"], 1):
        found = studio.ask("candidate", {"candidate": member["id"]})
        assert found["members"] == long["members"]
        assert found["drawable"] == member["drawable"]
        said = f"{long['growth']}, slice {number} of {len(long['members'])}"
        assert found["facts"]["grown by"] == said
        assert "in all slices" in found["facts"]["time of this slice"]


def test_the_page_is_whole_and_only_this_machine_is_answered(studio: Studio) -> None:
    client = testclient.TestClient(application(studio), HERE)
    page = client.get("/")
    assert page.status_code == 200 and "http" not in page.text.replace("http-equiv", "")
    assert "--paper" in client.get("/page.css").text
    script = client.get("/page.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/studio.py").status_code == 404
    assert client.get("/..%2Fstudio.py").status_code == 404
    for host in ("evil.example", "testserver"):
        assert client.get("/", headers={"host": host}).status_code == 400
    for host, name, status in (
        ("192.0.2.7", "192.0.2.7", 200),
        ("192.0.2.7", "evil.example", 400),
        ("0.0.0.0", "my.machine", 200),
    ):
        other = testclient.TestClient(application(studio, host), HERE)
        assert other.get("/", headers={"host": name}).status_code == status
    assert client.post("/ask/about", content="{}").status_code == 400  # as a foreign form sends it
    for body in ("[]", "{", "[" * 60_000, "\x00", " " * 70_000):
        response = client.post(
            "/ask/about", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
    told = client.post("/ask/about", json={}).json()
    assert told["best"] == studio.run.best_id


def test_a_question_is_read_no_further_than_it_may_be_long() -> None:
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1 << 12
        return {"type": "http.request", "body": bytes(1 << 12), "more_body": sent < 1 << 23}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    with pytest.raises(UserError, match="the question is too long"):
        asyncio.run(_question(Request(scope, receive)))
    assert sent <= LARGEST + (1 << 12)


def test_every_question_of_the_page_is_known() -> None:
    source = Path(application.__code__.co_filename).with_name("page.js").read_text()
    asked = {part.partition('"')[0] for part in source.split('ask("')[1:]}
    assert asked == {entry.name for entry in QUESTIONS}


def test_samples_and_the_generator_are_taken_away(studio: Studio, run: gg.Run) -> None:
    client = testclient.TestClient(application(studio), HERE)
    sheet = client.get("/take/png?count=4&seed=1")
    assert sheet.headers["content-disposition"].endswith('-1.png"')
    with Image.open(io.BytesIO(sheet.content)) as picture:
        assert picture.size == (32, 32)
    arrays = np.load(io.BytesIO(client.get("/take/npz?count=4&seed=1").content))
    np.testing.assert_array_equal(arrays["images"], run.best.sample(4, seed=1))
    assert arrays["labels"].tolist() == [0, 1, 0, 1]
    packed = client.get("/take/safetensors").content
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
    assert names == ["README.md", "config.json", "model.safetensors"]
    assert client.get("/take/exe").status_code == 400
    for asked in ("count=x", "count=-5", "count=4097", "seed=-1", "truncation=nan", "cuont=3"):
        assert client.get(f"/take/png?{asked}").status_code == 400
    assert client.get("/take/npz?candidate=&count=1&truncation=").status_code == 200
    named = client.get("/take/npz?count=4&seed=1&labels=1,0&truncation=0.5").content
    arrays = np.load(io.BytesIO(named))
    expected = run.best.sample(4, seed=1, labels=[1, 0], truncation=0.5)
    np.testing.assert_array_equal(arrays["images"], expected)
    assert arrays["labels"].tolist() == [1, 0, 1, 0]
    assert client.get("/take/png?labels=x").status_code == 400


def test_the_generator_is_taken_away_as_onnx(studio: Studio, run: gg.Run) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    client = testclient.TestClient(application(studio), HERE)
    with zipfile.ZipFile(io.BytesIO(client.get("/take/onnx").content)) as archive:
        assert archive.testzip() is None
        session = runtime.InferenceSession(
            archive.read("model.onnx"), providers=["CPUExecutionProvider"]
        )
    network = run.best.network()
    both = network.labelled(torch.randn(3, network.spec.latent))
    z, y = both.split([network.spec.latent, network.spec.classes], 1)
    (images,) = session.run(["images"], {"z": z.numpy(), "y": y.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(images, network(both).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["猫と犬", 'a "b"; c', "naïve"])
def test_a_folder_of_any_name_gives_downloads(name: str, studio: Studio) -> None:
    moved = studio.path.rename(studio.path.with_name(name))
    client = testclient.TestClient(application(Studio(moved)), HERE)
    response = client.get("/take/png?count=1")
    assert response.status_code == 200
    said = response.headers["content-disposition"]
    plain, _, full = said.removeprefix("attachment; filename=").partition("; filename*=UTF-8''")
    assert re.fullmatch(r'"[\w. -]+"', plain, flags=re.ASCII)
    assert unquote(full).startswith(f"{name}-")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_somewhere_else_may_not_ask(site: str, studio: Studio) -> None:
    client = testclient.TestClient(application(studio), HERE, headers={"sec-fetch-site": site})
    assert client.get("/").status_code == 200
    assert client.post("/ask/about", json={}).status_code == 403
    assert client.get("/take/png?count=1").status_code == 403
    own = {"sec-fetch-site": "same-origin"}
    assert client.post("/ask/about", json={}, headers=own).status_code == 200


def test_what_is_taken_waits_for_its_turn(studio: Studio) -> None:
    client = testclient.TestClient(application(studio), HERE)
    done: list[int] = []
    with studio.lock:
        asked = threading.Thread(
            target=lambda: done.append(client.get("/take/png?count=1").status_code)
        )
        asked.start()
        asked.join(0.5)
        assert not done
    asked.join()
    assert done == [200]


def test_a_graph_that_is_written_keeps_no_panel_waiting(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = testclient.TestClient(application(studio), HERE)
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow(model: Model, kind: str, out: Path) -> Path:
        begun.set()
        assert go_on.wait(20) and model is not studio.model()
        return export(model, "safetensors", out)

    monkeypatch.setattr("growgan.explore.server.export", slow)
    asked = threading.Thread(target=lambda: done.append(client.get("/take/onnx").status_code))
    asked.start()
    assert begun.wait(20)
    assert len(studio.ask("sample", {"count": 4})["images"]) == 4 and not done
    go_on.set()
    asked.join()
    assert done == [200]


def test_a_candidate_of_another_run_is_not_taken_away(studio: Studio, run: gg.Run) -> None:
    shutil.copytree(run.path, run.path.parent / "other")
    client = testclient.TestClient(application(studio), HERE)
    outside = f"../../other/candidates/{run.best_id}"
    assert (run.path / "candidates" / outside).is_dir()
    for kind in ("png", "safetensors"):
        response = client.get(f"/take/{kind}", params={"candidate": outside})
        assert response.status_code == 400 and "an id is a short word" in response.text
    with pytest.raises(UserError, match="an id is a short word"):
        studio.model(outside)


def test_a_run_without_a_candidate_and_a_taken_port_are_refused(
    run: gg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["explore", str(run.path), "--port", port, "--no-browser"]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
    assert main(["explore", str(run.path), "--host", "192.0.2.7", "--no-browser"]) == 2
    assert "cannot listen on '192.0.2.7'" in capsys.readouterr().err


def test_the_explorer_listens_to_this_machine_alone_unless_told_otherwise(
    run: gg.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, *, host, **rest: heard.append(host))
    for words in ([], ["--host", "0.0.0.0"]):
        assert main(["explore", str(run.path), "--port", "0", "--no-browser", *words]) == 0
    assert heard == ["127.0.0.1", "0.0.0.0"]
    assert "there is no password" in capsys.readouterr().err


def test_what_takes_long_at_the_start_is_said_before(
    make_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_images(64, 3, 16, 16)
    source = tmp_path / "blobs.npz"
    np.savez(source, images=made.images.transpose(0, 2, 3, 1), labels=made.labels)
    data = gg.load_images(source, resolution=16)
    own = {"policy": "fixed", "batch": 8, "stack": {"width": 8, "latent": 8}}
    own |= {"score": {"samples": 32}}
    run = gg.grow(data, out=tmp_path / "run", images=64, settings=own)
    order: list[str] = []
    monkeypatch.setattr("typer.echo", lambda text, err=False: order.append(text))
    monkeypatch.setattr(Studio, "warm", lambda studio: order.append("warm"))
    monkeypatch.setattr(uvicorn, "run", lambda app, **rest: order.append("serve"))
    words = ["explore", str(run.path), "--data", str(source), "--port", "0", "--no-browser"]
    assert main(words) == 0
    assert [text.partition("/ ")[2] or text for text in order] == [
        "in a moment ...",
        "looking at 64 training images ...",
        "warm",
        " (Ctrl-C ends it)",
        "serve",
    ]
    assert order[0].startswith("http://127.0.0.1:")


# In a real browser


class Timed(Studio):
    """A studio that keeps the longest time of the processor, in seconds, by question."""

    def __init__(self, *known: Any) -> None:
        self.took: dict[str, float] = {}
        super().__init__(*known)

    def ask(self, name: str, given: Any) -> dict[str, Any]:
        before = time.thread_time()
        try:
            return super().ask(name, given)
        finally:
            self.took[name] = max(self.took.get(name, 0.0), time.thread_time() - before)


@pytest.fixture
def styled(make_images: Make, tmp_path: Path) -> Timed:
    """Return a run that has everything: growth, styles, classes, and its data."""
    own = {
        "preset": "stylegan2",
        "policy": "progressive",
        "conditioning": "projection",
        "stack": {"width": 16, "discriminator_width": 16, "latent": 16, "mapping": 2},
        "batch": 8,
        "score": {"samples": 32},
    }
    data = make_images(96, 3, 32, 32)
    settings = make_settings(PRESETS["stylegan2"].small, own)
    run = gg.grow(data, out=tmp_path / "styled", images=640, settings=settings)
    return Timed(run.path, data)


@contextmanager
def served(studio: Studio) -> Iterator[str]:
    """Serve the explorer on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    studio.warm()
    config = uvicorn.Config(application(studio), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def address(styled: Studio) -> Iterator[str]:
    with served(styled) as found:
        yield found


class Watched:
    """A page, the time of each of its answers, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int, height: int, **how: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, **how)
        self.wrong: list[str] = []
        self.took: dict[str, float] = {}
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfinished", self._finished)
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.goto(address)
        self.page.wait_for_selector("body[data-ready]")

    def _finished(self, request: Any) -> None:
        if "/ask/" in request.url:
            name = request.url.rpartition("/")[2]
            timing = request.timing
            self.took[name] = max(self.took.get(name, 0), timing["responseEnd"])

    def settle(self) -> None:
        self.page.wait_for_load_state("networkidle")

    def count(self, selector: str) -> int:
        found: int = self.page.locator(selector).count()
        return found

    def play(self) -> Any:
        """Return the page, with the shelf open and full."""
        self.page.get_by_role("tab", name="Play").click()
        self.wait("#shelf img", 36)
        return self.page

    def wait(self, selector: str, least: int = 1) -> None:
        script = "([s, n]) => document.querySelectorAll(s).length >= n"
        self.page.wait_for_function(script, arg=[selector, least], timeout=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_panel_works_in_a_browser(
    width: int, scheme: str, styled: Timed, address: str, browser: Any
) -> None:
    styled.took.clear()
    seen = Watched(browser, address, width, 900, color_scheme=scheme)
    page = seen.page
    assert seen.count("#tree li") >= 1 and seen.count("#detail dd") == 7
    page.locator("#tree button").first.click()
    page.wait_for_selector('#tree li:first-child button[aria-current="true"]')
    page.locator("#lapse-range").fill("0")
    assert page.locator("#lapse-text").inner_text().startswith("0000")
    assert not serious(page)
    seen.settle()
    seen.play()
    for index in (3, 5, 7, 8):
        page.locator(f'#shelf [data-index="{index}"]').click()
    assert page.locator("#picked").inner_text() == "Picked: 3, 5, 7, 8."
    for index, pressed in ((3, "true"), (4, "false")):
        button = page.locator(f'#shelf [data-index="{index}"]')
        assert button.get_attribute("aria-pressed") == pressed
        assert button.get_attribute("draggable") == "true"
        assert button.locator("img").get_attribute("draggable") == "false"
    assert page.locator("#shelf .place").first.get_attribute("aria-hidden") == "true"
    before = page.locator("#vary-after").get_attribute("src")
    page.locator("#along-0").fill("3")
    page.wait_for_function("src => document.querySelector('#vary-after').src !== src", arg=before)
    seen.settle()
    assert not serious(page)
    for name, images, least in (
        ("Between", "#walk-images img", 25),
        ("Styles", "#mix-images img", 4),
        ("Classes", "#morph-images img", 28),
        ("Nearest", "#near-images img", 6),
    ):
        page.get_by_role("tab", name=name).click()
        seen.wait(images, least)
        seen.settle()
        assert not serious(page), name
    page.get_by_role("tab", name="Arithmetic").click()
    page.locator('#shelf [data-index="0"]').drag_to(page.locator('[data-set="a"]'))
    seen.wait('[data-set="a"] img', 1)
    page.get_by_role("button", name="Add picked to the second").click()
    page.locator('#shelf [data-index="1"]').drag_to(page.locator('[data-set="c"]'))
    seen.wait('[data-set="b"] img', 4)
    seen.wait("#sum-images img", 9)
    seen.settle()
    assert not serious(page)
    summed = page.locator("#sum-images img").first
    before = summed.get_attribute("src")
    page.get_by_role("tab", name="Between").click()
    page.locator("#class").select_option("1")
    page.get_by_role("tab", name="Arithmetic").click()
    changed = "src => document.querySelector('#sum-images img').src !== src"
    page.wait_for_function(changed, arg=before)
    page.locator('[data-set="b"] li button').first.click()
    assert page.evaluate("document.activeElement.closest('[data-set]').dataset.set") == "b"
    page.get_by_role("button", name="New samples").click()
    page.wait_for_function("() => !document.querySelector('#sum-images img')")
    page.get_by_role("tab", name="Download").click()
    with page.expect_download() as waited:
        page.get_by_text("npz file").click()
    arrays = np.load(waited.value.path())
    assert arrays["images"].shape == (36, 32, 32, 3) and set(arrays["labels"]) == {1}
    seen.settle()
    assert not serious(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not seen.wrong and page.locator("#message").inner_text() == ""
    slow = {name: took for name, took in styled.took.items() if took > 0.3}
    slow |= {name: took for name, took in seen.took.items() if took > 2000}  # ms, on a busy machine
    assert not slow and len(seen.took) == len(QUESTIONS)


@pytest.mark.slow
def test_the_largest_answers_are_quick_and_fields_say_what_is_drawn(
    styled: Timed, address: str, browser: Any
) -> None:
    seen = Watched(browser, address, 1280, 900)
    page = seen.play()

    def written(field: str, value: str, used: str) -> None:
        page.locator(field).fill(value)
        page.locator(field).blur()
        script = "([s, used]) => document.querySelector(s).value === used"
        page.wait_for_function(script, arg=[field, used], timeout=10_000)

    for value, used in (("0", "4"), ("-1", "4"), ("1000", "144"), ("", "36"), ("12.4", "12")):
        written("#count", value, used)
    exactly = "n => document.querySelectorAll('#shelf img').length === n"
    page.wait_for_function(exactly, arg=12)
    written("#seed", "-1", "4294967295")
    page.get_by_role("button", name="New samples").click()
    assert page.locator("#seed").input_value() == "0"
    written("#count", "144", "144")
    page.wait_for_function(exactly, arg=144)
    styled.took.clear()

    def pick(numbers: range) -> None:
        page.evaluate(
            """numbers => numbers.forEach(i =>
                document.querySelector(`#shelf [data-index="${i}"]`).click())""",
            list(numbers),
        )

    page.get_by_role("tab", name="Between").click()
    pick(range(16))
    written("#walk-steps", "1000", "9")
    seen.wait("#walk-images img", 136)
    assert "at most 9 images a way" in page.locator("#walk-cut").inner_text()
    pick(range(16, 40))
    page.get_by_role("tab", name="Styles").click()
    seen.wait("#mix-images img", 144)
    assert "the first 12 of each half" in page.locator("#mix-cut").inner_text()
    seen.settle()
    assert not serious(page) and not seen.wrong
    assert page.locator("#message").inner_text() == ""
    assert not {name: took for name, took in styled.took.items() if took > 0.3}


@pytest.mark.slow
def test_several_latents_are_set_and_taken_back(styled: Timed, address: str, browser: Any) -> None:
    seen = Watched(browser, address, 390, 900)
    page = seen.play()
    page.locator('#shelf [data-index="2"]').click()
    seen.settle()
    own = styled.ask("vary", {"pick": 2})["latents"]
    slider, number = page.locator("#latent-value"), page.locator("#latent")

    def stands_at(value: float) -> None:
        assert abs(float(slider.input_value()) - max(-3, min(3, value))) <= 0.051

    stands_at(own[0])
    asked: list[Any] = []
    page.on("request", lambda r: asked.append(r.post_data_json) if "vary" in r.url else None)

    def are_set(expected: dict[str, float]) -> None:
        for _ in range(200):
            if asked and asked[-1]["latents"] == expected:
                return
            page.wait_for_timeout(50)
        raise AssertionError(f"{asked[-1:]} asks for other latents than {expected}")

    slider.fill("3")
    number.fill("5")
    number.blur()
    stands_at(own[5])
    slider.fill("-2")
    are_set({"0": 3, "5": -2})
    taken = page.locator("#latents-set button")
    assert taken.all_inner_texts() == ["Take back latent 0: 3", "Take back latent 5: -2"]
    taken.first.click()
    are_set({"5": -2})
    assert not serious(page)
    page.locator("#vary-reset").click()
    are_set({})
    assert page.locator("#latents-none").is_visible()
    stands_at(own[5])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not seen.wrong


@pytest.mark.slow
def test_the_keyboard_alone_is_enough(styled: Studio, address: str, browser: Any) -> None:
    seen = Watched(browser, address, 1280, 900)
    page = seen.page

    def focused() -> str:
        found: str = page.evaluate("document.activeElement.id || document.activeElement.className")
        return found

    def tab_to(selector: str) -> None:
        for _ in range(200):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"the keyboard never comes to {selector}, but ended at {focused()}")

    page.keyboard.press("Tab")
    assert focused() == "skip"
    tab_to("#tab-growth")
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-play"
    seen.wait("#shelf img", 36)
    tab_to('#shelf [data-index="0"]')
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#picked").inner_text() == "Picked: 0, 1."
    tab_to("#tab-vary")
    tab_to("#along-0")
    before = page.locator("#vary-after").get_attribute("src")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("src => document.querySelector('#vary-after').src !== src", arg=before)
    page.locator("#tab-vary").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-sum"
    tab_to('[data-set="a"] .add')
    page.keyboard.press("Enter")
    seen.wait("#sum-images img", 9)
    assert not seen.wrong


def test_a_ledger_is_told_as_json(studio: Studio) -> None:
    for entry in QUESTIONS:
        if entry.name in ("about", "tree", "candidate", "timelapse"):
            assert json.loads(json.dumps(studio.ask(entry.name, {})))


@pytest.mark.slow
def test_what_goes_wrong_is_said_where_it_is_seen(
    styled: Studio, address: str, browser: Any
) -> None:
    page = Watched(browser, address, 390, 700).play()
    page.get_by_role("tab", name="Download").click()

    def answered(status: int, body: str) -> None:
        page.route("**/take/**", lambda route: route.fulfill(status=status, body=body))
        page.get_by_text("npz file").scroll_into_view_if_needed()
        page.get_by_text("npz file").click()

    def said(words: str) -> None:
        script = "w => document.querySelector('#message').textContent.includes(w)"
        page.wait_for_function(script, arg=words)
        box = page.locator("#message").bounding_box()
        assert box is not None and 0 <= box["y"] < 700

    answered(400, "this cannot be written")
    said("this cannot be written")
    answered(500, "Internal Server Error")
    said("The explorer failed (500)")
    page.unroute("**/take/**")
    page.route("**/ask/**", lambda route: route.abort())
    page.get_by_role("button", name="New samples").click()
    said("does not answer")
    page.unroute("**/ask/**")
    page.get_by_role("button", name="New samples").click()
    page.wait_for_function("() => document.querySelector('#message').textContent === ''")


@pytest.mark.slow
def test_the_newest_candidate_is_the_one_that_is_shown(
    styled: Studio, address: str, browser: Any
) -> None:
    seen = Watched(browser, address, 1280, 900)
    page, ids = seen.page, [node["id"] for node in styled.ask("tree", {})["nodes"]]
    assert len(ids) > 1
    script = "n => document.querySelectorAll('#tree button').forEach((b, i) => i < n && b.click())"
    page.evaluate(script, len(ids))
    page.wait_for_function(
        "id => document.querySelector('#detail h2').textContent === `Candidate ${id}`", arg=ids[-1]
    )
    page.wait_for_load_state("networkidle")
    assert page.locator("#detail h2").inner_text() == f"Candidate {ids[-1]}"
    (current,) = page.locator('#tree [aria-current="true"]').all()
    assert current.get_attribute("data-id") == ids[-1] and not seen.wrong


@pytest.mark.slow
def test_what_is_dropped_and_is_no_sample_adds_none(
    styled: Studio, address: str, browser: Any
) -> None:
    page = Watched(browser, address, 1280, 900).play()
    page.get_by_role("tab", name="Arithmetic").click()
    drop = """() => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], "photo.png"));
        const how = { dataTransfer: data, bubbles: true, cancelable: true };
        document.querySelector('[data-set="a"]').dispatchEvent(new DragEvent("drop", how));
    }"""
    page.evaluate(drop)
    assert page.locator('[data-set="a"] li').count() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SHOTS, reason="GROWGAN_SCREENSHOTS names no folder")
def test_pictures_of_the_panels_are_taken(browser: Any) -> None:
    run, data = SHOWN.split()
    opened = gg.Run.open(run)
    studio = Studio(opened.path, opened.best.load_data(data))
    with served(studio) as address:
        seen = Watched(browser, address, 1180, 700)
        page = seen.page

        def shot(name: str) -> None:
            seen.settle()
            page.wait_for_timeout(500)
            page.screenshot(path=str(Path(str(SHOTS)) / f"explore-{name}.png"))

        shot("growth")
        seen.play()
        for index in (3, 5, 7, 8):
            page.locator(f'#shelf [data-index="{index}"]').click()
        page.locator("#along-0").fill("3")
        shot("vary")
        for name in ("Between", "Nearest", "Styles", "Classes"):
            tab = page.get_by_role("tab", name=name)
            if tab.is_visible():
                tab.click()
                shot(name.lower())
        page.get_by_role("tab", name="Arithmetic").click()
        for index, place in enumerate("abc"):
            dragged = page.locator(f'#shelf [data-index="{index}"]')
            dragged.drag_to(page.locator(f'[data-set="{place}"]'))
        shot("arithmetic")
        assert not seen.wrong
