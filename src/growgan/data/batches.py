"""Shuffled batches as a pure function of seed and position: nothing to save, nothing to resume."""

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
    """Batches of a set, each epoch in an order of its own drawn from (seed, epoch).

    Attributes:
        held_out: which images are in no batch, drawn by the seed.
    """

    def __init__(self, images: ImageSet, batch: int, seed: int, held_out: int = 0) -> None:
        if batch < 1:
            raise UserError(f"batch must be at least 1, but got {batch}")
        if len(images) <= held_out:
            raise UserError(f"'{images.name}' holds no images to batch")
        self.batch, self.seed = batch, seed
        self._images = np.asarray(images.images)
        self._labels = images.labels
        self._given = images.given
        drawn = np.random.default_rng((self.seed, len(images))).permutation(len(images))
        self.held_out = np.sort(drawn[:held_out])
        self._rows = np.sort(drawn[held_out:])
        self._order: Callable[[int], NDArray[np.int64]] = lru_cache(maxsize=2)(self._shuffle)

    @property
    def known_labels(self) -> Tensor | None:
        """The labels of all images in batches that have one, int64; None where none has."""
        if self._labels is None:
            return None
        labels = self._labels[self._rows]
        known = labels[labels >= 0]
        return torch.from_numpy(known) if len(known) else None

    def labels_of_some(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return the labels of :meth:`some`: int64, -1 for none; None without classes."""
        rows = self._some(count, held_out)
        return None if self._labels is None else torch.from_numpy(self._labels[rows])

    def given_at(self, position: int) -> Tensor | None:
        """Return what the images of :meth:`batch_at` are made from: uint8 [B, G, H, W], or None."""
        if self._given is None:
            return None
        return torch.from_numpy(self._given[self.rows_at(position)])

    def given_of_some(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return what :meth:`some` are made from: uint8 [n, G, H, W], or None."""
        rows = self._some(count, held_out)
        return None if self._given is None else torch.from_numpy(self._given[rows])

    @property
    def count(self) -> int:
        """How many images are in batches."""
        return len(self._rows)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self._rows)

    def rows_at(self, position: int) -> NDArray[np.int64]:
        """Return which images the batch at ``position`` holds: int64 [B]."""
        if position < 0:
            raise ValueError(f"position must be at least 0, but got {position}")
        count, parts, need = len(self._rows), [], self.batch
        while need:
            epoch, offset = divmod(position, count)
            part = self._order(epoch)[offset : offset + need]
            parts.append(part)
            position, need = position + len(part), need - len(part)
        return np.concatenate(parts)

    def batch_at(self, position: int) -> tuple[Tensor, Tensor | None]:
        """Return images uint8 [B, C, H, W] and labels int64 [B] (None without classes).

        ``position`` is the number of images seen before. Batches run on across epochs, so every
        image comes exactly once in each run of len(images).
        """
        rows = self.rows_at(position)
        images = torch.from_numpy(self._images[rows])
        if self._labels is None:
            return images, None
        return images, torch.from_numpy(self._labels[rows])

    def some(self, count: int, held_out: bool = False) -> Tensor | None:
        """Return ``count`` images in batches, or of those held out: uint8, always the same.

        None where none are held out.
        """
        rows = self._some(count, held_out)
        return torch.from_numpy(self._images[rows]) if len(rows) else None

    def _some(self, count: int, held_out: bool) -> NDArray[np.int64]:
        """Return rows by chance, in their order: images often lie sorted by class."""
        rows = self.held_out if held_out else self._rows
        return np.sort(np.random.default_rng((self.seed, len(rows))).permutation(rows)[:count])
