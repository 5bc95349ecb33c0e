"""Metrics that are fed batch by batch, as torchmetrics' are: ``update``, ``compute``, ``reset``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.files import default_cache
from growgan.errors import UserError
from growgan.metrics.checks import uint8_images
from growgan.metrics.distances import Moments
from growgan.metrics.features import Extractor
from growgan.metrics.networks import check_features, load_extractor
from growgan.metrics.protocol import Figure
from growgan.metrics.side import Digest, classifier
from growgan.metrics.suite import METRICS, Comparison, Need

FEEDABLE: set[Need] = {"features", "probabilities", "images", "reals", "labels"}


class Metric:
    """One or more metrics of :data:`METRICS` for someone else's loop, in one pass of the network.

    The result is that of one call with all images, however they are cut into batches. Only
    features are kept where no metric looks at images.

    Args:
        names: of metrics, as in ``growgan list metrics``.
        features: an extractor, or what :func:`load_extractor` takes.
        resize: to inception's input, a name of :data:`RESIZES`.
        normalize: True where float images are in [0, 1]; in [-1, 1] otherwise.
        reset_real_features: False if :meth:`reset` shall keep the reals.
        seed: of every draw.

    Raises:
        UserError: an unknown name, or a metric that needs more than fakes and reals.
    """

    def __init__(
        self,
        *names: str,
        features: Extractor | str = "inception",
        resize: str = "clean",
        normalize: bool = False,
        reset_real_features: bool = True,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not names:
            known = ", ".join(entry.name for entry in METRICS)
            raise UserError(f"a Metric needs at least one name of: {known}")
        if features == "domain":
            raise UserError("features 'domain' are learnt from reals: pass domain_extractor(...)")
        self.needs: set[Need] = {need for name in names for need in METRICS[name].needs}
        for name in names:
            more = METRICS[name].needs - FEEDABLE
            if more:
                raise UserError(f"{name} cannot be fed: it needs a {', a '.join(sorted(more))}")
        if isinstance(features, str):
            check_features(features, resize)
        self.names, self.seed, self.normalize = names, seed, normalize
        self.reset_real_features = reset_real_features
        self._features, self._resize, self._device = features, resize, device
        self.fake, self.real = (Fed(name, self.needs, self._get) for name in ("fakes", "reals"))

    def to(self, device: torch.device | str) -> Metric:
        """Compute features on ``device`` from now on; an extractor that was given stays its own."""
        self._device = device
        self.__dict__.pop("_loaded", None)
        return self

    def reset(self) -> None:
        """Forget the fakes, and the reals unless they shall be kept."""
        self.fake = Fed("fakes", self.needs, self._get)
        if self.reset_real_features:
            self.real = Fed("reals", self.needs, self._get)

    def update(self, images: Tensor, real: bool = False, labels: Tensor | None = None) -> None:
        """Add ``images`` [n, C, H, W], uint8 or float, to the reals or to the fakes.

        Floats are quantised as growgan's samples are: clamp(127.5 x + 128). Warns of floats without
        a negative number where [-1, 1] is meant. Raises ValueError for other shapes and ranges,
        NaN, and another size than before.
        """
        (self.real if real else self.fake).add(self._quantised(images), labels)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the value, a float64 scalar, or one by name for several metrics."""
        values = {
            name: torch.tensor(f.value, dtype=torch.float64) for name, f in self.figures().items()
        }
        return values if len(self.names) > 1 else values[self.names[0]]

    def figures(self) -> dict[str, Figure]:
        """Return values with errors and protocols; raise ValueError where a side is empty."""
        for side, needed in ((self.fake, True), (self.real, "reals" in self.needs)):
            if needed and not len(side):
                raise ValueError(f"{', '.join(self.names)} needs {side.name}, but was fed none")
        if "labels" in self.needs:
            for side in (self.fake, self.real):
                if side.labels is None:
                    raise ValueError(f"{', '.join(self.names)} needs labels of the {side.name}")
        comparison = Comparison(self.fake, self.real, seed=self.seed)
        return {name: METRICS[name].take(comparison) for name in self.names}

    def _quantised(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            return uint8_images(images)
        if not images.numel():
            raise ValueError(f"images must not be empty, but are {list(images.shape)}")
        x = images.float() * 2 - 1 if self.normalize else images.float()
        if not float(x.abs().max()) <= 2:
            bounds = "[0, 1]" if self.normalize else "[-1, 1]"
            raise ValueError(
                f"float images must be finite and about {bounds}, but reach from "
                f"{float(images.min()):g} to {float(images.max()):g}"
            )
        if not self.normalize and float(images.min()) >= 0:
            warnings.warn(
                "float images without a negative number are taken as [-1, 1]: pass normalize=True "
                "if they are in [0, 1]",
                stacklevel=3,
            )
        return uint8_images((x * 127.5 + 128).clamp(0, 255).to(torch.uint8))

    @cached_property
    def _loaded(self) -> Extractor:
        if not isinstance(self._features, str):
            return self._features
        return load_extractor(
            self._features, cache=default_cache(), resize=self._resize, device=self._device
        )

    def _get(self) -> Extractor:
        return self._loaded


class Fed:
    """A side that grows: it keeps of its images what the metrics need."""

    def __init__(self, name: str, needs: set[Need], extractor: Callable[[], Extractor]) -> None:
        self.name, self._extractor = name, extractor
        self._kept: dict[Need, list[Tensor]] = {
            need: [] for need in needs if need in ("images", "features", "probabilities")
        }
        self._labels: list[Tensor] = []
        self._shape, self._count = (0, 0, 0), 0
        self._digest, self._labelling = Digest(), Digest()

    def __len__(self) -> int:
        return self._count

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        """Add uint8 ``images`` [n, C, H, W], and their ``labels`` [n] if it has labels.

        Raises ValueError for images of another shape than before, labels that do not fit them,
        and labels now and then.
        """
        channels, height, width = images.shape[1:]
        shape = (channels, height, width)
        if self._count and shape != self._shape:
            raise ValueError(f"images must be {self._shape} as before, but are {shape}")
        if self._count and (labels is None) == bool(self._labels):
            raise ValueError("labels must be given with all batches or with none")
        if labels is not None and labels.shape != (len(images),):
            raise ValueError(f"labels must be [{len(images)}], but are {list(labels.shape)}")
        made = {need: self._make(need, images) for need in self._kept}
        for need, part in made.items():
            self._kept[need].append(part)
        pixels = images.cpu().numpy()
        if labels is not None:
            self._labels.append(labels.cpu().long())
            self._labelling.update(pixels, self._labels[-1].numpy())
        self._digest.update(pixels)
        self._shape, self._count = shape, self._count + len(images)

    def _make(self, need: Need, images: Tensor) -> Tensor:
        if need == "images":
            return images.cpu().clone()  # the caller may use its buffer again
        make = classifier(self.extractor) if need == "probabilities" else self.extractor
        return make(images).cpu()

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._shape[1], self._shape[2]

    @property
    def fingerprint(self) -> str:
        """What names the images, whatever their order."""
        return self._digest.name()

    @property
    def labelling(self) -> str:
        """What names the images with their labels, whatever their order."""
        return self._labelling.name()

    @property
    def extractor(self) -> Extractor:
        """What features are of. Raises UserError where it cannot be had."""
        return self._extractor()

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Labels of all images, int64 [N]."""
        return torch.cat(self._labels).numpy() if self._labels else None

    @property
    def images(self) -> NDArray[np.uint8]:
        """All images, uint8 [N, C, H, W]."""
        whole: NDArray[np.uint8] = torch.cat(self._kept["images"]).numpy()
        return whole

    @property
    def features(self) -> Tensor:
        """All features, float32 [N, d]."""
        return torch.cat(self._kept["features"])

    @property
    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        return Moments.of_chunks(self._kept["features"])

    @property
    def probabilities(self) -> Tensor:
        """All class probabilities, float32 [N, K]."""
        return torch.cat(self._kept["probabilities"])
