"""Features of a run's training images, from the feature extractor of its score."""

from __future__ import annotations

import torch
from torch import Tensor

from growgan.data import ImageSet, default_cache
from growgan.errors import UserError
from growgan.execution.scoring import build_extractor
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.image_statistics import CachedImageStatistics
from growgan.report.formatting import format_resolution
from growgan.run.run import Run
from growgan.run.run_directory import EXTRACTOR_FILE, check_run_dir
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.search.budget import Budget


def run_extractor(run: Run, data: ImageSet) -> FeatureExtractor:
    """Return the feature extractor of a run's score, on the CPU.

    If its score needs none, return the one that its budget would have given it.
    """
    return build_extractor(
        data,
        Budget.model_validate(run.events[0]["budget"]),
        torch.device("cpu"),
        extractor_copy=run.path / EXTRACTOR_FILE,
    )


def comparison_extractor(run: Run, generator: TrainedGenerator, data: ImageSet) -> FeatureExtractor:
    """Return the feature extractor to compare a candidate's samples with its training images.

    Raises:
        UserError: ``data`` are not the training images of the run, or have another resolution than
            the samples.
    """
    check_run_dir(run.path, data, resume=True)
    resolution = generator.load_network().spec.resolution
    if resolution != data.resolution:
        raise UserError(
            f"candidate {generator.checkpoint_dir.name} generates images of "
            f"{format_resolution(resolution)}, but the training images have "
            f"{format_resolution(data.resolution)}; choose a later candidate"
        )
    return run_extractor(run, data)


def real_features(data: ImageSet, extractor: FeatureExtractor) -> Tensor:
    """Return the features of all training images, float32 [N, d], cached on disk."""
    return CachedImageStatistics(
        data.images,
        name="real images",
        get_extractor=lambda: extractor,
        cache_key=data.fingerprint,
        cache_dir=default_cache(),
    ).features
