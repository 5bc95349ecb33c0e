"""Growth during training, the policies, the ledger and the search."""

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

from growgan.config import EditSettings, NetworkConfig, OptimizerSettings, Settings, make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.nets.flops import count_parameters, relative_step_time
from growgan.nets.growth_ops import Append, Edit, Insert, Widen
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec
from growgan.objectives import make_objective
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.grow import grow
from growgan.run.ledger import Ledger
from growgan.run.run import Run
from growgan.search.budget import Budget
from growgan.search.growth import Growth, legal_growths
from growgan.search.history import Candidate, History, Proposal, SearchSpace
from growgan.search.policies import POLICIES, DynamicPolicy, ProgressivePolicy, make_policy
from growgan.search.policies.base import default_segment_fraction
from growgan.training.batch import prepare_real_images
from growgan.training.checkpoint import load_gan, save_gan
from growgan.training.gan import Gan, sobol_latents
from growgan.training.loop import TrainingSegment, set_learning_rates, train
from growgan.training.progress import RunStatus, SilentDisplay
from growgan.training.runtime import make_runtime
from growgan.training.step import training_step

SHAPE = NetworkConfig(latent_dim=16, width=8, layers_per_resolution=1)
SPACE = SearchSpace("pggan", SHAPE, 1, (16, 16))
RUNTIME = make_runtime("cpu", "float32")


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(256, 1, 16, 16)


def tiny_settings(**values: object) -> Settings:
    shape = {"latent_dim": 16, "width": 8}
    return make_settings(
        {"batch_size": 8, "network": shape, "precision": "float32", "threads": 1, **values}
    )


def train_gan(data: ImageSet, level: int = 1, steps: int = 3) -> Gan:
    settings = tiny_settings()
    gan = Gan.create(*SPACE.specs_at(level), OptimizerSettings(), seed=3)
    batches, objective = Batches(data, 8, 0), make_objective(settings)
    for _ in range(steps):
        training_step(gan, batches, objective, settings, runtime=RUNTIME)
    return gan


def append_conv(prefix: str, resample: int = 1) -> Append:
    norm = "pixel" if prefix == "g" else "none"
    return Append((LayerSpec("x", "conv", 6, 3, resample, norm),))


def test_a_step_changes_every_parameter_of_both_networks(data: ImageSet) -> None:
    gan = Gan.create(*SPACE.specs_at(2), OptimizerSettings(), seed=3)
    before = {n: p.clone() for n, p in _parameters(gan).items()}
    # A loss of differences of logits has no gradient to the bias of the logits.
    settings = tiny_settings(loss="non-saturating", regularizers={"r1": {"interval": 1}})
    for _ in range(2):
        training_step(gan, Batches(data, 8, 0), make_objective(settings), settings, runtime=RUNTIME)
    unchanged = [n for n, p in _parameters(gan).items() if torch.equal(p, before[n])]
    assert unchanged == []


def test_the_learning_rate_decays_with_the_square_root_of_images_and_cools_down_to_zero(
    data: ImageSet,
) -> None:
    settings = tiny_settings(optimizer={"lr": 0.01, "lr_decay_images": 100}, lr_cooldown=0.5)
    gan = train_gan(data, steps=1)
    rates = []
    for images, progress in ((50, 0.1), (400, 0.5), (400, 0.75), (400, 1.0)):
        gan.images_seen = images
        set_learning_rates(gan, settings, progress)
        rates.append(gan.discriminator_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.005, 0.0025, 0.0])
    set_learning_rates(gan, settings, 1.0)
    assert gan.generator_optimizer.param_groups[0]["lr"] == rates[-1]


