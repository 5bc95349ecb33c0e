"""What a stranger may hand us, as functions of bytes: they return, or raise a clear error.

Each reads its file in a folder of its own, beside what else belongs there. Run by Hypothesis
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

from growgan.config import Settings, make_settings
from growgan.data import load_images
from growgan.data.decode import BrokenImage, decode, read_header
from growgan.data.idx import read_idx, read_idx_pair
from growgan.data.npz import read_npz
from growgan.errors import UserError
from growgan.growth import Run
from growgan.growth.budget import Budget, Meter
from growgan.growth.history import Space
from growgan.growth.ledger import Ledger, candidate_from_event
from growgan.growth.load import Exported
from growgan.growth.model import GIVEN, Model
from growgan.growth.policies import make_policy
from growgan.growth.pool import FILE, Pool
from growgan.growth.search import Search
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.pretrained import CONFIG, WEIGHTS, restored
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.report.run import read_run
from growgan.training.checkpoint import FILES, MANIFEST, load_gan, load_mark, load_specs, save_gan
from growgan.training.gan import Gan
from growgan.training.progress import SilentDisplay

Target = Callable[[bytes, Path], None]
CLEAR = (UserError, BrokenImage)  # what may be raised, with a text for people
KINDS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA")
LAYER = LayerSpec("g0", resample=2, width=8)
G = StackSpec("generator", (4, 4), 1, 8, (LAYER,), latent=8)
D = StackSpec("discriminator", (4, 4), 1, 8, (LayerSpec("d0", resample=2, width=8),))
SPECS = {"generator": G.to_json(), "discriminator": D.to_json()}
LABELLED = make_settings({"conditioning": "projection"})


def written(path: Path, data: bytes) -> Path:
    """Return a file that holds ``data``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def spec(data: bytes, folder: Path) -> None:
    """A candidate's architecture, of which networks are built without memory."""
    for each in load_specs(written(folder / "spec.json", data).parent):
        try:
            restored(each, {})
        except UserError as error:
            if not str(error).endswith("is missing"):
                raise


def config(data: bytes, folder: Path) -> None:
    """A run's settings."""
    Settings.from_yaml(written(folder / "config.yaml", data))


def ledger(data: bytes, folder: Path) -> None:
    """A run's memory, as the commands read it, and as a run that goes on does."""
    (folder / ".ledger.jsonl.copy").unlink(missing_ok=True)
    run = Run.open(written(folder / "ledger.jsonl", data).parent)
    for event in run.events:
        if event["event"] == "candidate":
            candidate_from_event(event)
    read_run(run.path)
    Ledger(run.path / "ledger.jsonl").check()
    candidate(folder / "candidates/0000")
    settings, budget = Settings(), Budget(images=10)
    space = Space(settings.preset, settings.stack, 1, (8, 8))
    policy = make_policy("dynamic", {})
    Search(run.path, settings, space, policy, budget, Meter(budget, 0.0), SilentDisplay())


def candidate(folder: Path) -> Path:
    """Return a candidate's folder, made when it is first asked for."""
    if not folder.exists():
        g, d = build(G, 0), build(D, 0)
        assert isinstance(g, Generator) and isinstance(d, Discriminator)
        save_gan(Gan(g, d, Settings().optimiser), folder)
    return folder


def manifest(data: bytes, folder: Path) -> None:
    """What a candidate's files are said to be."""
    whole = candidate(folder / "candidates/0000")
    written(whole / MANIFEST, data)
    load_gan(whole)


def state(data: bytes, folder: Path) -> None:
    """Where a candidate's training stands, with a manifest that knows it."""
    whole = candidate(folder / "candidates/0000")
    written(whole / "state.json", data)
    sums = {name: hashlib.sha256((whole / name).read_bytes()).hexdigest() for name in FILES}
    written(whole / MANIFEST, json.dumps(sums).encode())
    load_gan(whole)
    load_mark(whole)


def facts(data: bytes, folder: Path) -> None:
    """What a run was trained on."""
    written(folder / "config.yaml", LABELLED.to_yaml().encode())
    written(folder / "data.json", data)
    assert all(isinstance(name, str) for name in Model(folder / "candidates/0000").classes)


class Translator(Model):
    """A candidate that makes images from images."""

    def network(self) -> Generator:
        """Return a network of no weights worth mention."""
        return translator()


@cache
def translator() -> Generator:
    """Return a generator of images from images and labels, 8x8."""
    spec = StackSpec("generator", (4, 4), 1, 4, (LAYER,), latent=4, given=1, classes=2)
    network = build(spec, 0)
    assert isinstance(network, Generator)
    return network.eval()


def given(data: bytes, folder: Path) -> None:
    """Images that a run keeps to make others from."""
    written(folder / GIVEN, data)
    assert Translator(folder / "candidates/0000").sample(2).shape == (2, 8, 8, 1)


def pool(data: bytes, folder: Path) -> None:
    """What a pool of runs was asked for."""
    labels = Pool(written(folder / FILE, data).parent).classes
    assert all(isinstance(name, str) for name in labels)


def exported(folder: Path) -> Path:
    """Return a folder that holds a generator on its own, made when it is first asked for."""
    if not folder.exists():
        network = build(G, 0)
        assert isinstance(network, Generator)
        network.save_pretrained(folder, config={"classes": []})
    return folder


def export(data: bytes, folder: Path) -> None:
    """What an export says of itself."""
    model = Exported(exported(folder / "export"))
    written(model.folder / CONFIG, data)
    assert all(isinstance(name, str) for name in model.classes)
    model.network()


def weights(data: bytes, folder: Path) -> None:
    """An export's tensors."""
    whole = exported(folder / "export")
    written(whole / WEIGHTS, data)
    Generator.from_pretrained(whole)


