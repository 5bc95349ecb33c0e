"""What a task is: what is learnt from, the settings, and measures on what was never trained on.

A task's data are an ordinary set of images, so that a task is trained by the same loop, searched
and grown by the same policies, resumed, sampled and reported as any other run. Where images are to
be made from images (:class:`Pairs`), each has the one ``given`` for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings, make_settings, merged
from growgan.data import ImageSet
from growgan.data.files import combine, replace_file
from growgan.errors import UserError, unknown
from growgan.growth.model import Model
from growgan.growth.run import Run, grow
from growgan.metrics import domain
from growgan.metrics.accuracy import classifier
from growgan.metrics.similarity import ssim
from growgan.nets.presets import PRESETS
from growgan.registry import Registry
from growgan.report.page import write_report
from growgan.report.sheet import contact_sheet
from growgan.tasks.folders import check_pairs
from growgan.training.ranks import join

TEST = 0.1  # share of the pairs that is never trained on
MEASURED = 2_000  # of these that are compared, at most
SHOWN = 16  # of these on the sheet
LEAST = 20  # images a class, on average, that a classifier learns from
BLOCK = 1024  # images derived at once
AT_ONCE = 64  # images compared at once, in float64
PICTURE = "task"  # in the run's gallery: the sheet, and the figures beside it

Images = UInt8[Tensor, "n c h w"]
Pairing = Callable[[Images], tuple[Images, Images]]
Measure = Callable[[Images, Images, Images], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """One use of a GAN.

    Attributes:
        published: settings as in its paper; those of the preset that they name, if any, with what
            differs.
        small: settings that growgan begins with where it may grow.
        kinds: what may stand behind its name, as in ``pix2pix:edges``.
        sheet: what the rows of its sheet show.
        quick: whether :meth:`taught` looks at nothing but labels.
    """

    published: Mapping[str, Any]
    small: Mapping[str, Any]
    kinds: Mapping[str, Any] = field(default_factory=dict)

    sheet: ClassVar[str] = ""
    quick: ClassVar[bool] = False

    def start(self, side: int) -> Mapping[str, Any]:
        """Return the published settings for images whose smaller side is so many pixels.

        Where D judges patches G has 64 channels at the images' own size, as in the papers at 256.
        """
        own = self.published
        if named := own.get("preset"):
            own = merged(PRESETS[named].settings(side), own)
        if own.get("stack", {}).get("patches"):
            own = merged(own, {"stack": {"taper": max(1, side // 32)}})
        return own

    def beginning(self, kind: str) -> Mapping[str, Any]:
        """Return the settings that a kind begins with where it may grow."""
        return self.small

    def check(self, kind: str, data: ImageSet) -> None:
        """Raise the UserError that :meth:`taught` would of prepared images, where that is quick."""
        if self.quick:
            bare = replace(data, images=np.zeros((len(data), 1, 1, 1), np.uint8))
            self.taught(self.split(bare, kind)[0], kind, 0)

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        """Return all images of the task; see :func:`prepare`."""
        if truth is not None:
            raise UserError(f"task '{name}' takes one set of images")
        return data

    def split(self, data: ImageSet, kind: str = "") -> tuple[ImageSet, ImageSet]:
        """Return what may be trained on, and what is measured on."""
        return data.held_out(TEST)

    def outline(self, data: ImageSet, kind: str) -> ImageSet:
        """Return prepared images in the form in which the players are shown them."""
        return data

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return what the players are shown of what may be trained on."""
        return seen

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Measure a finished run, leave pictures in its gallery, and return the figures.

        Args:
            seen: what the players were shown.
            new: what is measured on.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Pairs(Task):
    """Images from images.

    Attributes:
        kinds: by name what makes a pair (given, truth) of images [N, C, H, W] as they are loaded.
        measures: of (given, made, truth), uint8 [N, C, H, W] each.
        folders: whether two sets, given and truth row by row, do for a kind.
    """

    measures: Mapping[str, Measure] = field(default_factory=dict)
    folders: bool = False

    sheet: ClassVar[str] = "Rows: what is given, what is made, and what it should be."

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        if truth is not None:
            return self._paired(name, kind, data, truth)
        given, images = [], []
        pairing = self.pairing(kind, name)
        for start in range(0, len(data), BLOCK):
            block = torch.from_numpy(np.array(data.images[start : start + BLOCK]))
            pair = pairing(block)
            given.append(pair[0].numpy())
            images.append(pair[1].numpy())
        made, fingerprint = np.concatenate(images), combine(data.fingerprint, f"{name}:{kind}")
        return replace(data, images=made, given=np.concatenate(given), fingerprint=fingerprint)

    def pairing(self, name: str, task: str) -> Pairing:
        """Return a pairing by name; without one the only one that there is.

        Raises:
            UserError: there is no such kind, or none is named where there are several.
        """
        if name in self.kinds:
            return cast(Pairing, self.kinds[name])
        if not name and len(self.kinds) == 1:
            return cast(Pairing, next(iter(self.kinds.values())))
        if not name:
            raise UserError(
                f"task '{task}' needs a kind: {', '.join(f'{task}:{k}' for k in self.kinds)}"
            )
        raise unknown(f"kind of task '{task}'", name, self.kinds)

    def _paired(self, name: str, kind: str, data: ImageSet, truth: ImageSet) -> ImageSet:
        if kind:
            self.pairing(kind, name)
        if kind or not self.folders:
            whole = f"{name}:{kind}" if kind else name
            raise UserError(f"task '{whole}' makes its own pairs: name one set of images")
        check_pairs(data, truth)
        fingerprint = combine(data.fingerprint, truth.fingerprint)
        return replace(truth, given=data.images, fingerprint=fingerprint, duplicates=())

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Draw given, made and true images, and return how near the latter two are.

        Where there are labels, also how often a classifier of true images knows what is shown.
        """
        rows = some(new, MEASURED)
        figures, made = self.compared(run.best, rows)
        figures |= recognised(seen, rows, {"": made})
        assert rows.given is not None
        lines = [np.array(rows.given[:SHOWN]), made[:SHOWN].numpy(), np.array(rows.images[:SHOWN])]
        draw(run, [visible(line, rows.channels) for line in lines])
        return figures

    def compared(self, model: Model, rows: ImageSet) -> tuple[dict[str, float], Images]:
        """Return the figures of what a model makes of given images, and these, uint8."""
        assert rows.given is not None
        given, truth = (torch.from_numpy(np.array(each)) for each in (rows.given, rows.images))
        made = made_of(model, given, labels_for(model, rows))
        figures = likeness(made, truth)
        for measure in self.measures.values():
            figures |= measure(given, made, truth)
        return figures, made


TASKS: Registry[Task] = Registry("task")


def named(text: str) -> tuple[Task, str, str]:
    """Return a task, its name and its kind from ``TASK[:KIND]``.

    Raises:
        UserError: there is no such task.
    """
    name, _, kind = text.partition(":")
    return TASKS[name], name, kind


def prepare(task: str, data: ImageSet, truth: ImageSet | None = None) -> ImageSet:
    """Return the images that a task is to make, each with the one that it is made from.

    Args:
        task: ``TASK[:KIND]``, like "pix2pix:edges".
        data: what pairs are derived from; or, with ``truth``, the given images.
        truth: what each of ``data`` is to become, row by row.

    Raises:
        UserError: an unknown task or kind; sets that are no pairs, or not enough for the task.
    """
    found, name, kind = named(task)
    made = found.prepare(name, kind, data, truth)
    found.check(kind, made)
    return made


def train_task(
    task: str,
    data: ImageSet,
    *,
    out: str | Path,
    settings: Settings | Mapping[str, Any] | None = None,
    published: bool = False,
    **how: Any,
) -> Run:
    """Train a task's players on pairs, compare what they make of new ones with the truth.

    Args:
        task: ``TASK[:KIND]``.
        data: pairs, from :func:`prepare`.
        settings: what differs from the task's own.
        published: begin with the settings of the paper, complete, instead of a small form.
        how: as for :func:`growgan.grow`.

    Raises:
        UserError: as :func:`growgan.grow`.
    """
    found, _, kind = named(task)
    own = found.start(min(data.resolution)) if published else found.beginning(kind)
    chosen = settings if isinstance(settings, Settings) else make_settings(own, settings or {})
    seen, new = found.split(data, kind)
    taught = found.taught(seen, kind, chosen.seed)
    run = grow(taught, out=out, settings=chosen, **how)
    if join().first:
        _measure(run, found, kind, taught, new)
    return run


def _measure(run: Run, task: Task, kind: str, seen: ImageSet, new: ImageSet) -> None:
    """Leave a task's figures, and what its sheet shows, in a run's gallery and its report."""
    folder, words = run.path / "gallery", task.sheet
    folder.mkdir(exist_ok=True)
    size = run.best.network().spec.resolution
    if size != new.resolution:
        seen, new = shrunk(seen, size), shrunk(new, size)
        words += (
            f" The run ended at {size[0]}x{size[1]} pixels: all figures and pictures are of images"
            " of that size, the true ones averaged down."
        )
    figures = task.show(run, kind, seen, new)
    replace_file(folder / f"{PICTURE}.json", json.dumps(figures, indent=1).encode())
    replace_file(folder / f"{PICTURE}.txt", words.strip().encode())
    write_report(run.path)


def shrunk(data: ImageSet, size: tuple[int, int]) -> ImageSet:
    """Return images, and those given for them, averaged down to a smaller size."""

    def small(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
        return np.concatenate(
            [domain.shrink(torch.from_numpy(np.array(each)), size).numpy() for each in blocks]
        )

    given = None if data.given is None else small(data.given)
    return replace(data, images=small(data.images), given=given)


def labels_for(model: Model, rows: ImageSet) -> list[int] | None:
    """Return the labels to make images for, where a model is told any and all are known."""
    if not model.classes or rows.labels is None or rows.labels.min() < 0:
        return None
    return [*map(int, rows.labels)]


def draw(run: Run, rows: list[np.ndarray[Any, Any]]) -> None:
    """Leave a task's sheet in a run's gallery: rows of images uint8 [N, C, H, W]."""
    contact_sheet(rows, run.path / "gallery" / f"{PICTURE}.png")


def made_of(model: Model, given: Images, labels: Sequence[int] | None = None) -> Images:
    """Return what a model makes of given images."""
    drawn = model.sample(len(given), labels=labels, given=given.movedim(1, 3).numpy())
    return torch.from_numpy(channels_first(drawn))


def channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a model's images, uint8 [N, H, W, C], as all others here are: [N, C, H, W]."""
    return np.ascontiguousarray(np.moveaxis(images, 3, 1))


