"""Shuffled batches as a pure function of seed and position, so there is no state to save."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.images import ImageSet
from growgan.errors import UserError


class Batches:
    """Batches of a set; each epoch is shuffled by (seed, epoch).

    Attributes:
        held_out_indices: Indices of the images that are in no batch, shuffled by the seed.
    """

    def __init__(self, images: ImageSet, batch_size: int, seed: int, num_held_out: int = 0) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, but got {batch_size}")
        if len(images) <= num_held_out:
            raise UserError(f"'{images.name}' has too few images: all are held out")
        self.batch_size, self.seed = batch_size, seed
        self._images = np.asarray(images.images)
        self._labels = images.labels
        self._source_images = images.source_images
        shuffled = np.random.default_rng((self.seed, len(images))).permutation(len(images))
        self.held_out_indices = np.sort(shuffled[:num_held_out])
        self._rows = np.sort(shuffled[num_held_out:])
        self._order: Callable[[int], NDArray[np.int64]] = lru_cache(maxsize=2)(self._shuffle)

    @property
    def training_labels(self) -> Tensor | None:
        """The known labels of the training images, int64; None if there are none."""
        if self._labels is None:
            return None
        labels = self._labels[self._rows]
        labels = labels[labels >= 0]
        return torch.from_numpy(labels) if len(labels) else None

    def sample_labels(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return the labels of :meth:`sample_images`, int64, -1 if unknown; None without any."""
        rows = self._sample_indices(count, held_out)
        return None if self._labels is None else torch.from_numpy(self._labels[rows])

    def source_at(self, position: int) -> Tensor | None:
        """Return the source images of :meth:`batch_at`: uint8 [B, S, H, W], or None."""
        if self._source_images is None:
            return None
        return torch.from_numpy(self._source_images[self.indices_at(position)])

    def sample_source_images(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return the source images of :meth:`sample_images`: uint8 [n, S, H, W], or None."""
        rows = self._sample_indices(count, held_out)
        return None if self._source_images is None else torch.from_numpy(self._source_images[rows])

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return len(self._rows)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self._rows)

    def indices_at(self, position: int) -> NDArray[np.int64]:
        """Return the indices of the batch at ``position``, int64 [B]."""
        if position < 0:
            raise ValueError(f"position must be at least 0, but got {position}")
        count, parts, need = len(self._rows), [], self.batch_size
        while need:
            epoch, offset = divmod(position, count)
            part = self._order(epoch)[offset : offset + need]
            parts.append(part)
            position, need = position + len(part), need - len(part)
        return np.concatenate(parts)

    def batch_at(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 [B, C, H, W] and labels int64 [B] (None without classes).

        ``position`` is the number of images seen before. Batches continue across epochs, so each
        epoch contains every image exactly once.
        """
        rows = self.indices_at(position)
        images = torch.from_numpy(self._images[rows])
        if self._labels is None:
            return images, None
        return images, torch.from_numpy(self._labels[rows])

    def sample_images(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return up to ``count`` random training or held-out images, uint8; always the same.

        None if no images are held out.
        """
        rows = self._sample_indices(count, held_out)
        return torch.from_numpy(self._images[rows]) if len(rows) else None

    def _sample_indices(self, count: int, held_out: bool) -> NDArray[np.int64]:
        """Return random indices, sorted. The first images would not do: files are often sorted."""
        rows = self.held_out_indices if held_out else self._rows
        return np.sort(np.random.default_rng((self.seed, len(rows))).permutation(rows)[:count])
