"""A trained generator learns labels: by a map before it, or by training on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import growgan as gg
from growgan.cli import main
from growgan.config import OptimiserSettings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.condition import affordable
from growgan.growth.history import Space
from growgan.growth.origin import continued
from growgan.growth.pool import Pool, begin
from growgan.growth.scoring import batches_of
from growgan.nets.modifier import Modifier
from growgan.nets.players import Discriminator, Generator
from growgan.nets.presets import PRESETS
from growgan.nets.spec import StackSpec
from growgan.nets.wishes import one_hot
from growgan.objectives.conditioning import make_conditioning
from growgan.objectives.losses import make_loss
from growgan.objectives.step import Chance, Memory, Step
from growgan.training.gan import Gan

pytestmark = pytest.mark.usefixtures("own_cache")

TINY: dict[str, Any] = {
    "batch": 8,
    "threads": 1,
    "stack": {"latent": 16, "width": 8},
    "score": {"kind": "swd", "samples": 64},
}


@pytest.fixture(scope="module")
def data(make_images: Callable[..., ImageSet]) -> ImageSet:
    return make_images(128, 1, 16, 16)


@pytest.fixture(scope="module")
def bare(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> gg.Run:
    """A run without labels."""
    out = tmp_path_factory.mktemp("bare") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWGAN_CACHE", str(out.parent / "cache"))
        return gg.grow(data, out=out, policy="fixed", images=400, settings=TINY)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_modifier_can_be_undone(blocks: int) -> None:
    torch.manual_seed(0)
    modifier = Modifier(32, 5, blocks)
    optimiser = torch.optim.Adam(modifier.parameters(), lr=0.05)
    u, y = noise(64, 32), one_hot(torch.arange(64) % 5, 5)
    for _ in range(50):  # far from how it begins, pulled apart with all its might
        optimiser.zero_grad()
        (-modifier(u, y).square().mean()).backward()
        optimiser.step()
    modifier.eval()
    with torch.no_grad():
        z = modifier(u, y)
    assert float((z - u).norm() / u.norm()) > 0.5
    torch.testing.assert_close(modifier.inverse(z, y), u, rtol=1e-4, atol=1e-4)
    again = modifier(modifier.inverse(u, y), y)
    torch.testing.assert_close(again, u, rtol=1e-4, atol=1e-4)


def test_no_block_of_the_modifier_stretches_or_folds() -> None:
    torch.manual_seed(0)
    block = Modifier(8, 2, 1).blocks[0].eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None])[0], noise(8))
    values = torch.linalg.svdvals(torch.as_tensor(jacobian))
    assert float(values.min()) >= 0.1 - 1e-3 and float(values.max()) <= 1.9 + 1e-3


def test_the_positive_unlabelled_loss_is_that_of_the_paper() -> None:
    loss = make_loss("positive-unlabelled", {"prior": 0.25, "ramp": 8})
    real, fake, memory = torch.tensor([0.5, 2.0]), torch.tensor([-0.5, 1.0]), cast(Memory, {})
    # (1 + π) (0.5 + 0) / 2 + relu((0.5 + 2) / 2 - π (1.5 + 3) / 2)
    assert float(loss.discriminator(real, fake, memory)) == pytest.approx(
        1.25 * 0.25 + 1.25 - 0.25 * 2.25
    )
    assert float(loss.generator(None, fake, memory)) == pytest.approx(-0.25)
    shares = [float(loss.curves(real, fake, memory, 2)["pu_share"]) for _ in range(6)]
    assert shares == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1, 1])
    # With π = 1 the unlabelled part is below zero, and left out.
    assert float(loss.discriminator(real, fake, memory)) == pytest.approx(2 * 0.25)
    still = make_loss("positive-unlabelled", {"prior": 0.25})
    assert float(still.curves(real, fake, memory, 2)["pu_share"]) == 0.25, "without a ramp it stays"


def test_labels_that_may_be_wrong_pass_the_same_channel() -> None:
    n, classes = 20_000, 4
    y = one_hot(torch.arange(n) % (classes + 1) - 1, classes)  # a fifth has none
    rng = torch.Generator().manual_seed(0)
    z = torch.cat([noise(n, 3), y], 1)
    made = SimpleNamespace(labels=y, latents=z, chance=Chance(rng, n), given=torch.empty(0))
    step = cast(Step, made)
    kept = make_conditioning("projection", {}).latents(step)
    assert kept is made.latents
    z = make_conditioning("projection", {"noise": 0.3}).latents(step)
    assert torch.equal(z[:, :3], made.latents[:, :3])
    known = y.sum(1) > 0
    assert torch.equal(z[~known], made.latents[~known])
    moved = (z[known, 3:] * y[known]).sum(1) == 0
    assert float(moved.float().mean()) == pytest.approx(0.3, abs=0.02)
    became = z[known, 3:][moved & (y[known, 0] == 1)].mean(0)
    assert became.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.04)
    with pytest.raises(UserError, match="uses no labels, so none of them can be wrong"):
        make_conditioning("infogan", {"noise": 0.1})
    with pytest.raises(UserError, match=r"conditioning_options.noise' must be below 1"):
        make_conditioning("projection", {"noise": 1.0})


def test_few_labels_are_drawn_from_each_class_and_rare_classes_are_repeated(
    data: ImageSet,
) -> None:
    labels = np.repeat([0, 1, -1], [100, 18, 10])
    uneven = replace(data, labels=labels)
    few = uneven.labelled(0.1, seed=1)
    assert few.labels is not None and np.bincount(few.labels).tolist() == [10, 2]
    other = uneven.labelled(0.1, seed=2)
    assert not np.array_equal(few.images, other.images)
    assert uneven.labelled(0.001).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    even = uneven.balanced()
    assert even.labels is not None and np.bincount(even.labels).tolist() == [100, 100]
    settings = make_settings({"labels": {"share": 0.1, "balance": True}})
    assert batches_of(uneven, settings).count == 20
    assert batches_of(uneven, make_settings({})).count == 128
    with pytest.raises(UserError, match="has no labels"):
        replace(data, labels=None).balanced()


FORMS = [entry.name for entry in PRESETS if entry.name != "gan"]


def conditional(spec: StackSpec, way: str, **values: Any) -> StackSpec:
    if spec.role == "generator":
        own = {"modifier": 3} if way == "reprogram" else {"embedding": 4}
        return replace(spec, classes=2, **own)
    told = {"reprogram": "heads", "fine-tune": "projection"}[way]
    return replace(spec, classes=2, judging=told, readouts=(("p", 2),))


@pytest.mark.parametrize("preset", FORMS)
def test_a_pair_that_learns_labels_begins_with_what_it_could(preset: str) -> None:
    shape = make_settings(PRESETS[preset].small, TINY, {"preset": preset}).stack
    some: dict[str, Any] = {"width": 16, "attention": None, "chunk": 4 * bool(shape.chunk)}
    small = shape.model_copy(update={**some, "mixing": 0.0})
    space = Space(preset, small, 1, (32, 32))
    parent = Gan.create(*space.stacks(space.levels), OptimiserSettings(), seed=3)
    parent.average.eval()
    z = noise(4, small.latent)
    before = [p.clone() for p in parent.average.parameters()]
    stacks = parent.generator.spec, parent.discriminator.spec
    for way in ("reprogram", "fine-tune"):
        specs = conditional(stacks[0], way), conditional(stacks[1], way)
        child = continued(parent, specs, OptimiserSettings(), seed=4)
        child.average.eval()
        y = one_hot(torch.tensor([0, 1, -1, 1]), 2)
        with torch.no_grad():
            torch.manual_seed(0)  # of a generator's own noise
            expected = parent.average(z)
            made = child.average
            if way == "reprogram":
                u = made.modifier.inverse(z, y)
                torch.manual_seed(0)
                got = made(torch.cat([u, y], 1))
            else:
                torch.manual_seed(0)
                got = made(torch.cat([z, y], 1))
        scale = float(expected.abs().mean()) + 1e-6
        assert float((got - expected).abs().max()) <= 2e-3 * scale + 1e-4, (preset, way)
        learns = [name for name, p in child.generator.named_parameters() if p.requires_grad]
        if way == "reprogram":
            assert learns and all(name.startswith("modifier.") for name in learns)
    assert all(map(torch.equal, before, parent.average.parameters()))


def test_a_budget_of_time_pays_for_as_many_images_as_the_run_saw_in_it(bare: gg.Run) -> None:
    told = [event for event in bare.events if event["event"] == "candidate"]
    rate = next(event["rate"] for event in told if event["id"] == bare.best_id)
    assert affordable(bare, "2m") == pytest.approx(120 * rate, abs=1)
    assert affordable(bare, "5k images") == 5_000 and affordable(bare, None) is None


def test_a_run_is_reprogrammed_from_few_labels_and_its_generator_stays(
    bare: gg.Run, data: ImageSet, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"out": tmp_path / "run", "images": 160}
    run = gg.condition(bare, data, settings={"labels": {"share": 0.25}}, **how)
    first, last = bare.best.network(), run.best.network()
    assert last.spec.classes == 2 and last.spec.modifier == 3
    kept = dict(last.named_parameters())
    for name, value in first.named_parameters():
        assert torch.equal(value, kept[name]), name
    moved = last.modifier.label.weight
    start = continued_start(run)
    assert not torch.equal(moved, start.modifier.label.weight)
    assert run.best.sample(4, labels=[1]).shape == (4, 16, 16, 1)
    assert run.best.classes == data.classes
    seen = [e for e in run.events if e["event"] == "candidate"]
    assert max(e["images"] for e in seen) == 160
    again = gg.grow(data, out=run.path, images=240, resume=True)
    assert again.best.network().spec.modifier == 3
    out = tmp_path / "fine"
    command = ["condition", str(bare.path), "digits", "--out", str(out), "--images", "80"]
    assert main([*command, "--labels", "150%"]) == 2 and not out.exists()


def continued_start(run: gg.Run) -> Generator:
    """Return the generator with which a run began."""
    from growgan.growth.origin import origin_of, stacks_of

    parent = origin_of(run.path)
    assert parent is not None
    settings = gg.Settings.from_yaml(run.path / "config.yaml")
    shape = settings.stack.model_copy(update={"classes": 2, "readouts": (("p", 2),)})
    pair = stacks_of(run.path / "origin", shape.model_copy(update={"judging": "heads"}))
    return continued(parent, pair, OptimiserSettings(), seed=0).generator


def test_fine_tuning_trains_all_of_both_players(
    bare: gg.Run, data: ImageSet, tmp_path: Path
) -> None:
    run = gg.condition(bare, data, out=tmp_path / "run", way="fine-tune", images=160)
    first, last = bare.best.network(), run.best.network()
    kept = dict(last.named_parameters())
    same = [torch.equal(v, kept[name]) for name, v in first.named_parameters() if name in kept]
    assert len(same) > 4 and not any(same)
    d = cast(Discriminator, run_pair(run).discriminator)
    assert d.spec.judging == "projection" and d.spec.classes == 2


def run_pair(run: gg.Run) -> Gan:
    from growgan.training.checkpoint import load_gan

    return load_gan(run.path / "candidates" / run.best_id)


def test_what_cannot_be_taught_is_refused_before_anything_is_written(
    bare: gg.Run, data: ImageSet, make_images: Callable[..., ImageSet], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    other = make_images(64, 3, 16, 16)
    for given, values, message in (
        (other, {}, "draws images of 16x16 with 1 channel, but '.*' has 16x16 with 3 channels"),
        (replace(data, labels=None, classes=()), {}, "needs labels of two classes or more"),
        (data, {"way": "remember"}, "a way must be one of: reprogram, fine-tune"),
        (data, {"settings": {"policy": "dynamic"}}, "goes on from another run, by the policy"),
    ):
        with pytest.raises(UserError, match=message):
            gg.condition(bare, given, out=out, images=80, **values)  # type: ignore[arg-type]
        assert not out.exists()
    with pytest.raises(UserError, match=r"stack.modifier is of a frozen generator"):
        gg.grow(data, out=out, images=80, settings={"stack": {"modifier": 2}})
    once = gg.condition(bare, data, out=tmp_path / "once", images=80)
    with pytest.raises(UserError, match="is conditional already: it knows 2 classes"):
        gg.condition(once, data, out=out, images=80)


def test_a_pair_for_each_label_is_trained_alone_and_pooled(tmp_path: Path) -> None:
    """Through real processes: interrupted labels go on, finished ones are left alone."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name, shade in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(shade - 30, shade + 30, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    out = tmp_path / "pool"
    common = ["per-label", "pggan", str(folder), "--out", str(out), "--images", "96"]
    small = ["--set", "batch=8", "--set", "stack.latent=8", "--set", "stack.width=8"]
    small += ["--set", "score.samples=16", "--set", "stack.deviation_group=4"]
    assert main([*common, *small, "--only-label", "1"]) == 0
    pool = Pool(out)
    assert not pool.begun(0) and pool.finished(1)
    before = (pool.folder(1) / "ledger.jsonl").read_bytes()
    assert main([*common, *small, "--jobs", "2"]) == 0
    assert pool.finished(0) and (pool.folder(1) / "ledger.jsonl").read_bytes() == before
    assert pool.classes == ("dark", "light")
    start = pool.run(0).events[0]
    assert start["data"]["count"] == 24
    images = pool.sample(6, seed=3)
    assert images.shape == (6, 16, 16, 1) and pool.labels(6).tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(images[1::2], pool.run(1).best.sample(3, seed=3))
    assert main(["sample", str(out), "-n", "4", "--out", str(tmp_path / "drawn.npz")]) == 0
    with np.load(tmp_path / "drawn.npz") as found:
        assert found["labels"].tolist() == [0, 1, 0, 1]
    data = gg.load_images(folder)
    found_ = gg.evaluate(pool, data, metrics="intra-fid", features="pixels", count=40)
    assert found_["intra-fid"].protocol.counts == (40, 48)
    command = ["evaluate", str(out), str(folder), "--metrics", "fid", "--features", "pixels"]
    assert main([*command, "-n", "40"]) == 0
    assert main([*common, "--set", "batch=4"]) == 2  # asked for otherwise


