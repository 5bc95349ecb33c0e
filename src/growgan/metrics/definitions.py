"""All registered metrics: each takes the two sets and returns its value with its protocol.

To add a metric, write a pure function in ``functional/``, and register a function here that calls
it. The metric can then be listed, evaluated, streamed and saved.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from growgan.metrics.features.own_network import OWN_NETWORK_VERSION
from growgan.metrics.functional.classification_accuracy_score import (
    LabeledImages,
    classification_accuracy_score,
)
from growgan.metrics.functional.frechet_distance import (
    NUM_JACKKNIFE_GROUPS,
    frechet_distance_of_moments,
    frechet_distance_with_stderr,
)
from growgan.metrics.functional.frechet_distance_at_infinity import frechet_distance_at_infinity
from growgan.metrics.functional.inception_score import inception_score
from growgan.metrics.functional.intra_class_frechet_distance import intra_class_frechet_distance
from growgan.metrics.functional.kid import kid
from growgan.metrics.functional.memorization import compute_memorization
from growgan.metrics.functional.ms_ssim import mean_ms_ssim
from growgan.metrics.functional.perceptual_path_length import perceptual_path_length
from growgan.metrics.functional.sliced_wasserstein import sliced_wasserstein
from growgan.metrics.image_batches import random_rows
from growgan.metrics.image_statistics import ImageStatistics
from growgan.metrics.registry import (
    NUM_NEIGHBORS,
    NUM_NEIGHBORS_DENSITY_COVERAGE,
    MetricInputs,
    register_metric,
)
from growgan.metrics.result import MetricResult

_MAX_SWD_IMAGES = 16_384  # images of each set, as published
_MAX_INCEPTION_SCORE_SPLITS = 10  # as published
_NUM_KID_SUBSETS = 100  # as published
_MAX_KID_SUBSET_SIZE = 1000  # as published
_NUM_MS_SSIM_PAIRS = 10_000
_NUM_PPL_PATHS = 50_000
_MEMORIZATION_SIGNIFICANCE_LEVEL = 0.01  # fraction of new real images that count as copies


@register_metric(
    "fid",
    "Fréchet distance of features; on Inception features, the FID. Lower is better.",
    "Heusel et al. 2017, 1706.08500",
    {"features", "real"},
)
def compute_fid(inputs: MetricInputs) -> MetricResult:
    """Return the squared Fréchet distance, with a standard error if there are enough images.

    It is the FID on Inception features only. On other features it is a Fréchet distance on those
    features, as its protocol states.
    """
    protocol = inputs.protocol(
        "fid", f"covariance over N - 1; stderr: jackknife of {NUM_JACKKNIFE_GROUPS} groups"
    )
    if len(inputs.fake) < 2 * NUM_JACKKNIFE_GROUPS:
        value = frechet_distance_of_moments(inputs.fake.moments, inputs.real.moments)
        return MetricResult(value, protocol)
    value, stderr = frechet_distance_with_stderr(inputs.fake.features, inputs.real.moments)
    return MetricResult(value, protocol, stderr)


@register_metric(
    "kid",
    "Kernel distance of features, unbiased for small samples. Lower is better.",
    "Binkowski et al. 2018, 1801.01401",
    {"features", "real"},
)
def compute_kid(inputs: MetricInputs) -> MetricResult:
    """Return the squared MMD: its mean over subsets, and its standard deviation over them."""
    smaller_set = min(len(inputs.fake), len(inputs.real))
    subset_size = _MAX_KID_SUBSET_SIZE
    if smaller_set <= _MAX_KID_SUBSET_SIZE:
        subset_size = max(2, smaller_set // 2)
    estimate = kid(
        inputs.fake.features,
        inputs.real.features,
        subsets=_NUM_KID_SUBSETS,
        subset_size=subset_size,
        seed=inputs.seed,
    )
    estimator = f"(x y / d + 1)^3, unbiased; {_NUM_KID_SUBSETS} subsets of {subset_size}"
    return MetricResult(estimate.value, inputs.protocol("kid", estimator), std=estimate.std)


@register_metric(
    "is",
    "Inception score: confident predictions that vary over images. Higher is better.",
    "Salimans et al. 2016, 1606.03498",
    {"probabilities"},
)
def compute_inception_score(inputs: MetricInputs) -> MetricResult:
    """Return the Inception score: its mean over ten splits, and its standard deviation."""
    splits = min(_MAX_INCEPTION_SCORE_SPLITS, len(inputs.fake))
    estimate = inception_score(
        inputs.fake.probabilities, probabilities=True, splits=splits, seed=inputs.seed
    )
    estimator = f"{splits} shuffled splits, logits without bias"
    protocol = inputs.protocol("is", estimator, unused=("real",))
    return MetricResult(estimate.value, protocol, std=estimate.std)


@register_metric(
    "precision",
    "Fraction of generated images that lie near real ones. Higher is better.",
    "Kynkaanniemi et al. 2019, 1904.06991",
    {"features", "real"},
)
def compute_precision(inputs: MetricInputs) -> MetricResult:
    """Return the fraction of generated images in a ball around a real one."""
    protocol = inputs.protocol("precision", f"closed balls, k={NUM_NEIGHBORS}")
    return MetricResult(inputs.prdc.precision, protocol)


@register_metric(
    "recall",
    "Fraction of real images that lie near generated ones. Higher is better.",
    "Kynkaanniemi et al. 2019, 1904.06991",
    {"features", "real"},
)
def compute_recall(inputs: MetricInputs) -> MetricResult:
    """Return the fraction of real images in a ball around a generated one."""
    protocol = inputs.protocol("recall", f"closed balls, k={NUM_NEIGHBORS}")
    return MetricResult(inputs.prdc.recall, protocol)


@register_metric(
    "density",
    "Number of real images near a generated one, over its expectation. Higher is better.",
    "Naeem et al. 2020, 2002.09797",
    {"features", "real"},
)
def compute_density(inputs: MetricInputs) -> MetricResult:
    """Return the mean number of balls around real images that hold a generated image, over k."""
    protocol = inputs.protocol("density", f"closed balls, k={NUM_NEIGHBORS_DENSITY_COVERAGE}")
    return MetricResult(inputs.prdc.density, protocol)


@register_metric(
    "coverage",
    "Fraction of real images with a generated image nearby. Higher is better.",
    "Naeem et al. 2020, 2002.09797",
    {"features", "real"},
)
def compute_coverage(inputs: MetricInputs) -> MetricResult:
    """Return the fraction of real images whose ball holds a generated image."""
    protocol = inputs.protocol("coverage", f"closed balls, k={NUM_NEIGHBORS_DENSITY_COVERAGE}")
    return MetricResult(inputs.prdc.coverage, protocol)


@register_metric(
    "fid-infinity",
    "The metric fid, extrapolated to infinitely many generated images. Lower is better.",
    "Chong & Forsyth 2020, 1911.07023",
    {"features", "real"},
)
def compute_fid_infinity(inputs: MetricInputs) -> MetricResult:
    """Return the extrapolated distance; ``details`` holds the distance by number of images."""
    extrapolation = frechet_distance_at_infinity(
        inputs.fake.features, inputs.real.moments, seed=inputs.seed
    )
    sizes = extrapolation.sizes
    estimator = f"line over 1/n through {len(sizes)} sizes from {sizes[0]}"
    details = {
        str(size): distance for size, distance in zip(sizes, extrapolation.distances, strict=True)
    }
    protocol = inputs.protocol("fid-infinity", estimator)
    return MetricResult(extrapolation.value, protocol, details=details)


@register_metric(
    "intra-fid",
    "Mean over classes of the metric fid within each class. Lower is better.",
    "Miyato & Koyama 2018, 1802.05637",
    {"features", "real", "labels"},
)
def compute_intra_fid(inputs: MetricInputs) -> MetricResult:
    """Return the mean distance within classes; ``details`` holds that of each class."""
    fake, fake_labels = _labeled_features(inputs.fake)
    real, real_labels = _labeled_features(inputs.real)
    distances = intra_class_frechet_distance(fake, fake_labels, real, real_labels)
    details = {str(label): distance for label, distance in distances.by_class.items()}
    estimator = f"covariance over N - 1, mean over classes, labels {inputs.real.labels_hash[:16]}"
    protocol = inputs.protocol("intra-fid", estimator, num_images=(len(fake), len(real)))
    return MetricResult(distances.value, protocol, details=details)


@register_metric(
    "swd",
    "Sliced Wasserstein distance of image patches, x 1000. Lower is better.",
    "Karras et al. 2018, 1710.10196",
    {"images", "real"},
)
def compute_swd(inputs: MetricInputs) -> MetricResult:
    """Return the mean over the pyramid's levels; ``details`` holds the distance of each level."""
    count = min(len(inputs.fake), len(inputs.real), _MAX_SWD_IMAGES)
    distances = sliced_wasserstein(
        _sample_images(inputs.fake, count, inputs.seed),
        _sample_images(inputs.real, count, inputs.seed),
        seed=inputs.seed,
        progress=partial(inputs.progress, "Comparing patches"),
    )
    estimator = "128 patches of 7x7 per image and level, 4 x 128 directions"
    protocol = inputs.protocol("swd", estimator, num_images=(count, count), unused=("features",))
    return MetricResult(distances.mean, protocol, distances.stderr, distances.levels)


