"""Health checks: provoked failures are detected and mitigated; healthy runs raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growgan.config import NetworkConfig, OptimizerSettings, make_settings
from growgan.data import Batches, ImageSet, load_images
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.scoring import num_validation_images
from growgan.execution.trainer import CandidateTrainer
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.scorer import Scorer
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.objectives import REGULARIZERS, make_objective, make_regularizer
from growgan.objectives.gradient_penalties import GAMMA_PER_PIXEL
from growgan.run.grow import grow
from growgan.run.run import Run
from growgan.search.history import SearchSpace
from growgan.training import loop
from growgan.training.gan import Gan
from growgan.training.health import (
    MAX_SPECTRAL_RATIO,
    MIN_STALLED_GENERATOR_STEPS,
    MIN_STALLED_SEGMENTS,
    NUM_HEALTH_CHECK_IMAGES,
    WARMUP_GENERATOR_STEPS,
    WARMUP_IMAGES,
    HealthMetrics,
    diagnose,
    is_finite,
    measure_health,
    mitigation,
    top_singular_values,
)
from growgan.training.runtime import make_runtime
from growgan.training.step import training_step

CPU = make_runtime("cpu", "float32")
HEALTHY = HealthMetrics(
    images_seen=50_000,
    generator_steps=1_500,
    all_finite=True,
    score=0.1,
    diversity_ratio=0.9,
    real_std=0.2,
    train_win_rate=0.8,
    held_out_win_rate=0.75,
    discriminator_spectral_norm=3.0,
)


pytestmark = pytest.mark.usefixtures("temporary_cache")


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(400, 1, 16, 16)


def run(data: ImageSet, out: Path, images: int = 12_000, **values: Any) -> Run:
    settings = {
        "policy": "fixed",
        "batch_size": 16,
        "network": {"latent_dim": 16, "width": 8},
        "score": {"kind": "swd", "num_samples": 128},
    }
    try:
        grow(data, out=out, images=images, settings=make_settings(settings, values))
    except RuntimeError as error:  # the reason is in the ledger
        assert "no candidate could be trained" in str(error)
    return Run.open(out)


def diagnoses(result: Run) -> list[str]:
    return [e["failure"] for e in result.events if e["event"] == "mitigation"]


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"all_finite": False}, "divergence"),
        ({"real_std": 0.0}, "constant data"),
        ({"score": 0.5}, "instability"),
        ({"spectral_ratio": 60.0}, "instability"),
        ({"train_win_rate": 0.01}, "instability"),
        ({"diversity_ratio": 0.1}, "mode collapse"),
        ({"diversity_ratio": 0.01, "images_seen": 2_000, "score": 0.99}, "mode collapse"),
        ({"train_win_rate": 0.99, "held_out_win_rate": 0.7}, "memorization"),
        ({"copy_fraction": 0.9}, "memorization"),
    ],
)
def test_each_failure_is_detected(changes: dict[str, Any], failure: str) -> None:
    assert diagnose(HEALTHY, HEALTHY) is None
    previous = HEALTHY if failure == "instability" else replace(HEALTHY, score=changes.get("score"))
    diagnosis = diagnose(replace(HEALTHY, **changes), previous)
    assert diagnosis is not None and diagnosis.failure == failure
    assert len(diagnosis.message.split()) > 4


def test_d_has_won_if_it_separates_everything_and_g_does_not_improve() -> None:
    won = replace(HEALTHY, train_win_rate=0.999, held_out_win_rate=0.999, score_stderr=0.01)
    lineage = [won.with_history(None)]
    for number, score in enumerate((0.099, 0.11, 0.101), 1):
        assert diagnose(lineage[-1], lineage[-1]) is None
        later = replace(
            won,
            score=score,
            generator_steps=won.generator_steps
            + number * MIN_STALLED_GENERATOR_STEPS // MIN_STALLED_SEGMENTS,
        )
        lineage.append(later.with_history(lineage[-1]))
    assert [metrics.stalled_segments for metrics in lineage] == [0, 1, 2, MIN_STALLED_SEGMENTS]
    too_early = replace(
        lineage[-1], generator_steps=won.generator_steps + MIN_STALLED_GENERATOR_STEPS - 1
    )
    assert diagnose(too_early, lineage[-2]) is None, "too few steps of G"
    result = diagnose(lineage[-1], lineage[-2])
    assert result is not None and result.failure == "discriminator won"
    assert diagnose(replace(lineage[-1], images_seen=WARMUP_IMAGES - 1), lineage[-2]) is None
    assert diagnose(lineage[-1], lineage[-2], grew=True) is None
    almost_won = replace(won, train_win_rate=0.98, held_out_win_rate=0.98)
    assert almost_won.with_history(lineage[-2]).stalled_segments == 0, (
        "it separates nearly everything, but G does not get worse"
    )
    assert (
        replace(almost_won, score=0.2).with_history(lineage[-2]).stalled_segments
        == MIN_STALLED_SEGMENTS
    ), "G gets worse"
    improved = replace(won, score=0.07).with_history(lineage[-1])
    assert (improved.stalled_segments, improved.best_score) == (0, 0.07)
    low_win_rate = replace(HEALTHY, score_stderr=0.01).with_history(lineage[-1])
    assert low_win_rate.stalled_segments == 0, "a D with a low win rate has not won"


def test_rising_diversity_is_not_mode_collapse() -> None:
    low_diversity = replace(HEALTHY, diversity_ratio=0.1)
    assert diagnose(low_diversity, replace(HEALTHY, diversity_ratio=0.05)) is None
    assert (
        diagnose(replace(low_diversity, generator_steps=WARMUP_GENERATOR_STEPS - 1), low_diversity)
        is None
    ), "too few steps of G"
    assert diagnose(low_diversity, None) is None, "the diversity may be rising"
    result = diagnose(low_diversity, replace(HEALTHY, diversity_ratio=0.1))
    assert result is not None and result.failure == "mode collapse"
    assert (
        diagnose(low_diversity, replace(HEALTHY, diversity_ratio=0.1), generator_predicts_mean=True)
        is None
    )


def test_a_score_jump_after_growth_is_not_a_failure() -> None:
    assert diagnose(replace(HEALTHY, score=1.0), HEALTHY, grew=True) is None


def test_mitigations_accumulate() -> None:
    settings = make_settings({})
    for _ in range(2):
        change = mitigation("discriminator won", settings)
        assert change is not None
        settings = make_settings(settings.model_dump(), change.settings)
    assert settings.regularizers["r1"]["gamma_per_pixel"] == pytest.approx(16 * GAMMA_PER_PIXEL)
    change = mitigation("divergence", settings)
    assert change is not None
    assert make_settings(settings.model_dump(), change.settings).optimizer.lr == pytest.approx(
        2e-2 / 3
    )
    assert mitigation("memorization", settings) == (
        {"augmentation": "ada"},
        "adaptive augmentation (ada)",
    )
    assert mitigation("constant data", settings) is None


@pytest.mark.parametrize("r1", [None, {"gamma": 0.0}, {"gamma_per_pixel": 0.0}])
def test_a_run_without_r1_gets_the_default_r1(r1: dict[str, float] | None) -> None:
    regularizers = {} if r1 is None else {"r1": r1}
    change = mitigation("discriminator won", make_settings({"regularizers": regularizers}))
    assert change is not None and change.description == "an R1 penalty"
    changed = make_settings({"regularizers": regularizers}, change.settings)
    penalty = make_regularizer("r1", changed.regularizers["r1"])
    assert penalty == REGULARIZERS["r1"]


def test_a_run_with_gamma_gets_a_larger_gamma() -> None:
    settings = make_settings({"regularizers": {"r1": {"gamma": 0.5}}})
    change = mitigation("discriminator won", settings)
    assert change is not None and change.settings == {"regularizers": {"r1": {"gamma": 2.0}}}


def test_win_rates_are_ignored_if_the_loss_does_not_rank() -> None:
    for changes in (
        {"train_win_rate": 0.0},
        {"train_win_rate": 0.99, "held_out_win_rate": 0.7},
        {"stalled_segments": MIN_STALLED_SEGMENTS},
    ):
        metrics = replace(HEALTHY, generator_steps=10 * MIN_STALLED_GENERATOR_STEPS, **changes)
        assert diagnose(metrics, HEALTHY) is not None
        assert diagnose(metrics, HEALTHY, loss_ranks_real_above_fake=False) is None
    assert (
        diagnose(replace(HEALTHY, diversity_ratio=0.1), HEALTHY, loss_ranks_real_above_fake=False)
        is not None
    )


def test_health_metrics_match_known_networks() -> None:
    space = SearchSpace("pggan", NetworkConfig(latent_dim=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.specs_at(1), OptimizerSettings(), seed=0)
    rng = torch.Generator().manual_seed(0)
    train_images, held_out_images = (
        torch.rand(64, 1, 8, 8, generator=rng) * 2 - 1 for _ in range(2)
    )
    result = measure_health(gan, train_images, held_out_images, score=0.3)
    assert result.all_finite and result.score == 0.3
    assert result.real_std == pytest.approx(float(train_images.std(0).mean()) / 2)
    assert (
        result.held_out_win_rate is not None
        and abs(result.train_win_rate - result.held_out_win_rate) < 0.2
    )
    with torch.no_grad():
        for p in gan.discriminator.parameters():
            p.zero_()
        gan.ema.head.conv.weight.zero_()  # type: ignore[union-attr]
    flat = measure_health(gan, train_images, None, score=None)
    assert (flat.train_win_rate, flat.held_out_win_rate, flat.discriminator_spectral_norm) == (
        0.5,
        None,
        0.0,
    )
    assert flat.diversity_ratio == pytest.approx(0, abs=1e-6)
    assert HealthMetrics(**flat.to_json()) == flat


def test_nan_is_detected_in_weights_moments_and_ema(
    data: ImageSet,
) -> None:
    space = SearchSpace("pggan", NetworkConfig(latent_dim=8, width=8), 1, (8, 8))
    train_images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for location in ("ema", "moments", "weights"):
        gan = Gan.create(*space.specs_at(1), OptimizerSettings(), seed=0)
        batches = Batches(data, 8, 0)
        training_step(
            gan, batches, make_objective(make_settings({})), make_settings({}), runtime=CPU
        )
        healthy = measure_health(gan, train_images, None, score=0.3)
        assert is_finite(gan) and healthy.gradient_norm > 0 and healthy.generator_steps == 1
        parameter = next(gan.generator.parameters())
        tensors = {
            "ema": next(gan.ema.parameters()).data,
            "moments": gan.generator_optimizer.state[parameter]["exp_avg"],
            "weights": parameter.data,
        }
        tensors[location][(0,) * tensors[location].ndim] = float("nan")
        result = measure_health(gan, train_images, None, score=None)
        assert not result.all_finite and HealthMetrics(**result.to_json()) == result
        assert json.dumps(result.to_json(), allow_nan=False)


def test_huge_weights_are_diagnosed_as_instability(data: ImageSet) -> None:
    space = SearchSpace("pggan", NetworkConfig(latent_dim=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.specs_at(1), OptimizerSettings(), seed=0)
    with torch.no_grad():
        for p in gan.discriminator.parameters():
            p.mul_(1e25)
    result = measure_health(
        gan, torch.linspace(-1, 1, 16).view(-1, 1, 1, 1).repeat(1, 1, 8, 8), None, score=0.3
    )
    assert result.discriminator_spectral_norm > 1e20
    diagnosis = diagnose(result, None)
    assert diagnosis is not None and diagnosis.failure == "instability"


def test_health_checks_sample_all_classes_of_sorted_data(
    make_blob_images: Callable[..., ImageSet],
) -> None:
    shuffled = make_blob_images(3_000, 1, 8, 8)
    assert shuffled.labels is not None
    data = shuffled.subset(np.argsort(shuffled.labels, kind="stable"))
    batches = Batches(data, 16, 0, num_validation_images(len(data)))
    label_by_image = {
        image.tobytes(): int(label)
        for image, label in zip(shuffled.images, shuffled.labels, strict=True)
    }
    for held_out in (False, True):
        labels = batches.sample_labels(200, held_out=held_out)
        images = batches.sample_images(200, held_out=held_out)
        assert labels is not None and images is not None
        assert 0.3 < float(labels.float().mean()) < 0.7
        expected = [label_by_image[image.numpy().tobytes()] for image in images]
        assert expected == labels.tolist(), "labels belong to these images"


@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_the_initial_discriminator_of_each_preset_is_healthy(name: str) -> None:
    """A layer from 1 to 512 channels has a large singular value, but that is not a failure."""
    preset = PRESETS[name]
    shape = make_settings(preset.published_settings).network
    g, d = (preset.network_spec(role, shape, 1, (16, 16)) for role in ROLES)
    gan = Gan.create(g, d, OptimizerSettings(), seed=0)
    train_images = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = measure_health(gan, train_images, None, score=0.9)
    assert result.spectral_ratio < MAX_SPECTRAL_RATIO / 4
    assert diagnose(result, None) is None


def test_singular_values_are_those_of_effective_weights() -> None:
    space = SearchSpace("pggan", NetworkConfig(latent_dim=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.specs_at(1), OptimizerSettings(), seed=0)
    result = top_singular_values(gan.discriminator)
    linear_maps = {
        name: module
        for name, module in gan.discriminator.named_modules()
        if hasattr(module, "weight_scale")
    }
    assert result.keys() == linear_maps.keys()
    for name, module in linear_maps.items():
        expected = torch.linalg.svdvals((module.weight * module.weight_scale).detach().flatten(1))
        assert result[name] == pytest.approx(expected[:3].tolist(), rel=1e-3)


def test_a_learning_rate_100_times_too_high_is_detected_and_lowered(
    data: ImageSet, tmp_path: Path
) -> None:
    result = run(data, tmp_path / "run", optimizer={"lr": 2.0})
    assert set(diagnoses(result)) <= {
        "divergence",
        "instability",
        "mode collapse",
        "discriminator won",
    }
    assert diagnoses(result)
    first = next(e for e in result.events if e["event"] == "mitigation")
    assert first["settings"]["optimizer"]["lr"] < 2.0 and "rate" in first["mitigation"]


def test_without_health_checks_only_nan_stops_a_run(data: ImageSet, tmp_path: Path) -> None:
    result = run(data, tmp_path / "run", optimizer={"lr": 2.0}, health_checks=False)
    candidates = [e for e in result.events if e["event"] == "candidate"]
    assert set(diagnoses(result)) <= {"divergence"}  # NaN always stops a candidate
    assert all(e["health_metrics"] for e in candidates if e["score"] is not None)


def test_constant_data_is_reported(tmp_path: Path, data: ImageSet) -> None:
    constant_data = replace(
        data, images=np.repeat(np.array(data.images[:1]), 400, 0), fingerprint="constant"
    )
    result = run(constant_data, tmp_path / "run", images=2_000)
    assert diagnoses(result) == ["constant data"]
    (event,) = (e for e in result.events if e["event"] == "mitigation")
    assert "are alike" in event["diagnosis"] and event["mitigation"] == ""
    assert result.events[-1]["stop_reason"] == event["diagnosis"]


def test_a_candidate_with_nan_is_dropped_and_the_run_continues(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_step, num_steps = loop.training_step, 0

    def insert_nan(gan: Gan, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 30:
            with torch.no_grad():
                next(gan.generator.parameters())[0, 0] = float("nan")
        return original_step(gan, *args, **kwargs)

    monkeypatch.setattr(loop, "training_step", insert_nan)
    result = run(data, tmp_path / "run", images=3_000)
    assert diagnoses(result) == ["divergence"]
    assert result.events[-1]["event"] == "end" and "stop_reason" not in result.events[-1]
    statuses = [e["status"] for e in result.events if e["event"] == "candidate"]
    assert statuses.count("failed") == 1 and statuses[-1] == "scored"


def test_a_constant_generator_is_detected_and_discarded(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_step, num_steps = loop.training_step, 0

    def zero_the_stem(gan: Gan, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        nonlocal num_steps
        num_steps += 1
        terms = original_step(gan, *args, **kwargs)
        if 150 < num_steps <= 250:
            for generator in (gan.generator, gan.ema):
                with torch.no_grad():
                    for p in generator.stem.parameters():
                        p.zero_()
        return terms

    monkeypatch.setattr(loop, "training_step", zero_the_stem)
    result = run(data, tmp_path / "run", images=8_000)
    assert set(diagnoses(result)) <= {"mode collapse", "instability"} and diagnoses(result)
    assert "stop_reason" not in result.events[-1] and result.events[-1]["event"] == "end"
    scores = {e["id"]: e["score"] for e in result.events if e["event"] == "candidate"}
    assert scores[result.best_id] < 0.9, "the best candidate is not a constant one"


def test_a_resumed_run_keeps_its_mitigations(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_check = CandidateScorer.check_health
    failing_ids = {"0001"}
    learning_rates: list[float] = []

    def check_health(
        scorer: CandidateScorer, gan: Gan, score: Any, **options: Any
    ) -> HealthMetrics:
        metrics = original_check(scorer, gan, score, **options)
        return replace(
            metrics, all_finite=not (failing_ids and gan.images_seen > 600 and failing_ids.pop())
        )

    monkeypatch.setattr(CandidateScorer, "check_health", check_health)
    result = run(data, tmp_path / "run", images=3_000)
    assert diagnoses(result)[0] == "divergence"
    failing_ids.clear()

    def record_learning_rate(gan: Gan, settings: Any, progress: float) -> None:
        learning_rates.append(settings.optimizer.lr)

    monkeypatch.setattr(loop, "set_learning_rates", record_learning_rate)
    grow(data, out=result.path, images=4_000, resume=True)
    mitigated_lr = 2e-2 / 3 ** len(diagnoses(result))
    assert learning_rates == pytest.approx([mitigated_lr] * len(learning_rates)) and learning_rates


def test_after_three_mitigations_the_run_stops_with_the_diagnosis(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_check = CandidateScorer.check_health

    def check_health(
        scorer: CandidateScorer, gan: Gan, score: Any, **options: Any
    ) -> HealthMetrics:
        result = original_check(scorer, gan, score, **options)
        return replace(
            result, diversity_ratio=0.0 if gan.images_seen > 1500 else 1.0, images_seen=10_000
        )

    monkeypatch.setattr(CandidateScorer, "check_health", check_health)
    result = run(data, tmp_path / "run", images=12_000)
    events = [e for e in result.events if e["event"] == "mitigation"]
    assert [bool(e["mitigation"]) for e in events] == [True, True, True, False]
    assert "collapsed" in result.events[-1]["stop_reason"]
    assert result.best.sample(2).shape == (2, 16, 16, 1), "healthy candidates are kept"


@pytest.mark.parametrize(("copied", "low", "high"), [(True, 0.99, 1.0), (False, 0.0, 0.2)])
def test_copies_of_training_images_are_counted(
    make_blob_images: Callable[..., ImageSet],
    monkeypatch: pytest.MonkeyPatch,
    copied: bool,
    low: float,
    high: float,
) -> None:
    data, unseen = (
        make_blob_images(3_000, 1, 16, 16),
        make_blob_images(NUM_HEALTH_CHECK_IMAGES, 1, 16, 16, seed=1),
    )
    batches = Batches(data, 16, 0, num_validation_images(len(data)))
    scorer = Scorer(data.images, PixelExtractor(16))
    candidate_scorer = CandidateScorer(batches, make_runtime("cpu", "float32"), scorer)
    shape = NetworkConfig(latent_dim=16, width=8)
    gan = Gan.create(
        *SearchSpace("pggan", shape, 1, (16, 16)).specs_at(2), OptimizerSettings(), seed=0
    )
    fakes = (
        batches.sample_images(NUM_HEALTH_CHECK_IMAGES)
        if copied
        else torch.from_numpy(np.array(unseen.images))
    )
    monkeypatch.setattr(gan, "generate", lambda *args, **kwargs: fakes)
    fraction = candidate_scorer._copied_fraction(gan)
    assert fraction is not None and low <= fraction <= high
    smaller = Gan.create(
        *SearchSpace("pggan", shape, 1, (16, 16)).specs_at(1), OptimizerSettings(), seed=0
    )
    assert candidate_scorer._copied_fraction(smaller) is None, "only at the resolution of the data"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_discriminator_20_times_too_wide_is_detected_and_regularized(tmp_path: Path) -> None:
    """Without regularization, such a D memorizes the images, and G stops learning."""
    data = load_images("digits", resolution=16)
    network = {"latent_dim": 16, "width": 8, "discriminator_width": 160}
    settings = {"loss": "non-saturating", "regularizers": {}, "network": network}
    result = run(data, tmp_path / "run", images=40_000, **settings)
    assert "discriminator won" in diagnoses(result)
    event = next(e for e in result.events if e["event"] == "mitigation")
    assert "R1" in event["mitigation"] and "r1" in event["settings"]["regularizers"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["gan", "dcgan", "r3gan", "stylegan2"])
def test_healthy_presets_raise_no_alarm(preset: str, tmp_path: Path) -> None:
    data = load_images("digits", resolution=16)
    small = {
        "network": {"width": 16, "latent_dim": 16},
        "score": {"kind": "swd", "num_samples": 256},
    }
    settings = {"preset": preset, "policy": "fixed", **small}
    grow(data, out=tmp_path / "run", images=40_000, settings=settings)
    assert diagnoses(Run.open(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_healthy_runs_raise_no_alarm(tmp_path: Path) -> None:
    datasets = [load_images(name, resolution=16) for name in ("digits", "glyphs")]
    for seed in range(20):
        data, policy = datasets[seed % 2], ("dynamic", "progressive")[seed // 2 % 2]
        result = run(data, tmp_path / str(seed), images=10_000, seed=seed, policy=policy)
        assert diagnoses(result) == [], seed
        assert result.events[-1]["event"] == "end" and "stop_reason" not in result.events[-1]


def test_scoring_uses_smaller_batches_if_memory_runs_out(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_method, num_micro_batches = CandidateTrainer._score_and_check_health, list[int]()

    def fail_with_whole_batches(trainer: CandidateTrainer, *args: Any) -> None:
        num_micro_batches.append(trainer.num_micro_batches)
        if trainer.num_micro_batches < 2:
            raise RuntimeError("could not create a primitive")
        original_method(trainer, *args)

    monkeypatch.setattr(CandidateTrainer, "_score_and_check_health", fail_with_whole_batches)
    result = run(data, tmp_path / "run", images=800)
    assert num_micro_batches[:2] == [1, 2] and set(num_micro_batches[2:]) <= {2}
    events = [e for e in result.events if e["event"] == "micro_batches"]
    assert [e["num_micro_batches"] for e in events] == [2]
    assert all(e["status"] == "scored" for e in result.events if e["event"] == "candidate")
