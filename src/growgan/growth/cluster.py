"""Children trained by the workers of a Ray cluster: each is one Ray task.

What all of them need (images, settings, the network that scores) goes into Ray's object store once,
a parent's files once for all of its children; a child's files come back the same way. So workers
need no common disk, and only this process writes to the run. A child whose worker dies is begun
anew elsewhere, with the same result, since all that is random in it is a function of its task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError, require
from growgan.growth.executor import Keeper, Outcome, Silent, Standing, Task, Trainer, batches_of
from growgan.growth.history import Candidate
from growgan.growth.scoring import scorer_of
from growgan.growth.search import Search
from growgan.growth.stop import Stop
from growgan.metrics.features import Extractor
from growgan.training.checkpoint import Files, packed, unpacked
from growgan.training.runtime import runtime_of
from growgan.training.stage import Progress

RETRIES = 3  # of a task whose worker died
LOOK_EVERY = 0.5  # seconds between two looks at what the workers say


@dataclass(frozen=True)
class Cluster:
    """How a run is spread over workers.

    Attributes:
        address: of a Ray cluster, "auto" for the one that this machine belongs to; None: a cluster
            of this machine alone, begun and ended with the run.
        cpus, gpus: what each child takes; cpus None: the run's threads.
        free: without rounds: a worker that is free takes the next proposal at once.

    Raises:
        UserError: Ray is not installed.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: float = 0
    free: bool = False

    def __post_init__(self) -> None:
        require("ray", "a cluster", "'growgan[cluster]'")


@dataclass(frozen=True)
class Common:
    """What every child of a run needs."""

    run: str
    data: ImageSet
    settings: Settings
    extractor: Extractor | None
    origin: Files | None = None


@dataclass(frozen=True)
class Seen:
    """What of a pair in training is shown."""

    resolution: tuple[int, int]
    alpha: float
    images: int


Word = tuple[Task, Seen | int, Progress | None]  # of a child: where it stands, or parts it needs


class Board:
    """An actor on which workers write how their children fare."""

    def __init__(self) -> None:
        self.words: list[Word] = []

    def write(self, word: Word) -> None:
        """Add a word."""
        self.words.append(word)

    def take(self) -> list[Word]:
        """Return what was written since the last call."""
        words, self.words = self.words, []
        return words


class Teller(Silent):
    """The :class:`Keeper` of a worker: it tells the board, and keeps nothing.

    A child whose worker dies begins anew.
    """

    def __init__(self, board: Any) -> None:
        self.board = board

    def report(self, task: Task, gan: Standing, progress: Progress | None) -> None:
        """Tell where a child stands."""
        self.board.write.remote((task, Seen(gan.resolution, gan.alpha, gan.images), progress))

    def out_of_memory(self, task: Task, parts: int) -> None:
        """Tell that batches go through in parts."""
        self.board.write.remote((task, parts, None))


_trainers: dict[str, Trainer] = {}  # of this worker's process, by run; the newest one only


def make(common: Common, board: Any, task: Task, parent: Files | None) -> Outcome:
    """Make one child in a worker; return its outcome, with the pair's files."""
    if common.run not in _trainers:
        _trainers.clear()
        _trainers[common.run] = _trainer(common)
    trainer = _trainers[common.run]
    trainer.keeper = Teller(board)
    torch.set_num_threads(common.settings.threads or 1)
    outcome = trainer.make(task, unpacked(parent, trainer.runtime.device) if parent else None)
    files = packed(outcome.gan) if outcome.gan is not None else None
    return replace(outcome, gan=None, files=files)


def _trainer(common: Common) -> Trainer:
    """Return what makes a run's children, in this process."""
    data, settings = common.data, common.settings
    scorer = scorer_of(data, settings, common.extractor)
    runtime = runtime_of(settings)
    trainer = Trainer(batches_of(data, settings), runtime, scorer, Silent())
    if common.origin:
        trainer.origin = unpacked(common.origin, runtime.device)
    return trainer


