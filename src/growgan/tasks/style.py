"""Genres and styles: a conditional StyleGAN2 whose images of different genres are mixed.

Folders are genres. The coarse styles of one image and the fine ones of another make a third
(Karras et al. 2019, 1812.04948, section 3.1); in the explorer the images to mix are picked by hand.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from growgan.data import ImageSet
from growgan.growth.run import Run
from growgan.metrics.accuracy import classifier
from growgan.nets.presets import PRESETS
from growgan.tasks.base import TASKS, Task, channels_first, draw, labels_of

PICKS = 10  # images of each side of a table of mixes
TABLES = 8
SAMPLES = 1_000
SHOWN = 8  # images of a genre, and picks of the mixes, on the sheet


class Genres(Task):
    """``style`` takes images with labels."""

    sheet: ClassVar[str] = (
        "A row of images for each genre; below, mixes: the coarse styles of one image a row, the"
        " fine ones of one a column."
    )

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        labels_of(name, data)
        return super().prepare(name, kind, data, truth)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how often a classifier of real images sees the genre that was asked for.

        Of mixes, how often that of the coarse styles' image, and how often that of the fine ones'.
        """
        assert seen.labels is not None and new.labels is not None
        known = seen.subset(np.flatnonzero(seen.labels >= 0))
        assert known.labels is not None
        taught = np.array(known.images), known.labels
        genre = classifier(taught, len(seen.classes), seed=run.best.settings.seed)
        held = new.subset(np.flatnonzero(new.labels >= 0))
        made, wanted = channels_first(run.best.sample(SAMPLES)), run.best.labels(SAMPLES)
        picks = range(PICKS), range(PICKS, 2 * PICKS)
        tables = [run.best.mix(*picks, count=2 * PICKS, seed=seed) for seed in range(TABLES)]
        mixed, labels = channels_first(np.concatenate(tables)), run.best.labels(2 * PICKS)
        assert labels is not None
        coarse = np.tile(np.repeat(labels[:PICKS], PICKS), TABLES)
        fine = np.tile(labels[PICKS:], PICKS * TABLES)
        across, seen_in = coarse != fine, genre(mixed)
        _draw(run, made, mixed[: PICKS**2])
        return {
            "genre": float((genre(made) == wanted).mean()),
            "true genre": float((genre(np.array(held.images)) == held.labels).mean()),
            "mixes, of the coarse": float((seen_in == coarse)[across].mean()),
            "mixes, of the fine": float((seen_in == fine)[across].mean()),
        }


def _draw(run: Run, made: NDArray[np.uint8], table: NDArray[np.uint8]) -> None:
    """Leave the sheet: a row of images for each genre, then a table of mixes."""
    genres = len(run.best.classes)
    rows = [made[k : SHOWN * genres : genres] for k in range(genres)]
    mixes = table.reshape(PICKS, PICKS, *table.shape[1:])[:SHOWN, :SHOWN]
    draw(run, [*rows, *mixes])


def _conditional(settings: Any) -> dict[str, Any]:
    stack = {**settings["stack"], "mixing": 0.9}
    return {**settings, "preset": "stylegan2", "conditioning": "projection", "stack": stack}


STYLE = PRESETS["stylegan2"]
TASKS.register("style", "genres whose styles are mixed", "Karras et al. 2020, 1912.04958")(
    Genres({**_conditional(STYLE.published), "policy": "fixed"}, _conditional(STYLE.small))
)
