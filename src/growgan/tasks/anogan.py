"""Anomaly detection (AnoGAN: Schlegl et al. 2017, 1703.05921).

G is trained on normal images. The anomaly score of a new image is its distance from the nearest
image that G can generate. The latent of that image is found by gradient descent (AnoGAN), or by an
encoder trained for it (f-AnoGAN: Schlegl et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.errors import UserError
from growgan.files import hash_json
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.run.run import Run
from growgan.tasks.base import TASKS, TEST_FRACTION, Task
from growgan.tasks.evaluation import random_subset, require_labels, save_task_sheet, split_indices
from growgan.training.checkpoint import load_gan
from growgan.training.runtime import make_runtime

MAX_TEST_IMAGES_PER_SIDE = 200  # anomalous images, and as many normal ones
NUM_SHEET_IMAGES = 12
FEATURE_LOSS_WEIGHT = 0.1  # lambda, weight of D's features in the search (AnoGAN, equation 5)
ENCODER_FEATURE_WEIGHT = 1.0  # kappa, weight of D's features (f-AnoGAN, section 3.2)
LATENT_SEARCH_STEPS = 200
LATENT_SEARCH_LR = 0.05
ENCODER_STEPS = 1_500
ENCODER_LR = 1e-3
ENCODER_BATCH_SIZE = 64
ENCODER_HEAD = "latent"  # name of the encoder's output head
NUM_PCA_COMPONENTS = 32  # of the baseline
MAX_PCA_IMAGES = 5_000  # normal images to fit the baseline

FloatImages = Float[Tensor, "n c h w"]
AnomalyScores = Float[Tensor, " n"]


@dataclass(frozen=True)
class Reconstructions:
    """The generated images nearest to a batch of images, float [N, C, H, W] in [-1, 1], by method.

    Attributes:
        search: By gradient descent in the latent space.
        encoder: By an encoder.
        pca: By projection on principal components, the baseline.
    """

    search: FloatImages
    encoder: FloatImages
    pca: FloatImages


@dataclass(frozen=True)
class AnomalyDetectionTask(Task):
    """``anogan:K``: class K, given by name or index, is anomalous and all others are normal."""

    needs_only_labels: ClassVar[bool] = True
    sheet_caption: ClassVar[str] = (
        "Left half: anomalous images. Right half: normal images. Rows: test images, and their"
        " reconstructions by latent search, by the encoder, and by principal components."
    )

    def split(self, data: ImageSet, variant: str = "") -> tuple[ImageSet, ImageSet]:
        """Hold out all anomalous images and a random part of the normal ones; drop unlabeled ones.

        Raises:
            UserError: There are no labels, no such class, or too few images on either side.
        """
        label = anomalous_class(data, variant)
        assert data.labels is not None
        anomalous_rows = np.flatnonzero(data.labels == label)
        normal_rows = np.flatnonzero((data.labels != label) & (data.labels >= 0))
        if not len(anomalous_rows) or not round(TEST_FRACTION * len(normal_rows)):
            raise UserError(
                f"task 'anogan:{variant}' needs at least 1 anomalous and {round(1 / TEST_FRACTION)}"
                f" normal images, but '{data.name}' has {len(anomalous_rows):,} and"
                f" {len(normal_rows):,}"
            )
        train_indices, test_indices = split_indices(len(normal_rows), TEST_FRACTION)
        test_rows = np.concatenate([anomalous_rows, normal_rows[test_indices]])
        return data.subset(normal_rows[train_indices]), data.subset(np.sort(test_rows))

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return the normal images without labels."""
        label = anomalous_class(train_split, variant)
        fingerprint = hash_json(train_split.fingerprint, f"anogan:{label}")
        return replace(train_split, labels=None, classes=(), fingerprint=fingerprint)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return the area under the ROC curve (AUROC) of each reconstruction method and score.

        Each method is scored as in its paper, and by the squared error of the pixels only.
        """
        label = anomalous_class(test_set, variant)
        assert test_set.labels is not None
        is_anomalous = test_set.labels == label
        anomalous_set, normal_set = (
            random_subset(test_set.subset(np.flatnonzero(is_side)), MAX_TEST_IMAGES_PER_SIDE)
            for is_side in (is_anomalous, ~is_anomalous)
        )
        gan, runtime = load_gan(run.best.checkpoint_dir), make_runtime("cpu", "float32")
        generator, discriminator = gan.ema.eval(), gan.discriminator.eval()

        def to_network_input(pixels: Tensor) -> Tensor:
            return gan.downsample_images(runtime.to_float_images(pixels))

        pixels = np.concatenate([anomalous_set.images, normal_set.images])
        images = to_network_input(torch.from_numpy(pixels))
        pca_pixels = torch.from_numpy(np.array(random_subset(train_set, MAX_PCA_IMAGES).images))
        reconstructions = Reconstructions(
            search=reconstruct_by_search(generator, discriminator, images),
            encoder=reconstruct_by_encoder(
                generator,
                discriminator,
                images,
                to_network_input=to_network_input,
                normal_set=train_set,
            ),
            pca=reconstruct_by_pca(images, to_network_input(pca_pixels)),
        )
        num_anomalous = len(anomalous_set)
        metrics = {
            f"auroc, {name}": auroc(scores[:num_anomalous], scores[num_anomalous:])
            for name, scores in anomaly_scores(reconstructions, images, discriminator).items()
        }
        half = min(NUM_SHEET_IMAGES // 2, len(anomalous_set), len(normal_set))
        columns = [*range(half), *range(num_anomalous, num_anomalous + half)]
        rows = [images, reconstructions.search, reconstructions.encoder, reconstructions.pca]
        save_task_sheet(
            run, [(row[columns] * 127.5 + 128).clamp(0, 255).byte().numpy() for row in rows]
        )
        return metrics


def anomalous_class(data: ImageSet, variant: str) -> int:
    """Return the index of a class, given by name or index.

    Raises:
        UserError: There is no such class.
    """
    require_labels("anogan", data)
    if variant in data.classes:
        return data.classes.index(variant)
    if variant.isdecimal() and int(variant) < len(data.classes):
        return int(variant)
    raise UserError(
        f"task 'anogan' needs the anomalous class, as in anogan:0, but got '{variant}'; it must be"
        f" an index or one of: {', '.join(data.classes)}"
    )


def anomaly_scores(
    reconstructions: Reconstructions, images: FloatImages, discriminator: Discriminator
) -> dict[str, NDArray[np.float32]]:
    """Return the anomaly scores of images, float [N], by method and score."""
    search, encoder, pca = reconstructions.search, reconstructions.encoder, reconstructions.pca
    with torch.no_grad():
        scores = {
            "latent search": anogan_score(search, images, discriminator),
            "encoder": f_anogan_score(encoder, images, discriminator),
            "pca with D features": f_anogan_score(pca, images, discriminator),
            "latent search, pixels only": f_anogan_score(search, images, None),
            "encoder, pixels only": f_anogan_score(encoder, images, None),
            "pca, pixels only": f_anogan_score(pca, images, None),
        }
    return {name: score.numpy() for name, score in scores.items()}


def anogan_score(
    reconstructed: FloatImages, images: FloatImages, discriminator: Discriminator
) -> AnomalyScores:
    """Return (1 - λ) Σ |x' - x| + λ Σ |f(x') - f(x)|, where f are D's features (AnoGAN, eq. 5)."""
    pixel_loss = (reconstructed - images).abs().sum((1, 2, 3))
    feature_difference = discriminator.features(reconstructed) - discriminator.features(images)
    feature_loss = feature_difference.abs().sum(1)
    return (1 - FEATURE_LOSS_WEIGHT) * pixel_loss + FEATURE_LOSS_WEIGHT * feature_loss


