"""Writes images into files: grids, arrays, archives, folders."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from growgan.errors import UserError
from growgan.files import atomic_write

ImageBatch = NDArray[np.uint8]
PNG_CHANNELS = (1, 3, 4)
OUTPUT_FORMATS = "FILE.png, FILE.npz, FILE.zip or a folder"


def make_grid(images: ImageBatch, columns: int | None = None) -> ImageBatch:
    """Return images side by side, row by row, without gaps. Empty cells are 0.

    Args:
        images: uint8 [N, C, H, W].
        columns: Images per row; None for the smallest square grid that holds them all.

    Returns:
        uint8 [rows * H, columns * W, C].
    """
    n, c, h, w = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(n)))
    rows = max(1, math.ceil(n / columns))
    cells = np.zeros((rows * columns, c, h, w), np.uint8)
    cells[:n] = images
    cells = cells.reshape(rows, columns, c, h, w).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(cells.reshape(rows * h, columns * w, c))


def to_pil_image(image: ImageBatch) -> Image.Image:
    """Return a PIL image of uint8 [H, W, C].

    Raises:
        UserError: C is not 1, 3 or 4.
    """
    channels = image.shape[2]
    if channels not in PNG_CHANNELS:
        raise UserError(
            f"images have {channels} channels, but a PNG file holds 1, 3 or 4; write FILE.npz"
        )
    return Image.fromarray(image[:, :, 0] if channels == 1 else image)


def save_image_grid(images: ImageBatch, path: str | Path, columns: int | None = None) -> Path:
    """Write images uint8 [N, C, H, W] as one PNG grid, atomically; return its path.

    Raises:
        UserError: C is not 1, 3 or 4.
        OSError: The file cannot be written.
    """
    return _save_png(to_pil_image(make_grid(images, columns)), Path(path))


def save_contact_sheet(rows: Sequence[ImageBatch], path: str | Path) -> Path:
    """Write one PNG with a row for each array uint8 [N, C, H, W]; return its path.

    Rows may differ in N, H and W but not in C. Smaller images are enlarged to the largest height
    and width by nearest-neighbor interpolation.

    Raises:
        UserError: C is not 1, 3 or 4.
        ValueError: There are no rows.
        OSError: The file cannot be written.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    height = max(row.shape[2] for row in rows)
    width = max(row.shape[3] for row in rows)
    columns = max(len(row) for row in rows)
    grids = [make_grid(_resize_nearest(row, height, width), columns) for row in rows if len(row)]
    return _save_png(to_pil_image(np.concatenate(grids, axis=0)), Path(path))


def write_images(
    images: ImageBatch,
    labels: NDArray[np.int64] | None,
    out: str | Path,
    columns: int | None = None,
) -> Path:
    """Write images in the format that ``out`` names, atomically; return its path.

    ``FILE.png`` is a grid. ``FILE.npz`` holds ``images`` uint8 [N, H, W, C] and ``labels`` int64
    [N], -1 for none. ``FILE.zip`` and a folder hold a PNG per image, in a folder per label if there
    are labels, so they can be loaded as a labeled dataset.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], -1 for none, or None.
        out: Where to write; an existing file is replaced, an existing folder must be empty.
        columns: Images per row of a grid; None for a square grid.

    Raises:
        UserError: ``out`` has another extension, is a folder that is not empty, or cannot be
            written; or PNG does not support the number of channels.
    """
    path = Path(out)
    is_directory = not path.suffix or path.is_dir() or str(out).endswith(("/", os.sep))
    extension = "" if is_directory else path.suffix.lower()
    if extension not in ("", ".png", ".npz", ".zip"):
        raise UserError(f"--out '{out}' ends in '{path.suffix}'; it must be {OUTPUT_FORMATS}")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"--out '{out}' is a folder that is not empty; choose a new one")
    try:
        if extension == ".png":
            return save_image_grid(images, path, columns)
        with atomic_write(path, is_directory=is_directory) as part:
            if extension == ".npz":
                _write_npz(images, labels, part)
            elif extension == ".zip":
                _write_zip(images, labels, part)
            else:
                _write_folder(images, labels, part)
        return path
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written: {error.strerror or error}") from error


def _write_npz(images: ImageBatch, labels: NDArray[np.int64] | None, path: Path) -> None:
    labels = np.full(len(images), -1) if labels is None else labels
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    np.savez_compressed(path, images=pixels, labels=np.asarray(labels, np.int64))


def _write_zip(images: ImageBatch, labels: NDArray[np.int64] | None, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _encode_pngs(images, labels):
            # With a constant date, equal images give equal archives.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def _write_folder(images: ImageBatch, labels: NDArray[np.int64] | None, path: Path) -> None:
    for name, data in _encode_pngs(images, labels):
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)


def _encode_pngs(
    images: ImageBatch, labels: NDArray[np.int64] | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the PNG bytes of each image."""
    digits = max(5, len(str(len(images))))
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        to_pil_image(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
        folder = "" if labels is None or labels[index] < 0 else f"{int(labels[index])}/"
        yield f"{folder}{index:0{digits}d}.png", buffer.getvalue()


def _save_png(image: Image.Image, path: Path) -> Path:
    with atomic_write(path) as part:
        image.save(part, "PNG")
    return path


def _resize_nearest(images: ImageBatch, height: int, width: int) -> ImageBatch:
    """Return images resized to height x width by nearest-neighbor interpolation."""
    rows = np.arange(height) * images.shape[2] // height
    columns = np.arange(width) * images.shape[3] // width
    return images[:, :, rows][:, :, :, columns]
