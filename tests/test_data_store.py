"""Tests of preparing, storing, splitting, batching and summarizing images."""

from __future__ import annotations

import io
import json
import operator
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from growgan.cli.data import data
from growgan.data import Batches, ImageSet, load_images, parse_resolution, summarize
from growgan.data import folder as folder_module
from growgan.data.base import SourceContext
from growgan.data.cache import FileIndex, default_cache
from growgan.data.parallel import _run_in_workers, run_blocks
from growgan.data.prepare import (
    PreprocessPlan,
    convert_channels,
    crop,
    pad,
    pad_without_scaling,
    preprocess,
    stretch,
)
from growgan.data.sources import open_source
from growgan.data.store import decode_block
from growgan.errors import UserError


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_set(count: int, labeled: bool = True) -> ImageSet:
    """Return images whose pixels encode their number."""
    images = np.zeros((count, 1, 4, 4), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    labels = np.arange(count) % 7 if labeled else None
    return ImageSet("numbered", images, labels, tuple("abcdefg") if labeled else (), "f00")


def numbers_of(images: Any) -> NDArray[np.int64]:
    pixels = np.asarray(images).astype(np.int64)
    return pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]


# ------------------------------------------------------------------ fitting


def halves(height: int, width: int) -> NDArray[np.uint8]:
    """Return an image with a dark left half and a bright right half."""
    pixels = np.full((height, width, 1), 20, dtype=np.uint8)
    pixels[:, width // 2 :] = 220
    return pixels


def test_crop_takes_the_middle_at_the_short_side() -> None:
    pixels = np.zeros((8, 16, 1), dtype=np.uint8)
    pixels[:, 4:12] = 200  # only the middle square
    assert (crop(pixels, (8, 8)) == 200).all()
    tall = crop(np.swapaxes(pixels, 0, 1).copy(), (8, 8))
    assert (tall == 200).all()


def test_pad_keeps_the_whole_image_and_stretch_fills_the_size() -> None:
    padded = pad(halves(8, 16), (8, 8))
    assert (padded[[0, 1, 6, 7]] == 0).all()
    assert (padded[2:6, 0] == 20).all()
    assert (padded[2:6, 7] == 220).all()
    stretched = stretch(halves(8, 16), (8, 8))
    assert (stretched[:, 0] == 20).all()
    assert (stretched[:, 7] == 220).all()


def test_border_keeps_the_pixels_unless_the_image_is_too_large() -> None:
    pixels = noise(0, 28, 27, 3)
    out = pad_without_scaling(pixels, (32, 32))
    assert np.array_equal(out[2:30, 2:29], pixels)
    assert int(out.sum()) == int(pixels.sum())
    assert pad_without_scaling(pixels, (20, 40)).shape == (20, 40, 3)


def test_resizing_down_is_antialiased() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    small = crop(board, (16, 16))
    assert np.abs(small.astype(int) - 127).max() < 8  # nearest would give 0 or 255


def test_channels_convert_with_alpha_over_white() -> None:
    clear = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], dtype=np.uint8)
    assert convert_channels(clear, 3).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    gray = round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)
    assert convert_channels(clear, 1).tolist() == [[[255], [gray]]]
    assert convert_channels(np.full((1, 1, 1), 9, np.uint8), 3).tolist() == [[[9, 9, 9]]]
    assert convert_channels(np.full((1, 1, 3), 9, np.uint8), 4).tolist() == [[[9, 9, 9, 255]]]


