"""Features, moments and class probabilities of a set of images, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from growgan.data.cache import write_cache_file
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.metrics.cache import read_cached_tensors
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.functional.moments import Moments
from growgan.metrics.image_batches import IMAGES_PER_BATCH, iterate_batches
from growgan.metrics.image_hash import ImageSetHash
from growgan.metrics.progress import StageProgressFn, no_progress

_MAX_FEATURE_BYTES = 2**30  # size of the features that are kept in memory and in the cache


class ImageStatistics(Protocol):
    """The images and statistics of a set, as far as metrics need them.

    A member that the requirements of a metric do not include may be unavailable.
    """

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
    def labels_hash(self) -> str: ...

    @property
    def extractor(self) -> FeatureExtractor: ...

    @property
    def images(self) -> NDArray[np.uint8]: ...

    @property
    def features(self) -> Tensor: ...

    @property
    def moments(self) -> Moments: ...

    @property
    def probabilities(self) -> Tensor: ...


class CachedImageStatistics:
    """Statistics of images in memory or in a memory map, computed on demand.

    Args:
        images: uint8 [N, C, H, W].
        labels: Class numbers int64 [N], -1 where missing, or None.
        name: Name of the set in messages, such as "real images".
        get_extractor: Returns the feature extractor; called when a metric needs it.
        cache_key: Identifies the images and their order; "" if they should not be cached.
        cache_dir: Root of the cache for features and moments, or None.
        progress: Called with a stage, the number of finished images and the total.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None = None,
        *,
        name: str,
        get_extractor: Callable[[], FeatureExtractor],
        cache_key: str = "",
        cache_dir: Path | None = None,
        progress: StageProgressFn = no_progress,
    ) -> None:
        self.images, self.labels, self.name = images, labels, name
        self.progress, self._get_extractor, self._cache_key = progress, get_extractor, cache_key
        self._cache_dir = cache_dir if cache_key else None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the images, whatever their order and labels: see :class:`ImageSetHash`."""
        path = self._cache_path("image_hashes", self._cache_key)
        if path and path.is_file():
            return path.read_text()
        image_hash = ImageSetHash.hash_images(self.images)
        if path:
            write_cache_file(path, image_hash.encode())
        return image_hash

    @cached_property
    def labels_hash(self) -> str:
        """Hash of the images with their labels, whatever their order."""
        return ImageSetHash.hash_images(self.images, self.labels)

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor; raises UserError if it cannot be loaded."""
        return self._get_extractor()

    @cached_property
    def features(self) -> Tensor:
        """Features of all images, float32 [N, d] on the CPU, read from the cache if possible.

        Raises:
            UserError: The extractor cannot be loaded.
        """
        path = self._cache_path("features", self._cache_key, self.extractor.fingerprint)
        cached, _ = read_cached_tensors(path)
        if "features" in cached and len(cached["features"]) == len(self):
            return cached["features"]
        features = torch.cat(list(self._map_batches("Extracting features of", self.extractor)))
        if path and features.numel() * features.element_size() <= _MAX_FEATURE_BYTES:
            write_cache_file(path, save({"features": features}))
        return features

    @cached_property
    def moments(self) -> Moments:
        """Mean and covariance of the features.

        Features above 1 GiB are not kept in memory.
        """
        path = self._cache_path("moments", self._cache_key, self.extractor.fingerprint)
        cached, _ = read_cached_tensors(path)
        if {"mean", "covariance"} <= set(cached):
            return Moments(len(self), cached["mean"], cached["covariance"])
        feature_dim = self.extractor(next(iterate_batches(self.images))[:1]).shape[1]
        if 4 * feature_dim * len(self) <= _MAX_FEATURE_BYTES:
            moments = Moments.from_chunks(self.features.split(IMAGES_PER_BATCH))
        else:
            moments = Moments.from_chunks(
                self._map_batches("Extracting features of", self.extractor)
            )
        if path:
            tensors = {"mean": moments.mean, "covariance": moments.covariance}
            write_cache_file(
                path, save({name: tensor.contiguous() for name, tensor in tensors.items()})
            )
        return moments

    @cached_property
    def probabilities(self) -> Tensor:
        """The extractor's class probabilities of all images, float32 [N, K].

        Raises:
            UserError: The extractor has no class probabilities.
        """
        class_probabilities = class_probability_fn(self.extractor)
        return torch.cat(list(self._map_batches("Classifying", class_probabilities)))

    def _map_batches(self, stage: str, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        num_done = 0
        for batch in iterate_batches(self.images):
            self.progress(f"{stage} {self.name}", num_done, len(self))
            yield function(batch).cpu()
            num_done += len(batch)
        self.progress(f"{stage} {self.name}", num_done, len(self))

    def _cache_path(self, kind: str, *key: str) -> Path | None:
        if self._cache_dir is None:
            return None
        return self._cache_dir / kind / hash_json(kind, *key)[:32]


def class_probability_fn(extractor: FeatureExtractor) -> Callable[[Tensor], Tensor]:
    """Return the extractor's function from images to class probabilities.

    Raises:
        UserError: The extractor has no class probabilities.
    """
    function: Callable[[Tensor], Tensor] | None = getattr(extractor, "probabilities", None)
    if function is None:
        raise UserError("needs class probabilities, which only --features inception has")
    return function
