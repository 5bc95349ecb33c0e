"""Tests of finetuning with labels, and of one GAN per class."""

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
from growgan.artifacts.per_class_ensemble import PerClassEnsemble, create_or_open
from growgan.cli import main
from growgan.config import OptimizerSettings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.scoring import build_batches
from growgan.execution.warm_start import init_from_pretrained
from growgan.nets.conditioning import one_hot
from growgan.nets.invertible_map import InvertibleLatentMap
from growgan.nets.networks import Discriminator, Generator
from growgan.nets.presets import PRESETS
from growgan.objectives.conditioning import make_conditioning
from growgan.objectives.losses import make_loss
from growgan.objectives.step_context import ObjectiveState, ShardedRng, StepContext
from growgan.run.finetune import images_within_budget
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan

pytestmark = pytest.mark.usefixtures("temporary_cache")

TINY: dict[str, Any] = {
    "batch_size": 8,
    "threads": 1,
    "network": {"latent_dim": 16, "width": 8},
    "score": {"kind": "swd", "num_samples": 64},
}


@pytest.fixture(scope="module")
def data(make_blob_images: Callable[..., ImageSet]) -> ImageSet:
    return make_blob_images(128, 1, 16, 16)


@pytest.fixture(scope="module")
def bare(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> gg.Run:
    """Return a run without labels."""
    out = tmp_path_factory.mktemp("bare") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWGAN_CACHE", str(out.parent / "cache"))
        return gg.grow(data, out=out, policy="fixed", images=400, settings=TINY)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_invertible_map_can_be_inverted(blocks: int) -> None:
    torch.manual_seed(0)
    latent_map = InvertibleLatentMap(32, 5, blocks)
    optimizer = torch.optim.Adam(latent_map.parameters(), lr=0.05)
    u, y = noise(64, 32), one_hot(torch.arange(64) % 5, 5)
    for _ in range(50):  # move it far away from its initial state
        optimizer.zero_grad()
        (-latent_map(u, y).square().mean()).backward()
        optimizer.step()
    latent_map.eval()
    with torch.no_grad():
        z = latent_map(u, y)
    assert float((z - u).norm() / u.norm()) > 0.5
    torch.testing.assert_close(latent_map.inverse(z, y), u, rtol=1e-4, atol=1e-4)
    restored = latent_map(latent_map.inverse(u, y), y)
    torch.testing.assert_close(restored, u, rtol=1e-4, atol=1e-4)


def test_the_singular_values_of_a_block_are_bounded() -> None:
    torch.manual_seed(0)
    block = InvertibleLatentMap(8, 2, 1).blocks[0].eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x[None])[0], noise(8))
    values = torch.linalg.svdvals(torch.as_tensor(jacobian))
    assert float(values.min()) >= 0.1 - 1e-3 and float(values.max()) <= 1.9 + 1e-3


def test_the_positive_unlabeled_loss_is_that_of_the_paper() -> None:
    loss = make_loss("positive-unlabeled", {"prior": 0.25, "ramp_images": 8})
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-0.5, 1.0])
    state = cast(ObjectiveState, {})
    # (1 + π) (0.5 + 0) / 2 + relu((0.5 + 2) / 2 - π (1.5 + 3) / 2)
    assert float(loss.discriminator_loss(real, fake, state)) == pytest.approx(
        1.25 * 0.25 + 1.25 - 0.25 * 2.25
    )
    assert float(loss.generator_loss(None, fake, state)) == pytest.approx(-0.25)
    priors = [float(loss.update_state(real, fake, state, 2)["pu_prior"]) for _ in range(6)]
    assert priors == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1, 1])
    # With π = 1 the unlabeled part is negative and therefore left out.
    assert float(loss.discriminator_loss(real, fake, state)) == pytest.approx(2 * 0.25)
    constant = make_loss("positive-unlabeled", {"prior": 0.25})
    assert float(constant.update_state(real, fake, state, 2)["pu_prior"]) == 0.25