def test_prepared_images_are_channels_first() -> None:
    pixels = noise(0, 4, 6, 3)
    assert np.array_equal(
        preprocess(pixels, PreprocessPlan((4, 6), 3, "crop")), pixels.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("side", "fit"), [(28, "border"), (25, "border"), (24, "crop"), (33, "crop")]
)
def test_auto_pads_images_that_are_less_than_a_quarter_smaller(
    tmp_path: Path, side: int, fit: str
) -> None:
    png(tmp_path / "set/a.png", noise(0, side, side) // 2 + 100)
    image = load_images(tmp_path / "set", resolution=32, cache=tmp_path / "c").images[0, 0]
    assert bool((image[0] == 0).all()) == (fit == "border")


@pytest.mark.parametrize(
    ("text", "size"), [("32", (32, 32)), ("48x64", (48, 64)), (16, (16, 16)), ((4, 8), (4, 8))]
)
def test_resolutions_are_parsed(text: Any, size: tuple[int, int]) -> None:
    assert parse_resolution(text) == size


@pytest.mark.parametrize("text", ["", "0", "32x", "a", "1x2x3", "9999", -4])
def test_invalid_resolutions_are_user_errors(text: Any) -> None:
    with pytest.raises(
        UserError, match=f"resolution must be SIDE or HEIGHTxWIDTH.*but got '{text}'"
    ):
        parse_resolution(text)


# ------------------------------------------------------------------ the store


def test_resolution_and_channels_come_from_the_source(tmp_path: Path) -> None:
    png(tmp_path / "set/a.png", noise(0, 12, 10))
    png(tmp_path / "set/b.png", noise(1, 12, 10))
    load = partial(load_images, tmp_path / "set", cache=tmp_path / "c")
    assert load().images.shape == (2, 1, 12, 10)
    png(tmp_path / "set/b.png", noise(1, 12, 10, 4))
    assert load().images.shape == (2, 3, 12, 10)  # gray and RGBA: mixed, so RGB
    assert load(channels=4).channels == 4
    png(tmp_path / "set/c.png", noise(2, 9, 10))
    with pytest.raises(
        UserError, match=r"have 2 sizes \(most common: 12x10, 2 of 3\).*--resolution"
    ):
        load()
    assert load(resolution=8).images.shape == (3, 3, 8, 8)


def test_bad_settings_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="channels must be 1, 3 or 4, but got 2"):
        load_images("glyphs", channels=2, cache=tmp_path)
    with pytest.raises(UserError, match=r"unknown fit 'corp' \(did you mean 'crop'\?\)"):
        load_images("glyphs", fit="corp", cache=tmp_path)
    with pytest.raises(UserError, match="max_broken must be between 0 and 1"):
        load_images("glyphs", max_broken=5, cache=tmp_path)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be written .*GROWGAN_CACHE"):
        load_images("glyphs:count=4", cache=blocked)


def test_a_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        path = png(tmp_path / f"set/{index}.png", noise(index, 8, 8))
        os.utime(path, (1e9, 1e9))
    first = load_images(tmp_path / "set", cache=tmp_path / "c")

    def forbidden(path: Path) -> bytes:
        raise AssertionError(f"read {path} again")

    monkeypatch.setattr(folder_module, "read_file", forbidden)
    again = load_images(tmp_path / "set", cache=tmp_path / "c")
    assert isinstance(again.images, np.memmap)
    assert not again.images.flags.writeable
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.images, first.images)


