"""Fashion-MNIST (Xiao et al., 2017, arXiv 1708.07747): 28x28 gray, ten classes of garment."""

from __future__ import annotations

import hashlib
import urllib.request
import zlib
from functools import partial
from pathlib import Path
from typing import Final

from growgan.data.files import combine, file_digest, write_atomic
from growgan.data.idx import read_idx_pair
from growgan.data.sources import Arrays, ArraySource, parse_options
from growgan.errors import UserError

CLASSES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN: Final = Path("/usr/share/datasets/fashion-mnist")
ADDRESSES: Final = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
# SHA-256 of the unpacked files, so that however they were packed, they are the same.
DIGESTS: Final = {
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
LIMIT: Final = 64 << 20  # bytes to download, or to unpack, at most


def open_fashion_mnist(options: str, cache: Path) -> ArraySource:
    """Return the 60,000 training images, or with ``test`` the other 10,000.

    Looked for where Debian's package dataset-fashion-mnist puts it, then in
    ``CACHE/fashion-mnist``, then downloaded there. Raises UserError that says how to get it.
    """
    part = "t10k" if "test" in parse_options(options, "fashion-mnist", {"test": False}) else "train"
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    folder = _find(names, cache)
    images, labels = (_file(folder, name) for name in names)
    digest = combine("fashion-mnist", file_digest(images, cache), file_digest(labels, cache))
    name = "fashion-mnist" if part == "train" else "fashion-mnist:test"
    return ArraySource(name, str(folder), digest, partial(read_checked, images, labels))


def _file(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def _find(names: tuple[str, ...], cache: Path) -> Path:
    own = cache / "fashion-mnist"
    for folder in (DEBIAN, own):
        if all(_file(folder, name).is_file() for name in names):
            return folder
    for name in names:
        if not _file(own, name).is_file():
            _download(name, own)
    return own


def read_checked(images: Path, labels: Path) -> Arrays:
    """Read images and labels once both are known to be the published ones."""
    for path in (images, labels):
        if not is_genuine(path.name.removesuffix(".gz"), path.read_bytes()):
            raise UserError(f"'{path}' is not the published file (its checksum differs); remove it")
    return read_idx_pair(images, labels, CLASSES)


def is_genuine(name: str, data: bytes) -> bool:
    """Say whether a file's content, plain or gzipped, is the published one of that name."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = zlib.decompressobj(wbits=31).decompress(data, LIMIT)
        except zlib.error:
            return False
    return hashlib.sha256(data).hexdigest() == DIGESTS[name]


def _download(name: str, folder: Path) -> None:
    why = ""
    for address in ADDRESSES:
        try:
            with urllib.request.urlopen(f"{address}{name}.gz", timeout=20) as reply:
                data = reply.read(LIMIT)
        except (OSError, ValueError) as error:
            why = why or str(getattr(error, "reason", error))
            continue
        if is_genuine(name, data):
            write_atomic(folder / f"{name}.gz", data)
            return
        why = "the checksum of what came differs"
    raise UserError(
        f"fashion-mnist is not here and cannot be downloaded ({why}); run `apt-get install "
        f"dataset-fashion-mnist`, or put its .gz files into {folder}"
    )