def test_label_noise_changes_the_labels_of_the_generator() -> None:
    n, classes = 20_000, 4
    y = one_hot(torch.arange(n) % (classes + 1) - 1, classes)  # a fifth has no label
    rng = torch.Generator().manual_seed(0)
    z = torch.cat([noise(n, 3), y], 1)
    step = cast(
        StepContext,
        SimpleNamespace(
            labels=y, generator_input=z, sharded_rng=ShardedRng(rng, n), source=torch.empty(0)
        ),
    )
    unchanged = make_conditioning("projection", {}).transform_generator_input(step)
    assert unchanged is step.generator_input
    noisy = make_conditioning("projection", {"label_noise": 0.3}).transform_generator_input(step)
    assert torch.equal(noisy[:, :3], z[:, :3])
    has_label = y.sum(1) > 0
    assert torch.equal(noisy[~has_label], z[~has_label])
    changed = (noisy[has_label, 3:] * y[has_label]).sum(1) == 0
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.02)
    new_labels = noisy[has_label, 3:][changed & (y[has_label, 0] == 1)].mean(0)
    assert new_labels.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.04)
    with pytest.raises(UserError, match=r"label_noise' has no effect: .*uses no labels"):
        make_conditioning("infogan", {"label_noise": 0.1})
    with pytest.raises(UserError, match="label_noise"):
        make_conditioning("projection", {"label_noise": 1.0})


def test_few_labels_are_drawn_from_each_class_and_rare_classes_are_repeated(
    data: ImageSet,
) -> None:
    labels = np.repeat([0, 1, -1], [100, 18, 10])
    uneven = replace(data, labels=labels)
    few = uneven.labeled_subset(0.1, seed=1)
    assert few.labels is not None and np.bincount(few.labels).tolist() == [10, 2]
    other = uneven.labeled_subset(0.1, seed=2)
    assert not np.array_equal(few.images, other.images)
    assert uneven.labeled_subset(0.001).labels.tolist() == [0, 1]  # type: ignore[union-attr]
    even = uneven.class_balanced()
    assert even.labels is not None and np.bincount(even.labels).tolist() == [100, 100]
    settings = make_settings({"labels": {"fraction": 0.1, "balance": True}})
    assert build_batches(uneven, settings).num_images == 20
    assert build_batches(uneven, make_settings({})).num_images == 128
    with pytest.raises(UserError, match="has no labels"):
        replace(data, labels=None).class_balanced()


CONVOLUTIONAL_PRESETS = [entry.name for entry in PRESETS if entry.name != "gan"]


def conditional(specs: tuple[Any, Any], method: str) -> tuple[Any, Any]:
    """Return the specs of G and D with inputs for labels of two classes."""
    label_input = {
        "reprogram": {"invertible_map_blocks": 3},
        "finetune": {"label_embedding_dim": 4},
    }
    logits = {"reprogram": "per_class_logits", "finetune": "projection"}[method]
    heads = (("classifier", 2),)
    return (
        replace(specs[0], label_dim=2, **label_input[method]),
        replace(specs[1], label_dim=2, logit_conditioning=logits, linear_heads=heads),
    )


@pytest.mark.parametrize("preset", CONVOLUTIONAL_PRESETS)
def test_finetuning_starts_from_the_images_of_the_pretrained_generator(preset: str) -> None:
    network_settings = make_settings(
        PRESETS[preset].small_settings, TINY, {"preset": preset}
    ).network
    changes: dict[str, Any] = {
        "width": 16,
        "attention_resolution": None,
        "latent_chunk_dim": 4 * bool(network_settings.latent_chunk_dim),
    }
    small = network_settings.model_copy(update={**changes, "style_mixing_prob": 0.0})
    space = SearchSpace(preset, small, 1, (32, 32))
    parent = Gan.create(*space.specs_at(space.max_level), OptimizerSettings(), seed=3)
    parent.ema.eval()
    z = noise(4, small.latent_dim)
    before = [p.clone() for p in parent.ema.parameters()]
    parent_specs = parent.generator.spec, parent.discriminator.spec
    for method in ("reprogram", "finetune"):
        specs = conditional(parent_specs, method)
        child = init_from_pretrained(parent, specs, OptimizerSettings(), seed=4)
        child.ema.eval()
        y = one_hot(torch.tensor([0, 1, -1, 1]), 2)
        with torch.no_grad():
            torch.manual_seed(0)  # for the noise inside the generator
            expected = parent.ema(z)
            generator = child.ema
            if method == "reprogram":
                u = generator.invertible_map.inverse(z, y)
                torch.manual_seed(0)
                images = generator(torch.cat([u, y], 1))
            else:
                torch.manual_seed(0)
                images = generator(torch.cat([z, y], 1))
        scale = float(expected.abs().mean()) + 1e-6
        assert float((images - expected).abs().max()) <= 2e-3 * scale + 1e-4, (preset, method)
        trainable = [name for name, p in child.generator.named_parameters() if p.requires_grad]
        if method == "reprogram":
            assert trainable and all(name.startswith("invertible_map.") for name in trainable)
    assert all(map(torch.equal, before, parent.ema.parameters()))