def test_changed_content_is_detected(tmp_path: Path) -> None:
    path = png(tmp_path / "set/a.png", noise(0, 8, 8))
    first = load_images(tmp_path / "set", cache=tmp_path / "c")
    os.utime(png(path, noise(1, 8, 8)), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    second = load_images(tmp_path / "set", cache=tmp_path / "c")
    assert first.fingerprint != second.fingerprint
    assert np.array_equal(second.images[0, 0], noise(1, 8, 8))
    png(tmp_path / "set/b.png", noise(2, 8, 8))
    assert len(load_images(tmp_path / "set", cache=tmp_path / "c")) == 2


def test_the_index_does_not_trust_a_file_that_was_just_written(tmp_path: Path) -> None:
    old, new = [10, 1_000, 1_000], [10, time.time_ns(), 1_000]
    index = FileIndex(tmp_path, tmp_path)
    index.save({"old": [*old, "x"], "new": [*new, "y"]}, time.time_ns())
    index = FileIndex(tmp_path, tmp_path)
    assert index.lookup("old", old) == ["x"]
    assert index.lookup("old", [10, 1_000, 1_001]) is None
    assert index.lookup("new", new) is None


def test_a_moved_folder_keeps_its_store(tmp_path: Path) -> None:
    png(tmp_path / "one/a.png", noise(0, 8, 8))
    load_images(tmp_path / "one", cache=tmp_path / "c")
    os.rename(tmp_path / "one", tmp_path / "two")
    moved = load_images(tmp_path / "two", cache=tmp_path / "c")
    assert moved.name == "two"
    assert len(list((tmp_path / "c/images").iterdir())) == 1


def test_an_interrupted_write_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(tmp_path / "set/a.png", noise(0, 8, 8))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("growgan.data.store._write_synced", stop)
        with pytest.raises(KeyboardInterrupt):
            load_images(tmp_path / "set", cache=tmp_path / "c")
    assert list((tmp_path / "c/images").iterdir()) == []
    store = tmp_path / "c/images"
    good = load_images(tmp_path / "set", cache=tmp_path / "c")
    (next(store.iterdir()) / "meta.json").unlink()
    assert load_images(tmp_path / "set", cache=tmp_path / "c").fingerprint == good.fingerprint


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_damaged_store_is_rebuilt_with_a_warning(name: str, tmp_path: Path) -> None:
    for number in range(6):
        png(tmp_path / f"set/{number % 2}/{number}.png", noise(number, 8, 8))
    good = load_images(tmp_path / "set", cache=tmp_path / "c")
    before = np.array(good.images)
    (store,) = (tmp_path / "c/images").iterdir()
    flip_a_bit(store / name)
    with pytest.warns(
        UserWarning, match=rf"cache '{store}' is damaged; the images are decoded again"
    ):
        again = load_images(tmp_path / "set", cache=tmp_path / "c")
    assert np.array_equal(again.images, before) and again.fingerprint == good.fingerprint
    assert load_images(tmp_path / "set", cache=tmp_path / "c").fingerprint == good.fingerprint


def test_files_of_killed_processes_are_deleted_unless_they_are_in_use(tmp_path: Path) -> None:
    png(tmp_path / "set/a.png", noise(0, 8, 8))
    images = tmp_path / "c/images"
    for name in (".tmp-dead", ".tmp-live"):
        (images / name).mkdir(parents=True)
        (images / name / "images.npy").write_text("half")
    (images / ".tmp-gone.lock").write_text("")
    with FileLock(images / ".tmp-live.lock"):
        load_images(tmp_path / "set", cache=tmp_path / "c")
        remaining = {path.name for path in images.glob(".*")}
    assert remaining == {".tmp-live", ".tmp-live.lock"}


def write_good_and_broken_files(folder: Path, good: int, broken: int) -> None:
    folder.mkdir()
    for index in range(good):
        png(folder / f"g{index:02d}.png", noise(index, 8, 8))
    for index in range(broken):
        file = io.BytesIO()
        Image.fromarray(noise(99, 64, 64)).save(file, "PNG")
        path = folder / f"h{index}.png"
        path.write_bytes(file.getvalue()[: 200 * index])  # empty, then cut short


def test_broken_files_are_skipped_and_listed_up_to_the_limit(tmp_path: Path) -> None:
    write_good_and_broken_files(tmp_path / "set", 18, 2)
    load = partial(load_images, tmp_path / "set", resolution=8, cache=tmp_path / "c")
    for _ in range(2):  # decoding, then from the store
        with pytest.raises(UserError) as caught:
            load()
        message = str(caught.value)
        assert message.startswith(
            "2 of 20 images are broken, but at most 5 % are allowed: h0.png (empty"
        )
        assert message.endswith("remove them or raise --max-broken")
        images = load(max_broken=0.1)
    assert len(images) == 18
    assert [name.split(" ")[0] for name in images.broken] == ["h0.png", "h1.png"]
    assert np.array_equal(images.images[17, 0], noise(17, 8, 8))


def test_a_folder_of_broken_files_is_an_error(tmp_path: Path) -> None:
    write_good_and_broken_files(tmp_path / "set", 0, 2)
    with pytest.raises(UserError, match="no image can be read"):
        load_images(tmp_path / "set", resolution=8, max_broken=1, cache=tmp_path / "c")


def test_duplicates_are_found_by_pixels_not_bytes(tmp_path: Path) -> None:
    pixels = noise(0, 8, 8, 3)
    png(tmp_path / "set/a.png", pixels)
    png(tmp_path / "set/b.bmp", pixels)
    png(tmp_path / "set/c.png", noise(1, 8, 8, 3))
    images = load_images(tmp_path / "set", cache=tmp_path / "c")
    assert images.duplicates == ("b.bmp (same as a.png)",)
    record = json.loads(json.dumps(images.describe()))
    assert (record["count"], record["duplicates"], record["resolution"]) == (3, 1, [8, 8])


def test_workers_give_the_same_blocks_as_one_process() -> None:
    source = open_source("glyphs:count=40", SourceContext(Path("unused")))
    task = partial(decode_block, source, PreprocessPlan((8, 8), 1, "crop"))
    serial = list(run_blocks(task, 40, 8, workers=1))
    parallel = list(_run_in_workers(task, 40, 8, 1, 2))
    assert [block.indices for block in parallel] == [block.indices for block in serial[1:]]
    for a, b in zip(serial[1:], parallel, strict=True):
        assert np.array_equal(a.images, b.images)
        assert a.digests == b.digests


def test_errors_in_a_worker_are_raised_in_the_caller() -> None:
    with pytest.raises(TypeError, match="not subscriptable"):
        list(_run_in_workers(operator.getitem, 4, 1, 0, 2))  # type: ignore[arg-type]


def exit_at_image_4(flag: Path, times: int, start: int, stop: int) -> tuple[int, int]:
    """Return the range, but exit the first ``times`` times that the range holds 4."""
    if start <= 4 < stop and len(list(flag.parent.glob("died-*"))) < times:
        (flag.parent / f"died-{os.getpid()}").touch()
        os._exit(9)
    return start, stop


def test_a_worker_that_dies_is_replaced_once(tmp_path: Path) -> None:
    blocks = list(_run_in_workers(partial(exit_at_image_4, tmp_path / "x", 1), 10, 2, 0, 2))
    assert blocks == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


def test_images_that_kill_every_worker_are_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exited early \(exit code 9\) at images 4 to 5"):
        list(_run_in_workers(partial(exit_at_image_4, tmp_path / "x", 9), 10, 2, 0, 2))


def test_the_cache_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("GROWGAN_CACHE")
    assert default_cache() == Path.home() / ".cache" / "growgan"


# ------------------------------------------------------------------ sets and batches


def test_the_held_out_split_is_always_the_same() -> None:
    images = make_set(1000)
    train, held_out = images.split_held_out(0.2)
    assert (len(train), len(held_out)) == (800, 200)
    together = np.concatenate([numbers_of(train.images), numbers_of(held_out.images)])
    assert sorted(together.tolist()) == list(range(1000))
    assert held_out.labels is not None
    assert np.array_equal(held_out.labels, numbers_of(held_out.images) % 7)
    assert np.array_equal(images.split_held_out(0.2)[1].images, held_out.images)
    assert len({images.fingerprint, train.fingerprint, held_out.fingerprint}) == 3
    assert 300 < numbers_of(held_out.images).mean() < 700  # drawn from the whole set
    with pytest.raises(UserError, match="must leave images on both sides"):
        images.split_held_out(0.0001)


def test_consecutive_rows_are_a_view_and_large_parts_are_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = make_set(3000)
    assert np.shares_memory(images.subset(np.arange(5, 50)).images, images.images)
    monkeypatch.setattr("growgan.data.images.MAX_COPY_BYTES", 100)
    rows = np.arange(0, 3000, 2)
    mapped = images.subset(rows)
    assert isinstance(mapped.images, np.memmap)
    assert np.array_equal(numbers_of(mapped.images), rows)
    assert len(images.subset(np.array([], dtype=np.int64))) == 0


@pytest.mark.parametrize("batch", [1, 3, 10, 25])
def test_every_epoch_holds_every_image_once(batch: int) -> None:
    batches = Batches(make_set(10), batch, seed=4)
    steps = 30 // batch + 2
    order = np.concatenate([numbers_of(batches.batch_at(i * batch)[0]) for i in range(steps)])
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()


def test_batches_depend_on_seed_and_position_alone() -> None:
    images = make_set(500)
    one, two = Batches(images, 64, seed=1), Batches(images, 64, seed=1)
    for position in (0, 64, 480, 99_999):
        two.batch_at(7)
        a, labels = one.batch_at(position)
        b, _ = two.batch_at(position)
        assert torch.equal(a, b)
        assert labels is not None
        assert a.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert np.array_equal(labels.numpy(), numbers_of(a) % 7)
    assert not torch.equal(one.batch_at(0)[0], Batches(images, 64, seed=2).batch_at(0)[0])
    small_batch = numbers_of(Batches(images, 32, seed=1).batch_at(96)[0])
    large_batch = numbers_of(Batches(images, 128, seed=1).batch_at(0)[0])
    assert np.array_equal(
        large_batch[96:], small_batch
    )  # the order does not depend on the batch size


def test_batches_without_labels_or_images() -> None:
    assert Batches(make_set(8, labeled=False), 4, 0).batch_at(0)[1] is None
    with pytest.raises(UserError, match="batch_size must be at least 1, but got 0"):
        Batches(make_set(8), 0, 0)
    with pytest.raises(UserError, match="'numbered' has too few images"):
        Batches(make_set(8).subset(np.array([], dtype=np.int64)), 4, 0)
    with pytest.raises(ValueError, match="position"):
        Batches(make_set(8), 4, 0).batch_at(-1)


# ------------------------------------------------------------------ growgan data


def make_pets(folder: Path) -> Path:
    png(folder / "cat/a.png", noise(0, 8, 8, 3))
    png(folder / "cat/b.png", noise(0, 8, 8, 3))
    png(folder / "dog/c.png", noise(1, 8, 6))
    (folder / "dog/d.png").write_bytes(b"oops")
    (folder / "notes.txt").write_text("a note")
    return folder


def test_a_summary_counts_everything(tmp_path: Path) -> None:
    summary = summarize(make_pets(tmp_path / "pets"), cache=tmp_path / "c")
    assert (summary.num_files, summary.num_usable, summary.num_ignored) == (4, 3, 1)
    assert dict(summary.sizes) == {(8, 8): 2, (8, 6): 1}
    assert dict(summary.channels) == {3: 2, 1: 1}
    assert summary.classes == {"cat": 2, "dog": 1}
    assert summary.broken == ("dog/d.png (not an image)",)
    assert summary.duplicates == ("cat/b.png (same as cat/a.png)",)
    assert summary.plan is None
    planned = summarize(tmp_path / "pets", resolution=7, cache=tmp_path / "c")
    assert planned.plan == PreprocessPlan((7, 7), 3, "crop")
    assert planned.num_enlarged == 1


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command("data")(data)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "c"))
    pets = str(make_pets(tmp_path / "pets"))
    result = run(pets, "--max-broken", "0.5")
    assert result.exit_code == 0
    for text in ("8 x 6", "3 (RGB)", "cat", "dog/d.png (not an image)", "choose one with"):
        assert text in result.output
    summary = json.loads(run(pets, "--json", "--max-broken", "0.5", "--resolution", "8").output)
    assert summary["count"] == 3
    assert summary["sizes"][0] == {"height": 8, "width": 8, "count": 2}
    assert summary["channels"] == {"1": 1, "3": 2}
    assert summary["prepared"] == {
        "resolution": [8, 8],
        "channels": 3,
        "fit": "crop",
        "enlarged": 1,
    }


def test_the_command_fails_on_too_many_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "c"))
    pets = str(make_pets(tmp_path / "pets"))
    failed = run(pets)
    assert isinstance(failed.exception, UserError)
    assert "1 of 4 images are broken" in str(failed.exception)
    assert "8 x 6" in failed.output  # the tables are still printed
    assert isinstance(run(pets, "--max-broken", "5").exception, UserError)
    assert isinstance(run(pets, "--resolution", "big").exception, UserError)
