"""Tests of rendered characters: seeded, legible, balanced and inside the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from growgan.data import load_images
from growgan.data.glyphs import LUMA, MIN_CONTRAST, choose_lumas, draw_mask, open_glyphs, tint
from growgan.errors import UserError


def test_every_pair_of_colors_is_legible() -> None:
    uniform = np.random.default_rng(0).random((5000, 3))
    lumas = choose_lumas(uniform)
    assert lumas.min() >= 0
    assert lumas.max() <= 255
    assert np.abs(lumas[:, 0] - lumas[:, 1]).min() >= MIN_CONTRAST
    colors = tint(lumas, np.random.default_rng(1).random((5000, 2, 3)))
    assert colors.min() >= -1e-6
    assert colors.max() <= 255 + 1e-6
    assert np.allclose(colors @ LUMA, lumas, atol=1e-6)  # hue changes, luma and contrast do not
    assert np.ptp(colors, axis=-1).mean() > 30  # the colors are not gray


def test_the_ink_is_visible_and_inside_the_image() -> None:
    numbers = np.random.default_rng(2).random((300, 16))
    for size in ((32, 32), (16, 16), (64, 96)):
        for index in range(100):
            mask = draw_mask("AQWJ1i0g"[index % 8], numbers[index], size)
            assert mask.shape == size
            assert mask.max() > 0.7
            edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert edge.max() < 0.7, (size, index)
            tall, wide = (np.ptp(np.flatnonzero(mask.max(axis=1 - axis) > 0.2)) for axis in (0, 1))
            assert max(tall / size[0], wide / size[1]) > 0.4


def test_images_are_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    first = load_images("glyphs:count=80,rgb", cache=tmp_path / "a", seed=1)
    again = load_images("glyphs:rgb,count=80", cache=tmp_path / "b", seed=1)
    other = load_images("glyphs:count=80,rgb", cache=tmp_path / "a", seed=2)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert np.array_equal(first.images, again.images)
    assert (first.images != other.images).mean() > 0.5


def test_labels_are_balanced_and_name_the_characters(tmp_path: Path) -> None:
    images = load_images("glyphs:count=100,chars=AB7", resolution=(16, 24), cache=tmp_path)
    assert images.classes == ("A", "B", "7")
    assert images.images.shape == (100, 1, 16, 24)
    assert images.labels is not None
    assert sorted(np.bincount(images.labels).tolist()) == [33, 33, 34]
    assert not images.duplicates


def test_labels_match_the_drawn_characters() -> None:
    """The nearest class mean of half the images predicts the character of most of the rest."""
    glyphs = open_glyphs("count=600,chars=L07T", 0, None)
    ink = np.stack(
        [draw_mask("L07T"[glyphs.labels[i]], glyphs.numbers[i], (16, 16)) for i in range(600)]
    )
    pixels = np.stack([glyphs.load_pixels(i, (16, 16))[..., 0] for i in range(600)]).astype(float)
    background, color = glyphs.paints[:, 0, :, None], glyphs.paints[:, 1, :, None]
    measured_ink = (pixels - background) / (color - background)
    assert np.abs(measured_ink - ink).max() < 0.5 / MIN_CONTRAST + 1e-3  # half a gray level
    means = np.stack([measured_ink[:300][glyphs.labels[:300] == k].mean(axis=0) for k in range(4)])
    distances = ((measured_ink[300:, None] - means) ** 2).sum(axis=(2, 3))
    assert (distances.argmin(axis=1) == glyphs.labels[300:]).mean() > 0.6  # chance: 0.25


def test_the_number_of_channels_selects_gray_or_color(tmp_path: Path) -> None:
    for channels in (1, 3, 4):
        images = load_images("glyphs:count=8", channels=channels, cache=tmp_path)
        assert images.channels == channels
    color_images = load_images("glyphs:count=8", channels=3, cache=tmp_path).images
    assert np.ptp(color_images.astype(int), axis=1).max() > 30
    alpha = load_images("glyphs:count=8", channels=4, cache=tmp_path).images[:, 3]
    assert (alpha == 255).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glyphs:count=0", "count of glyphs must be 1 to"),
        ("glyphs:count", "must be written count=VALUE"),
        ("glyphs:rgb=1", "must be written rgb"),
        ("glyphs:cuont=5", r"unknown option of glyphs 'cuont' \(did you mean 'count'"),
        ("glyphs:chars=A+", "must be ASCII letters and digits, but got 'A\\+'"),
        ("glyphs:rgb,gray", "not both"),
    ],
)
def test_bad_options_are_user_errors(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_images(name, cache=tmp_path)


def test_styles_draw_the_same_characters_in_other_fonts() -> None:
    sets = [open_glyphs(f"count=40,style={style}", 0, None) for style in ("serif", "sans")]
    serif, sans = sets
    assert serif.labels.tolist() == sans.labels.tolist()
    assert serif.name == "glyphs:style=serif" and serif.content_digest() != sans.content_digest()
    images = [np.stack([s.load_pixels(i, (32, 32)) for i in range(40)]).astype(int) for s in sets]
    font_differences = np.abs(images[0] - images[1]).mean((1, 2, 3))
    character_differences = np.abs(images[0] - np.roll(images[1], 1, 0)).mean((1, 2, 3))
    assert (
        font_differences > 0
    ).all() and font_differences.mean() < 0.5 * character_differences.mean()
    with pytest.raises(UserError, match="unknown style of glyphs"):
        open_glyphs("style=gothic", 0, None)
