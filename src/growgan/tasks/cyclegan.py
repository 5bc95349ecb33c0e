"""Unpaired image-to-image translation (CycleGAN: Zhu et al. 2017, 1703.10593).

Translating an image to the other domain and back should reproduce it (cycle loss), and an image
that already belongs to the domain should stay as it is (identity loss). D has a logit for each
domain and patch, and sees older fakes next to new ones.

One G translates in both directions; a label selects the domain, as in StarGAN (Choi et al. 2018,
1711.09020). A translator is therefore an ordinary pair of G and D, which can grow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.metrics.functional.classification_accuracy_score import fit_classifier
from growgan.run.run import Run
from growgan.tasks.base import TASKS, TEST_FRACTION, Task
from growgan.tasks.evaluation import (
    MIN_TRAIN_IMAGES_PER_CLASS,
    ImagesNCHW,
    generate_from_source,
    image_similarity,
    save_task_sheet,
    split_indices,
)
from growgan.tasks.paired import check_paired_sets
from growgan.tasks.pix2pix import PIX2PIX_PUBLISHED, PIX2PIX_SMALL

NUM_SHEET_IMAGES_PER_DOMAIN = 12
MAX_TEST_IMAGES_PER_DOMAIN = 1_000
REPLAY_BUFFER_OPTIONS = {"buffer_size": 50, "replay_fraction": 0.5}  # section 4 of the paper
ALIGNED_VARIANT = "aligned"

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TwoDomainImages(ImageSet):
    """Images of two domains, interleaved: one of the second set (label 1), one of the first (0).

    Attributes:
        domain_sizes: Number of images in the first and in the second set. The smaller set is
            repeated.
        content_labels: Class of each image's content, int64 [N], -1 if unknown. None unless both
            sets have the same classes.
        content_classes: Names of the content classes.
    """

    domain_sizes: tuple[int, int] = (0, 0)
    content_labels: IntArray | None = None
    content_classes: tuple[str, ...] = ()

    def subset(self, rows: IntArray) -> TwoDomainImages:
        """Return the images at ``rows``."""
        subset = super().subset(rows)
        assert isinstance(subset, TwoDomainImages)
        if self.content_labels is None:
            return subset
        return replace(subset, content_labels=self.content_labels[rows])

    def rows_of_domain(self, domain: int) -> IntArray:
        """Return the rows with images of a domain, 0 or 1."""
        return np.arange(1 - domain, len(self), 2)


class UnpairedTranslationTask(Task):
    """``cyclegan`` takes two sets. ``cyclegan:aligned`` also compares with aligned targets."""

    sheet_caption: ClassVar[str] = (
        "Rows 1 to 3: images of the first set, translated to the second domain, and translated"
        " back. Rows 4 to 6: images of the second set, translated to the first domain, and"
        " translated back."
    )

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        if target is None:
            raise UserError(
                f"task '{task_name}' takes two sets of images, one of each domain, but got only"
                f" '{data.name}'"
            )
        if variant not in ("", ALIGNED_VARIANT):
            raise UserError(
                f"unknown variant of task '{task_name}' '{variant}'; it must be"
                f" '{ALIGNED_VARIANT}' or left out"
            )
        if data.images.shape[1:] != target.images.shape[1:]:
            raise UserError(
                f"'{data.name}' and '{target.name}' must have the same channels and resolution, but"
                f" their images are {data.images.shape[1:]} and {target.images.shape[1:]}"
            )
        if variant == ALIGNED_VARIANT:
            if len(data) != len(target):
                raise UserError(
                    f"task '{task_name}:{ALIGNED_VARIANT}' needs two sets of the same size, but"
                    f" '{data.name}' has {len(data):,} images and '{target.name}' {len(target):,}"
                )
            check_paired_sets(data, target)
        num_pairs = max(len(data), len(target))
        first_rows, second_rows = (
            np.resize(np.arange(len(image_set)), num_pairs) for image_set in (data, target)
        )
        images = np.stack([target.images[second_rows], data.images[first_rows]], 1)
        content_labels, content_classes = None, data.classes
        if (
            data.labels is not None
            and target.labels is not None
            and content_classes == target.classes
        ):
            label_pairs = np.stack([target.labels[second_rows], data.labels[first_rows]], 1)
            content_labels = label_pairs.ravel()
        return _use_neighbors_as_sources(
            TwoDomainImages(
                name=f"{data.name} and {target.name}",
                images=images.reshape(2 * num_pairs, *images.shape[2:]),
                labels=np.tile([1, 0], num_pairs),
                classes=domain_names(data, target),
                fingerprint=hash_json(
                    data.fingerprint, target.fingerprint, f"{task_name}:{variant}"
                ),
                source=data.source,
                domain_sizes=(len(data), len(target)),
                content_labels=content_labels,
                content_classes=content_classes,
            )
        )

    def split(self, data: ImageSet, variant: str = "") -> tuple[ImageSet, ImageSet]:
        """Hold out random images of each set.

        No image is in both parts, even if the smaller set is repeated. If both sets have the same
        size, the same rows are held out, so aligned images stay together.
        """
        assert isinstance(data, TwoDomainImages)
        first_size, second_size = data.domain_sizes
        if min(first_size, second_size) < 2:
            raise UserError(
                f"'{data.name}' needs at least 2 images in each set, but has {first_size} and"
                f" {second_size}"
            )
        first_train, first_test = split_indices(first_size, TEST_FRACTION)
        second_train, second_test = split_indices(second_size, TEST_FRACTION)
        return (
            self._interleave_domains(data, first_train, second_train),
            self._interleave_domains(data, first_test, second_test),
        )

    def _interleave_domains(
        self, data: TwoDomainImages, first_rows: IntArray, second_rows: IntArray
    ) -> TwoDomainImages:
        """Interleave rows of both sets, repeating the smaller selection."""
        num_pairs = max(len(first_rows), len(second_rows))
        rows = np.stack(
            [2 * np.resize(second_rows, num_pairs), 2 * np.resize(first_rows, num_pairs) + 1], 1
        )
        return _use_neighbors_as_sources(data.subset(rows.ravel()))

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return the images, each with a random source image of the other domain."""
        rng, sources = np.random.default_rng(seed), np.empty_like(train_split.images)
        for offset in (0, 1):
            other_domain = train_split.images[1 - offset :: 2]
            sources[offset::2] = other_domain[rng.permutation(len(other_domain))]
        fingerprint = hash_json(train_split.fingerprint, f"shuffled:{seed}")
        return replace(train_split, source_images=sources, fingerprint=fingerprint)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return, for each direction, the cycle error and, if possible, further metrics.

        Aligned sets give the similarity of translated and target images. Sets with the same classes
        give the accuracy of a classifier of the target domain on source, generated and target
        images.
        """
        assert isinstance(train_set, TwoDomainImages) and isinstance(test_set, TwoDomainImages)
        metrics: dict[str, float] = {}
        rows = []
        for target_domain in (1, 0):
            source_domain = 1 - target_domain
            source, target = (
                torch.from_numpy(np.array(test_set.images[test_rows[:MAX_TEST_IMAGES_PER_DOMAIN]]))
                for test_rows in map(test_set.rows_of_domain, (source_domain, target_domain))
            )
            generated = generate_from_source(run.best, source, [target_domain])
            cycled = generate_from_source(run.best, generated, [source_domain])
            source_name, target_name = (
                test_set.classes[source_domain],
                test_set.classes[target_domain],
            )
            direction = f"{source_name} to {target_name}"
            cycle_error = image_similarity(cycled, source)["l1"]
            metrics[f"{direction} to {source_name}, l1"] = cycle_error
            if variant == ALIGNED_VARIANT:
                for prefix, images in (("", generated), ("source ", source)):
                    similarity = image_similarity(images, target)
                    metrics |= {
                        f"{direction}, {prefix}{name}": similarity[name] for name in ("l1", "ssim")
                    }
            accuracies = content_recognition_accuracy(
                train_set,
                test_set,
                target_domain,
                generated=generated,
                source=source,
                target=target,
            )
            metrics |= {f"{direction}, {name}": value for name, value in accuracies.items()}
            rows += [
                images[:NUM_SHEET_IMAGES_PER_DOMAIN].numpy()
                for images in (source, generated, cycled)
            ]
        save_task_sheet(run, rows)
        return metrics


def content_recognition_accuracy(
    train_set: TwoDomainImages,
    test_set: TwoDomainImages,
    target_domain: int,
    *,
    generated: ImagesNCHW,
    source: ImagesNCHW,
    target: ImagesNCHW,
) -> dict[str, float]:
    """Return the accuracy of a classifier of content, trained on images of the target domain.

    The result is empty if there are too few content labels.

    Args:
        train_set: Images that G and D were trained on.
        test_set: Images held out from training.
        target_domain: Domain of the classifier's training images and of ``generated``.
        generated: Translations of ``source``.
        source: Test images of the other domain.
        target: Test images of the target domain.
    """
    num_classes = len(train_set.content_classes)
    if train_set.content_labels is None or test_set.content_labels is None or num_classes < 2:
        return {}
    rows = train_set.rows_of_domain(target_domain)
    rows = rows[train_set.content_labels[rows] >= 0]
    if len(rows) < MIN_TRAIN_IMAGES_PER_CLASS * num_classes:
        return {}
    labeled = (np.array(train_set.images[rows]), train_set.content_labels[rows])
    classify = fit_classifier(labeled, num_classes)
    accuracies = {}
    for name, images, content_domain in (
        ("generated", generated, 1 - target_domain),
        ("source", source, 1 - target_domain),
        ("target", target, target_domain),
    ):
        labels = test_set.content_labels[test_set.rows_of_domain(content_domain)[: len(images)]]
        if (has_label := labels >= 0).any():
            is_correct = classify(images.numpy()[has_label]) == labels[has_label]
            accuracies[f"accuracy, {name}"] = float(is_correct.mean())
    return accuracies


def domain_names(first_set: ImageSet, second_set: ImageSet) -> tuple[str, str]:
    """Return a distinct name for each set.

    Sets of the same name get the name of their parent folder too, or else the letters A and B.
    """
    if first_set.name != second_set.name:
        return first_set.name, second_set.name
    first_path, second_path = (
        "/".join(Path(image_set.source).parts[-2:]) for image_set in (first_set, second_set)
    )
    if first_path != second_path:
        return first_path, second_path
    return f"A: {first_set.name}", f"B: {second_set.name}"


def _use_neighbors_as_sources(data: TwoDomainImages) -> TwoDomainImages:
    """Return interleaved images, each with its neighbor of the other domain as source image."""
    pairs = np.asarray(data.images).reshape(-1, 2, *data.images.shape[1:])
    return replace(data, source_images=pairs[:, ::-1].reshape(data.images.shape))


UNPAIRED_OVERRIDES: dict[str, Any] = {
    "conditioning": "unpaired",
    # Over both domains together, copying the source images would be a perfect score.
    "score": {"kind": "intra-fd"},
}
# growgan's least-squares loss of G is half of the paper's, so the other weights are halved too.
CYCLEGAN_PUBLISHED: dict[str, Any] = {
    **PIX2PIX_PUBLISHED,
    **UNPAIRED_OVERRIDES,
    "conditioning_options": {"cycle_weight": 5.0, "identity_weight": 2.5},
    "loss": "least-squares",
    "regularizers": {"replay": REPLAY_BUFFER_OPTIONS},
    "batch_size": 8,
    "network": {**PIX2PIX_PUBLISHED["network"], "block": "residual"},
}
# As the small form of pix2pix, but G adds its output to the source image, so that at first it
# returns the source. Otherwise some runs invert black and white and stay there, which D does not
# penalize. The learning rate is lower: with the rate of the other tasks, G changes faster than D
# can follow, and returns to copying the source.
CYCLEGAN_SMALL: dict[str, Any] = {
    **PIX2PIX_SMALL,
    **UNPAIRED_OVERRIDES,
    "regularizers": {"r1": PIX2PIX_SMALL["regularizers"]["r1"], "replay": REPLAY_BUFFER_OPTIONS},
    "optimizer": {"lr": 5e-3, "beta1": 0.5},
    "network": {
        **PIX2PIX_SMALL["network"],
        "residual_output": True,
        "norm": "none",
        "discriminator_width": 32,
    },
}

TASKS.register(
    "cyclegan", "Translate images between two unpaired sets.", "Zhu et al. 2017, 1703.10593"
)(
    UnpairedTranslationTask(
        published_overrides=CYCLEGAN_PUBLISHED,
        small_overrides=CYCLEGAN_SMALL,
        example_variants=(ALIGNED_VARIANT,),
    )
)
