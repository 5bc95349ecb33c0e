"""Semi-supervised learning (Salimans et al. 2016, 1606.03498): a classifier from few labels.

D tells K classes from each other where labels are known, and all of them from fakes everywhere
else. What G is for is to make D's task harder; its images need not be good.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.model import Model
from growgan.growth.run import Run
from growgan.nets.players import Discriminator, build
from growgan.nets.spec import StackSpec
from growgan.nets.wishes import one_hot
from growgan.objectives.conditioning.base import cross_entropy
from growgan.tasks.base import (
    SHOWN,
    TASKS,
    Task,
    channels_first,
    draw,
    labels_of,
    some,
    some_of_each,
)
from growgan.training.checkpoint import load_gan
from growgan.training.optimisers import make_optimiser
from growgan.training.runtime import Runtime, make_runtime
from growgan.training.stage import rates

LONGEST = 2_000  # steps of the classifier without a GAN: it knows its few images by then
AT_ONCE = 500
ROWS = 20  # classes on the sheet, at most
SHARE = 0.25  # of a batch that has labels: these images come more often than the others


@dataclass(frozen=True)
class SemiSupervised(Task):
    """``semi:N``: N images keep their labels, as many of each class."""

    quick = True
    sheet: ClassVar[str] = (
        "New images, a row for each class that D sees in them, in the order of the classes; below,"
        " what G draws."
    )

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images with N labels, evenly drawn by ``seed``; the others have -1.

        Those with a label come so often that they are ``SHARE`` of a batch.

        Raises:
            UserError: N is no number, no multiple of the classes, or more than there are.
        """
        all_labels, fewest = labels_of("semi", seen)
        classes = len(seen.classes)
        if not kind.isdecimal() or int(kind) < classes:
            raise UserError(
                f"task 'semi' needs the number of labels, {classes} or more: semi:{10 * classes}"
            )
        each, rest = divmod(int(kind), classes)
        if rest or each > fewest:
            raise UserError(
                f"semi:{kind} must be a multiple of {classes} classes, and at most "
                f"{classes * fewest:,} here"
            )
        known = np.sort(some_of_each(seen, each, seed))
        labels = np.full(len(seen), -1)
        labels[known] = all_labels[known]
        again = round(SHARE / (1 - SHARE) * (len(seen) - len(known)) / len(known)) - 1
        rows = np.concatenate([np.arange(len(seen)), np.tile(known, max(0, again))])
        fingerprint = combine(seen.fingerprint, f"semi:{kind}:{seed}")
        return replace(replace(seen, labels=labels).subset(rows), fingerprint=fingerprint)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how often D is right, and how often the same D is that never met a G.

        The latter learns for as many steps, up to ``LONGEST``, at rates that fall as D's did. What
        it lacks beside G are the terms of D's verdict: R1, too.
        """
        gan, settings = load_gan(newest(run).folder), run.best.settings
        steps = min(gan.steps, LONGEST)
        lone = alone(gan.discriminator.spec, seen, settings, steps)
        draw(run, [*sorted_by(gan.discriminator, new), channels_first(run.best.sample(SHOWN))])
        return {
            "accuracy": accuracy(gan.discriminator, new),
            "accuracy without a GAN": accuracy(lone, new),
        }


def sorted_by(player: Discriminator, images: ImageSet) -> list[NDArray[np.uint8]]:
    """Return some images for each class that D sees in them; a black one where it sees none."""
    shown = some(images, AT_ONCE)
    found, black = classes_seen(player, shown), np.zeros_like(shown.images[:1])
    rows = (shown.images[found == k][:SHOWN] for k in range(min(len(images.classes), ROWS)))
    return [row if len(row) else black for row in rows]


def newest(run: Run) -> Model:
    """Return the pair that the search went on with, if it has the size of the best one.

    The score is of G's images, which are no aim here: D learns longest in the newest pair.
    """
    alive = [event["alive"][0] for event in run.events if event.get("alive")]
    found = run.candidate(alive[-1])
    same = found.network().spec.resolution == run.best.network().spec.resolution
    return found if same else run.best


def alone(spec: StackSpec, seen: ImageSet, settings: Settings, steps: int) -> Discriminator:
    """Return a D that has learnt nothing but the labels, for so many steps."""
    assert seen.labels is not None
    known = seen.subset(np.flatnonzero(seen.labels >= 0))  # each as often as any other
    player, runtime = build(spec, settings.seed), make_runtime("cpu", settings.precision)
    assert isinstance(player, Discriminator)
    optimiser = make_optimiser(player, settings.optimiser)
    batches = Batches(known, min(settings.batch, len(known)), settings.seed)
    for k in range(steps):
        pixels, labels = batches.batch_at(k * batches.batch)
        assert labels is not None
        _, rate = rates(settings, k / steps, k * settings.batch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        with runtime.autocast():
            logits = classes_of(player, pixels, runtime)
        optimiser.zero_grad()
        cross_entropy(logits, one_hot(labels, spec.classes)).backward()
        optimiser.step()
    return player


def classes_of(player: Discriminator, pixels: Tensor, runtime: Runtime) -> Float[Tensor, "n k"]:
    """Return D's scores of the classes of images, uint8 [N, C, H, W]."""
    scores: Tensor = player.readouts["p"](player.features(runtime.images(pixels)))
    return scores.float()


@torch.no_grad()
def classes_seen(player: Discriminator, images: ImageSet) -> NDArray[np.int64]:
    """Return the class that D scores highest in each image."""
    runtime, found = make_runtime("cpu", "float32"), []
    player.eval()
    for part in np.array_split(np.arange(len(images)), -(-len(images) // AT_ONCE)):
        scores = classes_of(player, torch.from_numpy(np.array(images.images[part])), runtime)
        found.append(scores.argmax(1).numpy())
    return np.concatenate(found)


def accuracy(player: Discriminator, images: ImageSet) -> float:
    """Return the share of images, among those with a label, whose class D scores highest."""
    assert images.labels is not None
    asked = images.subset(np.flatnonzero(images.labels >= 0))
    return float((classes_seen(player, asked) == asked.labels).mean())


# G learns from feature matching alone, as in the paper: images are worse for it, D is better.
MATCHING: dict[str, dict[str, float | None]] = {"feature-matching": {"alone": 1}}
PUBLISHED: dict[str, Any] = {
    "conditioning": "semi",
    "policy": "fixed",
    "loss": "non-saturating",
    "regularisers": MATCHING,
    "batch": 100,
    "optimiser": {"lr": 3e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1e-8, "decay": None},
    "stack": {"deviation_group": 0, "rate": "normal", "latent": 100, "width": 128, "taper": 1},
}
# R1 at its usual weight keeps D from telling classes that are near each other.
SMALL: dict[str, Any] = {
    "conditioning": "semi",
    "loss": "non-saturating",
    "regularisers": {"r1": {"weight": 6e-5}, **MATCHING},
    "stack": {"deviation_group": 0},  # an image's class must not depend on its neighbours
}

TASKS.register("semi", "a classifier from few labels", "Salimans et al. 2016, 1606.03498")(
    SemiSupervised(PUBLISHED, SMALL, {"100": None, "500": None, "1000": None})
)
