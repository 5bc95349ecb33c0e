"""An order-independent hash of a set of images."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from growgan.metrics.image_batches import IMAGES_PER_BATCH


class ImageSetHash:
    """Identify a set of images by its pixels, and by its labels if there are any.

    The hash is the sum, modulo 2²⁵⁶, of the SHA-256 of each image. It depends neither on the order
    of the images nor on how they are split into batches.
    """

    def __init__(self) -> None:
        self._sum = 0

    @classmethod
    def hash_images(cls, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> str:
        """Return the hash of ``images`` [N, C, H, W], and of their ``labels`` [N] if given."""
        image_set_hash = cls()
        for start in range(0, len(images), IMAGES_PER_BATCH):
            batch = slice(start, start + IMAGES_PER_BATCH)
            image_set_hash.update(images[batch], None if labels is None else labels[batch])
        return image_set_hash.hexdigest()

    def update(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> None:
        """Add ``images`` [n, C, H, W], each with its label if ``labels`` [n] is given."""
        shape = f"{images.shape[1:]}".encode()
        for index, image in enumerate(np.ascontiguousarray(images)):
            digest = hashlib.sha256(image.data)
            digest.update(shape)
            if labels is not None:
                digest.update(str(int(labels[index])).encode())
            self._sum += int.from_bytes(digest.digest(), "big")

    def hexdigest(self) -> str:
        """Return the hash as 64 hexadecimal digits."""
        return f"{self._sum % 2**256:064x}"
