"""Rendered characters: a dataset that needs no download.

Each image shows one letter or digit in a random font, weight, slant, rotation, size, position and
color, and its label is the character. The fonts come with matplotlib. Only a table of random
numbers is stored, so every resolution shows the same images. The styles "serif" and "sans" show
the same characters in different fonts. Captioned glyphs have named colors, as in "a bold italic
blue Q on yellow", and each caption is a class. The option ``mask`` returns the ink as a mask.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata, util
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from growgan.data.base import Labels, parse_options
from growgan.data.decode import Pixels
from growgan.data.prepare import Size, SizeHistogram
from growgan.errors import UserError, require_extra, unknown_name_error
from growgan.files import hash_json

Floats = NDArray[np.float64]
Box = tuple[float, float]  # width and height in units of the font size

GLYPHS_VERSION: Final = 1
DEFAULT_COUNT: Final = 20_000
CHARACTERS: Final = string.ascii_uppercase + string.digits
NATIVE_RESOLUTION: Final[Size] = (32, 32)
MIN_CONTRAST: Final = 96.0  # smallest luma difference of ink and background, of 255
LUMA: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
NUM_RANDOM_NUMBERS: Final = 16  # per image
FONT_NAMES: Final = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSans-BoldOblique DejaVuSansMono "
    "DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold DejaVuSerif-Italic DejaVuSerif-BoldItalic "
    "STIXGeneral STIXGeneralBol STIXGeneralItalic STIXGeneralBolIta cmr10 cmb10 cmss10 cmtt10"
).split()
FONT_GROUPS: Final = (  # one group per weight and slant, with the fonts of each style
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
STYLE_VERSION: Final = 2  # changes when the way the styles share random numbers changes
COLORS: Final = {
    "black": (16, 16, 16),
    "white": (240, 240, 240),
    "red": (208, 32, 32),
    "green": (32, 144, 48),
    "blue": (40, 64, 208),
    "yellow": (240, 208, 32),
}
MAX_SHADE: Final = 12  # largest random change of a named color, of 255
CAPTION_FONTS: Final = {  # by weight and slant
    ("", ""): ("DejaVuSans", "DejaVuSerif", "STIXGeneral"),
    ("bold", ""): ("DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneralBol"),
    ("", "italic"): ("DejaVuSans-Oblique", "DejaVuSerif-Italic", "STIXGeneralItalic"),
    ("bold", "italic"): ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta"),
}
SLANT_COLUMN, STROKE_COLUMN = 1, 3  # the random numbers that decide slant and stroke width
UPRIGHT_SLANT: Final = 0.4  # no slant in addition to that of the font
ITALIC_SLANT: Final = 0.7  # 9 degrees in addition to that of the font
CAPTION_PATTERN: Final = re.compile(r"an? (bold )?(italic )?([a-z]+) (\w) on ([a-z]+)")


@cache
def _folder() -> Path:
    require_extra("matplotlib", "glyphs", "matplotlib")
    spec = util.find_spec("matplotlib")  # find the folder without the slow import
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_folder() / f"{name}.ttf"), size)


@cache
def _extent(font: str, character: str) -> tuple[float, float, float, float]:
    """Return center x, center y, width and height of a character, in units of the font size."""
    left, top, right, bottom = (side / 128 for side in _font(font, 128).getbbox(character))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


class Glyphs:
    """``count`` images of ``characters``, in gray or color; a pure function of the seed."""

    num_ignored = 0
    location = "rendered"

    def __init__(
        self,
        count: int,
        characters: str,
        color: bool,
        seed: int,
        style: str = "all",
        mask: bool = False,
    ) -> None:
        self.count, self.characters, self.color, self.seed = count, characters, color, seed
        self.style, self.mask = style, mask
        options = ["rgb"] * color + ["mask"] * mask + [f"style={style}"] * (style != "all")
        self.name = ":".join(["glyphs", *([",".join(options)] if options else [])])

    def __getstate__(self) -> dict[str, Any]:
        cached = {"labels", "numbers", "paints", "classes", "shades"}
        return {key: value for key, value in self.__dict__.items() if key not in cached}

    def __len__(self) -> int:
        return self.count

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.characters)

    @cached_property
    def labels(self) -> Labels:
        """Character indices int64 [N]: equally frequent (to within one), in random order."""
        order = np.random.default_rng((self.seed, 0)).permutation(self.count)
        return (order % len(self.characters)).astype(np.int64)

    @cached_property
    def numbers(self) -> Floats:
        """Uniform random numbers [N, 16], one row per image."""
        return np.random.default_rng((self.seed, 1)).random((self.count, NUM_RANDOM_NUMBERS))

    @cached_property
    def paints(self) -> Floats:
        """Background and ink of each image in 0..255: [N, 2, 1] (gray) or [N, 2, 3] (RGB)."""
        lumas = choose_lumas(self.numbers[:, 8:11])
        if not self.color:
            return lumas[..., None]
        return tint(lumas, np.random.default_rng((self.seed, 2)).random((self.count, 2, 3)))

    def content_digest(self) -> str:
        versions = [metadata.version(package) for package in ("pillow", "matplotlib")]
        extra: list[Any] = [] if self.style == "all" else [self.style, STYLE_VERSION]
        extra += ["mask"] * self.mask
        return hash_json(
            "glyphs",
            GLYPHS_VERSION,
            versions,
            self.count,
            self.characters,
            self.color,
            self.seed,
            *extra,
        )

    def item_name(self, index: int) -> str:
        return f"#{index}"

    def size_histogram(self) -> SizeHistogram:
        kind = 3 if self.color else 1
        return SizeHistogram(Counter({NATIVE_RESOLUTION: self.count}), Counter({kind: self.count}))

    def load_pixels(self, index: int, target: Size | None) -> Pixels:
        """Render one image at the target size: uint8 [H, W, C] with C = 1 or 3."""
        character = self.characters[self.labels[index]]
        fonts, box = choose_fonts(self.style, character, self.numbers[index, 0])
        ink = draw_mask(character, self.numbers[index], target or NATIVE_RESOLUTION, fonts, box)[
            ..., None
        ]
        if self.mask:
            return (ink >= 0.5).astype(np.uint8) * np.uint8(255)
        ground, color = self.paints[index]
        return paint(ink, ground, color)


def choose_fonts(style: str, character: str, u: float) -> tuple[Sequence[str], Box | None]:
    """Return the fonts to choose from, and the box that decides the size.

    For a style, the uniform number ``u`` chooses weight and slant, which are the same for both
    styles, and one font of each style. The box fits the character in both fonts. For "all", every
    font is possible, and the box is that of the chosen font (None).
    """
    if style == "all":
        return FONT_NAMES, None
    group, rest = divmod(u * len(FONT_GROUPS), 1)
    fonts = {name: names[int(rest * len(names))] for name, names in FONT_GROUPS[int(group)].items()}
    sizes = [_extent(font, character)[2:] for font in fonts.values()]
    return (fonts[style],), (max(w for w, _ in sizes), max(h for _, h in sizes))


def paint(ink: NDArray[np.float32], ground: Floats, color: Floats) -> Pixels:
    """Blend background and ink colors [C] by coverage [H, W, 1]: uint8 [H, W, C]."""
    return np.rint(ground + ink * (color - ground)).astype(np.uint8)


def choose_lumas(numbers: Floats) -> Floats:
    """Map uniform [N, 3] to lumas [N, 2] of background and ink, at least MIN_CONTRAST apart."""
    ground = numbers[:, 0] * 255
    above, below = 255 - ground, ground
    up = (below < MIN_CONTRAST) | ((above >= MIN_CONTRAST) & (numbers[:, 1] < 0.5))
    room = np.where(up, above, below)
    step = MIN_CONTRAST + numbers[:, 2] * (room - MIN_CONTRAST)
    return np.stack([ground, np.where(up, ground + step, ground - step)], axis=1)


def tint(lumas: Floats, colors: Floats) -> Floats:
    """Return RGB in 0..255 with the given lumas [N, 2] and the hues of colors [N, 2, 3] in 0..1.

    The color moves from gray toward the hue, at constant luma, until it reaches the edge of the
    RGB cube.
    """
    gray = lumas[..., None]
    direction = (colors - (colors @ LUMA)[..., None]) * 255
    room = np.where(direction > 0, 255 - gray, gray)
    reach = room / np.maximum(np.abs(direction), 1e-9)
    tinted: Floats = gray + np.minimum(reach.min(axis=-1, keepdims=True), 1) * direction
    return tinted


@dataclass(frozen=True)
class Pose:
    """How a character is drawn.

    Attributes:
        points: Font size in pixels.
        stroke: Width in pixels added on every side.
        matrix: Linear map of (x, y).
        inverse: Its inverse.
        center: Position of the center, (x, y) in pixels.
    """

    points: int
    stroke: float
    matrix: Floats
    inverse: Floats
    center: Floats


def pose(u: Floats, box: Box, size: Size) -> Pose:
    """Choose a pose by uniform numbers ``u`` so that a character of this box stays in the image."""
    slant, turn, weight = -0.2 + 0.5 * u[1], np.deg2rad(-8 + 16 * u[2]), 0.03 * u[3]
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]])
    inverse = np.array([[1, slant], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    reach = np.abs(matrix) @ (np.array(box) + 2 * weight)  # of the box once transformed
    room = np.array([size[1], size[0]], dtype=np.float64)
    points = max(4, int((0.6 + 0.3 * u[4]) * np.min(room / reach)))
    free = np.maximum(room - reach * points, 0)
    center = room / 2 + (u[5:7] - 0.5) * free * 0.8
    return Pose(points, weight * points, matrix, inverse, center)


def draw_mask(
    character: str, u: Floats, size: Size, fonts: Sequence[str] = FONT_NAMES, box: Box | None = None
) -> NDArray[np.float32]:
    """Draw one character by its uniform numbers ``u``: ink coverage float32 [H, W] in 0..1.

    ``box`` decides size and position; None stands for the box of the character in its font. The
    character is drawn upright in the center and then transformed. Small images are drawn larger
    and averaged down.
    """
    font = fonts[int(u[0] * len(fonts))]
    zoom = max(1, min(4, 64 // min(size)))
    height, width = size[0] * zoom, size[1] * zoom
    x, y, *extent = _extent(font, character)
    drawing = pose(u, box or (extent[0], extent[1]), (height, width))
    canvas = Image.new("L", (width, height))
    canvas_center = np.array([width / 2, height / 2])
    corner = (canvas_center[0] - x * drawing.points, canvas_center[1] - y * drawing.points)
    ImageDraw.Draw(canvas).text(
        corner, character, 255, font=_font(font, drawing.points), stroke_width=drawing.stroke
    )
    inverse = drawing.inverse  # Pillow maps output pixels to input pixels
    shift = canvas_center - inverse @ drawing.center
    data = (inverse[0, 0], inverse[0, 1], shift[0], inverse[1, 0], inverse[1, 1], shift[1])
    smooth = Image.Resampling.BILINEAR if zoom > 1 else Image.Resampling.BICUBIC
    moved = canvas.transform((width, height), Image.Transform.AFFINE, data, smooth)
    small = moved.reduce(zoom) if zoom > 1 else moved
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def parse_caption(caption: str) -> dict[str, str] | None:
    """Return the words of a caption by name, or None if it does not have this form.

    >>> parse_caption("a bold blue Q on yellow")
    {'weight': 'bold', 'slant': '', 'color': 'blue', 'letter': 'Q', 'ground': 'yellow'}
    """
    match = CAPTION_PATTERN.fullmatch(caption)
    if match is None:
        return None
    words = ((word or "").strip() for word in match.groups())
    return dict(zip(("weight", "slant", "color", "letter", "ground"), words, strict=True))


class CaptionedGlyphs(Glyphs):
    """Glyphs in named colors; each combination is a class, and its caption is the class name."""

    def __init__(self, count: int, characters: str, seed: int) -> None:
        super().__init__(count, characters, True, seed)
        self.name = "glyphs:captions"

    def content_digest(self) -> str:
        return hash_json(super().content_digest(), "captions")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        pairs = [(ink, ground) for ink, ground in product(COLORS, COLORS) if ink != ground]
        captions = []
        for character, (weight, slant), (ink, ground) in product(
            self.characters, CAPTION_FONTS, pairs
        ):
            words = [word for word in (weight, slant, ink, character, "on", ground) if word]
            captions.append(" ".join(["an" if words[0] == "italic" else "a", *words]))
        return tuple(captions)

    @cached_property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Caption indices int64 [N]: equally frequent (to within one), in random order."""
        rng = np.random.default_rng((self.seed, 0))
        rounds = -(-self.count // len(self.classes))
        order = np.concatenate([rng.permutation(len(self.classes)) for _ in range(rounds)])
        return order[: self.count].astype(np.int64)

    @cached_property
    def shades(self) -> Floats:
        """Random change of the background and ink colors of each image, [N, 2, 3]."""
        uniform = np.random.default_rng((self.seed, 2)).random((self.count, 2, 3))
        shades: Floats = (2 * uniform - 1) * MAX_SHADE
        return shades

    def load_pixels(self, index: int, target: Size | None) -> Pixels:
        words = parse_caption(self.classes[self.labels[index]])
        assert words is not None
        numbers = self.numbers[index].copy()
        numbers[SLANT_COLUMN] = ITALIC_SLANT if words["slant"] else UPRIGHT_SLANT
        numbers[STROKE_COLUMN] = float(bool(words["weight"]))
        fonts = CAPTION_FONTS[words["weight"], words["slant"]]
        ink = draw_mask(words["letter"], numbers, target or NATIVE_RESOLUTION, fonts)[..., None]
        ground, color = (np.array(COLORS[words[k]]) for k in ("ground", "color"))
        shade = self.shades[index]
        return paint(ink, ground + shade[0], color + shade[1])


def open_glyphs(options: str, seed: int, channels: int | None) -> Glyphs:
    """Parse ``[rgb|gray|captions|mask][,count=20000][,chars=ABC][,style=serif]``.

    3 or 4 channels mean color. A mask is white where at least half of a pixel is ink.

    Raises:
        UserError: An unknown option or an invalid value.
    """
    kinds = ("rgb", "gray", "captions", "mask")
    valid = {**dict.fromkeys(kinds, False), "count": True, "chars": True, "style": True}
    chosen = parse_options(options, "glyphs", valid)
    if len(named := [kind for kind in kinds if kind in chosen]) > 1:
        raise UserError(f"glyphs can be {named[0]} or {named[1]}, not both")
    color = "rgb" in chosen if channels is None else channels > 1
    text = chosen.get("count", str(DEFAULT_COUNT))
    if not text.isdecimal() or not 1 <= int(text) <= 10_000_000:
        raise UserError(f"count of glyphs must be 1 to 10,000,000, but got '{text}'")
    characters = "".join(dict.fromkeys(chosen.get("chars", CHARACTERS)))
    if not (characters.isascii() and characters.isalnum()):
        raise UserError(f"chars of glyphs must be ASCII letters and digits, but got '{characters}'")
    if (style := chosen.get("style", "all")) not in STYLES:
        raise unknown_name_error("style of glyphs", style, STYLES)
    if "captions" in chosen:
        if style != "all":
            raise UserError("glyphs with captions take no style")
        return CaptionedGlyphs(int(text), characters, seed)
    if mask := "mask" in chosen:
        color = False
    return Glyphs(int(text), characters, color, seed, style, mask)
