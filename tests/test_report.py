"""Tests of reports: reading run directories, the growth tree, the page and its commands."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic_run
from browsing import serious_violations
from numpy.typing import NDArray
from PIL import Image
from synthetic_run import PLAN, START, append, candidate_event, write_run

from growgan.cli import main
from growgan.errors import UserError
from growgan.report import read_run, write_report
from growgan.report.chart import axis_ticks, nice_ticks
from growgan.report.growth_tree import TreeNode, build_growth_tree
from growgan.report.growth_tree_svg import layout_tree
from growgan.report.page import page_html, total_images_trained


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


# --- reading


def test_read_run_gives_the_best_lineage_and_the_status_of_each_candidate(run_dir: Path) -> None:
    run = read_run(run_dir)
    lineage = ["0000", "0002", "0007", "0010", "0013", "0016", "0020", "0022", "0023", "0024"]
    assert [c.id for c in run.best_lineage] == lineage
    assert (run.best_id, run.finished, run.num_resumes, len(run.candidates)) == (
        "0024",
        True,
        0,
        25,
    )
    assert (run.budget_seconds, run.budget_images, run.resolution) == (700.0, None, (32, 32))
    status = {c.id: c.status for c in run.candidates}
    assert (status["0024"], status["0008"], status["0023"]) == ("best", "failed", "pruned")
    assert run.candidates_by_id["0008"].error == "loss_generator is not finite"
    assert run.elapsed == pytest.approx(4 + sum(plan[8] for plan in PLAN) + 2)
    assert len(run.stats) == 40 * 25
    assert set(run.stats[0].scalars) == {"loss_generator", "loss_discriminator", "r1"}


def test_candidates_without_a_selection_are_alive_in_an_unfinished_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=12, end=False)
    append(folder / "ledger.jsonl", json.dumps(candidate_event(PLAN[12], 200.0, 60000)) + "\n")
    run = read_run(folder)
    status = {c.id: c.status for c in run.candidates}
    assert not run.finished
    assert [status[id] for id in ("0009", "0010", "0011", "0012")] == [
        "alive", "best", "pruned", "alive",
    ]  # fmt: skip
    segment_seconds = sum(plan[8] for plan in PLAN[:13])
    assert run.seconds_by_phase == {
        "train_and_score": segment_seconds,
        "other": pytest.approx(200 - segment_seconds),
    }


def test_an_incomplete_last_line_is_ignored_but_an_earlier_one_is_reported(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=5, end=False)
    complete = read_run(folder)
    append(folder / "ledger.jsonl", '{"event": "candidate", "id": "00')
    append(folder / "stats.jsonl", '{"candidate": "0004", "ela')
    assert read_run(folder) == complete
    append(folder / "ledger.jsonl", '\n{"event": "resume", "elapsed": 60}\n')
    with pytest.raises(UserError, match=r"ledger\.jsonl' is damaged in line 8"):
        read_run(folder)


def test_points_recorded_again_after_a_resume_replace_the_old_ones(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=1, end=False)
    point = {"candidate": "0000", "resolution": [4, 4], "loss_generator": 7.0}
    again = {**point, "elapsed": 50.0, "images": 80 * 30, "loss_discriminator": float("nan")}
    append(folder / "stats.jsonl", json.dumps(again) + "\n")
    stats = read_run(folder).stats
    assert [p.images_seen for p in stats] == [80 * k for k in range(31)]
    assert stats[-1].scalars == {"loss_generator": 7.0}


def test_a_budget_changed_at_resume_replaces_the_old_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=2, end=False)
    lines = [{"event": "budget", "budget": {"images": 9000}}, {"event": "resume", "elapsed": 20}]
    append(folder / "ledger.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert (run.budget_seconds, run.budget_images, run.num_resumes) == (None, 9000, 1)


def test_folders_that_are_not_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory: there is no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"it has no ledger\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "ledger.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_run(tmp_path)
    (tmp_path / "ledger.jsonl").write_text('{"event": "start"}\n')
    with pytest.raises(UserError, match="another version of growgan"):
        read_run(tmp_path)


# --- the tree


def all_nodes(nodes: tuple[TreeNode, ...]) -> list[TreeNode]:
    return [descendant for node in nodes for descendant in (node, *all_nodes(node.children))]


def test_segments_of_one_architecture_are_one_node(run_dir: Path) -> None:
    roots = build_growth_tree(read_run(run_dir))
    nodes = {b.segments[0].id: b for b in all_nodes(roots)}
    num_continuations = sum(plan[3] == "no growth" for plan in PLAN)
    assert len(nodes) == len(PLAN) - num_continuations
    assert [c.id for c in nodes["0020"].segments] == ["0020", "0022", "0023", "0024"]
    assert [b.representative.id for b in nodes["0013"].children] == ["0024", "0021", "0017", "0018"]
    assert (nodes["0020"].status, nodes["0007"].status) == ("best", "alive")
    assert (nodes["0008"].status, nodes["0015"].status) == ("failed", "pruned")
    assert nodes["0015"] in nodes["0007"].children  # it grew from 0009, a segment of 0007


def test_the_layout_of_the_tree_has_no_collisions(run_dir: Path) -> None:
    nodes = [
        n for root in layout_tree(build_growth_tree(read_run(run_dir))) for n in root.iter_subtree()
    ]
    cells = [(n.row, n.column) for n in nodes]
    assert len(set(cells)) == len(cells)
    assert {n.column for n in nodes if n.tree_node and n.tree_node.on_best_lineage} == {0}
    for n in nodes:
        assert all(child.row == n.row + 1 for child in n.children)
        assert not n.children or n.children[0].column == n.column


def test_many_pruned_candidates_are_folded_into_one_card(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=1, end=False)
    rows = [(f"{k:04d}", "0000", 1, f"G + conv {k}", 4, 2, 1, 9.0 + k, 5) for k in range(1, 11)]
    events = [candidate_event(row, 20.0, 100) for row in rows]
    select = {"event": "select", "round": 1, "survivors": ["0001"], "best": "0001", "reason": ""}
    append(folder / "ledger.jsonl", "".join(json.dumps(e) + "\n" for e in [*events, select]))
    (root,) = layout_tree(build_growth_tree(read_run(folder)))
    assert [n.tree_node and n.tree_node.representative.id for n in root.children] == [
        "0001", "0002", "0003", "0004", "0005", None,
    ]  # fmt: skip
    assert len(root.children[-1].folded_nodes) == 5


# --- the page


class Page(HTMLParser):
    """A parser that collects the tags of a page and checks that they are closed in order."""

    VOID = ("meta", "br", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_and_self_contained(run_dir: Path) -> None:
    path = write_report(run_dir)
    text = path.read_text("utf-8")
    page = Page(text)
    assert path == run_dir / "report.html"
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert all(str(link).startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in text
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for heading in ("Growth tree", "Selections", "Settings", "Cost", "All candidates", "Losses"):
        assert f">{heading}</h" in text


def test_every_chart_is_valid_and_has_a_description(run_dir: Path) -> None:
    charts = re.findall(r"<svg.*?</svg>", write_report(run_dir).read_text("utf-8"), re.DOTALL)
    assert len(charts) == 1 + 4 + 3  # the tree; score, size; loss, speed, r1
    for chart in charts:
        svg = ElementTree.fromstring(chart)
        title, text = (svg.find(tag) for tag in ("title", "desc"))
        assert title is not None and text is not None and text.text
        assert svg.get("aria-labelledby") == f"{title.get('id')} {text.get('id')}"
    numbers = [float(n) for n in re.findall(r'(?:cx|cy|x1|y1)="([^"]*)"', "".join(charts))]
    assert all(math.isfinite(n) for n in numbers)


def test_stages_show_the_same_samples_of_the_best_lineage(run_dir: Path) -> None:
    page = Page(write_report(run_dir).read_text("utf-8"))
    pictures = [a for tag, a in page.tags if tag == "img"]
    sides = [4, 8, 16, 16, 32, 32, 32, 32, 32, 32]
    assert [a["width"] for a in pictures] == ["256", *(str(4 * side) for side in sides)]
    data = base64.b64decode(str(pictures[3]["src"]).partition(",")[2])
    with Image.open(run_dir / "candidates/0007/samples.png") as sheet:
        expected = np.asarray(sheet)[: 4 * 16, : 4 * 16]
    assert (np.asarray(Image.open(io.BytesIO(data))) == expected).all()


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&"
    folder = write_run(tmp_path, upto=5, name=evil)
    failed = {**candidate_event(PLAN[8], 99.0, 5), "error": evil, "growth": evil, "parent": "0000"}
    append(folder / "ledger.jsonl", json.dumps(failed) + "\n")
    append(folder / "config.yaml", f"note: {evil}\n")
    text = write_report(folder).read_text("utf-8")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
    Page(text)


def test_a_run_without_candidates_or_pictures_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text(json.dumps(START) + "\n")
    text = write_report(tmp_path).read_text("utf-8")
    assert "has not finished" in text and "No candidate" in text
    Page(text)
    folder = write_run(tmp_path / "run", upto=3, end=False)
    (folder / "candidates/0002/samples.png").write_bytes(b"broken")
    (folder / "candidates/0000/samples.png").unlink()
    (folder / "stats.jsonl").unlink()
    text = write_report(folder).read_text("utf-8")
    assert "no samples" in text and ">Losses<" not in text
    Page(text)


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(n: int, side: int, noise: float, channels: int = 1) -> NDArray[np.uint8]:
        return np.random.default_rng(0).integers(0, 256, (n, channels, side, side), np.uint8)

    monkeypatch.setattr(synthetic_run, "blobs", noise)
    larger = [(*plan[:4], 64, *plan[5:]) for plan in PLAN]
    monkeypatch.setattr(synthetic_run, "PLAN", larger)
    path = write_report(write_run(tmp_path, channels=4))
    assert 2_000_000 < path.stat().st_size < 5_000_000  # noise does not compress


def test_the_page_stays_small_with_a_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    folder = write_run(tmp_path)
    (folder / "gallery").mkdir()
    for name in ("interpolation", "nearest", "classes", "class_interpolation", "codes"):
        pixels = rng.integers(0, 256, (12 * 128, 8 * 128, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "gallery" / f"{name}.png")
    assert len(page_html(read_run(folder))) > 8_000_000
    text = write_report(folder).read_text("utf-8")
    assert len(text.encode()) <= 5_000_000
    images = [a for tag, a in Page(text).tags if tag == "img"]
    pictures = [str(a["src"]).partition(";base64,") for a in images]
    assert {kind for kind, _, _ in pictures} == {"data:image/png", "data:image/webp"}
    for _, _, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            picture.load()
            assert min(picture.size) >= 16


@pytest.fixture
def conditional_dir(tmp_path: Path) -> Path:
    """Write a conditional run with all files that ``growgan report RUN --data DATA`` adds."""
    folder = write_run(tmp_path / "conditional", channels=3)
    long = (*PLAN[-1][:3], "G + residual 3x3 48 x2 | D + residual 3x3 48 x2", *PLAN[-1][4:])
    late = candidate_event(("0025", "0024", *long[2:]), 699.0, 12_345_678)
    append(folder / "ledger.jsonl", json.dumps(late) + "\n")
    gallery = folder / "gallery"
    gallery.mkdir()
    sizes = {"interpolation": (16, 6), "nearest": (16, 4), "task": (8, 3), "classes": (8, 10)}
    for name, (columns, rows) in {**sizes, "class_interpolation": (21, 8), "codes": (8, 6)}.items():
        Image.new("RGB", (32 * columns, 32 * rows), "teal").save(gallery / f"{name}.png")
    distances = {f"class {i}": 1.5 * i for i in range(10)}
    scores = {"reals, own labels": 0.7, "reals, other labels": -0.2}
    contents = {
        "classes": {"frechet_distances": distances, "label_sensitivity": scores},
        "task": {"psnr": 21.0},
    }
    contents["truncation"] = [  # type: ignore[assignment]
        {"truncation": truncation, "precision": 0.9 - truncation / 5, "recall": truncation / 3}
        for truncation in (0.5, 1, 2)
    ]
    for name, content in contents.items():
        (gallery / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_each_table_of_the_gallery_has_a_container_and_headers(conditional_dir: Path) -> None:
    text = write_report(conditional_dir).read_text("utf-8")
    Page(text)
    for title, first in (
        ("Fréchet distance of each class", "class"),
        ("Scores of right and wrong labels", "images and labels"),
    ):
        assert re.search(f"<h2>{title}</h2><div [^>]*><table><thead><tr><th>{first}</th>", text)
    assert "<th></th>" not in text


# Elements that overflow the page or their container, unless the container scrolls.
FIND_OVERFLOW = """[
  ...document.querySelectorAll('img, table, pre, h1, h2, p, dl')
].filter(element => {
  const box = element.closest('.scroll') || document.body, over = getComputedStyle(box).overflowX;
  return !['auto', 'scroll'].includes(over) &&
    element.getBoundingClientRect().right > box.getBoundingClientRect().right + 1;
}).map(element => element.outerHTML.slice(0, 80))"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["run_dir", "conditional_dir"])
def test_the_page_in_a_browser(
    kind: str, width: int, scheme: str, request: pytest.FixtureRequest, browser: Any
) -> None:
    path = write_report(request.getfixturevalue(kind))
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.goto(path.resolve().as_uri())
    # axe runs as a script; the page itself contains none
    assert not serious_violations(page) and not errors
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.evaluate(FIND_OVERFLOW)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert (page.evaluate(paper) == "rgb(20, 23, 27)") == (scheme == "dark")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4, without margins
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not page.evaluate(FIND_OVERFLOW)
    assert len(page.pdf()) > 10_000


