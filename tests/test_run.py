"""Tests of runs: refused inputs, budgets, resuming and growth policies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from growgan.cli.dry_run import print_training_cost
from growgan.cli.grow import grow as grow_verb
from growgan.config import EditSettings, NetworkConfig, OptimizerSettings, Settings, make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.execution.trainer import CandidateTrainer
from growgan.execution.trial import Trial, TrialResult
from growgan.nets.flops import count_parameters
from growgan.nets.growth_ops import Append, Insert, Widen, apply_edit
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec
from growgan.objectives import make_objective
from growgan.report.run_record import read_run
from growgan.run.grow import grow
from growgan.run.ledger import Ledger
from growgan.run.lock import LOCK_OWNER_FILE, run_lock
from growgan.run.run import Run
from growgan.run.search_loop import SearchLoop
from growgan.run.search_state import SearchState
from growgan.search.budget import Budget
from growgan.search.growth import Growth, legal_growths
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies import DynamicPolicy, FixedPolicy, ProgressivePolicy, RandomPolicy
from growgan.search.policies.base import Selection, keep_only_child
from growgan.training.checkpoint import load_gan
from growgan.training.gan import Gan
from growgan.training.loop import DivergenceError, TrainingSegment, train
from growgan.training.runtime import make_runtime
from growgan.training.step import training_step

finish = SearchLoop.finish
SPACE = SearchSpace("pggan", NetworkConfig(latent_dim=16, width=8), 1, (32, 32))


pytestmark = pytest.mark.usefixtures("temporary_cache")


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(128, 1, 16, 16)


def tiny(**values: Any) -> Settings:
    base = {
        "batch_size": 8,
        "network": {"latent_dim": 16, "width": 8},
        "score": {"kind": "swd", "num_samples": 32},
    }
    return make_settings({**base, "precision": "float32", **values})


def candidate(number: int, level: int, **values: Any) -> Candidate:
    g, d = SPACE.specs_at(level)
    default = Candidate(
        id=f"{number:04d}",
        parent_id=f"{number - 1:04d}" if number else None,
        round=number,
        growth=Growth(),
        generator_spec=g,
        discriminator_spec=d,
        images_seen=1,
        train_seconds=1,
        seconds=1,
        images_per_second=1,
        score=1.0,
        score_stderr=0.0,
        elapsed=1,
        spent_fraction=0.1,
        score_components={},
    )
    return replace(default, **values)


def test_a_folder_with_other_files_is_not_used_and_nothing_in_it_is_touched(
    data: ImageSet, tmp_path: Path
) -> None:
    photo = tmp_path / "mine" / "candidates" / "holiday.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("pixels")
    with pytest.raises(UserError, match="is not an empty folder; choose another --out"):
        grow(data, out=tmp_path / "mine", images=80, settings=tiny())
    assert photo.read_text() == "pixels"
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["candidates"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6}, "batch_size 6 must be a multiple of network.mbstd_group_size 4"),
        (
            {"network": {"base_grid": (5, 5)}},
            "resolution 16x16 cannot be reached by doubling the base grid 5x5",
        ),
        (
            {"growth": {"trial_fraction": 0.0}},
            "setting 'growth.trial_fraction' cannot be 0.0: input should be greater than 0",
        ),
        ({"loss": "hing"}, "unknown loss 'hing'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(
    settings: dict[str, Any], message: str, data: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        grow(data, out=tmp_path / "run", images=80, settings=tiny(**settings))
    assert not (tmp_path / "run").exists()


def test_a_named_preset_starts_with_its_small_settings(data: ImageSet, tmp_path: Path) -> None:
    values = {
        "preset": "sngan",
        "batch_size": 8,
        "policy": "fixed",
        "network": {"width": 16},
        "score": {"kind": "swd", "num_samples": 32},
    }
    run = grow(data, out=tmp_path / "run", images=8, settings=values)
    used, small = Settings.from_yaml(run.path / "config.yaml"), PRESETS["sngan"].small_settings
    assert small["loss"] == used.loss == "hinge" and used.batch_size == 8
    assert used.network.block == small["network"]["block"] and used.network.width == 16
    with pytest.raises(UserError, match="unknown preset 'sngn'"):
        grow(data, out=tmp_path / "other", images=8, settings={"preset": "sngn"})


def test_an_output_that_cannot_be_written_is_named(data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file' is not an empty folder"):
        grow(data, out=tmp_path / "file", images=80, settings=tiny())
    with pytest.raises(UserError, match=r"cannot write to '.*file/below': Not a directory"):
        grow(data, out=tmp_path / "file" / "below", images=80, settings=tiny())


def test_two_processes_do_not_share_a_run(data: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = """
import sys
from pathlib import Path
from growgan.run.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"run' is in use by process {other.pid} on "):
            grow(data, out=out, images=80, settings=tiny())
        other.kill()
    # Files of a killed process do not prevent a new run.
    grow(data, out=out, images=80, settings=tiny(policy="fixed"))
    assert not [p for p in out.glob(".*") if p.name in (".lock", ".owner")]


