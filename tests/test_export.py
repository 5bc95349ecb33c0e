"""Tests of exports: folders in the format of the hub, ONNX and TorchScript."""

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
from growgan.artifacts.export import EXPORT_FORMATS, NOISY_LOGGERS, ExportModule, export
from growgan.artifacts.load import ExportedGenerator, load
from growgan.cli.app import main
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.nets.layers import skip_init
from growgan.nets.networks import Generator, build_network
from growgan.nets.presets import PRESETS
from growgan.nets.spec import MAX_PARAMETERS, GeneratorSpec, LayerSpec
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.training.checkpoint import (
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    load_gan,
    load_generator,
    load_resume_point,
    save_gan,
)

Make = Callable[..., ImageSet]
# PyTorch deprecates TorchScript, but programs without Python still load it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def small_network(name: str, seed: int = 0) -> Generator:
    """Return an untrained G of a preset at 32x32 in which no layer is an identity."""
    preset = PRESETS[name]
    settings = make_settings(preset.small_settings, {"network": {"width": 16}})
    network = build_network(preset.network_spec("generator", settings.network, 3, (32, 32)), seed)
    assert isinstance(network, Generator)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "strength" in key:  # StyleGAN2's noise, which is initially 0
                parameter.fill_(0.3)
    return network.eval()


def write_export(to: str, network: Generator, folder: Path) -> Path:
    """Write a network in a format and return the file."""
    spec = network.spec
    example = [torch.randn(2, spec.latent_dim)]
    if spec.label_dim:
        example.append(torch.eye(2, spec.label_dim))
    module_to_export = ExportModule(network).eval()
    with torch.no_grad():
        module_to_export(*example)
        writer = EXPORT_FORMATS[to].writer
        assert writer is not None
        writer(module_to_export, tuple(example), folder / "model")
    (file,) = folder.glob("model.*")
    return file


def run_onnx(file: Path, *inputs: Tensor) -> Tensor:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = dict(zip(("z", "y"), (value.numpy() for value in inputs), strict=False))
    return torch.from_numpy(session.run(["images"], feeds)[0])


def check(to: str, file: Path, network: Generator) -> None:
    """Compare the images of an exported graph and of the network, for several batch sizes."""
    spec = network.spec
    module: Any = torch.jit.load(str(file)) if to == "torchscript" else None
    for n in (1, 2, 5):
        inputs = [torch.randn(n, spec.latent_dim, generator=torch.Generator().manual_seed(n))]
        if spec.label_dim:
            inputs.append(torch.eye(spec.label_dim)[torch.arange(n) % spec.label_dim])
        with torch.no_grad():
            expected = network(torch.cat(inputs, 1))
            images = module(*inputs) if module else run_onnx(file, *inputs)
        assert images.shape == (n, spec.image_channels, *spec.resolution)
        assert float((images - expected).abs().max()) <= 1e-4


def test_an_export_gives_the_same_images_as_its_run(
    run: gg.Run, make_blob_images: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(run.path)]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    model = load(folder)
    assert isinstance(model, ExportedGenerator) and model.classes == run.best.classes
    np.testing.assert_array_equal(model.sample(9, seed=4), run.best.sample(9, seed=4))
    np.testing.assert_array_equal(gg.load(run.path).sample(3), run.best.sample(3))
    network = gg.Generator.from_pretrained(folder)
    assert not network.training and network.spec == run.best.load_network().spec
    (images_seen,) = [e["images"] for e in run.events if e.get("id") == run.best_id]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: growgan\n") and run.best.classes[0] in card
    assert "unconditional" not in card
    assert json.loads((folder / "config.json").read_text())["images_seen"] == images_seen
    assert main(["sample", str(folder), "-n", "4", "--out", str(tmp_path / "s.npz")]) == 0
    assert len(np.load(tmp_path / "s.npz")["labels"]) == 4
    results = gg.evaluate(model, make_blob_images(40, 3, 16, 16), metrics="fid", features="pixels")
    assert results["fid"].value > 0
    with pytest.raises(UserError, match="is an export, which has no settings"):
        _ = model.settings


