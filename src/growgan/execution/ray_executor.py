"""Trains candidates on the workers of a Ray cluster. Each trial is a Ray task.

Ray's object store holds what all trials need (images, settings, feature extractor) once, and the
checkpoint of a parent once for all of its children. Results return in the same way. Workers
therefore need no shared disk, and only this process writes to the run directory. A trial whose
worker dies is restarted on another one with the same result, because everything random in it is a
function of the trial.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.callback import TrainingCallback
from growgan.execution.ray_cluster import (
    MAX_RETRIES,
    RayCluster,
    alive_nodes,
    connect,
    max_concurrent_trials,
    remote_options,
    resources_per_trial,
)
from growgan.execution.ray_worker import (
    OutOfMemoryUpdate,
    ProgressActor,
    Update,
    WorkerContext,
    extractor_to,
    train_candidate,
)
from growgan.execution.trainer import CandidateTrainer
from growgan.execution.trial import Trial, TrialResult
from growgan.training.checkpoint import CheckpointFiles, gan_to_files
from growgan.training.runtime import runtime_from_settings

POLL_INTERVAL_SECONDS = 0.5  # between two polls of the updates from the workers
WORKER_COUNT_INTERVAL_SECONDS = 10.0  # between two counts of the workers
MAX_UPDATES_PER_SECOND = 20  # progress updates of all workers together


class RayExecutor:
    """Trains candidates on a Ray cluster, in rounds or asynchronously.

    Args:
        cluster: The cluster, and the resources of a trial.
        context: What every trial needs.
        load_parent: Returns the checkpoint files of a candidate by its id.
        callback: Receives the progress of all trials.
        should_stop: Returns whether to stop; called every half second.

    Raises:
        UserError: There is no such cluster, or none of its nodes has the resources of a trial.
    """

    def __init__(
        self,
        cluster: RayCluster,
        context: WorkerContext,
        *,
        load_parent: Callable[[str], CheckpointFiles],
        callback: TrainingCallback,
        should_stop: Callable[[], bool],
    ) -> None:
        ray, self._owns_cluster = connect(cluster.address)
        self._ray = ray
        self._load_parent, self._callback = load_parent, callback
        self._should_stop = should_stop
        threads = context.settings.threads
        self._cpus, self._gpus = resources_per_trial(alive_nodes(ray), cluster, threads)
        options = remote_options(ray, self._cpus, self._gpus)
        self._remote_train = ray.remote(**options)(train_candidate)
        self._num_workers, self._counted_at = 0, float("-inf")
        context = replace(
            context,
            settings=context.settings.model_copy(update={"threads": threads or self._cpus}),
            update_interval_seconds=self.num_workers / MAX_UPDATES_PER_SECOND,
        )
        self._context_ref = ray.put(context)
        self._progress_actor = _start_progress_actor(ray)
        self._pending_updates = self._progress_actor.drain.remote()
        self._parent_refs: dict[str, Any] = {}
        self._running_trials: dict[Any, Trial] = {}
        self._num_losses: Counter[str] = Counter()  # by trial: how often Ray gave it up

    @property
    def num_workers(self) -> int:
        """Number of trials that run at the same time. It changes if nodes join or leave."""
        now = time.perf_counter()
        if now - self._counted_at > WORKER_COUNT_INTERVAL_SECONDS:
            self._counted_at = now
            nodes = alive_nodes(self._ray)
            self._num_workers = max(1, max_concurrent_trials(nodes, self._cpus, self._gpus))
        return self._num_workers

    def run(self, trials: Iterable[Trial]) -> Iterator[TrialResult]:
        """Start each trial when a worker is idle, and yield the results in the order of trials.

        The next trial is requested no earlier, so that its segment depends on the time left then.
        """
        remaining = iter(trials)
        order, finished = deque[str](), dict[str, TrialResult]()
        while True:
            num_idle = max(0, self.num_workers - len(self._running_trials))
            for trial in islice(remaining, num_idle):
                self._start_trial(trial)
                order.append(trial.id)
            while order and order[0] in finished:
                yield finished.pop(order.popleft())
            if not order:
                return
            result = self.wait()
            finished[result.trial.id] = result

    def submit(self, trial: Trial) -> None:
        """Start a trial."""
        self._start_trial(trial)

    def wait(self) -> TrialResult:
        """Wait for the first trial to finish, and return its result.

        Raises:
            KeyboardInterrupt: The run must stop.
        """
        while True:
            ready = self._poll(list(self._running_trials))
            result = self._fetch_result(ready[0]) if ready else None
            if result is not None:
                return result

    def close(self) -> None:
        """Cancel all running trials, and disconnect from the cluster."""
        for ref in self._running_trials:
            self._ray.cancel(ref, force=True)
        self._running_trials.clear()
        if self._owns_cluster:
            self._ray.shutdown()

    def _start_trial(self, trial: Trial) -> None:
        parent_id = trial.proposal.parent_id
        if parent_id is not None and parent_id not in self._parent_refs:
            self._parent_refs[parent_id] = self._ray.put(self._load_parent(parent_id))
        parent_ref = self._parent_refs[parent_id] if parent_id is not None else None
        ref = self._remote_train.remote(self._context_ref, self._progress_actor, trial, parent_ref)
        self._running_trials[ref] = trial
        # Free the parents that no running trial needs.
        needed = {running.proposal.parent_id for running in self._running_trials.values()}
        self._parent_refs = {
            parent: parent_ref
            for parent, parent_ref in self._parent_refs.items()
            if parent in needed
        }

    def _poll(self, refs: list[Any]) -> list[Any]:
        """Wait briefly for trials to finish, and pass on the updates of the workers.

        Raises:
            KeyboardInterrupt: The run must stop.
        """
        ready, _ = self._ray.wait(refs, timeout=POLL_INTERVAL_SECONDS)
        trials = {trial.id: trial for trial in self._running_trials.values()}
        for update in self._fetch_updates():
            trial = trials.get(update.trial_id)
            if trial is None:
                continue
            if isinstance(update, OutOfMemoryUpdate):
                self._callback.on_out_of_memory(trial, update.num_micro_batches)
            else:
                self._callback.on_progress(trial, update.status, update.progress)
        if self._should_stop():
            raise KeyboardInterrupt
        return list(ready)

    def _fetch_updates(self) -> list[Update]:
        """Return the updates that have arrived, without waiting for any."""
        if not self._ray.wait([self._pending_updates], timeout=0)[0]:
            return []
        updates_ref = self._pending_updates
        self._pending_updates = self._progress_actor.drain.remote()
        try:
            updates: list[Update] = self._ray.get(updates_ref)
        except self._ray.exceptions.RayError:
            return []  # the actor died, and Ray restarts it
        return updates

    def _fetch_result(self, ref: Any) -> TrialResult | None:
        """Return the result of a finished trial, None if its worker died and it restarts."""
        trial, exceptions = self._running_trials.pop(ref), self._ray.exceptions
        try:
            result: TrialResult = self._ray.get(ref)
            return replace(result, trial=trial)
        except exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), UserError):
                raise cause from None
            self._num_losses[trial.id] += 1
            # Ray itself has already restarted a trial that crashed its worker.
            crashed = isinstance(error, exceptions.WorkerCrashedError)
            if self._num_losses[trial.id] <= MAX_RETRIES and not crashed:
                self._start_trial(trial)
                return None
            if isinstance(error, exceptions.RayTaskError):
                raise
            reason = str(error).strip().splitlines()[0]
            return TrialResult(
                trial,
                error=f"its worker was lost {MAX_RETRIES + 1} times: {reason}",
                worker_lost=True,
            )


def build_worker_context(
    cluster: RayCluster, settings: Settings, trainer: CandidateTrainer, data: ImageSet
) -> WorkerContext:
    """Return what all workers need to train and score candidates as ``trainer`` does.

    Raises:
        UserError: The settings name a GPU, but the trials get none.
    """
    # Ray stores a plain array as it is, and workers read it without a copy.
    data = replace(data, images=np.asarray(data.images))
    pretrained_gan, scorer = trainer.pretrained_gan, trainer.candidate_scorer.scorer
    return WorkerContext(
        run_id=uuid4().hex,
        data=data,
        settings=_worker_settings(settings, cluster),
        extractor=extractor_to(scorer.extractor if scorer else None, torch.device("cpu")),
        pretrained_files=gan_to_files(pretrained_gan) if pretrained_gan is not None else None,
    )


def _worker_settings(settings: Settings, cluster: RayCluster) -> Settings:
    """Return the settings of workers, with their device and precision.

    Trials without GPUs train on CPUs. Ray does not hide GPUs from tasks that request none, so all
    trials would share the first one otherwise. The precision is that of this machine, unless the
    trials use GPUs and this machine has none.

    Raises:
        UserError: The settings name a GPU, but the trials get none.
    """
    if not cluster.gpus_per_trial:
        if settings.device not in ("auto", "cpu"):
            raise UserError(
                f"device '{settings.device}' needs --gpus-per-worker above 0 with --executor ray"
            )
        settings = settings.model_copy(update={"device": "cpu"})
    runtime = runtime_from_settings(settings)
    if cluster.gpus_per_trial and runtime.device.type == "cpu":
        return settings
    precision = "bfloat16" if runtime.use_bfloat16 else "float32"
    return settings.model_copy(update={"precision": precision})


def _start_progress_actor(ray: Any) -> Any:
    """Start the progress actor on this node, so that it dies with the search and no earlier."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node_id = ray.get_runtime_context().get_node_id()
    remote_class = ray.remote(
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )(ProgressActor)
    return remote_class.remote()