def _parameters(gan: Gan) -> dict[str, Tensor]:
    networks = {"g": gan.generator, "d": gan.discriminator}
    return {f"{k}.{n}": p for k, network in networks.items() for n, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("g", "d"),
    [
        ((append_conv("g"),), ()),
        ((), (append_conv("d"),)),
        ((append_conv("g", 2),), (append_conv("d", 2),)),
        ((Insert("g0"),), (Insert("d0", norm="none"),)),
    ],
    ids=["G", "D", "both upsampled", "inserted"],
)
def test_weights_moments_and_ema_are_transferred_by_layer_id(
    data: ImageSet, g: tuple[Edit, ...], d: tuple[Edit, ...]
) -> None:
    parent = train_gan(data)
    child = parent.grown_copy(g, d, seed=1)
    pairs = [
        (
            parent.generator,
            child.generator,
            parent.optimizer_moments()[0],
            child.optimizer_moments()[0],
        ),
        (
            parent.discriminator,
            child.discriminator,
            parent.optimizer_moments()[1],
            child.optimizer_moments()[1],
        ),
        (parent.ema, child.ema, {}, {}),
    ]
    for old, new, old_state, new_state in pairs:
        new_parameters = dict(new.named_parameters())
        appended = [layer.id for layer in new.spec.fading_layers]
        for name, value in old.named_parameters():
            new_head = f"heads.{appended[0]}." if appended else "heads.image."
            new_name = name.replace("heads.image.", new_head)
            assert torch.equal(new_parameters[new_name], value), name
            assert new_parameters[new_name].data_ptr() != value.data_ptr()
            for key, tensors in old_state.items():
                assert torch.equal(new_state[key][new_name], tensors[name]), (key, name)
    assert (child.images_seen, child.steps) == (parent.images_seen, parent.steps)


def test_siblings_and_parent_share_no_memory(data: ImageSet) -> None:
    parent = train_gan(data)
    first, second = parent.grown_copy(seed=1), parent.grown_copy((append_conv("g"),), seed=1)
    before = {n: p.clone() for n, p in _parameters(parent).items()}
    settings = tiny_settings()
    for child in (first, second):
        training_step(
            child, Batches(data, 8, 0), make_objective(settings), settings, runtime=RUNTIME
        )
    assert all(torch.equal(p, before[n]) for n, p in _parameters(parent).items())
    pointers = [p.data_ptr() for gan in (parent, first, second) for p in _parameters(gan).values()]
    assert len(set(pointers)) == len(pointers)


def test_an_unchanged_child_trains_exactly_like_its_parent(data: ImageSet) -> None:
    parent = train_gan(data)
    child = parent.grown_copy(seed=9)
    settings = tiny_settings()
    for gan in (parent, child):
        for _ in range(2):
            training_step(
                gan, Batches(data, 8, 0), make_objective(settings), settings, runtime=RUNTIME
            )
    for name, value in _parameters(parent).items():
        assert torch.equal(value, _parameters(child)[name]), name


def test_widening_scales_the_moments_like_the_gradients(data: ImageSet) -> None:
    parent = train_gan(data)
    child = parent.grown_copy((Widen(),), (Widen(),), seed=1)
    for i, name in enumerate(("generator", "discriminator")):
        old, new = parent.optimizer_moments()[i], child.optimizer_moments()[i]
        gradient = _gradients(parent, name), _gradients(child, name)
        # The relativistic loss has no gradient to the bias of the logits.
        for key in set(old["exp_avg_sq"]) - {"epilogue.logit_layer.bias"}:
            before, after = gradient[0][key], gradient[1][key]
            expected = after.square().sum() / before.square().sum()
            ratio = new["exp_avg_sq"][key].sum() / old["exp_avg_sq"][key].sum()
            # The noise that breaks the symmetry changes single gradients by about 10%.
            assert float(ratio / expected) == pytest.approx(1, abs=0.3), (name, key)


def _gradients(gan: Gan, role: str) -> dict[str, Tensor]:
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    gan.generator.zero_grad()
    gan.discriminator.zero_grad()
    gan.discriminator(gan.generator(z)).square().mean().backward()
    network = getattr(gan, role)
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_growth_to_different_resolutions_is_refused(data: ImageSet) -> None:
    with pytest.raises(
        ValueError, match=r"G's resolution \(16, 16\) must equal D's resolution \(8, 8\)"
    ):
        train_gan(data).grown_copy((append_conv("g", 2),), ())


