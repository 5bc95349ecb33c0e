"""What tasks are shown: pairs that are pairs, films, two kinds of images, parts that share none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from growgan.cli.grow import _one_fit
from growgan.data import ImageSet, load_images
from growgan.data.glyphs import CELLS, FONTS, fonts_of, open_glyphs
from growgan.errors import UserError
from growgan.tasks import TASKS, prepare
from growgan.tasks.cyclegan import Sides, names_of
from growgan.tasks.frames import AHEAD, SEEN

LENGTH = SEEN + AHEAD


def numbered(count: int, first: int = 0, name: str = "numbered") -> ImageSet:
    """Images of 8×8 that are all one number, each its own."""
    values = (first + np.arange(count)).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (count, 1, 8, 8)).copy()
    return ImageSet(name, images, None, (), f"{name}:{first}:{count}")


def folder(path: Path, names: list[str], broken: str = "") -> Path:
    path.mkdir(parents=True)
    for k, name in enumerate(names):
        pixels = np.full((8, 8), 5 * k, np.uint8)
        if name == broken:
            (path / name).write_bytes(b"no image")
        else:
            Image.fromarray(pixels).save(path / name)
    return path


def test_both_styles_have_the_same_weight_and_slant_and_are_of_one_size() -> None:
    cells = {font: k for k, cell in enumerate(CELLS) for each in cell.values() for font in each}
    assert set(cells) < set(FONTS)
    for u in np.random.default_rng(0).random(200):
        (serif, *more), box = fonts_of("serif", "Q", u)
        (sans,), other = fonts_of("sans", "Q", u)
        assert not more and cells[serif] == cells[sans] and box == other
    found = {fonts_of("serif", "Q", u)[0][0] for u in np.linspace(0, 0.999, 200)}
    assert found == {font for cell in CELLS for font in cell["serif"]}
    assert fonts_of("all", "Q", 0.5) == (FONTS, None)


def test_true_pairs_of_styles_have_the_same_middle_height_and_slope() -> None:
    sets = [
        open_glyphs(f"count=150,chars=HIL,style={style}", 0, None) for style in ("serif", "sans")
    ]
    moments = []
    for each in sets:
        rows = []
        for k in range(150):
            image = each.pixels(k, (32, 32))[..., 0].astype(float)
            ground = each.paints[k, 0, 0]
            ink = np.abs(image - ground) > 0.5 * np.abs(image - ground).max()
            y, x = np.nonzero(ink)
            rows.append((np.ptp(y), y.mean(), np.polyfit(y, x, 1)[0]))
        moments.append(np.array(rows))
    apart = np.abs(moments[0] - moments[1])
    assert np.median(apart[:, 0]) <= 2 and np.median(apart[:, 1]) <= 1
    # A slant is shared, so that slopes of a pair are alike and of others are not.
    assert np.corrcoef(moments[0][:, 2], moments[1][:, 2])[0, 1] > 0.5


def test_a_mask_of_glyphs_is_where_their_ink_is(tmp_path: Path) -> None:
    masks = load_images("glyphs:mask,count=30", resolution=16, cache=tmp_path)
    images = load_images("glyphs:count=30", resolution=16, cache=tmp_path)
    assert masks.name == "glyphs:mask" and masks.channels == 1
    assert set(np.unique(masks.images)) == {0, 255}
    paints = open_glyphs("count=30", 0, None).paints[:, :, 0]
    for picture, mask, (ground, ink) in zip(images.images, masks.images, paints, strict=True):
        nearer = np.abs(picture - ink) < np.abs(picture - ground)
        assert (nearer == (mask == 255)).mean() > 0.99
    pairs = prepare("pix2pix", images, masks)
    assert pairs.given is images.images and pairs.images is masks.images
    with pytest.raises(UserError, match="not both"):
        load_images("glyphs:mask,rgb", cache=tmp_path)


def test_pairs_of_folders_go_by_name(tmp_path: Path) -> None:
    names = [f"{k:02}.png" for k in range(20)]
    a = load_images(folder(tmp_path / "a", names), cache=tmp_path / "c")
    same = load_images(
        folder(tmp_path / "b", [n[:2] + ".bmp" for n in names]), cache=tmp_path / "c"
    )
    assert len(prepare("pix2pix", a, same)) == 20
    moved = folder(tmp_path / "m", [*names[1:], "20.png"])
    with pytest.raises(UserError, match="are no pairs: '00' would become '01'"):
        prepare("pix2pix", a, load_images(moved, cache=tmp_path / "c"))
    with pytest.raises(UserError, match="are no pairs: '00' would become '01'"):
        prepare("cyclegan:aligned", a, load_images(moved, cache=tmp_path / "c"))
    other = load_images(folder(tmp_path / "o", [f"x{n}" for n in names]), cache=tmp_path / "c")
    assert len(prepare("pix2pix", a, other)) == 20  # named by another rule: by order


def test_pairs_with_broken_files_are_refused(tmp_path: Path) -> None:
    names = [f"{k:02}.png" for k in range(20)]
    sets = [
        load_images(folder(tmp_path / side, names, broken), max_broken=0.5, cache=tmp_path / "c")
        for side, broken in (("a", "03.png"), ("b", "07.png"))
    ]
    assert len(sets[0]) == len(sets[1]) == 19
    with pytest.raises(UserError, match="'a' has 1 broken files"):
        prepare("pix2pix", *sets)


def test_two_sets_are_fitted_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    for side in (28, 60):
        (tmp_path / str(side)).mkdir()
        for k in range(16):
            pixels = np.full((side, side), 100 + k, np.uint8)
            Image.fromarray(pixels).save(tmp_path / str(side) / f"{k:02}.png")
    form = {"fit": "auto", "channels": None, "resolution": (32, 32)}
    small, large = str(tmp_path / "28"), str(tmp_path / "60")
    assert _one_fit([small], form) == _one_fit([small, small], form) == form
    alike = _one_fit([small, large], form)
    assert alike == {**form, "fit": "crop"}
    for source in (small, large):
        assert load_images(source, resolution=32, fit=alike["fit"]).images.min() >= 100


def test_no_image_of_two_kinds_is_in_both_parts() -> None:
    data = prepare("cyclegan", numbered(100, name="many"), numbered(20, 200, "few"))
    seen, new = TASKS["cyclegan"].split(data)
    for label, size in ((0, 100), (1, 20)):
        parts = [{int(x.flat[0]) for x in each.images[1 - label :: 2]} for each in (seen, new)]
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == size
        assert len(parts[1]) == size // 10
        for each in (seen, new):
            assert each.given is not None
            others = {int(x.flat[0]) for x in each.given[label::2]}
            assert others <= {int(x.flat[0]) for x in each.images[1 - label :: 2]}
    assert seen.labels is not None and seen.labels[:4].tolist() == [1, 0, 1, 0]


def test_two_kinds_keep_what_they_show_and_have_names_of_their_own() -> None:
    labels = np.arange(40) % 4
    sets = [
        replace(numbered(40, first, "images"), labels=labels, classes=tuple("ABCD"), source=source)
        for first, source in ((0, "/data/horses/images"), (100, "/data/zebras/images"))
    ]
    data = prepare("cyclegan", *sets)
    assert isinstance(data, Sides) and data.shown is not None and data.labels is not None
    assert data.classes == ("horses/images", "zebras/images")
    assert data.shown.tolist() == np.repeat(labels, 2).tolist()
    part = data.subset(np.array([6, 7, 1]))
    assert part.shown is not None and part.shown.tolist() == [3, 3, 0]
    assert names_of(sets[0], sets[0]) == ("A: images", "B: images")
    other = replace(sets[1], classes=tuple("EFGH"))
    without = prepare("cyclegan", sets[0], other)
    assert isinstance(without, Sides) and without.shown is None


def test_files_are_frames_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for k in range(2 * LENGTH):
        Image.new("L", (8, 8), 4 * k).save(tmp_path / f"frame{k}.png")
    films = prepare("next-frame:frames", load_images(str(tmp_path), resolution=8))
    values = films.images[:, 0, 0, 0].astype(int) // 4
    assert values.tolist() == [*range(SEEN, LENGTH), *range(LENGTH + SEEN, 2 * LENGTH)]
    (tmp_path / "frame7.png").write_bytes(b"no image")
    broken = load_images(str(tmp_path), resolution=8, max_broken=0.1)
    with pytest.raises(UserError, match="1 broken files, so that films would leap: frame7"):
        prepare("next-frame:frames", broken)


def test_films_lie_within_clips_and_are_held_out_whole() -> None:
    data = replace(numbered(100), labels=np.arange(100) // 20, classes=tuple("ABCDE"))
    films = prepare("next-frame:frames", data)
    assert len(films) == 5 * AHEAD and films.given is not None
    values = films.images[:, 0, 0, 0].astype(int)
    clips = {k: set(values[k * AHEAD : (k + 1) * AHEAD] // 20) for k in range(5)}
    assert all(len(clip) == 1 for clip in clips.values())
    with pytest.raises(UserError, match="1 whole films; two films need 26"):
        prepare("next-frame:frames", replace(numbered(25), labels=np.arange(25) // 20))
    many = prepare("next-frame:frames", numbered(LENGTH * 19))
    seen, new = TASKS["next-frame"].split(many)
    kept, held = (set(each.images[:, 0, 0, 0].tolist()) for each in (seen, new))
    assert len(new) == 2 * AHEAD and not kept & held
    assert max(kept) > min(held)  # not the last ones
    steps = np.diff(new.images[:AHEAD, 0, 0, 0].astype(int))
    assert (steps == 1).all()
