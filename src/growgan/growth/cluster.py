"""Children trained by the workers of a Ray cluster: each is one Ray task.

What all of them need (images, settings, the network that scores) goes into Ray's object store once,
a parent's files once for all of its children; a child's files come back the same way. So workers
need no common disk, and only this process writes to the run. A child whose worker dies is begun
anew elsewhere, with the same result, since all that is random in it is a function of its task.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError, require
from growgan.growth.executor import Keeper, Outcome, Task, Trainer
from growgan.growth.history import Candidate
from growgan.growth.search import Search
from growgan.growth.stop import SIGNALS, Stop
from growgan.growth.worker import Board, Common, Word, make, moved
from growgan.training.checkpoint import Files, packed
from growgan.training.runtime import runtime_of

RETRIES = 3  # of a task whose worker died
LOOK_EVERY = 0.5  # seconds between two looks at what the workers say
COUNT_EVERY = 10.0  # seconds between two counts of the workers
ENDING = 60.0  # seconds for interrupted calls to save and end
WORDS = 20  # a second, of all workers together, that the head shows and logs
NEARLY = 1e-6  # 1 / 0.1 GPUs are ten tasks, whatever is rounded


@dataclass(frozen=True)
class Cluster:
    """How a run is spread over workers.

    Attributes:
        address: of a Ray cluster, "auto" for the one that this machine belongs to; None: a cluster
            of this machine alone, begun and ended with the run.
        cpus, gpus: what each child takes; cpus None: a GPU's share of its machine's, or, without
            GPUs, the run's threads.
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

    @property
    def threads(self) -> int | None:
        """How many a child computes by where none are named; None: its GPU's share of the cores."""
        return self.cpus or (None if self.gpus else 1)


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
        self._need = _need(_machines(ray), cluster, common.settings.threads)
        threads = common.settings.threads or self._need[0]
        settings = common.settings.model_copy(update={"threads": threads})
        self._make = ray.remote(**_options(ray, *self._need))(make)
        self._workers, self._counted = 0, float("-inf")
        common = replace(common, settings=settings, every=self.workers / WORDS)
        self._common = ray.put(common)
        self._board = _board(ray)
        self._asked = self._board.take.remote()  # for words, some time
        self._parents: dict[str, Any] = {}
        self._flying: dict[Any, Task] = {}
        self._lost: Counter[str] = Counter()  # by task: how often Ray gave it up

    @property
    def workers(self) -> int:
        """How many children are made at once; machines may come and go."""
        now = time.perf_counter()
        if now - self._counted > COUNT_EVERY:
            self._counted = now
            self._workers = max(1, _room(_machines(self._ray), *self._need))
        return self._workers

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Begin each task when there is a worker for it, and yield the outcomes in their order.

        A task is asked for no earlier, so that its slice is cut from the time that is left then.
        """
        rest, order, done = iter(tasks), deque[str](), dict[str, Outcome]()
        while True:
            for task in islice(rest, max(0, self.workers - len(self._flying))):
                self._begin(task)
                order.append(task.id)
            while order and order[0] in done:
                yield done.pop(order.popleft())
            if not order:
                return
            outcome = self.wait()
            done[outcome.task.id] = outcome

    def submit(self, task: Task) -> None:
        """Begin a task."""
        self._begin(task)

    def wait(self) -> Outcome:
        """Return the outcome of a task that is finished, whichever is first."""
        while True:
            ready = self._look(list(self._flying))
            outcome = self._outcome(ready[0]) if ready else None
            if outcome is not None:
                return outcome

    def close(self) -> None:
        """Give up what is under way, and leave the cluster."""
        for reference in self._flying:
            self._ray.cancel(reference, force=True)
        self._flying.clear()
        if self._ours:
            self._ray.shutdown()

    def _begin(self, task: Task) -> None:
        name = task.proposal.parent
        if name is not None and name not in self._parents:
            self._parents[name] = self._ray.put(self._parent(name))
        files = self._parents[name] if name is not None else None
        reference = self._make.remote(self._common, self._board, task, files)
        self._flying[reference] = task
        # What no child under way goes on from may leave the store.
        needed = {each.proposal.parent for each in self._flying.values()}
        self._parents = {key: kept for key, kept in self._parents.items() if key in needed}

    def _look(self, references: list[Any]) -> list[Any]:
        """Wait a little for some children, and pass on what workers told meanwhile.

        Raises:
            KeyboardInterrupt: the run shall stop.
        """
        ready, _ = self._ray.wait(references, timeout=LOOK_EVERY)
        tasks = {task.id: task for task in self._flying.values()}
        for name, seen, progress in self._words():
            if name not in tasks:
                continue
            if isinstance(seen, int):
                self._keeper.out_of_memory(tasks[name], seen)
            else:
                self._keeper.report(tasks[name], seen, progress)
        if self._stop.between_steps():
            raise KeyboardInterrupt
        return list(ready)

    def _words(self) -> list[Word]:
        """Return what the board has answered since it was asked; the head never waits for it."""
        if not self._ray.wait([self._asked], timeout=0)[0]:
            return []
        answer, self._asked = self._asked, self._board.take.remote()
        try:
            words: list[Word] = self._ray.get(answer)
        except self._ray.exceptions.RayError:
            return []  # the board has died, and begins anew
        return words

    def _outcome(self, reference: Any) -> Outcome | None:
        """Return the outcome of a finished task, None where it begins anew."""
        task, exceptions = self._flying.pop(reference), self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
            return replace(outcome, task=task)
        except exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), UserError):
                raise cause from None
            self._lost[task.id] += 1
            # What crashed its worker has been tried several times by Ray itself.
            crashed = isinstance(error, exceptions.WorkerCrashedError)
            if self._lost[task.id] <= RETRIES and not crashed:
                self._begin(task)
                return None
            if isinstance(error, exceptions.RayTaskError):
                raise
            said = f"its worker was lost {RETRIES + 1} times"
            return Outcome(task, error=f"{said}: {str(error).strip().splitlines()[0]}", lost=True)


def search_on(
    cluster: Cluster, search: Search, trainer: Trainer, data: ImageSet, stop: Stop
) -> Candidate | None:
    """Run a search whose children are trained on a cluster; return the best candidate.

    Raises:
        UserError: the cluster cannot be had, or has no GPUs for a device that is one.
    """
    # A plain array goes into the store as it is, and is read there without a copy.
    data = replace(data, images=np.asarray(data.images))
    origin = packed(trainer.origin) if trainer.origin is not None else None
    extractor = moved(trainer.scorer.extractor if trainer.scorer else None, torch.device("cpu"))
    settings = _placed(search.settings, cluster)
    if settings.device == "cpu" and trainer.runtime.device.type != "cpu":
        search.display.message("children are trained by CPUs; --gpus 1 gives each of them a GPU")
    common = Common(uuid4().hex, data, settings, extractor, origin)
    executor = RayExecutor(cluster, common, search.files, search.keeper, stop)
    try:
        if search.meter.budget.seconds is not None:
            search.history = replace(search.history, workers=executor.workers)
        return search.run_freely(executor) if cluster.free else search.run(executor)
    finally:
        executor.close()


def _placed(settings: Settings, cluster: Cluster) -> Settings:
    """Return ``settings`` for workers: without a GPU of its own, a child trains on CPUs.

    Ray does not hide GPUs from who takes none, and all children would share the first one. The
    precision is decided here, once for all workers, unless they have GPUs and this machine has not.

    Raises:
        UserError: the device is named, and is a GPU.
    """
    if not cluster.gpus:
        if settings.device not in ("auto", "cpu"):
            raise UserError(f"with --executor ray, device '{settings.device}' needs --gpus above 0")
        settings = settings.model_copy(update={"device": "cpu"})
    here = runtime_of(settings)
    if cluster.gpus and here.device.type == "cpu":
        return settings
    precision = "bfloat16" if here.bfloat16 else "float32"
    return settings.model_copy(update={"precision": precision})


def spread(cluster: Cluster, make: Callable[[int], bool], numbers: Iterable[int]) -> Iterator[bool]:
    """Call ``make`` for each number on the workers of a cluster; yield what it returns, in order.

    A call whose worker is lost is given to another, and is False where that happens too often. What
    is under way when the caller is interrupted is interrupted, too, and has some time to end.

    Raises:
        UserError: the cluster cannot be had, or ``make`` raised it.
    """
    ray, ours = _connected(cluster.address)
    references: list[Any] = []
    try:
        need = _need(_machines(ray), cluster, None)
        call = ray.remote(**_options(ray, *need))(_called)
        references += [call.remote(make, number) for number in numbers]
        for reference in references:
            try:
                yield ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:
                yield False
    finally:
        for reference in references:
            ray.cancel(reference)
        if references:
            ray.wait(references, num_returns=len(references), timeout=ENDING)
        if ours:
            ray.shutdown()


def _called(make: Callable[[int], bool], number: int) -> bool:
    """Call ``make`` in a worker, so that Ray can interrupt it."""
    # Ray does it as Ctrl-C would, which is ignored in the background of a batch job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return make(number)


def _board(ray: Any) -> Any:
    """Return a board on this machine, which dies with the search, and not with another machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    how = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(**how)(Board).remote()


