"""Readers of untrusted files, as functions of bytes: they return, or raise a clear error.

Each reads one file in a folder with the other files that it needs. They are run by Hypothesis
(test_fuzz.py) and, guided by coverage, by ``python tests/fuzzing.py TARGET CASES FOLDER``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from growgan.artifacts.load import ExportedGenerator
from growgan.artifacts.per_class_ensemble import MANIFEST_FILE as ENSEMBLE_FILE
from growgan.artifacts.per_class_ensemble import PerClassEnsemble
from growgan.config import Settings, make_settings
from growgan.data import load_images
from growgan.data.decode import BrokenImageError, decode, read_header
from growgan.data.idx import read_idx, read_idx_pair
from growgan.data.npz import read_npz
from growgan.errors import UserError
from growgan.nets.hub import CONFIG_FILE, WEIGHTS_FILE
from growgan.nets.networks import Discriminator, Generator, build_from_weights, build_network
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, LayerSpec
from growgan.report.run_record import read_run
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.ledger import Ledger, candidate_from_event
from growgan.run.run import Run
from growgan.run.search_loop import SearchLoop
from growgan.sampling.trained_generator import SOURCE_IMAGES_FILE, TrainedGenerator
from growgan.search.budget import Budget
from growgan.search.history import SearchSpace
from growgan.search.policies import make_policy
from growgan.training.checkpoint import (
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    load_gan,
    load_resume_point,
    load_specs,
    save_gan,
)
from growgan.training.gan import Gan
from growgan.training.progress import SilentDisplay

Target = Callable[[bytes, Path], None]
CLEAR = (UserError, BrokenImageError)  # what may be raised, with a text for people
KINDS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA")
LAYER = LayerSpec("g0", resample_factor=2, width=8)
G = GeneratorSpec(base_grid=(4, 4), image_channels=1, stem_width=8, layers=(LAYER,), latent_dim=8)
D = DiscriminatorSpec(
    base_grid=(4, 4),
    image_channels=1,
    stem_width=8,
    layers=(LayerSpec("d0", resample_factor=2, width=8),),
)
SPECS = {"generator": G.to_json(), "discriminator": D.to_json()}
LABELED = make_settings({"conditioning": "projection"})


def write_file(path: Path, data: bytes) -> Path:
    """Write ``data`` to ``path`` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def spec(data: bytes, folder: Path) -> None:
    """Read the specs of a candidate, and build networks from them without memory."""
    for network_spec in load_specs(write_file(folder / "spec.json", data).parent):
        try:
            build_from_weights(network_spec, {})
        except UserError as error:
            if not str(error).endswith("is missing"):
                raise


def config(data: bytes, folder: Path) -> None:
    """Read the settings of a run."""
    Settings.from_yaml(write_file(folder / "config.yaml", data))


def ledger(data: bytes, folder: Path) -> None:
    """Read a ledger as the commands do, and as a resumed run does."""
    (folder / ".ledger.jsonl.copy").unlink(missing_ok=True)
    run = Run.open(write_file(folder / "ledger.jsonl", data).parent)
    for event in run.events:
        if event["event"] == "candidate":
            candidate_from_event(event)
    read_run(run.path)
    Ledger(run.path / "ledger.jsonl").validate()
    candidate(folder / "candidates/0000")
    settings, budget = Settings(), Budget(images=10)
    space = SearchSpace(settings.preset, settings.network, 1, (8, 8))
    policy = make_policy("dynamic", {})
    SearchLoop(
        run.path,
        settings,
        space=space,
        policy=policy,
        budget=budget,
        meter=BudgetMeter(budget),
        display=SilentDisplay(),
    )


def candidate(folder: Path) -> Path:
    """Return the folder of a candidate, which is created if necessary."""
    if not folder.exists():
        g, d = build_network(G, 0), build_network(D, 0)
        assert isinstance(g, Generator) and isinstance(d, Discriminator)
        save_gan(Gan(g, d, Settings().optimizer), folder)
    return folder


def manifest(data: bytes, folder: Path) -> None:
    """Read the manifest of a candidate."""
    checkpoint = candidate(folder / "candidates/0000")
    write_file(checkpoint / MANIFEST_FILE, data)
    load_gan(checkpoint)


def state(data: bytes, folder: Path) -> None:
    """Read the training state of a candidate, with a manifest that matches it."""
    checkpoint = candidate(folder / "candidates/0000")
    write_file(checkpoint / "state.json", data)
    sums = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in CHECKPOINT_FILES
    }
    write_file(checkpoint / MANIFEST_FILE, json.dumps(sums).encode())
    load_gan(checkpoint)
    load_resume_point(checkpoint)