@register_metric(
    "ms-ssim",
    "Mean similarity of pairs of generated images, 1 if all are equal. Lower is better.",
    "Odena et al. 2017, 1610.09585",
    {"images"},
)
def compute_ms_ssim(inputs: MetricInputs) -> MetricResult:
    """Return the mean over pairs of generated images; ``details`` holds that of real images."""
    similarity_of = partial(mean_ms_ssim, num_pairs=_NUM_MS_SSIM_PAIRS, seed=inputs.seed)
    max_images = 2 * _NUM_MS_SSIM_PAIRS
    fake = _sample_images(inputs.fake, max_images, inputs.seed)
    value = similarity_of(fake)
    details = {}
    if len(inputs.real):
        details["real"] = similarity_of(_sample_images(inputs.real, max_images, inputs.seed))
    protocol = inputs.protocol(
        "ms-ssim",
        f"{_NUM_MS_SSIM_PAIRS} pairs, five scales",
        num_images=(len(fake), 0),
        unused=("features", "real"),
    )
    return MetricResult(value, protocol, details=details)


@register_metric(
    "ppl",
    "Perceptual path length: how abruptly images change along latent paths. Lower is better.",
    "Karras et al. 2019, 1812.04948",
    {"features", "generator"},
)
def compute_ppl(inputs: MetricInputs) -> MetricResult:
    """Return the perceptual path length of the generator in the features of the extractor."""
    extractor, generator = inputs.fake.extractor, inputs.generator
    if generator is None:
        raise ValueError("generator must be given for the metric 'ppl', but is None")
    value = perceptual_path_length(
        generator,
        lambda images: extractor.extract_float((images * 127.5 + 128).clamp(0, 255)),
        generator.latent_dim,
        num_paths=_NUM_PPL_PATHS,
        seed=inputs.seed,
        progress=partial(inputs.progress, "Following latent paths"),
    )
    estimator = f"{_NUM_PPL_PATHS} full paths in z, step 1e-4, 1 % dropped at each end"
    protocol = inputs.protocol("ppl", estimator, num_images=(_NUM_PPL_PATHS, 0), unused=("real",))
    return MetricResult(value, replace(protocol, quantization="none"))


