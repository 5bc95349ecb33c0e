"""Generators that leave their run: folders of the hub's form, ONNX and TorchScript."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import growgan as gg
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.export import EXPORTS, TALKATIVE, Drawing, export
from growgan.growth.load import Exported, load
from growgan.growth.model import Model
from growgan.nets.layers import unset
from growgan.nets.players import Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LIMITS, LayerSpec, StackSpec
from growgan.training.checkpoint import (
    FILES,
    MANIFEST,
    load_gan,
    load_generator,
    load_mark,
    save_gan,
)

Make = Callable[..., ImageSet]
# TorchScript still is what programs without Python load.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def small(name: str, seed: int = 0) -> Generator:
    """Return an untrained G of a preset at 32x32, whose layers do something."""
    preset = PRESETS[name]
    settings = make_settings(preset.small, {"stack": {"width": 16}})
    network = build(preset.stack("generator", settings.stack, 3, (32, 32)), seed)
    assert isinstance(network, Generator)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "strength" in key:  # of StyleGAN2's noise, 0 at first
                parameter.fill_(0.3)
    return network.eval()


def written(to: str, network: Generator, folder: Path) -> Path:
    """Write a network in a format and return the file."""
    spec = network.spec
    example = [torch.randn(2, spec.latent)]
    if spec.classes:
        example.append(torch.eye(2, spec.classes))
    drawing = Drawing(network).eval()
    with torch.no_grad():
        drawing(*example)
        EXPORTS[to](drawing, tuple(example), folder / "model")
    (file,) = folder.glob("model.*")
    return file


def by_onnx(file: Path, *inputs: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    named = dict(zip(("z", "y"), (each.numpy() for each in inputs), strict=False))
    return torch.from_numpy(session.run(["images"], named)[0])


def check(to: str, file: Path, network: Generator) -> None:
    """Compare what a file draws with the network itself, at several batch sizes."""
    spec = network.spec
    module: Any = torch.jit.load(str(file)) if to == "torchscript" else None
    for n in (1, 2, 5):
        given = [torch.randn(n, spec.latent, generator=torch.Generator().manual_seed(n))]
        if spec.classes:
            given.append(torch.eye(spec.classes)[torch.arange(n) % spec.classes])
        with torch.no_grad():
            expected = network(torch.cat(given, 1))
            images = module(*given) if module else by_onnx(file, *given)
        assert images.shape == (n, spec.channels, *spec.resolution)
        assert float((images - expected).abs().max()) <= 1e-4


def test_a_folder_of_the_hubs_form_gives_the_same_images(
    run: gg.Run, make_images: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(run.path)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    model = load(folder)
    assert isinstance(model, Exported) and model.classes == run.best.classes
    np.testing.assert_array_equal(model.sample(9, seed=4), run.best.sample(9, seed=4))
    np.testing.assert_array_equal(gg.load(run.path).sample(3), run.best.sample(3))
    network = gg.Generator.from_pretrained(folder)
    assert not network.training and network.spec == run.best.network().spec
    (seen,) = [e["images"] for e in run.events if e.get("id") == run.best_id]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: growgan\n") and run.best.classes[0] in card
    assert "unconditional" not in card
    assert json.loads((folder / "config.json").read_text())["images"] == seen
    assert main(["sample", str(folder), "-n", "4", "--out", str(tmp_path / "s.npz")]) == 0
    assert len(np.load(tmp_path / "s.npz")["labels"]) == 4
    found = gg.evaluate(model, make_images(40, 3, 16, 16), metrics="fid", features="pixels")
    assert found["fid"].value > 0
    with pytest.raises(UserError, match="the settings are those of its run"):
        _ = model.settings


def test_the_files_of_an_export_and_of_a_candidate_may_be_read_alike(
    run: gg.Run, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        folder = export(run.best, "safetensors", tmp_path / "out")
        save_gan(load_gan(run.best.folder), tmp_path / "pair")
    finally:
        os.umask(before)
    for path in (*folder.iterdir(), *(tmp_path / "pair").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644, path.name


def test_a_run_given_as_an_export_is_told_apart(run: gg.Run) -> None:
    with pytest.raises(UserError, match=r"is a run and no export: growgan\.load opens it"):
        Generator.from_pretrained(run.path)


def test_a_count_below_zero_is_named(run: gg.Run) -> None:
    assert run.best.sample(0).shape == (0, 16, 16, 3)
    with pytest.raises(UserError, match="count must be 0 or more, but got -1"):
        run.best.sample(-1)


def test_an_export_may_be_made_again_but_never_over_other_things(
    run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    assert export(run.best, "safetensors", folder) == folder
    with pytest.raises(UserError, match="holds other things than an export"):
        export(run.best, "safetensors", run.path)
    with pytest.raises(UserError, match="unknown export 'onxx'"):
        export(run.best, "onxx", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_no_graph_of_an_older_generator_stays_behind(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "torchscript", tmp_path / "out")
    (folder / "model.onnx.data").write_bytes(b"of an older one")
    assert (folder / "model.pt").is_file()
    export(run.best, "safetensors", folder)
    names = {p.name for p in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}


def test_a_card_that_was_changed_by_hand_is_kept_and_named(
    run: gg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run.path), "--out", str(tmp_path / "out")]
    card = tmp_path / "out" / "README.md"
    assert main(words) == 0
    made = card.read_text()
    assert main(words) == 0 and card.read_text() == made
    assert "by hand" not in capsys.readouterr().err
    card.write_text(made + "Mine.\n")
    for _ in range(2):
        assert main(words) == 0 and card.read_text() == made + "Mine.\n"
        assert "was changed by hand" in capsys.readouterr().err


def test_what_the_model_card_tells_to_write_works(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(program.replace("FOLDER", str(folder)), found)
    assert run.best.network().spec.classes == 2
    assert found["images"].shape == (64, 3, 16, 16)


def test_torchscript_draws_what_the_conditional_generator_draws(
    run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "torchscript", tmp_path / "out")
    check("torchscript", folder / "model.pt", run.best.network())


def test_onnx_draws_what_the_conditional_generator_draws(
    run: gg.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    caplog.clear()
    folder = export(run.best, "onnx", tmp_path / "out")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {logging.getLogger(name).level for name in TALKATIVE} == {logging.NOTSET}
    check("onnx", folder / "model.onnx", run.best.network())


@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_torchscript_of_every_preset(name: str, tmp_path: Path) -> None:
    network = small(name)
    check("torchscript", written("torchscript", network, tmp_path), network)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_onnx_of_every_preset(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = small(name)
    check("onnx", written("onnx", network, tmp_path), network)


def test_the_hub_is_asked_for_what_has_no_folder(
    run: gg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in of the client's signature: no hub can be reached from a test."""
    folder = export(run.best, "safetensors", tmp_path / "out")
    asked: list[Any] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **how: Any) -> str:
        asked.append((repo_id, how))
        if repo_id != "someone/model":
            raise OSError("404: no such repository")
        return str(folder)

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            asked.append(token)

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
            class Address(str):
                pass

            made = Address(f"hub/{repo_id}")
            made.repo_id = repo_id  # type: ignore[attr-defined]
            return made

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            asked.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    client = types.ModuleType("huggingface_hub")
    client.__dict__.update(snapshot_download=snapshot_download, HfApi=HfApi)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    network = gg.Generator.from_pretrained("someone/model", revision="v1")
    assert asked == [("someone/model", {"revision": "v1"})]
    np.testing.assert_array_equal(gg.load("hub:someone/model").sample(2), run.best.sample(2))
    with pytest.raises(UserError, match="nor can it be fetched: 404: no such repository"):
        gg.load("hub:someone/else")
    asked.clear()
    assert network.push_to_hub("me/mine", folder=folder, token="t") == "hub/me/mine"
    files = ["README.md", "config.json", "model.safetensors"]
    assert network.push_to_hub("me/bare") == "hub/me/bare"
    assert asked == ["t", ("me/mine", files), None, ("me/bare", files)]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "config.json' cannot be read"),
        (lambda f: (f / "config.json").write_text('{"spec": {}}'), "this is no stack spec"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "no model that can be loaded"),
    ],
)
def test_a_damaged_folder_is_refused(
    harm: Callable[[Path], object], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    harm(folder)
    with pytest.raises(UserError, match=message):
        Generator.from_pretrained(folder)
    assert main(["sample", str(folder), "--out", str(tmp_path / "s.png")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": 0}, "latent must be 1 to 8192 for a generator, but got 0"),
        ({"classes": 0, "modifier": 2}, "modifier must be 0 without classes, but got 2"),
        ({"stem": 8.5}, "stem must be of type int, but got '8.5'"),
        ({"base": [float("inf"), 4]}, "this is no stack spec"),
        ({"form": "f" * 9999}, "form must be of type str, but got 'f{64}'$"),
        ({"layers": [{"id": "g0", "norm": "nrom"}]}, "no stack can be built of its spec: unknown"),
        ({"stem": 16}, r"weight '.*' must have the shape \(.*16.*\), but has \(.*8.*\)"),
        ({"classes": 3}, r"weight '.*' must have the shape"),
        ({"layers": []}, r"weight 'heads\.g1.*' is none of its spec's"),
    ],
)
def test_a_spec_that_its_weights_are_not_of_is_refused(
    changes: dict[str, Any], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "spec": config["spec"] | changes}))
    with pytest.raises(UserError, match=f"'{folder}' holds no model .*{message}"):
        Generator.from_pretrained(folder)