def data_json(data: bytes, folder: Path) -> None:
    """Read the description of the training data of a run."""
    write_file(folder / "config.yaml", LABELED.to_yaml().encode())
    write_file(folder / "data.json", data)
    assert all(
        isinstance(name, str) for name in TrainedGenerator(folder / "candidates/0000").classes
    )


class Translator(TrainedGenerator):
    """A candidate that transforms source images."""

    def load_network(self) -> Generator:
        """Return a network with initial weights."""
        return translator()


@cache
def translator() -> Generator:
    """Return a conditional generator that transforms images of 8x8 pixels."""
    spec = GeneratorSpec(
        base_grid=(4, 4),
        image_channels=1,
        stem_width=4,
        layers=(LAYER,),
        latent_dim=4,
        source_channels=1,
        label_dim=2,
    )
    network = build_network(spec, 0)
    assert isinstance(network, Generator)
    return network.eval()


def source_images(data: bytes, folder: Path) -> None:
    """Read the source images of a run."""
    write_file(folder / SOURCE_IMAGES_FILE, data)
    assert Translator(folder / "candidates/0000").sample(2).shape == (2, 8, 8, 1)


def ensemble(data: bytes, folder: Path) -> None:
    """Read the manifest of a per-class ensemble."""
    labels = PerClassEnsemble(write_file(folder / ENSEMBLE_FILE, data).parent).classes
    assert all(isinstance(name, str) for name in labels)


def exported(folder: Path) -> Path:
    """Return a folder with an exported generator, which is created if necessary."""
    if not folder.exists():
        network = build_network(G, 0)
        assert isinstance(network, Generator)
        network.save_pretrained(folder, config={"class_names": []})
    return folder


def export(data: bytes, folder: Path) -> None:
    """Read the configuration of an exported generator."""
    model = ExportedGenerator(exported(folder / "export"))
    write_file(model.checkpoint_dir / CONFIG_FILE, data)
    assert all(isinstance(name, str) for name in model.classes)
    model.load_network()


def weights(data: bytes, folder: Path) -> None:
    """Read the weights of an exported generator."""
    checkpoint = exported(folder / "export")
    write_file(checkpoint / WEIGHTS_FILE, data)
    Generator.from_pretrained(checkpoint)


def idx(data: bytes, folder: Path) -> None:
    """Read an IDX file, compressed or not."""
    read_idx(write_file(folder / "images-idx3-ubyte", data))


def labels(data: bytes, folder: Path) -> None:
    """Read an IDX file of labels, compressed or not, beside valid images."""
    images = write_file(folder / "images-idx3-ubyte", idx_bytes(pixels()))
    read_idx_pair(images, write_file(folder / "labels-idx1-ubyte", data))


def npz(data: bytes, folder: Path) -> None:
    """Read NumPy arrays."""
    arrays = read_npz(write_file(folder / "images.npz", data))
    assert arrays.images.dtype == np.uint8 and arrays.images.ndim == 4
    assert arrays.labels is None or arrays.labels.shape == arrays.images.shape[:1]


def archive(data: bytes, folder: Path) -> None:
    """Read a zip file of images."""
    path = write_file(folder / "images.zip", data)
    load_images(str(path), resolution=8, cache=folder / "cache", max_broken=1.0)


def image(data: bytes, folder: Path) -> None:
    """Read an image file."""
    height, width, _ = read_header(data)
    if height * width < 1 << 20:
        decode(data)


RUN_TARGETS = (
    spec,
    config,
    ledger,
    manifest,
    state,
    data_json,
    source_images,
    ensemble,
    export,
    weights,
)
TARGETS: dict[str, Target] = {
    target.__name__: target for target in (*RUN_TARGETS, idx, labels, npz, archive, image)
}


