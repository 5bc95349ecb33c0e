"""Anomalies (AnoGAN: Schlegl et al. 2017, 1703.05921): what a generator of the usual cannot draw.

For a new image the latent is sought whose image is nearest to it, step by step, or by an encoder
that has learnt to find it (f-AnoGAN: Schlegl et al. 2019). What remains is the score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.nets.players import Discriminator, Generator, build
from growgan.tasks.base import TASKS, TEST, Task, draw, labels_of, some
from growgan.training.checkpoint import load_gan
from growgan.training.runtime import make_runtime

MEASURED = 200  # images of the left-out class, and as many of the others, at most
SHOWN = 12
FEATURES = 0.1  # λ: weight of D's features in the search (1703.05921, equation 5)
KAPPA = 1.0  # κ: of the encoder (f-AnoGAN, section 3.2)
STEPS, RATE = 200, 0.05  # of the search for a latent
ENCODER_STEPS, ENCODER_RATE, ENCODER_BATCH = 1_500, 1e-3, 64
COMPONENTS, USUAL = 32, 5_000  # of the baseline, and from how many usual images

Rows = Float[Tensor, "n c h w"]
Scores = Float[Tensor, " n"]


class Anomalies(Task):
    """``anogan:K``: all classes but K, by number or name, are usual."""

    quick = True
    sheet: ClassVar[str] = (
        "Left half: unusual images, right half: usual ones. Rows: new images, and what comes"
        " nearest to them by search, by an encoder, and by principal components."
    )

    def split(self, data: ImageSet, kind: str = "") -> tuple[ImageSet, ImageSet]:
        """Return most usual images, and the others with all unusual ones; without a label none.

        Raises:
            UserError: there are no labels, no such class, or not enough images of either kind.
        """
        label = left_out(data, kind)
        assert data.labels is not None
        odd = np.flatnonzero(data.labels == label)
        usual = np.flatnonzero((data.labels != label) & (data.labels >= 0))
        held = round(TEST * len(usual))
        if not len(odd) or not held:
            raise UserError(
                f"task 'anogan' compares unusual images with a tenth of the usual ones, and "
                f"'{data.name}' has {len(odd):,} and {len(usual):,} of them"
            )
        order = np.random.default_rng((len(usual), 0)).permutation(usual)
        new = np.concatenate([odd, order[:held]])
        return data.subset(np.sort(order[held:])), data.subset(np.sort(new))

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images of all classes but one, which then need no labels."""
        fingerprint = combine(seen.fingerprint, f"anogan:{left_out(seen, kind)}")
        return replace(seen, labels=None, classes=(), fingerprint=fingerprint)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how often an unusual image scores above a usual one (AUROC), by three ways.

        Each by the score of its paper, and all by their pixels alone; that of the principal
        components also with D's features, as an encoder has.
        """
        label = left_out(new, kind)
        assert new.labels is not None
        odd = new.labels == label
        sides = [some(new.subset(np.flatnonzero(part)), MEASURED) for part in (odd, ~odd)]
        gan, runtime = load_gan(run.best.folder), make_runtime("cpu", "float32")
        g, d = gan.average.eval(), gan.discriminator.eval()

        def shown(pixels: Tensor) -> Tensor:
            return gan.shown(runtime.images(pixels))

        x = shown(torch.from_numpy(np.concatenate([side.images for side in sides])))
        ways: dict[str, Tensor] = {
            "by search": sought(g, d, x),
            "by an encoder": encoded(g, d, x, shown, seen),
            "by PCA": rebuilt(x, shown(torch.from_numpy(np.array(some(seen, USUAL).images)))),
        }
        unusual, half = len(sides[0]), min(SHOWN // 2, *map(len, sides))
        figures: dict[str, float] = {}
        for name, score in scores(ways, x, d).items():
            figures[f"AUROC {name}"] = auroc(score[:unusual], score[unusual:])
        order = [*range(half), *range(unusual, unusual + half)]
        sheet = [x, *ways.values()]
        draw(run, [(each[order] * 127.5 + 128).clamp(0, 255).byte().numpy() for each in sheet])
        return figures


def left_out(data: ImageSet, kind: str) -> int:
    """Return a class by number or name; raise a UserError if there is none."""
    labels_of("anogan", data)
    if kind in data.classes:
        return data.classes.index(kind)
    if kind.isdecimal() and int(kind) < len(data.classes):
        return int(kind)
    raise UserError(
        f"task 'anogan' needs the class that is unusual, as in anogan:0; there are: "
        f"{', '.join(data.classes)}"
    )


def scores(ways: dict[str, Rows], x: Rows, d: Discriminator) -> dict[str, NDArray[np.float32]]:
    """Return how far each image is from what each way made of it, by all measures in use."""
    with torch.no_grad():
        found = {
            "by search": distance(ways["by search"], x, d),
            "by an encoder": residual(ways["by an encoder"], x, d),
            "by PCA, with features": residual(ways["by PCA"], x, d),
        }
        for name, made in ways.items():
            found[f"{name}, pixels alone"] = residual(made, x, None)
    return {name: score.numpy() for name, score in found.items()}


def distance(made: Rows, x: Rows, d: Discriminator) -> Scores:
    """Return (1 - λ) Σ |made - x| + λ Σ |f(made) - f(x)|, f D's features (AnoGAN, equation 5)."""
    features = (d.features(made) - d.features(x)).abs().sum(1)
    return (1 - FEATURES) * (made - x).abs().sum((1, 2, 3)) + FEATURES * features


