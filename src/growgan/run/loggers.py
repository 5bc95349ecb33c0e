"""Experiment loggers: a run can also be followed in TensorBoard or Weights & Biases.

Each logger is a :class:`Display` that writes instead of drawing. Curves are drawn over the images
that the lineage has seen, one curve per candidate. No logger is on by default; the setting
``loggers`` names them, as in ``--set loggers=tensorboard``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import numpy as np
from PIL import Image

from growgan.config import Settings
from growgan.errors import require_extra
from growgan.files import replace_file
from growgan.registry import Registry
from growgan.run.run_directory import SAMPLE_SHEET_FILE, candidate_dir
from growgan.training.progress import Display, RunStatus, SilentDisplay

WANDB_ID_FILE = "wandb-id.txt"
LOGGERS: Registry[type[RunLogger]] = Registry("logger")
CANDIDATE_SCALARS = (
    "score",
    "score_stderr",
    "generator_parameters",
    "discriminator_parameters",
    "seconds",
)


class RunLogger(SilentDisplay):
    """A display that writes the progress of a run.

    Args:
        run_dir: The run directory.
        settings: Settings of the run.

    Attributes:
        requirement: The module it needs, and the package to install for it.
    """

    requirement: ClassVar[tuple[str, str]]

    def __init__(self, run_dir: Path, settings: Settings) -> None:
        self.run_dir, self.settings = run_dir, settings

    def sample_sheet(self, record: Mapping[str, Any]) -> Path | None:
        """Return the sample sheet of a finished candidate, None if it has none."""
        path = candidate_dir(self.run_dir, str(record["id"])) / SAMPLE_SHEET_FILE
        return path if path.is_file() else None


def check_loggers(names: Iterable[str]) -> None:
    """Check that the loggers exist and the packages they need are installed.

    Raises:
        UserError: One is not.
    """
    for name in names:
        module, package = LOGGERS[name].requirement
        require_extra(module, f"the logger {name}", package)


def build_loggers(run_dir: Path, settings: Settings) -> list[Display]:
    """Return the loggers that the settings name."""
    return [LOGGERS[name](run_dir, settings) for name in settings.loggers]


def status_scalars(status: RunStatus) -> Iterator[tuple[str, float]]:
    """Yield the tags and values of a candidate in training."""
    candidate_id = status.candidate
    for name, value in status.losses.items():
        yield f"objective/{name}/{candidate_id}", value
    yield f"training/images_per_second/{candidate_id}", status.images_per_second
    yield f"training/alpha/{candidate_id}", status.alpha
    yield f"training/pixels/{candidate_id}", float(status.resolution[0] * status.resolution[1])


def candidate_scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the tags and values of a finished candidate."""
    for name in CANDIDATE_SCALARS:
        if record.get(name) is not None:
            yield f"candidate/{name}", float(record[name])


@LOGGERS.register("tensorboard", "Write TensorBoard event files to RUN/tensorboard.")
class TensorBoardLogger(RunLogger):
    """Scalars, settings and sample sheets for TensorBoard: ``tensorboard --logdir RUN``."""

    requirement = ("tensorboard", "'growgan[tensorboard]'")

    def __init__(self, run_dir: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(run_dir, settings)
        self.writer: Any = SummaryWriter(str(run_dir / "tensorboard"))

    def start(self, start_event: Mapping[str, Any]) -> None:
        self.writer.add_text("settings", f"```yaml\n{self.settings.to_yaml()}```", 0)

    def progress(self, status: RunStatus) -> None:
        for name, value in status_scalars(status):
            self.writer.add_scalar(name, value, status.images_seen)

    def candidate(self, record: Mapping[str, Any]) -> None:
        step = int(record.get("images") or 0)
        for name, value in candidate_scalars(record):
            self.writer.add_scalar(name, value, step)
        if sheet := self.sample_sheet(record):
            with Image.open(sheet) as image:
                pixels = np.asarray(image)
            dataformats = "HW" if pixels.ndim == 2 else "HWC"
            self.writer.add_image("samples", pixels, step, dataformats=dataformats)

    def select(self, record: Mapping[str, Any]) -> None:
        self.writer.add_text("selection", str(record.get("reason", "")), int(record["round"]))

    def message(self, text: str) -> None:
        self.writer.add_text("message", text)

    def stop(self, summary: Mapping[str, Any]) -> None:
        self.writer.flush()
        self.writer.close()


@LOGGERS.register("wandb", "Log to Weights & Biases through its own client.")
class WandbLogger(RunLogger):
    """Scalars, settings and sample sheets for Weights & Biases, in the project "growgan".

    The client has its own settings, such as the key (``wandb login``) and ``WANDB_MODE``.
    """

    requirement = ("wandb", "wandb")

    def __init__(self, run_dir: Path, settings: Settings) -> None:
        import wandb

        super().__init__(run_dir, settings)
        absolute_dir = run_dir.resolve()
        self.wandb = wandb
        self.run: Any = wandb.init(
            project="growgan",
            name=absolute_dir.name,
            id=_wandb_run_id(absolute_dir),  # a resumed run continues its curves
            resume="allow",
            dir=str(run_dir),
            config=settings.model_dump(mode="json"),
        )
        self.run.define_metric("*", step_metric="images")

    def progress(self, status: RunStatus) -> None:
        self.run.log({**dict(status_scalars(status)), "images": status.images_seen})

    def candidate(self, record: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {**dict(candidate_scalars(record)), "images": record.get("images")}
        if sheet := self.sample_sheet(record):
            values["samples"] = self.wandb.Image(str(sheet), caption=str(record["id"]))
        self.run.log(values)

    def stop(self, summary: Mapping[str, Any]) -> None:
        if self.run is not None:
            self.run.summary.update({name: str(value) for name, value in summary.items()})
            self.run.finish()
            self.run = None


def _wandb_run_id(run_dir: Path) -> str:
    """Return the id of a run in Weights & Biases, which is kept in the run directory."""
    path = run_dir / WANDB_ID_FILE
    if not path.is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_file(path, uuid4().hex[:16].encode())
    return path.read_text().strip()
