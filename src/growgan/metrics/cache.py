"""Read cached safetensors files, which may be missing or incomplete."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_cached_tensors(path: Path | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Both are empty if there is no file or it is incomplete; the caller then replaces it.
    """
    if path is None or not path.is_file():
        return {}, {}
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}, {}
