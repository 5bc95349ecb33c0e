"""Training and evaluation of tasks: fair baselines, scores independent of the batch, reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.metrics.features import own_network
from growgan.metrics.image_resize import downscale_image_set
from growgan.nets.conditioning import one_hot
from growgan.nets.growth_ops import Append, Widen, apply_edit
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.presets import PRESETS
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, LayerSpec
from growgan.objectives import make_objective
from growgan.objectives.regularizer import make_regularizer
from growgan.objectives.step_context import StepContext
from growgan.report.page import write_report
from growgan.tasks import TASKS, anogan, base, evaluation, prepare_task_data, train_task
from growgan.tasks.data_augmentation import balanced_training_sets
from growgan.tasks.text2image import caption_accuracy
from growgan.training.distributed import DistributedContext
from growgan.training.gan import Gan
from growgan.training.loop import set_learning_rates
from growgan.training.optimizers import learning_rates

SMALL = {
    "batch_size": 8,
    "network": {"width": 8, "latent_dim": 4},
    "score": {"num_samples": 32},
    "threads": 1,
}


def build_discriminator(**spec_fields: Any) -> Discriminator:
    layers = (
        LayerSpec("x0", "strided", width=8, kernel_size=3, resample_factor=2),
        LayerSpec("x1", "strided", width=8, kernel_size=3, resample_factor=2),
    )
    network = build_network(
        DiscriminatorSpec(
            base_grid=(4, 4), image_channels=1, stem_width=12, layers=layers, **spec_fields
        ),
        0,
    )
    assert isinstance(network, Discriminator)
    return network


def build_generator(**spec_fields: Any) -> Generator:
    layers = (
        LayerSpec("x0", "strided", width=8, kernel_size=3, resample_factor=2),
        LayerSpec("x1", "strided", width=8, kernel_size=3, resample_factor=2),
    )
    spec = GeneratorSpec(
        base_grid=(4, 4),
        image_channels=1,
        stem_width=12,
        layers=layers,
        latent_dim=4,
        **spec_fields,
    )
    network = build_network(spec, 1)
    assert isinstance(network, Generator)
    return network


def make_step(fake: Tensor, labels: Tensor | None = None) -> StepContext:
    """Return a step whose real images equal the fakes and whose networks are not used."""
    rng, logits = torch.Generator().manual_seed(0), torch.zeros(len(fake))
    y = torch.empty(len(fake), 0) if labels is None else labels
    z = torch.zeros(len(fake), 4)
    return StepContext(
        generator=build_generator(),
        discriminator=build_discriminator(),
        real=fake,
        fake=fake,
        generator_input=z,
        rng=rng,
        real_logits=logits,
        fake_logits=logits,
        labels=y,
    )


def test_balanced_training_sets_take_equally_many_steps() -> None:
    rng = np.random.default_rng(0)
    for num_real, num_generated in ((20, 400), (900, 400)):
        real, generated = (
            (rng.integers(0, 255, (n, 1, 8, 8), dtype=np.uint8), np.arange(n) % 2)
            for n in (num_real, num_generated)
        )
        training_sets = balanced_training_sets(real, generated)
        sizes = {len(images) for images, _ in training_sets.values()}
        assert sizes == {2 * max(num_real, num_generated)}
        assert len({own_network._num_train_steps(size, 460) for size in sizes}) == 1
        for name, (original_images, original_labels) in (("real", real), ("generated", generated)):
            label_of = {
                image.tobytes(): label
                for image, label in zip(original_images, original_labels, strict=True)
            }
            images, labels = training_sets[name]
            assert {image.tobytes() for image in images} == set(label_of)
            pairs = zip(images, labels, strict=True)
            assert all(label_of[image.tobytes()] == label for image, label in pairs)
        images, _ = training_sets["real and generated"]
        originals = {image.tobytes() for part in (real, generated) for image in part[0]}
        assert {image.tobytes() for image in images} == originals


@pytest.mark.parametrize(
    "overrides",
    [{}, {"lr_cooldown": 0.0}, {"optimizer": {"discriminator_lr": 3e-3, "lr_decay_images": 1_000}}],
)
def test_the_supervised_baseline_has_the_learning_rates_of_d(overrides: dict[str, object]) -> None:
    settings = make_settings(TASKS["semi"].small_overrides, overrides)
    gan = Gan(build_generator(), build_discriminator(), settings.optimizer)
    for progress, images in ((0.0, 0), (0.5, 20_000), (0.9, 300_000), (0.99, 1_000_000)):
        gan.images_seen = images
        set_learning_rates(gan, settings, progress)
        expected = gan.discriminator_optimizer.param_groups[0]["lr"]
        assert learning_rates(settings, progress, images)[1] == pytest.approx(expected)
    first, last = (learning_rates(settings, progress, 0)[1] for progress in (0.0, 1.0))
    assert last == (first if overrides.get("lr_cooldown") == 0 else 0)


def test_scores_do_not_depend_on_the_batch() -> None:
    """With the tasks' own settings, no layer uses batch statistics in evaluation mode."""
    for name in ("anogan", "semi"):
        settings = make_settings(
            TASKS[name].small_overrides, {"network": {"width": 8, "latent_dim": 4}}
        )
        networks = [
            build_network(PRESETS["pggan"].network_spec(role, settings.network, 1, (16, 16)), 0)
            for role in ("generator", "discriminator")
        ]
        g, d = (network.eval() for network in networks)
        assert isinstance(g, Generator) and isinstance(d, Discriminator)
        x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        order = torch.tensor([3, 1, 7, 0, 2])
        torch.testing.assert_close(d(x)[order], d(x[order]))
        if name == "anogan":
            _check_anogan_scores(g, d, x, order)


