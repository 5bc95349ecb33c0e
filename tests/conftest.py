"""Shared fixtures: a single thread, small labeled image sets, short runs and a browser."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import browsing
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import growgan as gg
from growgan.data import ImageSet


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """Use one thread, on which small tensors are fastest and results are repeatable."""
    torch.set_num_threads(1)


@pytest.fixture
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put growgan's cache into the test's temporary folder."""
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def make_blob_images() -> Callable[..., ImageSet]:
    """Return a function that makes images of soft random blobs, in one place for each class."""

    def make(num_images: int, channels: int, height: int, width: int, seed: int = 0) -> ImageSet:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, num_images)
        rows, columns = np.mgrid[0:height, 0:width]
        y = rng.normal(height * (0.3 + 0.4 * labels), 1)[:, None, None]
        x = rng.normal(width / 2, width / 8, num_images)[:, None, None]
        blobs = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
        brightness = rng.uniform(128, 255, (num_images, channels, 1, 1))
        images = (blobs[:, None] * brightness).astype(np.uint8)
        return ImageSet(
            "blobs",
            images,
            labels=labels,
            classes=("top", "bottom"),
            fingerprint=f"blobs-{num_images}-{seed}",
        )

    return make


@pytest.fixture(scope="session")
def two_class_images() -> ImageSet:
    """Return noise that is brighter in the upper or in the lower half: 200 images of 8x8."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (200, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(200) % 2
    images[labels == 0, :, :4] += 64
    images[labels == 1, :, 4:] += 64
    return ImageSet(
        "halves", images, labels=labels, classes=("above", "below"), fingerprint="halves"
    )


class InceptionStandIn(nn.Module):
    """A small network with Inception's interface: resizes to 299 pixels, averages columns."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(3 * 299, 5)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        x = nn.functional.interpolate(img.float(), size=[299, 299], mode="nearest")
        features = x.mean(2).flatten(1)
        if return_features:
            return features
        bias = torch.zeros_like(self.output.bias) if no_output_bias else self.output.bias
        return nn.functional.linear(features / 255, self.output.weight, bias).softmax(1)


@pytest.fixture(scope="session")
def inception_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a TorchScript file with Inception's interface."""
    path = tmp_path_factory.mktemp("weights") / "stand-in.pt"
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        torch.jit.script(InceptionStandIn()).save(str(path))
    return path


@pytest.fixture
def run(make_blob_images: Callable[..., ImageSet], tmp_path: Path) -> gg.Run:
    """Return a short conditional run on RGB images of 16x16 in two classes."""
    settings = {
        "policy": "fixed",
        "conditioning": "projection",
        "network": {"width": 8, "latent_dim": 8},
        "batch_size": 8,
        "score": {"num_samples": 32},
    }
    data = make_blob_images(64, 3, 16, 16)
    return gg.grow(data, out=tmp_path / "run", images=64, settings=settings)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Return a headless Chromium that can only reach this machine."""
    with browsing.headless() as chromium:
        yield chromium
