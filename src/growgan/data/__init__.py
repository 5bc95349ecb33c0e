"""Datasets: find, check and decode images once into a memory map, and serve them in batches.

Public names are loaded on first use, because :mod:`growgan.data.batches` imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growgan.data.batches import Batches
    from growgan.data.cache import default_cache
    from growgan.data.images import ImageSet, load_images
    from growgan.data.prepare import parse_resolution
    from growgan.data.summary import DatasetSummary, summarize

__all__ = [
    "Batches",
    "DatasetSummary",
    "ImageSet",
    "default_cache",
    "load_images",
    "parse_resolution",
    "summarize",
]

_MODULES = {
    "Batches": "batches",
    "ImageSet": "images",
    "DatasetSummary": "summary",
    "default_cache": "cache",
    "load_images": "images",
    "parse_resolution": "prepare",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
