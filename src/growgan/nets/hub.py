"""Folders that hold one generator, and the Hugging Face Hub.

A folder holds::

    config.json         the spec and metadata such as class names, data set and score
    model.safetensors   the weights by parameter name
    README.md           the model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from growgan.errors import UserError, require_extra
from growgan.jsonl import parse_json

CONFIG_FILE, WEIGHTS_FILE, MODEL_CARD_FILE = "config.json", "model.safetensors", "README.md"
LEDGER_FILE = "ledger.jsonl"  # only run directories have one
HUB_EXTRA = ("huggingface_hub", "the hub", "'growgan[hub]'")


def write_model_folder(
    folder: Path, weights: Mapping[str, Tensor], *, config: Mapping[str, Any], card: str = ""
) -> Path:
    """Write a generator into ``folder`` and return it.

    Args:
        folder: The folder, which is created if necessary.
        weights: Contiguous tensors on the CPU, by parameter name.
        config: Content of ``config.json``.
        card: The model card; if empty, a minimal one.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_safetensors(weights, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
        (folder / MODEL_CARD_FILE).write_text(card or _minimal_model_card(folder.name))
    except OSError as error:
        raise UserError(f"cannot write to '{folder}': {error.strerror or error}") from error
    return folder


def save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with the permissions that other new files have.

    The safetensors library would make it readable for its owner alone.

    Raises:
        OSError: The file cannot be written.
    """
    path.unlink(missing_ok=True)
    path.touch()
    permissions = path.stat().st_mode
    save_file(dict(tensors), path)
    path.chmod(permissions)


def _minimal_model_card(name: str) -> str:
    task = "unconditional-image-generation"
    return f"---\nlibrary_name: growgan\npipeline_tag: {task}\n---\n# {name}\n"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return dict(parse_json((folder / CONFIG_FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read '{folder / CONFIG_FILE}': {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights by parameter name.

    Raises:
        OSError: There is no file.
        SafetensorError: The file is damaged.
    """
    return load_file(folder / WEIGHTS_FILE)


def resolve_model_folder(name_or_path: str | Path, **hub_kwargs: Any) -> Path:
    """Return the folder of a generator, as :func:`resolve_folder` does.

    Raises:
        UserError: As there, or the folder is a run directory.
    """
    folder = resolve_folder(name_or_path, **hub_kwargs)
    if (folder / LEDGER_FILE).is_file() and not (folder / CONFIG_FILE).is_file():
        raise UserError(f"'{folder}' is a run directory; use growgan.load to open it")
    return folder


def resolve_folder(name_or_path: str | Path, **hub_kwargs: Any) -> Path:
    """Return the folder ``name_or_path``, or a local copy of the hub's repository of that name.

    Args:
        name_or_path: The folder, or the name of the repository.
        hub_kwargs: Arguments of ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: There is no such folder, and the repository cannot be downloaded.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    module, feature, package = HUB_EXTRA
    require_extra(module, f"there is no folder '{name_or_path}', and {feature}", package)
    from huggingface_hub import snapshot_download

    try:
        files = [CONFIG_FILE, WEIGHTS_FILE, MODEL_CARD_FILE]
        return Path(snapshot_download(str(name_or_path), allow_patterns=files, **hub_kwargs))
    except Exception as error:  # the library has many errors, about networks, tokens and names
        raise UserError(
            f"there is no folder '{name_or_path}', and downloading it from the hub failed: {error}"
        ) from error


def upload_to_hub(
    folder: str | Path, repo_id: str, *, private: bool = True, **hub_kwargs: Any
) -> str:
    """Upload a folder to a repository of the hub, which is created if necessary.

    Args:
        folder: The folder.
        repo_id: Name of the repository, "USER/NAME".
        private: Whether a new repository is private.
        hub_kwargs: Arguments of ``huggingface_hub.HfApi``, such as ``token``.

    Returns:
        The address of the repository.

    Raises:
        UserError: The extra is not installed, or the upload fails.
    """
    require_extra(*HUB_EXTRA)
    from huggingface_hub import HfApi

    api = HfApi(**hub_kwargs)
    try:
        repo_url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_url.repo_id, folder_path=str(folder))
    except Exception as error:  # the library has many errors, about networks, tokens and names
        raise UserError(f"uploading '{repo_id}' failed: {error}") from error
    return str(repo_url)
