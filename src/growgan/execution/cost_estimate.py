"""Measures what training a pair of networks costs on this machine."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.scoring import build_batches, build_scorer
from growgan.metrics.features.own import untrained_own_extractor
from growgan.objectives import make_objective
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan
from growgan.training.memory import PeakMemory, trim_heap
from growgan.training.runtime import Runtime, runtime_from_settings
from growgan.training.step import training_step

NUM_TIMED_STEPS = 16  # every lazy regularizer is applied at least once
MAX_SCORED_SAMPLES = 256


class TrainingCost(NamedTuple):
    """What training costs at one resolution.

    Attributes:
        gan: The networks.
        images_per_second: Training speed.
        peak_mib: Largest memory use in MiB; None if the system does not report it.
    """

    gan: Gan
    images_per_second: float
    peak_mib: float | None


def measure_training_cost(
    data: ImageSet, settings: Settings, space: SearchSpace, level: int
) -> TrainingCost:
    """Train the networks at resolution level ``level`` for a few steps, and score them once.

    As in a run, the parent stays in memory beside the child in training. Scoring uses an untrained
    feature network and few samples, because only its memory matters here.
    """
    runtime = runtime_from_settings(settings)
    trim_heap()
    peak = PeakMemory(runtime.device)
    specs = space.specs_at(level)
    parent = Gan.create(*specs, settings.optimizer, seed=settings.seed, device=runtime.device)
    batches, objective = build_batches(data, settings), make_objective(settings)
    training_step(parent, batches, objective, settings, runtime=runtime)  # warm up
    gan = parent.grown_copy()
    start, images_before = time.perf_counter(), gan.images_seen
    for _ in range(NUM_TIMED_STEPS):
        terms = training_step(gan, batches, objective, settings, runtime=runtime)
    float(terms["loss_discriminator"])  # wait for the device
    images_per_second = (gan.images_seen - images_before) / (time.perf_counter() - start)
    _score_once(gan, batches, settings, runtime, data)
    return TrainingCost(parent, images_per_second, peak.mib)


def _score_once(
    gan: Gan, batches: Batches, settings: Settings, runtime: Runtime, data: ImageSet
) -> None:
    """Score the networks and check their health, for the memory that this takes."""
    scorer = build_scorer(data, settings, untrained_own_extractor(data.images, runtime.device))
    candidate_scorer = CandidateScorer(batches, runtime, scorer)
    num_samples = min(MAX_SCORED_SAMPLES, 8 * settings.batch_size)
    with runtime.autocast():
        samples = gan.generate(
            num_samples,
            seed=settings.seed,
            source=candidate_scorer.source_images(num_samples),
        )
    target = None
    if scorer.samples_per_source > 1:
        target = batches.sample_images(scorer.num_samples // scorer.samples_per_source)
    score = scorer.score(
        lambda count: samples[torch.arange(count) % num_samples], gan.resolution, target=target
    )
    candidate_scorer.check_health(gan, score, batch_size=batches.batch_size)
