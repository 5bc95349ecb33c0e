"""Anomalies (AnoGAN: Schlegl et al. 2017, 1703.05921): what a generator of the usual cannot draw.

For a new image the latent is sought whose image is nearest to it, step by step, or by an encoder
that has learnt to find it (f-AnoGAN: Schlegl et al. 2019). What remains is the score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.nets.players import Discriminator, Generator, build
from growgan.tasks.base import TASKS, Task, draw, labels_of
from growgan.training.checkpoint import load_gan
from growgan.training.runtime import make_runtime

MEASURED = 200  # images of the left-out class, and as many of the others, at most
SHOWN = 12
FEATURES = 0.1  # λ: share of D's features in the distance (1703.05921, equation 5)
STEPS, RATE = 200, 0.05  # of the search for a latent
ENCODER_STEPS, ENCODER_RATE, ENCODER_BATCH = 1_500, 1e-3, 64
COMPONENTS = 32  # of the baseline

Rows = Float[Tensor, "n c h w"]


class Anomalies(Task):
    """``anogan:K``: all classes but K, by number or name, are usual."""

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images of all classes but one, which then need no labels.

        Raises:
            UserError: there are no labels, or no such class.
        """
        label = left_out(seen, kind)
        assert seen.labels is not None
        usual = seen.subset(np.flatnonzero(seen.labels != label))
        fingerprint = combine(usual.fingerprint, f"anogan:{label}")
        return replace(usual, labels=None, classes=(), fingerprint=fingerprint)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how often an unusual image scores above a usual one (AUROC), by three ways."""
        label = left_out(new, kind)
        assert new.labels is not None
        odd = new.labels == label
        rows = [np.flatnonzero(part)[:MEASURED] for part in (odd, ~odd)]
        gan, runtime = load_gan(run.best.folder), make_runtime("cpu", "float32")
        g, d = gan.average.eval(), gan.discriminator.eval()

        def shown(pixels: Tensor) -> Tensor:
            return gan.shown(runtime.images(pixels))

        x = shown(torch.from_numpy(np.array(new.images[np.concatenate(rows)])))
        ways: dict[str, Tensor] = {
            "by search": sought(g, d, x),
            "by an encoder": encoded(g, d, x, shown, seen),
            "by PCA": rebuilt(x, shown(_some(seen, 5_000))),
        }
        figures: dict[str, float] = {}
        for name, made in ways.items():
            features = d if name != "by PCA" else None
            score = distance(made, x, features).detach().numpy()
            figures[f"AUROC {name}"] = auroc(score[: len(rows[0])], score[len(rows[0]) :])
        order = [*range(SHOWN // 2), *range(len(rows[0]), len(rows[0]) + SHOWN // 2)]
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


def distance(made: Rows, x: Rows, d: Discriminator | None) -> Float[Tensor, " n"]:
    """Return (1 - λ) E |made - x| + λ E |f(made) - f(x)|, f D's features; else E (made - x)²."""
    if d is None:
        return (made - x).square().mean((1, 2, 3))
    features = (d.features(made) - d.features(x)).abs().mean(1)
    return (1 - FEATURES) * (made - x).abs().mean((1, 2, 3)) + FEATURES * features


def sought(g: Generator, d: Discriminator, x: Rows) -> Rows:
    """Return the images nearest to ``x`` that gradient descent in the latents finds."""
    z = torch.zeros(len(x), g.spec.latent, requires_grad=True)
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
    encoder = build(spec, 0)
    assert isinstance(encoder, Discriminator)
    batches = Batches(usual, min(ENCODER_BATCH, len(usual)), 0)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=ENCODER_RATE)
    for k in range(ENCODER_STEPS):
        real = shown(batches.batch_at(k * batches.batch)[0])
        z: Any = encoder.readouts["z"](encoder.features(real))
        optimiser.zero_grad()
        loss = distance(g(z), real, d).mean()
        loss.backward(inputs=list(encoder.parameters()))
        optimiser.step()
    with torch.no_grad():
        return g(encoder.readouts["z"](encoder.features(x)))


def rebuilt(x: Rows, usual: Rows) -> Rows:
    """Return ``x`` from the principal components of usual images: the baseline."""
    rows = usual.flatten(1)
    mean = rows.mean(0)
    _, _, axes = torch.pca_lowrank(rows, q=min(COMPONENTS, *rows.shape), niter=4)
    return (mean + (x.flatten(1) - mean) @ axes @ axes.T).view_as(x)


def auroc(unusual: np.ndarray[Any, Any], usual: np.ndarray[Any, Any]) -> float:
    """Return how often an unusual score is above a usual one, ties half (Mann and Whitney)."""
    above, same = unusual[:, None] > usual, unusual[:, None] == usual
    return float((above + same / 2).mean())


def _some(data: ImageSet, count: int) -> Tensor:
    rows = np.sort(np.random.default_rng(0).permutation(len(data))[:count])
    return torch.from_numpy(np.array(data.images[rows]))


TASKS.register("anogan", "what does not belong", "Schlegl et al. 2017, 1703.05921")(
    Anomalies({"preset": "dcgan", "policy": "fixed"}, {}, {"0": None})
)
