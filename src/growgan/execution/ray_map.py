"""Calls a function on the workers of a Ray cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from growgan.execution.ray_cluster import (
    RayCluster,
    alive_nodes,
    connect,
    remote_options,
    resources_per_trial,
)

SHUTDOWN_TIMEOUT_SECONDS = 60.0  # in which interrupted calls may save and end


def map_on_workers(
    cluster: RayCluster, function: Callable[[int], bool], labels: Iterable[int]
) -> Iterator[bool]:
    """Call ``function`` for each label on the workers of a cluster; yield the results in order.

    A call whose worker dies is repeated on another one. Its result is False if that happens too
    often. If the caller is interrupted, running calls are interrupted too, and get some time to
    end.

    Raises:
        UserError: The cluster is not available, or ``function`` raised this error.
    """
    ray, owns_cluster = connect(cluster.address)
    refs: list[Any] = []
    try:
        cpus, gpus = resources_per_trial(alive_nodes(ray), cluster, None)
        remote_call = ray.remote(**remote_options(ray, cpus, gpus))(_call_interruptible)
        refs += [remote_call.remote(function, label) for label in labels]
        for ref in refs:
            try:
                yield ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError:
                yield False
    finally:
        for ref in refs:
            ray.cancel(ref)
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=SHUTDOWN_TIMEOUT_SECONDS)
        if owns_cluster:
            ray.shutdown()


def _call_interruptible(function: Callable[[int], bool], label: int) -> bool:
    """Call ``function`` in a worker such that Ray can interrupt it."""
    # Ray sends SIGINT, which processes in the background of a batch job ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return function(label)