def test_real_images_are_blended_while_a_resolution_fades_in(data: ImageSet) -> None:
    gan = train_gan(data, level=1).grown_copy((append_conv("g", 2),), (append_conv("d", 2),))
    gan.set_alpha(0.25)
    full = torch.randn(4, 1, 16, 16)
    blocks = full.view(4, 1, 8, 2, 8, 2).mean((3, 5))
    coarse = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = 0.75 * coarse + 0.25 * full
    result = prepare_real_images(gan, full, torch.Generator(), horizontal_flip=False)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_gpus_use_tf32_unless_the_precision_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for precision, fast in (("auto", True), ("bfloat16", True), ("float32", False)):
        runtime = make_runtime("cuda", precision)
        assert runtime.use_bfloat16 == fast and runtime.device.type == "cuda"
        assert [backend.allow_tf32 for backend in backends] == [fast, fast]
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.filterwarnings("ignore")  # warnings of torch.compile
@pytest.mark.parametrize("preset", ["pggan", "stylegan2"])
def test_compiled_training_matches_eager_and_growth_compiles_only_new_layers(
    data: ImageSet, preset: str
) -> None:
    penalties = {"r1": {}, "path-length": {"interval": 1}}
    settings = make_settings(
        PRESETS[preset].small_settings,
        {"preset": preset, "batch_size": 8, "network": {"width": 8}, "regularizers": penalties},
    )
    space = SearchSpace(preset, settings.network, 1, (16, 16))
    objective, batches, graphs = make_objective(settings), Batches(data, 8, 0), counters["stats"]

    def count_compiled_graphs(gan: Gan, backend: str = "aot_eager") -> int:
        before, runtime = graphs["unique_graphs"], replace(RUNTIME, compile_backend=backend)
        train(
            gan, batches, objective, settings, runtime=runtime, segment=TrainingSegment(images=24)
        )
        return int(graphs["unique_graphs"] - before)

    eager, compiled = (Gan.create(*space.specs_at(1), settings.optimizer, seed=0) for _ in range(2))
    assert count_compiled_graphs(eager, "") == 0
    first = count_compiled_graphs(compiled)
    assert first > 0
    for a, b in zip(eager.generator.parameters(), compiled.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert count_compiled_graphs(compiled.grown_copy()) == 0
    block = "conv" if preset == "pggan" else "modulated"
    layer = LayerSpec("x", block, 6, 3, 1, "pixel" if preset == "pggan" else "none")
    assert 0 < count_compiled_graphs(compiled.grown_copy([Append((layer,))])) <= first


def test_images_are_downsampled_by_averaging() -> None:
    pixels = torch.randint(0, 256, (3, 2, 8, 12), dtype=torch.uint8)
    result = make_runtime("cpu", "float32").to_float_images(pixels, 4)
    expected = pixels.double().view(3, 2, 2, 4, 3, 4).mean((3, 5)) / 127.5 - 1
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_k_and_k_steps_across_a_checkpoint_equal_2k_steps_bitwise(
    data: ImageSet, tmp_path: Path
) -> None:
    settings = tiny_settings(regularizers={"r1": {"interval": 2}})
    objective, batches = make_objective(settings), Batches(data, 8, 0)
    uninterrupted = train_gan(data).grown_copy(
        (append_conv("g", 2),), (append_conv("d", 2),), seed=4
    )
    interrupted = uninterrupted.grown_copy()
    for gan in (uninterrupted, interrupted):
        train(
            gan,
            batches,
            objective,
            settings,
            runtime=RUNTIME,
            segment=TrainingSegment(images=40, fade_segments=2.0),
        )
    save_gan(interrupted, tmp_path / "0000")
    resumed = load_gan(tmp_path / "0000")
    assert resumed.alpha == pytest.approx(0.5) and resumed.generator.spec.num_fading_layers == 1
    for gan in (uninterrupted, resumed):
        train(
            gan,
            batches,
            objective,
            settings,
            runtime=RUNTIME,
            segment=TrainingSegment(images=40, fade_segments=2.0),
        )
    assert resumed.generator.spec.num_fading_layers == 0
    for name, value in _parameters(uninterrupted).items():
        assert torch.equal(value, _parameters(resumed)[name]), name
    for moments, resumed_moments in zip(
        uninterrupted.optimizer_moments(), resumed.optimizer_moments(), strict=True
    ):
        for key, tensors in moments.items():
            assert all(torch.equal(t, resumed_moments[key][n]) for n, t in tensors.items())
    average = dict(resumed.ema.named_parameters())
    assert all(torch.equal(p, average[n]) for n, p in uninterrupted.ema.named_parameters())


def test_legal_growths_resample_g_and_d_alike_and_start_with_no_growth() -> None:
    g, d = SPACE.specs_at(1)
    growths = legal_growths(g, d, EditSettings(blocks=("conv",)), (16, 16))
    assert growths[0] == Growth() and str(growths[0]) == "no growth"
    assert all(growth.resampling_factors[0] == growth.resampling_factors[1] for growth in growths)
    assert any(growth.resampling_factors[0] == 2 for growth in growths)
    assert any(x.generator_edits and not x.discriminator_edits for x in growths)
    assert any(x.discriminator_edits and not x.generator_edits for x in growths)
    at_target = legal_growths(g, d, EditSettings(blocks=("conv",)), (8, 8))
    assert all(growth.resampling_factors == (1, 1) for growth in at_target)
    assert all(Growth.from_json(growth.to_json()) == growth for growth in growths)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400)]
)
def test_budgets_are_parsed(text: str, seconds: float) -> None:
    assert Budget.parse(text) == Budget(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "5x", "0s"])
