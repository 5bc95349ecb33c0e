"""Images into files: grids, arrays, archives, folders."""

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
from growgan.report.files import replacing

Images = NDArray[np.uint8]
CHANNELS = (1, 3, 4)
CHOICES = "FILE.png, FILE.npz, FILE.zip or a folder"


def grid(images: Images, columns: int | None = None) -> Images:
    """Return images side by side, row by row, without gaps; missing cells are 0.

    Args:
        images: uint8 [N, C, H, W].
        columns: images a row; the least square that holds all if None.

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


def to_picture(image: Images) -> Image.Image:
    """Return a PIL image of uint8 [H, W, C].

    Raises:
        UserError: C is not 1, 3 or 4.
    """
    channels = image.shape[2]
    if channels not in CHANNELS:
        raise UserError(
            f"images have {channels} channels and a PNG file holds 1, 3 or 4; write FILE.npz"
        )
    return Image.fromarray(image[:, :, 0] if channels == 1 else image)


def save_sheet(images: Images, path: str | Path, columns: int | None = None) -> Path:
    """Write images uint8 [N, C, H, W] as one PNG grid (:func:`grid`), atomically; return its path.

    Raises:
        UserError: C is not 1, 3 or 4.
        OSError: the file cannot be written.
    """
    return _save_png(to_picture(grid(images, columns)), Path(path))


def contact_sheet(rows: Sequence[Images], path: str | Path) -> Path:
    """Write one PNG with a row for each array uint8 [N, C, H, W]; sizes and N may differ.

    Smaller images are enlarged by repeating pixels (nearest neighbour) to the largest height and
    width of all, so that rows line up; all rows have the same C.

    Raises:
        UserError: C is not 1, 3 or 4.
        ValueError: there are no rows.
        OSError: the file cannot be written.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    height = max(row.shape[2] for row in rows)
    width = max(row.shape[3] for row in rows)
    columns = max(len(row) for row in rows)
    lines = [grid(_enlarge(row, height, width), columns) for row in rows if len(row)]
    return _save_png(to_picture(np.concatenate(lines, axis=0)), Path(path))


def write_images(
    images: Images,
    labels: NDArray[np.int64] | None,
    out: str | Path,
    columns: int | None = None,
) -> Path:
    """Write images as the kind of thing that ``out`` names, atomically; return its path.

    ``FILE.png`` is a sheet; ``FILE.npz`` holds ``images`` uint8 [N, H, W, C] and ``labels`` int64
    [N], -1 for none; ``FILE.zip`` and a folder hold a PNG an image, in a folder a label if there
    are labels, so that they can be read back as a labelled dataset.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N], -1 for none, or None.
        out: where to write; an existing file is replaced, an existing folder must be empty.
        columns: of a sheet.

    Raises:
        UserError: ``out`` has another ending, is a folder with something in it, or cannot be
            written; or the images have a number of channels that PNG lacks.
    """
    path = Path(out)
    kind = path.suffix.lower()
    if path.is_dir() or str(out).endswith(("/", os.sep)):
        kind = ""
    if kind not in ("", ".png", ".npz", ".zip"):
        raise UserError(f"--out '{out}' ends in '{path.suffix}'; it must be {CHOICES}")
    if kind == "" and path.is_dir() and any(path.iterdir()):
        raise UserError(f"--out '{out}' is a folder that is not empty; name a new one")
    try:
        if kind == ".png":
            return save_sheet(images, path, columns)
        with replacing(path, folder=kind == "") as part:
            if kind == ".npz":
                _write_npz(images, labels, part)
            elif kind == ".zip":
                _write_zip(images, labels, part)
            else:
                _write_folder(images, labels, part)
        return path
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written: {error.strerror or error}") from error


def _write_npz(images: Images, labels: NDArray[np.int64] | None, path: Path) -> None:
    given = np.full(len(images), -1) if labels is None else labels
    pixels = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    np.savez_compressed(path, images=pixels, labels=np.asarray(given, np.int64))


def _write_zip(images: Images, labels: NDArray[np.int64] | None, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in _files(images, labels):
            # A constant date, so that equal images give equal archives.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def _write_folder(images: Images, labels: NDArray[np.int64] | None, path: Path) -> None:
    for name, data in _files(images, labels):
        target = path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)


def _files(images: Images, labels: NDArray[np.int64] | None) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the PNG bytes of each image."""
    digits = max(5, len(str(len(images))))
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        to_picture(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
        folder = "" if labels is None or labels[index] < 0 else f"{int(labels[index])}/"
        yield f"{folder}{index:0{digits}d}.png", buffer.getvalue()


def _save_png(picture: Image.Image, path: Path) -> Path:
    with replacing(path) as part:
        picture.save(part, "PNG")
    return path


def _enlarge(images: Images, height: int, width: int) -> Images:
    """Return images at height x width, each pixel repeated (nearest neighbour)."""
    rows = np.arange(height) * images.shape[2] // height
    columns = np.arange(width) * images.shape[3] // width
    return images[:, :, rows][:, :, :, columns]
