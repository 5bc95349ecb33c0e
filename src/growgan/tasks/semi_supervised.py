"""Semi-supervised learning (Salimans et al. 2016, 1606.03498): a classifier from few labels.

D classifies labeled images into K classes and tells all real images from fakes. Training against G
improves D as a classifier. The quality of G's images does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.nets.conditioning import one_hot
from growgan.nets.networks import Discriminator, build_network
from growgan.nets.spec import DiscriminatorSpec
from growgan.objectives.conditioning.base import cross_entropy
from growgan.run.run import Run
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.tasks.base import TASKS, Task
from growgan.tasks.evaluation import (
    random_subset,
    require_labels,
    sample_rows_per_class,
    save_task_sheet,
    to_channels_first,
)
from growgan.tasks.paired import NUM_SHEET_COLUMNS
from growgan.training.checkpoint import load_gan
from growgan.training.optimizers import learning_rates, make_optimizer
from growgan.training.runtime import Runtime, make_runtime

MAX_BASELINE_STEPS = 2_000  # by then the supervised baseline has memorized its few images
PREDICTION_BATCH_SIZE = 500
MAX_SHEET_CLASSES = 20
LABELED_BATCH_FRACTION = 0.25  # of a batch; labeled images are repeated to reach it


@dataclass(frozen=True)
class SemiSupervisedTask(Task):
    """``semi:N`` keeps the labels of N images, the same number in each class."""

    needs_only_labels: ClassVar[bool] = True
    sheet_caption: ClassVar[str] = (
        "Each row shows test images that D assigns to one class, in the order of the classes. The"
        " last row shows generated images."
    )

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return the images with N random labels; the other labels are -1.

        Labeled images are repeated so that they make up ``LABELED_BATCH_FRACTION`` of a batch.

        Raises:
            UserError: N is not a number, not a multiple of the number of classes, or too large.
        """
        all_labels, rarest_count = require_labels("semi", train_split)
        num_classes = len(train_split.classes)
        num_labels = int(variant) if variant.isdecimal() else 0
        if num_labels == 0 or num_labels % num_classes or num_labels > num_classes * rarest_count:
            raise UserError(
                f"task 'semi' needs the number of labels, as in semi:{10 * num_classes}, but got"
                f" '{variant}'; it must be a multiple of {num_classes}, the number of classes, and"
                f" at most {num_classes * rarest_count:,}"
            )
        labeled_rows = np.sort(sample_rows_per_class(train_split, num_labels // num_classes, seed))
        labels = np.full(len(train_split), -1)
        labels[labeled_rows] = all_labels[labeled_rows]
        unlabeled_per_labeled = (len(train_split) - num_labels) / num_labels
        odds = LABELED_BATCH_FRACTION / (1 - LABELED_BATCH_FRACTION)
        num_repeats = max(0, round(odds * unlabeled_per_labeled) - 1)
        rows = np.concatenate([np.arange(len(train_split)), np.tile(labeled_rows, num_repeats)])
        fingerprint = hash_json(train_split.fingerprint, f"semi:{variant}:{seed}")
        return replace(replace(train_split, labels=labels).subset(rows), fingerprint=fingerprint)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return the accuracy of D and of a supervised baseline, the same network without a GAN.

        The baseline is trained for as many steps as D, up to ``MAX_BASELINE_STEPS``, with the same
        learning rates. It has none of D's adversarial terms, and so no R1 penalty either.
        """
        gan, settings = load_gan(newest_survivor(run).checkpoint_dir), run.best.settings
        steps = min(gan.steps, MAX_BASELINE_STEPS)
        baseline = train_supervised_baseline(gan.discriminator.spec, train_set, settings, steps)
        generated = to_channels_first(run.best.sample(NUM_SHEET_COLUMNS))
        rows = group_by_predicted_class(gan.discriminator, test_set)
        save_task_sheet(run, [*rows, generated])
        return {
            "accuracy": labeled_accuracy(gan.discriminator, test_set),
            "accuracy, supervised baseline": labeled_accuracy(baseline, test_set),
        }


def group_by_predicted_class(
    discriminator: Discriminator, image_set: ImageSet
) -> list[UInt8[np.ndarray, "n c h w"]]:
    """Return some images of each predicted class; a single black one for a class without any."""
    sample = random_subset(image_set, PREDICTION_BATCH_SIZE)
    predictions, black = predict_classes(discriminator, sample), np.zeros_like(sample.images[:1])
    rows = (
        sample.images[predictions == k][:NUM_SHEET_COLUMNS]
        for k in range(min(len(image_set.classes), MAX_SHEET_CLASSES))
    )
    return [row if len(row) else black for row in rows]


def newest_survivor(run: Run) -> TrainedGenerator:
    """Return the last survivor of the search, or the best candidate if the resolutions differ.

    Candidates are scored by G's images, which are not the aim of this task. The newest D has been
    trained longest.
    """
    survivor_ids = [event["survivors"][0] for event in run.events if event.get("survivors")]
    newest = run.candidate(survivor_ids[-1])
    resolutions = {model.load_network().spec.resolution for model in (newest, run.best)}
    return newest if len(resolutions) == 1 else run.best


def train_supervised_baseline(
    discriminator_spec: DiscriminatorSpec, train_set: ImageSet, settings: Settings, steps: int
) -> Discriminator:
    """Train a discriminator as a classifier of the labeled images, without a GAN."""
    labeled = train_set.labeled_subset()
    network = build_network(discriminator_spec, settings.seed)
    assert isinstance(network, Discriminator)
    runtime = make_runtime("cpu", settings.precision)
    optimizer = make_optimizer(network, settings.optimizer)
    batches = Batches(labeled, min(settings.batch_size, len(labeled)), settings.seed)
    for k in range(steps):
        pixels, labels = batches.batch_at(k * batches.batch_size)
        assert labels is not None
        _, discriminator_lr = learning_rates(settings, k / steps, k * settings.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = discriminator_lr
        with runtime.autocast():
            logits = class_logits(network, pixels, runtime)
        optimizer.zero_grad()
        cross_entropy(logits, one_hot(labels, discriminator_spec.label_dim)).backward()
        optimizer.step()
    return network


def class_logits(
    discriminator: Discriminator, pixels: Tensor, runtime: Runtime
) -> Float[Tensor, "n k"]:
    """Return D's class logits for images uint8 [N, C, H, W]."""
    features = discriminator.features(runtime.to_float_images(pixels))
    logits: Tensor = discriminator.linear_heads["classifier"](features)
    return logits.float()


@torch.no_grad()
def predict_classes(discriminator: Discriminator, image_set: ImageSet) -> NDArray[np.int64]:
    """Return the class with D's largest logit for each image, int64 [N]."""
    runtime, predictions = make_runtime("cpu", "float32"), []
    discriminator.eval()
    num_batches = -(-len(image_set) // PREDICTION_BATCH_SIZE)
    for rows in np.array_split(np.arange(len(image_set)), num_batches):
        pixels = torch.from_numpy(np.array(image_set.images[rows]))
        predictions.append(class_logits(discriminator, pixels, runtime).argmax(1).numpy())
    return np.concatenate(predictions)


def labeled_accuracy(discriminator: Discriminator, image_set: ImageSet) -> float:
    """Return the fraction of the labeled images that D classifies correctly."""
    labeled = image_set.labeled_subset()
    return float((predict_classes(discriminator, labeled) == labeled.labels).mean())


# As in the paper, G is trained with feature matching instead of the adversarial loss. The images
# get worse and D gets better.
FEATURE_MATCHING_ONLY: dict[str, dict[str, float | None]] = {
    "feature-matching": {"replace_loss": 1}
}
SEMI_SUPERVISED_PUBLISHED: dict[str, Any] = {
    "conditioning": "semi",
    "policy": "fixed",
    "loss": "non-saturating",
    "regularizers": FEATURE_MATCHING_ONLY,
    "batch_size": 100,
    "optimizer": {"lr": 3e-4, "beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "lr_decay_images": None},
    "network": {
        "mbstd_group_size": 0,
        "init": "normal",
        "parametrization": "none",
        "lr_scaling": "none",
        "latent_dim": 100,
        "width": 128,
        "full_width_scale": 1,
    },
}
SEMI_SUPERVISED_SMALL: dict[str, Any] = {
    "conditioning": "semi",
    "loss": "non-saturating",
    # With the usual weight of R1, D cannot separate similar classes.
    "regularizers": {"r1": {"gamma": 6e-5}, **FEATURE_MATCHING_ONLY},
    # With minibatch standard deviation, the class of an image would depend on its batch.
    "network": {"mbstd_group_size": 0},
}

TASKS.register("semi", "Train a classifier with few labels.", "Salimans et al. 2016, 1606.03498")(
    SemiSupervisedTask(
        published_overrides=SEMI_SUPERVISED_PUBLISHED,
        small_overrides=SEMI_SUPERVISED_SMALL,
        example_variants=("100", "500", "1000"),
    )
)
