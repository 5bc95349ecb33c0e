"""How an image of any size and kind becomes one of the set: uint8 [C, H, W]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

from growgan.data.decode import Pixels
from growgan.errors import UserError, unknown

Size = tuple[int, int]  # (height, width)

MAX_SIDE: Final = 8192


@dataclass(frozen=True)
class Survey:
    """How many images have which size (height, width) and which number of channels."""

    sizes: Counter[Size] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Plan:
    """What every image becomes: its size, channels (1, 3, 4) and the way to fit it."""

    resolution: Size
    channels: int
    fit: str


def parse_resolution(text: str | int | Size | None) -> Size | None:
    """Read ``32``, ``"32"`` or ``"48x64"`` (height x width) as (height, width).

    Raises UserError for anything else, and for sides outside 1..8192.
    """
    if text is None:
        return None
    parts = text if isinstance(text, tuple) else tuple(str(text).lower().split("x"))
    try:
        sides = tuple(int(part) for part in parts)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(1 <= side <= MAX_SIDE for side in sides):
        raise UserError(
            f"resolution '{text}' must be a side or HEIGHTxWIDTH, each 1 to {MAX_SIDE}, like 32"
        )
    return (sides[0], sides[-1])


def make_plan(
    survey: Survey, resolution: Size | None, channels: int | None, fit: str = "auto"
) -> Plan:
    """Settle what was left open from what the source has; raises UserError for mixed sizes."""
    if resolution is None:
        resolution = _own_size(survey)
    if channels is None:
        kinds = list(survey.channels)
        channels = kinds[0] if len(kinds) == 1 else 3
    if fit == "auto":
        near = bool(survey.sizes) and all(_little_smaller(s, resolution) for s in survey.sizes)
        fit = "border" if near else "crop"
    return Plan(resolution, channels, fit)


def check_choices(channels: int | None, fit: str) -> None:
    """Raise UserError unless ``channels`` is 1, 3, 4 or None and ``fit`` is known."""
    if channels not in (None, 1, 3, 4):
        raise UserError(f"channels must be 1, 3 or 4, but got {channels}")
    if fit != "auto" and fit not in FITS:
        raise unknown("fit", fit, ["auto", *FITS])


def _own_size(survey: Survey) -> Size:
    sizes = survey.sizes
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise UserError("no image could be read, so there is no resolution to take")
    (height, width), count = sizes.most_common(1)[0]
    raise UserError(
        f"the images have {len(sizes):,} sizes (commonest: {height}x{width}, {count:,} of "
        f"{sizes.total():,}); choose one with --resolution"
    )


def _little_smaller(size: Size, target: Size) -> bool:
    return all(0.75 * t < s <= t for s, t in zip(size, target, strict=True))


def prepare(pixels: Pixels, plan: Plan) -> Pixels:
    """Bring decoded pixels [H, W, C] to the plan's channels and size: uint8 [C, H, W]."""
    converted = convert(pixels, plan.channels)
    if converted.shape[:2] != plan.resolution:
        converted = FITS[plan.fit](converted, plan.resolution)
    return np.moveaxis(converted, 2, 0)


def convert(pixels: Pixels, channels: int) -> Pixels:
    """Convert between gray, RGB and RGBA; alpha that goes is composited over white."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    image = as_image(pixels)
    if have == 4:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return as_pixels(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))


def as_image(pixels: Pixels) -> Image.Image:
    """Wrap uint8 [H, W, C] as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def as_pixels(image: Image.Image) -> Pixels:
    """Return a Pillow image of mode L, RGB or RGBA as uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def crop(pixels: Pixels, size: Size) -> Pixels:
    """Scale until the image just covers ``size``, and cut the middle out."""
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    top, left = (height - size[0] / scale) / 2, (width - size[1] / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(width - left, width), min(height - top, height))
    return as_pixels(as_image(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, box))


def stretch(pixels: Pixels, size: Size) -> Pixels:
    """Scale each side on its own."""
    return as_pixels(as_image(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def pad(pixels: Pixels, size: Size) -> Pixels:
    """Scale until the image just fits into ``size``, and fill the rest with 0."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    return border(stretch(pixels, inner), size)


def border(pixels: Pixels, size: Size) -> Pixels:
    """Centre the image unscaled on a ground of 0; one that is too big is first scaled to fit."""
    height, width, channels = pixels.shape
    if height > size[0] or width > size[1]:
        return pad(pixels, size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.zeros((*size, channels), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas


FITS: Final[dict[str, Callable[[Pixels, Size], Pixels]]] = {
    "border": border,
    "crop": crop,
    "pad": pad,
    "stretch": stretch,
}
