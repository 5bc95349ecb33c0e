"""One run for each label, and their generators pooled (Lupo Pasini & Yin 2022, W-CGANs).

Each label's images train a pair of their own, in a process of its own, that knows nothing of the
others: no labels inside, no messages between. What they draw is pooled, equally many of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growgan.errors import UserError
from growgan.growth.model import Images, Model, turns
from growgan.growth.place import begun
from growgan.growth.run import Run
from growgan.plain import parse
from growgan.report.files import replacing

FILE = "per-label.json"  # what was asked for, and the labels
# growgan's command line, which the system kills as soon as its parent is dead: it would hold a
# label that another worker is to go on with.
TIED = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
from growgan.cli.app import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Pool:
    """A folder with one run for each label. It draws as a conditional :class:`Model` does."""

    path: Path

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        """Return whether ``path`` holds a pool."""
        return (Path(path) / FILE).is_file()

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What the runs were asked for; ``classes`` are the names of the labels."""
        try:
            asked = dict(parse((self.path / FILE).read_bytes()))
            if not isinstance(asked["classes"], list):
                raise ValueError("its classes are no list of names")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{self.path / FILE}' cannot be read: {error}") from error
        return asked

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(map(str, self.asked["classes"]))

    def folder(self, label: int) -> Path:
        """Return where the run of a label is."""
        return self.path / f"label-{label:03d}"

    def run(self, label: int) -> Run:
        """Return the run of a label; raise a :class:`UserError` where it has not begun."""
        return Run.open(self.folder(label))

    def begun(self, label: int) -> bool:
        """Return whether the run of a label has begun."""
        return begun(self.folder(label)) is not None

    def finished(self, label: int) -> bool:
        """Return whether the run of a label has spent its budget, and was not given up."""
        if not self.begun(label):
            return False
        last = self.run(label).events[-1]
        return last["event"] == "end" and "stopped" not in last

    @property
    def best(self) -> Pool:
        """The pool itself: each label's best generator."""
        return self

    @cached_property
    def _models(self) -> dict[int, Model]:
        return {label: self.run(label).best for label in range(len(self.classes))}

    def labels(self, count: int, labels: Sequence[int] | None = None) -> NDArray[np.int64]:
        """Return the labels that :meth:`sample` draws, int64 [N]: they take turns."""
        return turns(count, len(self.classes), labels)

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> Images:
        """Return ``count`` images, uint8 ``[N, H, W, C]``, as :meth:`Model.sample` does."""
        known = self.labels(count, labels)
        made: Images | None = None
        for label in np.unique(known):
            rows = np.flatnonzero(known == label)
            images = self._models[int(label)].sample(len(rows), seed=seed, truncation=truncation)
            if made is None:
                made = np.empty((count, *images.shape[1:]), np.uint8)
            made[rows] = images
        assert made is not None
        return made


def train_label(
    pool: Pool,
    label: int,
    *,
    words: Sequence[str],
    changes: Sequence[str],
    stop: Event | None = None,
) -> bool:
    """Train the pair of a label in a process of its own, or go on with it; return whether it ended.

    The process saves and ends where this is interrupted or ``stop`` is set, and ends with it.

    Args:
        pool: what it belongs to.
        label: which one.
        words: of the command ``growgan train``; a run that goes on takes the data, what stands
            before --seed, and the last option.
        changes: settings of a new run, each "key=value".

    Raises:
        UserError: the pool cannot be seen from here.
    """
    if not Pool.is_one(pool.path):
        raise UserError(f"'{pool.path}' is not seen by a worker: put it where all machines see it")
    out = ["--out", str(pool.folder(label))]
    if pool.begun(label):
        # A run that goes on knows its settings and its budget.
        known = [*words[1 : words.index("--seed")], *words[-2:]]
        command = ["grow", *known, *out, "--resume"]
    else:
        own = [*changes, f"labels.only={label}"]
        command = ["train", *words, *out, *(word for change in own for word in ("--set", change))]
    with pool.folder(label).with_suffix(".log").open("a") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", TIED, str(os.getpid()), *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )
    return _ended(child, stop) == 0


def _ended(child: subprocess.Popen[bytes], stop: Event | None) -> int:
    """Return a process's exit status, once it has ended; ask it to where this is stopped."""
    try:
        while not (stop and stop.is_set()):
            with suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.5)
    finally:
        child.terminate()  # nothing, where it has ended
        child.wait()
    return child.returncode


def begin(path: Path, asked: dict[str, Any]) -> Pool:
    """Return the pool in ``path``, written down now or as it was; ``asked`` must not differ.

    Raises:
        UserError: the folder holds other things, or a pool that was asked for otherwise.
    """
    pool = Pool(path)
    if not Pool.is_one(path):
        _write(path, asked)
    other = [key for key in asked if pool.asked.get(key) != asked[key]]
    if other:
        was, now = pool.asked.get(other[0]), asked[other[0]]
        raise UserError(f"'{path}' was begun with {other[0]} {was}, and not with {now}")
    return pool


def _write(path: Path, asked: dict[str, Any]) -> None:
    """Write down a new pool; other jobs of an array may do the same at this moment."""
    try:
        names = [each.name for each in path.iterdir()]
    except FileNotFoundError:
        names = []
    except NotADirectoryError:
        names = [path.name]
    if any(name[0] != "." for name in names) and not Pool.is_one(path):
        raise UserError(f"'{path}' is not an empty folder; choose another --out")
    try:
        with replacing(path / FILE) as part:
            part.write_text(json.dumps(asked, indent=1))
    except OSError as error:
        raise UserError(f"cannot write to '{path}': {error.strerror or error}") from error
