"""Captioned characters: "a bold italic blue Q on yellow", where each caption is a class."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np

from growgan.data.decode import Pixels
from growgan.data.files import combine
from growgan.data.glyphs import NATIVE, Floats, Glyphs, draw_mask, paint
from growgan.data.prepare import Size

COLOURS: Final = {
    "black": (16, 16, 16),
    "white": (240, 240, 240),
    "red": (208, 32, 32),
    "green": (32, 144, 48),
    "blue": (40, 64, 208),
    "yellow": (240, 208, 32),
}
SHADE: Final = 12  # by how much a colour varies, of 255
FAMILIES: Final = {  # by weight and slant
    ("", ""): ("DejaVuSans", "DejaVuSerif", "STIXGeneral"),
    ("bold", ""): ("DejaVuSans-Bold", "DejaVuSerif-Bold", "STIXGeneralBol"),
    ("", "italic"): ("DejaVuSans-Oblique", "DejaVuSerif-Italic", "STIXGeneralItalic"),
    ("bold", "italic"): ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta"),
}
SLANT, STROKE = 1, 3  # the random numbers that a pose takes them from
UPRIGHT, LEANING = 0.4, 0.7  # of these: no slant beside the font's own, and 9 degrees more
PATTERN: Final = re.compile(r"an? (bold )?(italic )?([a-z]+) (\w) on ([a-z]+)")


def slots(caption: str) -> dict[str, str] | None:
    """Return what a caption says, by name; None where it is not of this form.

    >>> slots("a bold blue Q on yellow")
    {'weight': 'bold', 'slant': '', 'colour': 'blue', 'letter': 'Q', 'ground': 'yellow'}
    """
    found = PATTERN.fullmatch(caption)
    if found is None:
        return None
    said = ((word or "").strip() for word in found.groups())
    return dict(zip(("weight", "slant", "colour", "letter", "ground"), said, strict=True))


class CaptionedGlyphs(Glyphs):
    """Glyphs in colours that have names; each combination is a class, named by its caption."""

    def __init__(self, count: int, characters: str, seed: int) -> None:
        super().__init__(count, characters, True, seed)
        self.name = "glyphs:captions"

    def content(self) -> str:
        return combine(super().content(), "captions")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        pairs = [(ink, ground) for ink, ground in product(COLOURS, COLOURS) if ink != ground]
        made = []
        for character, (weight, slant), (ink, ground) in product(self.characters, FAMILIES, pairs):
            words = [word for word in (weight, slant, ink, character, "on", ground) if word]
            made.append(" ".join(["an" if words[0] == "italic" else "a", *words]))
        return tuple(made)

    @cached_property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Every caption equally often (to within one), in random order."""
        rng = np.random.default_rng((self.seed, 0))
        rounds = -(-self.count // len(self.classes))
        order = np.concatenate([rng.permutation(len(self.classes)) for _ in range(rounds)])
        return order[: self.count].astype(np.int64)

    @cached_property
    def shades(self) -> Floats:
        """What is added to each image's ground and ink, [N, 2, 3]."""
        drawn = np.random.default_rng((self.seed, 2)).random((self.count, 2, 3))
        shades: Floats = (2 * drawn - 1) * SHADE
        return shades

    def pixels(self, index: int, target: Size | None) -> Pixels:
        said = slots(self.classes[self.labels[index]])
        assert said is not None
        numbers = self.numbers[index].copy()
        numbers[SLANT] = LEANING if said["slant"] else UPRIGHT
        numbers[STROKE] = float(bool(said["weight"]))
        fonts = FAMILIES[said["weight"], said["slant"]]
        ink = draw_mask(said["letter"], numbers, target or NATIVE, fonts)[..., None]
        ground, colour = (np.array(COLOURS[said[k]]) for k in ("ground", "colour"))
        shade = self.shades[index]
        return paint(ink, ground + shade[0], colour + shade[1])
