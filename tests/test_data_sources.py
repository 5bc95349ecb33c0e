"""Tests of reading images from folders, archives, arrays and named sources."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from growgan.cli.app import main
from growgan.data import ImageSet, archives, load_images
from growgan.data import fashion as fashion_module
from growgan.data.decode import BrokenImageError, decode, read_header, to_uint8, uint16_to_uint8
from growgan.errors import UserError

Load = Callable[..., ImageSet]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def with_cache(source: str | Path, **settings: Any) -> ImageSet:
        return load_images(source, cache=tmp_path / "cache", **settings)

    return with_cache


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels: NDArray[Any], kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **settings)
    return file.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


# ------------------------------------------------------------------ folders


def test_class_folders_become_labels_in_name_order(tmp_path: Path, load: Load) -> None:
    put(tmp_path / "pets/dog/deep/b.png", encode(noise(1, 8, 8, 3)))
    put(tmp_path / "pets/cat/a.png", encode(noise(2, 8, 8, 3)))
    put(tmp_path / "pets/cat/c.png", encode(noise(3, 8, 8, 3)))
    put(tmp_path / "pets/notes.txt", b"not an image")
    images = load(tmp_path / "pets")
    assert images.name == "pets"
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]
    assert np.array_equal(images.images[0], noise(2, 8, 8, 3).transpose(2, 0, 1))
    assert np.array_equal(images.images[2], noise(1, 8, 8, 3).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "names",
    [("a.png", "b.png"), ("one/a.png", "one/b.png"), ("one/a.png", "b.png")],
    ids=["flat", "one folder", "some outside"],
)
def test_folders_that_are_not_classes_give_no_labels(
    tmp_path: Path, load: Load, names: tuple[str, ...]
) -> None:
    for seed, name in enumerate(names):
        put(tmp_path / "set" / name, encode(noise(seed, 8, 8)))
    images = load(tmp_path / "set")
    assert (images.labels, images.classes, len(images)) == (None, (), 2)


def test_classes_are_the_folders_below_the_common_ones(tmp_path: Path, load: Load) -> None:
    for seed, name in enumerate(["in/train/cat/1.png", "in/train/catfish/1.png"]):
        put(tmp_path / "set" / name, encode(noise(seed, 8, 8)))
    assert load(tmp_path / "set").classes == ("cat", "catfish")


def test_a_linked_folder_is_followed_once(tmp_path: Path, load: Load) -> None:
    put(tmp_path / "elsewhere/a.png", encode(noise(0, 8, 8)))
    put(tmp_path / "set/b/b.png", encode(noise(1, 8, 8)))
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/a")
    os.symlink(tmp_path / "set", tmp_path / "set/b/loop")
    assert load(tmp_path / "set").classes == ("a", "b")


def test_empty_and_missing_folders_are_user_errors(tmp_path: Path, load: Load) -> None:
    put(tmp_path / "empty/readme.txt", b"")
    with pytest.raises(UserError, match=r"contains no images .*1 other files"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"DATA '.*gone/here' does not exist; it must be a folder"):
        load(str(tmp_path / "gone/here"))


def test_unknown_names_suggest_the_nearest(load: Load) -> None:
    with pytest.raises(UserError, match=r"unknown DATA 'glyfs' \(did you mean 'glyphs'\?\)"):
        load("glyfs")


# ------------------------------------------------------------------ kinds of image


def test_sixteen_bits_scale_by_257() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = [[round(v / 257) for v in (0, 128, 129, 257, 32768, 65535)]]
    assert uint16_to_uint8(values).tolist() == expected
    for kind in ("PNG", "TIFF"):
        assert decode(encode(values, kind))[..., 0].tolist() == expected
    pgm = b"P5 6 1 65535\n" + values.astype(">u2").tobytes()
    assert decode(pgm)[..., 0].tolist() == expected


def test_exif_turns_the_image_upright() -> None:
    pixels = noise(0, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    data = encode(pixels, "PNG", exif=exif)
    assert read_header(data) == (6, 4, 1)
    assert np.array_equal(decode(data)[..., 0], np.rot90(pixels, -1))
    assert read_header(encode(noise(0, 40, 60, 3), "JPEG", exif=exif)) == (60, 40, 3)


def test_palettes_are_converted_to_colors() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    file = io.BytesIO()
    image.save(file, "PNG")
    assert decode(file.getvalue()).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert read_header(file.getvalue()) == (1, 2, 3)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    assert decode(file.getvalue()).tolist() == [[[10, 20, 30, 0], [200, 100, 50, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([False, True]), [0, 255]),
        (np.array([0.0, 0.5, 1.0]), [0, 128, 255]),
        (np.array([-1.0, 0.0, 1.0]), [0, 128, 255]),
        (np.array([0.0, 254.6]), [0, 255]),
        (np.array([3, 250], dtype=np.int64), [3, 250]),
        (np.array([0, 65535], dtype=np.int32), [0, 255]),
    ],
)
def test_numbers_of_usual_ranges_are_converted_to_uint8(
    values: NDArray[Any], expected: list[int]
) -> None:
    assert to_uint8(values).tolist() == expected


@pytest.mark.parametrize("values", [np.array([np.nan]), np.array([-5]), np.array([300.0])])
def test_numbers_of_other_ranges_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(BrokenImageError):
        to_uint8(values)


def test_a_jpeg_decoded_small_stays_above_twice_the_target() -> None:
    ramp = np.tile(np.linspace(0, 255, 512).astype(np.uint8), (512, 1))
    small = decode(encode(ramp, "JPEG", quality=95), (32, 32))
    assert small.shape == (64, 64, 1)
    assert np.abs(small[32, :, 0].astype(int) - np.linspace(0, 255, 64)).max() < 6


def test_an_image_with_too_many_pixels_is_refused_before_decoding() -> None:
    header = b"P5 100000 100000 255\n"
    with pytest.raises(BrokenImageError):
        decode(header + b"\0")


def test_postscript_is_never_run() -> None:
    with pytest.raises(BrokenImageError, match="not an image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")


# ------------------------------------------------------------------ zip


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_zip_reads_like_the_folder_in_it(tmp_path: Path, load: Load) -> None:
    files = {
        f"top/{c}/{i}.png": encode(noise(i + 9 * (c == "b"), 8, 8)) for c in "ab" for i in (0, 1)
    }
    for name, data in files.items():
        put(tmp_path / name, data)
    packed = load(make_zip(tmp_path / "set.zip", files | {"__MACOSX/top/a/._0.png": b"x"}))
    folder = load(tmp_path / "top")
    assert packed.classes == folder.classes == ("a", "b")
    assert np.array_equal(packed.images, folder.images)
    assert packed.fingerprint == folder.fingerprint  # same pixels, labels and classes
    assert packed.broken == ()


def test_unsafe_names_and_bombs_in_a_zip_are_broken(tmp_path: Path, load: Load) -> None:
    bad = {
        "../up.png": encode(noise(0, 8, 8)),
        "/abs.png": encode(noise(1, 8, 8)),
        "a/bomb.png": bytes(1 << 27),
    }
    good = {"a/1.png": encode(noise(2, 8, 8)), "b/1.png": encode(noise(3, 8, 8))}
    path = make_zip(tmp_path / "set.zip", bad | good)
    images = load(path, max_broken=0.6)
    assert len(images) == 2
    assert images.classes == ("a", "b")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    broken = " ".join(images.broken)
    assert "../up.png (unsafe name" in broken
    assert "/abs.png (unsafe name" in broken
    assert "a/bomb.png (unpacks from" in broken
    assert not (tmp_path.parent / "up.png").exists()


def test_damaged_zips_are_user_errors(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UserError, match="cannot be read as a zip"):
        load(put(tmp_path / "set.zip", b"PK\x03\x04 no"))
    with pytest.raises(UserError, match="contains no images"):
        load(make_zip(tmp_path / "text.zip", {"a.txt": b""}))


@pytest.mark.parametrize(("side", "good"), [(3500, True), (6000, False)])
def test_pixels_of_a_zip_are_counted_before_they_are_decoded(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch, side: int, good: bool
) -> None:
    flat = encode(np.zeros((side, side), dtype=np.uint8))  # a thousand pixels per byte
    path = make_zip(tmp_path / "flat.zip", {f"{i}.png": flat for i in range(2)})
    monkeypatch.setattr(archives, "MIN_SUSPICIOUS_PIXELS", 25_000_000)
    if good:
        assert load(path, resolution=8).images.shape == (2, 1, 8, 8)
        return
    with pytest.raises(
        UserError, match=r"flat.zip' states 72,000,000 pixels; .* have 25,000,000: un"
    ):
        load(path, resolution=8)
    put(tmp_path / "flat/0.png", flat)  # a folder holds the user's own files
    assert load(tmp_path / "flat", resolution=8).images.shape == (1, 1, 8, 8)


def test_a_zip_with_too_many_pixels_is_refused(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_zip(tmp_path / "set.zip", {f"{i}.png": encode(noise(i, 9, 9)) for i in range(3)})
    monkeypatch.setattr(archives, "MAX_ARCHIVE_PIXELS", 242)
    with pytest.raises(UserError, match="states 243 pixels"):
        load(path)


def test_a_zip_of_too_many_entries_is_refused(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_zip(tmp_path / "set.zip", {f"{i}.png": encode(noise(i, 4, 4)) for i in range(9)})
    assert archives.MAX_ENTRIES > 3 * 1_281_167  # ImageNet's
    monkeypatch.setattr(archives, "MAX_ENTRIES", 8)
    with pytest.raises(UserError, match="has 9 entries; the limit is 8"):
        load(path)


def test_a_zip_with_too_large_a_total_size_is_refused(tmp_path: Path, load: Load) -> None:
    entries = {
        f"{i}.png": bytes(60 << 20) for i in range(2)
    }  # each is below the limit of a single file
    with pytest.raises(UserError, match="unpacks to over 200 times its size: unpack it into a"):
        load(make_zip(tmp_path / "set.zip", entries))


def test_control_characters_in_names_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    red, reversed_text = "\x1b[31mred\x07", "\u202egnp"
    entries = {f"{red}/{i}.png": encode(noise(i, 8, 8)) for i in range(2)}
    entries |= {f"b/{reversed_text}.png": b"broken", f"b/{red}.png": entries[f"{red}/0.png"]}
    assert main(["data", str(make_zip(tmp_path / f"{red}.zip", entries)), "--max-broken", "1"]) == 0
    output = capsys.readouterr().out
    assert not set(output) & {"\x1b", "\x07", "\u202e"}
    assert "\\x1b[31mred\\x07.zip" in output  # its name
    assert "\\x1b[31mred\\x07 " in output  # a class
    assert "\\u202egnp.png (not an image)" in output


# ------------------------------------------------------------------ npz


@pytest.mark.parametrize("key", ["images", "x", "arr_0"])
def test_npz_of_every_layout(tmp_path: Path, load: Load, key: str) -> None:
    pixels: Any = noise(0, 5, 6, 7, 3)
    np.savez(tmp_path / "nhwc.npz", **{key: pixels})
    np.savez(tmp_path / "nchw.npz", **{key: pixels.transpose(0, 3, 1, 2)})
    np.savez(tmp_path / "nhw.npz", **{key: pixels[..., 0]})
    expected = pixels.transpose(0, 3, 1, 2)
    assert np.array_equal(load(tmp_path / "nhwc.npz").images, expected)
    assert np.array_equal(load(tmp_path / "nchw.npz").images, expected)
    assert np.array_equal(load(tmp_path / "nhw.npz").images, expected[:, :1])


def test_npz_labels_may_be_numbers_names_or_one_hot(tmp_path: Path, load: Load) -> None:
    pixels = noise(0, 4, 8, 8)
    for name, labels, classes, expected in [
        ("numbers", np.array([5, -1, 9, 5]), ("5", "9"), [0, -1, 1, 0]),
        ("names", np.array(["b", "a", "b", "a"]), ("a", "b"), [1, 0, 1, 0]),
        ("hot", np.eye(3)[[2, 0, 1, 2]], ("0", "1", "2"), [2, 0, 1, 2]),
        ("some", np.eye(4, 3), ("0", "1", "2"), [0, 1, 2, -1]),
    ]:
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=labels)
        images = load(tmp_path / f"{name}.npz")
        assert images.classes == classes
        assert images.labels is not None
        assert images.labels.tolist() == expected
    np.savez(tmp_path / "several.npz", images=pixels, labels=np.tri(4, 3))
    with pytest.raises(UserError, match="image 1 has several labels; each image must have one"):
        load(tmp_path / "several.npz")
    latin = np.array([b"caf\xe9", b"bar", b"bar", "café".encode()])
    np.savez(tmp_path / "bytes.npz", images=pixels, labels=latin)
    assert load(tmp_path / "bytes.npz").classes == ("bar", "café", "caf\ufffd")
    none = np.frombuffer(b"\xff" * 16, "<U1")
    np.savez(tmp_path / "void.npz", images=pixels, labels=none.view("V4"))
    with pytest.raises(UserError, match=r"values of type .V4 cannot be used as names"):
        load(tmp_path / "void.npz")
    np.savez(tmp_path / "none.npz", images=pixels, labels=none)
    with pytest.raises(UserError, match="names contain invalid characters"):
        load(tmp_path / "none.npz")
    np.savez(tmp_path / "named.npz", x=pixels, y=[2, 0, 0, 2], classes=["p", "q", "r"])
    named = load(tmp_path / "named.npz")
    assert named.classes == ("p", "q", "r")
    assert named.labels is not None
    assert named.labels.tolist() == [2, 0, 0, 2]


def test_bad_npz_files_are_user_errors(tmp_path: Path, load: Load) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match=r"has no images: it contains weights"):
        load(tmp_path / "other.npz")
    np.savez(tmp_path / "short.npz", images=noise(0, 4, 8, 8), labels=[1, 2])
    with pytest.raises(UserError, match="has 4 images but 2 labels"):
        load(tmp_path / "short.npz")
    np.savez(tmp_path / "shape.npz", images=noise(0, 4, 8, 8, 2))
    with pytest.raises(UserError, match=r"has shape \[4, 8, 8, 2\]; it must be"):
        load(tmp_path / "shape.npz")
    with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
        load(put(tmp_path / "junk.npz", b"junk"))
    for labels in (np.array(3), np.zeros((4, 2, 2)), np.zeros((4, 0))):
        np.savez(tmp_path / "axes.npz", images=noise(0, 4, 8, 8), labels=labels)
        with pytest.raises(UserError, match=r"has labels of shape \[.*\]; they must be \[N\], "):
            load(tmp_path / "axes.npz")
    for key in ("images", "labels"):
        np.savez(tmp_path / "raw.npz", **{"images": noise(0, 4, 8, 8)} if key == "labels" else {})
        with zipfile.ZipFile(tmp_path / "raw.npz", "a") as archive:
            archive.writestr(key, b"no array")
        with pytest.raises(UserError, match=rf"'{key}' in '.*raw\.npz' is not an array"):
            load(tmp_path / "raw.npz")
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}], dtype=object))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
        load(tmp_path / "objects.npz")


# ------------------------------------------------------------------ IDX and Fashion-MNIST


@pytest.mark.parametrize("packed", [False, True])
def test_idx_images_are_read_with_the_labels_in_the_same_folder(
    tmp_path: Path, load: Load, packed: bool
) -> None:
    pixels, labels = noise(0, 6, 5, 7), np.array([3, 1, 3, 2, 1, 2], dtype=np.uint8)
    ending, pack = (".gz", gzip.compress) if packed else ("", bytes)
    file = put(tmp_path / f"set/train-images-idx3-ubyte{ending}", pack(idx_bytes(pixels)))
    put(tmp_path / f"set/train-labels-idx1-ubyte{ending}", pack(idx_bytes(labels)))
    put(tmp_path / "set/t10k-images-idx3-ubyte", idx_bytes(noise(1, 2, 5, 7)))
    for source in (file, tmp_path / "set"):
        images = load(source)
        assert np.array_equal(images.images[:, 0], pixels)
        assert images.classes == ("1", "2", "3")
        assert images.labels is not None
        assert images.labels.tolist() == [2, 0, 2, 1, 0, 1]
    assert load(tmp_path / "set/t10k-images-idx3-ubyte").labels is None


def test_bad_idx_files_are_user_errors(tmp_path: Path, load: Load) -> None:
    content = idx_bytes(noise(0, 6, 5, 7))
    with pytest.raises(UserError, match="is not of that length"):
        load(put(tmp_path / "short-idx3-ubyte", content[:-1]))
    with pytest.raises(UserError, match="cannot be read as IDX"):
        load(put(tmp_path / "cut-idx3-ubyte.gz", gzip.compress(content)[:-9]))
    with pytest.raises(UserError, match="1-dimensional data; it must be the images file"):
        load(put(tmp_path / "labels-idx1-ubyte", idx_bytes(noise(0, 6))))
    huge = struct.pack(">HBB3I", 0, 8, 3, 60000, 4000, 4000)
    with pytest.raises(UserError, match="so it is refused"):
        load(put(tmp_path / "bomb-idx3-ubyte", huge))
    with pytest.raises(UserError, match="must be a folder, a zip"):
        load(put(tmp_path / "photo.png", encode(noise(0, 8, 8))))


@pytest.mark.skipif(not fashion_module.DEBIAN_FOLDER.is_dir(), reason="needs dataset-fashion-mnist")
def test_fashion_mnist_has_the_published_images(load: Load) -> None:
    images = load("fashion-mnist:test", resolution=32)
    assert images.images.shape == (10_000, 1, 32, 32)
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [1000] * 10
    assert images.classes[9] == "Ankle boot"
    assert not images.images[:, :, [0, 1, 30, 31], :].any()  # 28 in 32: a border of 2, unscaled
    packed = (fashion_module.DEBIAN_FOLDER / "t10k-images-idx3-ubyte.gz").read_bytes()
    raw = np.frombuffer(gzip.decompress(packed), np.uint8, offset=16).reshape(-1, 28, 28)
    assert np.array_equal(images.images[:, 0, 2:30, 2:30], raw)
    assert images.labels[0] == 9  # the first test image is an ankle boot


def fake_fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: dict[str, bytes]) -> None:
    """Replace the published files by small ones, and let only ``served`` be downloaded."""

    def answer(address: str, timeout: float) -> io.BytesIO:
        name = address.rsplit("/", 1)[-1]
        if name not in served:
            raise OSError("no route to host")
        return io.BytesIO(served[name])

    parts = {
        "images-idx3": idx_bytes(noise(0, 3, 28, 28)),
        "labels-idx1": idx_bytes(noise(1, 3) % 10),
    }
    digests = {f"train-{k}-ubyte": hashlib.sha256(v).hexdigest() for k, v in parts.items()}
    served |= {
        f"train-{k}-ubyte.gz": gzip.compress(v) for k, v in parts.items() if "serve" in served
    }
    monkeypatch.setattr(fashion_module, "DEBIAN_FOLDER", tmp_path / "nowhere")
    monkeypatch.setattr(fashion_module, "SHA256", digests)
    monkeypatch.setattr("urllib.request.urlopen", answer)


def test_fashion_mnist_is_downloaded_once_and_checked(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = {"serve": b""}
    fake_fashion(monkeypatch, tmp_path, served)
    assert load("fashion-mnist").images.shape == (3, 1, 28, 28)
    assert len(list((tmp_path / "cache/fashion-mnist").iterdir())) == 2
    served.clear()
    assert len(load("fashion-mnist", resolution=32)) == 3


def test_an_unreachable_fashion_mnist_is_an_error_with_instructions(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_fashion(monkeypatch, tmp_path, {})
    with pytest.raises(UserError, match=r"no route to host.*apt-get install dataset-fashion-mnist"):
        load("fashion-mnist")
    wrong = gzip.compress(b"something else")
    fake_fashion(monkeypatch, tmp_path, {"train-images-idx3-ubyte.gz": wrong})
    with pytest.raises(UserError, match="checksum of the download differs"):
        load("fashion-mnist")
    assert not (tmp_path / "cache/fashion-mnist/train-images-idx3-ubyte.gz").exists()


# ------------------------------------------------------------------ digits and hub


def test_digits_are_spread_over_the_whole_range(load: Load) -> None:
    pytest.importorskip("sklearn")
    images = load("digits")
    assert images.images.shape == (1797, 1, 8, 8)
    assert images.classes == tuple("0123456789")
    levels = np.unique(images.images)
    assert levels.tolist() == [round(level * 255 / 16) for level in range(17)]


def test_digits_without_scikit_learn_name_the_package_to_install(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        load("digits")


class ClassLabel:
    names = ("no", "yes")


class HubImage:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


HubImage.__name__ = "Image"


class Rows:
    """The part of a dataset of the hub that growgan uses."""

    _fingerprint = "abc"

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self.features: dict[str, Any] = {"picture": HubImage(), "answer": ClassLabel()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | str) -> Any:
        return self._rows[key] if isinstance(key, int) else [row[key] for row in self._rows]

    def cast_column(self, name: str, feature: HubImage) -> Rows:
        assert (name, feature.decode) == ("picture", False)
        return self


def test_hub_reads_encoded_rows_and_class_labels(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_file = put(tmp_path / "b.png", encode(noise(1, 8, 8, 3)))
    rows: list[dict[str, Any]] = [
        {"picture": {"bytes": encode(noise(0, 8, 8, 3)), "path": None}, "answer": 1},
        {"picture": {"bytes": None, "path": str(image_file)}, "answer": None},
        {"picture": Image.fromarray(noise(2, 8, 8, 3)), "answer": 0},
    ]
    requests: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, split: str) -> Rows:
        requests.append((name, config, split))
        if name == "gone":
            raise FileNotFoundError("no such dataset\non the hub")
        return Rows(rows)

    stand_in = types.ModuleType("datasets")
    vars(stand_in).update(load_dataset=load_dataset, Image=HubImage)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    images = load("hub:people/faces,split=test")
    assert requests == [("people/faces", None, "test")]
    assert images.name == "faces"
    assert images.classes == ("no", "yes")
    assert images.labels is not None
    assert images.labels.tolist() == [1, -1, 0]
    for index in range(3):
        assert np.array_equal(images.images[index], noise(index, 8, 8, 3).transpose(2, 0, 1))
    with pytest.raises(UserError, match=r"'gone' \(split train\) .*: no such dataset on the hub"):
        load("hub:gone")


def test_hub_without_its_library_names_the_package_to_install(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'growgan\[hub\]'"):
        load("hub:mnist")
    with pytest.raises(UserError, match="must be followed by the name of a dataset"):
        load("hub:")