def wide(width: int, layers: int) -> dict[str, Any]:
    """Return a generator's spec of a few kilobytes, whose weights would fill the memory."""
    made = tuple(LayerSpec(f"g{i}", width=width) for i in range(layers))
    return StackSpec("generator", stem=width, layers=made, latent=8).to_json()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (wide(8192, 512), r"its spec has 309,.* parameters; they may be 1,073,741,824"),
        (wide(2048, 24), "weight '.*' is none of its spec's"),
    ],
)
def test_a_spec_takes_no_memory_before_its_weights_are_seen(
    spec: dict[str, Any], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({"spec": spec}))
    drawn = run.path / "candidates" / run.best_id
    specs = json.loads((drawn / "spec.json").read_text())
    (drawn / "spec.json").write_text(json.dumps(specs | {"generator": spec}))
    signed(drawn)
    for load_it in (Generator.from_pretrained, load_gan, load_generator):
        where = folder if load_it == Generator.from_pretrained else drawn
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=f"'{where}' .*{message}"):
            load_it(where)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def signed(candidate: Path) -> None:
    """Write the manifest of a candidate's files as they are now, as whoever made them would."""
    sums = {name: hashlib.sha256((candidate / name).read_bytes()).hexdigest() for name in FILES}
    (candidate / MANIFEST).write_text(json.dumps(sums))


