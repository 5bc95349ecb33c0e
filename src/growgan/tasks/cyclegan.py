"""Unpaired translation (CycleGAN: Zhu et al. 2017, 1703.10593): images of one kind into another.

What G makes of an image should come back to it, what is of the right kind already should stay, and
D, which has a logit for each kind, sees old fakes beside new ones. One G goes both ways, told by a
label which (as StarGAN's does: Choi et al. 2018, 1711.09020), so that a translator is one pair of
players as any other, and can grow.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from growgan.data import ImageSet
from growgan.data.files import combine
from growgan.errors import UserError
from growgan.growth.run import Run
from growgan.tasks import pix2pix
from growgan.tasks.base import TASKS, TEST, Task, draw, likeness, made_of

SHOWN = 12
MEASURED = 1_000  # images of each kind, at most
POOL = {"size": 50, "share": 0.5}  # section 4


class Translation(Task):
    """``cyclegan`` takes two sets; with ``cyclegan:aligned`` what is made is compared with truth.

    Rows take turns: an image of the second set (label 1), one of the first (label 0).
    """

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
        count = max(len(data), len(truth))
        sides = [np.resize(np.arange(len(each)), count) for each in (truth, data)]
        images = np.stack([truth.images[sides[0]], data.images[sides[1]]], 1)
        other = images[:, ::-1]
        shape = (2 * count, *images.shape[2:])
        return replace(
            data,
            name=f"{data.name} and {truth.name}",
            images=images.reshape(shape),
            given=np.ascontiguousarray(other).reshape(shape),
            labels=np.tile([1, 0], count),
            classes=(data.name, truth.name),
            duplicates=(),
            fingerprint=combine(data.fingerprint, truth.fingerprint, f"{name}:{kind}"),
        )

    def split(self, data: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Return both images of most rows, and of the others, chosen by chance."""
        count = len(data) // 2
        order = np.random.default_rng((count, 0)).permutation(count)
        held = max(1, round(TEST * count))

        def both(rows: np.ndarray[Any, Any]) -> ImageSet:
            return data.subset((2 * np.sort(rows)[:, None] + [0, 1]).ravel())

        return both(order[held:]), both(order[:held])

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images, each with one of the other kind that is drawn by ``seed``."""
        rng, given = np.random.default_rng(seed), np.empty_like(seen.images)
        for side in (0, 1):
            others = seen.images[1 - side :: 2]
            given[side::2] = others[rng.permutation(len(others))]
        return replace(seen, given=given, fingerprint=combine(seen.fingerprint, f"mixed:{seed}"))

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how near images come back, and where both sets show the same, to the truth."""
        figures: dict[str, float] = {}
        rows, names = [], new.classes
        for label in (1, 0):
            given, truth = (
                torch.from_numpy(np.array(each[1 - label :: 2][:MEASURED]))
                for each in (new.given, new.images)
                if each is not None
            )
            made = made_of(run.best, given, [label])
            back = made_of(run.best, made, [1 - label])
            way = f"{names[1 - label]} to {names[label]}"
            figures[f"{way} and back, l1"] = likeness(back, given)["l1"]
            if kind == "aligned":
                for what, images in (("", made), ("untouched ", given)):
                    found = likeness(images, truth)
                    figures |= {f"{way}, {what}{key}": found[key] for key in ("l1", "ssim")}
            rows += [each[:SHOWN].numpy() for each in (given, made, back)]
        draw(run, rows)
        return figures


OWN = {"conditioning": "domains", "loss": "least-squares"}
PUBLISHED: dict[str, Any] = {
    **pix2pix.PUBLISHED,
    **OWN,
    "regularisers": {"replay": POOL},
    "batch": 8,
    "stack": {**pix2pix.PUBLISHED["stack"], "kind": "residual"},
}
SMALL: dict[str, Any] = {
    **pix2pix.SMALL,
    "conditioning": "domains",
    "regularisers": {"r1": {}, "replay": POOL},
}

TASKS.register("cyclegan", "images of one kind into another", "Zhu et al. 2017, 1703.10593")(
    Translation(PUBLISHED, SMALL, {"aligned": None})
)