def survives(target: Target, data: bytes, folder: Path) -> None:
    """Call ``target``; pass on every error that is not a clear one."""
    try:
        target(data, folder)
    except CLEAR as error:
        assert str(error).strip(), "an error must have a message"
        assert len(str(error)) < 5000, "a message must not repeat the file"


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Return valid files of a target, to be damaged. The last one of a JSON target is JSON."""
    counted = np.arange(2, dtype=np.uint8)
    encoded = tuple(encoded_as(kind, pixels()[0]) for kind in KINDS)
    files: dict[str, Callable[[], tuple[bytes, ...]]] = {
        "spec": lambda: (as_json(SPECS),),
        "config": lambda: (Settings().to_yaml().encode(), as_json(LABELED.model_dump())),
        "ledger": lambda: (_ledger(),),
        "data_json": lambda: (as_json({"name": "set", "classes": ["a", "b"]}),),
        "source_images": lambda: (
            npz_bytes(source_images=pixels()[..., None], labels=counted.astype(np.int64)),
        ),
        "ensemble": lambda: (
            as_json({"classes": ["a", "b"], "command": ["dcgan"], "settings": []}),
        ),
        "export": lambda: (as_json({"class_names": [], "fit": "auto", "spec": G.to_json()}),),
        "idx": lambda: (idx_bytes(pixels()), gzip.compress(idx_bytes(pixels()))),
        "labels": lambda: (idx_bytes(counted), gzip.compress(idx_bytes(counted))),
        "npz": lambda: (npz_bytes(images=pixels(), labels=counted), npz_bytes(x=pixels())),
        "archive": lambda: (_zip(encoded),),
        "image": lambda: encoded,
    }
    return files[name]()


def valid_files(name: str, folder: Path) -> tuple[bytes, ...]:
    """Return the :func:`seeds` of a target. Files that growgan writes are created in ``folder``."""
    if name in ("manifest", "state"):
        checkpoint = candidate(folder / "valid")
        path = checkpoint / (MANIFEST_FILE if name == "manifest" else "state.json")
        return (as_json(json.loads(path.read_bytes())),)
    if name == "weights":
        return ((exported(folder / "valid") / WEIGHTS_FILE).read_bytes(),)
    return seeds(name)


def as_json(value: Any) -> bytes:
    """Return a value as one line of JSON."""
    return json.dumps(value).encode()


def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return two gray images, uint8 [2, 8, 8]."""
    return np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """Return uint8 numbers as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def npz_bytes(**arrays: np.ndarray[Any, Any]) -> bytes:
    """Return arrays as an npz file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def encoded_as(kind: str, image: np.ndarray[Any, Any]) -> bytes:
    """Return an encoded image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _zip(images: tuple[bytes, ...]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for i, image_bytes in enumerate(images):
            packed.writestr(f"{'ab'[i % 2]}/{i}.png", image_bytes)
    return file.getvalue()


def _ledger() -> bytes:
    no_edits: dict[str, list[object]] = {"generator": [], "discriminator": []}
    candidate_event: dict[str, object] = {
        "event": "candidate", "id": "0000", "parent": None, "round": 0, "growth": "no growth",
        "edits": no_edits, "resolution": [8, 8], "images": 10, "seconds": 1.0,
        "train_seconds": 0.9, "images_per_second": 9.0, "score": 0.5, "score_stderr": 0.1,
        "score_components": {}, "status": "scored", "elapsed": 1.0, "spent_fraction": 0.5,
        "error": "", "generator_layers": 2, "discriminator_layers": 2, "generator_parameters": 9,
        "discriminator_parameters": 9, "generator_spec": G.to_json(),
        "discriminator_spec": D.to_json(),
    }  # fmt: skip
    events: list[dict[str, object]] = [
        {"event": "start", "format": 1, "timestamp": 0.0, "budget": {"images": 10},
         "resolution": [8, 8],
         "data": {"name": "set", "fingerprint": "0a1b", "count": 2, "channels": 1}},
        candidate_event,
        {"event": "select", "round": 0, "survivors": ["0000"], "best": "0000", "reason": "alone"},
        {"event": "micro_batches", "candidate": "0001", "num_micro_batches": 2},
        {"event": "mitigation", "candidate": "0001", "failure": "divergence",
         "diagnosis": "not finite", "mitigation": "a third of the learning rate",
         "settings": {"optimizer": {"lr": 0.01}}},
        {"event": "resume", "timestamp": 1.0, "budget": {"images": 20}},
        {"event": "end", "best": "0000", "elapsed": 2.0, "cost": {"train": 1.0}},
    ]  # fmt: skip
    return b"".join(as_json(event) + b"\n" for event in events)


def main() -> None:
    """Fuzz one target, guided by coverage: TARGET CASES FOLDER."""
    import atheris

    name, cases, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    corpus = folder / "corpus"
    for i, content in enumerate(valid_files(name, folder)):
        write_file(corpus / str(i), content)
    atheris.instrument_all()
    options = [f"-runs={cases}", "-timeout=10", "-rss_limit_mb=4096", str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda data: survives(TARGETS[name], data, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
