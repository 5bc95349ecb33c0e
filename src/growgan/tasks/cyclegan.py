"""Unpaired translation (CycleGAN: Zhu et al. 2017, 1703.10593): images of one kind into another.

What G makes of an image should come back to it, what is of the right kind already should stay, and
D, which has a logit for each kind and patch, sees old fakes beside new ones. One G goes both ways,
told by a label which (as StarGAN's does: Choi et al. 2018, 1711.09020), so that a translator is one
pair of players as any other, and can grow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data import ImageSet
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.metrics.accuracy import classifier
from growgan.tasks import pix2pix
from growgan.tasks.base import LEAST, TASKS, TEST, Task, draw, likeness, made_of
from growgan.tasks.folders import check_pairs

SHOWN = 12
MEASURED = 1_000  # images of each kind, at most
POOL = {"size": 50, "share": 0.5}  # section 4

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sides(ImageSet):
    """Images of two kinds that take turns: of the second set (label 1), then of the first.

    ``sizes`` are how many images the first and the second set have; the smaller one is repeated.
    ``shown`` is what each image shows, int64 [N], -1 where unknown, by its number in ``things``;
    None where the sets do not say it in the same words.
    """

    sizes: tuple[int, int] = (0, 0)
    shown: Rows | None = None
    things: tuple[str, ...] = ()

    def subset(self, rows: Rows) -> Sides:
        part = super().subset(rows)
        assert isinstance(part, Sides)
        return replace(part, shown=None if self.shown is None else self.shown[rows])

    def side(self, label: int) -> Rows:
        """Return the rows of a label."""
        return np.arange(1 - label, len(self), 2)


class Translation(Task):
    """``cyclegan`` takes two sets; with ``cyclegan:aligned`` what is made is compared with truth.

    Rows take turns: an image of the second set (label 1), one of the first (label 0).
    """

    sheet: ClassVar[str] = (
        "Rows: images of the first set, made into the second kind, and back; then images of the"
        " second set, made into the first kind, and back."
    )

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        if truth is None:
            raise UserError(f"task '{name}' takes two sets of images, one of each kind")
        if kind and kind not in self.kinds:
            raise UserError(f"task '{name}' knows one kind: {name}:aligned")
        if data.images.shape[1:] != truth.images.shape[1:]:
            forms = [f"{each.images.shape[1:]}" for each in (data, truth)]
            raise UserError(
                f"'{data.name}' and '{truth.name}' differ in form: {' and '.join(forms)}"
            )
        if kind == "aligned" and len(data) != len(truth):
            raise UserError(
                f"'{data.name}' has {len(data):,} images and '{truth.name}' {len(truth):,}: "
                "they cannot be aligned"
            )
        if kind == "aligned":
            check_pairs(data, truth)
        count = max(len(data), len(truth))
        turns = [np.resize(np.arange(len(each)), count) for each in (truth, data)]
        images = np.stack([truth.images[turns[0]], data.images[turns[1]]], 1)
        shown, classes = None, data.classes
        if data.labels is not None and truth.labels is not None and classes == truth.classes:
            shown = np.stack([truth.labels[turns[0]], data.labels[turns[1]]], 1).ravel()
        return _beside_each_other(
            Sides(
                name=f"{data.name} and {truth.name}",
                images=images.reshape(2 * count, *images.shape[2:]),
                labels=np.tile([1, 0], count),
                classes=names_of(data, truth),
                fingerprint=combine(data.fingerprint, truth.fingerprint, f"{name}:{kind}"),
                source=data.source,
                sizes=(len(data), len(truth)),
                shown=shown,
                things=classes,
            )
        )

    def split(self, data: ImageSet, kind: str = "") -> tuple[ImageSet, ImageSet]:
        """Return most images of both sets, and the others, chosen by chance.

        Of sets of one size the same rows are chosen. No image is in both parts, however often the
        smaller set is repeated. The others are in an order that is drawn by chance.
        """
        assert isinstance(data, Sides)
        parts: list[list[Rows]] = [[], []]
        for size in data.sizes:
            order = np.random.default_rng((size, 0)).permutation(size)
            held = max(1, round(TEST * size))
            if held >= size:
                raise UserError(f"'{data.name}' needs two images of each kind at least")
            for part, rows in zip(parts, (np.sort(order[held:]), order[:held]), strict=True):
                part.append(rows)
        seen, new = (self._both(data, *part) for part in parts)
        return seen, new

    def _both(self, data: Sides, first: Rows, second: Rows) -> Sides:
        """Return some images of both sets by turns, the fewer ones repeated."""
        count = max(len(first), len(second))
        rows = np.stack([2 * np.resize(second, count), 2 * np.resize(first, count) + 1], 1)
        return _beside_each_other(data.subset(rows.ravel()))

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images, each with one of the other kind that is drawn by ``seed``."""
        rng, given = np.random.default_rng(seed), np.empty_like(seen.images)
        for side in (0, 1):
            others = seen.images[1 - side :: 2]
            given[side::2] = others[rng.permutation(len(others))]
        return replace(seen, given=given, fingerprint=combine(seen.fingerprint, f"mixed:{seed}"))

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how near images come back, and where both sets show the same, to the truth.

        Where both sets have the same labels, also how often a classifier of the kind that is made
        knows what is shown, before, afterwards, and in true images of that kind.
        """
        assert isinstance(seen, Sides) and isinstance(new, Sides)
        figures: dict[str, float] = {}
        rows, names = [], new.classes
        for label in (1, 0):
            given, truth = (
                torch.from_numpy(np.array(new.images[new.side(each)[:MEASURED]]))
                for each in (1 - label, label)
            )
            made = made_of(run.best, given, [label])
            back = made_of(run.best, made, [1 - label])
            way = f"{names[1 - label]} to {names[label]}"
            figures[f"{way} and back, l1"] = likeness(back, given)["l1"]
            if kind == "aligned":
                for what, images in (("", made), ("untouched ", given)):
                    found = likeness(images, truth)
                    figures |= {f"{way}, {what}{key}": found[key] for key in ("l1", "ssim")}
            figures |= {
                f"{way}, {what}": share
                for what, share in known_again(seen, new, label, made, given, truth).items()
            }
            rows += [each[:SHOWN].numpy() for each in (given, made, back)]
        draw(run, rows)
        return figures


def known_again(
    seen: Sides, new: Sides, label: int, made: Tensor, given: Tensor, truth: Tensor
) -> dict[str, float]:
    """Return how often a classifier of one kind of images knows what is shown.

    Nothing is said where there are not enough labels.

    Args:
        label: of the kind that the classifier has learnt from, and into which images were ``made``.
        given, truth: images of the other kind, and of this one.
    """
    if seen.shown is None or new.shown is None or len(seen.things) < 2:
        return {}
    rows = seen.side(label)
    rows = rows[seen.shown[rows] >= 0]
    if len(rows) < LEAST * len(seen.things):
        return {}
    classify = classifier((np.array(seen.images[rows]), seen.shown[rows]), len(seen.things))
    figures = {}
    for name, images, side in (
        ("recognised", made, 1 - label),
        ("recognised untouched", given, 1 - label),
        ("recognised of the true", truth, label),
    ):
        wanted = new.shown[new.side(side)[: len(images)]]
        if (asked := wanted >= 0).any():
            right = classify(images.numpy()[asked]) == wanted[asked]
            figures[name] = float(right.mean())
    return figures


def names_of(data: ImageSet, truth: ImageSet) -> tuple[str, str]:
    """Return a name for each set: its own, with its folder's if they are alike, or a letter."""
    if data.name != truth.name:
        return data.name, truth.name
    first, second = ("/".join(Path(each.source).parts[-2:]) for each in (data, truth))
    if first != second:
        return first, second
    return f"A: {data.name}", f"B: {truth.name}"