def test_images_of_a_segment_are_counted_once(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, upto=3))
    assert total_images_trained(run) == sum(int(plan[8] * 9600 / plan[4]) for plan in PLAN[:3])


@pytest.mark.parametrize("low", [-3.0, 0.0, 0.0137, 5.0, 1e4])
@pytest.mark.parametrize("span", [1e-3, 0.7, 13.0, 5e5])
def test_ticks_are_few_evenly_spaced_and_within_range(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 7
    gaps = np.diff(ticks)
    assert np.allclose(gaps, gaps[0], rtol=1e-3)
    assert low - 1e-6 * span <= ticks[0] and ticks[-1] <= low + span * (1 + 1e-6)
    times = axis_ticks(0, 100 * span, "time")
    assert all(0 <= t <= 100 * span for t in times) and len(times) <= 7


# --- the command line


def test_inspect_prints_json_with_the_documented_keys(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(run_dir), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"best", "candidates", "cost"}
    assert result["best"] == "0024"
    assert set(result["candidates"][0]) == {
        "id", "parent", "growth", "resolution", "images", "seconds", "score", "score_stderr",
        "generator_layers", "discriminator_layers", "status",
    }  # fmt: skip
    assert result["candidates"][0]["parent"] is None
    assert [c["score"] for c in result["candidates"]] == [plan[7] for plan in PLAN]
    assert result["cost"]["score"] == 33.0


def test_inspect_draws_the_tree(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "score 1.31 +- 0.039, 32x32, D + residual 3x3 48" in out
    assert "loss_generator is not finite" in out
    assert all(plan[0] in out for plan in PLAN if plan[3] != "no growth")


def test_report_prints_its_path_and_refuses_another_folder(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


# --- health


def test_the_page_shows_health_metrics_and_mitigations(tmp_path: Path) -> None:
    folder = write_run(tmp_path, upto=3, end=False)
    metrics = {
        "diversity_ratio": 0.9,
        "train_win_rate": 0.8,
        "held_out_win_rate": None,
        "discriminator_spectral_norm": 3.0,
    }
    spectra = {"generator": {}, "discriminator": {"d0.<conv>": [3.0, 2.0, 1.0]}}
    candidate = {**candidate_event(PLAN[2], 25.0, 9000)}
    candidate["health_metrics"] = {**metrics, "singular_values": spectra}
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    lines = [line for line in lines if '"id": "0002"' not in line or "candidate" not in line]
    events = [
        candidate,
        {
            "event": "mitigation",
            "candidate": "0003",
            "failure": "mode collapse",
            "diagnosis": "fakes <vary> 5%",
            "mitigation": "half of the learning rate",
        },
        {"event": "micro_batches", "candidate": "0003", "num_micro_batches": 2},
    ]
    text = "\n".join([*lines, *map(json.dumps, events)]) + "\n"
    (folder / "ledger.jsonl").write_text(text)
    run = read_run(folder)
    assert run.candidates_by_id["0002"].health_metrics == {
        "diversity_ratio": 0.9,
        "train_win_rate": 0.8,
        "discriminator_spectral_norm": 3.0,
    }
    assert run.incidents == (
        "0003: fakes <vary> 5%; the run went back and continued with half of the learning rate.",
        "0003: memory ran short; each batch was split into 2 micro-batches.",
    )
    html = page_html(run)
    assert "<h2>Health checks</h2>" in html and "fakes &lt;vary&gt; 5%" in html
    assert "Diversity of fakes" in html and "Fakes that copy" not in html
    assert "d0.&lt;conv&gt;: 3.00, 2.00, 1.00" in html
    assert "the weights of D" in html and "the weights of G" not in html
