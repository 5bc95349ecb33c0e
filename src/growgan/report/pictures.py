"""Sample sheets as pictures inside the page: cropped, made small enough, base64."""

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

from growgan.report.run import CandidateRecord

T = TypeVar("T")
URI = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
LARGE = 20_000  # characters of a picture that is worth making smaller
# Longest side and quality (WebP) of the pictures of a page that is too long, in this order.
STEPS = ((1024, 90), (1024, 75), (768, 70), (512, 70), (384, 60), (256, 50), (128, 40), (64, 30))


def sample_picture(candidate: CandidateRecord, cells: int | None) -> Image.Image | None:
    """Return the upper left ``cells`` x ``cells`` samples of a candidate's sheet (None: all).

    The same cells hold the same latents in every candidate. Returns None where there is no sheet
    that can be read.
    """
    if candidate.samples is None:
        return None
    height, width = candidate.resolution
    try:
        with Image.open(candidate.samples) as sheet:
            if cells is None:
                return sheet.copy()
            return sheet.crop(
                (0, 0, min(cells * width, sheet.width), min(cells * height, sheet.height))
            )
    except (OSError, ValueError):
        return None


def data_uri(picture: Image.Image, limit: int | None = None, *, quick: bool = False) -> str:
    """Return a PNG data URI, at most ``limit`` pixels on its longer side.

    A ``quick`` one is not made as small as it could be.
    """
    longest = max(picture.size)
    if limit is not None and longest > limit:
        width, height = (max(1, round(side * limit / longest)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **({"compress_level": 1} if quick else {"optimize": True}))
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def fitted(page: str, most: int) -> str:
    """Return a page whose pictures are as much coarser as it takes to be ``most`` bytes, if any.

    Those of a page that is short enough stay as they are, PNG without loss.
    """
    found = page
    for limit, quality in STEPS:
        if len(found.encode()) <= most:
            break
        found = URI.sub(partial(_coarser, limit=limit, quality=quality), page)
    return found


def _coarser(uri: re.Match[str], *, limit: int, quality: int) -> str:
    if len(uri[0]) < LARGE:
        return uri[0]
    with Image.open(io.BytesIO(base64.b64decode(uri[1]))) as found:
        image = found.convert("RGBA" if found.mode in ("LA", "RGBA", "P") else "RGB")
    image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture(path: Path, limit: int, alt: str) -> str:
    """Return an ``<img>`` of a file, "" where it cannot be read."""
    try:
        with Image.open(path) as found:
            image = found.copy()
    except (OSError, ValueError):
        return ""
    return _tag(image, limit, alt)


def _tag(image: Image.Image, limit: int, alt: str) -> str:
    width, height = image.size
    return (
        f'<img src="{data_uri(image, limit)}" width="{width}" height="{height}"'
        f' alt="{escape(alt)}">'
    )


def img(candidate: CandidateRecord, cells: int | None, limit: int, alt: str) -> str:
    """Return an ``<img>`` of samples, or a placeholder where there are none."""
    shown = sample_picture(candidate, cells)
    if shown is None:
        return '<div class="blank">no samples</div>'
    return _tag(shown, limit, alt)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most ``most`` items, evenly chosen, with the first and the last.

    >>> evenly([0, 1, 2, 3, 4, 5, 6], 3), evenly("ab", 5), evenly("abc", 1)
    ([0, 3, 6], ['a', 'b'], ['c'])
    """
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
