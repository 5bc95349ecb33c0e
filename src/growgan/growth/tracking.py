"""A run that is followed elsewhere: each tracker is a :class:`Display` that writes instead.

Curves are over the images that the lineage has seen, and each candidate has curves of its own. None
is on by default: ``tracking`` names them, like ``--set tracking=tensorboard``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
from PIL import Image

from growgan.config import Settings
from growgan.data.files import replace_file
from growgan.errors import require
from growgan.registry import Registry
from growgan.training.progress import Display, SilentDisplay, Status

TRACKERS: Registry[type[Tracker]] = Registry("tracker")
FACTS = ("score", "score_stderr", "generator_parameters", "discriminator_parameters", "seconds")


class Tracker(SilentDisplay):
    """A display that writes what it is shown.

    Args:
        out: the run directory.
    """

    needs: ClassVar[tuple[str, str]]  # a module, and how it is installed

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out, self.settings = out, settings

    def sheet(self, record: Mapping[str, Any]) -> Path | None:
        """Return the sample sheet of a finished candidate, if it has one."""
        path = self.out / "candidates" / str(record["id"]) / "samples.png"
        return path if path.is_file() else None


def check_trackers(names: Iterable[str]) -> None:
    """Raise a :class:`UserError` for an unknown name, or a client that is not installed."""
    for name in names:
        module, how = TRACKERS[name].needs
        require(module, f"tracking by {name}", how)


def trackers(out: Path, settings: Settings) -> list[Display]:
    """Return the trackers that the settings name."""
    return [TRACKERS[name](out, settings) for name in settings.tracking]


def scalars(status: Status) -> Iterator[tuple[str, float]]:
    """Yield what is drawn as curves of a moment in training, by the candidate that is trained."""
    own = status.candidate
    yield from ((f"objective/{name}/{own}", value) for name, value in status.losses.items())
    yield f"training/images_per_second/{own}", status.images_per_second
    yield f"training/alpha/{own}", status.alpha
    yield f"training/pixels/{own}", float(status.resolution[0] * status.resolution[1])


def facts(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a finished candidate."""
    for name in FACTS:
        if record.get(name) is not None:
            yield f"candidate/{name}", float(record[name])


@TRACKERS.register("tensorboard", "event files in RUN/tensorboard")
class TensorBoard(Tracker):
    """Scalars, settings and sample sheets for TensorBoard: ``tensorboard --logdir RUN``."""

    needs = ("tensorboard", "'growgan[tensorboard]'")

    def __init__(self, out: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(out, settings)
        self.writer: Any = SummaryWriter(str(out / "tensorboard"))

    def start(self, info: Mapping[str, Any]) -> None:
        self.writer.add_text("settings", f"```yaml\n{self.settings.to_yaml()}```", 0)

    def progress(self, status: Status) -> None:
        for name, value in scalars(status):
            self.writer.add_scalar(name, value, status.images)

    def candidate(self, record: Mapping[str, Any]) -> None:
        step = int(record.get("images") or 0)
        for name, value in facts(record):
            self.writer.add_scalar(name, value, step)
        if sheet := self.sheet(record):
            with Image.open(sheet) as picture:
                pixels = np.asarray(picture)
            form = "HW" if pixels.ndim == 2 else "HWC"
            self.writer.add_image("samples", pixels, step, dataformats=form)

    def select(self, record: Mapping[str, Any]) -> None:
        self.writer.add_text("choice", str(record.get("reason", "")), int(record["round"]))

    def message(self, text: str) -> None:
        self.writer.add_text("message", text)

    def stop(self, summary: Mapping[str, Any]) -> None:
        self.writer.flush()
        self.writer.close()


@TRACKERS.register("wandb", "Weights & Biases, through its own client")
class WeightsAndBiases(Tracker):
    """Scalars, settings and sample sheets for Weights & Biases, in the project "growgan".

    The client reads its key and its mode from its own settings (``wandb login``, ``WANDB_MODE``).
    """

    needs = ("wandb", "wandb")

    def __init__(self, out: Path, settings: Settings) -> None:
        import wandb

        super().__init__(out, settings)
        place = out.resolve()
        self.client = wandb
        self.run: Any = wandb.init(
            project="growgan",
            name=place.name,
            id=_kept_id(place),  # a run that is resumed goes on in its own curves
            resume="allow",
            dir=str(out),
            config=settings.model_dump(mode="json"),
        )
        self.run.define_metric("*", step_metric="images")

    def progress(self, status: Status) -> None:
        self.run.log({**dict(scalars(status)), "images": status.images})

    def candidate(self, record: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {**dict(facts(record)), "images": record.get("images")}
        if sheet := self.sheet(record):
            values["samples"] = self.client.Image(str(sheet), caption=str(record["id"]))
        self.run.log(values)

    def stop(self, summary: Mapping[str, Any]) -> None:
        if self.run is not None:
            self.run.summary.update({name: str(value) for name, value in summary.items()})
            self.run.finish()
            self.run = None


def _kept_id(out: Path) -> str:
    """Return the id that a run has elsewhere, written down in its folder."""
    path = out / "wandb-id.txt"
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        replace_file(path, uuid4().hex[:16].encode())
    return path.read_text().strip()