class RayExecutor:
    """Trains children on a Ray cluster, in rounds or whenever a worker is free.

    Args:
        parent: returns the files of a parent's players by id.
        keeper: shows and logs what workers tell.

    Raises:
        UserError: Ray is not installed, or there is no such cluster, or none of its workers has
            what a child takes.
    """

    def __init__(
        self,
        cluster: Cluster,
        common: Common,
        parent: Callable[[str], Files],
        keeper: Keeper,
        stop: Stop,
    ) -> None:
        ray, self._ours = _connected(cluster.address)
        self._ray = ray
        self._parent, self._keeper, self._stop = parent, keeper, stop
        cpus = cluster.cpus or common.settings.threads or 1
        self._make = ray.remote(**_taken(ray, cluster, cpus))(make)
        self.workers = _room(ray.cluster_resources(), cpus, cluster.gpus)
        self._common = ray.put(common)
        self._board: Any = ray.remote(num_cpus=0)(Board).remote()
        self._parents: dict[str, Any] = {}
        self._flying: dict[Any, Task] = {}

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Begin all tasks at once, and yield their outcomes in their order."""
        begun = [self._begin(task) for task in tasks]
        for reference in begun:
            yield self._outcome(reference)

    def submit(self, task: Task) -> None:
        """Begin a task."""
        self._begin(task)

    def wait(self) -> Outcome:
        """Return the outcome of a task that is finished, whichever is first."""
        while True:
            ready = self._look(list(self._flying))
            if ready:
                return self._outcome(ready[0])

    def close(self) -> None:
        """Give up what is under way, and leave the cluster."""
        for reference in self._flying:
            self._ray.cancel(reference, force=True)
        self._flying.clear()
        if self._ours:
            self._ray.shutdown()

    def _begin(self, task: Task) -> Any:
        name = task.proposal.parent
        if name is not None and name not in self._parents:
            self._parents[name] = self._ray.put(self._parent(name))
        files = self._parents[name] if name is not None else None
        reference = self._make.remote(self._common, self._board, task, files)
        self._flying[reference] = task
        # What no child under way goes on from may leave the store.
        needed = {each.proposal.parent for each in self._flying.values()}
        self._parents = {key: kept for key, kept in self._parents.items() if key in needed}
        return reference

    def _look(self, references: list[Any]) -> list[Any]:
        """Wait a little for some children, and pass on what workers told meanwhile.

        Raises:
            KeyboardInterrupt: the run shall stop.
        """
        ready, _ = self._ray.wait(references, timeout=LOOK_EVERY)
        for task, seen, progress in self._ray.get(self._board.take.remote()):
            if isinstance(seen, int):
                self._keeper.out_of_memory(task, seen)
            else:
                self._keeper.report(task, seen, progress)
        if self._stop.between_steps():
            raise KeyboardInterrupt
        return list(ready)

    def _outcome(self, reference: Any) -> Outcome:
        while not self._look([reference]):
            pass
        task = self._flying.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.WorkerCrashedError:
            return Outcome(task, error=f"its worker died {RETRIES + 1} times")
        return replace(outcome, task=task)


def search_on(
    cluster: Cluster, search: Search, trainer: Trainer, data: ImageSet, stop: Stop
) -> Candidate | None:
    """Run a search whose children are trained on a cluster; return the best candidate.

    Raises:
        UserError: the cluster cannot be had.
    """
    # A plain array goes into the store as it is, and is read there without a copy.
    data = replace(data, images=np.asarray(data.images))
    origin = packed(trainer.origin) if trainer.origin is not None else None
    extractor = trainer.scorer.extractor if trainer.scorer else None
    common = Common(uuid4().hex, data, search.settings, extractor, origin)
    executor = RayExecutor(cluster, common, search.files, search.keeper, stop)
    try:
        if search.meter.budget.seconds is not None:
            search.history = replace(search.history, workers=executor.workers)
        return search.run_freely(executor) if cluster.free else search.run(executor)
    finally:
        executor.close()


def spread(cluster: Cluster, make: Callable[[int], bool], numbers: Iterable[int]) -> Iterator[bool]:
    """Call ``make`` for each number on the workers of a cluster; yield what it returns, in order.

    A call whose worker dies is given to another, and is False where that happens too often.

    Raises:
        UserError: the cluster cannot be had, or ``make`` raised it.
    """
    ray, ours = _connected(cluster.address)
    try:
        call = ray.remote(**_taken(ray, cluster, cluster.cpus or 1))(lambda number: make(number))
        for reference in [call.remote(number) for number in numbers]:
            try:
                yield ray.get(reference)
            except ray.exceptions.WorkerCrashedError:
                yield False
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        if ours:
            ray.shutdown()


def _taken(ray: Any, cluster: Cluster, cpus: int) -> dict[str, Any]:
    """Return what Ray is told that a task takes.

    Raises:
        UserError: no worker has that.
    """
    if not _room(ray.cluster_resources(), cpus, cluster.gpus):
        need = f"{cpus} CPUs" + (f" and {cluster.gpus:g} GPUs" if cluster.gpus else "")
        raise UserError(f"no worker of the cluster has {need}, which a task takes")
    return {"num_cpus": cpus, "num_gpus": cluster.gpus, "max_retries": RETRIES}


def _connected(address: str | None) -> tuple[Any, bool]:
    """Return Ray, connected, and whether that was done here."""
    import ray

    if ray.is_initialized():
        return ray, False
    how: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, **how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"there is no Ray cluster at '{address}': {error}") from error
    return ray, True


def _room(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Return how many children the cluster makes at once."""
    most = int(resources.get("CPU", 0) // cpus)
    return min(most, int(resources.get("GPU", 0) // gpus)) if gpus else most
