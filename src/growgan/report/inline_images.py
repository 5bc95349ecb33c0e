"""Embeds images into an HTML page as base64 data, cropped and reduced to fit."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TypeVar

from PIL import Image

from growgan.report.run_record import CandidateRecord

T = TypeVar("T")
PNG_DATA_URI_PATTERN = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
MIN_CHARS_TO_RECOMPRESS = 20_000  # shorter images save too little
# (longest side in pixels, WebP quality): tried in this order until the page is small enough.
RECOMPRESSION_STEPS = (
    (1024, 90),
    (1024, 75),
    (768, 70),
    (512, 70),
    (384, 60),
    (256, 50),
    (128, 40),
    (64, 30),
)


def sample_image(candidate: CandidateRecord, cells_per_side: int | None) -> Image.Image | None:
    """Return the upper left part of a candidate's sample grid; None if it cannot be read.

    Args:
        candidate: The candidate. The same cell holds the same latent in every candidate.
        cells_per_side: Rows and columns to return; None returns all.
    """
    if candidate.samples_path is None:
        return None
    height, width = candidate.resolution
    try:
        with Image.open(candidate.samples_path) as grid:
            if cells_per_side is None:
                return grid.copy()
            right = min(cells_per_side * width, grid.width)
            bottom = min(cells_per_side * height, grid.height)
            return grid.crop((0, 0, right, bottom))
    except (OSError, ValueError):
        return None


def png_data_uri(
    image: Image.Image, max_side_pixels: int | None = None, *, fast: bool = False
) -> str:
    """Return an image as a PNG data URI.

    Args:
        image: The image.
        max_side_pixels: Longer side; larger images are reduced. None keeps the size.
        fast: Compress quickly rather than well.
    """
    longest = max(image.size)
    if max_side_pixels is not None and longest > max_side_pixels:
        width, height = (max(1, round(side * max_side_pixels / longest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({"compress_level": 1} if fast else {"optimize": True}))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def shrink_images_to_fit(page: str, max_bytes: int) -> str:
    """Return a page of at most ``max_bytes`` bytes, if smaller images can achieve that.

    If the page is short enough, its images stay lossless PNG.
    """
    result = page
    for max_side_pixels, quality in RECOMPRESSION_STEPS:
        if len(result.encode()) <= max_bytes:
            break
        result = PNG_DATA_URI_PATTERN.sub(
            partial(_recompress, max_side_pixels=max_side_pixels, quality=quality), page
        )
    return result


def _recompress(match: re.Match[str], *, max_side_pixels: int, quality: int) -> str:
    if len(match[0]) < MIN_CHARS_TO_RECOMPRESS:
        return match[0]
    with Image.open(io.BytesIO(base64.b64decode(match[1]))) as png:
        image = png.convert("RGBA" if png.mode in ("LA", "RGBA", "P") else "RGB")
    image.thumbnail((max_side_pixels, max_side_pixels), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def file_img_tag(path: Path, max_side_pixels: int, alt_text: str) -> str:
    """Return an ``<img>`` tag of a file, "" if it cannot be read."""
    try:
        with Image.open(path) as file:
            image = file.copy()
    except (OSError, ValueError):
        return ""
    return _img_tag(image, max_side_pixels, alt_text)


def _img_tag(image: Image.Image, max_side_pixels: int, alt_text: str) -> str:
    width, height = image.size
    return (
        f'<img src="{png_data_uri(image, max_side_pixels)}" width="{width}" height="{height}"'
        f' alt="{escape(alt_text)}">'
    )


def samples_img_tag(
    candidate: CandidateRecord, cells_per_side: int | None, max_side_pixels: int, alt_text: str
) -> str:
    """Return an ``<img>`` tag of samples, or a placeholder if there are none."""
    image = sample_image(candidate, cells_per_side)
    if image is None:
        return '<div class="blank">no samples</div>'
    return _img_tag(image, max_side_pixels, alt_text)


def evenly_spaced(items: Sequence[T], max_items: int) -> list[T]:
    """Return at most ``max_items`` evenly spaced items, with the first and the last.

    >>> evenly_spaced([0, 1, 2, 3, 4, 5, 6], 3), evenly_spaced("ab", 5), evenly_spaced("abc", 1)
    ([0, 3, 6], ['a', 'b'], ['c'])
    """
    if len(items) <= max_items:
        return list(items)
    if max_items == 1:
        return [items[-1]]
    return [items[round(k * (len(items) - 1) / (max_items - 1))] for k in range(max_items)]
