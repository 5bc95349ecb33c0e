"""The network behind the own features, and how it is trained on the user's images.

With labels, it is trained to classify the images without augmentation. Random views cost 1.5 % of
accuracy on Fashion-MNIST and did not reduce the slight overfitting to 1,000 images.

Without labels, it is trained on two self-supervised tasks at once: to find the other view of an
image in a batch (SimCLR: Chen et al. 2020, arXiv 2002.05709), and to predict by how many quarter
turns an image was rotated (RotNet: Gidaris et al. 2018, arXiv 1803.07728). Views are crops and
changes of contrast, but not noise or blur, which the features must detect.

The two tasks were chosen by the ratio of two Fréchet distances on Fashion-MNIST: one class of ten
missing, over a one-pixel blur (one seed). The ratio is 1.25 with labels, 1.27 for both tasks, 0.4
for SimCLR alone and 0.08 for rotation alone; VICReg (Bardes et al. 2022) hardly detected noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from growgan.metrics.image_resize import resize_images
from growgan.metrics.progress import ProgressFn, no_progress

OWN_NETWORK_VERSION = 1  # increase it with every change below, so that caches are not reused
FEATURE_DIM = 128
MIN_TRAINING_IMAGES = 16

_CHANNELS_PER_LAYER = (16, 24, 48, 96)
_BATCH_SIZE = 256
_MAX_EPOCHS = 30  # limits the training on small datasets
_MIN_TRAIN_STEPS = 20
_MAX_STEPS_WITH_LABELS = 460
_MAX_STEPS_WITHOUT_LABELS = 230  # each step takes three passes: two views and a rotation
_MAX_HELD_OUT_IMAGES = 2000  # images that measure the quality
_MAX_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 1e-2
_TEMPERATURE = 0.2  # of the contrastive loss
_MIN_CROP_FRACTION = 0.7  # smallest side of a view's crop, as a fraction of the image's
_MAX_CONTRAST_CHANGE = 0.2  # largest relative change of contrast in a view


def training_resolution(height: int, width: int) -> tuple[int, int]:
    """Return the (h, w) of the network's input for images of ``height`` and ``width`` pixels.

    It is the images' own size, scaled so that the larger side is from 16 to 64 pixels.
    """
    larger_side = max(height, width)
    scale = min(max(larger_side, 16), 64) / larger_side
    return max(round(height * scale), 4), max(round(width * scale), 4)


def build_own_network(channels: int, resolution: tuple[int, int]) -> nn.Sequential:
    """Return an untrained network: float [N, C, h, w] in [-1, 1] -> features [N, 128].

    Strided convolutions reduce the image to about 4x4 positions, which are not pooled further:
    globally pooled features would not detect where things are.
    """
    depth = min(max(round(math.log2(max(resolution) / 4)), 1), len(_CHANNELS_PER_LAYER))
    layers: list[nn.Module] = []
    for width in _CHANNELS_PER_LAYER[-depth:]:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()]
        channels = width
    head = nn.Linear(16 * channels, FEATURE_DIM)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), head, nn.ReLU())
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return network


def to_network_input(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Return uint8 ``images`` [N, C, H, W] as the network's input, float32 in [-1, 1]."""
    resized = resize_images(images.float(), resolution)
    return (resized / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_own_network(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    resolution: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    training_fraction: float = 1.0,
    progress: ProgressFn = no_progress,
) -> tuple[nn.Sequential, dict[str, float]]:
    """Train a network on ``images`` [N, C, H, W]; return it with its quality on held-out images.

    The same seed gives the same network on the same machine.

    Args:
        images: Training images; a tenth of them, at most 2,000, is held out.
        labels: Class numbers int64 [N], or None to train without labels.
        resolution: (h, w) of the network's input.
        seed: Random seed.
        device: Device to train on.
        training_fraction: Fraction of the usual number of steps.
        progress: Called with the number of finished steps.

    Returns:
        The network, and its quality, from 0 to 1. With labels that is "accuracy"; without, it is
        "retrieval", the accuracy of finding the other view of an image, and "rotation", the
        accuracy of predicting the rotation.
    """
    num_classes = 4 if labels is None else int(labels.max()) + 1
    training = _build_feature_training(images.shape[1], num_classes, resolution, seed).to(device)
    order = torch.randperm(len(images), generator=training.rng).numpy()
    num_held_out = min(len(images) // 10 + 1, _MAX_HELD_OUT_IMAGES)
    held_out, train = np.split(order, [num_held_out])
    read_batch = _make_batch_reader(images, labels, resolution, device)
    max_steps = _MAX_STEPS_WITHOUT_LABELS if labels is None else _MAX_STEPS_WITH_LABELS
    steps = _num_train_steps(len(train), max_steps, training_fraction)
    next_batch = _make_batch_sampler(train, read_batch, training.rng)
    _train_loop(training, next_batch, steps, device, progress)
    with torch.inference_mode():
        quality = training.quality(*read_batch(held_out))
    return training.network.eval(), quality


def train_classifier_network(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    num_classes: int,
    resolution: tuple[int, int],
    *,
    seed: int,
    device: torch.device,
    progress: ProgressFn = no_progress,
) -> nn.Sequential:
    """Train the network with labels on all ``images`` [N, C, H, W]; return it as a classifier.

    The result maps the output of :func:`to_network_input`, float32 [N, C, h, w], to logits
    [N, num_classes]. The same seed gives the same classifier on the same machine.

    Args:
        images: Training images.
        labels: Class numbers int64 [N], from 0 to ``num_classes`` - 1.
        num_classes: Number of logits.
        resolution: (h, w) of the network's input.
        seed: Random seed.
        device: Device to train on.
        progress: Called with the number of finished steps.
    """
    training = _build_feature_training(images.shape[1], num_classes, resolution, seed).to(device)
    read_batch = _make_batch_reader(images, labels, resolution, device)
    next_batch = _make_batch_sampler(np.arange(len(images)), read_batch, training.rng)
    steps = _num_train_steps(len(images), _MAX_STEPS_WITH_LABELS)
    _train_loop(training, next_batch, steps, device, progress)
    return nn.Sequential(training.network, training.classifier_head).eval()


class _FeatureTraining(nn.Module):
    """The network, with the heads that only its training uses, and its losses."""

    def __init__(
        self,
        network: nn.Sequential,
        classifier_head: nn.Module,
        projection_head: nn.Module,
        rng: torch.Generator,
    ) -> None:
        super().__init__()
        self.network = network
        self.classifier_head = classifier_head  # predicts the class, or the rotation
        self.projection_head = projection_head
        self.rng = rng

    def loss(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is not None:
            logits = self.classifier_head(self.network(images))
            return F.cross_entropy(logits.float(), labels)
        cosines, rotation_logits, rotations = self._self_supervised_outputs(images)
        n = len(images)
        other_views = torch.arange(2 * n, device=images.device).roll(n)
        view_logits = (cosines / _TEMPERATURE).fill_diagonal_(-1e9)
        return F.cross_entropy(view_logits, other_views) + F.cross_entropy(
            rotation_logits, rotations
        )

    def quality(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        if labels is not None:
            correct = self.classifier_head(self.network(images)).argmax(1) == labels
            return {"accuracy": float(correct.float().mean())}
        cosines, rotation_logits, rotations = self._self_supervised_outputs(images)
        n = len(images)
        retrieved = cosines[:n, n:].argmax(1) == torch.arange(n, device=images.device)
        rotation_correct = rotation_logits.argmax(1) == rotations
        return {
            "retrieval": float(retrieved.float().mean()),
            "rotation": float(rotation_correct.float().mean()),
        }

    def _self_supervised_outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return cosines of all views [2 N, 2 N], rotation logits [N, 4], and rotations [N]."""
        n = len(images)
        views = [random_view(images, self.rng) for _ in range(2)]
        rotations = torch.arange(n, device=images.device) % 4
        batch = torch.cat([*views, rotate_by_quarter_turns(images)]).contiguous(
            memory_format=torch.channels_last
        )
        features = self.network(batch)
        z = F.normalize(self.projection_head(features[: 2 * n]).float(), dim=1)
        return z @ z.T, self.classifier_head(features[2 * n :]).float(), rotations


def random_view(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return a random crop of each image, resized back, with random contrast and brightness."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=rng)

    side, log_aspect = uniform(_MIN_CROP_FRACTION, 1), uniform(-0.2, 0.2)
    aspect = log_aspect.exp()
    scale = torch.stack([side * aspect, side / aspect], 1).clamp(max=1)
    center = torch.stack([uniform(-1, 1), uniform(-1, 1)], 1) * (1 - scale)
    affine = torch.cat([torch.diag_embed(scale), center.unsqueeze(2)], 2).to(images.device)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = 1 + uniform(-_MAX_CONTRAST_CHANGE, _MAX_CONTRAST_CHANGE)
    brightness = uniform(-_MAX_CONTRAST_CHANGE, _MAX_CONTRAST_CHANGE) / 2
    contrast, brightness = (
        values.view(n, 1, 1, 1).to(images.device) for values in (contrast, brightness)
    )
    return cropped * contrast + brightness


def rotate_by_quarter_turns(images: Tensor) -> Tensor:
    """Return image i rotated by i quarter turns; images that are not square are resized back."""
    rotated = torch.empty_like(images)
    size = (images.shape[2], images.shape[3])
    for quarters in range(4):
        rotated[quarters::4] = resize_images(
            torch.rot90(images[quarters::4], quarters, (2, 3)), size
        )
    return rotated


def _build_projection_head() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURE_DIM, 256), nn.ReLU(), nn.Linear(256, 128))


def _build_feature_training(
    channels: int, num_classes: int, resolution: tuple[int, int], seed: int
) -> _FeatureTraining:
    """Return an untrained network with its heads; ``seed`` determines weights and draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_own_network(channels, resolution)
        classifier_head = nn.Linear(FEATURE_DIM, num_classes)
        projection_head = _build_projection_head()
        rng = torch.Generator().manual_seed(seed)
        return _FeatureTraining(network, classifier_head, projection_head, rng)


def _make_batch_reader(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    resolution: tuple[int, int],
    device: torch.device,
) -> Callable[[NDArray[np.int64]], tuple[Tensor, Tensor | None]]:
    """Return a function from row numbers to their images, as the network's input, and labels."""

    def read_batch(rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        rows = np.sort(rows)  # a memory map is faster to read in order
        batch = to_network_input(torch.from_numpy(images[rows]).to(device), resolution)
        return batch, None if labels is None else torch.from_numpy(labels[rows]).to(device)

    return read_batch


def _num_train_steps(num_images: int, max_steps: int, training_fraction: float = 1.0) -> int:
    """Return ``training_fraction`` of ``max_steps``, or of 30 epochs if those are fewer steps."""
    usual_steps = min(max_steps, _MAX_EPOCHS * num_images // _BATCH_SIZE)
    return max(round(training_fraction * usual_steps), _MIN_TRAIN_STEPS)


def _make_batch_sampler(
    indices: NDArray[np.int64],
    read_batch: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor | None]],
    rng: torch.Generator,
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """Return a function that returns the next random batch, with each image once per epoch."""
    batch_size = min(_BATCH_SIZE, len(indices))
    num_batches = len(indices) // batch_size
    remaining: list[NDArray[np.int64]] = []

    def next_batch() -> tuple[Tensor, Tensor | None]:
        if not remaining:
            order = indices[torch.randperm(len(indices), generator=rng).numpy()]
            remaining.extend(np.array_split(order[: num_batches * batch_size], num_batches))
        return read_batch(remaining.pop())

    return next_batch


@torch.inference_mode(False)
@torch.enable_grad()
def _train_loop(
    training: _FeatureTraining,
    next_batch: Callable[[], tuple[Tensor, Tensor | None]],
    steps: int,
    device: torch.device,
    progress: ProgressFn,
) -> None:
    """Minimize the loss with AdamW and a one-cycle learning rate (Smith & Topin 2018)."""
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(
        training.parameters(), lr=_MAX_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=fused
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _MAX_LEARNING_RATE, steps, pct_start=0.15
    )
    use_bfloat16 = _supports_bfloat16(device)
    # The head that the loss does not use has no gradient, so AdamW does not change it.
    for step in range(steps):
        images, labels = next_batch()
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
            loss = training.loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)


def _supports_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