def test_an_invalid_budget_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Budget.parse(text)


def test_the_published_learning_rate_of_pggan_is_constant() -> None:
    gan = Gan.create(*SPACE.specs_at(0), OptimizerSettings(), seed=0)
    settings = make_settings(PRESETS["pggan"].published_settings)
    for images in (0, 10_000_000):
        gan.images_seen = images
        set_learning_rates(gan, settings, 0.99)
        assert gan.generator_optimizer.param_groups[0]["lr"] == 1e-3


def test_sobol_latents_are_normal_and_balanced_within_each_sequence() -> None:
    z = sobol_latents(4096, 16, seed=3, num_sequences=8)
    assert torch.equal(z, sobol_latents(4096, 16, seed=3, num_sequences=8))
    assert not torch.equal(z, sobol_latents(4096, 16, seed=4, num_sequences=8))
    for group in (z[k::8] for k in range(8)):
        # The mean of 512 independent draws would vary by 0.044.
        assert group.mean(0).abs().max() < 0.01
        assert (group.std(0) - 1).abs().max() < 0.02
    assert torch.corrcoef(z.T).fill_diagonal_(0).abs().max() < 0.1


def test_policies_refuse_unknown_settings() -> None:
    with pytest.raises(UserError, match=r"unknown policy 'dynamik' \(did you mean 'dynamic'\?\)"):
        make_policy("dynamik", {})
    with pytest.raises(
        UserError, match=r"unknown setting 'growth.topk' \(did you mean 'growth.top_k'"
    ):
        make_policy("dynamic", {"topk": 2})
    with pytest.raises(UserError, match=r"setting 'growth.top_k' cannot be 'many'"):
        make_policy("dynamic", {"top_k": "many"})


def candidate(number: int, **values: object) -> Candidate:
    g, d = SPACE.specs_at(2)
    default = Candidate(
        id=f"{number:04d}",
        parent_id=None,
        round=0,
        growth=Growth(),
        generator_spec=g,
        discriminator_spec=d,
        images_seen=100,
        train_seconds=1.0,
        seconds=1.1,
        images_per_second=100.0,
        score=1.0,
        score_stderr=0.01,
        elapsed=1.0,
        spent_fraction=0.1,
        score_components={},
    )
    return replace(default, **values)  # type: ignore[arg-type]


def test_the_progressive_policy_gives_each_resolution_the_same_number_of_images() -> None:
    history = History(SPACE, Budget(images=9000), seed=0)
    bounds = ProgressivePolicy().resolution_end_fractions(history)
    assert bounds == pytest.approx([1 / 3, 2 / 3, 1])
    timed = ProgressivePolicy().resolution_end_fractions(
        replace(history, budget=Budget(seconds=100))
    )
    assert timed[0] < timed[1] - timed[0] < timed[2] - timed[1]


def test_candidates_that_are_slow_to_score_are_scored_less_often() -> None:
    def fraction(seconds: float, overhead: float) -> float:
        history = History(SPACE, Budget(seconds=seconds), 0, (candidate(0, seconds=1 + overhead),))
        return default_segment_fraction(history)

    assert default_segment_fraction(History(SPACE, Budget(seconds=1200), 0)) == pytest.approx(
        60 / 1200
    )
    assert fraction(1200, 1.0) == pytest.approx(60 / 1200)
    assert fraction(1200, 6.0) == pytest.approx(200 / 1200)
    assert fraction(1200, 99.0) == pytest.approx(1 / 3)
    assert fraction(100, 0.0) == pytest.approx(1 / 10)
    counted = History(SPACE, Budget(images=9000), 0, (candidate(0, seconds=99.0),))
    assert default_segment_fraction(counted) == pytest.approx(1 / 10)


