"""Growth of a pair in training, the policies, the ledger and the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from growgan.config import ActionSettings, OptimiserSettings, Settings, StackSettings, make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.growth import Run, grow
from growgan.growth.actions import Growth, legal_growths
from growgan.growth.budget import Budget, Meter
from growgan.growth.history import Candidate, History, Proposal, Space
from growgan.growth.ledger import Ledger
from growgan.growth.policies import POLICIES, Dynamic, Progressive, make_policy
from growgan.growth.policies.base import usual_slice
from growgan.nets.cost import parameters, step_cost
from growgan.nets.edits import Append, Edit, Insert, Widen
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec
from growgan.objectives import make_objective
from growgan.training.checkpoint import load_gan, save_gan
from growgan.training.gan import Gan, even_latents
from growgan.training.progress import SilentDisplay, Status
from growgan.training.runtime import make_runtime
from growgan.training.stage import Slice, _reals, set_rates, step, train

SHAPE = StackSettings(latent=16, width=8, convolutions=1)
SPACE = Space("pggan", SHAPE, 1, (16, 16))
RUNTIME = make_runtime("cpu", "float32")


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(256, 1, 16, 16)


def tiny_settings(**values: object) -> Settings:
    shape = {"latent": 16, "width": 8}
    return make_settings(
        {"batch": 8, "stack": shape, "precision": "float32", "threads": 1, **values}
    )


def trained(data: ImageSet, level: int = 1, steps: int = 3) -> Gan:
    settings = tiny_settings()
    gan = Gan.create(*SPACE.stacks(level), OptimiserSettings(), seed=3)
    batches, objective = Batches(data, 8, 0), make_objective(settings)
    for _ in range(steps):
        step(gan, batches, objective, settings, RUNTIME)
    return gan


def conv(letter: str, resample: int = 1) -> Append:
    norm = "pixel" if letter == "g" else "none"
    return Append((LayerSpec("x", "conv", 6, 3, resample, norm),))


def test_a_step_moves_every_parameter_of_both_players(data: ImageSet) -> None:
    gan = Gan.create(*SPACE.stacks(2), OptimiserSettings(), seed=3)
    before = {n: p.clone() for n, p in _parameters(gan).items()}
    # A loss of differences would leave the bias of the logits where it is.
    settings = tiny_settings(loss="non-saturating", regularisers={"r1": {"every": 1}})
    for _ in range(2):
        step(gan, Batches(data, 8, 0), make_objective(settings), settings, RUNTIME)
    still = [n for n, p in _parameters(gan).items() if torch.equal(p, before[n])]
    assert still == []


def test_the_rate_falls_with_the_root_of_the_images_and_to_nothing_at_the_end(
    data: ImageSet,
) -> None:
    settings = tiny_settings(optimiser={"lr": 0.01, "decay": 100}, anneal=0.5)
    gan = trained(data, steps=1)
    rates = []
    for images, progress in ((50, 0.1), (400, 0.5), (400, 0.75), (400, 1.0)):
        gan.images = images
        set_rates(gan, settings, progress)
        rates.append(gan.discriminator_optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.0])
    set_rates(gan, settings, 1.0)
    assert gan.generator_optimiser.param_groups[0]["lr"] == rates[-1]


def _parameters(gan: Gan) -> dict[str, Tensor]:
    players = {"g": gan.generator, "d": gan.discriminator}
    return {f"{k}.{n}": p for k, player in players.items() for n, p in player.named_parameters()}


@pytest.mark.parametrize(
    ("g", "d"),
    [
        ((conv("g"),), ()),
        ((), (conv("d"),)),
        ((conv("g", 2),), (conv("d", 2),)),
        ((Insert("g0"),), (Insert("d0", norm="none"),)),
    ],
    ids=["G", "D", "both doubled", "inserted"],
)
def test_weights_moments_and_average_are_carried_by_layer_id(
    data: ImageSet, g: tuple[Edit, ...], d: tuple[Edit, ...]
) -> None:
    parent = trained(data)
    child = parent.branch(g, d, seed=1)
    pairs = [
        (parent.generator, child.generator, parent.moments()[0], child.moments()[0]),
        (parent.discriminator, child.discriminator, parent.moments()[1], child.moments()[1]),
        (parent.average, child.average, {}, {}),
    ]
    for old, new, old_state, new_state in pairs:
        grown = dict(new.named_parameters())
        appended = new.spec.fading > 0
        for name, value in old.named_parameters():
            moved = f"heads.{old.names[-1]}.", f"heads.{new.names[-1]}."
            carried = name if appended else name.replace(*moved)
            assert torch.equal(grown[carried], value), name
            assert grown[carried].data_ptr() != value.data_ptr()
            for key, tensors in old_state.items():
                assert torch.equal(new_state[key][carried], tensors[name]), (key, name)
    assert (child.images, child.steps) == (parent.images, parent.steps)


def test_siblings_and_parent_share_no_memory(data: ImageSet) -> None:
    parent = trained(data)
    first, second = parent.branch(seed=1), parent.branch((conv("g"),), seed=1)
    kept = {n: p.clone() for n, p in _parameters(parent).items()}
    settings = tiny_settings()
    for child in (first, second):
        step(child, Batches(data, 8, 0), make_objective(settings), settings, RUNTIME)
    assert all(torch.equal(p, kept[n]) for n, p in _parameters(parent).items())
    pointers = [p.data_ptr() for gan in (parent, first, second) for p in _parameters(gan).values()]
    assert len(set(pointers)) == len(pointers)


def test_an_unchanged_child_trains_exactly_as_its_parent_would(data: ImageSet) -> None:
    parent = trained(data)
    child = parent.branch(seed=9)
    settings = tiny_settings()
    for gan in (parent, child):
        for _ in range(2):
            step(gan, Batches(data, 8, 0), make_objective(settings), settings, RUNTIME)
    for name, value in _parameters(parent).items():
        assert torch.equal(value, _parameters(child)[name]), name


def test_widening_scales_the_moments_as_it_scales_the_gradients(data: ImageSet) -> None:
    parent = trained(data)
    child = parent.branch((Widen(),), (Widen(),), seed=1)
    for i, name in enumerate(("generator", "discriminator")):
        old, new = parent.moments()[i], child.moments()[i]
        gradient = _gradients(parent, name), _gradients(child, name)
        for key in set(old["exp_avg_sq"]) - {"end.output.bias"}:  # differences have no bias
            before, after = gradient[0][key], gradient[1][key]
            expected = after.square().sum() / before.square().sum()
            ratio = new["exp_avg_sq"][key].sum() / old["exp_avg_sq"][key].sum()
            # The noise that breaks the symmetry moves single gradients by some 10 %.
            assert float(ratio / expected) == pytest.approx(1, abs=0.3), (name, key)


def _gradients(gan: Gan, player: str) -> dict[str, Tensor]:
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    gan.generator.zero_grad()
    gan.discriminator.zero_grad()
    gan.discriminator(gan.generator(z)).square().mean().backward()
    chosen = getattr(gan, player)
    return {name: p.grad.clone() for name, p in chosen.named_parameters() if p.grad is not None}


def test_growth_that_no_longer_fits_is_refused(data: ImageSet) -> None:
    with pytest.raises(ValueError, match=r"G makes \(16, 16\) images, but D judges \(8, 8\)"):
        trained(data).branch((conv("g", 2),), ())


def test_reals_are_blended_while_a_size_fades_in(data: ImageSet) -> None:
    gan = trained(data, level=1).branch((conv("g", 2),), (conv("d", 2),))
    gan.set_alpha(0.25)
    full = torch.randn(4, 1, 16, 16)
    blocks = full.view(4, 1, 8, 2, 8, 2).mean((3, 5))
    coarse = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = 0.75 * coarse + 0.25 * full
    seen = _reals(gan, full, torch.Generator(), mirror=False)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


def test_a_gpu_multiplies_fast_unless_float32_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [kind.allow_tf32 for kind in kinds]
    for precision, fast in (("auto", True), ("bfloat16", True), ("float32", False)):
        runtime = make_runtime("cuda", precision)
        assert runtime.bfloat16 == fast and runtime.device.type == "cuda"
        assert [kind.allow_tf32 for kind in kinds] == [fast, fast]
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("preset", ["pggan", "stylegan2"])
def test_compiled_layers_train_alike_and_growth_compiles_what_is_new(
    data: ImageSet, preset: str
) -> None:
    penalties = {"r1": {}, "path-length": {"every": 1}}
    settings = make_settings(
        PRESETS[preset].small,
        {"preset": preset, "batch": 8, "stack": {"width": 8}, "regularisers": penalties},
    )
    space = Space(preset, settings.stack, 1, (16, 16))
    objective, batches, graphs = make_objective(settings), Batches(data, 8, 0), counters["stats"]

    def compiled(gan: Gan, compiler: str = "aot_eager") -> int:
        before, runtime = graphs["unique_graphs"], replace(RUNTIME, compiler=compiler)
        train(gan, batches, objective, settings, runtime, Slice(images=24))
        return int(graphs["unique_graphs"] - before)

    one, other = (Gan.create(*space.stacks(1), settings.optimiser, seed=0) for _ in range(2))
    assert compiled(one, "") == 0
    first = compiled(other)
    assert first > 0
    for a, b in zip(one.generator.parameters(), other.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert compiled(other.branch()) == 0
    kind = "conv" if preset == "pggan" else "modulated"
    layer = LayerSpec("x", kind, 6, 3, 1, "pixel" if preset == "pggan" else "none")
    assert 0 < compiled(other.branch([Append((layer,))])) <= first


def test_images_are_made_smaller_by_averages() -> None:
    pixels = torch.randint(0, 256, (3, 2, 8, 12), dtype=torch.uint8)
    seen = make_runtime("cpu", "float32").images(pixels, 4)
    expected = pixels.double().view(3, 2, 2, 4, 3, 4).mean((3, 5)) / 127.5 - 1
    torch.testing.assert_close(seen.double(), expected, rtol=1e-6, atol=1e-6)


def test_k_and_k_steps_across_a_checkpoint_equal_2k_steps_bitwise(
    data: ImageSet, tmp_path: Path
) -> None:
    settings = tiny_settings(regularisers={"r1": {"every": 2}})
    objective, batches = make_objective(settings), Batches(data, 8, 0)
    whole = trained(data).branch((conv("g", 2),), (conv("d", 2),), seed=4)
    half = whole.branch()
    for gan in (whole, half):
        train(gan, batches, objective, settings, RUNTIME, Slice(images=40, fade=2.0))
    save_gan(half, tmp_path / "0000")
    again = load_gan(tmp_path / "0000")
    assert again.alpha == pytest.approx(0.5) and again.generator.spec.fading == 1
    for gan in (whole, again):
        train(gan, batches, objective, settings, RUNTIME, Slice(images=40, fade=2.0))
    assert again.generator.spec.fading == 0
    for name, value in _parameters(whole).items():
        assert torch.equal(value, _parameters(again)[name]), name
    for mine, other in zip(whole.moments(), again.moments(), strict=True):
        for key, tensors in mine.items():
            assert all(torch.equal(t, other[key][n]) for n, t in tensors.items())
    average = dict(again.average.named_parameters())
    assert all(torch.equal(p, average[n]) for n, p in whole.average.named_parameters())


def test_legal_growths_keep_g_and_d_in_step_and_hold_the_unchanged_one_first() -> None:
    g, d = SPACE.stacks(1)
    growths = legal_growths(g, d, ActionSettings(kinds=("conv",)), (16, 16))
    assert growths[0] == Growth() and str(growths[0]) == "train on"
    assert all(growth.factors[0] == growth.factors[1] for growth in growths)
    assert any(growth.factors[0] == 2 for growth in growths)
    asymmetric = [x for x in growths if bool(x.generator) != bool(x.discriminator)]
    assert any(x.generator for x in asymmetric) and any(x.discriminator for x in asymmetric)
    at_target = legal_growths(g, d, ActionSettings(kinds=("conv",)), (8, 8))
    assert all(growth.factors == (1, 1) for growth in at_target)
    assert all(Growth.from_json(growth.to_json()) == growth for growth in growths)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400)]
)
def test_budgets_are_read(text: str, seconds: float) -> None:
    assert Budget.parse(text) == Budget(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "5x", "0s"])
def test_a_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Budget.parse(text)


def test_the_published_rate_of_pggan_does_not_fall() -> None:
    gan = Gan.create(*SPACE.stacks(0), OptimiserSettings(), seed=0)
    settings = make_settings(PRESETS["pggan"].published)
    for images in (0, 10_000_000):
        gan.images = images
        set_rates(gan, settings, 0.99)
        assert gan.generator_optimiser.param_groups[0]["lr"] == 1e-3


def test_latents_of_a_score_are_normal_and_even_within_each_group() -> None:
    z = even_latents(4096, 16, seed=3, groups=8)
    assert torch.equal(z, even_latents(4096, 16, seed=3, groups=8))
    assert not torch.equal(z, even_latents(4096, 16, seed=4, groups=8))
    for group in (z[k::8] for k in range(8)):
        # The mean of 512 independent draws would vary by 0.044.
        assert group.mean(0).abs().max() < 0.01
        assert (group.std(0) - 1).abs().max() < 0.02
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.1


def test_policies_refuse_unknown_fields_by_name() -> None:
    with pytest.raises(UserError, match=r"unknown policy 'dynamik' \(did you mean 'dynamic'\?\)"):
        make_policy("dynamik", {})
    with pytest.raises(UserError, match=r"unknown dynamic setting 'topk' \(did you mean 'top_k'"):
        make_policy("dynamic", {"topk": 2})
    with pytest.raises(UserError, match=r"'growth.top_k' must be int, but got 'many'"):
        make_policy("dynamic", {"top_k": "many"})


def candidate(number: int, **values: object) -> Candidate:
    g, d = SPACE.stacks(2)
    plain = Candidate(
        f"{number:04d}", None, 0, Growth(), g, d, 100, 1.0, 1.1, 100.0, 1.0, 0.01, 1.0, 0.1, {}
    )
    return replace(plain, **values)  # type: ignore[arg-type]


def test_progressive_gives_each_resolution_equally_many_images() -> None:
    history = History(SPACE, Budget(images=9000), seed=0)
    bounds = Progressive().bounds(history)
    assert bounds == pytest.approx([1 / 3, 2 / 3, 1])
    timed = Progressive().bounds(replace(history, budget=Budget(seconds=100)))
    assert timed[0] < timed[1] - timed[0] < timed[2] - timed[1]


def test_pairs_that_are_slow_to_score_are_scored_less_often() -> None:
    def share(seconds: float, beside: float) -> float:
        history = History(SPACE, Budget(seconds=seconds), 0, (candidate(0, seconds=1 + beside),))
        return usual_slice(history)

    assert usual_slice(History(SPACE, Budget(seconds=1200), 0)) == pytest.approx(60 / 1200)
    assert share(1200, 1.0) == pytest.approx(60 / 1200)
    assert share(1200, 6.0) == pytest.approx(200 / 1200)
    assert share(1200, 99.0) == pytest.approx(1 / 3)
    assert share(100, 0.0) == pytest.approx(1 / 10)
    counted = History(SPACE, Budget(images=9000), 0, (candidate(0, seconds=99.0),))
    assert usual_slice(counted) == pytest.approx(1 / 10)


def test_dynamic_always_tries_the_unchanged_child_and_late_on_grows_only_beyond_the_noise() -> None:
    line = [
        candidate(0, score=1.0, spent=0.3),
        candidate(1, parent="0000", score=0.999, spent=0.35),
        candidate(2, parent="0001", score=0.998, spent=0.4),
    ]
    history = History(SPACE, Budget(seconds=600), 0, tuple(line), ("0002",), 3, 0.4)
    policy = Dynamic(keep=1.0, images=1000, shown=0.01, tries=2)
    proposals = policy.propose([line[-1]], history)
    assert not proposals[0].growth and len(proposals) == 3
    assert all(p.growth for p in proposals[1:])
    assert len({p.share for p in proposals}) == 1
    unchanged = candidate(3, parent="0002", score=0.99, stderr=0.01)
    grown = candidate(4, parent="0002", growth=proposals[1].growth, stderr=0.01)
    slight, clear = replace(grown, score=0.98), replace(grown, score=0.9)
    early, late = history, replace(history, spent=0.6)
    assert policy.select([unchanged, slight], late).alive[0] == "0003"
    assert policy.select([unchanged, clear], late).alive[0] == "0004"
    # In the first half capacity that costs nothing is taken, but none that does harm.
    assert policy.select([unchanged, replace(grown, score=1.0)], early).alive[0] == "0004"
    assert policy.select([unchanged, replace(grown, score=1.1)], early).alive[0] == "0003"


def test_dynamic_tries_no_growth_that_the_budget_cannot_teach() -> None:
    line = [
        candidate(0, score=1.0, spent=0.3),
        candidate(1, parent="0000", score=0.999, spent=0.35),
        candidate(2, parent="0001", score=0.998, spent=0.4),
    ]

    def tried(seconds: float, **values: Any) -> int:
        history = History(SPACE, Budget(seconds=seconds), 0, tuple(line), ("0002",), 3, 0.4)
        proposals = Dynamic(keep=1.0, **values).propose([line[-1]], history)
        assert not proposals[0].growth
        return len(proposals) - 1

    # 100 images a second: a trial of 0.04 of 600 s sees 2,400, and 36,000 are left.
    assert tried(600, shown=0.01, images=2300) == 1
    assert tried(600, shown=0.01, images=2500) == 0
    weights = sum(map(parameters, line[-1].specs))
    assert tried(600, images=1, shown=36_000 / weights) == 0
    assert tried(600, images=1, shown=0.2 * 36_000 / weights) == 1


def test_the_search_begins_anew_with_the_largest_pair_that_the_budget_can_feed() -> None:
    policy = Dynamic(shown=2.0)
    history = History(SPACE, Budget(seconds=600), 0)
    (first,) = policy.propose([], history)
    assert first.parent is None and first.stacks == SPACE.stacks(SPACE.levels)
    wide, wider = (
        SPACE.stacks(SPACE.levels, SPACE.shape.scaled(*scales)) for scales in ((2, 1), (2, 2))
    )

    def second(images: float) -> Proposal:
        """What is proposed if so many images of ``wide`` are left in the budget."""
        rate = images / 594 * step_cost(*wide) / step_cost(*first.stacks)
        g, d = first.stacks
        root = candidate(0, generator=g, discriminator=d, parent=None, rate=rate, spent=0.01)
        return policy.propose([root], replace(history, candidates=(root,), round=1, spent=0.01))[0]

    need = 2 * sum(map(parameters, wide))
    assert second(1.01 * need).stacks == wide
    assert second(0.99 * need).parent == "0000", "it goes on with what it has"
    cost = step_cost(*wider) / step_cost(*wide)
    assert second(1.01 * 2 * sum(map(parameters, wider)) * cost).stacks == wider
    again = candidate(1, generator=wide[0], discriminator=wide[1], parent=None, spent=0.05)
    root = candidate(0, generator=first.stacks[0], discriminator=first.stacks[1], rate=1e9)
    later = replace(history, candidates=(root, again), alive=("0001",), round=2, spent=0.05)
    assert policy.propose([again], later)[0].parent == "0001", "and only once"


def test_the_ledger_passes_over_a_torn_line_and_mends_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"event": "start"})
    with ledger.path.open("a") as file:
        file.write('{"event": "cand')
    assert [e["event"] for e in ledger.read()] == ["start"]
    ledger.mend()
    ledger.append({"event": "end"})
    assert [e["event"] for e in ledger.read()] == ["start", "end"]


def test_the_meter_counts_images_or_seconds() -> None:
    meter = Meter(Budget(images=1000))
    meter.images = 250
    assert meter.spent == 0.25 and meter.left is None
    timed = Meter(Budget(seconds=100), elapsed=40)
    assert timed.spent == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("policy", [entry.name for entry in POLICIES])
def test_every_policy_runs_to_the_end_through_the_same_driver(
    policy: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    settings = tiny_settings(score={"kind": "swd", "samples": 64})
    run = grow(data, out=tmp_path / "run", policy=policy, images=1600, settings=settings)
    events = run.events
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    tried = [e for e in events if e["event"] == "candidate"]
    assert 0.9 * 1600 <= sum(_own_images(tried)) <= 1600
    best = next(e for e in tried if e["id"] == run.best_id)
    assert best["resolution"] == [16, 16]
    assert run.best.sample(5).shape == (5, 16, 16, 1)
    assert (run.path / "report.html").stat().st_size > 1000


def _own_images(tried: list[dict[str, object]]) -> list[int]:
    seen = {str(e["id"]): int(str(e["images"])) for e in tried}
    return [seen[str(e["id"])] - seen.get(str(e["parent"]), 0) for e in tried]


class Interruption(SilentDisplay):
    """Presses Ctrl-C at the n-th sign of life."""

    def __init__(self, after: int) -> None:
        self.left = after

    def progress(self, status: Status) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "after", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8))]
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    after: int, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    tries = {"images": 1, "shown": 1e-6, "threshold": 100.0, "reach": 0.06, "keep": 1.0}
    settings = tiny_settings(
        score={"kind": "swd", "samples": 64}, growth=tries, actions={"widest": 16}
    )

    def start(name: str, **more: Any) -> Run:
        out = tmp_path / name
        return grow(data, out=out, policy="dynamic", images=1600, settings=settings, **more)

    whole = start("whole")
    assert any(
        "residual" in e["growth"] or "widen" in e["growth"] for e in whole.events if "growth" in e
    )
    with pytest.raises(KeyboardInterrupt):
        start("torn", display=Interruption(after))
    again = start("torn", resume=True)
    for name in ("id", "parent", "growth", "score", "images"):
        mine, other = ([e[name] for e in r.events if "score" in e] for r in (whole, again))
        assert mine == other, name
    assert np.array_equal(whole.best.sample(4), again.best.sample(4))


def test_a_run_directory_of_other_data_is_refused(
    data: ImageSet,
    make_images: Callable[..., ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    settings = tiny_settings(score={"kind": "swd", "samples": 64})
    grow(data, out=tmp_path / "run", policy="fixed", images=80, settings=settings)
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        grow(data, out=tmp_path / "run", policy="fixed", images=80, settings=settings)
    other = make_images(64, 1, 16, 16, seed=1)
    with pytest.raises(UserError, match="which is other data than"):
        grow(other, out=tmp_path / "run", images=80, settings=settings, resume=True)
    with pytest.raises(UserError, match="no run directory"):
        Run.open(tmp_path)
