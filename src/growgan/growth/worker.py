"""What a worker of a Ray cluster does: it makes children, and tells how they fare."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from growgan import __version__
from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.executor import Outcome, Silent, Standing, Task, Trainer
from growgan.growth.scoring import batches_of, scorer_of
from growgan.metrics.features import DomainExtractor, Extractor
from growgan.training.checkpoint import Files, packed, unpacked
from growgan.training.runtime import runtime_of
from growgan.training.stage import Progress


@dataclass(frozen=True)
class Common:
    """What every child of a run needs.

    Attributes:
        version: of growgan, as the head has it.
        every: seconds between two words that a worker sends of its child.
    """

    run: str
    data: ImageSet
    settings: Settings
    extractor: Extractor | None
    origin: Files | None = None
    version: str = __version__
    every: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What of a pair in training is shown."""

    resolution: tuple[int, int]
    alpha: float
    images: int


# Of a child, by its id: where it stands, or parts that its batches need.
Word = tuple[str, Seen | int, Progress | None]


class Board:
    """An actor on which workers write how their children fare: of each one the newest word."""

    def __init__(self) -> None:
        self.words: dict[tuple[str, bool], Word] = {}

    def write(self, word: Word) -> None:
        """Write a word over the last one of its kind."""
        self.words[word[0], isinstance(word[1], int)] = word

    def take(self) -> list[Word]:
        """Return what was written since the last call."""
        words, self.words = list(self.words.values()), {}
        return words


class Teller(Silent):
    """The :class:`Keeper` of a worker: it tells the board, and keeps nothing.

    A child whose worker dies begins anew.
    """

    def __init__(self, board: Any, every: float = 0.0) -> None:
        self.board, self.every = board, every
        self._told = float("-inf")

    def report(self, task: Task, gan: Standing, progress: Progress | None) -> None:
        """Tell where a child stands, if it is time to."""
        now = time.perf_counter()
        if progress is not None and now - self._told < self.every:
            return
        self._told = now
        seen = Seen(gan.resolution, gan.alpha, gan.images)
        self.board.write.remote((task.id, seen, progress))

    def out_of_memory(self, task: Task, parts: int) -> None:
        """Tell that batches go through in parts."""
        self.board.write.remote((task.id, parts, None))


_trainers: dict[str, Trainer] = {}  # of this worker's process, by run; the newest one only


def make(common: Common, board: Any, task: Task, parent: Files | None) -> Outcome:
    """Make one child in a worker; return its outcome, with the pair's files.

    Raises:
        UserError: the worker's growgan is of another version than the head's.
    """
    if common.version != __version__:
        raise UserError(
            f"a worker has growgan {__version__}, and the head has {common.version}: "
            "install the same on all machines"
        )
    if common.run not in _trainers:
        _trainers.clear()
        _trainers[common.run] = _trainer(common)
    trainer = _trainers[common.run]
    trainer.keeper = Teller(board, common.every)
    torch.set_num_threads(common.settings.threads or 1)
    outcome = trainer.make(task, unpacked(parent, trainer.runtime.device) if parent else None)
    files = packed(outcome.gan) if outcome.gan is not None else None
    return replace(outcome, gan=None, files=files)


def _trainer(common: Common) -> Trainer:
    """Return what makes a run's children, in this process."""
    data, settings = common.data, common.settings
    runtime = runtime_of(settings)
    scorer = scorer_of(data, settings, moved(common.extractor, runtime.device))
    trainer = Trainer(batches_of(data, settings), runtime, scorer, Silent())
    if common.origin:
        trainer.origin = unpacked(common.origin, runtime.device)
    return trainer


def moved(extractor: Extractor | None, device: torch.device) -> Extractor | None:
    """Return the network that scores on another device."""
    if not isinstance(extractor, DomainExtractor):
        return extractor
    own, network = extractor, deepcopy(extractor.network)
    return DomainExtractor(network, own.resolution, own.channels, own.metadata, device)