def test_the_dynamic_policy_always_tries_no_growth_and_late_growths_must_exceed_the_noise() -> None:
    lineage = [
        candidate(0, score=1.0, spent_fraction=0.3),
        candidate(1, parent_id="0000", score=0.999, spent_fraction=0.35),
        candidate(2, parent_id="0001", score=0.998, spent_fraction=0.4),
    ]
    history = History(SPACE, Budget(seconds=600), 0, tuple(lineage), ("0002",), 3, 0.4)
    policy = DynamicPolicy(
        sample_prob=1.0, min_trial_images=1000, images_per_parameter=0.01, trials_per_round=2
    )
    proposals = policy.propose([lineage[-1]], history)
    assert not proposals[0].growth and len(proposals) == 3
    assert all(p.growth for p in proposals[1:])
    assert len({p.budget_fraction for p in proposals}) == 1
    unchanged = candidate(3, parent_id="0002", score=0.99, score_stderr=0.01)
    grown = candidate(4, parent_id="0002", growth=proposals[1].growth, score_stderr=0.01)
    slight, clear = replace(grown, score=0.98), replace(grown, score=0.9)
    early, late = history, replace(history, spent_fraction=0.6)
    assert policy.select([unchanged, slight], late).survivor_ids[0] == "0003"
    assert policy.select([unchanged, clear], late).survivor_ids[0] == "0004"
    # In the first half of the budget a growth may be worse within the noise.
    assert policy.select([unchanged, replace(grown, score=1.0)], early).survivor_ids[0] == "0004"
    assert policy.select([unchanged, replace(grown, score=1.1)], early).survivor_ids[0] == "0003"


def test_the_dynamic_policy_does_not_try_growths_without_enough_images() -> None:
    lineage = [
        candidate(0, score=1.0, spent_fraction=0.3),
        candidate(1, parent_id="0000", score=0.999, spent_fraction=0.35),
        candidate(2, parent_id="0001", score=0.998, spent_fraction=0.4),
    ]

    def num_growth_trials(seconds: float, **values: Any) -> int:
        history = History(SPACE, Budget(seconds=seconds), 0, tuple(lineage), ("0002",), 3, 0.4)
        proposals = DynamicPolicy(sample_prob=1.0, **values).propose([lineage[-1]], history)
        assert not proposals[0].growth
        return len(proposals) - 1

    # At 100 images/s, a trial of 0.04 of 600 s trains on 2,400 images, and 36,000 are left.
    assert num_growth_trials(600, images_per_parameter=0.01, min_trial_images=2300) == 1
    assert num_growth_trials(600, images_per_parameter=0.01, min_trial_images=2500) == 0
    weights = sum(map(count_parameters, lineage[-1].specs))
    assert num_growth_trials(600, min_trial_images=1, images_per_parameter=36_000 / weights) == 0
    assert (
        num_growth_trials(600, min_trial_images=1, images_per_parameter=0.2 * 36_000 / weights) == 1
    )


def test_the_search_restarts_with_the_widest_networks_that_the_budget_allows() -> None:
    policy = DynamicPolicy(images_per_parameter=2.0)
    history = History(SPACE, Budget(seconds=600), 0)
    (first,) = policy.propose([], history)
    assert first.parent_id is None and first.root_specs == SPACE.specs_at(SPACE.max_level)
    wide, wider = (
        SPACE.specs_at(SPACE.max_level, SPACE.network_settings.scale_width(*scales))
        for scales in ((2, 1), (2, 2))
    )

    def second_proposal(images: float) -> Proposal:
        """Return the second proposal if the budget allows ``images`` images with ``wide``."""
        rate = images / 594 * relative_step_time(*wide) / relative_step_time(*first.root_specs)
        g, d = first.root_specs
        root = candidate(
            0,
            generator_spec=g,
            discriminator_spec=d,
            parent_id=None,
            images_per_second=rate,
            spent_fraction=0.01,
        )
        return policy.propose(
            [root], replace(history, candidates=(root,), round=1, spent_fraction=0.01)
        )[0]

    needed_images = 2 * sum(map(count_parameters, wide))
    assert second_proposal(1.01 * needed_images).root_specs == wide
    assert second_proposal(0.99 * needed_images).parent_id == "0000", "the same networks continue"
    cost = relative_step_time(*wider) / relative_step_time(*wide)
    assert second_proposal(1.01 * 2 * sum(map(count_parameters, wider)) * cost).root_specs == wider
    restarted = candidate(
        1, generator_spec=wide[0], discriminator_spec=wide[1], parent_id=None, spent_fraction=0.05
    )
    root = candidate(
        0,
        generator_spec=first.root_specs[0],
        discriminator_spec=first.root_specs[1],
        images_per_second=1e9,
    )
    later = replace(
        history, candidates=(root, restarted), survivor_ids=("0001",), round=2, spent_fraction=0.05
    )
    assert policy.propose([restarted], later)[0].parent_id == "0001", "only once"