def test_exports_and_checkpoints_have_default_permissions(run: gg.Run, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = export(run.best, "safetensors", tmp_path / "out")
        save_gan(load_gan(run.best.checkpoint_dir), tmp_path / "pair")
    finally:
        os.umask(before)
    for path in (*folder.iterdir(), *(tmp_path / "pair").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o644, path.name


def test_from_pretrained_refuses_a_run_directory(run: gg.Run) -> None:
    with pytest.raises(UserError, match=r"is a run directory; use growgan\.load to open it"):
        Generator.from_pretrained(run.path)


def test_a_negative_count_is_refused(run: gg.Run) -> None:
    assert run.best.sample(0).shape == (0, 16, 16, 3)
    with pytest.raises(UserError, match="count must be at least 0, but got -1"):
        run.best.sample(-1)


def test_an_export_replaces_an_export_but_no_other_files(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    assert export(run.best, "safetensors", folder) == folder
    with pytest.raises(UserError, match="holds files that are not an export"):
        export(run.best, "safetensors", run.path)
    with pytest.raises(UserError, match="unknown export format 'onxx'"):
        export(run.best, "onxx", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_graphs_of_an_earlier_export_are_deleted(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "torchscript", tmp_path / "out")
    (folder / "model.onnx.data").write_bytes(b"of an older one")
    assert (folder / "model.pt").is_file()
    export(run.best, "safetensors", folder)
    names = {p.name for p in folder.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}


def test_a_model_card_edited_by_hand_is_kept(
    run: gg.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(run.path), "--out", str(tmp_path / "out")]
    card = tmp_path / "out" / "README.md"
    assert main(command) == 0
    original = card.read_text()
    assert main(command) == 0 and card.read_text() == original
    assert "by hand" not in capsys.readouterr().err
    card.write_text(original + "Mine.\n")
    for _ in range(2):
        assert main(command) == 0 and card.read_text() == original + "Mine.\n"
        assert "was edited by hand" in capsys.readouterr().err


def test_the_example_of_the_model_card_runs(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(program.replace("FOLDER", str(folder)), namespace)
    assert run.best.load_network().spec.label_dim == 2
    assert namespace["images"].shape == (64, 3, 16, 16)


def test_torchscript_matches_the_conditional_generator(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "torchscript", tmp_path / "out")
    check("torchscript", folder / "model.pt", run.best.load_network())


def test_onnx_matches_the_conditional_generator(
    run: gg.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxscript")
    caplog.clear()
    folder = export(run.best, "onnx", tmp_path / "out")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {logging.getLogger(name).level for name in NOISY_LOGGERS} == {logging.NOTSET}
    check("onnx", folder / "model.onnx", run.best.load_network())


@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_torchscript_of_every_preset(name: str, tmp_path: Path) -> None:
    network = small_network(name)
    check("torchscript", write_export("torchscript", network, tmp_path), network)


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_onnx_of_every_preset(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = small_network(name)
    check("onnx", write_export("onnx", network, tmp_path), network)


def test_a_name_without_a_folder_is_loaded_from_the_hub(
    run: gg.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test uses a stand-in for the hub's client, since tests have no network access."""
    folder = export(run.best, "safetensors", tmp_path / "out")
    calls: list[Any] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        calls.append((repo_id, options))
        if repo_id != "someone/model":
            raise OSError("404: no such repository")
        return str(folder)

    class HfApi:
        def __init__(self, token: str | None = None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
            class Address(str):
                pass

            address = Address(f"hub/{repo_id}")
            address.repo_id = repo_id  # type: ignore[attr-defined]
            return address

        def upload_folder(self, *, repo_id: str, folder_path: str) -> None:
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    client = types.ModuleType("huggingface_hub")
    client.__dict__.update(snapshot_download=snapshot_download, HfApi=HfApi)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    network = gg.Generator.from_pretrained("someone/model", revision="v1")
    assert calls == [("someone/model", {"revision": "v1"})]
    np.testing.assert_array_equal(gg.load("hub:someone/model").sample(2), run.best.sample(2))
    with pytest.raises(
        UserError, match="downloading it from the hub failed: 404: no such repository"
    ):
        gg.load("hub:someone/else")
    calls.clear()
    assert network.push_to_hub("me/mine", folder=folder, token="t") == "hub/me/mine"
    files = ["README.md", "config.json", "model.safetensors"]
    assert network.push_to_hub("me/bare") == "hub/me/bare"
    assert calls == ["t", ("me/mine", files), None, ("me/bare", files)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "cannot read .*config.json'"),
        (lambda f: (f / "config.json").write_text('{"spec": {}}'), "network spec"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "cannot load a generator"),
    ],
)
def test_a_damaged_folder_is_refused(
    damage: Callable[[Path], object], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    damage(folder)
    with pytest.raises(UserError, match=message):
        Generator.from_pretrained(folder)
    assert main(["sample", str(folder), "--out", str(tmp_path / "s.png")]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be greater than or equal to 1, but got 0"),
        (
            {"label_dim": 0, "invertible_map_blocks": 2},
            "invertible_map_blocks must be 0 if label_dim is 0",
        ),
        ({"stem_width": 8.5}, "stem_width must be a valid integer, but got 8.5"),
        ({"base_grid": [float("inf"), 4]}, "base_grid must be a valid integer, but got inf"),
        ({"ends": "f" * 9999}, "ends must have at most 64 characters, but got"),
        (
            {"layers": [{"id": "g0", "norm": "nrom"}]},
            "cannot build the network of the spec: unknown",
        ),
        ({"stem_width": 16}, r"weight '.*' must have the shape \(.*16.*\), but has \(.*8.*\)"),
        ({"label_dim": 3}, r"weight '.*' must have the shape"),
        ({"layers": []}, r"weight 'layers\.g0.*' does not belong to the spec"),
    ],
)
def test_a_spec_that_does_not_match_its_weights_is_refused(
    changes: dict[str, Any], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "spec": config["spec"] | changes}))
    with pytest.raises(UserError, match=f"cannot load .* '{folder}'.*{message}"):
        Generator.from_pretrained(folder)


def wide_spec(width: int, layers: int) -> dict[str, Any]:
    """Return a spec of a few kilobytes whose weights would not fit into memory."""
    layer_specs = tuple(LayerSpec(f"g{i}", width=width) for i in range(layers))
    return GeneratorSpec(stem_width=width, layers=layer_specs, latent_dim=8).to_json()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            wide_spec(8192, 512),
            r"the spec has 309,.* parameters; at most 1,073,741,824 are allowed",
        ),
        (wide_spec(2048, 24), "weight '.*' is missing"),
    ],
)
def test_a_spec_allocates_no_memory_before_its_weights_are_checked(
    spec: dict[str, Any], message: str, run: gg.Run, tmp_path: Path
) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({"spec": spec}))
    checkpoint = run.path / "candidates" / run.best_id
    specs = json.loads((checkpoint / "spec.json").read_text())
    (checkpoint / "spec.json").write_text(json.dumps(specs | {"generator": spec}))
    write_manifest(checkpoint)
    for load_from in (Generator.from_pretrained, load_gan, load_generator):
        path = folder if load_from == Generator.from_pretrained else checkpoint
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=f"'{path}.*{message}"):
            load_from(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def write_manifest(candidate: Path) -> None:
    """Write the manifest that matches the current files of a candidate."""
    digests = {
        name: hashlib.sha256((candidate / name).read_bytes()).hexdigest()
        for name in CHECKPOINT_FILES
    }
    (candidate / MANIFEST_FILE).write_text(json.dumps(digests))


@pytest.mark.parametrize("name", ["stylegan2", "biggan-deep", "stylegan3", "r3gan"])
def test_the_largest_published_networks_are_within_limits(name: str) -> None:
    preset = PRESETS[name]
    network_settings = make_settings(preset.published_settings, preset.large_image_settings).network
    with torch.device("meta"), skip_init():
        network = build_network(preset.network_spec("generator", network_settings, 3, (1024, 1024)))
    count = sum(tensor.numel() for tensor in network.state_dict().values())
    assert count < MAX_PARAMETERS / 10


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"optimizer": 3}, ""),
        ({"images_seen": float("inf")}, ""),
        ({"resume_point": [1]}, "state.json"),
        ({"resume_point": {"segment_start_images": 1}}, "state.json"),
    ],
)
def test_an_invalid_training_state_is_refused(
    changes: dict[str, Any], file: str, run: gg.Run
) -> None:
    candidate = run.path / "candidates" / run.best_id
    counts = json.loads((candidate / "state.json").read_text())
    (candidate / "state.json").write_text(json.dumps(counts | changes))
    write_manifest(candidate)
    with pytest.raises(UserError, match=f"'{candidate / file}' cannot be"):
        load_gan(candidate)
        load_resume_point(candidate)


