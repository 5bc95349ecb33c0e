"""Interfaces of executors, and the executor that trains in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from growgan.execution.trainer import CandidateTrainer
from growgan.execution.trial import Trial, TrialResult
from growgan.training.gan import Gan


class Executor(Protocol):
    """Runs trials, one by one or several at a time."""

    def run(self, trials: Iterable[Trial]) -> Iterator[TrialResult]:
        """Yield the result of each trial, in the order of the trials."""


class AsyncExecutor(Executor, Protocol):
    """An executor whose workers can also be given trials as soon as they are idle."""

    @property
    def num_workers(self) -> int:
        """Number of trials that run at the same time."""

    def submit(self, trial: Trial) -> None:
        """Start a trial from the current state of its parent. A worker must be idle."""

    def wait(self) -> TrialResult:
        """Wait for the first trial to finish, and return its result."""


@dataclass
class SerialExecutor:
    """Trains one candidate after another in this process.

    Attributes:
        trainer: Trains the candidates.
        load_parent: Returns the GAN of a candidate by its id.
    """

    trainer: CandidateTrainer
    load_parent: Callable[[str], Gan]

    def run(self, trials: Iterable[Trial]) -> Iterator[TrialResult]:
        """Yield the result of each trial."""
        for trial in trials:
            parent_id = trial.proposal.parent_id
            parent = self.load_parent(parent_id) if parent_id else None
            yield self.trainer.run(trial, parent)
