"""Own features: a small network trained on the images of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from growgan.data.cache import write_cache_file
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.metrics.cache import read_cached_tensors
from growgan.metrics.features.base import full_precision
from growgan.metrics.features.own_network import (
    MIN_TRAINING_IMAGES,
    OWN_NETWORK_VERSION,
    build_own_network,
    to_network_input,
    train_own_network,
    training_resolution,
)
from growgan.metrics.image_batches import IMAGES_PER_BATCH
from growgan.metrics.progress import ProgressFn, no_progress
from growgan.metrics.validation import check_uint8_images

_MIN_IMAGES_PER_CLASS = MIN_TRAINING_IMAGES // 2  # average over the classes, to train with labels


class OwnExtractor:
    """The penultimate layer (d = 128) of a small network trained on one dataset.

    Attributes:
        resolution: (h, w) of the network's input, to which images of any size are resized.
        channels: Number of image channels.
        metadata: How the network was trained, and its quality on held-out images.
        fingerprint: "own-" and a hash of the weights.
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
        self.fingerprint = f"own-{_hash_weights(network)}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of uint8 ``images`` [N, C, H, W], float32 [N, 128], on the device.

        Raises:
            ValueError: Another dtype, or another number of channels than the training images.
        """
        check_uint8_images("images", images)
        return self.extract_float(images)

    def extract_float(self, images: Tensor) -> Tensor:
        """Return the features of ``images`` in [0, 255], of any dtype."""
        if images.shape[1] != self.channels:
            raise ValueError(
                f"images must have {self.channels} channels, like the images that the extractor was"
                f" trained on, but have {images.shape[1]}"
            )
        with torch.inference_mode(), full_precision(self.device):
            batches = [
                self.network(to_network_input(batch.to(self.device), self.resolution))
                for batch in torch.split(images, IMAGES_PER_BATCH)
            ]
            return torch.cat(batches)


def load_or_train_own_extractor(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    *,
    fingerprint: str,
    cache_dir: Path,
    seed: int = 0,
    device: torch.device | str = "cpu",
    training_fraction: float = 1.0,
    copy_path: Path | None = None,
    progress: ProgressFn = no_progress,
) -> OwnExtractor:
    """Return the extractor trained on ``images``, from the cache if it is there.

    Args:
        images: Training images uint8 [N, C, H, W], N >= 16.
        labels: Class numbers int64 [N], -1 where missing, or None. They are used if there are at
            least 2 classes, half of the images have a label, and a class has 8 images on average.
        fingerprint: Identifies the images and labels.
        cache_dir: Root of the cache.
        seed: Random seed of the training.
        device: Device to train and run on.
        training_fraction: Fraction of the usual number of training steps, above 0 and at most 1,
            for short budgets.
        copy_path: File in which a run keeps its own copy. The copy has precedence over the cache,
            because training on another machine does not give bitwise the same network.
        progress: Called with the number of finished training steps.

    Raises:
        UserError: Fewer than 16 images, or the cache cannot be written.
    """
    if len(images) < MIN_TRAINING_IMAGES:
        raise UserError(
            f"own features need at least {MIN_TRAINING_IMAGES} images to train on, but there are"
            f" {len(images)}; the metric 'swd' needs no features"
        )
    channels = int(images.shape[1])
    resolution = training_resolution(images.shape[2], images.shape[3])
    class_numbers = _usable_class_numbers(labels)
    training_config = {
        "version": OWN_NETWORK_VERSION,
        "data_fingerprint": fingerprint,
        "seed": seed,
        "supervision": "labels" if class_numbers is not None else "none",
        "resolution": list(resolution),
        "channels": channels,
        "training_fraction": training_fraction,
    }
    cache_path = cache_dir / "extractors" / f"{hash_json(training_config)[:24]}.safetensors"
    network = build_own_network(channels, resolution)
    copied_metadata = copy_path and _read_network(copy_path, network, training_config)
    metadata = copied_metadata or _read_network(cache_path, network, training_config)
    if not metadata:
        network, metadata = _train_network(
            images, class_numbers, training_config, torch.device(device), progress
        )
        _write_network(cache_path, network, metadata)
    if copy_path and not copied_metadata:
        _write_network(copy_path, network, metadata)
    return OwnExtractor(network, resolution, channels, metadata, device)


def untrained_own_extractor(
    images: NDArray[np.uint8], device: torch.device | str = "cpu"
) -> OwnExtractor:
    """Return an untrained extractor for ``images`` [N, C, H, W], to measure its cost."""
    resolution = training_resolution(images.shape[2], images.shape[3])
    network = build_own_network(images.shape[1], resolution)
    return OwnExtractor(network, resolution, images.shape[1], {}, device)


def _train_network(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    training_config: Mapping[str, Any],
    device: torch.device,
    progress: ProgressFn,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return a network trained as ``training_config`` states, and its metadata."""
    if labels is not None and (labels < 0).any():
        images, labels = images[labels >= 0], labels[labels >= 0]
    height, width = training_config["resolution"]
    network, quality = train_own_network(
        images,
        labels,
        (height, width),
        seed=training_config["seed"],
        device=device,
        training_fraction=training_config["training_fraction"],
        progress=progress,
    )
    return network, {**training_config, "num_images": len(images), "quality": quality}


def _usable_class_numbers(labels: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return the labels renumbered from 0, -1 where missing; None if too few to train with."""
    if labels is None:
        return None
    has_label = labels >= 0
    classes, numbers = np.unique(labels[has_label], return_inverse=True)
    if (
        len(classes) < 2
        or 2 * has_label.sum() < len(labels)
        or has_label.sum() < _MIN_IMAGES_PER_CLASS * len(classes)
    ):
        return None
    class_numbers = np.full(len(labels), -1, dtype=np.int64)
    class_numbers[has_label] = numbers
    return class_numbers


def _read_network(
    path: Path, network: nn.Module, training_config: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Load ``network`` from ``path`` and return its metadata.

    Return None if the file is missing, incomplete, or of another training configuration. The
    network is then trained again and the file is replaced.
    """
    weights, header = read_cached_tensors(path)
    try:
        metadata: dict[str, Any] = json.loads(header["growgan"])
        network.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError):
        return None
    return metadata if training_config.items() <= metadata.items() else None


def _write_network(path: Path, network: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the weights, with the metadata in the header of the file."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_cache_file(
        path, save(weights, metadata={"growgan": json.dumps(metadata, sort_keys=True)})
    )


def _hash_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
