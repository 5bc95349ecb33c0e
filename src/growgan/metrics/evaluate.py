"""Evaluate one set of images against another: every requested metric, with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.cache import default_cache
from growgan.data.images import ImageSet
from growgan.errors import UserError
from growgan.metrics import definitions  # noqa: F401  (registers the metrics)
from growgan.metrics.evaluation_inputs import (
    EvaluationInput,
    HasGenerator,
    ImageSampler,
    check_same_shape,
    downscale_to_match,
    load_evaluation_images,
    subsample,
)
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.features.own import load_or_train_own_extractor
from growgan.metrics.features.pretrained import check_features, load_extractor
from growgan.metrics.image_hash import ImageSetHash
from growgan.metrics.image_statistics import CachedImageStatistics, class_probability_fn
from growgan.metrics.progress import StageProgressFn, no_progress
from growgan.metrics.registry import METRICS, MetricInputs, MetricRequirement
from growgan.metrics.result import MetricResult

DEFAULT_METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "swd", "ms-ssim")
PER_CLASS_METRICS = ("intra-fid",)  # computed within classes, so they need equally many of each

FAKE_NAME = "fake images"
REAL_NAME = "real images"
HELD_OUT_NAME = "held-out images"
_MAX_CLASSES_IN_MESSAGE = 12


@dataclass(frozen=True)
class Evaluation(Mapping[str, MetricResult]):
    """Results by metric, and the reason for each metric that was skipped."""

    results: Mapping[str, MetricResult]
    skipped: Mapping[str, str]

    def __getitem__(self, name: str) -> MetricResult:
        return self.results[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        results = {name: result.to_json() for name, result in self.results.items()}
        return {"metrics": results, "skipped": dict(self.skipped)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Return the evaluation in ``data``; raise :class:`UserError` if it is not valid."""
        if not isinstance(data, Mapping) or not isinstance(data.get("metrics"), Mapping):
            raise UserError("not an evaluation: it must be an object with the key 'metrics'")
        results = {name: MetricResult.from_json(item) for name, item in data["metrics"].items()}
        return cls(results, dict(data.get("skipped", {})))


def evaluate(
    fake: EvaluationInput,
    real: EvaluationInput,
    *,
    metrics: str | Sequence[str] = (),
    features: str = "own",
    resize: str = "clean",
    num_fake: int | None = None,
    num_real: int | None = None,
    held_out: ImageSet | NDArray[np.uint8] | None = None,
    preprocessing: str = "none",
    seed: int = 0,
    cache_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: StageProgressFn = no_progress,
) -> Evaluation:
    """Evaluate the images of ``fake`` against those of ``real``.

    Args:
        fake: A run, a trained generator, an :class:`ImageSet`, or an array uint8 [N, H, W, C].
        real: The reference, with as many channels and the same resolution. If ``fake`` is a
            generator of a lower resolution that divides it, the real images are averaged down, as
            they are when the search scores candidates.
        metrics: One or several names of :data:`METRICS`, or "all"; by default the usual ones.
            Metrics that were not named and cannot be computed are skipped, with a reason.
        features: "own" (a network trained on ``real`` once), "pixels", "inception", "dinov2",
            "clip", one of these networks with its weights ("inception:FILE.pt"), or any TorchScript
            file ("FILE.pt").
        resize: Resizing to the input of Inception: "clean", or a legacy method of
            :data:`RESIZE_METHODS`.
        num_fake: Maximum number of generated images; by default 10,000 of a run, or all of a set.
            A conditional run samples classes with the frequencies that they have in ``real``, and
            equally many of each class for metrics within classes.
        num_real: Maximum number of real images; by default all.
        held_out: Real images that are not in ``real``, for "cas" and "memorization".
        preprocessing: How the images were brought to their resolution, for the protocol.
        seed: Random seed of all draws.
        cache_dir: Root of the cache; by default ``$GROWGAN_CACHE`` or ``~/.cache/growgan``.
        device: Device for the features.
        progress: Called with a stage, the number of finished items and the total.

    Raises:
        UserError: An unknown name, images that cannot be compared, weights that cannot be loaded,
            or a metric that was named and cannot be computed.
    """
    cache_dir = cache_dir or default_cache()
    check_features(features, resize)
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    strict = bool(names) and "all" not in names
    if "all" in names:
        names = [entry.name for entry in METRICS]
    names = names or list(DEFAULT_METRICS)
    requirements = {name: METRICS[name].requirements for name in names}
    image_sets = _load_images(
        fake,
        real,
        held_out,
        num_fake=num_fake,
        seed=seed,
        progress=progress,
        only_per_class=set(names) <= set(PER_CLASS_METRICS),
    )
    extractor = _LazyExtractor(
        lambda: _load_features(
            features,
            image_sets.real,
            resize=resize,
            cache_dir=cache_dir,
            device=device,
            progress=progress,
        )
    )
    skipped = _unavailable_metrics(requirements, _missing_requirements(image_sets), extractor)
    if strict and skipped:
        name, reason = next(iter(skipped.items()))
        raise UserError(f"{name}: {reason}")

    def statistics(image_set: ImageSet, name: str) -> CachedImageStatistics:
        return CachedImageStatistics(
            image_set.images,
            image_set.labels,
            name=name,
            get_extractor=extractor,
            cache_key=image_set.fingerprint,
            cache_dir=cache_dir,
            progress=progress,
        )

    needs_generator = any("generator" in required for required in requirements.values())
    inputs = MetricInputs(
        fake=statistics(image_sets.fake, FAKE_NAME),
        real=statistics(subsample(image_sets.real, num_real, seed), REAL_NAME),
        held_out=(
            None if image_sets.held_out is None else statistics(image_sets.held_out, HELD_OUT_NAME)
        ),
        generator=image_sets.load_generator() if needs_generator else None,
        seed=seed,
        preprocessing=preprocessing,
        progress=progress,
    )
    names = [name for name in names if name not in skipped]
    inputs_by_metric = _inputs_by_metric(inputs, names, image_sets, statistics)
    return _compute_metrics(inputs_by_metric, skipped, strict=strict, progress=progress)


