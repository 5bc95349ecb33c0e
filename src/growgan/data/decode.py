"""From an image file's bytes to uint8 pixels [H, W, C], C = 1, 3 or 4."""

from __future__ import annotations

import io
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]

EXTENSIONS: Final = frozenset(
    ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif "
    ".tiff .webp".split()
)
# Formats that run other programs (EPS, through Ghostscript) or fetch more files are left out.
FORMATS: Final = "PNG JPEG WEBP BMP DIB GIF TIFF PPM TGA JPEG2000 AVIF".split()
MAX_PIXELS: Final = 89_478_485  # Pillow's own guard: a gigabyte at 3 x 32 bit
MAX_BYTES: Final = 1 << 29  # of one encoded image


class BrokenImage(Exception):
    """An image that cannot be used; the text says why in a few words."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(data: bytes) -> Image.Image:
    """Open an image's header; raises BrokenImage for what no safe reader knows, or is too big."""
    if not data:
        raise BrokenImage("empty file")
    if len(data) > MAX_BYTES:
        raise BrokenImage(f"more than {MAX_BYTES >> 20} MiB")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise BrokenImage("not an image") from error
    except Exception as error:  # Pillow's readers raise whatever a bad file makes them raise
        raise BrokenImage(_reason(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise BrokenImage(f"{image.height}x{image.width} is more than {MAX_PIXELS:,} pixels")
    if not image.width * image.height:
        raise BrokenImage("no pixels")
    return image


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def channels_of(image: Image.Image) -> int:
    """Return how many channels an image's pixels have: 1 (gray), 3 (RGB) or 4 (with alpha)."""
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return 1
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return 4
    return 4 if image.mode == "P" and "transparency" in image.info else 3


def read_header(data: bytes) -> tuple[int, int, int]:
    """Return (height, width, channels) without decoding, upright as EXIF says."""
    image = open_image(data)
    try:
        # Pillow decodes a whole PNG to look for EXIF behind the pixels, where hardly any has it.
        has_exif = image.format != "PNG" or "exif" in image.info
        turned = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise BrokenImage(_reason(error)) from error
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    return height, width, channels_of(image)


def decode(data: bytes, target: tuple[int, int] | None = None) -> Pixels:
    """Decode an image, upright as EXIF says: uint8 [H, W, C], C as :func:`channels_of` says.

    ``target`` (H, W) lets a JPEG be decoded at a half, quarter or eighth of its size, never
    below twice the target: many times faster for photographs, and antialiased by the DCT.
    Raises BrokenImage.
    """
    image = open_image(data)
    try:
        if target is not None and image.format == "JPEG":
            side = 2 * max(target)
            image.draft(None, (side, side))
        channels, kind = channels_of(image), image.format or ""
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image, channels, kind)
    except BrokenImage:
        raise
    except Exception as error:
        raise BrokenImage(_reason(error)) from error


def _pixels(image: Image.Image, channels: int, kind: str) -> Pixels:
    if image.mode.startswith("I;16"):
        return sixteen_to_eight(np.asarray(image))[..., None]
    if image.mode == "I" and kind in ("PNG", "PPM"):  # 16 bits, held in 32
        return sixteen_to_eight(np.asarray(image))[..., None]
    if image.mode in ("I", "F"):
        return to_uint8(np.asarray(image))[..., None]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def sixteen_to_eight(values: NDArray[np.generic]) -> Pixels:
    """Scale 0..65535 to 0..255, rounded to the nearest: 257 = 65535 / 255."""
    wide = np.clip(values.astype(np.int64), 0, 65535)
    return ((wide + 128) // 257).astype(np.uint8)


def to_uint8(values: NDArray[np.generic]) -> Pixels:
    """Bring numbers of any kind to 0..255, by the range that they all lie in.

    Integers: 0..255 as they are, else 0..65535 as 16 bits. Floats: 0..1, -1..1, or 0..255.
    Raises BrokenImage for other ranges and for values that are not finite.
    """
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if values.dtype.kind not in "iuf":
        raise BrokenImage(f"values of type {values.dtype} are not pixels")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        raise BrokenImage("values that are not finite")
    if values.dtype.kind == "f" and low >= -1 and high <= 1:
        unit = values.astype(np.float64)
        unit = unit if low >= 0 else (unit + 1) / 2
        return np.rint(unit * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(values.astype(np.float32)).astype(np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return sixteen_to_eight(values)
    raise BrokenImage(f"values from {low:g} to {high:g} are neither 8 nor 16 bits, nor -1..1")