@register_metric(
    "cas",
    "Accuracy on real images of a classifier trained on generated ones. Higher is better.",
    "Ravuri & Vinyals 2019, 1905.10887",
    {"images", "real", "labels", "held_out"},
)
def compute_cas(inputs: MetricInputs) -> MetricResult:
    """Return the accuracy on held-out images; ``details`` holds that of training on real images."""
    if inputs.held_out is None:
        raise ValueError("held_out must be given for the metric 'cas', but is None")
    accuracy = classification_accuracy_score(
        _labeled_images(inputs.fake),
        _labeled_images(inputs.real),
        _labeled_images(inputs.held_out),
        seed=inputs.seed,
        progress=partial(inputs.progress, "Training two classifiers"),
    )
    estimator = (
        f"own network {OWN_NETWORK_VERSION}, labels {inputs.real.labels_hash[:16]}, tested on"
        f" {inputs.held_out.fingerprint[:16]}, labels {inputs.held_out.labels_hash[:16]}"
    )
    num_images = (accuracy.num_train_images, accuracy.num_train_images)
    protocol = inputs.protocol("cas", estimator, num_images=num_images, unused=("features",))
    return MetricResult(accuracy.fake_accuracy, protocol, details={"real": accuracy.real_accuracy})


@register_metric(
    "memorization",
    "Fraction of generated images that are likely copies of real ones. Lower is better.",
    "",
    {"features", "real", "held_out"},
)
def compute_memorization_metric(inputs: MetricInputs) -> MetricResult:
    """Return the fraction of near copies; ``details`` holds that expected of new real images."""
    if inputs.held_out is None:
        raise ValueError("held_out must be given for the metric 'memorization', but is None")
    memorization = compute_memorization(
        inputs.fake.features,
        inputs.real.features,
        inputs.held_out.features,
        significance_level=_MEMORIZATION_SIGNIFICANCE_LEVEL,
    )
    estimator = (
        f"nearest of all, significance level {_MEMORIZATION_SIGNIFICANCE_LEVEL}, held out"
        f" {inputs.held_out.fingerprint[:16]}"
    )
    return MetricResult(
        memorization.fraction,
        inputs.protocol("memorization", estimator),
        details={
            "expected": memorization.expected_fraction,
            "threshold": memorization.threshold,
        },
    )


def _sample_images(statistics: ImageStatistics, max_images: int, seed: int) -> Tensor:
    """Return up to ``max_images`` random images, uint8 [n, C, H, W], in their original order."""
    rows = random_rows(len(statistics), max_images, seed)
    return torch.from_numpy(np.ascontiguousarray(statistics.images[rows]))


def _labeled_images(statistics: ImageStatistics) -> LabeledImages:
    """Return the images that have a label, and their labels."""
    labels = np.array(statistics.labels, dtype=np.int64)
    has_label = labels >= 0
    images = statistics.images if has_label.all() else statistics.images[has_label]
    return images, labels[has_label]


def _labeled_features(statistics: ImageStatistics) -> tuple[Tensor, Tensor]:
    """Return the features of the images that have a label, and their labels."""
    labels = torch.from_numpy(np.array(statistics.labels, dtype=np.int64))
    return statistics.features[labels >= 0], labels[labels >= 0]