@dataclass(frozen=True)
class _EvaluationImages:
    """The images to evaluate, all of one shape.

    Attributes:
        fake: Generated images.
        real: Real images.
        held_out: Real images that are not in ``real``, or None.
        sampler: The trained generator of the fake images, or None.
        sample_class_balanced: Samples as many fake images again, equally many of each class. It
            is None if ``fake`` is balanced already or was not sampled here.
    """

    fake: ImageSet
    real: ImageSet
    held_out: ImageSet | None
    sampler: ImageSampler | None
    sample_class_balanced: Callable[[], ImageSet] | None

    def load_generator(self) -> _GeneratorOfLatents | None:
        """Return the generator as a function of latents, if the fake images have a single one."""
        if self.sampler is not None and isinstance(self.sampler, HasGenerator):
            return _GeneratorOfLatents(self.sampler.load_network())
        return None


def _load_images(
    fake: EvaluationInput,
    real: EvaluationInput,
    held_out: ImageSet | NDArray[np.uint8] | None,
    *,
    num_fake: int | None,
    seed: int,
    progress: StageProgressFn,
    only_per_class: bool,
) -> _EvaluationImages:
    """Return the images; ``only_per_class`` samples equally many fake images of each class."""
    load_fake = partial(
        load_evaluation_images,
        fake,
        name=FAKE_NAME,
        num_images=num_fake,
        seed=seed,
        progress=progress,
    )
    # If the reference is a run, its images must not have the latents of the fake images.
    real_images, _ = load_evaluation_images(
        real, name=REAL_NAME, num_images=None, seed=seed + 1, progress=progress
    )
    fake_images, sampler = load_fake(label_reference=None if only_per_class else real_images)
    held_out_images = None
    if held_out is not None:
        held_out_images, _ = load_evaluation_images(
            held_out, name=HELD_OUT_NAME, num_images=None, seed=seed, progress=progress
        )
    if sampler is not None:
        real_images = downscale_to_match(real_images, fake_images)
        if held_out_images is not None:
            held_out_images = downscale_to_match(held_out_images, fake_images)
    check_same_shape(fake_images, real_images)
    if held_out_images is not None:
        check_same_shape(held_out_images, real_images)
    return _EvaluationImages(
        fake=fake_images,
        real=real_images,
        held_out=held_out_images,
        sampler=sampler,
        sample_class_balanced=(
            None if sampler is None or only_per_class else lambda: load_fake()[0]
        ),
    )


def _missing_requirements(image_sets: _EvaluationImages) -> dict[MetricRequirement, str]:
    """Return what metrics cannot have, and why."""
    missing: dict[MetricRequirement, str] = {}
    if not isinstance(image_sets.sampler, HasGenerator):
        missing["generator"] = "needs the generator of the images: FAKE must be a run"
    if image_sets.held_out is None:
        missing["held_out"] = "needs real images that are not in REAL: pass --held-out DATA"
    real = image_sets.real
    for name, images in (
        (FAKE_NAME, image_sets.fake),
        (REAL_NAME, real),
        (HELD_OUT_NAME, image_sets.held_out),
    ):
        if images is None:
            continue
        if images.labels is None or not (images.labels >= 0).any():
            missing.setdefault("labels", f"needs labels, but the {name} have none")
        elif images.classes != real.classes:
            classes, real_classes = (
                ", ".join(image_set.classes[:_MAX_CLASSES_IN_MESSAGE])
                for image_set in (images, real)
            )
            missing.setdefault(
                "labels",
                f"needs the same classes in both sets, but the {name} have {classes}, and the real"
                f" images have {real_classes}",
            )
    return missing


