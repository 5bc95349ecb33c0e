"""A generator in a folder of its own, as people know it from the hub.

config.json         the spec, and what else its maker wrote down: names of classes, data, score
model.safetensors   the weights by parameter name
README.md           the model card
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from growgan.errors import UserError, require
from growgan.nets.layers import unset
from growgan.nets.spec import LIMITS, StackSpec
from growgan.plain import parse

if TYPE_CHECKING:
    from growgan.nets.players import Discriminator, Generator

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LEDGER = "ledger.jsonl"  # of a run
HUB = ("huggingface_hub", "the hub", "'growgan[hub]'")


class Pretrained:
    """What lets a generator be kept in a folder, or on the hub, and be had from there."""

    spec: StackSpec

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> Self:
        """Return the generator in the folder ``source``, or in the hub's repository of that name.

        Args:
            hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as
                ``huggingface_hub.snapshot_download`` takes them.

        Raises:
            UserError: there is none, it is damaged, or it is no generator.
        """
        folder = fetched(source, **hub)
        if (folder / LEDGER).is_file() and not (folder / CONFIG).is_file():
            raise UserError(f"'{folder}' is a run and no export: growgan.load opens it")
        try:
            spec = StackSpec.from_json(read_config(folder)["spec"])
            if spec.role != "generator":
                raise UserError("it is no generator")
            network = restored(spec, load_file(folder / WEIGHTS))
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, UserError) as error:
            raise UserError(f"'{folder}' holds no model that can be loaded: {error}") from error
        return cast(Self, network.eval())

    def save_pretrained(
        self, folder: str | Path, *, config: Mapping[str, Any] | None = None, card: str = ""
    ) -> Path:
        """Write the generator into ``folder``, with what else ``config`` says and the model card.

        Raises:
            UserError: the folder cannot be written.
        """
        network, folder = cast("Generator", self), Path(folder)
        weights = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
        text = json.dumps({**(config or {}), "spec": self.spec.to_json()}, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(weights, folder / WEIGHTS)
            (folder / CONFIG).write_text(text)
            (folder / CARD).write_text(card or _card(folder.name))
        except OSError as error:
            raise UserError(f"cannot write to '{folder}': {error.strerror or error}") from error
        return folder

    def push_to_hub(self, repository: str, *, folder: str | Path | None = None, **hub: Any) -> str:
        """Upload what :meth:`save_pretrained` writes, or wrote into ``folder``; return its address.

        Raises:
            UserError: as :func:`push` does.
        """
        if folder is not None:
            return push(folder, repository, **hub)
        with tempfile.TemporaryDirectory() as made:
            return push(self.save_pretrained(made), repository, **hub)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors with the rights of any other new file; safetensors leaves them to us alone.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    path.touch()
    rights = path.stat().st_mode
    save_file(dict(tensors), path)
    path.chmod(rights)


def restored(spec: StackSpec, weights: Mapping[str, Tensor]) -> Generator | Discriminator:
    """Return the stack of ``spec`` with ``weights``, which must be all of its own.

    A stranger's spec may ask for any amount of memory beside next to no weights. So the stack is
    built without memory first, and compared with them.

    Raises:
        UserError: no stack can be built of this spec, or its weights are others.
    """
    from growgan.nets.players import build

    try:
        with torch.device("meta"), unset():
            outline = {name: tuple(t.shape) for name, t in build(spec).state_dict().items()}
    except Exception as error:  # torch and the layers raise many kinds for sizes that do not fit
        raise UserError(f"no stack can be built of its spec: {error}") from error
    count, most = sum(map(prod, outline.values())), LIMITS["parameters"]
    if count > most:
        raise UserError(f"its spec has {count:,} parameters; they may be {most:,}")
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(outline.keys() ^ shapes.keys()):
        missing = "is missing" if name in outline else "is none of its spec's"
        raise UserError(f"weight '{name[:99]}' {missing}")
    for name, shape in outline.items():
        if shapes[name] != shape:
            raise UserError(f"weight '{name}' must have the shape {shape}, but has {shapes[name]}")
    with unset():
        network = build(spec)
    network.load_state_dict(dict(weights))
    return network


def push(folder: str | Path, repository: str, *, private: bool = True, **hub: Any) -> str:
    """Upload a folder into a repository of the hub, made if there is none; return its address.

    Args:
        repository: "USER/NAME".
        private: whether a new repository is.
        hub: ``token``, and what else ``huggingface_hub.HfApi`` takes.

    Raises:
        UserError: the extra is missing, or the hub refuses; its own words are in the text.
    """
    require(*HUB)
    from huggingface_hub import HfApi

    api = HfApi(**hub)
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=str(folder))
    except Exception as error:  # of the network, the token or the name: the library's own words
        raise UserError(f"'{repository}' cannot be uploaded: {error}") from error
    return str(made)


def fetched(source: str | Path, **hub: Any) -> Path:
    """Return the folder ``source``, or where the hub's repository of that name is kept here.

    Raises:
        UserError: there is no such folder, and the hub's cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    module, what, package = HUB
    require(module, f"there is no folder '{source}', and {what}", package)
    from huggingface_hub import snapshot_download

    try:
        files = [CONFIG, WEIGHTS, CARD]
        return Path(snapshot_download(str(source), allow_patterns=files, **hub))
    except Exception as error:  # of the network, the token or the name: the library's own words
        raise UserError(f"there is no folder '{source}', nor can it be fetched: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says; raise a :class:`UserError` where it cannot be read."""
    try:
        return dict(parse((folder / CONFIG).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{folder / CONFIG}' cannot be read: {error}") from error


def _card(name: str) -> str:
    task = "unconditional-image-generation"
    return f"---\nlibrary_name: growgan\npipeline_tag: {task}\n---\n# {name}\n"
