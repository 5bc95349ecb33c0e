"""The parts that train and score candidates: batches, scorer and feature extractor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from growgan.config import Settings
from growgan.data import ImageSet, default_cache
from growgan.data.batches import Batches
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.features.own import load_or_train_own_extractor
from growgan.metrics.progress import ProgressFn, no_progress
from growgan.metrics.scorer import Scorer
from growgan.objectives import make_objective
from growgan.search.budget import Budget
from growgan.training.health import NUM_HEALTH_CHECK_IMAGES

FULL_EXTRACTOR_BUDGET_SECONDS = 240  # with less, the extractor trains for less
MIN_IMAGES_FOR_HELD_OUT = 2000
MAX_HELD_OUT_FRACTION = 1 / 50


def build_scorer(data: ImageSet, settings: Settings, extractor: FeatureExtractor | None) -> Scorer:
    """Build the scorer of a run. It needs an extractor unless the score is the SWD."""
    return Scorer(
        data.images,
        extractor,
        num_samples=settings.score.num_samples,
        kind=settings.score.kind,
        labels=data.labels,
    )


def build_extractor(
    data: ImageSet,
    budget: Budget,
    device: torch.device,
    extractor_copy: Path | None = None,
    progress: ProgressFn = no_progress,
) -> FeatureExtractor:
    """Load the feature extractor of ``data`` from the cache, or train it once.

    Args:
        data: The images to learn features of.
        budget: Budget of the run. Below four minutes the extractor trains for less.
        device: Device of the extractor.
        extractor_copy: File in which the run keeps a copy.
        progress: Receives the progress of the training.
    """
    seconds = budget.seconds or FULL_EXTRACTOR_BUDGET_SECONDS
    # Whole tenths, so that the cache holds few variants.
    training_fraction = min(1.0, math.ceil(10 * seconds / FULL_EXTRACTOR_BUDGET_SECONDS) / 10)
    return load_or_train_own_extractor(
        data.images,
        data.labels,
        fingerprint=data.fingerprint,
        cache_dir=default_cache(),
        device=device,
        training_fraction=training_fraction,
        copy_path=extractor_copy,
        progress=progress,
    )


def build_batches(data: ImageSet, settings: Settings) -> Batches:
    """Return the training batches of a run.

    ``settings.labels`` may restrict them to some images. If the conditioning uses no labels, they
    are dropped. If D has one logit per class, unlabeled images are dropped. Some images are held
    out, unless images are repeated to balance the classes.
    """
    conditioning = make_objective(settings).conditioning
    has_unlabeled = data.labels is not None and bool((data.labels < 0).any())
    needs_subset = settings.labels.fraction < 1 or (
        has_unlabeled and conditioning.logit_conditioning == "per_class_logits"
    )
    if needs_subset:
        data = data.labeled_subset(settings.labels.fraction, settings.seed)
    if settings.labels.balance:
        data = data.class_balanced()
    if not conditioning.needs_labels:
        data = replace(data, labels=None)
    num_held_out = 0 if settings.labels.balance else num_validation_images(len(data))
    return Batches(data, settings.batch_size, settings.seed, num_held_out)


def num_validation_images(num_images: int) -> int:
    """Return how many of ``num_images`` training images are held out for the health checks."""
    if num_images < MIN_IMAGES_FOR_HELD_OUT:
        return 0
    return min(NUM_HEALTH_CHECK_IMAGES, int(num_images * MAX_HELD_OUT_FRACTION))