def idx(data: bytes, folder: Path) -> None:
    """An IDX file, plain or packed."""
    read_idx(written(folder / "images-idx3-ubyte", data))


def labels(data: bytes, folder: Path) -> None:
    """An IDX file of labels, plain or packed, beside sound images."""
    images = written(folder / "images-idx3-ubyte", idx_bytes(pixels()))
    read_idx_pair(images, written(folder / "labels-idx1-ubyte", data))


def npz(data: bytes, folder: Path) -> None:
    """NumPy arrays."""
    arrays = read_npz(written(folder / "images.npz", data))
    assert arrays.images.dtype == np.uint8 and arrays.images.ndim == 4
    assert arrays.labels is None or arrays.labels.shape == arrays.images.shape[:1]


def archive(data: bytes, folder: Path) -> None:
    """A zip of images."""
    path = written(folder / "images.zip", data)
    load_images(str(path), resolution=8, cache=folder / "cache", max_broken=1.0)


def image(data: bytes, folder: Path) -> None:
    """One image file."""
    height, width, _ = read_header(data)
    if height * width < 1 << 20:
        decode(data)


READ = (spec, config, ledger, manifest, state, facts, given, pool, export, weights)
TARGETS: dict[str, Target] = {
    each.__name__: each for each in (*READ, idx, labels, npz, archive, image)
}


def survives(target: Target, data: bytes, folder: Path) -> None:
    """Call ``target``; raise whatever it raises that is no clear error of one line."""
    try:
        target(data, folder)
    except CLEAR as error:
        assert str(error).strip(), "an error must say something"
        assert len(str(error)) < 5000, "and not repeat the whole file"


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Return valid inputs of a target, to be damaged; the last one of a JSON target is JSON."""
    counted = np.arange(2, dtype=np.uint8)
    encoded = tuple(encoded_as(kind, pixels()[0]) for kind in KINDS)
    made: dict[str, Callable[[], tuple[bytes, ...]]] = {
        "spec": lambda: (as_json(SPECS),),
        "config": lambda: (Settings().to_yaml().encode(), as_json(LABELLED.model_dump())),
        "ledger": lambda: (_ledger(),),
        "facts": lambda: (as_json({"name": "set", "classes": ["a", "b"]}),),
        "given": lambda: (npz_bytes(given=pixels()[..., None], labels=counted.astype(np.int64)),),
        "pool": lambda: (as_json({"classes": ["a", "b"], "command": ["dcgan"], "settings": []}),),
        "export": lambda: (as_json({"classes": [], "fit": "auto", "spec": G.to_json()}),),
        "idx": lambda: (idx_bytes(pixels()), gzip.compress(idx_bytes(pixels()))),
        "labels": lambda: (idx_bytes(counted), gzip.compress(idx_bytes(counted))),
        "npz": lambda: (npz_bytes(images=pixels(), labels=counted), npz_bytes(x=pixels())),
        "archive": lambda: (_zip(encoded),),
        "image": lambda: encoded,
    }
    return made[name]()


def kept(name: str, folder: Path) -> tuple[bytes, ...]:
    """Return the :func:`seeds` of a target; those that growgan writes itself are made there."""
    if name in ("manifest", "state"):
        whole = candidate(folder / "sound")
        path = whole / (MANIFEST if name == "manifest" else "state.json")
        return (as_json(json.loads(path.read_bytes())),)
    if name == "weights":
        return ((exported(folder / "sound") / WEIGHTS).read_bytes(),)
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
    """Return an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _zip(images: tuple[bytes, ...]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for i, each in enumerate(images):
            packed.writestr(f"{'ab'[i % 2]}/{i}.png", each)
    return file.getvalue()


def _ledger() -> bytes:
    none: dict[str, list[object]] = {"generator": [], "discriminator": []}
    child: dict[str, object] = {"event": "candidate", "id": "0000", "parent": None, "round": 0}
    child |= {"edits": none, "resolution": [8, 8], "images": 10, "seconds": 1.0, "trained": 0.9}
    child |= {"rate": 9.0, "score": 0.5, "score_stderr": 0.1, "parts": {}, "status": "scored"}
    child |= {"elapsed": 1.0, "spent": 0.5, "error": "", "generator_layers": 2}
    child |= {"discriminator_layers": 2, "generator_parameters": 9, "discriminator_parameters": 9}
    start = {"event": "start", "time": 0.0, "budget": {"images": 10}, "resolution": [8, 8]}
    events = [
        {**start, "data": {"name": "set", "fingerprint": "0a1b", "count": 2, "channels": 1}},
        {**child, "growth": "train on", **SPECS},
        {"event": "select", "round": 0, "alive": ["0000"], "best": "0000", "reason": "alone"},
        {"event": "memory", "candidate": "0001", "parts": 2},
        {"event": "doctor", "candidate": "0001", "ailment": "divergence", "diagnosis": "no number",
         "remedy": "a third of the rate", "settings": {"optimiser": {"lr": 0.01}}},
        {"event": "resume", "time": 1.0, "budget": {"images": 20}},
        {"event": "end", "best": "0000", "elapsed": 2.0, "cost": {"train": 1.0}},
    ]  # fmt: skip
    return b"".join(as_json(event) + b"\n" for event in events)


def main() -> None:
    """Fuzz one target, guided by coverage: TARGET CASES FOLDER."""
    import atheris

    name, cases, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    corpus = folder / "corpus"
    for i, each in enumerate(kept(name, folder)):
        written(corpus / str(i), each)
    atheris.instrument_all()
    options = [f"-runs={cases}", "-timeout=10", "-rss_limit_mb=4096", str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda data: survives(TARGETS[name], data, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
