"""Scores a candidate and measures its health."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from growgan.data.batches import Batches
from growgan.execution.trial import SampleRequest
from growgan.metrics.functional.frechet_distance import NUM_JACKKNIFE_GROUPS
from growgan.metrics.functional.memorization import compute_memorization
from growgan.metrics.scorer import Score, Scorer
from growgan.nets.conditioning import append_condition, one_hot
from growgan.training.gan import Gan, generate_uint8, sobol_latents
from growgan.training.health import NUM_HEALTH_CHECK_IMAGES, HealthMetrics, measure_health
from growgan.training.runtime import Runtime

SCORE_SEED = 0x5C04E  # all candidates are scored on the same latents
MAX_IMAGES_FOR_COPY_CHECK = 10_000  # larger training sets are unlikely to be memorized
COPY_SIGNIFICANCE_LEVEL = 0.05  # fraction of held-out images that would count as copies


@dataclass
class CandidateScorer:
    """Scores candidates, and measures what the health checks need.

    Attributes:
        batches: The training data, and the images held out of it.
        runtime: Device, precision and processes.
        scorer: Measures the score. None in a process that only generates samples for it.
    """

    batches: Batches
    runtime: Runtime
    scorer: Scorer | None
    _copy_check_features: tuple[Tensor, Tensor] | None = None  # training and held-out images

    def score(self, gan: Gan, *, batch_size: int = 256) -> Score:
        """Score the moving average of G. Each process generates a part of the samples.

        Args:
            gan: The candidate.
            batch_size: Number of images per forward pass.
        """
        assert self.scorer is not None
        num_sources = self.scorer.num_samples // self.scorer.samples_per_source
        target = None
        if self.scorer.samples_per_source > 1:
            # Use held-out images only, however few: G may have memorized the others.
            num_sources = min(num_sources, len(self.batches.held_out_indices) or num_sources)
            target = _prefer_held_out(self.batches.sample_images, num_sources)
        labels = self._score_labels(num_sources)

        def generate(count: int) -> Tensor:
            request = SampleRequest(
                num_samples=count, num_sources=num_sources, labels=labels, batch_size=batch_size
            )
            return self.sample_for_score(gan, self.runtime.distributed.broadcast_object(request))

        return self.scorer.score(generate, gan.resolution, labels=labels, target=target)

    @torch.no_grad()
    def sample_for_score(self, gan: Gan, request: SampleRequest) -> Tensor:
        """Generate samples for the score, uint8 [N, C, H, W].

        The main process returns all of them, any other process its own part.
        """
        spec, distributed = gan.ema.spec, self.runtime.distributed
        latents = sobol_latents(
            request.num_samples, spec.latent_dim, SCORE_SEED, NUM_JACKKNIFE_GROUPS
        )
        generator_input = append_condition(
            spec, latents, request.labels, SCORE_SEED, self.source_images(request.num_sources)
        )
        local_rows = generator_input[distributed.rank :: distributed.world_size]
        with self.runtime.autocast():
            images = generate_uint8(gan.ema, local_rows, request.batch_size)
        return distributed.gather(images)

    def source_images(self, count: int) -> Tensor | None:
        """Return source images, float [N, C, H, W] in [-1, 1]; None if G uses none.

        They are held-out images if there are at least ``count`` of them.
        """
        images = _prefer_held_out(self.batches.sample_source_images, count)
        return None if images is None else self.runtime.to_float_images(images)

    def check_health(self, gan: Gan, score: Score | None, *, batch_size: int) -> HealthMetrics:
        """Measure the health of a candidate.

        Args:
            gan: The candidate.
            score: Its score, if it has one.
            batch_size: Number of images per forward pass.
        """
        train_images = self._real_images(gan, held_out=False)
        if train_images is None:
            raise ValueError("batches must contain at least one training image, but are empty")
        with self.runtime.autocast():
            return measure_health(
                gan,
                train_images,
                self._real_images(gan, held_out=True),
                score=score.value if score else None,
                score_stderr=score.stderr if score else 0.0,
                copy_fraction=self._copied_fraction(gan) if score else None,
                train_condition=self._condition(gan, held_out=False),
                held_out_condition=self._condition(gan, held_out=True),
                batch_size=batch_size,
            )

    def _score_labels(self, count: int) -> list[int] | None:
        """Return ``count`` labels of the samples, None if the source images have none."""
        if self.batches.sample_source_images(1) is not None:
            source_labels = _prefer_held_out(self.batches.sample_labels, count)
            return None if source_labels is None else source_labels.tolist()
        required_labels = self.scorer.sample_labels() if self.scorer else None
        if required_labels is not None:
            return required_labels.tolist()
        training_labels = self.batches.training_labels
        if training_labels is None:
            # Labels are taken modulo the number of codes. Each jackknife group gets every code.
            return [i // NUM_JACKKNIFE_GROUPS for i in range(count)]
        rng = torch.Generator().manual_seed(SCORE_SEED)
        return training_labels[
            torch.randint(len(training_labels), (count,), generator=rng)
        ].tolist()

    def _real_images(self, gan: Gan, *, held_out: bool) -> Tensor | None:
        """Return real images at the resolution of ``gan``, None if there are none."""
        images = self.batches.sample_images(NUM_HEALTH_CHECK_IMAGES, held_out=held_out)
        return (
            None if images is None else gan.downsample_images(self.runtime.to_float_images(images))
        )

    def _condition(self, gan: Gan, *, held_out: bool) -> Tensor | None:
        """Return the conditions of :meth:`_real_images`, float [N, K]; None without any."""
        labels = self.batches.sample_labels(NUM_HEALTH_CHECK_IMAGES, held_out=held_out)
        sources = self.batches.sample_source_images(NUM_HEALTH_CHECK_IMAGES, held_out=held_out)
        parts = []
        if labels is not None:
            parts.append(one_hot(labels, gan.generator.spec.label_dim).to(self.runtime.device))
        if sources is not None:
            parts.append(gan.downsample_images(self.runtime.to_float_images(sources)).flatten(1))
        return torch.cat(parts, 1) if parts else None

    @torch.no_grad()
    def _copied_fraction(self, gan: Gan) -> float | None:
        """Return the fraction of samples that copy a training image.

        None if it cannot be measured, or if the training set is too large to be memorized.
        """
        held_out = self.batches.sample_images(NUM_HEALTH_CHECK_IMAGES, held_out=True)
        extractor = self.scorer.extractor if self.scorer else None
        if held_out is None or extractor is None:
            return None
        if self.batches.num_images > MAX_IMAGES_FOR_COPY_CHECK:
            return None
        if gan.resolution != tuple(held_out.shape[2:]):
            return None
        if self._copy_check_features is None:
            training = self.batches.sample_images(MAX_IMAGES_FOR_COPY_CHECK)
            assert training is not None
            self._copy_check_features = extractor(training), extractor(held_out)
        fakes = gan.generate(
            NUM_HEALTH_CHECK_IMAGES,
            seed=SCORE_SEED,
            source=self.source_images(NUM_HEALTH_CHECK_IMAGES),
        )
        training_features, held_out_features = self._copy_check_features
        try:
            return compute_memorization(
                extractor(fakes),
                training_features,
                held_out_features,
                significance_level=COPY_SIGNIFICANCE_LEVEL,
            ).fraction
        except ValueError:  # too few images are held out, or they are also training images
            return None


def _prefer_held_out(sample: Callable[..., Tensor | None], count: int) -> Tensor | None:
    """Return ``count`` held-out rows of ``sample``, or training rows if too few are held out."""
    rows = sample(count, held_out=True)
    return rows if rows is not None and len(rows) >= count else sample(count)
