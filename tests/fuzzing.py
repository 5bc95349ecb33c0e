"""What a stranger may hand us, as functions of bytes: they return, or raise a clear error.

Run by Hypothesis (test_fuzz.py) and, guided by coverage, by ``python tests/fuzzing.py TARGET``.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from growgan.config import Settings
from growgan.data import load_images
from growgan.data.decode import BrokenImage, decode, read_header
from growgan.data.idx import read_idx
from growgan.data.npz import read_npz
from growgan.errors import UserError
from growgan.growth import Run
from growgan.growth.ledger import candidate_from_event
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.report.run import read_run
from growgan.training.checkpoint import load_specs

Target = Callable[[bytes], None]
CLEAR = (UserError, BrokenImage)  # what may be raised, with a text for people


@cache
def scratch() -> Path:
    """Return a folder of this process."""
    return Path(tempfile.mkdtemp(prefix="growgan-fuzz-"))


def written(name: str, data: bytes) -> Path:
    """Return a file that holds ``data``."""
    path = scratch() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def spec(data: bytes) -> None:
    """A candidate's architecture."""
    load_specs(written("candidate/spec.json", data).parent)


def config(data: bytes) -> None:
    """A run's settings."""
    Settings.from_yaml(written("config.yaml", data))


def ledger(data: bytes) -> None:
    """A run's memory, as the commands read it."""
    run = Run.open(written("run/ledger.jsonl", data).parent)
    for event in run.events:
        if event["event"] == "candidate":
            candidate_from_event(event)
    read_run(run.path)


def idx(data: bytes) -> None:
    """An IDX file, plain or packed."""
    read_idx(written("images-idx3-ubyte", data))


def npz(data: bytes) -> None:
    """NumPy arrays."""
    read_npz(written("images.npz", data))


def archive(data: bytes) -> None:
    """A zip of images."""
    path = written("images.zip", data)
    load_images(str(path), resolution=8, cache=scratch() / "cache", max_broken=1.0)


def image(data: bytes) -> None:
    """One image file."""
    height, width, _ = read_header(data)
    if height * width < 1 << 20:
        decode(data)


TARGETS: dict[str, Target] = {
    each.__name__: each for each in (spec, config, ledger, idx, npz, archive, image)
}


def survives(target: Target, data: bytes) -> None:
    """Call ``target``; raise whatever it raises that is no clear error of one line."""
    try:
        target(data)
    except CLEAR as error:
        assert str(error).strip(), "an error must say something"
        assert len(str(error)) < 5000, "and not repeat the whole file"


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Return valid inputs of a target, to be damaged."""
    g = StackSpec("generator", (4, 4), 1, 8, (LayerSpec("g0", resample=2),), latent=8)
    d = StackSpec("discriminator", (4, 4), 1, 8, (LayerSpec("d0", resample=2),), deviation_group=4)
    specs = {"generator": g.to_json(), "discriminator": d.to_json()}
    pixels = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, images=pixels, labels=np.array([0, 1]))
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    made: dict[str, tuple[bytes, ...]] = {
        "spec": (json.dumps(specs).encode(),),
        "config": (Settings().to_yaml().encode(),),
        "ledger": (_ledger(specs),),
        "idx": (header + pixels.tobytes(),),
        "npz": (arrays.getvalue(),),
        "archive": (_zip(pixels),),
        "image": tuple(_encoded(pixels[0], kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP")),
    }
    return made[name]


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _zip(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for i, each in enumerate(pixels):
            packed.writestr(f"{'ab'[i]}/{i}.png", _encoded(each, "PNG"))
    return file.getvalue()


def _ledger(specs: dict[str, object]) -> bytes:
    none = {"generator": [], "discriminator": []}
    child = {"event": "candidate", "id": "0000", "parent": None, "round": 0, "growth": "train on"}
    child |= {"edits": none, "resolution": [8, 8], "images": 10, "seconds": 1.0, "trained": 0.9}
    child |= {"rate": 9.0, "score": 0.5, "score_stderr": 0.1, "parts": {}, "status": "scored"}
    child |= {"elapsed": 1.0, "spent": 0.5, "error": "", "generator_layers": 2}
    child |= {"discriminator_layers": 2, "generator_parameters": 9, "discriminator_parameters": 9}
    events = [
        {"event": "start", "time": 0.0, "budget": {"images": 10}, "resolution": [8, 8]},
        {**child, **specs},
        {"event": "select", "round": 0, "alive": ["0000"], "best": "0000", "reason": "alone"},
        {"event": "end", "best": "0000", "elapsed": 2.0, "cost": {"train": 1.0}},
    ]
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def main() -> None:
    """Fuzz one target, guided by coverage: TARGET CASES."""
    import atheris

    target, cases = TARGETS[sys.argv[1]], int(sys.argv[2])
    corpus = scratch() / "corpus"
    corpus.mkdir()
    for i, each in enumerate(seeds(sys.argv[1])):
        (corpus / str(i)).write_bytes(each)
    atheris.instrument_all()
    options = [f"-runs={cases}", "-timeout=10", "-rss_limit_mb=4096", str(corpus)]
    atheris.Setup([sys.argv[0], *options], lambda data: survives(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
