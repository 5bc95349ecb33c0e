"""Decode image files to uint8 [H, W, C] with C = 1, 3 or 4."""

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
# Formats that start other programs (EPS starts Ghostscript) or load other files are left out.
PIL_FORMATS: Final = "PNG JPEG WEBP BMP DIB GIF TIFF PPM TGA JPEG2000 AVIF".split()
MAX_IMAGE_PIXELS: Final = 89_478_485  # the limit of Pillow
MAX_IMAGE_BYTES: Final = 1 << 29  # largest encoded image


class BrokenImageError(Exception):
    """An image cannot be used; the message says why in a few words."""


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in PIL_FORMATS if name in Image.OPEN)


def open_image(data: bytes) -> Image.Image:
    """Open an image and read its header.

    Raises:
        BrokenImageError: The format is unknown or unsafe, or the image is too large.
    """
    if not data:
        raise BrokenImageError("empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise BrokenImageError(f"more than {MAX_IMAGE_BYTES >> 20} MiB")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise BrokenImageError("not an image") from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise BrokenImageError(_short_reason(error)) from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise BrokenImageError(
            f"{image.height}x{image.width} is more than {MAX_IMAGE_PIXELS:,} pixels"
        )
    if not image.width * image.height:
        raise BrokenImageError("no pixels")
    return image


def _short_reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def num_channels(image: Image.Image) -> int:
    """Return the number of channels: 1 (gray), 3 (RGB) or 4 (with alpha)."""
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return 1
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return 4
    return 4 if image.mode == "P" and "transparency" in image.info else 3


def read_header(data: bytes) -> tuple[int, int, int]:
    """Return (height, width, channels) after EXIF rotation, without decoding the image."""
    image = open_image(data)
    try:
        # To look for EXIF behind the pixels, Pillow would decode the whole PNG. Few have it there.
        has_exif = image.format != "PNG" or "exif" in image.info
        is_rotated = has_exif and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise BrokenImageError(_short_reason(error)) from error
    height, width = (image.width, image.height) if is_rotated else (image.height, image.width)
    return height, width, num_channels(image)


def decode(data: bytes, target: tuple[int, int] | None = None) -> Pixels:
    """Decode an image to uint8 [H, W, C], with EXIF rotation applied.

    With ``target`` (height, width), a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but never
    below twice the target. That is many times faster for photos, and the DCT antialiases.

    Raises:
        BrokenImageError: The image cannot be decoded.
    """
    image = open_image(data)
    try:
        if target is not None and image.format == "JPEG":
            side = 2 * max(target)
            image.draft(None, (side, side))
        channels, kind = num_channels(image), image.format or ""
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image, channels, kind)
    except BrokenImageError:
        raise
    except Exception as error:
        raise BrokenImageError(_short_reason(error)) from error


def _pixels(image: Image.Image, channels: int, kind: str) -> Pixels:
    if image.mode.startswith("I;16"):
        return uint16_to_uint8(np.asarray(image))[..., None]
    if image.mode == "I" and kind in ("PNG", "PPM"):  # 16 bits stored in 32
        return uint16_to_uint8(np.asarray(image))[..., None]
    if image.mode in ("I", "F"):
        return to_uint8(np.asarray(image))[..., None]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def uint16_to_uint8(values: NDArray[np.generic]) -> Pixels:
    """Scale 0..65535 to 0..255 and round; 257 = 65535 / 255."""
    clipped = np.clip(values.astype(np.int64), 0, 65535)
    return ((clipped + 128) // 257).astype(np.uint8)


def to_uint8(values: NDArray[np.generic]) -> Pixels:
    """Convert values of any type to uint8, by the range that contains all of them.

    Integers in 0..255 are kept, and integers in 0..65535 are scaled as 16 bits. Floats are scaled
    from 0..1, -1..1 or 0..255.

    Raises:
        BrokenImageError: The values are in another range or not finite.
    """
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if values.dtype.kind not in "iuf":
        raise BrokenImageError(f"values of type {values.dtype} are not pixels")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        raise BrokenImageError("values that are not finite")
    if values.dtype.kind == "f" and low >= -1 and high <= 1:
        unit = values.astype(np.float64)
        unit = unit if low >= 0 else (unit + 1) / 2
        return np.rint(unit * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(values.astype(np.float32)).astype(np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= 65535:
        return uint16_to_uint8(values)
    raise BrokenImageError(f"values from {low:g} to {high:g} are neither 8 nor 16 bits, nor -1..1")
