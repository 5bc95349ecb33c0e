"""Characters rendered from the fonts that matplotlib brings: a data set that needs no download.

Each image shows one letter or digit in a random font, weight, slant, turn, size, place and
colours, labelled by the character. Nothing is stored but a table of random numbers, so every
resolution shows the same images, and so do both styles: an image has the same character, weight,
slant, size and place in either, in fonts of its own. Where ink is can be had as a mask.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from growgan.data.decode import Pixels
from growgan.data.files import combine
from growgan.data.prepare import Size, Survey
from growgan.data.sources import Labels, parse_options
from growgan.errors import UserError, require, unknown

Floats = NDArray[np.float64]
Box = tuple[float, float]  # width and height in units of the font's size

VERSION: Final = 1
COUNT: Final = 20_000
CHARACTERS: Final = string.ascii_uppercase + string.digits
NATIVE: Final[Size] = (32, 32)
CONTRAST: Final = 96.0  # least difference of luma between ink and ground, of 255
LUMA: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
NUMBERS: Final = 16  # random numbers an image
FONTS: Final = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSansMono "
    "DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic "
    "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta cmr10 cmb10 cmss10 cmtt10"
).split()
CELLS: Final = (  # each of one weight and slant: the fonts of either style
    {
        "serif": ("DejaVuSerif", "STIXGeneral", "cmr10"),
        "sans": ("DejaVuSans", "DejaVuSansMono", "cmss10"),
    },
    {
        "serif": ("DejaVuSerif-Bold", "STIXGeneralBol", "cmb10"),
        "sans": ("DejaVuSans-Bold", "DejaVuSansMono-Bold"),
    },
    {"serif": ("DejaVuSerif-Italic", "STIXGeneralItalic"), "sans": ("DejaVuSans-Oblique",)},
    {
        "serif": ("DejaVuSerif-BoldItalic", "STIXGeneralBolIta"),
        "sans": ("DejaVuSans-BoldOblique",),
    },
)
STYLES: Final = ("all", "serif", "sans")
STYLED: Final = 2  # version of how styles share what they do not differ in


@cache
def _folder() -> Path:
    require("matplotlib", "glyphs", "matplotlib")
    spec = util.find_spec("matplotlib")  # its folder is wanted, not its slow import
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_folder() / f"{name}.ttf"), size)


@cache
def _extent(font: str, character: str) -> tuple[float, float, float, float]:
    """Return the middle (x, y), width and height of a character, in units of the font's size."""
    left, top, right, bottom = (side / 128 for side in _font(font, 128).getbbox(character))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


