"""The doctor: what is provoked is caught, named and treated; what is healthy is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growgan.config import OptimiserSettings, StackSettings, make_settings
from growgan.data import Batches, ImageSet, load_images
from growgan.growth import Run, grow
from growgan.growth.executor import Trainer
from growgan.growth.history import Space
from growgan.growth.scoring import held_out
from growgan.metrics.features import PixelExtractor
from growgan.metrics.score import Scorer
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.objectives import make_objective
from growgan.training import stage
from growgan.training.doctor import (
    LOOKED_AT,
    PATIENCE,
    RUNAWAY,
    SETTLED,
    STEPS,
    STUCK,
    Vitals,
    diagnose,
    examine,
    is_finite,
    remedy,
    singular_values,
)
from growgan.training.gan import Gan
from growgan.training.runtime import make_runtime
from growgan.training.stage import step

CPU = make_runtime("cpu", "float32")
HEALTHY = Vitals(
    images=50_000,
    steps=1_500,
    finite=True,
    score=0.1,
    diversity=0.9,
    variety=0.2,
    wins_seen=0.8,
    wins_unseen=0.75,
    singular=3.0,
)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(400, 1, 16, 16)


def run(data: ImageSet, out: Path, images: int = 12_000, **values: Any) -> Run:
    settings = {
        "policy": "fixed",
        "batch": 16,
        "stack": {"latent": 16, "width": 8},
        "score": {"kind": "swd", "samples": 128},
    }
    try:
        grow(data, out=out, images=images, settings=make_settings(settings, values))
    except RuntimeError as error:  # the ledger says why
        assert "no candidate could be trained" in str(error)
    return Run.open(out)


def diagnoses(found: Run) -> list[str]:
    return [e["ailment"] for e in found.events if e["event"] == "doctor"]


@pytest.mark.parametrize(
    ("changes", "ailment"),
    [
        ({"finite": False}, "divergence"),
        ({"variety": 0.0}, "no variety"),
        ({"score": 0.5}, "instability"),
        ({"excess": 60.0}, "instability"),
        ({"wins_seen": 0.01}, "instability"),
        ({"diversity": 0.1}, "collapse"),
        ({"diversity": 0.01, "images": 2_000, "score": 0.99}, "collapse"),
        ({"wins_seen": 0.99, "wins_unseen": 0.7}, "memorisation"),
        ({"copies": 0.9}, "memorisation"),
    ],
)
def test_each_ailment_is_known_by_its_signs(changes: dict[str, Any], ailment: str) -> None:
    assert diagnose(HEALTHY, HEALTHY) is None
    before = HEALTHY if ailment == "instability" else replace(HEALTHY, score=changes.get("score"))
    found = diagnose(replace(HEALTHY, **changes), before)
    assert found is not None and found.name == ailment
    assert len(found.sentence.split()) > 4


def test_a_winning_d_is_one_that_wins_while_g_stands_still() -> None:
    sure = replace(HEALTHY, wins_seen=0.999, wins_unseen=0.999, error=0.01)
    line = [sure.after(None)]
    for number, score in enumerate((0.099, 0.11, 0.101), 1):
        assert diagnose(line[-1], line[-1]) is None
        later = replace(sure, score=score, steps=sure.steps + number * PATIENCE // STUCK)
        line.append(later.after(line[-1]))
    assert [each.stuck for each in line] == [0, 1, 2, STUCK]
    hasty = replace(line[-1], steps=sure.steps + PATIENCE - 1)
    assert diagnose(hasty, line[-2]) is None, "slices are short"
    found = diagnose(line[-1], line[-2])
    assert found is not None and found.name == "winning D"
    assert diagnose(replace(line[-1], images=SETTLED - 1), line[-2]) is None
    assert diagnose(line[-1], line[-2], grew=True) is None
    ahead = replace(sure, wins_seen=0.98, wins_unseen=0.98)
    assert ahead.after(line[-2]).stuck == 0, "it tells nearly all apart, and G stands still"
    assert replace(ahead, score=0.2).after(line[-2]).stuck == STUCK, "G gets worse"
    better = replace(sure, score=0.07).after(line[-1])
    assert (better.stuck, better.record) == (0, 0.07)
    beaten = replace(HEALTHY, error=0.01).after(line[-1])
    assert beaten.stuck == 0, "a D that is fooled has not won"


def test_a_g_that_begins_to_draw_has_not_collapsed() -> None:
    poor = replace(HEALTHY, diversity=0.1)
    assert diagnose(poor, replace(HEALTHY, diversity=0.05)) is None
    assert diagnose(replace(poor, steps=STEPS - 1), poor) is None, "batches are large"
    assert diagnose(poor, None) is None, "it may have drawn less before"
    found = diagnose(poor, replace(HEALTHY, diversity=0.1))
    assert found is not None and found.name == "collapse"
    assert diagnose(poor, replace(HEALTHY, diversity=0.1), averages=True) is None


def test_growth_may_shake_the_score() -> None:
    assert diagnose(replace(HEALTHY, score=1.0), HEALTHY, grew=True) is None


def test_remedies_add_up_and_end() -> None:
    settings = make_settings({})
    for _ in range(2):
        found = remedy("winning D", settings)
        assert found is not None
        settings = make_settings(settings.model_dump(), found[0])
    assert settings.regularisers["r1"]["scale"] == 16
    for none in ({}, {"r1": {"weight": 0.0}}, {"r1": {"scale": 0.0}}):
        found = remedy("winning D", make_settings({"regularisers": none}))
        assert found is not None and found[1] == "R1 as well"
        treated = make_settings({"regularisers": none}, found[0])
        assert {"weight": None, "scale": 1.0}.items() <= treated.regularisers["r1"].items()
    found = remedy("divergence", settings)
    assert found is not None
    assert make_settings(settings.model_dump(), found[0]).optimiser.lr == pytest.approx(2e-2 / 3)
    assert remedy("memorisation", settings) == ({"augment": "ada"}, "adaptive augmentation")
    assert remedy("no variety", settings) is None


def test_a_d_that_need_not_rank_has_neither_won_nor_broken_down() -> None:
    for changes in ({"wins_seen": 0.0}, {"wins_seen": 0.99, "wins_unseen": 0.7}, {"stuck": STUCK}):
        odd = replace(HEALTHY, steps=10 * PATIENCE, **changes)
        assert diagnose(odd, HEALTHY) is not None
        assert diagnose(odd, HEALTHY, ranks=False) is None
    assert diagnose(replace(HEALTHY, diversity=0.1), HEALTHY, ranks=False) is not None


def test_vitals_of_players_that_are_known() -> None:
    space = Space("pggan", StackSettings(latent=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.stacks(1), OptimiserSettings(), seed=0)
    rng = torch.Generator().manual_seed(0)
    seen, unseen = (torch.rand(64, 1, 8, 8, generator=rng) * 2 - 1 for _ in range(2))
    found = examine(gan, seen, unseen, 0.3)
    assert found.finite and found.score == 0.3
    assert found.variety == pytest.approx(float(seen.std(0).mean()) / 2)
    assert found.wins_unseen is not None and abs(found.wins_seen - found.wins_unseen) < 0.2
    with torch.no_grad():
        for p in gan.discriminator.parameters():
            p.zero_()
        gan.average.head.conv.weight.zero_()  # type: ignore[union-attr]
    flat = examine(gan, seen, None, None)
    assert (flat.wins_seen, flat.wins_unseen, flat.singular) == (0.5, None, 0.0)
    assert flat.diversity == pytest.approx(0, abs=1e-6)
    assert Vitals(**flat.to_json()) == flat


def test_what_is_no_number_is_found_wherever_it_is(
    data: ImageSet,
) -> None:
    space = Space("pggan", StackSettings(latent=8, width=8), 1, (8, 8))
    seen = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for place in ("average", "moments", "weights"):
        gan = Gan.create(*space.stacks(1), OptimiserSettings(), seed=0)
        batches = Batches(data, 8, 0)
        step(gan, batches, make_objective(make_settings({})), make_settings({}), CPU)
        known = examine(gan, seen, None, 0.3)
        assert is_finite(gan) and known.gradient > 0 and known.steps == 1
        first = next(gan.generator.parameters())
        where = {
            "average": next(gan.average.parameters()).data,
            "moments": gan.generator_optimiser.state[first]["exp_avg"],
            "weights": first.data,
        }
        where[place][(0,) * where[place].ndim] = float("nan")
        found = examine(gan, seen, None, None)
        assert not found.finite and Vitals(**found.to_json()) == found
        assert json.dumps(found.to_json(), allow_nan=False)


def test_huge_weights_are_runaway_and_no_error(data: ImageSet) -> None:
    space = Space("pggan", StackSettings(latent=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.stacks(1), OptimiserSettings(), seed=0)
    with torch.no_grad():
        for p in gan.discriminator.parameters():
            p.mul_(1e25)
    found = examine(gan, torch.linspace(-1, 1, 16).view(-1, 1, 1, 1).repeat(1, 1, 8, 8), None, 0.3)
    assert found.singular > 1e20
    ailment = diagnose(found, None)
    assert ailment is not None and ailment.name == "instability"


def test_images_in_the_order_of_their_classes_are_looked_at_as_any_others(
    make_images: Callable[..., ImageSet],
) -> None:
    mixed = make_images(3_000, 1, 8, 8)
    assert mixed.labels is not None
    data = mixed.subset(np.argsort(mixed.labels, kind="stable"))
    batches = Batches(data, 16, 0, held_out(len(data)))
    known = {i.tobytes(): int(y) for i, y in zip(mixed.images, mixed.labels, strict=True)}
    for held in (False, True):
        labels = batches.labels_of_some(200, held_out=held)
        images = batches.some(200, held_out=held)
        assert labels is not None and images is not None
        assert 0.3 < float(labels.float().mean()) < 0.7
        own = [known[image.numpy().tobytes()] for image in images]
        assert own == labels.tolist(), "labels are of these very images"


@pytest.mark.parametrize("name", [entry.name for entry in PRESETS])
def test_no_published_d_has_run_away_at_birth(name: str) -> None:
    """A map of one channel to 512 of them has a large singular value, and is none the worse."""
    preset = PRESETS[name]
    shape = make_settings(preset.published).stack
    g, d = (preset.stack(role, shape, 1, (16, 16)) for role in ROLES)
    gan = Gan.create(g, d, OptimiserSettings(), seed=0)
    seen = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = examine(gan, seen, None, 0.9)
    assert found.excess < RUNAWAY / 4
    assert diagnose(found, None) is None


def test_singular_values_are_those_of_the_weights_in_use() -> None:
    space = Space("pggan", StackSettings(latent=8, width=8), 1, (8, 8))
    gan = Gan.create(*space.stacks(1), OptimiserSettings(), seed=0)
    found = singular_values(gan.discriminator)
    maps = {name: m for name, m in gan.discriminator.named_modules() if hasattr(m, "scale")}
    assert found.keys() == maps.keys()
    for name, module in maps.items():
        expected = torch.linalg.svdvals((module.weight * module.scale).detach().flatten(1))
        assert found[name] == pytest.approx(expected[:3].tolist(), rel=1e-3)


def test_a_rate_a_hundred_times_too_high_is_caught_and_lowered(
    data: ImageSet, tmp_path: Path
) -> None:
    found = run(data, tmp_path / "run", optimiser={"lr": 2.0})
    assert set(diagnoses(found)) <= {"divergence", "instability", "collapse", "winning D"}
    assert diagnoses(found)
    first = next(e for e in found.events if e["event"] == "doctor")
    assert first["settings"]["optimiser"]["lr"] < 2.0 and "rate" in first["remedy"]


def test_without_the_doctor_what_ails_is_left_to_run(data: ImageSet, tmp_path: Path) -> None:
    found = run(data, tmp_path / "run", optimiser={"lr": 2.0}, doctor=False)
    tried = [e for e in found.events if e["event"] == "candidate"]
    assert set(diagnoses(found)) <= {"divergence"}  # no numbers cannot be trained on
    assert all(e["vitals"] for e in tried if e["score"] is not None)


def test_one_image_repeated_is_told_to_the_user(tmp_path: Path, data: ImageSet) -> None:
    one = replace(data, images=np.repeat(np.array(data.images[:1]), 400, 0), fingerprint="one")
    found = run(one, tmp_path / "run", images=2_000)
    assert diagnoses(found) == ["no variety"]
    (event,) = (e for e in found.events if e["event"] == "doctor")
    assert "all alike" in event["diagnosis"] and event["remedy"] == ""
    assert found.events[-1]["stopped"] == event["diagnosis"]


def test_nan_in_a_weight_is_caught_and_the_run_goes_on_without_it(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = stage.step, 0

    def poisoned(gan: Gan, *rest: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 30:
            with torch.no_grad():
                next(gan.generator.parameters())[0, 0] = float("nan")
        return plain(gan, *rest)

    monkeypatch.setattr(stage, "step", poisoned)
    found = run(data, tmp_path / "run", images=3_000)
    assert diagnoses(found) == ["divergence"]
    assert found.events[-1]["event"] == "end" and "stopped" not in found.events[-1]
    statuses = [e["status"] for e in found.events if e["event"] == "candidate"]
    assert statuses.count("failed") == 1 and statuses[-1] == "scored"


def test_a_g_that_draws_one_image_is_caught_and_gone_back_on(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = stage.step, 0

    def blind(gan: Gan, *rest: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        found = plain(gan, *rest)
        if 150 < calls <= 250:
            for player in (gan.generator, gan.average):
                with torch.no_grad():
                    for p in player.stem.parameters():
                        p.zero_()
        return found

    monkeypatch.setattr(stage, "step", blind)
    found = run(data, tmp_path / "run", images=8_000)
    assert set(diagnoses(found)) <= {"collapse", "instability"} and diagnoses(found)
    assert "stopped" not in found.events[-1] and found.events[-1]["event"] == "end"
    scores = {e["id"]: e["score"] for e in found.events if e["event"] == "candidate"}
    assert scores[found.best_id] < 0.9, "the best is none of those"


def test_a_treated_run_goes_on_as_treated(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.examine
    sick = {"0001"}
    seen: list[float] = []

    def examined(trainer: Trainer, gan: Gan, score: Any) -> Vitals:
        vitals = plain(trainer, gan, score)
        return replace(vitals, finite=not (sick and gan.images > 600 and sick.pop()))

    monkeypatch.setattr(Trainer, "examine", examined)
    found = run(data, tmp_path / "run", images=3_000)
    assert diagnoses(found)[0] == "divergence"
    sick.clear()

    def rates(gan: Gan, settings: Any, progress: float) -> None:
        seen.append(settings.optimiser.lr)

    monkeypatch.setattr(stage, "set_rates", rates)
    grow(data, out=found.path, images=4_000, resume=True)
    treated = 2e-2 / 3 ** len(diagnoses(found))
    assert seen == pytest.approx([treated] * len(seen)) and seen


def test_after_three_treatments_the_run_stops_with_the_diagnosis(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.examine

    def examined(trainer: Trainer, gan: Gan, score: Any) -> Vitals:
        found = plain(trainer, gan, score)
        return replace(found, diversity=0.0 if gan.images > 1500 else 1.0, images=10_000)

    monkeypatch.setattr(Trainer, "examine", examined)
    found = run(data, tmp_path / "run", images=12_000)
    events = [e for e in found.events if e["event"] == "doctor"]
    assert [bool(e["remedy"]) for e in events] == [True, True, True, False]
    assert "collapsed" in found.events[-1]["stopped"]
    assert found.best.sample(2).shape == (2, 16, 16, 1), "what was healthy is kept"


@pytest.mark.parametrize(("copied", "low", "high"), [(True, 0.99, 1.0), (False, 0.0, 0.2)])
def test_copies_of_training_images_are_counted(
    make_images: Callable[..., ImageSet],
    monkeypatch: pytest.MonkeyPatch,
    copied: bool,
    low: float,
    high: float,
) -> None:
    data, new = make_images(3_000, 1, 16, 16), make_images(LOOKED_AT, 1, 16, 16, seed=1)
    batches = Batches(data, 16, 0, held_out(len(data)))
    scorer = Scorer(data.images, PixelExtractor(16))
    trainer = Trainer(batches, make_runtime("cpu", "float32"), scorer, keeper=None)  # type: ignore[arg-type]
    shape = StackSettings(latent=16, width=8)
    gan = Gan.create(*Space("pggan", shape, 1, (16, 16)).stacks(2), OptimiserSettings(), seed=0)
    fakes = batches.some(LOOKED_AT) if copied else torch.from_numpy(np.array(new.images))
    monkeypatch.setattr(gan, "generate", lambda *rows, **how: fakes)
    share = trainer._copies(gan)
    assert share is not None and low <= share <= high
    smaller = Gan.create(*Space("pggan", shape, 1, (16, 16)).stacks(1), OptimiserSettings(), seed=0)
    assert trainer._copies(smaller) is None, "only at the size of the images"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_d_twenty_times_too_large_is_caught_and_held(tmp_path: Path) -> None:
    """Nothing holds it, so that it learns the images by heart and G nothing more."""
    data = load_images("digits", resolution=16)
    stack = {"latent": 16, "width": 8, "discriminator_width": 160}
    free = {"loss": "non-saturating", "regularisers": {}, "stack": stack}
    found = run(data, tmp_path / "run", images=40_000, **free)
    assert "winning D" in diagnoses(found)
    event = next(e for e in found.events if e["event"] == "doctor")
    assert "R1" in event["remedy"] and "r1" in event["settings"]["regularisers"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["gan", "dcgan", "r3gan", "stylegan2"])
def test_presets_as_they_begin_raise_no_alarm(preset: str, tmp_path: Path) -> None:
    data = load_images("digits", resolution=16)
    own = {"stack": {"width": 16, "latent": 16}, "score": {"kind": "swd", "samples": 256}}
    settings = {"preset": preset, "policy": "fixed", **own}
    grow(data, out=tmp_path / "run", images=40_000, settings=settings)
    assert diagnoses(Run.open(tmp_path / "run")) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_healthy_runs_raise_no_alarm(tmp_path: Path) -> None:
    sets = [load_images(name, resolution=16) for name in ("digits", "glyphs")]
    for seed in range(20):
        data, policy = sets[seed % 2], ("dynamic", "progressive")[seed // 2 % 2]
        found = run(data, tmp_path / str(seed), images=10_000, seed=seed, policy=policy)
        assert diagnoses(found) == [], seed
        assert found.events[-1]["event"] == "end" and "stopped" not in found.events[-1]


def test_a_child_is_measured_in_smaller_parts_where_memory_runs_out(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, parts = Trainer.score, list[int]()

    def scarce(trainer: Trainer, *rest: Any) -> Any:
        parts.append(trainer.parts)
        if trainer.parts < 2:
            raise RuntimeError("could not create a primitive")
        return plain(trainer, *rest)

    monkeypatch.setattr(Trainer, "score", scarce)
    found = run(data, tmp_path / "run", images=800)
    assert parts[:2] == [1, 2] and set(parts[2:]) <= {2}
    assert [e["parts"] for e in found.events if e["event"] == "memory"] == [2]
    assert all(e["status"] == "scored" for e in found.events if e["event"] == "candidate")
