"""Loads generators: of a run, a per-class ensemble, an export, or a repository on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from growgan.artifacts.per_class_ensemble import PerClassEnsemble
from growgan.config import Settings
from growgan.errors import UserError
from growgan.nets.hub import WEIGHTS_FILE, read_config, resolve_folder
from growgan.nets.networks import Generator
from growgan.run.run import Run
from growgan.sampling.trained_generator import TrainedGenerator

HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class ExportedGenerator(TrainedGenerator):
    """A generator in a folder that ``growgan export`` wrote. It has no run and no settings."""

    def load_network(self) -> Generator:
        """Return the generator, on the CPU and in evaluation mode."""
        return Generator.from_pretrained(self.checkpoint_dir)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of its ``config.json``."""
        return read_config(self.checkpoint_dir)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it generates; empty if it is unconditional."""
        names = self.config.get("class_names", [])
        if not isinstance(names, list):
            raise UserError(
                f"class_names in '{self.checkpoint_dir / 'config.json'}' must be a list, but got "
                f"{names!r:.40}"
            )
        return tuple(map(str, names))

    @property
    def settings(self) -> Settings:
        """Not available: an export has no settings.

        Raises:
            UserError: Always.
        """
        raise UserError(f"'{self.checkpoint_dir}' is an export, which has no settings; use its run")

    @property
    def run_dir(self) -> Path:
        """Not available: an export has no run.

        Raises:
            UserError: Always.
        """
        raise UserError(f"'{self.checkpoint_dir}' is an export, but this needs a run directory")

    @property
    def load_args(self) -> dict[str, Any]:
        """Arguments of ``load_images`` that preprocess images as those of its run."""
        spec = self._network.spec
        return {
            "resolution": spec.resolution,
            "channels": spec.image_channels,
            "fit": self.config.get("fit", "auto"),
        }


def load(source: str | Path, candidate: str | None = None) -> TrainedGenerator | PerClassEnsemble:
    """Load a generator.

    Args:
        source: A run directory, a per-class ensemble, a folder that ``growgan export`` wrote, or
            "hub:USER/NAME" for an export on the Hugging Face Hub.
        candidate: Id of a candidate of a run. The default is the best one.

    Raises:
        UserError: There is no generator at ``source``, or it cannot be loaded.
    """
    if str(source).startswith(HUB_PREFIX):
        path = resolve_folder(str(source).removeprefix(HUB_PREFIX))
    else:
        path = Path(source)
    if candidate is None and (path / WEIGHTS_FILE).is_file():
        return ExportedGenerator(path)
    if PerClassEnsemble.is_ensemble(path):
        if candidate:
            raise UserError(
                f"candidate '{candidate}' cannot be chosen in '{path}', which holds several runs"
            )
        return PerClassEnsemble(path)
    run = Run.open(path)
    return run.candidate(candidate or run.best_id)