class Glyphs:
    """``count`` images of ``characters``, gray or in colour; a pure function of the seed."""

    ignored = 0
    location = "rendered"

    def __init__(
        self,
        count: int,
        characters: str,
        colour: bool,
        seed: int,
        style: str = "all",
        mask: bool = False,
    ) -> None:
        self.count, self.characters, self.colour, self.seed = count, characters, colour, seed
        self.style, self.mask = style, mask
        said = ["rgb"] * colour + ["mask"] * mask + [f"style={style}"] * (style != "all")
        self.name = ":".join(["glyphs", *([",".join(said)] if said else [])])

    def __getstate__(self) -> dict[str, Any]:
        drawn = {"labels", "numbers", "paints"}
        return {key: value for key, value in self.__dict__.items() if key not in drawn}

    def __len__(self) -> int:
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.characters)

    @cached_property
    def labels(self) -> Labels:
        """Every character equally often (to within one), in random order."""
        order = np.random.default_rng((self.seed, 0)).permutation(self.count)
        return (order % len(self.characters)).astype(np.int64)

    @cached_property
    def numbers(self) -> Floats:
        """Uniform random numbers [N, 16], a row an image."""
        return np.random.default_rng((self.seed, 1)).random((self.count, NUMBERS))

    @cached_property
    def paints(self) -> Floats:
        """Ground and ink of each image in 0..255: [N, 2, 1] gray or [N, 2, 3] RGB."""
        lumas = pick_lumas(self.numbers[:, 8:11])
        if not self.colour:
            return lumas[..., None]
        return tint(lumas, np.random.default_rng((self.seed, 2)).random((self.count, 2, 3)))

    def content(self) -> str:
        made_by = [metadata.version(package) for package in ("pillow", "matplotlib")]
        more: list[Any] = [] if self.style == "all" else [self.style, STYLED]
        more += ["mask"] * self.mask
        return combine(
            "glyphs", VERSION, made_by, self.count, self.characters, self.colour, self.seed, *more
        )

    def item(self, index: int) -> str:
        return f"#{index}"

    def survey(self) -> Survey:
        kind = 3 if self.colour else 1
        return Survey(Counter({NATIVE: self.count}), Counter({kind: self.count}))

    def pixels(self, index: int, target: Size | None) -> Pixels:
        """Render one image at the target's size: uint8 [H, W, C], C = 1 or 3."""
        character = self.characters[self.labels[index]]
        fonts, box = fonts_of(self.style, character, self.numbers[index, 0])
        ink = draw_mask(character, self.numbers[index], target or NATIVE, fonts, box)[..., None]
        if self.mask:
            return (ink >= 0.5).astype(np.uint8) * np.uint8(255)
        ground, colour = self.paints[index]
        return paint(ink, ground, colour)


def fonts_of(style: str, character: str, u: float) -> tuple[Sequence[str], Box | None]:
    """Return the fonts that a uniform number chooses from, and the box that decides the size.

    Of a style there is one font, of the weight and slant that the number gives every style, and the
    box holds the character in the fonts of both. Otherwise there are all fonts, each with its own.
    """
    if style == "all":
        return FONTS, None
    place, rest = divmod(u * len(CELLS), 1)
    chosen = {name: each[int(rest * len(each))] for name, each in CELLS[int(place)].items()}
    sizes = [_extent(font, character)[2:] for font in chosen.values()]
    return (chosen[style],), (max(w for w, _ in sizes), max(h for _, h in sizes))


def paint(ink: NDArray[np.float32], ground: Floats, colour: Floats) -> Pixels:
    """Blend ground and ink colours [C] by coverage [H, W, 1]: uint8 [H, W, C]."""
    return np.rint(ground + ink * (colour - ground)).astype(np.uint8)


def pick_lumas(numbers: Floats) -> Floats:
    """Turn uniform [N, 3] into lumas [N, 2] of ground and ink, at least CONTRAST apart."""
    ground = numbers[:, 0] * 255
    above, below = 255 - ground, ground
    up = (below < CONTRAST) | ((above >= CONTRAST) & (numbers[:, 1] < 0.5))
    room = np.where(up, above, below)
    step = CONTRAST + numbers[:, 2] * (room - CONTRAST)
    return np.stack([ground, np.where(up, ground + step, ground - step)], axis=1)


def tint(lumas: Floats, colours: Floats) -> Floats:
    """Give lumas [N, 2] the hues of colours [N, 2, 3] in 0..1: RGB in 0..255 of just that luma.

    The line from gray towards the colour keeps the luma; it ends where the cube does.
    """
    gray = lumas[..., None]
    away = (colours - (colours @ LUMA)[..., None]) * 255
    room = np.where(away > 0, 255 - gray, gray)
    reach = room / np.maximum(np.abs(away), 1e-9)
    tinted: Floats = gray + np.minimum(reach.min(axis=-1, keepdims=True), 1) * away
    return tinted


@dataclass(frozen=True)
class Pose:
    """How one character is drawn: sizes in pixels, ``matrix`` acts on (x, y)."""

    points: int  # of the font
    stroke: float  # added on every side
    matrix: Floats
    back: Floats  # its inverse
    moved: Floats  # where the middle goes


