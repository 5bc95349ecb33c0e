"""The gallery of a finished run, for its report: what the best generator has learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growgan.artifacts.run_features import comparison_extractor, real_features
from growgan.data import ImageSet
from growgan.files import replace_file
from growgan.metrics.features.base import FeatureExtractor
from growgan.metrics.functional.frechet_distance import frechet_distance_of_features
from growgan.metrics.functional.nearest_neighbors import nearest_neighbors
from growgan.metrics.functional.prdc import compute_prdc
from growgan.nets.conditioning import one_hot
from growgan.nets.networks import Discriminator
from growgan.report.image_files import save_image_grid
from growgan.run.run import Run
from growgan.run.run_directory import check_run_dir
from growgan.sampling.trained_generator import ImageArray, TrainedGenerator
from growgan.training.checkpoint import load_gan
from growgan.training.gan import Gan, sample_latents
from growgan.training.health import NUM_HEALTH_CHECK_IMAGES

INTERPOLATION_INDICES = (0, 1, 2, 3)  # samples between which the interpolation goes
INTERPOLATION_STEPS = 8  # images from each of these samples to the next
NUM_NEAREST_SAMPLES = 16  # samples shown with their nearest training images
MAX_COMPARED_IMAGES = 2_000  # samples and real images per point of the truncation curve
LATENT_TRUNCATIONS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # standard deviations
STYLE_TRUNCATIONS = (0.25, 0.5, 0.75, 1.0)  # psi
MAX_CLASS_ROWS = 12  # classes or codes on a sheet
SHEET_COLUMNS = 8  # latents per class
LATENTS_PER_CODE = 3  # rows per continuous code
MAX_INTERPOLATED_CLASSES = 4
FRAMES_PER_CLASS_PAIR = 4  # images from each class to the next

TruncationCurve = list[dict[str, float | None]]


def write_gallery(run: Run, data: ImageSet | None = None) -> Path:
    """Write ``RUN/gallery``: sheets of images, and measurements if ``data`` are given.

    Args:
        run: The run.
        data: Its training images, for nearest images, the truncation curve and the class tables.

    Returns:
        The folder.

    Raises:
        UserError: ``data`` are not the training images of the run, or no candidate is finished.
    """
    if data is not None:
        check_run_dir(run.path, data, resume=True)
    folder, generator = run.path / "gallery", run.best
    folder.mkdir(exist_ok=True)
    interpolation = generator.interpolate(INTERPOLATION_INDICES, INTERPOLATION_STEPS)
    # Leave out the last image, so that all rows are full.
    _save_sheet(interpolation[:-1], folder / "interpolation.png", INTERPOLATION_STEPS)
    if generator.classes:
        save_class_sheets(generator, folder)
    num_codes = generator.load_network().spec.num_continuous_codes
    if num_codes:
        rows = [
            generator.traverse_code(code, SHEET_COLUMNS - 1, rows=LATENTS_PER_CODE)
            for code in range(min(num_codes, MAX_CLASS_ROWS))
        ]
        _save_sheet(np.concatenate(rows), folder / "codes.png", SHEET_COLUMNS)
    if data is None:
        return folder

    extractor = comparison_extractor(run, generator, data)
    samples, nearest = nearest_images(generator, data, extractor)
    _save_sheet(np.concatenate([samples, nearest]), folder / "nearest.png", NUM_NEAREST_SAMPLES)
    _write_json(truncation_curve(generator, data, extractor), folder / "truncation.json")
    if generator.classes:
        tables = {
            "frechet_distances": class_frechet_distances(generator, data, extractor),
            "label_sensitivity": label_sensitivity(load_gan(generator.checkpoint_dir), data),
        }
        _write_json(tables, folder / "classes.json")
    return folder


def save_class_sheets(generator: TrainedGenerator, folder: Path) -> None:
    """Save a sheet of samples of each class, and one of interpolations between classes."""
    labels = range(min(MAX_CLASS_ROWS, len(generator.classes)))
    rows = [generator.sample(SHEET_COLUMNS, labels=[label]) for label in labels]
    _save_sheet(np.concatenate(rows), folder / "classes.png", SHEET_COLUMNS)
    interpolated_labels = labels[:MAX_INTERPOLATED_CLASSES]
    images = generator.interpolate_classes(
        interpolated_labels, FRAMES_PER_CLASS_PAIR, rows=SHEET_COLUMNS
    )
    columns = FRAMES_PER_CLASS_PAIR * (len(interpolated_labels) - 1) + 1
    _save_sheet(images, folder / "class_interpolation.png", columns)


def class_frechet_distances(
    generator: TrainedGenerator, data: ImageSet, extractor: FeatureExtractor
) -> dict[str, float]:
    """Return the Fréchet distance of each class by name; lower is better.

    Each class is compared with as many samples as it has images, up to 2,000. Classes with fewer
    than two images are left out.
    """
    assert data.labels is not None
    distances = {}
    for label, name in enumerate(generator.classes):
        rows = np.flatnonzero(data.labels == label)[:MAX_COMPARED_IMAGES]
        if len(rows) > 1:
            samples = generator.sample(len(rows), labels=[label])
            fake = extractor(_to_channels_first(samples))
            real = extractor(torch.from_numpy(np.array(data.images[rows])))
            distances[name] = frechet_distance_of_features(fake, real)
    return distances


@torch.no_grad()
def label_sensitivity(gan: Gan, data: ImageSet) -> dict[str, float]:
    """Return D's mean scores of real and fake images with correct and with wrong labels.

    A discriminator that uses labels gives wrong ones a lower score (Boulahbal et al. 2021,
    2103.15470, table 1). The score is the logit if it depends on the label. Otherwise it is the
    classifier's logit of the label, or the cosine similarity with the embedding of the class.

    Returns:
        Scores by "real, correct label" and so on. Empty if D uses no labels.
    """
    spec = gan.discriminator.spec
    if not spec.label_dim or gan.ema.spec.source_channels or data.labels is None:
        return {}
    labeled_rows = np.random.default_rng(0).permutation(np.flatnonzero(data.labels >= 0))
    rows = np.sort(labeled_rows[:NUM_HEALTH_CHECK_IMAGES])
    labels = torch.from_numpy(data.labels[rows])
    correct, wrong = (
        one_hot((labels + shift) % spec.label_dim, spec.label_dim) for shift in (0, 1)
    )
    real = torch.from_numpy(np.array(data.images[rows])).float() / 127.5 - 1
    latents = sample_latents(len(rows), gan.ema.spec.latent_dim, 0)
    images_by_kind = {"real": real, "fake": gan.ema(torch.cat([latents, correct], 1))}
    gan.discriminator.eval()
    return {
        f"{kind}, {name} label": float(_label_scores(gan.discriminator, images, y).mean())
        for kind, images in images_by_kind.items()
        for name, y in (("correct", correct), ("wrong", wrong))
    }


def _label_scores(discriminator: Discriminator, images: Tensor, y: Tensor) -> Tensor:
    """Return D's scores of images with labels ``y`` (one-hot), float [N]."""
    if discriminator.spec.logit_conditioning not in ("none", "class_scores"):
        return cast(Tensor, discriminator(images, y))
    features = discriminator.features(images)
    if discriminator.spec.class_embedding_dim:
        scores = F.cosine_similarity(
            discriminator.linear_heads["embedding"](features)[:, None],
            discriminator.class_embeddings,
            dim=2,
        )
    else:
        scores = discriminator.linear_heads["classifier"](features)
    return (scores[:, : y.shape[1]] * y).sum(1)