def test_a_time_budget_is_converted_to_images_at_the_speed_of_the_run(bare: gg.Run) -> None:
    candidates = [event for event in bare.events if event["event"] == "candidate"]
    rate = next(event["images_per_second"] for event in candidates if event["id"] == bare.best_id)
    assert images_within_budget(bare, "2m") == pytest.approx(120 * rate, abs=1)
    assert (
        images_within_budget(bare, "5k images") == 5_000
        and images_within_budget(bare, None) is None
    )


def test_reprogramming_with_few_labels_keeps_the_generator(
    bare: gg.Run, data: ImageSet, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"out": tmp_path / "run", "images": 160}
    run = gg.finetune(bare, data, settings={"labels": {"fraction": 0.25}}, **options)
    first, last = bare.best.load_network(), run.best.load_network()
    assert last.spec.label_dim == 2 and last.spec.invertible_map_blocks == 3
    parameters = dict(last.named_parameters())
    for name, value in first.named_parameters():
        assert torch.equal(value, parameters[name]), name
    embedding = last.invertible_map.label_embedding.weight
    start = initial_generator(run)
    assert not torch.equal(embedding, start.invertible_map.label_embedding.weight)
    assert run.best.sample(4, labels=[1]).shape == (4, 16, 16, 1)
    assert run.best.classes == data.classes
    candidates = [e for e in run.events if e["event"] == "candidate"]
    assert max(e["images"] for e in candidates) == 160
    again = gg.grow(data, out=run.path, images=240, resume=True)
    assert again.best.load_network().spec.invertible_map_blocks == 3
    out = tmp_path / "fine"
    command = ["finetune", str(bare.path), "digits", "--out", str(out), "--images", "80"]
    assert main([*command, "--label-fraction", "150%"]) == 2 and not out.exists()


def initial_generator(run: gg.Run) -> Generator:
    """Return the generator from which a finetuned run started."""
    from growgan.execution.warm_start import conditional_specs, load_pretrained_gan

    parent = load_pretrained_gan(run.path)
    assert parent is not None
    settings = gg.Settings.from_yaml(run.path / "config.yaml")
    network_settings = settings.network.model_copy(
        update={"label_dim": 2, "linear_heads": (("classifier", 2),)}
    )
    specs = conditional_specs(
        run.path / "pretrained",
        network_settings.model_copy(update={"logit_conditioning": "per_class_logits"}),
    )
    return init_from_pretrained(parent, specs, OptimizerSettings(), seed=0).generator


def test_finetuning_trains_all_weights_of_g_and_d(
    bare: gg.Run, data: ImageSet, tmp_path: Path
) -> None:
    run = gg.finetune(bare, data, out=tmp_path / "run", method="finetune", images=160)
    first, last = bare.best.load_network(), run.best.load_network()
    parameters = dict(last.named_parameters())
    unchanged = [
        torch.equal(v, parameters[name])
        for name, v in first.named_parameters()
        if name in parameters
    ]
    assert len(unchanged) > 4 and not any(unchanged)
    d = cast(Discriminator, load_best_gan(run).discriminator)
    assert d.spec.logit_conditioning == "projection" and d.spec.label_dim == 2


def load_best_gan(run: gg.Run) -> Gan:
    from growgan.training.checkpoint import load_gan

    return load_gan(run.path / "candidates" / run.best_id)


