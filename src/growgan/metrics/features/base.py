"""The interface of a feature extractor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor


class FeatureExtractor(Protocol):
    """A function from uint8 images [N, C, H, W] to float32 features [N, d].

    ``fingerprint`` identifies exactly this function. Metrics computed with different fingerprints
    cannot be compared.
    """

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def extract_float(self, images: Tensor) -> Tensor:
        """Return the features of float ``images`` in [0, 255], which are not rounded."""


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32, which GPU convolutions use by default.

    Features, and the metrics computed from them, then agree between machines.
    """
    backends: list[Any] = []
    if device.type == "cuda":
        backends = [torch.backends.cudnn, torch.backends.cuda.matmul]
    previous_settings = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allow_tf32 in zip(backends, previous_settings, strict=True):
            backend.allow_tf32 = allow_tf32