def test_the_ledger_skips_and_repairs_an_incomplete_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"event": "start"})
    with ledger.path.open("a") as file:
        file.write('{"event": "cand')
    assert [e["event"] for e in ledger.read()] == ["start"]
    ledger.repair()
    ledger.append({"event": "end"})
    assert [e["event"] for e in ledger.read()] == ["start", "end"]


def test_the_budget_meter_counts_images_or_seconds() -> None:
    meter = BudgetMeter(Budget(images=1000))
    meter.images_seen = 250
    assert meter.spent_fraction == 0.25 and meter.seconds_left is None
    timed = BudgetMeter(Budget(seconds=100), elapsed=40)
    assert timed.spent_fraction == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("policy", [entry.name for entry in POLICIES])
def test_every_policy_completes_a_run(
    policy: str, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    settings = tiny_settings(score={"kind": "swd", "num_samples": 64})
    run = grow(data, out=tmp_path / "run", policy=policy, images=1600, settings=settings)
    events = run.events
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    candidates = [e for e in events if e["event"] == "candidate"]
    assert 0.9 * 1600 <= sum(_images_per_candidate(candidates)) <= 1600
    best = next(e for e in candidates if e["id"] == run.best_id)
    assert best["resolution"] == [16, 16]
    assert run.best.sample(5).shape == (5, 16, 16, 1)
    assert (run.path / "report.html").stat().st_size > 1000


def _images_per_candidate(candidates: list[dict[str, object]]) -> list[int]:
    images = {str(e["id"]): int(str(e["images"])) for e in candidates}
    return [images[str(e["id"])] - images.get(str(e["parent"]), 0) for e in candidates]


class Interruption(SilentDisplay):
    """Interrupts the run at the progress update number ``after``."""

    def __init__(self, after: int) -> None:
        self.updates_left = after

    def progress(self, status: RunStatus) -> None:
        self.updates_left -= 1
        if not self.updates_left:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "after", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8))]
)
def test_an_interrupted_run_resumes_to_the_same_result(
    after: int, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    growth = {
        "min_trial_images": 1,
        "images_per_parameter": 1e-6,
        "plateau_slope": 100.0,
        "max_fraction_per_resolution": 0.06,
        "sample_prob": 1.0,
    }
    settings = tiny_settings(
        score={"kind": "swd", "num_samples": 64}, growth=growth, edits={"max_width": 16}
    )

    def start(name: str, **options: Any) -> Run:
        out = tmp_path / name
        return grow(data, out=out, policy="dynamic", images=1600, settings=settings, **options)

    uninterrupted = start("uninterrupted")
    assert any(
        "residual" in e["growth"] or "widen" in e["growth"]
        for e in uninterrupted.events
        if "growth" in e
    )
    with pytest.raises(KeyboardInterrupt):
        start("interrupted", display=Interruption(after))
    resumed = start("interrupted", resume=True)
    for name in ("id", "parent", "growth", "score", "images"):
        first, second = (
            [e[name] for e in r.events if "score" in e] for r in (uninterrupted, resumed)
        )
        assert first == second, name
    assert np.array_equal(uninterrupted.best.sample(4), resumed.best.sample(4))


def test_a_run_directory_of_other_data_is_refused(
    data: ImageSet,
    make_blob_images: Callable[..., ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GROWGAN_CACHE", str(tmp_path / "cache"))
    settings = tiny_settings(score={"kind": "swd", "num_samples": 64})
    grow(data, out=tmp_path / "run", policy="fixed", images=80, settings=settings)
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        grow(data, out=tmp_path / "run", policy="fixed", images=80, settings=settings)
    other_data = make_blob_images(64, 1, 16, 16, seed=1)
    with pytest.raises(UserError, match="which differs from"):
        grow(other_data, out=tmp_path / "run", images=80, settings=settings, resume=True)
    with pytest.raises(UserError, match="is not a run directory"):
        Run.open(tmp_path)