def _unavailable_metrics(
    requirements: Mapping[str, frozenset[MetricRequirement]],
    missing: Mapping[MetricRequirement, str],
    extractor: _LazyExtractor,
) -> dict[str, str]:
    """Return the metrics that cannot be computed, and why, before any is computed.

    The extractor is loaded only if a metric needs it that is not unavailable for another reason.
    """
    missing = dict(missing)
    extractor_requirements: tuple[MetricRequirement, ...] = ("features", "probabilities")
    for requirement in extractor_requirements:
        if any(
            requirement in required and not required & set(missing)
            for required in requirements.values()
        ):
            reason = extractor.unavailable_reason(requirement)
            if reason:
                missing[requirement] = reason
    return {
        name: next(missing[requirement] for requirement in sorted(required & set(missing)))
        for name, required in requirements.items()
        if required & set(missing)
    }


def _inputs_by_metric(
    inputs: MetricInputs,
    names: Sequence[str],
    image_sets: _EvaluationImages,
    make_statistics: Callable[[ImageSet, str], CachedImageStatistics],
) -> dict[str, MetricInputs]:
    """Return the inputs of each metric; metrics within classes get equally many of each class."""
    if image_sets.sample_class_balanced is None or not set(names) & set(PER_CLASS_METRICS):
        return dict.fromkeys(names, inputs)
    balanced_fake = make_statistics(image_sets.sample_class_balanced(), FAKE_NAME)
    balanced_inputs = replace(inputs, fake=balanced_fake)
    return {name: balanced_inputs if name in PER_CLASS_METRICS else inputs for name in names}


def _compute_metrics(
    inputs_by_metric: Mapping[str, MetricInputs],
    skipped: Mapping[str, str],
    *,
    strict: bool,
    progress: StageProgressFn,
) -> Evaluation:
    """Compute the metrics; one that refuses the images is an error if ``strict``, else skipped."""
    results: dict[str, MetricResult] = {}
    skipped = dict(skipped)
    for name, inputs in inputs_by_metric.items():
        progress(name, 0, 1)
        try:
            results[name] = METRICS[name].compute(inputs)
        except (UserError, ValueError) as error:
            if strict:
                raise UserError(f"{name}: {error}") from error
            skipped[name] = str(error)
        progress(name, 1, 1)
    return Evaluation(results, skipped)


class _LazyExtractor:
    """An extractor that is loaded when it is first used. A failure is remembered, not repeated."""

    def __init__(self, load: Callable[[], FeatureExtractor]) -> None:
        self._load = load
        self._extractor_or_error: FeatureExtractor | UserError | None = None

    def __call__(self) -> FeatureExtractor:
        if self._extractor_or_error is None:
            try:
                self._extractor_or_error = self._load()
            except UserError as error:
                self._extractor_or_error = error
        if isinstance(self._extractor_or_error, UserError):
            raise self._extractor_or_error
        return self._extractor_or_error

    def unavailable_reason(self, requirement: MetricRequirement) -> str:
        """Return why "features" or "probabilities" are not available, or ""."""
        try:
            extractor = self()
            if requirement == "probabilities":
                class_probability_fn(extractor)
        except UserError as error:
            return str(error)
        return ""


class _GeneratorOfLatents:
    """A generator network as a function of latents; classes take turns."""

    def __init__(self, network: Any) -> None:
        self.network, self.latent_dim = network, int(network.spec.latent_dim)

    def __call__(self, z: Tensor) -> Tensor:
        images: Tensor = self.network(self.network.append_cycled_labels(z))
        return images


def _load_features(
    features: str,
    real: ImageSet,
    *,
    resize: str,
    cache_dir: Path,
    device: torch.device | str,
    progress: StageProgressFn,
) -> FeatureExtractor:
    stage = f"Loading features '{features}'"
    progress(stage, 0, 1)
    if features == "own":
        extractor: FeatureExtractor = load_or_train_own_extractor(
            real.images,
            real.labels,
            fingerprint=real.fingerprint or ImageSetHash.hash_images(real.images),
            cache_dir=cache_dir,
            device=device,
            progress=partial(progress, "Training own features"),
        )
    else:
        extractor = load_extractor(features, cache_dir=cache_dir, resize=resize, device=device)
    progress(stage, 1, 1)
    return extractor
