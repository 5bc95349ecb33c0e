"""A Ray cluster: how to connect to it, and how many trials it runs at the same time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from growgan.errors import UserError, require_extra
from growgan.execution.signals import SHUTDOWN_SIGNALS

MAX_RETRIES = 3  # restarts of a trial whose worker died
ROUNDING_TOLERANCE = 1e-6  # so that 1 GPU holds ten trials of 0.1 GPUs despite rounding


@dataclass(frozen=True)
class RayCluster:
    """Where and with which resources Ray workers train candidates.

    Attributes:
        address: Address of a Ray cluster; "auto" for the one that this machine belongs to. By
            default a cluster on this machine starts and ends with the run.
        cpus_per_trial: CPU cores per trial. The default is the share of its GPUs or, without
            GPUs, the number of threads of the run.
        gpus_per_trial: GPUs per trial. 0.5 lets two trials share one.
        asynchronous: Whether an idle worker immediately receives a new trial, instead of waiting
            for the end of the round.

    Raises:
        UserError: Ray is not installed.
    """

    address: str | None = None
    cpus_per_trial: int | None = None
    gpus_per_trial: float = 0
    asynchronous: bool = False

    def __post_init__(self) -> None:
        require_extra("ray", "a cluster", "'growgan[cluster]'")

    @property
    def default_threads(self) -> int | None:
        """Threads per trial if the settings name none; None for the share of its GPUs."""
        return self.cpus_per_trial or (None if self.gpus_per_trial else 1)


def connect(address: str | None) -> tuple[Any, bool]:
    """Connect to a Ray cluster, or start one on this machine.

    Returns:
        The module ``ray``, and whether this call connected it.

    Raises:
        UserError: There is no cluster at ``address``.
    """
    import ray

    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    previous_handlers = {number: signal.getsignal(number) for number in SHUTDOWN_SIGNALS}
    try:
        # Without an address, Ray would join the cluster named by the environment.
        ray.init(address=address or "local", log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot connect to a Ray cluster at '{address}': {error}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray's own handlers would abort the process.
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    return ray, True


def alive_nodes(ray: Any) -> list[Mapping[str, float]]:
    """Return the resources of each live node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def resources_per_trial(
    nodes: Iterable[Mapping[str, float]], cluster: RayCluster, threads: int | None
) -> tuple[int, float]:
    """Return the numbers of CPU cores and GPUs of a trial.

    Without ``cluster.cpus_per_trial``, a trial on CPUs gets ``threads`` cores. A trial on GPUs gets
    the share of its GPUs, on the node with the fewest cores per GPU.
    """
    gpus = cluster.gpus_per_trial
    if cluster.cpus_per_trial or not gpus:
        return cluster.cpus_per_trial or threads or 1, gpus
    shares = [node.get("CPU", 0) * gpus / node["GPU"] for node in nodes if node.get("GPU")]
    return max(1, int(min(shares, default=1) + ROUNDING_TOLERANCE)), gpus


def max_concurrent_trials(nodes: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """Return how many trials the nodes run at the same time. A trial must fit on one node."""
    count = 0
    for node in nodes:
        fitting = int(node.get("CPU", 0) / cpus + ROUNDING_TOLERANCE)
        if gpus:
            fitting = min(fitting, int(node.get("GPU", 0) / gpus + ROUNDING_TOLERANCE))
        count += fitting
    return count


def remote_options(ray: Any, cpus: int, gpus: float) -> dict[str, Any]:
    """Return the options of ``ray.remote`` for a trial.

    Raises:
        UserError: No node has enough resources.
    """
    if not max_concurrent_trials(alive_nodes(ray), cpus, gpus):
        resources = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(f"no node of the Ray cluster has {resources}, which each trial needs")
    return {"num_cpus": cpus, "num_gpus": gpus, "max_retries": MAX_RETRIES}