def _options(ray: Any, cpus: int, gpus: float) -> dict[str, Any]:
    """Return what Ray is told of a task.

    Raises:
        UserError: no machine has what it takes.
    """
    if not _room(_machines(ray), cpus, gpus):
        need = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(f"no worker of the cluster has {need}, which a task takes")
    return {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}


def _connected(address: str | None) -> tuple[Any, bool]:
    """Return Ray, connected, and whether that was done here."""
    import ray

    if ray.is_initialized():
        return ray, False
    how: dict[str, Any] = {} if address else {"include_dashboard": False}
    before = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        # Without a name, Ray would join whatever cluster the environment names.
        ray.init(address=address or "local", log_to_driver=False, **how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"there is no Ray cluster at '{address}': {error}") from error
    if threading.current_thread() is threading.main_thread():
        for each, handler in before.items():  # Ray's own would abort the process
            signal.signal(each, handler)
    return ray, True


def _machines(ray: Any) -> list[Mapping[str, float]]:
    """Return what each living machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _need(
    machines: Iterable[Mapping[str, float]], cluster: Cluster, threads: int | None
) -> tuple[int, float]:
    """Return how many CPUs and GPUs a task takes.

    Where no CPUs are named, these are as many as ``threads``; beside a GPU its share of them, on
    the machine that has the fewest for each.
    """
    gpus = cluster.gpus
    if cluster.cpus or not gpus:
        return cluster.cpus or threads or 1, gpus
    shares = [each.get("CPU", 0) * gpus / each["GPU"] for each in machines if each.get("GPU")]
    return max(1, int(min(shares, default=1) + NEARLY)), gpus


def _room(machines: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """Return how many tasks the machines take at once: one must fit on a single machine."""
    room = 0
    for each in machines:
        most = int(each.get("CPU", 0) / cpus + NEARLY)
        room += min(most, int(each.get("GPU", 0) / gpus + NEARLY)) if gpus else most
    return room
