"""Whatever draws images, by where it lies: a run, a pool of runs, an export, a model of the hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from growgan.config import Settings
from growgan.errors import UserError
from growgan.growth.model import Model
from growgan.growth.pool import Pool
from growgan.growth.run import Run
from growgan.nets.players import Generator
from growgan.nets.pretrained import WEIGHTS, fetched, read_config

HUB = "hub:"


@dataclass(frozen=True)
class Exported(Model):
    """A generator that has left its run: the folder that ``growgan export`` wrote."""

    def network(self) -> Generator:
        """Return the generator, on the CPU, ready to be called."""
        return Generator.from_pretrained(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What its ``config.json`` says."""
        return read_config(self.folder)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it draws; none if it is unconditional."""
        named = self.config.get("classes", [])
        if not isinstance(named, list):
            raise UserError(f"'{self.folder}': classes must be a list of names, not {named!r:.40}")
        return tuple(map(str, named))

    @property
    def settings(self) -> Settings:
        """Raise a :class:`UserError`: they stay with the run."""
        raise UserError(f"'{self.folder}' is an export; the settings are those of its run")

    @property
    def run_folder(self) -> Path:
        """Raise a :class:`UserError`: it has left its run."""
        raise UserError(f"'{self.folder}' is an export, and this takes a run")

    @property
    def form(self) -> dict[str, Any]:
        """What ``load_images`` is told to load images in the form that its run's had."""
        spec = self._network.spec
        fit = self.config.get("fit", "auto")
        return {"resolution": spec.resolution, "channels": spec.channels, "fit": fit}


def load(source: str | Path, candidate: str | None = None) -> Model | Pool:
    """Return what ``source`` draws with.

    Args:
        source: a run directory (its best candidate, or ``candidate``), a pool of one run a label,
            a folder that ``growgan export`` wrote, or "hub:USER/NAME", the same on the hub.
        candidate: id of one of a run's candidates.

    Raises:
        UserError: there is no such thing, or it cannot be loaded.
    """
    if str(source).startswith(HUB):
        path = fetched(str(source).removeprefix(HUB))
    else:
        path = Path(source)
    if candidate is None and (path / WEIGHTS).is_file():
        return Exported(path)
    if Pool.is_one(path):
        if candidate:
            raise UserError(f"a candidate is of one run, and '{path}' pools several")
        return Pool(path)
    run = Run.open(path)
    return run.candidate(candidate or run.best_id)