@pytest.mark.parametrize("owner", ["", "[]", '{"pid": 1, "host": "x", "started_at": 1e30}'])
def test_an_unreadable_lock_owner_is_called_another_process(owner: str, tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (tmp_path / LOCK_OWNER_FILE).write_text(owner)
        with pytest.raises(UserError, match="is in use by another process; wait for it"):
            run_lock(tmp_path).__enter__()


@pytest.mark.parametrize("seed", [2**24, 2**32 - 1])
def test_large_seeds_work(seed: int, data: ImageSet) -> None:
    settings = tiny(seed=seed)
    gan = Gan.create(*SPACE.specs_at(2), OptimizerSettings(), seed=1)
    runtime = make_runtime("cpu", "float32")
    terms = training_step(
        gan, Batches(data, 8, 0), make_objective(settings), settings, runtime=runtime
    )
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("loss", ["began", "ebgan"])
def test_energy_losses_use_an_autoencoder_as_d(loss: str, data: ImageSet, tmp_path: Path) -> None:
    growth = {
        "start_resolution": 8,
        "min_trial_images": 1,
        "images_per_parameter": 1e-6,
        "plateau_slope": 100.0,
        "sample_prob": 1.0,
    }
    settings = tiny(loss=loss, growth=growth, edits={"max_width": 16}, regularizers={})
    run = grow(data, out=tmp_path / "run", images=800, settings=settings)
    folder = run.best.checkpoint_dir
    gan = load_gan(folder)
    assert gan.discriminator.spec.is_autoencoder and gan.resolution == (16, 16)
    if loss == "began":
        assert 0 <= float(gan.objective_state["began.k"]) <= 1
        lines = (
            (run.path / "stats.jsonl").read_text() if (run.path / "stats.jsonl").exists() else ""
        )
        assert not lines or "began_convergence" in lines
    with pytest.raises(
        UserError, match="regularizer 'label-smoothing' cannot be combined with loss"
    ):
        grow(
            data,
            out=tmp_path / "x",
            images=80,
            settings=tiny(loss=loss, regularizers="label-smoothing"),
        )


def test_micro_batches_take_the_same_step_as_the_whole_batch(data: ImageSet) -> None:
    settings = tiny(network={"latent_dim": 16, "width": 8, "mbstd_group_size": 0})
    space = SearchSpace("pggan", settings.network, 1, (16, 16))
    runtime = make_runtime("cpu", "float32")
    sgd = OptimizerSettings(lr=1e-3, eps=1.0)  # a large eps makes Adam's steps linear
    pairs = [Gan.create(*space.specs_at(2), sgd, seed=1) for _ in range(2)]
    for gan, num_micro_batches in zip(pairs, (1, 4), strict=True):
        for _ in range(2):
            terms = training_step(
                gan,
                Batches(data, 8, 0),
                make_objective(settings),
                settings,
                runtime=runtime,
                num_micro_batches=num_micro_batches,
            )
    full_batch, micro_batched = (
        [*gan.generator.parameters(), *gan.discriminator.parameters()] for gan in pairs
    )
    initial = Gan.create(*space.specs_at(2), sgd, seed=1)
    before = [*initial.generator.parameters(), *initial.discriminator.parameters()]
    with torch.no_grad():
        for a, b, start in zip(full_batch, micro_batched, before, strict=True):
            assert float((a - b).norm()) <= 1e-3 * float((a - start).norm()) + 1e-9
    assert set(terms) >= {"loss_discriminator", "loss_generator"}


def test_divergence_is_detected_at_the_end_of_a_segment(data: ImageSet) -> None:
    settings = tiny()
    gan = Gan.create(*SPACE.specs_at(2), OptimizerSettings(), seed=1)
    with torch.no_grad():
        next(gan.discriminator.parameters()).fill_(float("nan"))
    batches, runtime = Batches(data, 8, 0), make_runtime("cpu", "float32")
    with pytest.raises(DivergenceError, match="is nan"):
        train(
            gan,
            batches,
            make_objective(settings),
            settings,
            runtime=runtime,
            segment=TrainingSegment(images=8),
        )


def test_a_run_ends_with_the_reason_if_all_candidates_fail(data: ImageSet, tmp_path: Path) -> None:
    diverging = tiny(optimizer={"lr": 1e30})
    with pytest.raises(RuntimeError, match=r"no candidate could be trained: .*diverged"):
        grow(data, out=tmp_path / "run", policy="fixed", images=8000, settings=diverging)


def test_a_round_with_a_scored_candidate_does_not_end_the_run(
    data: ImageSet, tmp_path: Path
) -> None:
    """Three diverged candidates do not stop a run in which a fourth one is fine."""

    class FourPerRound(FixedPolicy):
        def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
            (proposal,) = super().propose(survivors, history)
            return [replace(proposal, budget_fraction=0.1)] * 4

    class Failing(CandidateTrainer):
        def run(self, trial: Trial, parent: Gan | None) -> TrialResult:
            result = super().run(trial, parent)
            if int(trial.id) % 4:
                result.gan = result.score = None
                result.error = "diverged"
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growgan.run.grow.CandidateTrainer", Failing)
        run = grow(data, out=tmp_path / "run", policy=FourPerRound(), images=800, settings=tiny())
    tried = [e for e in run.events if e["event"] == "candidate"]
    assert [e["status"] for e in tried] == ["scored", "failed", "failed", "failed"] * 2 + [
        "scored",
        "failed",
    ]
    assert run.best_id in ("0000", "0004", "0008") and "stop_reason" not in run.events[-1]


def test_a_finished_run_resumes_with_a_larger_budget(data: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = grow(data, out=out, policy="fixed", images=400, settings=tiny())
    grow(data, out=out, images=800, resume=True)
    tried = [e for e in first.events if e["event"] == "candidate"]
    assert max(e["images"] for e in tried) == 800
    fractions = [e["spent_fraction"] for e in tried if e["images"] > 400]
    assert all(0.5 < fraction <= 1 for fraction in fractions) and len(fractions) >= 4
    with pytest.raises(UserError, match="no run to resume"):
        grow(data, out=tmp_path / "none", images=80, resume=True)


@pytest.mark.parametrize("ledger_format", [None, 0, 2])
def test_a_run_of_another_format_is_refused_in_one_line(
    ledger_format: int | None, data: ImageSet, tmp_path: Path
) -> None:
    start: dict[str, Any] = {"event": "start", "format": ledger_format, "budget": {"images": 80}}
    if ledger_format is None:
        del start["format"]
    Ledger(tmp_path / "ledger.jsonl").append(start)
    message = rf"format {ledger_format}, and this version reads format 1; start a new run"
    for read in (
        lambda: Run.open(tmp_path),
        lambda: read_run(tmp_path),
        lambda: grow(data, out=tmp_path, images=80, resume=True),
        lambda: grow(data, out=tmp_path, images=80, settings=tiny()),
    ):
        with pytest.raises(UserError, match=message) as error:
            read()
        assert "\n" not in str(error.value)


def test_an_unregistered_policy_must_be_passed_again_to_resume(
    data: ImageSet, tmp_path: Path
) -> None:
    class CustomPolicy:
        def propose(self, survivors: Sequence[Candidate], history: History) -> Sequence[Proposal]:
            return FixedPolicy().propose(survivors, history)

        def select(self, children: Sequence[Candidate], history: History) -> Selection:
            return keep_only_child(children, history)

    out = tmp_path / "run"
    first = grow(data, out=out, policy=CustomPolicy(), images=80, settings=tiny())
    assert (
        first.events[0]["policy"]
        == Settings.from_yaml(out / "config.yaml").policy
        == "CustomPolicy"
    )
    with pytest.raises(UserError, match="unknown policy 'CustomPolicy'"):
        grow(data, out=out, images=160, resume=True)
    grow(data, out=out, policy=CustomPolicy(), images=160, resume=True)
    assert max(e["images"] for e in first.events if e["event"] == "candidate") == 160


@pytest.mark.parametrize("policy", ["dynamic", "fixed"])
def test_replaying_the_ledger_gives_the_state_of_the_search(
    policy: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[SearchState] = []
    monkeypatch.setattr(
        SearchLoop, "finish", lambda self: states.append(self.state) or finish(self)
    )
    run = grow(data, out=tmp_path / "run", policy=policy, images=320, settings=tiny())
    (state,) = states
    empty = History(state.history.space, state.history.budget, state.history.seed)
    replayed = SearchState(empty, tiny())
    for event in run.events:
        replayed.apply(event)
    assert replayed.has_ended and state.has_ended
    for name in ("history", "pending", "images_trained", "overhead_seconds", "health_by_id"):
        assert getattr(replayed, name) == getattr(state, name), name


def test_an_occupied_folder_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        grow_verb("there are no such images", out=tmp_path)
    with pytest.raises(UserError, match="there is no run to resume"):
        grow_verb("there are no such images", out=tmp_path / "none", resume=True)


def test_a_dry_run_shows_the_networks_that_the_policy_starts_with(
    data: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(policy="dynamic", growth={"start_resolution": 16})
    space = SearchSpace("pggan", settings.network, 1, (16, 16))

    def sizes(network: NetworkConfig) -> list[str]:
        return [f"{count_parameters(spec):,}" for spec in space.specs_at(2, network)]

    cases = ((100, settings.network, 1), (10**9, settings.network.scale_width(8, 8), 2))
    for images, network, critic_steps in cases:
        settings = settings.model_copy(update={"critic_steps": critic_steps})
        print_training_cost(data, settings, Budget(images=images))
        output = capsys.readouterr().out
        assert all(size in output for size in sizes(network)), output
        assert ("widths up to 64 in G and 64 in D" in output) == (images > 100)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a device that is not there")
def test_a_run_may_resume_on_another_device(data: ImageSet, tmp_path: Path) -> None:
    run = grow(data, out=tmp_path / "run", images=80, settings=tiny(policy="fixed"))
    grow(data, out=run.path, images=160, settings={"device": "cpu"}, resume=True)
    with pytest.raises(UserError, match="device 'mps' is not available on this machine"):
        grow(data, out=run.path, images=240, settings={"device": "mps"}, resume=True)


def test_a_wall_clock_budget_is_kept(data: ImageSet, tmp_path: Path) -> None:
    run = grow(data, out=tmp_path / "run", budget="6s", settings=tiny())
    end = run.events[-1]
    assert 4.0 < end["elapsed"] < 9.0
    assert sum(end["cost"].values()) == pytest.approx(end["elapsed"], abs=0.2)


def test_every_legal_growth_of_residual_networks_can_be_applied() -> None:
    space = replace(
        SPACE, network_settings=NetworkConfig(latent_dim=16, width=16, block="residual")
    )
    g, d = space.specs_at(2)
    gan = Gan.create(g, d, OptimizerSettings(), seed=1)
    growths = legal_growths(g, d, EditSettings(blocks=("residual",)), (32, 32))
    assert len(growths) > 20
    for growth in growths:
        child = gan.grown_copy(growth.generator_edits, growth.discriminator_edits)
        assert child.generator.spec.resolution == child.discriminator.spec.resolution


def test_appended_layers_use_the_block_of_the_network() -> None:
    for block in ("strided", "residual"):
        space = replace(
            SPACE, network_settings=SPACE.network_settings.model_copy(update={"block": block})
        )
        g, d = space.specs_at(0)
        grown = space.legal_growths(
            replace(candidate(0, 0), generator_spec=g, discriminator_spec=d)
        )
        edits = [edit for growth in grown for edit in growth.generator_edits]
        appended = [edit for edit in edits if isinstance(edit, Append)]
        assert appended and {layer.block for edit in appended for layer in edit.layers} == {block}


def test_random_growth_continues_when_no_growth_is_legal() -> None:
    no_edits = EditSettings(append=False, insert=False, widen=False)
    history = replace(_at(candidate(0, 1), spent=0.1), space=replace(SPACE, edit_settings=no_edits))
    (below,) = RandomPolicy().propose([candidate(0, 1)], history)
    assert below.growth.resampling_factors == (2, 2)
    top = replace(_at(candidate(0, 3), spent=0.3), space=replace(SPACE, edit_settings=no_edits))
    (at_target,) = RandomPolicy(growth_prob=1.0).propose([candidate(0, 3)], top)
    assert not at_target.growth


def test_no_growth_exceeds_the_size_limits() -> None:
    g, d = SPACE.specs_at(3)
    limits = EditSettings(max_width=8, max_layers=len(g.layers))
    grown = [x for x in legal_growths(g, d, limits, (32, 32)) if x]
    assert grown == []


def test_append_must_be_the_last_edit() -> None:
    layer = Append((LayerSpec("x", "conv", 8),))
    with pytest.raises(ValueError, match="must be the last edit"):
        Growth((layer, Insert(None)), ())
    generator = Gan.create(*SPACE.specs_at(1), OptimizerSettings(), seed=0).generator
    assert apply_edit(generator, layer, 0).spec.num_fading_layers == 1


def test_progressive_always_proposes_training_when_it_is_late() -> None:
    root = candidate(0, 0, spent_fraction=0.5)
    history = History(SPACE, Budget(seconds=300), 0, (root,), ("0000",), 1, 0.5)
    (proposal,) = ProgressivePolicy().propose([root], history)
    assert (
        proposal.budget_fraction > 0
        and proposal.fade_segments > 0
        and proposal.growth.resampling_factors == (2, 2)
    )


def test_dynamic_doubles_the_resolution_when_the_score_falls_slowly_or_time_is_up() -> None:
    def growth(*candidates: Candidate, spent: float) -> Growth:
        ids = (candidates[-1].id,)
        history = History(SPACE, Budget(seconds=600), 0, candidates, ids, len(candidates), spent)
        return (
            DynamicPolicy(start_resolution=8, max_fraction_per_resolution=0.15)
            .propose([candidates[-1]], history)[0]
            .growth
        )

    root = candidate(0, 1, score=1.0)
    steep, flat = candidate(1, 1, score=0.5), candidate(1, 1, score=0.9)
    assert not growth(root, steep, spent=0.05)
    assert growth(root, flat, spent=0.05).resampling_factors == (2, 2)
    assert growth(root, steep, spent=0.14).resampling_factors == (2, 2)


def test_dynamic_keeps_the_budget_of_its_trials() -> None:
    line = [candidate(i, 3, score=1.0 - i / 1000, spent_fraction=0.2 + i / 20) for i in range(3)]
    policy = DynamicPolicy(
        sample_prob=1.0,
        trial_budget_fraction=0.08,
        trial_fraction=0.04,
        trials_per_round=3,
        min_trial_images=1,
        images_per_parameter=0.001,
    )
    history = History(SPACE, Budget(seconds=600), 0, tuple(line), ("0002",), 3, 0.3)
    proposals = policy.propose([line[-1]], history)
    assert [bool(p.growth) for p in proposals] == [False, True, True]
    tried = [replace(candidate(3 + i, 3), growth=proposals[1 + i].growth) for i in range(2)]
    after = replace(history, candidates=(*line, *tried))
    assert [bool(p.growth) for p in policy.propose([line[-1]], after)] == [False]


def test_dynamic_widens_g_first_and_tries_nothing_twice() -> None:
    line = [candidate(i, 3, score=1.0 - i / 1000, spent_fraction=0.2 + i / 20) for i in range(3)]
    policy = DynamicPolicy(
        sample_prob=0.5,
        trial_budget_fraction=0.5,
        trial_fraction=0.04,
        min_trial_images=1,
        images_per_parameter=0.001,
    )

    def tried(*before: Growth) -> list[str]:
        earlier = [replace(candidate(3, 3), parent_id="0002", growth=growth) for growth in before]
        history = History(SPACE, Budget(seconds=600), 0, (*line, *earlier), ("0002",), 3, 0.3)
        return [str(p.growth) for p in policy.propose([line[-1]], history)]

    g, both = Growth((Widen(),), ()), Growth((Widen(),), (Widen(),))
    assert tried() == ["no growth", str(g)]
    assert tried(g) == ["no growth", str(both)]
    third = tried(g, both)
    assert len(third) == 2 and third[1] not in (str(g), str(both))


def test_dynamic_grows_only_the_leader_and_its_rivals() -> None:
    """Ancestors have a smaller resolution and thus a better score, so they would win."""
    line = [
        candidate(0, 2, score=0.5, spent_fraction=0.2),
        candidate(1, 3, score=1.0, spent_fraction=0.25),
        candidate(2, 3, score=0.99, spent_fraction=0.3),
        candidate(3, 3, score=0.98, spent_fraction=0.35),
    ]
    rival = replace(candidate(4, 3, score=1.1, spent_fraction=0.35), parent_id="0001")
    history = History(
        SPACE, Budget(seconds=600), 0, (*line, rival), ("0003", "0000", "0004"), 5, 0.35
    )
    policy = DynamicPolicy(
        sample_prob=1.0,
        trial_budget_fraction=1.0,
        trial_fraction=0.04,
        trials_per_round=100,
        min_trial_images=1,
        images_per_parameter=0.001,
    )
    proposals = policy.propose([line[3], line[0], rival], history)
    assert {p.parent_id for p in proposals} == {"0003", "0004"}


def test_dynamic_returns_to_the_parent_if_a_growth_does_not_recover() -> None:
    def select(last: float) -> tuple[str, ...]:
        doubled = (
            DynamicPolicy(start_resolution=8)
            .propose([candidate(0, 1)], _at(candidate(0, 1), spent=0.2))[0]
            .growth
        )
        line = [
            candidate(0, 1, score=0.01),
            candidate(1, 2, score=0.06, growth=doubled),
            candidate(2, 2, score=last),
        ]
        return (
            DynamicPolicy()
            .select([line[-1]], replace(_at(*line, spent=0.3), survivor_ids=("0001",)))
            .survivor_ids
        )

    assert select(0.061) == ("0000",)  # far worse than before, and no longer improving
    assert select(0.03) == ("0002", "0000")  # recovering: continue, but keep the parent
    assert select(0.009) == ("0002",)  # recovered


def _at(*line: Candidate, spent: float) -> History:
    return History(SPACE, Budget(seconds=600), 0, line, (line[-1].id,), len(line), spent)


@pytest.mark.skipif(sys.platform != "linux", reason="reads a counter of the Linux kernel")
def test_peak_memory_counts_from_its_start() -> None:
    code = """
import torch
from growgan.training.memory import PeakMemory
peak = PeakMemory(torch.device("cpu"))
block = torch.ones(64 * 2**20 // 4)
first = peak.mib
del block
print(first, PeakMemory(torch.device("cpu")).mib)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with_block, after = map(float, done.stdout.split())
    assert 50 < with_block - after < 90