@pytest.mark.parametrize("name", ["stylegan2", "biggan-deep", "stylegan3", "r3gan"])
def test_the_largest_published_stacks_are_within_bounds(name: str) -> None:
    preset = PRESETS[name]
    shape = make_settings(preset.published, preset.large).stack
    with torch.device("meta"), unset():
        network = build(preset.stack("generator", shape, 3, (1024, 1024)))
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    assert count < LIMITS["parameters"] / 10


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"optimiser": 3}, ""),
        ({"images": float("inf")}, ""),
        ({"mark": [1]}, "state.json"),
        ({"mark": {"images": 1}}, "state.json"),
    ],
)
def test_a_state_of_other_values_is_refused_and_named(
    changes: dict[str, Any], file: str, run: gg.Run
) -> None:
    candidate = run.path / "candidates" / run.best_id
    counts = json.loads((candidate / "state.json").read_text())
    (candidate / "state.json").write_text(json.dumps(counts | changes))
    signed(candidate)
    with pytest.raises(UserError, match=f"'{candidate / file}' cannot be"):
        load_gan(candidate)
        load_mark(candidate)


def test_moments_of_another_shape_are_refused(run: gg.Run) -> None:
    candidate = run.path / "candidates" / run.best_id
    state = load_file(candidate / "state.safetensors")
    save_file({name: torch.zeros(3, 3, 3) for name in state}, candidate / "state.safetensors")
    signed(candidate)
    with pytest.raises(UserError, match=f"candidate '{candidate}' cannot be loaded"):
        load_gan(candidate)


def test_an_extra_that_is_missing_is_named(
    run: gg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxscript", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'growgan\[onnx\]'"):
        export(run.best, "onnx", tmp_path / "out")
    with pytest.raises(UserError, match=r"no folder 'a/b', and .*growgan\[hub\]"):
        Generator.from_pretrained("a/b")
    with pytest.raises(UserError, match=r"growgan\[hub\]"):
        Generator.from_pretrained(export(run.best, "safetensors", tmp_path / "o")).push_to_hub(
            "a/b"
        )


def test_a_model_is_opened_from_wherever_it_lies(run: gg.Run, tmp_path: Path) -> None:
    assert isinstance(load(run.path, run.best_id), Model)
    with pytest.raises(UserError, match="is no run directory"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../../other", "0000/../0001", "", "a" * 21])
def test_a_candidate_is_none_outside_of_its_run(name: str, run: gg.Run, tmp_path: Path) -> None:
    other = shutil.copytree(run.path, tmp_path / "other")
    assert (run.path / "candidates/../../other/candidates").is_dir()
    with pytest.raises(UserError, match="has no such candidate: an id is a short word"):
        run.candidate(f"../../other/candidates/{run.best_id}")
    with pytest.raises(UserError, match="has no such candidate"):
        run.candidate(name)
    picture = str(other / "s.png")
    outside = f"../../other/candidates/{run.best_id}"
    assert main(["sample", str(run.path), "--candidate", outside, "--out", picture]) == 2


def test_names_of_classes_that_are_none_are_refused(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"classes": 5}))
    with pytest.raises(UserError, match="classes must be a list of names, not 5"):
        _ = load(folder).classes
    (run.path / "data.json").write_text('{"classes": 5}')
    with pytest.raises(UserError, match=r"data\.json' cannot be read"):
        _ = run.best.classes
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/per-label.json").write_text("{}")
    with pytest.raises(UserError, match=r"per-label\.json' cannot be read"):
        _ = load(tmp_path / "pool").classes
