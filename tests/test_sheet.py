"""Tests of image files: they hold exactly the given pixels, and a failure leaves no file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from growgan.errors import UserError
from growgan.files import atomic_write
from growgan.report import make_grid, save_contact_sheet, save_image_grid, write_images


def test_grid_puts_images_row_by_row() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 2), np.uint8)
    assert make_grid(images, 2)[:, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 0, 0]]
    assert make_grid(images).shape == (2, 4, 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sheets_hold_the_pixels_exactly(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, channels, 3, 5), np.uint8)
    with Image.open(save_image_grid(images, tmp_path / "new" / "sheet.png", 3)) as picture:
        pixels = np.asarray(picture).reshape(6, 15, channels)
    for k, image in enumerate(images):
        row, column = divmod(k, 3)
        cell = pixels[3 * row : 3 * row + 3, 5 * column : 5 * column + 5]
        assert (cell == image.transpose(1, 2, 0)).all()


def test_contact_sheet_enlarges_small_rows_to_the_largest(tmp_path: Path) -> None:
    small, large = np.uint8([[[[10, 20], [30, 40]]]]), np.full((2, 1, 4, 4), 7, np.uint8)
    with Image.open(save_contact_sheet([small, large], tmp_path / "c.png")) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (8, 8)
    assert pixels[:4, :4].tolist() == [[10, 10, 20, 20]] * 2 + [[30, 30, 40, 40]] * 2
    assert (pixels[4:] == 7).all()


@pytest.mark.parametrize("labels", [None, np.int64([3, 0, 3])])
def test_write_images_in_each_format(tmp_path: Path, labels: NDArray[np.int64] | None) -> None:
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 4, 6), np.uint8)
    pixels = images.transpose(0, 2, 3, 1)
    with np.load(write_images(images, labels, tmp_path / "a.npz")) as arrays:
        assert set(arrays.files) == {"images", "labels"}
        assert arrays["images"].dtype == np.uint8
        assert (arrays["images"] == pixels).all()
        assert arrays["labels"].dtype == np.int64
        assert arrays["labels"].tolist() == ([-1] * 3 if labels is None else [3, 0, 3])
    names = ["00000.png", "00001.png", "00002.png"]
    names = (
        names
        if labels is None
        else [f"{label}/{name}" for label, name in zip("303", names, strict=True)]
    )
    with zipfile.ZipFile(write_images(images, labels, tmp_path / "a.zip")) as archive:
        assert archive.namelist() == names
        opened = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
        assert (np.stack(opened) == pixels).all()
    folder = write_images(images, labels, tmp_path / "folder")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png")) == sorted(names)
    with Image.open(write_images(images, labels, tmp_path / "a.png")) as sheet:
        assert sheet.size == (12, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.png", "a.zip", "folder"]


def test_write_images_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 4, 4), np.uint8)
    with pytest.raises(UserError, match=r"ends in '.jpg'; it must be FILE.png, FILE.npz"):
        write_images(images, None, tmp_path / "a.jpg")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UserError, match="not empty"):
        write_images(images, None, tmp_path / "full")
    with pytest.raises(UserError, match="cannot be written"):
        write_images(images, None, tmp_path / "full" / "x" / "a.npz")
    for out in ("two.png", "two.zip", "two"):
        with pytest.raises(UserError, match=r"2 channels, .* write FILE.npz"):
            write_images(images[:, :2], None, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