def labels_of(task: str, data: ImageSet) -> tuple[NDArray[np.int64], int]:
    """Return labels, and how many images the rarest class has.

    Raises:
        UserError: there are no labels of two classes or more.
    """
    if data.labels is None or len(data.classes) < 2:
        raise UserError(f"task '{task}' needs labels, and '{data.name}' has none")
    counts = np.bincount(data.labels[data.labels >= 0], minlength=len(data.classes))
    return data.labels, int(counts.min())


def some(data: ImageSet, count: int) -> ImageSet:
    """Return so many of the images, all if there are fewer, in an order that is drawn by chance.

    Rows of folders are sorted by class: the first of them are no sample.
    """
    order = np.random.default_rng((len(data), 1)).permutation(len(data))
    return data.subset(order[:count])


def some_of_each(data: ImageSet, count: int, seed: int) -> NDArray[np.int64]:
    """Return the rows of ``count`` images of each class, drawn by ``seed``."""
    rng = np.random.default_rng(seed)
    rows = (np.flatnonzero(data.labels == label) for label in range(len(data.classes)))
    return np.concatenate([rng.permutation(each)[:count] for each in rows])


def likeness(made: Images, truth: Images) -> dict[str, float]:
    """Return how near images are to what they should be: "l1" (of 255), "psnr" in dB, "ssim".

    PSNR and SSIM are means over images; the error of an image is at least 1e-10 of the squared
    range, so that equal ones have 100 dB.
    """
    rows = []
    for one, other in zip(made.split(AT_ONCE), truth.split(AT_ONCE), strict=True):
        difference = (one.double() - other.double()).flatten(1) / 255
        square = difference.square().mean(1).clamp(min=1e-10)
        rows.append(
            torch.stack(
                [255 * difference.abs().mean(1), -10 * square.log10(), ssim(one, other).double()]
            )
        )
    l1, psnr, similarity = torch.cat(rows, 1).mean(1).tolist()
    return {"l1": l1, "psnr": psnr, "ssim": similarity}