def test_invalid_finetuning_is_refused_before_anything_is_written(
    bare: gg.Run, data: ImageSet, make_blob_images: Callable[..., ImageSet], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    other = make_blob_images(64, 3, 16, 16)
    for images, values, message in (
        (other, {}, "images are 16x16 with 1 channel, but those of '.*' are 16x16 with 3 channels"),
        (replace(data, labels=None, classes=()), {}, "needs labels of at least two classes"),
        (data, {"method": "remember"}, "unknown method 'remember'.* finetune, reprogram"),
        (
            data,
            {"settings": {"policy": "dynamic"}},
            "needs a pretrained run and the policy 'fixed'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            gg.finetune(bare, images, out=out, images=80, **values)  # type: ignore[arg-type]
        assert not out.exists()
    with pytest.raises(
        UserError, match=r"network.invertible_map_blocks needs a pretrained generator"
    ):
        gg.grow(data, out=out, images=80, settings={"network": {"invertible_map_blocks": 2}})
    conditional_run = gg.finetune(bare, data, out=tmp_path / "once", images=80)
    with pytest.raises(UserError, match="is conditional already; it has 2 classes"):
        gg.finetune(conditional_run, data, out=out, images=80)


def test_one_gan_per_class_is_trained_and_the_samples_are_combined(tmp_path: Path) -> None:
    """Real processes continue interrupted classes and do not train finished ones again."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name, brightness in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(brightness - 30, brightness + 30, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    out = tmp_path / "ensemble"
    common = ["per-class", "pggan", str(folder), "--out", str(out), "--images", "96"]
    overrides = [
        "--set",
        "batch_size=8",
        "--set",
        "network.latent_dim=8",
        "--set",
        "network.width=8",
    ]
    overrides += ["--set", "score.num_samples=16", "--set", "network.mbstd_group_size=4"]
    assert main([*common, *overrides, "--only-class", "1"]) == 0
    ensemble = PerClassEnsemble(out)
    assert not ensemble.has_started(0) and ensemble.is_finished(1)
    before = (ensemble.run_dir(1) / "ledger.jsonl").read_bytes()
    assert main([*common, *overrides, "--jobs", "2"]) == 0
    assert ensemble.is_finished(0) and (ensemble.run_dir(1) / "ledger.jsonl").read_bytes() == before
    assert ensemble.classes == ("dark", "light")
    start = ensemble.run(0).events[0]
    assert start["data"]["count"] == 24
    images = ensemble.sample(6, seed=3)
    assert images.shape == (6, 16, 16, 1) and ensemble.sample_labels(6).tolist() == [
        0,
        1,
        0,
        1,
        0,
        1,
    ]
    assert np.array_equal(images[1::2], ensemble.run(1).best.sample(3, seed=3))
    assert main(["sample", str(out), "-n", "4", "--out", str(tmp_path / "samples.npz")]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["labels"].tolist() == [0, 1, 0, 1]
    data = gg.load_images(folder)
    results = gg.evaluate(ensemble, data, metrics="intra-fid", features="pixels", num_fake=40)
    assert results["intra-fid"].protocol.num_images == (40, 48)
    command = ["evaluate", str(out), str(folder), "--metrics", "fid", "--features", "pixels"]
    assert main([*command, "-n", "40"]) == 0
    assert (
        main([*common, "--set", "batch_size=4"]) == 2
    )  # the settings differ from those of the ensemble


def test_concurrent_jobs_may_create_the_same_ensemble(tmp_path: Path) -> None:
    manifest = {"classes": ["a", "b"], "command": [str(i) for i in range(1000)]}
    for number in range(20):
        path = tmp_path / str(number) / "ensemble"
        with ThreadPoolExecutor(8) as executor:
            ensembles = list(
                executor.map(lambda _, path=path: create_or_open(path, manifest), range(8))
            )
        assert all(ensemble.manifest == manifest for ensemble in ensembles)
        assert [file.name for file in path.iterdir()] == ["per_class.json"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        create_or_open(tmp_path / "taken", manifest)


def test_a_search_may_score_within_classes(data: ImageSet, tmp_path: Path) -> None:
    score = {"kind": "intra-fd", "num_samples": 64}
    settings = {**TINY, "policy": "fixed", "score": score}
    with pytest.raises(UserError, match="'intra-fd' has no meaning for the conditioning 'none'"):
        gg.grow(data, out=tmp_path / "x", images=80, settings=settings)
    assert not (tmp_path / "x").exists()
    settings["conditioning"] = "projection"
    run = gg.grow(data, out=tmp_path / "run", images=80, settings=settings)
    candidates = [event for event in run.events if event["event"] == "candidate"]
    assert candidates and all(
        set(event["score_components"]) == {"intra-fd"} for event in candidates
    )