def nearest_images(
    generator: TrainedGenerator,
    data: ImageSet,
    extractor: FeatureExtractor,
    *,
    count: int = NUM_NEAREST_SAMPLES,
    seed: int = 0,
    truncation: float | None = None,
    labels: Sequence[int] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return samples and the training image nearest to each, both uint8 [N, H, W, C].

    The distance is that of features. The other arguments are those of ``generator.sample``.
    """
    samples = generator.sample(count, seed=seed, truncation=truncation, labels=labels)
    indices, _ = nearest_neighbors(
        extractor(_to_channels_first(samples)), real_features(data, extractor)
    )
    return samples, np.array(data.images[indices.numpy()]).transpose(0, 2, 3, 1)


def truncation_curve(
    generator: TrainedGenerator, data: ImageSet, extractor: FeatureExtractor, seed: int = 0
) -> TruncationCurve:
    """Return precision and recall (k = 3) at increasing truncation values.

    The curve shows fidelity against diversity (Brock et al. 2019, figure 16). Without a mapping
    network its last point, with ``truncation`` None, has no truncation.
    """
    rows = np.random.default_rng(0).permutation(len(data))[:MAX_COMPARED_IMAGES]
    real = extractor(torch.from_numpy(np.array(data.images[np.sort(rows)])))
    truncations: tuple[float | None, ...] = (*LATENT_TRUNCATIONS, None)
    if generator.load_network().spec.mapping_layers:
        truncations = STYLE_TRUNCATIONS
    curve: TruncationCurve = []
    for truncation in truncations:
        samples = generator.sample(len(real), seed=seed, truncation=truncation)
        prdc = compute_prdc(extractor(_to_channels_first(samples)), real)
        curve.append({"truncation": truncation, "precision": prdc.precision, "recall": prdc.recall})
    return curve


def _save_sheet(images: ImageArray, path: Path, columns: int) -> None:
    """Save uint8 [N, H, W, C] as a grid."""
    save_image_grid(images.transpose(0, 3, 1, 2), path, columns)


def _write_json(value: object, path: Path) -> None:
    replace_file(path, json.dumps(value, indent=1).encode())


def _to_channels_first(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 [N, H, W, C] as a tensor [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
