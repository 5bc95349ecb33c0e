"""Augmentation: generated images beside a few real ones, for a classifier.

A conditional GAN learns from no more labelled images than the classifier has. Whether its images
tell the classifier anything that the real ones do not is what the figures say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from growgan.data import ImageSet
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.metrics.accuracy import Labelled, accuracy_of
from growgan.tasks.base import TASKS, Task, channels_first, draw, labels_of, some_of_each

FAKES = 2_000  # generated images a class, at most as many as twenty times the real ones
TIMES = 20
SHOWN = 8  # of each class


class Augmentation(Task):
    """``augment:N``: N images of each class, labelled, and no others."""

    quick = True
    sheet: ClassVar[str] = "A row of generated images for each class."

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return N images of each class, drawn by ``seed``.

        Raises:
            UserError: there are no labels, N is no number, or more than there are.
        """
        _, fewest = labels_of("augment", seen)
        if not kind.isdecimal() or not 0 < int(kind) <= fewest:
            raise UserError(
                f"task 'augment' needs the images of a class, 1 to {fewest:,}: augment:100"
            )
        rows = np.sort(some_of_each(seen, int(kind), seed))
        fingerprint = combine(seen.fingerprint, f"augment:{kind}:{seed}")
        return replace(seen.subset(rows), fingerprint=fingerprint)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return a classifier's accuracy on new images, taught by reals, by fakes, and by both.

        All three learn for as many steps: what there is less of is repeated.
        """
        assert seen.labels is not None and new.labels is not None
        classes = len(seen.classes)
        count = classes * min(FAKES, TIMES * len(seen) // classes)
        drawn = run.best.sample(count, seed=1)
        fakes = channels_first(drawn)
        labels = run.best.labels(count)
        assert labels is not None
        known = new.subset(np.flatnonzero(new.labels >= 0))
        assert known.labels is not None
        sets = equally_many((np.array(seen.images), seen.labels), (fakes, labels))
        held = np.array(known.images), known.labels
        draw(run, [fakes[k : SHOWN * classes : classes] for k in range(classes)])
        return {
            f"accuracy from {name}": accuracy_of(part, held, classes, seed=run.best.settings.seed)
            for name, part in sets.items()
        }


def equally_many(reals: Labelled, fakes: Labelled) -> dict[str, Labelled]:
    """Return reals, fakes and both, repeated so that the three sets have as many images.

    Of both there are as many reals as fakes, so that both kinds weigh as much.
    """
    half = max(len(reals[0]), len(fakes[0]))
    doubled = {"reals": (reals, reals), "fakes": (fakes, fakes), "both": (reals, fakes)}
    found = {}
    for name, parts in doubled.items():
        rows = [np.resize(np.arange(len(images)), half) for images, _ in parts]
        images = np.concatenate([part[0][row] for part, row in zip(parts, rows, strict=True)])
        labels = np.concatenate([part[1][row] for part, row in zip(parts, rows, strict=True)])
        found[name] = images, labels
    return found


TASKS.register(
    "augment", "generated images beside few real ones", "Antoniou et al. 2017, 1711.04340"
)(
    Augmentation(
        {"preset": "biggan", "policy": "fixed", "conditioning": "projection"},
        {"conditioning": "projection", "augment": "diffaugment"},
        {"10": None, "100": None, "1000": None},
    )
)