def _check_anogan_scores(g: Generator, d: Discriminator, x: Tensor, order: Tensor) -> None:
    def score(images: Tensor) -> Tensor:
        return anogan.anogan_score(anogan.reconstruct_by_search(g, d, images), images, d).detach()

    torch.testing.assert_close(score(x)[order], score(x[order]), rtol=2e-3, atol=1e-2)


def test_encoder_reconstructions_do_not_depend_on_the_batch(
    two_class_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds for batch norm, as in the published settings."""
    monkeypatch.setattr(anogan, "ENCODER_STEPS", 3)
    settings = make_settings(
        PRESETS["dcgan"].small_settings, {"network": {"width": 8, "latent_dim": 4}}
    )
    g, d = (
        build_network(PRESETS["dcgan"].network_spec(role, settings.network, 1, (16, 16)), 0).eval()
        for role in ("generator", "discriminator")
    )
    assert isinstance(g, Generator) and isinstance(d, Discriminator)

    def to_network_input(pixels: Tensor) -> Tensor:
        large = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return large.float() / 127.5 - 1

    x = to_network_input(torch.from_numpy(two_class_images.images[:6]))
    reconstructed, part = (
        anogan.reconstruct_by_encoder(
            g, d, images, to_network_input=to_network_input, normal_set=two_class_images
        )
        for images in (x, x[2:4])
    )
    torch.testing.assert_close(reconstructed[2:4], part, rtol=1e-3, atol=1e-3)


def test_anomaly_scores_by_hand() -> None:
    d = build_discriminator()
    reconstructed, images = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    images[1] = 0.5
    difference = (d.features(reconstructed) - d.features(images))[1].detach()
    scores = anogan.anogan_score(reconstructed, images, d).detach()
    assert scores[0] == 0
    expected = 0.9 * 128 + 0.1 * float(difference.abs().sum())
    assert float(scores[1]) == pytest.approx(expected, rel=1e-5)
    assert anogan.f_anogan_score(reconstructed, images, None).tolist() == [0, 0.25]
    score = float(anogan.f_anogan_score(reconstructed, images, d).detach()[1])
    assert score == pytest.approx(0.25 + float(difference.square().mean()), rel=1e-5)


def test_anogan_holds_out_all_anomalous_and_no_unlabeled_images(
    two_class_images: ImageSet,
) -> None:
    assert two_class_images.labels is not None
    labels = two_class_images.labels.copy()
    labels[:50] = -1
    data = replace(two_class_images, labels=labels)
    train_split, test_set = TASKS["anogan"].split(data, "below")
    anomalous = data.classes.index("below")
    num_normal = (labels == 1 - anomalous).sum()
    assert train_split.labels is not None and test_set.labels is not None
    assert set(train_split.labels) == {1 - anomalous}
    assert (test_set.labels == anomalous).sum() == (labels == anomalous).sum()
    num_normal_test = (test_set.labels != anomalous).sum()
    assert num_normal_test == round(0.1 * num_normal) and (test_set.labels >= 0).all()
    assert len(train_split) + num_normal_test == num_normal
    with pytest.raises(UserError, match="needs at least 1 anomalous and 10 normal images"):
        TASKS["anogan"].split(data.subset(np.flatnonzero(labels == anomalous)), "below")


def test_a_random_subset_has_all_classes_of_sorted_rows(two_class_images: ImageSet) -> None:
    assert two_class_images.labels is not None
    data = replace(two_class_images, labels=np.sort(two_class_images.labels))
    subset = evaluation.random_subset(data, 40)
    assert len(subset) == 40 and 8 < (subset.labels == 0).sum() < 32
    assert len(evaluation.random_subset(data, 10**6)) == len(data)


def test_image_similarity_of_many_images_is_the_mean_over_images() -> None:
    rng = torch.Generator().manual_seed(0)
    generated, target = torch.randint(0, 256, (2, 150, 1, 16, 16), generator=rng, dtype=torch.uint8)
    by_image = [
        evaluation.image_similarity(generated[k : k + 1], target[k : k + 1]) for k in range(150)
    ]
    for name, value in evaluation.image_similarity(generated, target).items():
        expected = np.mean([similarity[name] for similarity in by_image])
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("logit_conditioning", ["per_class_logits", "projection"])
def test_each_patch_logit_depends_on_its_patch_and_its_own_label(logit_conditioning: str) -> None:
    d = build_discriminator(
        patch_discriminator=True,
        label_dim=3,
        logit_conditioning=logit_conditioning,
        linear_heads=(("classifier", 3),),
    )
    assert d.linear_heads["classifier"].weight.shape == (3, 12)  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(0)
    for weight in d.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=rng)
    x = torch.rand(16, 1, 16, 16, generator=rng)  # as many images as patches
    y = one_hot(torch.arange(16) % 3, 3)
    logits = d(x, y)
    assert logits.shape == (16, 16)
    changed = x.clone()
    changed[:, :, 15, 15] += 1
    change = (d(changed, y) - logits).abs().view(16, 4, 4)
    assert change[:, 3, 3].min() > 1e-6 and change[:, 0, 0].max() < 1e-6
    for row in (0, 7):  # each image uses its own label
        torch.testing.assert_close(d(x[row : row + 1], y[row : row + 1])[0], logits[row])
    for edit in (
        Widen(),
        Append((LayerSpec("x", "strided", width=8, kernel_size=3, resample_factor=2),)),
    ):
        child = apply_edit(d, edit, 3)
        assert isinstance(child, Discriminator)
        upsampled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        child_input = x if isinstance(edit, Widen) else upsampled
        torch.testing.assert_close(child(child_input, y), logits, rtol=1e-3, atol=1e-4)


def test_replay_returns_old_fakes_of_the_same_label_and_replaces_them() -> None:
    replay = make_regularizer("replay", {"buffer_size": 50, "replay_fraction": 0.5})
    labels = one_hot(torch.arange(16) % 2, 2)
    state: dict[str, Tensor] = {}
    for index in range(12):
        fake = torch.full((16, 1, 16, 16), float(index))
        fake += 1000 * labels[:, 1].view(-1, 1, 1, 1)
        step = replace(make_step(fake, labels), objective_state=state, index=index)
        step.rng.manual_seed(index)
        before = state.get("replay.fakes", fake[:0])[:, 0, 0, 0].tolist()
        values = replay.transform_batch(step)[1][:, 0, 0, 0]
        assert ((values >= 1000) == (labels[:, 1] > 0)).all()
        old = [value for value in values.tolist() if value % 1000 != index]
        after = state["replay.fakes"][:, 0, 0, 0].tolist()
        assert len(old) == (8 if index else 0) and set(old) <= set(before)
        if len(before) == 50:  # the buffer is full: new fakes replace exactly the old ones used
            num_new = sum(value % 1000 == index for value in after)
            assert len(after) == 50 and num_new == 8
            assert sorted(before) == sorted(old + [v for v in after if v % 1000 != index])


def test_a_single_pair_has_no_mismatch_term() -> None:
    settings = make_settings(
        TASKS["pix2pix"].small_overrides,
        {"conditioning_options": {"mismatch_weight": 1.0}, "loss": "hinge"},
    )
    d = build_discriminator(source_channels=1)
    x, source = torch.rand(2, 1, 16, 16), torch.rand(2, 256)
    for rows in (1, 2):
        logits = d(x[:rows], source[:rows])
        step = replace(make_step(x[:rows]), discriminator=d, source=source[:rows])
        step.real_logits = step.fake_logits = logits
        term = make_objective(settings).discriminator_terms(step)["mismatch"]
        assert (float(term.detach()) == 0) == (rows == 1)


def test_feature_matching_can_replace_the_adversarial_loss_of_g() -> None:
    x = torch.rand(4, 1, 16, 16)
    for replace_loss in (0, 1):
        feature_matching = make_regularizer("feature-matching", {"replace_loss": replace_loss})
        logits = torch.randn(4, requires_grad=True)
        selected = feature_matching.select_logits(make_step(x), logits)
        assert torch.equal(selected, logits)
        selected.sum().backward()
        assert logits.grad is not None and (float(logits.grad.abs().sum()) == 0) == (
            replace_loss == 1
        )
    for overrides in (TASKS["semi"].small_overrides, TASKS["semi"].published_overrides):
        assert overrides["regularizers"]["feature-matching"] == {"replace_loss": 1}


@pytest.mark.parametrize(("task", "preset"), [("anogan", "dcgan"), ("augment", "biggan")])
def test_a_task_with_a_preset_uses_its_published_settings(task: str, preset: str) -> None:
    for side in (32, 128):
        settings = make_settings(TASKS[task].published_settings(side))
        expected = make_settings({"preset": preset}, PRESETS[preset].settings_for_side(side))
        for name in (
            "preset", "loss", "regularizers", "batch_size", "optimizer", "network", "lr_cooldown"
        ):  # fmt: skip
            assert getattr(settings, name) == getattr(expected, name)
        assert settings.policy == "fixed"


@pytest.mark.slow
def test_a_task_with_a_preset_runs_with_published_settings(
    two_class_images: ImageSet, tmp_path: Path
) -> None:
    network = {"width": 8, "discriminator_width": 8, "latent_dim": 8}
    images = two_class_images.images.repeat(2, 2).repeat(2, 3)
    data = replace(two_class_images, images=images, fingerprint="large")
    for task, extra in (("anogan:below", {}), ("augment:10", {"latent_chunk_dim": 4})):
        run = train_task(
            task,
            data,
            images=32,
            out=tmp_path / task.replace(":", "-"),
            settings={**SMALL, "network": {**network, **extra}},
            use_published_settings=True,
        )
        metrics = json.loads((run.path / "gallery" / "task.json").read_text())
        assert all(0 <= value <= 1 for value in metrics.values())


def test_cyclegan_reports_the_recognition_accuracy_of_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 60, (160, 1, 8, 8), dtype=np.uint8), np.arange(160) % 2
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    dark = ImageSet("dark", images, labels=labels, classes=("above", "below"), fingerprint="dark")
    light = replace(dark, name="light", images=255 - images, fingerprint="light")
    data = prepare_task_data("cyclegan:aligned", dark, light)
    settings = {**SMALL, "policy": "fixed"}
    run = train_task("cyclegan:aligned", data, out=tmp_path / "r", images=64, settings=settings)
    metrics = json.loads((run.path / "gallery" / "task.json").read_text())
    for direction in ("dark to light", "light to dark"):
        assert metrics[f"{direction}, accuracy, target"] > 0.9
        # A classifier of the other domain mistakes the dark half for the light one.
        assert metrics[f"{direction}, accuracy, source"] < 0.3
        assert 0 <= metrics[f"{direction}, accuracy, generated"] <= 1
    page = (run.path / "report.html").read_text()
    assert "translated to the second domain" in page and "light to dark, accuracy" in page
    # By default, samples use the source images and labels saved with the run.
    saved_labels = run.best.sample_labels(6)
    cycled_labels = run.best.sample_labels(6, source_images=images[:3].transpose(0, 2, 3, 1))
    with np.load(run.path / "source_images.npz") as saved:
        assert saved_labels is not None
        assert saved_labels.tolist() == np.resize(saved["labels"], 6).tolist()
    assert cycled_labels is not None
    assert cycled_labels.tolist() == [0, 1, 0, 1, 0, 1] != saved_labels.tolist()
    assert np.array_equal(run.best.sample(6), run.best.sample(6, labels=saved_labels.tolist()))


def test_a_run_that_ends_early_is_evaluated_at_its_own_resolution(
    two_class_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = two_class_images.images.repeat(2, 2).repeat(2, 3)
    data = replace(two_class_images, images=images, fingerprint="large")
    resolutions: list[tuple[int, int]] = []
    grow: Callable[..., object] = base.grow

    def grow_small(train_set: ImageSet, **kwargs: object) -> object:
        return grow(downscale_image_set(train_set, (8, 8)), **kwargs)

    monkeypatch.setattr(base, "grow", grow_small)
    for task in ("pix2pix:mask", "semi:20", "augment:10"):
        run = train_task(
            task,
            prepare_task_data(task, data),
            out=tmp_path / task.replace(":", "-"),
            images=32,
            settings={**SMALL, "policy": "fixed"},
        )
        resolutions.append(run.best.load_network().spec.resolution)
        metrics = json.loads((run.path / "gallery" / "task.json").read_text())
        assert metrics and all(np.isfinite(value) for value in metrics.values())
        assert "ended at 8x8 pixels" in (run.path / "gallery" / "task.txt").read_text()
    assert resolutions == [(8, 8)] * 3


def test_only_the_main_process_evaluates(
    two_class_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EmptyRun:
        path = tmp_path

    monkeypatch.setattr(base, "grow", lambda *args, **kwargs: EmptyRun())
    monkeypatch.setattr(base, "init_distributed", lambda: DistributedContext(1, 2))
    train_task("semi:20", two_class_images, out=tmp_path, settings=SMALL)
    assert not list(tmp_path.iterdir())


def test_the_report_shows_the_metrics_of_a_task(two_class_images: ImageSet, tmp_path: Path) -> None:
    run = train_task("semi:20", two_class_images, out=tmp_path / "run", images=32, settings=SMALL)
    (run.path / "gallery" / "task.json").write_text('{"<b>accuracy": 0.123}')
    assert "&lt;b&gt;accuracy" in write_report(run.path).read_text()
    for broken in ("[1, 2]", '{"a": "b"}', "{"):
        (run.path / "gallery" / "task.json").write_text(broken)
        assert "The task, on new images" not in write_report(run.path).read_text()


@pytest.mark.slow
def test_new_captions_are_evaluated_by_their_words() -> None:
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in ("red", "blue", "green") for b in ("sand", "snow", "sea")]
    captions, labels = tuple(f"a {a} over {b}" for a, b in pairs), np.arange(900) % 9
    images = rng.integers(0, 40, (900, 3, 8, 8), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, label // 3, :4] += 180
        images[row, label % 3, 4:] += 180
    data = ImageSet("x", images, labels=labels, classes=captions, fingerprint="x")
    is_test = labels % 4 == 0  # red over sand, blue over snow, green over sea
    train_set, test_set = (data.subset(np.flatnonzero(part)) for part in (~is_test, is_test))
    rolled = np.roll(test_set.images, 1, 1)  # the next color and the next background
    metrics = caption_accuracy(train_set, test_set, {"": test_set.images, "rolled ": rolled})
    assert set(metrics) == {"words", "rolled words"}
    assert metrics["words"] > 0.8 and metrics["rolled words"] < 0.5
    # With a single test caption, no word separates the images.
    single = data.subset(np.flatnonzero(labels == 0))
    assert caption_accuracy(train_set, single, {"": single.images}) == {}
