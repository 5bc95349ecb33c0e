"""A pair of players on disk: specs as JSON, tensors as safetensors, never pickle.

spec.json              both specs
weights.safetensors    G, D and the running average, by player and parameter name
state.safetensors      optimiser step counts and moments; what the objective remembers
state.json             images and steps seen, optimiser settings; the mark of a slice in training
manifest.json          SHA-256 of each of these, so that nothing damaged is ever loaded
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from growgan.config import OptimiserSettings
from growgan.errors import UserError
from growgan.nets.edits import under
from growgan.nets.players import Discriminator, Generator
from growgan.nets.pretrained import restored, save_tensors
from growgan.nets.spec import StackSpec
from growgan.plain import parse
from growgan.training.gan import Gan
from growgan.training.stage import Mark

PLAYERS = ("generator", "discriminator", "average")
FILES = ("spec.json", "weights.safetensors", "state.safetensors", "state.json")
MANIFEST = "manifest.json"  # written last
Files = Mapping[str, bytes]
# What reading a stranger's files raises.
BAD = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    SafetensorError,
    UserError,
)


def save_gan(gan: Gan, folder: Path, mark: Mark | None = None) -> None:
    """Write ``gan`` to ``folder``, which appears complete or not at all.

    A pair in the middle of a slice is saved with its ``mark``.
    """
    with _appearing(folder) as partial:
        _write(gan, mark, partial)


def save_files(files: Files, folder: Path) -> None:
    """Write what was :func:`packed` to ``folder``, which appears complete or not at all."""
    with _appearing(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``folder`` once all that is in it is on the disk."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for path in (*partial.iterdir(), partial):
        _flush(path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    _flush(folder.parent)


def _write(gan: Gan, mark: Mark | None, partial: Path) -> None:
    """Write a pair into an empty folder."""
    specs = {player: getattr(gan, player).spec.to_json() for player in PLAYERS[:2]}
    weights = {
        f"{player}.{name}": tensor.detach().cpu().contiguous()
        for player in PLAYERS
        for name, tensor in getattr(gan, player).state_dict().items()
    }
    state = {
        f"{player}.{key}.{name}": tensor.detach().cpu().contiguous()
        for player, moments in zip(PLAYERS[:2], gan.moments(), strict=True)
        for key, tensors in moments.items()
        for name, tensor in tensors.items()
    }
    state |= {f"memory.{name}": t.detach().cpu().contiguous() for name, t in gan.memory.items()}
    counts = {
        "images": gan.images,
        "steps": gan.steps,
        "optimiser": gan.optimiser_settings.model_dump(),
        "mark": asdict(mark) if mark else None,
    }
    (partial / "spec.json").write_text(json.dumps(specs, indent=1))
    (partial / "state.json").write_text(json.dumps(counts))
    save_tensors(weights, partial / "weights.safetensors")
    save_tensors(state, partial / "state.safetensors")
    sums = {path.name: _digest(path) for path in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps(sums, indent=1))


def _flush(path: Path) -> None:
    """Wait until ``path`` is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_files(folder: Path, names: Sequence[str] = FILES) -> None:
    """Raise a :class:`UserError` that names the first file of ``folder`` that is not as written."""
    try:
        sums: dict[str, Any] = dict(parse((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{folder / MANIFEST}' cannot be read: {error}") from error
    for name in names:
        try:
            found = _digest(folder / name)
        except OSError as error:
            raise UserError(f"'{folder / name}' cannot be read: {error.strerror}") from error
        if found != sums.get(name):
            raise UserError(f"'{folder / name}' is damaged: it is not what was saved")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_specs(folder: Path) -> tuple[StackSpec, StackSpec]:
    """Read G's and D's specs; raise a :class:`UserError` if they cannot be read."""
    try:
        specs = parse((folder / "spec.json").read_bytes())
        g, d = (StackSpec.from_json(specs[player]) for player in PLAYERS[:2])
        return g, d
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no readable spec in '{folder}': {error}") from error


def load_gan(folder: Path, device: str = "cpu") -> Gan:
    """Read back what :func:`save_gan` wrote, bit for bit.

    Raises:
        UserError: something is missing or damaged; the file is named.
    """
    check_files(folder)
    specs = load_specs(folder)
    try:
        counts = parse((folder / "state.json").read_bytes())
        weights = load_file(folder / "weights.safetensors")
        state = load_file(folder / "state.safetensors")
        players = zip(PLAYERS, (*specs, specs[0]), strict=True)
        stacks = [restored(spec, under(weights, player)) for player, spec in players]
        g, d, average = (stack.to(device) for stack in stacks)
        optimiser = OptimiserSettings(**counts["optimiser"])
        gan = Gan(cast(Generator, g), cast(Discriminator, d), optimiser, cast(Generator, average))
        gan.images, gan.steps = int(counts["images"]), int(counts["steps"])
        gan.memory = {name: value.to(device) for name, value in under(state, "memory").items()}
        gan.restore_moments(*(_by_key(under(state, player)) for player in PLAYERS[:2]))
    except BAD as error:
        raise UserError(f"candidate '{folder}' cannot be loaded: {error}") from error
    return gan


def packed(gan: Gan) -> Files:
    """Return the files of :func:`save_gan` by name, for another process."""
    with tempfile.TemporaryDirectory() as folder:
        _write(gan, None, Path(folder))
        return read_files(Path(folder))


def read_files(folder: Path) -> Files:
    """Return the files of a saved pair by name, as :func:`packed` does.

    Raises:
        UserError: something is missing or damaged; the file is named.
    """
    check_files(folder)
    return {name: (folder / name).read_bytes() for name in (*FILES, MANIFEST)}


def unpacked(files: Files, device: torch.device | str = "cpu") -> Gan:
    """Return the pair that was :func:`packed`, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_gan(Path(folder), str(device))


def load_mark(folder: Path) -> Mark | None:
    """Return where in its slice the pair in ``folder`` was saved, None for a finished one.

    Raises:
        UserError: the file that says so is damaged; it is named.
    """
    try:
        mark = parse((folder / "state.json").read_bytes())["mark"]
        if not mark:
            return None
        return Mark(int(mark["images"]), float(mark["alpha"]), float(mark["seconds"]))
    except BAD as error:
        raise UserError(f"'{folder / 'state.json'}' cannot be read: {error}") from error


def load_generator(folder: Path, device: str = "cpu") -> Generator:
    """Read the running average of G alone."""
    check_files(folder, FILES[:2])
    try:
        weights = load_file(folder / "weights.safetensors")
        generator = restored(load_specs(folder)[0], under(weights, "average"))
    except BAD as error:
        raise UserError(f"candidate '{folder}' cannot be loaded: {error}") from error
    return cast(Generator, generator.to(device).eval())


def _by_key(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    keys = {name.partition(".")[0] for name in state}
    return {key: under(state, key) for key in keys}
