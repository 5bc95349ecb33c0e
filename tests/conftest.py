"""What several test files need: one thread, small labelled images, and a network in a file."""

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
def one_thread() -> None:
    """Tiny tensors are fastest, and repeatable, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is made for the cache in the test's own folder."""
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def make_images() -> Callable[..., ImageSet]:
    """Return a maker of sets of soft random blobs, each class at a place of its own."""

    def make(count: int, channels: int, height: int, width: int, seed: int = 0) -> ImageSet:
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, count)
        rows, columns = np.mgrid[0:height, 0:width]
        y = rng.normal(height * (0.3 + 0.4 * labels), 1)[:, None, None]
        x = rng.normal(width / 2, width / 8, count)[:, None, None]
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 8)
        shades = rng.uniform(128, 255, (count, channels, 1, 1))
        images = (blob[:, None] * shades).astype(np.uint8)
        return ImageSet("blobs", images, labels, ("top", "bottom"), f"blobs-{count}-{seed}")

    return make


@pytest.fixture(scope="session")
def sides() -> ImageSet:
    """Noise that is brighter above, or brighter below: two classes, 200 images of 8×8."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 128, (200, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(200) % 2
    images[labels == 0, :, :4] += 64
    images[labels == 1, :, 4:] += 64
    return ImageSet("sides", images, labels, ("above", "below"), "sides")


class StandIn(nn.Module):
    """Called as the Inception file is: resizes to 299 by itself, features are column sums."""

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
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a network that is called as Inception's is."""
    path = tmp_path_factory.mktemp("weights") / "stand-in.pt"
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.manual_seed(0)
        torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture
def run(make_images: Callable[..., ImageSet], tmp_path: Path) -> gg.Run:
    """Return a short conditional run on two classes of 16x16 RGB."""
    settings = {
        "policy": "fixed",
        "conditioning": "projection",
        "stack": {"width": 8, "latent": 8},
        "batch": 8,
        "score": {"samples": 32},
    }
    data = make_images(64, 3, 16, 16)
    return gg.grow(data, out=tmp_path / "run", images=64, settings=settings)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Return a headless Chromium that can reach nothing but this machine."""
    with browsing.headless() as chromium:
        yield chromium