def test_optimizer_moments_of_another_shape_are_refused(run: gg.Run) -> None:
    candidate = run.path / "candidates" / run.best_id
    state = load_file(candidate / "state.safetensors")
    save_file({name: torch.zeros(3, 3, 3) for name in state}, candidate / "state.safetensors")
    write_manifest(candidate)
    with pytest.raises(UserError, match=f"checkpoint '{candidate}' cannot be loaded"):
        load_gan(candidate)


def test_a_missing_extra_is_named(
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


def test_load_opens_runs(run: gg.Run, tmp_path: Path) -> None:
    assert isinstance(load(run.path, run.best_id), TrainedGenerator)
    with pytest.raises(UserError, match="is not a run directory"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../../other", "0000/../0001", "", "a" * 21])
def test_a_candidate_id_cannot_leave_its_run(name: str, run: gg.Run, tmp_path: Path) -> None:
    other = shutil.copytree(run.path, tmp_path / "other")
    assert (run.path / "candidates/../../other/candidates").is_dir()
    with pytest.raises(UserError, match="has no such candidate: an id must be a word"):
        run.candidate(f"../../other/candidates/{run.best_id}")
    with pytest.raises(UserError, match="has no such candidate"):
        run.candidate(name)
    picture = str(other / "s.png")
    outside = f"../../other/candidates/{run.best_id}"
    assert main(["sample", str(run.path), "--candidate", outside, "--out", picture]) == 2


def test_invalid_class_names_are_refused(run: gg.Run, tmp_path: Path) -> None:
    folder = export(run.best, "safetensors", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"class_names": 5}))
    with pytest.raises(UserError, match=r"class_names in .* must be a list, but got 5"):
        _ = load(folder).classes
    (run.path / "data.json").write_text('{"classes": 5}')
    with pytest.raises(UserError, match=r"data\.json' cannot be read"):
        _ = run.best.classes
    (tmp_path / "ensemble").mkdir()
    (tmp_path / "ensemble/per_class.json").write_text("{}")
    with pytest.raises(UserError, match=r"per_class\.json' cannot be read"):
        _ = load(tmp_path / "ensemble").classes