def residual(made: Rows, x: Rows, d: Discriminator | None) -> Scores:
    """Return E (made - x)² + κ E (f(made) - f(x))², f D's features ("izi_f"), 0 without D."""
    pixels = (made - x).square().mean((1, 2, 3))
    if d is None:
        return pixels
    return pixels + KAPPA * (d.features(made) - d.features(x)).square().mean(1)


def sought(g: Generator, d: Discriminator, x: Rows) -> Rows:
    """Return the images nearest to ``x`` that gradient descent in the latents finds.

    It begins with a random latent, the same for all: no image's score depends on its neighbours.
    """
    start = torch.randn(1, g.spec.latent, generator=torch.Generator().manual_seed(0))
    z = start.repeat(len(x), 1).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        distance(g(z), x, d).sum().backward(inputs=[z])
        optimiser.step()
    with torch.no_grad():
        return g(z)


def encoded(
    g: Generator, d: Discriminator, x: Rows, shown: Callable[[Tensor], Tensor], usual: ImageSet
) -> Rows:
    """Return G's images for the latents that an encoder of D's form finds ("izi_f").

    It learns from usual images: that G's image is near to them, by pixels and by D's features.
    """
    spec = replace(d.spec, readouts=(("z", g.spec.latent),), classes=0, judging="plain", proxies=0)
    encoder = build(replace(spec, deviation_group=0, kernels=0), 0)
    assert isinstance(encoder, Discriminator)
    batches = Batches(usual, min(ENCODER_BATCH, len(usual)), 0)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=ENCODER_RATE)
    for k in range(ENCODER_STEPS):
        real = shown(batches.batch_at(k * batches.batch)[0])
        z: Any = encoder.readouts["z"](encoder.features(real))
        optimiser.zero_grad()
        residual(g(z), real, d).mean().backward(inputs=list(encoder.parameters()))
        optimiser.step()
    encoder.eval()
    with torch.no_grad():
        return g(encoder.readouts["z"](encoder.features(x)))


def rebuilt(x: Rows, usual: Rows) -> Rows:
    """Return ``x`` from the principal components of usual images: the baseline."""
    rows = usual.flatten(1)
    mean = rows.mean(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(rows, q=min(COMPONENTS, *rows.shape), niter=4)
    return (mean + (x.flatten(1) - mean) @ axes @ axes.T).view_as(x)


def auroc(unusual: np.ndarray[Any, Any], usual: np.ndarray[Any, Any]) -> float:
    """Return how often an unusual score is above a usual one, ties half (Mann and Whitney)."""
    above, same = unusual[:, None] > usual, unusual[:, None] == usual
    return float((above + same / 2).mean())


# Minibatch deviation would let an image's score depend on those that are scored beside it.
SMALL: dict[str, Any] = {"stack": {"deviation_group": 0}}
TASKS.register("anogan", "what does not belong", "Schlegl et al. 2017, 1703.05921")(
    Anomalies({"preset": "dcgan", "policy": "fixed"}, SMALL, {"0": None})
)
