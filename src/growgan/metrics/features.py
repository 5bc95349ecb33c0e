"""What turns images into feature vectors: pixels, or a network trained on the user's own data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from growgan.data.files import write_atomic
from growgan.errors import UserError
from growgan.metrics import domain
from growgan.metrics.checks import uint8_images
from growgan.metrics.watch import Progress, unseen

_CHUNK = 512  # images that pass through a network at once


class Extractor(Protocol):
    """Turns uint8 images [N, C, H, W] into float32 features [N, d].

    ``fingerprint`` names exactly this function: figures with other fingerprints do not compare.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def continuous(self, images: Tensor) -> Tensor:
        """Return the features of float ``images`` in [0, 255], not rounded to integers."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32 itself: no autocast, and no TF32, which a GPU's convolutions default to.

    So features, and the figures made of them, are those of any other machine.
    """
    backends: list[Any] = []
    if device.type == "cuda":
        backends = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


class PixelExtractor:
    """The pixels themselves, in [0, 1], resized to ``size`` x ``size``: d = C * size²."""

    def __init__(self, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, but got {size}")
        self.size = size
        self.fingerprint = f"pixels-{size}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.continuous(uint8_images(images))

    def continuous(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` in [0, 255], of any dtype."""
        chunks = [
            domain.resize(chunk.float(), (self.size, self.size)) / 255
            for chunk in torch.split(images, _CHUNK)
        ]
        return torch.cat(chunks).flatten(1)


class DomainExtractor:
    """The penultimate layer (d = 128) of a small network trained on one dataset.

    ``resolution`` (h, w) is the network's input, to which images of any size are resized;
    ``metadata`` says how it was trained and how well that went.
    """

    def __init__(
        self,
        network: nn.Sequential,
        resolution: tuple[int, int],
        channels: int,
        metadata: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.resolution, self.channels, self.metadata = resolution, channels, dict(metadata)
        self.device = torch.device(device)
        self.fingerprint = f"domain-{_weights_hash(network)}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [N, 128] on the network's device. Raises ValueError for other channels."""
        return self.continuous(uint8_images(images))

    def continuous(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` in [0, 255], of any dtype."""
        if images.shape[1] != self.channels:
            raise ValueError(
                f"images must have {self.channels} channels, as the extractor was trained on, "
                f"but have {images.shape[1]}"
            )
        with torch.inference_mode(), full_precision(self.device):
            chunks = [
                self.network(domain.prepare(chunk.to(self.device), self.resolution))
                for chunk in torch.split(images, _CHUNK)
            ]
            return torch.cat(chunks)


def domain_extractor(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    *,
    fingerprint: str,
    cache: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    effort: float = 1.0,
    copy: Path | None = None,
    progress: Progress = unseen,
) -> DomainExtractor:
    """Return the extractor for ``images`` [N, C, H, W], trained now or read from ``cache``.

    ``labels`` int64 [N], -1 where missing, are used if they name at least 2 classes for at least
    half of the images. ``fingerprint`` names the images' content. ``effort``, above 0 and at most
    1, is the share of the usual training that a short budget can afford. A run keeps a ``copy`` of
    its network, which is read first: trained again elsewhere it would not be the same to the bit.

    Raises UserError for fewer than 16 images or a cache that cannot be written.
    """
    if len(images) < domain.LEAST_IMAGES:
        raise UserError(
            f"domain features need at least {domain.LEAST_IMAGES} images, but there are "
            f"{len(images)}; swd needs no features"
        )
    resolution = domain.training_resolution(images.shape[2], images.shape[3])
    classes = _classes(labels)
    identity = {
        "version": domain.VERSION,
        "data": fingerprint,
        "seed": seed,
        "supervision": "labels" if classes is not None else "none",
        "resolution": list(resolution),
        "channels": int(images.shape[1]),
        "effort": effort,
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = cache / "extractors" / f"{key}.safetensors"
    network = domain.make_network(images.shape[1], resolution)
    # The copy is read last, so that its weights are those that stay.
    known = [_read(file, network, identity) for file in (path, copy) if file]
    metadata = next((each for each in reversed(known) if each), None)
    if metadata is None:
        network, metadata = _train(images, classes, identity, torch.device(device), progress)
        _write(path, network, metadata)
    if copy and not known[-1]:
        _write(copy, network, metadata)
    return DomainExtractor(network, resolution, images.shape[1], metadata, device)


def untrained(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> DomainExtractor:
    """Return an extractor for ``images`` [N, C, H, W] that has learnt nothing: for its cost."""
    resolution = domain.training_resolution(images.shape[2], images.shape[3])
    network = domain.make_network(images.shape[1], resolution)
    return DomainExtractor(network, resolution, images.shape[1], {}, device)


def _train(
    images: NDArray[np.uint8],
    classes: NDArray[np.int64] | None,
    identity: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return a network trained as ``identity`` says, and what is kept of that beside it."""
    if classes is not None and (classes < 0).any():
        images, classes = images[classes >= 0], classes[classes >= 0]
    height, width = identity["resolution"]
    how = {"seed": identity["seed"], "effort": identity["effort"], "device": device}
    network, quality = domain.train(images, classes, (height, width), progress=progress, **how)
    return network, {**identity, "images": len(images), "quality": quality}


_EACH = domain.LEAST_IMAGES // 2  # images a class, on average


def _classes(labels: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return the labels numbered from 0, -1 where missing; None where they are too few to learn."""
    if labels is None:
        return None
    known = labels >= 0
    names, numbers = np.unique(labels[known], return_inverse=True)
    if len(names) < 2 or 2 * known.sum() < len(labels) or known.sum() < _EACH * len(names):
        return None
    classes = np.full(len(labels), -1, dtype=np.int64)
    classes[known] = numbers
    return classes


def _read(path: Path, network: nn.Module, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Load ``network`` from ``path`` and return the metadata; None where there is no whole one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["growgan"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):
        return None  # it is trained again and replaced
    return metadata if identity.items() <= metadata.items() else None


def _write(path: Path, network: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write weights and, in the file's header, metadata."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(path, save(weights, metadata={"growgan": json.dumps(metadata, sort_keys=True)}))


def _weights_hash(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
