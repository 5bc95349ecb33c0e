"""One of the two sets that a metric compares, and what metrics need of it, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from growgan.data.files import combine, write_atomic
from growgan.errors import UserError
from growgan.metrics.distances import Moments
from growgan.metrics.features import Extractor
from growgan.metrics.watch import Watch, unwatched

_CHUNK = 512  # images that an extractor gets at once
_LARGEST = 2**30  # bytes of features that are held, and kept in the cache


class Side(Protocol):
    """One of the two sets, as metrics see it: by its images, or by what was made of them."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> NDArray[np.int64] | None: ...

    def __len__(self) -> int: ...

    @property
    def resolution(self) -> tuple[int, int]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def labelling(self) -> str: ...

    @property
    def extractor(self) -> Extractor: ...

    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def features(self) -> Tensor: ...

    @property
    def moments(self) -> Moments: ...

    @property
    def probabilities(self) -> Tensor: ...


class Stored:
    """Images uint8 [N, C, H, W], labels int64 [N] or None, and what is made of them.

    Args:
        name: "fakes", "reals" or the like, for messages.
        extractor: returns what features are of; called where a metric asks for them.
        identity: names the images in their order; "" for images that do not return.
        cache: where what was made of named images is kept for the next time.
        watch: told how far it has come.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
        *,
        name: str,
        extractor: Callable[[], Extractor],
        identity: str = "",
        cache: Path | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self.images, self.labels, self.name = images, labels, name
        self.watch, self._extractor, self._identity = watch, extractor, identity
        self._cache = cache if identity else None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def fingerprint(self) -> str:
        """What names the images, whatever their order and labels: see :class:`Digest`."""
        path = self._path("digest", self._identity)
        if path and path.is_file():
            return path.read_text()
        found = Digest.of(self.images)
        if path:
            write_atomic(path, found.encode())
        return found

    @cached_property
    def labelling(self) -> str:
        """What names the images with their labels, whatever their order."""
        return Digest.of(self.images, self.labels)

    @property
    def extractor(self) -> Extractor:
        """What features are of. Raises UserError where it cannot be had."""
        return self._extractor()

    def chunks(self) -> Iterator[Tensor]:
        """Yield the images, uint8 [n, C, H, W], some at a time."""
        for start in range(0, len(self), _CHUNK):
            yield torch.from_numpy(np.array(self.images[start : start + _CHUNK]))

    @cached_property
    def features(self) -> Tensor:
        """The features of all images, float32 [N, d] on the CPU; from the cache if they are there.

        Raises UserError where the extractor cannot be had.
        """
        path = self._path("features", self._identity, self.extractor.fingerprint)
        known = _read(path)
        if "features" in known and len(known["features"]) == len(self):
            return known["features"]
        features = torch.cat(list(self._each("features", self.extractor)))
        if path and features.numel() * features.element_size() <= _LARGEST:
            write_atomic(path, save({"features": features}))
        return features

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features; features too large to be held are not."""
        path = self._path("moments", self._identity, self.extractor.fingerprint)
        known = _read(path)
        if {"mean", "covariance"} <= set(known):
            return Moments(len(self), known["mean"], known["covariance"])
        width = self.extractor(next(self.chunks())[:1]).shape[1]
        held = 4 * width * len(self) <= _LARGEST
        chunks = self.features.split(_CHUNK) if held else self._each("features", self.extractor)
        moments = Moments.of_chunks(chunks)
        if path:
            tensors = {"mean": moments.mean, "covariance": moments.covariance}
            write_atomic(path, save({name: each.contiguous() for name, each in tensors.items()}))
        return moments

    @cached_property
    def probabilities(self) -> Tensor:
        """The extractor's class probabilities of all images, float32 [N, K].

        Raises UserError for an extractor that gives none.
        """
        return torch.cat(list(self._each("classes", classifier(self.extractor))))

    def _each(self, what: str, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        done = 0
        for chunk in self.chunks():
            self.watch(f"{what} of the {self.name}", done, len(self))
            yield function(chunk).cpu()
            done += len(chunk)
        self.watch(f"{what} of the {self.name}", done, len(self))

    def _path(self, what: str, *key: str) -> Path | None:
        if self._cache is None:
            return None
        return self._cache / what / combine(what, *key)[:32]


class Digest:
    """Names a set of images by its pixels, and labels: the sum of each SHA-256, modulo 2²⁵⁶.

    Neither the order of the images nor how they were cut into batches changes it.
    """

    def __init__(self) -> None:
        self._sum = 0

    @classmethod
    def of(cls, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> str:
        """Return the name of ``images`` [N, C, H, W], and of their ``labels`` [N] if given."""
        digest = cls()
        for start in range(0, len(images), _CHUNK):
            some = slice(start, start + _CHUNK)
            digest.update(images[some], None if labels is None else labels[some])
        return digest.name()

    def update(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> None:
        """Add ``images`` [n, C, H, W], each with its label if there are ``labels``."""
        shape = f"{images.shape[1:]}".encode()
        for index, image in enumerate(np.ascontiguousarray(images)):
            digest = hashlib.sha256(image.data)
            digest.update(shape)
            if labels is not None:
                digest.update(str(int(labels[index])).encode())
            self._sum += int.from_bytes(digest.digest(), "big")

    def name(self) -> str:
        """Return 64 hexadecimal digits."""
        return f"{self._sum % 2**256:064x}"


def classifier(extractor: Extractor) -> Callable[[Tensor], Tensor]:
    """Return what gives class probabilities; raise UserError where ``extractor`` has none."""
    found: Callable[[Tensor], Tensor] | None = getattr(extractor, "probabilities", None)
    if found is None:
        raise UserError("needs class probabilities: --features inception")
    return found


def _read(path: Path | None) -> dict[str, Tensor]:
    """Return the tensors in ``path``; none where there is no whole file, which is then replaced."""
    if path is None or not path.is_file():
        return {}
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return {}
