"""Generators that leave their run: folders of the hub's form, ONNX and TorchScript."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import growgan as gg
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.export import EXPORTS, Drawing, export
from growgan.growth.load import Exported, load
from growgan.growth.model import Model
from growgan.nets.players import Generator, build
from growgan.nets.presets import PRESETS

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
    assert json.loads((folder / "config.json").read_text())["images"] == seen
    assert main(["sample", str(folder), "-n", "4", "--out", str(tmp_path / "s.npz")]) == 0
    assert len(np.load(tmp_path / "s.npz")["labels"]) == 4
    found = gg.evaluate(model, make_images(40, 3, 16, 16), metrics="fid", features="pixels")
    assert found["fid"].value > 0
    with pytest.raises(UserError, match="the settings are those of its run"):
        _ = model.settings


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


def test_torchscript_draws_what_the_conditional_generator_draws(
    run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "torchscript", tmp_path / "out")
    check("torchscript", folder / "model.pt", run.best.network())


def test_onnx_draws_what_the_conditional_generator_draws(run: gg.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = export(run.best, "onnx", tmp_path / "out")
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
