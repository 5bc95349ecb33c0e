"""Fashion-MNIST (Xiao et al. 2017, 1708.07747): 28x28 gray images, ten classes of clothing."""

from __future__ import annotations

import hashlib
import urllib.request
import zlib
from functools import partial
from pathlib import Path
from typing import Final

from growgan.data.base import ArraySource, ImageArrays, parse_options
from growgan.data.cache import cached_file_sha256, write_cache_file
from growgan.data.idx import read_idx_pair
from growgan.errors import UserError
from growgan.files import hash_json

CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_URLS: Final = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
# SHA-256 of the unpacked files, which do not depend on how they were packed.
SHA256: Final = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
MAX_BYTES: Final = 64 << 20  # of a download and of an unpacked file


def open_fashion_mnist(options: str, cache: Path) -> ArraySource:
    """Open the 60,000 training images, or with the option ``test`` the 10,000 test images.

    The files are taken from Debian's package dataset-fashion-mnist, from
    ``CACHE/fashion-mnist``, or downloaded to the latter.

    Raises:
        UserError: The files are not there and cannot be downloaded.
    """
    part = "t10k" if "test" in parse_options(options, "fashion-mnist", {"test": False}) else "train"
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    folder = _find(names, cache)
    images, labels = (_file(folder, name) for name in names)
    digest = hash_json(
        "fashion-mnist", cached_file_sha256(images, cache), cached_file_sha256(labels, cache)
    )
    name = "fashion-mnist" if part == "train" else "fashion-mnist:test"
    return ArraySource(name, str(folder), digest, partial(read_checked, images, labels))


def _file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _find(names: tuple[str, ...], cache: Path) -> Path:
    cached = cache / "fashion-mnist"
    for folder in (DEBIAN_FOLDER, cached):
        if all(_file(folder, name).is_file() for name in names):
            return folder
    for name in names:
        if not _file(cached, name).is_file():
            _download(name, cached)
    return cached


def read_checked(images: Path, labels: Path) -> ImageArrays:
    """Read images and labels after verifying their checksums."""
    for path in (images, labels):
        if not is_genuine(path.name.removesuffix(".gz"), path.read_bytes()):
            raise UserError(f"'{path}' is not the published file (its checksum differs); remove it")
    return read_idx_pair(images, labels, CLASSES)


def is_genuine(name: str, data: bytes) -> bool:
    """Return whether data, plain or gzipped, is the published file of that name."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(wbits=31).decompress(data, MAX_BYTES)
        except zlib.error:
            return False
    return hashlib.sha256(data).hexdigest() == SHA256[name]


def _download(name: str, folder: Path) -> None:
    reason = ""
    for url in DOWNLOAD_URLS:
        try:
            with urllib.request.urlopen(f"{url}{name}.gz", timeout=20) as response:
                data = response.read(MAX_BYTES)
        except (OSError, ValueError) as error:
            reason = reason or str(getattr(error, "reason", error))
            continue
        if is_genuine(name, data):
            write_cache_file(folder / f"{name}.gz", data)
            return
        reason = "the checksum of the download differs"
    raise UserError(
        f"fashion-mnist is not installed and cannot be downloaded ({reason}); run `apt-get install "
        f"dataset-fashion-mnist`, or put its .gz files into {folder}"
    )