def recognised(seen: ImageSet, rows: ImageSet, sets: Mapping[str, Images]) -> dict[str, float]:
    """Return the share of each set's images, and of the true ones, whose class a classifier knows.

    It has learnt from what is trained on. Nothing is said where there are not enough labels.

    Args:
        rows: the true images; the others are theirs, row by row.
        sets: by what is said before the figure's name.
    """
    if seen.labels is None or rows.labels is None or len(seen.classes) < 2:
        return {}
    known, asked = seen.subset(np.flatnonzero(seen.labels >= 0)), rows.labels >= 0
    if len(known) < LEAST * len(seen.classes) or not asked.any() or known.labels is None:
        return {}
    classify = classifier((np.array(known.images), known.labels), len(seen.classes))
    shown = {f"{name}recognised": images.numpy() for name, images in sets.items()}
    shown["recognised of the true"] = np.array(rows.images)
    return {
        name: float((classify(images[asked]) == rows.labels[asked]).mean())
        for name, images in shown.items()
    }


def visible(images: np.ndarray[Any, Any], channels: int) -> np.ndarray[Any, Any]:
    """Return images with so many channels: the last of those given, repeated where they are few."""
    if images.shape[1] >= channels:
        return images[:, -channels:]
    return np.repeat(images[:, -1:], channels, axis=1)


def gray(images: Images) -> Images:
    """Return the luma of images (ITU-R BT.601), uint8 [N, 1, H, W]."""
    if images.shape[1] < 3:
        return images[:, :1]
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images[:, :3] * weights).sum(1, keepdim=True).round().to(torch.uint8)
