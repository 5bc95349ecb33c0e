"""A folder with one run per class, whose generators are sampled together (W-CGANs).

Each class has a GAN of its own, trained without labels and without communication (Lupo Pasini & Yin
2022). Samples of the ensemble are distributed evenly over the classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growgan.errors import UserError
from growgan.files import atomic_write
from growgan.jsonl import parse_json
from growgan.run.run import Run
from growgan.run.run_directory import read_start_event
from growgan.sampling.trained_generator import ImageArray, TrainedGenerator, cycle_labels

MANIFEST_FILE = "per_class.json"  # the names of the classes, and the options of the runs


@dataclass(frozen=True)
class PerClassEnsemble:
    """A folder with one run per class. It is sampled like a conditional generator."""

    path: Path

    @classmethod
    def is_ensemble(cls, path: str | Path) -> bool:
        """Return whether ``path`` holds an ensemble."""
        return (Path(path) / MANIFEST_FILE).is_file()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The options of the runs; ``classes`` are the names of the classes.

        Raises:
            UserError: The manifest is missing or damaged.
        """
        path = self.path / MANIFEST_FILE
        try:
            manifest = dict(parse_json(path.read_bytes()))
            if not isinstance(manifest["classes"], list):
                raise ValueError("classes must be a list of names")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{path}' cannot be read: {error}") from error
        return manifest

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(map(str, self.manifest["classes"]))

    def run_dir(self, label: int) -> Path:
        """Return the run directory of a class."""
        return self.path / f"class-{label:03d}"

    def log_path(self, label: int) -> Path:
        """Return the file with the output of the process that trains a class."""
        return self.path / f"class-{label:03d}.log"

    def run(self, label: int) -> Run:
        """Return the run of a class.

        Raises:
            UserError: It has not started.
        """
        return Run.open(self.run_dir(label))

    def has_started(self, label: int) -> bool:
        """Return whether the run of a class has started."""
        return read_start_event(self.run_dir(label)) is not None

    def is_finished(self, label: int) -> bool:
        """Return whether the run of a class spent its whole budget."""
        if not self.has_started(label):
            return False
        last_event = self.run(label).events[-1]
        return last_event["event"] == "end" and "stop_reason" not in last_event

    @property
    def best(self) -> PerClassEnsemble:
        """The ensemble itself. It uses the best generator of each class."""
        return self

    @cached_property
    def _generators(self) -> dict[int, TrainedGenerator]:
        return {label: self.run(label).best for label in range(len(self.classes))}

    def sample_labels(self, count: int, labels: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Return the labels of the images of :meth:`sample`, int64 [N].

        Args:
            count: Number of images.
            labels: Labels to use in turn; None for all classes.
        """
        return cycle_labels(count, len(self.classes), labels)

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> ImageArray:
        """Return ``count`` images, uint8 [N, H, W, C], as :meth:`TrainedGenerator.sample` does."""
        image_labels = self.sample_labels(count, labels)
        samples: ImageArray | None = None
        for label in np.unique(image_labels):
            rows = np.flatnonzero(image_labels == label)
            images = self._generators[int(label)].sample(
                len(rows), seed=seed, truncation=truncation
            )
            if samples is None:
                samples = np.empty((count, *images.shape[1:]), np.uint8)
            samples[rows] = images
        if samples is None:
            raise UserError(f"count must be at least 1, but got {count}")
        return samples


def create_or_open(path: Path, manifest: dict[str, Any]) -> PerClassEnsemble:
    """Create an ensemble in ``path``, or open the one that is there.

    Raises:
        UserError: The folder has other files, or an ensemble with other options.
    """
    ensemble = PerClassEnsemble(path)
    if not PerClassEnsemble.is_ensemble(path):
        _write_manifest(path, manifest)
    for key, value in manifest.items():
        existing_value = ensemble.manifest.get(key)
        if existing_value != value:
            raise UserError(
                f"'{path}' was started with {key} {existing_value}, but now {key} is {value}; "
                "choose another --out"
            )
    return ensemble


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest. Other jobs of an array may do the same at this moment."""
    try:
        names = [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        names = []
    except NotADirectoryError:
        names = [path.name]
    has_other_files = any(not name.startswith(".") for name in names)
    if has_other_files and not PerClassEnsemble.is_ensemble(path):
        raise UserError(f"'{path}' is not an empty folder; choose another --out")
    try:
        with atomic_write(path / MANIFEST_FILE) as temporary_path:
            temporary_path.write_text(json.dumps(manifest, indent=1))
    except OSError as error:
        raise UserError(f"cannot write to '{path}': {error.strerror or error}") from error