def _beside_each_other(data: Sides) -> Sides:
    """Return images by turns, each given the one of the other kind that is beside it."""
    pairs = np.asarray(data.images).reshape(-1, 2, *data.images.shape[1:])
    return replace(data, given=pairs[:, ::-1].reshape(data.images.shape))


OWN: dict[str, Any] = {
    "conditioning": "domains",
    "score": {"kind": "intra-fd"},  # of both kinds together, images left as they are are perfect
}
# G's least squares are halved here and not in the paper, and so are the weights beside them.
PUBLISHED: dict[str, Any] = {
    **pix2pix.PUBLISHED,
    **OWN,
    "conditioning_options": {"cycle": 5.0, "identity": 2.5},
    "loss": "least-squares",
    "regularisers": {"replay": POOL},
    "batch": 8,
    "stack": {**pix2pix.PUBLISHED["stack"], "kind": "residual"},
}
# As pix2pix's small form, with what is made added to what is given, so that images are as they were
# at first: else some begin, and stay, with black and white turned around, as D would not mind. At
# the rate of other tasks G moves further than D learns from, and comes back to that.
SMALL: dict[str, Any] = {
    **pix2pix.SMALL,
    **OWN,
    "regularisers": {"r1": pix2pix.SMALL["regularisers"]["r1"], "replay": POOL},
    "optimiser": {"lr": 5e-3, "beta1": 0.5},
    "stack": {
        **pix2pix.SMALL["stack"],
        "difference": True,
        "norm": "none",
        "discriminator_width": 32,
    },
}

TASKS.register("cyclegan", "images of one kind into another", "Zhu et al. 2017, 1703.10593")(
    Translation(PUBLISHED, SMALL, {"aligned": None})
)
