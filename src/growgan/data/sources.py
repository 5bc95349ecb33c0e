"""Open the source of images that DATA on the command line names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from growgan.data import archives, digits, fashion, folder, glyphs, hub, idx, npz
from growgan.data.base import Source, SourceContext
from growgan.errors import UserError, unknown_name_error

SUPPORTED_FORMATS: Final = "a folder, a zip, an .npz or IDX files"

# Name on the command line -> function of (options after the colon, context).
BUILTIN_SOURCES: Final[dict[str, Callable[[str, SourceContext], Source]]] = {
    "digits": lambda options, context: digits.open_digits(options),
    "fashion-mnist": lambda options, context: fashion.open_fashion_mnist(options, context.cache),
    "glyphs": lambda options, context: glyphs.open_glyphs(options, context.seed, context.channels),
    "hub": lambda options, context: hub.open_hub(options),
}


def open_source(data: str | Path, context: SourceContext) -> Source:
    """Open a built-in source ("glyphs", with options after a colon) or a path.

    A built-in name takes precedence over a path of that name; write ``./digits`` for a folder
    named "digits".

    Raises:
        UserError: ``data`` is neither, or it contains no images.
    """
    text = str(data)
    name, _, options = text.partition(":")
    if isinstance(data, str) and name in BUILTIN_SOURCES:
        return BUILTIN_SOURCES[name](options, context)
    path = Path(text).expanduser()
    if path.exists():
        return _open_path(path, context.cache)
    if isinstance(data, str) and text and not set(text) & set("/\\.~"):
        raise UserError(
            f"{unknown_name_error('DATA', name, [*BUILTIN_SOURCES, 'PATH'])}; no such file exists"
        )
    raise UserError(
        f"DATA '{text}' does not exist; it must be {SUPPORTED_FORMATS}, or one of:"
        f" {', '.join(sorted(BUILTIN_SOURCES))}"
    )


def _open_path(path: Path, cache: Path) -> Source:
    if path.is_dir():
        return idx.find_in(path, cache) or folder.open_folder(path, cache)
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return archives.open_zip(path, cache)
    if suffix == ".npz":
        return npz.open_npz(path, cache)
    if idx.is_idx(path):
        return idx.open_idx(path, cache)
    raise UserError(f"DATA '{path}' must be {SUPPORTED_FORMATS}")