def f_anogan_score(
    reconstructed: FloatImages, images: FloatImages, discriminator: Discriminator | None
) -> AnomalyScores:
    """Return E (x' - x)² + κ E (f(x') - f(x))², where f are D's features (f-AnoGAN, "izi_f").

    Without D, return only the first term.
    """
    pixel_loss = (reconstructed - images).square().mean((1, 2, 3))
    if discriminator is None:
        return pixel_loss
    feature_difference = discriminator.features(reconstructed) - discriminator.features(images)
    return pixel_loss + ENCODER_FEATURE_WEIGHT * feature_difference.square().mean(1)


def reconstruct_by_search(
    generator: Generator, discriminator: Discriminator, images: FloatImages
) -> FloatImages:
    """Return the images nearest to ``images`` that gradient descent on the latents finds.

    All searches start from the same random latent, so the score of an image does not depend on the
    other images.
    """
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(1, generator.spec.latent_dim, generator=rng)
    z = start.repeat(len(images), 1).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=LATENT_SEARCH_LR)
    for _ in range(LATENT_SEARCH_STEPS):
        optimizer.zero_grad()
        anogan_score(generator(z), images, discriminator).sum().backward(inputs=[z])
        optimizer.step()
    with torch.no_grad():
        return generator(z)


def reconstruct_by_encoder(
    generator: Generator,
    discriminator: Discriminator,
    images: FloatImages,
    to_network_input: Callable[[Tensor], Tensor],
    normal_set: ImageSet,
) -> FloatImages:
    """Return the images that G generates from the latents of an encoder ("izi_f").

    The encoder has D's architecture. It is trained on normal images to minimize the f-AnoGAN score
    of its reconstructions.
    """
    spec = replace(
        discriminator.spec,
        linear_heads=((ENCODER_HEAD, generator.spec.latent_dim),),
        label_dim=0,
        logit_conditioning="none",
        class_embedding_dim=0,
        mbstd_group_size=0,
        minibatch_discrimination_kernels=0,
    )
    encoder = build_network(spec, 0)
    assert isinstance(encoder, Discriminator)
    batches = Batches(normal_set, min(ENCODER_BATCH_SIZE, len(normal_set)), 0)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=ENCODER_LR)
    for k in range(ENCODER_STEPS):
        normal_images = to_network_input(batches.batch_at(k * batches.batch_size)[0])
        z: Any = encoder.linear_heads[ENCODER_HEAD](encoder.features(normal_images))
        optimizer.zero_grad()
        loss = f_anogan_score(generator(z), normal_images, discriminator).mean()
        loss.backward(inputs=list(encoder.parameters()))
        optimizer.step()
    encoder.eval()
    with torch.no_grad():
        return generator(encoder.linear_heads[ENCODER_HEAD](encoder.features(images)))


def reconstruct_by_pca(images: FloatImages, normal_images: FloatImages) -> FloatImages:
    """Return the projection of ``images`` on the principal components of normal images."""
    rows = normal_images.flatten(1)
    mean = rows.mean(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(rows, q=min(NUM_PCA_COMPONENTS, *rows.shape), niter=4)
    return (mean + (images.flatten(1) - mean) @ axes @ axes.T).view_as(images)


def auroc(anomalous_scores: NDArray[Any], normal_scores: NDArray[Any]) -> float:
    """Return the probability that an anomalous score exceeds a normal one; ties count half."""
    is_above = anomalous_scores[:, None] > normal_scores
    is_tie = anomalous_scores[:, None] == normal_scores
    return float((is_above + is_tie / 2).mean())


# With minibatch standard deviation, the score of an image would depend on the rest of its batch.
ANOGAN_SMALL: dict[str, Any] = {"network": {"mbstd_group_size": 0}}

TASKS.register("anogan", "Detect anomalies.", "Schlegl et al. 2017, 1703.05921")(
    AnomalyDetectionTask(
        published_overrides={"preset": "dcgan", "policy": "fixed"},
        small_overrides=ANOGAN_SMALL,
        example_variants=("0",),
    )
)
