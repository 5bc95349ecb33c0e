"""Data preparation of tasks: pairs, clips, two domains, and disjoint training and test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from growgan.cli.grow import _shared_fit
from growgan.data import ImageSet, load_images
from growgan.data.glyphs import FONT_GROUPS, FONT_NAMES, choose_fonts, open_glyphs
from growgan.errors import UserError
from growgan.tasks import TASKS, prepare_task_data
from growgan.tasks.cyclegan import TwoDomainImages, domain_names
from growgan.tasks.next_frame import CLIP_LENGTH, NUM_CONTEXT_FRAMES, NUM_PREDICTED_FRAMES


def constant_images(num_images: int, first_value: int = 0, name: str = "constant") -> ImageSet:
    """Return constant images of 8x8. Their values count up from ``first_value``."""
    values = (first_value + np.arange(num_images)).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (num_images, 1, 8, 8)).copy()
    return ImageSet(
        name, images, labels=None, classes=(), fingerprint=f"{name}:{first_value}:{num_images}"
    )


def write_folder(path: Path, names: list[str], broken: str = "") -> Path:
    """Write an image file for each name; the one named ``broken`` is not an image."""
    path.mkdir(parents=True)
    for k, name in enumerate(names):
        pixels = np.full((8, 8), 5 * k, np.uint8)
        if name == broken:
            (path / name).write_bytes(b"not an image")
        else:
            Image.fromarray(pixels).save(path / name)
    return path


def test_serif_and_sans_glyphs_have_the_same_weight_slant_and_size() -> None:
    group_of_font = {
        font: k for k, group in enumerate(FONT_GROUPS) for fonts in group.values() for font in fonts
    }
    assert set(group_of_font) < set(FONT_NAMES)
    for u in np.random.default_rng(0).random(200):
        (serif, *further_fonts), serif_box = choose_fonts("serif", "Q", u)
        (sans,), sans_box = choose_fonts("sans", "Q", u)
        assert not further_fonts and serif_box == sans_box
        assert group_of_font[serif] == group_of_font[sans]
    serif_fonts = {choose_fonts("serif", "Q", u)[0][0] for u in np.linspace(0, 0.999, 200)}
    assert serif_fonts == {font for group in FONT_GROUPS for font in group["serif"]}
    assert choose_fonts("all", "Q", 0.5) == (FONT_NAMES, None)


def test_serif_and_sans_pairs_have_the_same_center_height_and_slope() -> None:
    sets = [
        open_glyphs(f"count=150,chars=HIL,style={style}", 0, None) for style in ("serif", "sans")
    ]
    moments = []
    for glyphs in sets:
        rows = []
        for k in range(150):
            image = glyphs.load_pixels(k, (32, 32))[..., 0].astype(float)
            background = glyphs.paints[k, 0, 0]
            ink = np.abs(image - background) > 0.5 * np.abs(image - background).max()
            y, x = np.nonzero(ink)
            rows.append((np.ptp(y), y.mean(), np.polyfit(y, x, 1)[0]))
        moments.append(np.array(rows))
    difference = np.abs(moments[0] - moments[1])
    assert np.median(difference[:, 0]) <= 2 and np.median(difference[:, 1]) <= 1
    # Pairs share their slant, so their slopes correlate.
    assert np.corrcoef(moments[0][:, 2], moments[1][:, 2])[0, 1] > 0.5


def test_glyph_masks_cover_the_ink(tmp_path: Path) -> None:
    masks = load_images("glyphs:mask,count=30", resolution=16, cache=tmp_path)
    images = load_images("glyphs:count=30", resolution=16, cache=tmp_path)
    assert masks.name == "glyphs:mask" and masks.channels == 1
    assert set(np.unique(masks.images)) == {0, 255}
    paints = open_glyphs("count=30", 0, None).paints[:, :, 0]
    for picture, mask, (ground, ink) in zip(images.images, masks.images, paints, strict=True):
        nearer = np.abs(picture - ink) < np.abs(picture - ground)
        assert (nearer == (mask == 255)).mean() > 0.99
    pairs = prepare_task_data("pix2pix", images, masks)
    assert pairs.source_images is images.images and pairs.images is masks.images
    with pytest.raises(UserError, match="not both"):
        load_images("glyphs:mask,rgb", cache=tmp_path)


def test_folders_are_paired_by_file_name(tmp_path: Path) -> None:
    names = [f"{k:02}.png" for k in range(20)]
    a = load_images(write_folder(tmp_path / "a", names), cache=tmp_path / "c")
    same = load_images(
        write_folder(tmp_path / "b", [n[:2] + ".bmp" for n in names]), cache=tmp_path / "c"
    )
    assert len(prepare_task_data("pix2pix", a, same)) == 20
    moved = write_folder(tmp_path / "m", [*names[1:], "20.png"])
    with pytest.raises(UserError, match="cannot be paired: '00' would be paired with '01'"):
        prepare_task_data("pix2pix", a, load_images(moved, cache=tmp_path / "c"))
    with pytest.raises(UserError, match="cannot be paired: '00' would be paired with '01'"):
        prepare_task_data("cyclegan:aligned", a, load_images(moved, cache=tmp_path / "c"))
    other = load_images(
        write_folder(tmp_path / "o", [f"x{n}" for n in names]), cache=tmp_path / "c"
    )
    assert len(prepare_task_data("pix2pix", a, other)) == 20  # no name in common: paired in order


def test_broken_files_cannot_be_paired(tmp_path: Path) -> None:
    names = [f"{k:02}.png" for k in range(20)]
    sets = [
        load_images(
            write_folder(tmp_path / side, names, broken), max_broken=0.5, cache=tmp_path / "c"
        )
        for side, broken in (("a", "03.png"), ("b", "07.png"))
    ]
    assert len(sets[0]) == len(sets[1]) == 19
    with pytest.raises(UserError, match="'a' has 1 broken files"):
        prepare_task_data("pix2pix", *sets)


def test_two_sets_are_fitted_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    for side in (28, 60):
        (tmp_path / str(side)).mkdir()
        for k in range(16):
            pixels = np.full((side, side), 100 + k, np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(side) / f"{k:02}.png")
    small, large = str(tmp_path / "28"), str(tmp_path / "60")
    assert _shared_fit((small,), "auto", (32, 32), None) == "auto"
    assert _shared_fit((small, small), "auto", (32, 32), None) == "auto"
    fit = _shared_fit((small, large), "auto", (32, 32), None)
    assert fit == "crop"
    for source in (small, large):
        assert load_images(source, resolution=32, fit=fit).images.min() >= 100


def test_training_and_test_sets_of_two_domains_are_disjoint() -> None:
    large, small = constant_images(100, name="large"), constant_images(20, 200, "small")
    train_split, test_set = TASKS["cyclegan"].split(prepare_task_data("cyclegan", large, small))
    parts = (train_split, test_set)
    for domain, size in ((0, 100), (1, 20)):
        train_values, test_values = (
            {int(image.flat[0]) for image in part.images[1 - domain :: 2]} for part in parts
        )
        assert not train_values & test_values and len(train_values | test_values) == size
        assert len(test_values) == size // 10
        for part in parts:
            assert part.source_images is not None
            sources = {int(image.flat[0]) for image in part.source_images[domain::2]}
            assert sources <= {int(image.flat[0]) for image in part.images[1 - domain :: 2]}
    assert train_split.labels is not None and train_split.labels[:4].tolist() == [1, 0, 1, 0]


def test_two_domains_keep_their_content_labels_and_get_distinct_names() -> None:
    labels = np.arange(40) % 4
    sets = [
        replace(
            constant_images(40, first, "images"),
            labels=labels,
            classes=tuple("ABCD"),
            source=source,
        )
        for first, source in ((0, "/data/horses/images"), (100, "/data/zebras/images"))
    ]
    data = prepare_task_data("cyclegan", *sets)
    assert (
        isinstance(data, TwoDomainImages)
        and data.content_labels is not None
        and data.labels is not None
    )
    assert data.classes == ("horses/images", "zebras/images")
    assert data.content_labels.tolist() == np.repeat(labels, 2).tolist()
    subset = data.subset(np.array([6, 7, 1]))
    assert subset.content_labels is not None and subset.content_labels.tolist() == [3, 3, 0]
    assert domain_names(sets[0], sets[0]) == ("A: images", "B: images")
    other_classes = replace(sets[1], classes=tuple("EFGH"))
    unlabeled = prepare_task_data("cyclegan", sets[0], other_classes)
    assert isinstance(unlabeled, TwoDomainImages) and unlabeled.content_labels is None


def test_frames_are_sorted_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for k in range(2 * CLIP_LENGTH):
        Image.new("L", (8, 8), 4 * k).save(tmp_path / f"frame{k}.png")
    clips = prepare_task_data("next-frame:frames", load_images(str(tmp_path), resolution=8))
    values = clips.images[:, 0, 0, 0].astype(int) // 4
    assert values.tolist() == [
        *range(NUM_CONTEXT_FRAMES, CLIP_LENGTH),
        *range(CLIP_LENGTH + NUM_CONTEXT_FRAMES, 2 * CLIP_LENGTH),
    ]
    (tmp_path / "frame7.png").write_bytes(b"not an image")
    broken = load_images(str(tmp_path), resolution=8, max_broken=0.1)
    with pytest.raises(UserError, match="1 broken files, so its clips would skip frames: frame7"):
        prepare_task_data("next-frame:frames", broken)


def test_clips_stay_within_sequences_and_are_held_out_whole() -> None:
    data = replace(constant_images(100), labels=np.arange(100) // 20, classes=tuple("ABCDE"))
    clips = prepare_task_data("next-frame:frames", data)
    assert len(clips) == 5 * NUM_PREDICTED_FRAMES and clips.source_images is not None
    values = clips.images[:, 0, 0, 0].astype(int).reshape(5, NUM_PREDICTED_FRAMES)
    assert all(len(set(clip_values // 20)) == 1 for clip_values in values)
    labeled = replace(constant_images(25), labels=np.arange(25) // 20)
    with pytest.raises(UserError, match=r"25 frames of 'constant' in 2 sequence\(s\) give 1"):
        prepare_task_data("next-frame:frames", labeled)
    many_clips = prepare_task_data("next-frame:frames", constant_images(CLIP_LENGTH * 19))
    train_split, test_set = TASKS["next-frame"].split(many_clips)
    train_values, test_values = (
        set(part.images[:, 0, 0, 0].tolist()) for part in (train_split, test_set)
    )
    assert len(test_set) == 2 * NUM_PREDICTED_FRAMES and not train_values & test_values
    assert max(train_values) > min(test_values)  # the test clips are not simply the last ones
    steps = np.diff(test_set.images[:NUM_PREDICTED_FRAMES, 0, 0, 0].astype(int))
    assert (steps == 1).all()
