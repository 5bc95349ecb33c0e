"""The network behind the domain features, and how it is trained on the user's own images.

With labels it learns to tell the classes apart, from images as they are: random views cost 1.5 %
of accuracy on Fashion-MNIST, and did not lessen what little it overfits 1,000 images. Without, it
learns two things at once: to find the other view of an image among a batch's (SimCLR: Chen et al.
2020, arXiv 2002.05709), and how far an image was turned (RotNet: Gidaris et al. 2018, arXiv
1803.07728). Views are crops and contrasts but not noise or blur, which the features must notice.
In a trial of one seed on Fashion-MNIST this pair came closest to the labelled network in the
distance of one class missing of ten over that of a one-pixel blur: 1.25 with labels, 1.27 for the
pair, 0.08 for turning alone, 0.4 for SimCLR alone; VICReg (Bardes et al. 2022) hardly saw noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from growgan.metrics.watch import Progress, unseen

VERSION = 1  # of all that follows: raise it with each change, so that no cache holds an old network
DIMENSIONS = 128
LEAST_IMAGES = 16

_WIDTHS = (16, 24, 48, 96)
_BATCH = 256
_EPOCHS = 30  # at most, over few images
_RATE = 3e-3
_TEMPERATURE = 0.2
_CROP = 0.7  # of the side, the smallest crop in a view
_CONTRAST = 0.2  # the largest change of contrast in a view


def training_resolution(height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of the network's input: the images' own, its larger side within 16 to 64."""
    largest = max(height, width)
    scale = min(max(largest, 16), 64) / largest
    return max(round(height * scale), 4), max(round(width * scale), 4)


