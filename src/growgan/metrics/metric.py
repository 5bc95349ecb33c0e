"""Streaming metrics with the interface of torchmetrics: ``update``, ``compute``, ``reset``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.cache import default_cache
from growgan.errors import UserError
from growgan.metrics import definitions  # noqa: F401  (registers the metrics)
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.features.pretrained import check_features, load_extractor
from growgan.metrics.functional.moments import Moments
from growgan.metrics.image_hash import ImageSetHash
from growgan.metrics.image_statistics import class_probability_fn
from growgan.metrics.registry import METRICS, MetricInputs, MetricRequirement
from growgan.metrics.result import MetricResult
from growgan.metrics.validation import check_uint8_images

STREAMABLE_REQUIREMENTS: set[MetricRequirement] = {
    "features",
    "probabilities",
    "images",
    "real",
    "labels",
}
MAX_ABS_FLOAT_PIXEL = 2.0  # larger values mean that float images have another range


class Metric:
    """One or several metrics for your own training loop, with one pass through the network.

    The result equals that of one call with all images, however they are split into batches. Only
    features are kept in memory, unless a metric needs the images.

    Args:
        names: Metric names, as listed by ``growgan list metrics``.
        features: An extractor, or a name that :func:`load_extractor` accepts.
        resize: Resizing to the input of Inception, a name of :data:`RESIZE_METHODS`.
        normalize: Whether float images are in [0, 1] instead of [-1, 1].
        reset_real_features: Whether :meth:`reset` also discards the real images.
        seed: Random seed of all draws.
        device: Device for the features.

    Raises:
        UserError: An unknown name, or a metric that cannot be computed from batches.
    """

    def __init__(
        self,
        *names: str,
        features: FeatureExtractor | str = "inception",
        resize: str = "clean",
        normalize: bool = False,
        reset_real_features: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not names:
            valid = ", ".join(entry.name for entry in METRICS)
            raise UserError(f"a Metric needs at least one name; it must be one of: {valid}")
        if features == "own":
            raise UserError(
                "features 'own' must first be trained on the real images: pass the result of"
                " load_or_train_own_extractor"
            )
        self.requirements: set[MetricRequirement] = {
            requirement for name in names for requirement in METRICS[name].requirements
        }
        for name in names:
            unmet = METRICS[name].requirements - STREAMABLE_REQUIREMENTS
            if unmet:
                needs = " and ".join(sorted(unmet)).replace("_", "-")
                raise UserError(f"metric '{name}' cannot be streamed, because it needs: {needs}")
        if isinstance(features, str):
            check_features(features, resize)
        self.names, self.seed, self.normalize = names, seed, normalize
        self.reset_real_features = reset_real_features
        self._features, self._resize, self._device = features, resize, device
        self.fake = self._empty_statistics("fake images")
        self.real = self._empty_statistics("real images")

    def to(self, device: torch.device | str) -> Metric:
        """Compute features on ``device`` from now on. A passed extractor does not move."""
        self._device = device
        self.__dict__.pop("_extractor", None)
        return self

    def reset(self) -> None:
        """Discard the fake images, and the real ones if ``reset_real_features``."""
        self.fake = self._empty_statistics("fake images")
        if self.reset_real_features:
            self.real = self._empty_statistics("real images")

    def update(self, images: Tensor, real: bool = False, labels: Tensor | None = None) -> None:
        """Add ``images`` [n, C, H, W], uint8 or float, to the real or to the fake images.

        Float images are rounded like growgan's samples, by clamp(127.5 x + 128). A warning is given
        if float images have no negative values and ``normalize`` is false.

        Raises:
            ValueError: Another shape or size than before, values out of range, NaN, or labels in
                some batches only.
        """
        (self.real if real else self.fake).update(self._quantize(images), labels)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the value as a float64 scalar, or a value by name for several metrics."""
        values = {
            name: torch.tensor(result.value, dtype=torch.float64)
            for name, result in self.compute_results().items()
        }
        return values if len(self.names) > 1 else values[self.names[0]]

    def compute_results(self) -> dict[str, MetricResult]:
        """Return the results with standard errors and protocols, by name.

        Raises:
            ValueError: There are no fake images, or no real images or labels that a metric needs.
        """
        names = ", ".join(self.names)
        for statistics, needed in ((self.fake, True), (self.real, "real" in self.requirements)):
            if needed and not len(statistics):
                raise ValueError(f"{names} needs {statistics.name}, but update received none")
            if "labels" in self.requirements and statistics.labels is None:
                raise ValueError(f"{names} needs labels of the {statistics.name}")
        inputs = MetricInputs(self.fake, self.real, seed=self.seed)
        return {name: METRICS[name].compute(inputs) for name in self.names}

    def _quantize(self, images: Tensor) -> Tensor:
        """Return ``images`` as uint8."""
        if images.is_floating_point():
            if not images.numel():
                raise ValueError(f"images must not be empty, but got shape {list(images.shape)}")
            x = images.float() * 2 - 1 if self.normalize else images.float()
            if not float(x.abs().max()) <= MAX_ABS_FLOAT_PIXEL:
                expected = "[0, 1]" if self.normalize else "[-1, 1]"
                raise ValueError(
                    f"float images must be finite and within about {expected}, but range from"
                    f" {float(images.min()):g} to {float(images.max()):g}"
                )
            if not self.normalize and float(images.min()) >= 0:
                warnings.warn(
                    "float images without negative values are interpreted as [-1, 1]: pass"
                    " normalize=True if they are in [0, 1]",
                    stacklevel=3,
                )
            images = (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        check_uint8_images("images", images)
        return images

    def _empty_statistics(self, name: str) -> AccumulatedImageStatistics:
        return AccumulatedImageStatistics(name, self.requirements, lambda: self._extractor)

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        if not isinstance(self._features, str):
            return self._features
        return load_extractor(
            self._features, cache_dir=default_cache(), resize=self._resize, device=self._device
        )


class AccumulatedImageStatistics:
    """Statistics of images that arrive in batches. It keeps only what the metrics need.

    Args:
        name: Name of the set in messages, such as "real images".
        requirements: What the metrics need.
        get_extractor: Returns the feature extractor; called for each batch if a metric needs it.
    """

    def __init__(
        self,
        name: str,
        requirements: set[MetricRequirement],
        get_extractor: Callable[[], FeatureExtractor],
    ) -> None:
        self.name, self._get_extractor = name, get_extractor
        self._batches_by_requirement: dict[MetricRequirement, list[Tensor]] = {
            requirement: []
            for requirement in requirements
            if requirement in ("images", "features", "probabilities")
        }
        self._label_batches: list[Tensor] = []
        self._image_shape, self._num_images = (0, 0, 0), 0
        self._images_hash, self._labels_hash = ImageSetHash(), ImageSetHash()

    def __len__(self) -> int:
        return self._num_images

    def update(self, images: Tensor, labels: Tensor | None) -> None:
        """Add uint8 ``images`` [n, C, H, W], with ``labels`` [n] if the set has labels.

        Raises:
            ValueError: Images of another shape than before, labels that do not match them, or
                labels in some batches only.
        """
        channels, height, width = images.shape[1:]
        shape = (channels, height, width)
        if self._num_images and shape != self._image_shape:
            raise ValueError(
                f"images must be {self._image_shape}, as in earlier batches, but are {shape}"
            )
        if self._num_images and (labels is None) == bool(self._label_batches):
            raise ValueError("labels must be passed with all batches or with none")
        if labels is not None and labels.shape != (len(images),):
            raise ValueError(f"labels must be [{len(images)}], but got {list(labels.shape)}")
        # Compute everything before changing anything, so that an error leaves the set unchanged.
        new_batches = {
            requirement: self._extract(requirement, images)
            for requirement in self._batches_by_requirement
        }
        for requirement, batch in new_batches.items():
            self._batches_by_requirement[requirement].append(batch)
        pixels = images.cpu().numpy()
        if labels is not None:
            self._label_batches.append(labels.cpu().long())
            self._labels_hash.update(pixels, self._label_batches[-1].numpy())
        self._images_hash.update(pixels)
        self._image_shape, self._num_images = shape, self._num_images + len(images)

    def _extract(self, requirement: MetricRequirement, images: Tensor) -> Tensor:
        if requirement == "images":
            return images.cpu().clone()  # the caller may reuse the buffer
        if requirement == "probabilities":
            return class_probability_fn(self.extractor)(images).cpu()
        return self.extractor(images).cpu()

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image_shape[1], self._image_shape[2]

    @property
    def fingerprint(self) -> str:
        """Hash of the images, whatever their order."""
        return self._images_hash.hexdigest()

    @property
    def labels_hash(self) -> str:
        """Hash of the images with their labels, whatever their order."""
        return self._labels_hash.hexdigest()

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor; raises UserError if it cannot be loaded."""
        return self._get_extractor()

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Labels of all images, int64 [N], or None."""
        return torch.cat(self._label_batches).numpy() if self._label_batches else None

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 [N, C, H, W]."""
        images: NDArray[np.uint8] = torch.cat(self._batches_by_requirement["images"]).numpy()
        return images

    @property
    def features(self) -> Tensor:
        """All features, float32 [N, d]."""
        return torch.cat(self._batches_by_requirement["features"])

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        return Moments.from_chunks(self._batches_by_requirement["features"])

    @property
    def probabilities(self) -> Tensor:
        """All class probabilities, float32 [N, K]."""
        return torch.cat(self._batches_by_requirement["probabilities"])
