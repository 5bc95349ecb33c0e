"""Runs as a whole: what is refused, and what happens on the way from budget to result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from growgan.cli.dry_run import show_stages
from growgan.cli.grow import grow as grow_verb
from growgan.config import ActionSettings, OptimiserSettings, Settings, StackSettings, make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.growth import grow
from growgan.growth.actions import Growth, legal_growths
from growgan.growth.budget import Budget
from growgan.growth.executor import Outcome, Task, Trainer
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.lock import OWNER, held
from growgan.growth.policies import Dynamic, Fixed, Progressive, RandomGrowth
from growgan.growth.policies.base import Selection, go_on
from growgan.nets.cost import parameters
from growgan.nets.edits import Append, Insert, Widen, apply
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec
from growgan.objectives import make_objective
from growgan.training.checkpoint import load_gan
from growgan.training.gan import Gan
from growgan.training.runtime import make_runtime
from growgan.training.stage import Diverged, Slice, step, train

SPACE = Space("pggan", StackSettings(latent=16, width=8), 1, (32, 32))


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(128, 1, 16, 16)


def tiny(**values: Any) -> Settings:
    base = {
        "batch": 8,
        "stack": {"latent": 16, "width": 8},
        "score": {"kind": "swd", "samples": 32},
    }
    return make_settings({**base, "precision": "float32", **values})


def candidate(number: int, level: int, **values: Any) -> Candidate:
    g, d = SPACE.stacks(level)
    name = f"{number:04d}"
    parent = f"{number - 1:04d}" if number else None
    plain = Candidate(name, parent, number, Growth(), g, d, 1, 1, 1, 1, 1.0, 0.0, 1, 0.1, {})
    return replace(plain, **values)


def test_a_folder_with_other_files_is_not_used_and_nothing_in_it_is_touched(
    data: ImageSet, tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "candidates" / "holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("dear to me")
    with pytest.raises(UserError, match="is not an empty folder; choose another --out"):
        grow(data, out=tmp_path / "mine", images=80, settings=tiny())
    assert mine.read_text() == "dear to me"
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["candidates"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 6}, "batch 6 must be a multiple of stack.deviation_group 4"),
        ({"stack": {"base": (5, 5)}}, "resolution 16x16 cannot be reached from base grid 5x5"),
        ({"growth": {"trial": 0.0}}, r"setting 'growth.trial' must be in \(0, 1\], but got 0.0"),
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


def test_a_preset_that_is_named_begins_in_its_small_form(data: ImageSet, tmp_path: Path) -> None:
    values = {
        "preset": "sngan",
        "batch": 8,
        "policy": "fixed",
        "stack": {"width": 16},
        "score": {"kind": "swd", "samples": 32},
    }
    run = grow(data, out=tmp_path / "run", images=8, settings=values)
    used, small = Settings.from_yaml(run.path / "config.yaml"), PRESETS["sngan"].small
    assert small["loss"] == used.loss == "hinge" and used.batch == 8
    assert used.stack.kind == small["stack"]["kind"] and used.stack.width == 16
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
from growgan.growth.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"run' is in use by process {other.pid} on "):
            grow(data, out=out, images=80, settings=tiny())
        other.kill()
    # What a killed process leaves behind is in nobody's way.
    grow(data, out=out, images=80, settings=tiny(policy="fixed"))
    assert not [p for p in out.glob(".*") if p.name in (".lock", ".owner")]


@pytest.mark.parametrize("owner", ["", "[]", '{"process": 1, "host": "x", "since": 1e30}'])
def test_an_owner_that_cannot_be_read_is_another_process(owner: str, tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / OWNER).write_text(owner)
        with pytest.raises(UserError, match="is in use by another process; wait for it"):
            held(tmp_path).__enter__()


@pytest.mark.parametrize("seed", [2**24, 2**32 - 1])
def test_large_seeds_work(seed: int, data: ImageSet) -> None:
    settings = tiny(seed=seed)
    gan = Gan.create(*SPACE.stacks(2), OptimiserSettings(), seed=1)
    runtime = make_runtime("cpu", "float32")
    terms = step(gan, Batches(data, 8, 0), make_objective(settings), settings, runtime)
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("loss", ["began", "ebgan"])
def test_losses_of_energies_bring_their_own_kind_of_d(
    loss: str, data: ImageSet, tmp_path: Path
) -> None:
    growth = {"start": 8, "images": 1, "shown": 1e-6, "threshold": 100.0, "keep": 1.0}
    settings = tiny(loss=loss, growth=growth, actions={"widest": 16}, regularisers={})
    run = grow(data, out=tmp_path / "run", images=800, settings=settings)
    folder = run.best.folder
    gan = load_gan(folder)
    assert gan.discriminator.spec.energy and gan.resolution == (16, 16)
    if loss == "began":
        assert 0 <= float(gan.memory["began.k"]) <= 1
        lines = (
            (run.path / "stats.jsonl").read_text() if (run.path / "stats.jsonl").exists() else ""
        )
        assert not lines or "began_convergence" in lines
    with pytest.raises(UserError, match="regulariser 'smoothing' has no meaning for the loss"):
        grow(
            data, out=tmp_path / "x", images=80, settings=tiny(loss=loss, regularisers="smoothing")
        )


def test_a_batch_in_parts_takes_the_same_step(data: ImageSet) -> None:
    settings = tiny(stack={"deviation_group": 0})
    space = Space("pggan", settings.stack, 1, (16, 16))
    runtime = make_runtime("cpu", "float32")
    sgd = OptimiserSettings(lr=1e-3, epsilon=1.0)  # Adam's steps as smooth as the gradients
    pairs = [Gan.create(*space.stacks(2), sgd, seed=1) for _ in range(2)]
    for gan, parts in zip(pairs, (1, 4), strict=True):
        for _ in range(2):
            terms = step(
                gan, Batches(data, 8, 0), make_objective(settings), settings, runtime, parts
            )
    whole, split = ([*gan.generator.parameters(), *gan.discriminator.parameters()] for gan in pairs)
    moved = Gan.create(*space.stacks(2), sgd, seed=1)
    before = [*moved.generator.parameters(), *moved.discriminator.parameters()]
    with torch.no_grad():
        for a, b, start in zip(whole, split, before, strict=True):
            assert float((a - b).norm()) <= 1e-3 * float((a - start).norm()) + 1e-9
    assert set(terms) >= {"loss_discriminator", "loss_generator"}


def test_a_diverged_slice_is_noticed_at_its_end(data: ImageSet) -> None:
    settings = tiny()
    gan = Gan.create(*SPACE.stacks(2), OptimiserSettings(), seed=1)
    with torch.no_grad():
        next(gan.discriminator.parameters()).fill_(float("nan"))
    batches, runtime = Batches(data, 8, 0), make_runtime("cpu", "float32")
    with pytest.raises(Diverged, match="became nan"):
        train(gan, batches, make_objective(settings), settings, runtime, Slice(images=8))


def test_candidates_that_all_fail_end_the_run_with_the_reason(
    data: ImageSet, tmp_path: Path
) -> None:
    wild = tiny(optimiser={"lr": 1e30})
    with pytest.raises(RuntimeError, match=r"no candidate could be trained: .*diverged"):
        grow(data, out=tmp_path / "run", policy="fixed", images=8000, settings=wild)


def test_a_round_with_a_sound_candidate_does_not_end_the_run(
    data: ImageSet, tmp_path: Path
) -> None:
    """Three growths that diverge beside a sound unchanged child are three losers, no more."""

    class Wild(Fixed):
        def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
            (plain,) = super().propose(alive, history)
            return [replace(plain, share=0.1)] * 4

    class Failing(Trainer):
        def make(self, task: Task, parent: Gan | None) -> Outcome:
            outcome = super().make(task, parent)
            if int(task.id) % 4:
                outcome.gan = outcome.score = None
                outcome.error = "diverged"
            return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growgan.growth.scoring.Trainer", Failing)
        run = grow(data, out=tmp_path / "run", policy=Wild(), images=800, settings=tiny())
    tried = [e for e in run.events if e["event"] == "candidate"]
    assert [e["status"] for e in tried] == ["scored", "failed", "failed", "failed"] * 2 + [
        "scored",
        "failed",
    ]
    assert run.best_id in ("0000", "0004", "0008") and "stopped" not in run.events[-1]


def test_a_finished_run_goes_on_when_its_budget_is_raised(data: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = grow(data, out=out, policy="fixed", images=400, settings=tiny())
    grow(data, out=out, images=800, resume=True)
    tried = [e for e in first.events if e["event"] == "candidate"]
    assert max(e["images"] for e in tried) == 800
    shares = [e["spent"] for e in tried if e["images"] > 400]
    assert all(0.5 < share <= 1 for share in shares) and len(shares) >= 4
    with pytest.raises(UserError, match="no run to resume"):
        grow(data, out=tmp_path / "none", images=80, resume=True)


def test_a_policy_that_is_not_registered_must_be_given_again(
    data: ImageSet, tmp_path: Path
) -> None:
    class Mine:
        def propose(self, alive: Sequence[Candidate], history: History) -> Sequence[Proposal]:
            return Fixed().propose(alive, history)

        def select(self, children: Sequence[Candidate], history: History) -> Selection:
            return go_on(children, history)

    out = tmp_path / "run"
    first = grow(data, out=out, policy=Mine(), images=80, settings=tiny())
    assert first.events[0]["policy"] == Settings.from_yaml(out / "config.yaml").policy == "Mine"
    with pytest.raises(UserError, match="unknown policy 'Mine'"):
        grow(data, out=out, images=160, resume=True)
    grow(data, out=out, policy=Mine(), images=160, resume=True)
    assert max(e["images"] for e in first.events if e["event"] == "candidate") == 160


def test_an_occupied_folder_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not an empty folder"):
        grow_verb("there are no such images", out=tmp_path)
    with pytest.raises(UserError, match="there is no run to resume"):
        grow_verb("there are no such images", out=tmp_path / "none", resume=True)


def test_a_dry_run_shows_the_pair_that_the_policy_would_begin_with(
    data: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny(policy="dynamic", growth={"start": 16})
    space = Space("pggan", settings.stack, 1, (16, 16))

    def sizes(shape: StackSettings) -> list[str]:
        return [f"{parameters(spec):,}" for spec in space.stacks(2, shape)]

    cases = ((100, settings.stack, 1), (10**9, settings.stack.scaled(8, 8), 2))
    for images, shape, critics in cases:
        settings = settings.model_copy(update={"critic_steps": critics})
        show_stages(data, settings, Budget(images=images))
        shown = capsys.readouterr().out
        assert all(size in shown for size in sizes(shape)), shown
        assert ("widths up to 64 in G and 64 in D" in shown) == (images > 100)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a device that is not there")
def test_a_run_may_go_on_elsewhere(data: ImageSet, tmp_path: Path) -> None:
    run = grow(data, out=tmp_path / "run", images=80, settings=tiny(policy="fixed"))
    grow(data, out=run.path, images=160, settings={"device": "cpu"}, resume=True)
    with pytest.raises(UserError, match="device 'mps' is not present"):
        grow(data, out=run.path, images=240, settings={"device": "mps"}, resume=True)


def test_a_wall_clock_budget_is_kept(data: ImageSet, tmp_path: Path) -> None:
    run = grow(data, out=tmp_path / "run", budget="6s", settings=tiny())
    end = run.events[-1]
    assert 4.0 < end["elapsed"] < 9.0
    assert sum(end["cost"].values()) == pytest.approx(end["elapsed"], abs=0.2)


def test_every_legal_growth_of_a_residual_pair_can_be_applied() -> None:
    space = replace(SPACE, shape=StackSettings(latent=16, width=16, kind="residual"))
    g, d = space.stacks(2)
    gan = Gan.create(g, d, OptimiserSettings(), seed=1)
    growths = legal_growths(g, d, ActionSettings(kinds=("residual",)), (32, 32))
    assert len(growths) > 20
    for growth in growths:
        child = gan.branch(growth.generator, growth.discriminator)
        assert child.generator.spec.resolution == child.discriminator.spec.resolution


def test_what_is_appended_is_of_the_stacks_own_kind() -> None:
    for kind in ("strided", "residual"):
        space = replace(SPACE, shape=SPACE.shape.model_copy(update={"kind": kind}))
        g, d = space.stacks(0)
        grown = space.growths(replace(candidate(0, 0), generator=g, discriminator=d))
        edits = [edit for growth in grown for edit in growth.generator]
        appended = [edit for edit in edits if isinstance(edit, Append)]
        assert appended and {layer.kind for edit in appended for layer in edit.layers} == {kind}


def test_random_growth_goes_on_where_nothing_is_legal() -> None:
    bare = ActionSettings(append=False, insert=False, widen=False)
    history = replace(_at(candidate(0, 1), spent=0.1), space=replace(SPACE, actions=bare))
    (below,) = RandomGrowth().propose([candidate(0, 1)], history)
    assert below.growth.factors == (2, 2)
    top = replace(_at(candidate(0, 3), spent=0.3), space=replace(SPACE, actions=bare))
    (there,) = RandomGrowth(grow=1.0).propose([candidate(0, 3)], top)
    assert not there.growth


def test_no_growth_goes_beyond_the_bounds() -> None:
    g, d = SPACE.stacks(3)
    tight = ActionSettings(widest=8, deepest=len(g.layers))
    grown = [x for x in legal_growths(g, d, tight, (32, 32)) if x]
    assert grown == []


def test_what_is_appended_must_come_last() -> None:
    layer = Append((LayerSpec("x", "conv", 8),))
    with pytest.raises(ValueError, match="must be the last edit"):
        Growth((layer, Insert(None)), ())
    stack = Gan.create(*SPACE.stacks(1), OptimiserSettings(), seed=0).generator
    assert apply(stack, layer, 0).spec.fading == 1


def test_progressive_does_not_propose_nothing_when_it_is_late() -> None:
    root = candidate(0, 0, spent=0.5)
    history = History(SPACE, Budget(seconds=300), 0, (root,), ("0000",), 1, 0.5)
    (proposal,) = Progressive().propose([root], history)
    assert proposal.share > 0 and proposal.fade > 0 and proposal.growth.factors == (2, 2)


def test_dynamic_leaves_a_resolution_when_the_score_falls_slowly_or_time_is_up() -> None:
    def growth(*candidates: Candidate, spent: float) -> Growth:
        ids = (candidates[-1].id,)
        history = History(SPACE, Budget(seconds=600), 0, candidates, ids, len(candidates), spent)
        return Dynamic(start=8, reach=0.15).propose([candidates[-1]], history)[0].growth

    root = candidate(0, 1, score=1.0)
    steep, flat = candidate(1, 1, score=0.5), candidate(1, 1, score=0.9)
    assert not growth(root, steep, spent=0.05)
    assert growth(root, flat, spent=0.05).factors == (2, 2)
    assert growth(root, steep, spent=0.14).factors == (2, 2)


def test_dynamic_spends_no_more_on_trials_than_it_may() -> None:
    line = [candidate(i, 3, score=1.0 - i / 1000, spent=0.2 + i / 20) for i in range(3)]
    policy = Dynamic(keep=1.0, search=0.08, trial=0.04, tries=3, images=1, shown=0.001)
    history = History(SPACE, Budget(seconds=600), 0, tuple(line), ("0002",), 3, 0.3)
    proposals = policy.propose([line[-1]], history)
    assert [bool(p.growth) for p in proposals] == [False, True, True]
    tried = [replace(candidate(3 + i, 3), growth=proposals[1 + i].growth) for i in range(2)]
    after = replace(history, candidates=(*line, *tried))
    assert [bool(p.growth) for p in policy.propose([line[-1]], after)] == [False]


def test_dynamic_widens_g_first_and_tries_nothing_twice() -> None:
    line = [candidate(i, 3, score=1.0 - i / 1000, spent=0.2 + i / 20) for i in range(3)]
    policy = Dynamic(keep=0.5, search=0.5, trial=0.04, images=1, shown=0.001)

    def tried(*before: Growth) -> list[str]:
        known = [replace(candidate(3, 3), parent="0002", growth=growth) for growth in before]
        history = History(SPACE, Budget(seconds=600), 0, (*line, *known), ("0002",), 3, 0.3)
        return [str(p.growth) for p in policy.propose([line[-1]], history)]

    g, both = Growth((Widen(),), ()), Growth((Widen(),), (Widen(),))
    assert tried() == ["train on", str(g)]
    assert tried(g) == ["train on", str(both)]
    third = tried(g, both)
    assert len(third) == 2 and third[1] not in (str(g), str(both))


def test_dynamic_tries_growths_of_the_leader_and_its_rivals_alone() -> None:
    """Not of its ancestors: at a smaller size the score is better, and they would win."""
    line = [
        candidate(0, 2, score=0.5, spent=0.2),
        candidate(1, 3, score=1.0, spent=0.25),
        candidate(2, 3, score=0.99, spent=0.3),
        candidate(3, 3, score=0.98, spent=0.35),
    ]
    rival = replace(candidate(4, 3, score=1.1, spent=0.35), parent="0001")
    history = History(
        SPACE, Budget(seconds=600), 0, (*line, rival), ("0003", "0000", "0004"), 5, 0.35
    )
    policy = Dynamic(keep=1.0, search=1.0, trial=0.04, tries=100, images=1, shown=0.001)
    proposals = policy.propose([line[3], line[0], rival], history)
    assert {p.parent for p in proposals} == {"0003", "0004"}


def test_dynamic_goes_back_when_a_growth_does_not_take() -> None:
    def select(last: float) -> tuple[str, ...]:
        doubled = (
            Dynamic(start=8).propose([candidate(0, 1)], _at(candidate(0, 1), spent=0.2))[0].growth
        )
        line = [
            candidate(0, 1, score=0.01),
            candidate(1, 2, score=0.06, growth=doubled),
            candidate(2, 2, score=last),
        ]
        return Dynamic().select([line[-1]], replace(_at(*line, spent=0.3), alive=("0001",))).alive

    assert select(0.061) == ("0000",)  # stuck far above where it was
    assert select(0.03) == ("0002", "0000")  # mending: go on, but keep the way back
    assert select(0.009) == ("0002",)  # proven


def _at(*line: Candidate, spent: float) -> History:
    return History(SPACE, Budget(seconds=600), 0, line, (line[-1].id,), len(line), spent)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells")
def test_the_peak_of_memory_is_that_since_the_count_began() -> None:
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