def make_network(channels: int, resolution: tuple[int, int]) -> nn.Sequential:
    """Return an untrained network: float [N, C, h, w] in [-1, 1] -> features [N, 128].

    Convolutions of stride 2 lead down to about 4x4, kept as it is: features that are pooled over
    the image would not notice where things are.
    """
    depth = min(max(round(math.log2(max(resolution) / 4)), 1), len(_WIDTHS))
    layers: list[nn.Module] = []
    for width in _WIDTHS[-depth:]:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    head = nn.Linear(16 * channels, DIMENSIONS)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), head, nn.ReLU())
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def prepare(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Return uint8 ``images`` [N, C, H, W] as the network's input, float32 in [-1, 1]."""
    resized = resize(images.float(), resolution)
    return (resized / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def resize(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Resize float ``images`` [N, C, H, W]: area averages downwards, bilinear upwards."""
    size = images.shape[2:]
    if tuple(size) == resolution:
        return images
    if resolution[0] <= size[0] and resolution[1] <= size[1]:
        return F.interpolate(images, size=resolution, mode="area")
    shrinks = resolution[0] < size[0] or resolution[1] < size[1]
    return F.interpolate(
        images, size=resolution, mode="bilinear", align_corners=False, antialias=shrinks
    )


def shrink(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Return uint8 ``images`` [N, C, H, W] averaged down to ``resolution``, as the search does."""
    return resize(images.float(), resolution).round().to(torch.uint8)


def train(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    resolution: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    effort: float = 1.0,
    progress: Progress = unseen,
) -> tuple[nn.Sequential, dict[str, float]]:
    """Train a network on ``images`` [N, C, H, W]; return it with its quality on held-out images.

    ``labels`` int64 [N] holds class numbers, or is None for training without. Quality is the
    "accuracy" over the classes; or the "retrieval" of an image's other view among all, and the
    accuracy of its "rotation". The same seed gives the same network on the same machine.
    """
    classes = 4 if labels is None else int(labels.max()) + 1
    task = _make_task(images.shape[1], classes, resolution, seed).to(device)
    order = torch.randperm(len(images), generator=task.draws).numpy()
    held_out, kept = np.split(order, [min(len(images) // 10 + 1, 2000)])
    take = _taker(images, labels, resolution, device)
    steps = _steps(len(kept), 460 if labels is not None else 230, effort)
    _fit(task, _draws(kept, take, task.draws), steps, device, progress)
    with torch.inference_mode():
        quality = task.quality(*take(held_out))
    return task.network.eval(), quality


def train_classifier(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    resolution: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    progress: Progress = unseen,
) -> nn.Sequential:
    """Train the labelled network on all ``images`` [N, C, H, W]; return it with its last layer.

    It maps :func:`prepare`'s [N, C, h, w] to logits [N, classes]; ``labels`` int64 [N] are below
    ``classes``. The same seed gives the same network on the same machine.
    """
    task = _make_task(images.shape[1], classes, resolution, seed).to(device)
    take = _taker(images, labels, resolution, device)
    draw = _draws(np.arange(len(images)), take, task.draws)
    _fit(task, draw, _steps(len(images), 460), device, progress)
    return nn.Sequential(task.network, task.classify).eval()


class _Task(nn.Module):
    """The network with the heads that its training needs and its features do not."""

    def __init__(
        self,
        network: nn.Sequential,
        classify: nn.Module,
        project: nn.Module,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self.network, self.classify, self.project, self.draws = network, classify, project, draws

    def loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is not None:
            logits = self.classify(self.network(images))
            return F.cross_entropy(logits.float(), labels)
        similar, turned, turns = self._views(images)
        n = len(images)
        pairs = torch.arange(2 * n, device=images.device).roll(n)
        logits = (similar / _TEMPERATURE).fill_diagonal_(-1e9)
        return F.cross_entropy(logits, pairs) + F.cross_entropy(turned, turns)

    def quality(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        if labels is not None:
            right = self.classify(self.network(images)).argmax(1) == labels
            return {"accuracy": float(right.float().mean())}
        similar, turned, turns = self._views(images)
        n = len(images)
        nearest = similar[:n, n:].argmax(1) == torch.arange(n, device=images.device)
        right = turned.argmax(1) == turns
        return {
            "retrieval": float(nearest.float().mean()),
            "rotation": float(right.float().mean()),
        }

    def _views(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the views' cosines [2 N, 2 N], the turns' logits [N, 4], and the turns [N]."""
        n = len(images)
        views = [view(images, self.draws) for _ in range(2)]
        turns = torch.arange(n, device=images.device) % 4
        batch = torch.cat([*views, turn(images)]).contiguous(memory_format=torch.channels_last)
        features = self.network(batch)
        z = F.normalize(self.project(features[: 2 * n]).float(), dim=1)
        return z @ z.T, self.classify(features[2 * n :]).float(), turns


def view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random crop of each image, resized back, at a random contrast and brightness."""
    n = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    side, stretch = draw(_CROP, 1), draw(-0.2, 0.2).exp()
    scale = torch.stack([side * stretch, side / stretch], 1).clamp(max=1)
    place = torch.stack([draw(-1, 1), draw(-1, 1)], 1) * (1 - scale)
    affine = torch.cat([torch.diag_embed(scale), place.unsqueeze(2)], 2).to(images.device)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = 1 + draw(-_CONTRAST, _CONTRAST), draw(-_CONTRAST, _CONTRAST) / 2
    gain, offset = (t.view(n, 1, 1, 1).to(images.device) for t in (gain, offset))
    return cropped * gain + offset


def turn(images: Tensor) -> Tensor:
    """Return image i turned by i quarter turns, stretched back to its shape where not square."""
    turned = torch.empty_like(images)
    size = (images.shape[2], images.shape[3])
    for quarters in range(4):
        turned[quarters::4] = resize(torch.rot90(images[quarters::4], quarters, (2, 3)), size)
    return turned


def _projector() -> nn.Module:
    return nn.Sequential(nn.Linear(DIMENSIONS, 256), nn.ReLU(), nn.Linear(256, 128))


def _make_task(channels: int, classes: int, resolution: tuple[int, int], seed: int) -> _Task:
    """Return an untrained network and heads, whose weights and draws are a function of ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(channels, resolution)
        heads = nn.Linear(DIMENSIONS, classes), _projector()
        return _Task(network, *heads, torch.Generator().manual_seed(seed))


def _taker(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    resolution: tuple[int, int],
    device: torch.device,
) -> Callable[[NDArray[np.int64]], tuple[Tensor, Tensor | None]]:
    """Return a function that gives the images, as the network's input, and labels of an index."""

    def take(index: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        index = np.sort(index)  # a memory map reads faster in order
        batch = prepare(torch.from_numpy(images[index]).to(device), resolution)
        return batch, None if labels is None else torch.from_numpy(labels[index]).to(device)

    return take


def _steps(images: int, most: int, effort: float = 1.0) -> int:
    """Return ``effort`` times ``most`` steps, or 30 epochs of so many images; 20 at least."""
    return max(round(effort * min(most, _EPOCHS * images // _BATCH)), 20)


def _draws(
    kept: NDArray[np.int64],
    take: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor | None]],
    generator: torch.Generator,
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Return a function that gives the next random batch, each image once an epoch."""
    size = min(_BATCH, len(kept))
    waiting: list[NDArray[np.int64]] = []

    def draw() -> tuple[Tensor, Tensor | None]:
        if not waiting:
            order = kept[torch.randperm(len(kept), generator=generator).numpy()]
            waiting.extend(np.array_split(order[: len(order) // size * size], len(order) // size))
        return take(waiting.pop())

    return draw


@torch.inference_mode(False)
@torch.enable_grad()
def _fit(
    task: _Task,
    draw: Callable[[], tuple[Tensor, Tensor | None]],
    steps: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Minimise the task's loss by AdamW under a one-cycle rate (Smith & Topin 2018)."""
    fused = device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(task.parameters(), lr=_RATE, weight_decay=1e-2, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps, pct_start=0.15)
    bfloat16 = _multiplies_bfloat16(device)
    # The head of the other task has no gradient; AdamW leaves it alone.
    for step in range(steps):
        images, labels = draw()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = task.loss(images, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress(step + 1, steps)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