def test_jobs_of_an_array_may_begin_a_pool_at_once(tmp_path: Path) -> None:
    asked = {"classes": ["a", "b"], "command": [str(i) for i in range(1000)]}
    for number in range(20):
        path = tmp_path / str(number) / "pool"
        with ThreadPoolExecutor(8) as jobs:
            pools = list(jobs.map(lambda _, path=path: begin(path, asked), range(8)))
        assert all(pool.asked == asked for pool in pools)
        assert [file.name for file in path.iterdir()] == ["per-label.json"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        begin(tmp_path / "taken", asked)


def test_a_search_may_score_within_classes(data: ImageSet, tmp_path: Path) -> None:
    score = {"kind": "intra-fd", "samples": 64}
    settings = {**TINY, "policy": "fixed", "score": score}
    with pytest.raises(UserError, match="'intra-fd' has no meaning for the conditioning 'none'"):
        gg.grow(data, out=tmp_path / "x", images=80, settings=settings)
    assert not (tmp_path / "x").exists()
    settings["conditioning"] = "projection"
    run = gg.grow(data, out=tmp_path / "run", images=80, settings=settings)
    tried = [event for event in run.events if event["event"] == "candidate"]
    assert tried and all(set(event["parts"]) == {"intra-fd"} for event in tried)
