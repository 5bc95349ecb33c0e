"""Real images: found, checked, decoded once into a memory map, and served in batches.

Nothing here imports torch but :mod:`growgan.data.batches`, so names are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growgan.data.batches import Batches
    from growgan.data.files import default_cache
    from growgan.data.images import ImageSet, load_images
    from growgan.data.prepare import parse_resolution
    from growgan.data.summary import Summary, summarise

__all__ = [
    "Batches",
    "ImageSet",
    "Summary",
    "default_cache",
    "load_images",
    "parse_resolution",
    "summarise",
]

_HOMES = {
    "Batches": "batches",
    "ImageSet": "images",
    "Summary": "summary",
    "default_cache": "files",
    "load_images": "images",
    "parse_resolution": "prepare",
    "summarise": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