def pose(u: Floats, box: Box, size: Size) -> Pose:
    """Choose a pose by uniform numbers such that a character of this box stays in the image."""
    slant, turn, weight = -0.2 + 0.5 * u[1], np.deg2rad(-8 + 16 * u[2]), 0.03 * u[3]
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]])
    back = np.array([[1, slant], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    reach = np.abs(matrix) @ (np.array(box) + 2 * weight)  # of the box once transformed
    room = np.array([size[1], size[0]], dtype=np.float64)
    points = max(4, int((0.6 + 0.3 * u[4]) * np.min(room / reach)))
    free = np.maximum(room - reach * points, 0)
    moved = room / 2 + (u[5:7] - 0.5) * free * 0.8
    return Pose(points, weight * points, matrix, back, moved)


def draw_mask(
    character: str, u: Floats, size: Size, fonts: Sequence[str] = FONTS, box: Box | None = None
) -> NDArray[np.float32]:
    """Draw one character by its uniform numbers: ink coverage [H, W] in 0..1.

    ``box`` decides its size and place, None the character's own in its font. It is drawn upright
    around the middle, then slanted, turned and moved in one step. Small images are drawn larger and
    averaged down.
    """
    font = fonts[int(u[0] * len(fonts))]
    zoom = max(1, min(4, 64 // min(size)))
    height, width = size[0] * zoom, size[1] * zoom
    x, y, *own = _extent(font, character)
    how = pose(u, box or (own[0], own[1]), (height, width))
    canvas = Image.new("L", (width, height))
    middle = np.array([width / 2, height / 2])
    corner = (middle[0] - x * how.points, middle[1] - y * how.points)
    ImageDraw.Draw(canvas).text(
        corner, character, 255, font=_font(font, how.points), stroke_width=how.stroke
    )
    back = how.back  # Pillow asks where each output pixel comes from
    shift = middle - back @ how.moved
    data = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    smooth = Image.Resampling.BILINEAR if zoom > 1 else Image.Resampling.BICUBIC
    moved = canvas.transform((width, height), Image.Transform.AFFINE, data, smooth)
    small = moved.reduce(zoom) if zoom > 1 else moved
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def open_glyphs(options: str, seed: int, channels: int | None) -> Glyphs:
    """Read ``[rgb|gray|captions|mask][,count=20000][,chars=ABC][,style=serif]``.

    3 or 4 channels mean colour. A mask is white where half of a pixel or more is ink.
    Raises UserError for other options and for values that make no set.
    """
    from growgan.data.captioned import CaptionedGlyphs

    kinds = ("rgb", "gray", "captions", "mask")
    valid = {**dict.fromkeys(kinds, False), "count": True, "chars": True, "style": True}
    chosen = parse_options(options, "glyphs", valid)
    if len(named := [kind for kind in kinds if kind in chosen]) > 1:
        raise UserError(f"glyphs can be {named[0]} or {named[1]}, not both")
    colour = "rgb" in chosen if channels is None else channels > 1
    text = chosen.get("count", str(COUNT))
    if not text.isdecimal() or not 1 <= int(text) <= 10_000_000:
        raise UserError(f"count of glyphs must be 1 to 10,000,000, but got '{text}'")
    characters = "".join(dict.fromkeys(chosen.get("chars", CHARACTERS)))
    if not (characters.isascii() and characters.isalnum()):
        raise UserError(f"chars of glyphs must be ASCII letters and digits, but got '{characters}'")
    if (style := chosen.get("style", "all")) not in STYLES:
        raise unknown("style of glyphs", style, STYLES)
    if "captions" in chosen:
        if style != "all":
            raise UserError("captions of glyphs say their style themselves: leave style away")
        return CaptionedGlyphs(int(text), characters, seed)
    if mask := "mask" in chosen:
        colour = False
    return Glyphs(int(text), characters, colour, seed, style, mask)
