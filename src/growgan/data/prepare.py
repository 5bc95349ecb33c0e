"""Convert decoded images to the resolution and channels of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from PIL import Image

from growgan.data.decode import Pixels
from growgan.errors import UserError, unknown_name_error

Size = tuple[int, int]  # (height, width)

MAX_SIDE_PIXELS: Final = 8192


@dataclass(frozen=True)
class SizeHistogram:
    """Number of images per size (height, width) and per number of channels."""

    sizes: Counter[Size] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class PreprocessPlan:
    """The target of preprocessing: resolution, number of channels (1, 3, 4) and fit method."""

    resolution: Size
    channels: int
    fit: str


def parse_resolution(text: str | int | Size | None) -> Size | None:
    """Parse ``32``, ``"32"`` or ``"48x64"`` (height x width) to (height, width).

    Raises:
        UserError: The text has another form, or a side is not 1 to 8192.
    """
    if text is None:
        return None
    parts = text if isinstance(text, tuple) else tuple(str(text).lower().split("x"))
    try:
        sides = tuple(int(part) for part in parts)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or not all(1 <= side <= MAX_SIDE_PIXELS for side in sides):
        raise UserError(
            f"resolution must be SIDE or HEIGHTxWIDTH, each from 1 to {MAX_SIDE_PIXELS},"
            f" but got '{text}'"
        )
    return (sides[0], sides[-1])


def make_plan(
    histogram: SizeHistogram, resolution: Size | None, channels: int | None, fit: str = "auto"
) -> PreprocessPlan:
    """Complete the plan with the properties of the images.

    Raises:
        UserError: No resolution is given and the images have several sizes.
    """
    if resolution is None:
        resolution = _single_size(histogram)
    if channels is None:
        present = list(histogram.channels)
        channels = present[0] if len(present) == 1 else 3
    if fit == "auto":
        sizes = histogram.sizes
        is_near = bool(sizes) and all(_is_slightly_smaller(size, resolution) for size in sizes)
        fit = "border" if is_near else "crop"
    return PreprocessPlan(resolution, channels, fit)


def validate_preprocessing(channels: int | None, fit: str) -> None:
    """Raise a UserError unless ``channels`` is 1, 3, 4 or None and ``fit`` is known."""
    if channels not in (None, 1, 3, 4):
        raise UserError(f"channels must be 1, 3 or 4, but got {channels}")
    if fit != "auto" and fit not in FIT_METHODS:
        raise unknown_name_error("fit", fit, ["auto", *FIT_METHODS])


def _single_size(histogram: SizeHistogram) -> Size:
    sizes = histogram.sizes
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise UserError("no image could be read, so the resolution is unknown")
    (height, width), count = sizes.most_common(1)[0]
    raise UserError(
        f"the images have {len(sizes):,} sizes (most common: {height}x{width}, {count:,} of "
        f"{sizes.total():,}); choose one with --resolution"
    )


def _is_slightly_smaller(size: Size, target: Size) -> bool:
    return all(0.75 * t < s <= t for s, t in zip(size, target, strict=True))


def preprocess(pixels: Pixels, plan: PreprocessPlan) -> Pixels:
    """Convert decoded pixels [H, W, C] to uint8 [C, H, W], as the plan says."""
    converted = convert_channels(pixels, plan.channels)
    if converted.shape[:2] != plan.resolution:
        converted = FIT_METHODS[plan.fit](converted, plan.resolution)
    return np.moveaxis(converted, 2, 0)


def convert_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert between gray, RGB and RGBA. If alpha is dropped, blend over white."""
    num_channels = pixels.shape[2]
    if num_channels == channels:
        return pixels
    image = to_pil(pixels)
    if num_channels == 4:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return from_pil(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))


def to_pil(pixels: Pixels) -> Image.Image:
    """Convert uint8 [H, W, C] to a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def from_pil(image: Image.Image) -> Pixels:
    """Convert a Pillow image of mode L, RGB or RGBA to uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def crop(pixels: Pixels, size: Size) -> Pixels:
    """Scale the image to cover ``size``, and cut out the center."""
    height, width = pixels.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    top, left = (height - size[0] / scale) / 2, (width - size[1] / scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(width - left, width), min(height - top, height))
    return from_pil(to_pil(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS, box))


def stretch(pixels: Pixels, size: Size) -> Pixels:
    """Scale each side independently."""
    return from_pil(to_pil(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def pad(pixels: Pixels, size: Size) -> Pixels:
    """Scale the image to fit into ``size``, and fill the rest with 0."""
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    return pad_without_scaling(stretch(pixels, inner), size)


def pad_without_scaling(pixels: Pixels, size: Size) -> Pixels:
    """Center the image without scaling, and fill the rest with 0. Scale it down if too large."""
    height, width, channels = pixels.shape
    if height > size[0] or width > size[1]:
        return pad(pixels, size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas = np.zeros((*size, channels), dtype=np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas


FIT_METHODS: Final[dict[str, Callable[[Pixels, Size], Pixels]]] = {
    "border": pad_without_scaling,
    "crop": crop,
    "pad": pad,
    "stretch": stretch,
}
