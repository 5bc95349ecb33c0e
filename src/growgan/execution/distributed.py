"""Trains one run in several processes under torchrun.

The main process decides, scores and writes. The other processes, the followers, train and generate
samples with it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.callback import NullCallback
from growgan.execution.scoring import build_batches
from growgan.execution.signals import SHUTDOWN_SIGNALS
from growgan.execution.trainer import CandidateTrainer
from growgan.execution.trial import SampleRequest, TrainRequest
from growgan.training.checkpoint import gan_from_files
from growgan.training.distributed import DistributedContext
from growgan.training.gan import Gan
from growgan.training.runtime import runtime_from_settings


def check_batch_size(distributed: DistributedContext, settings: Settings) -> None:
    """Check that each process gets whole mbstd groups of every batch.

    Raises:
        UserError: It does not.
    """
    divisor = distributed.world_size * max(1, settings.network.mbstd_group_size)
    if distributed.world_size > 1 and settings.batch_size % divisor:
        raise UserError(
            f"batch_size must be a multiple of {divisor} with {distributed.world_size} processes "
            f"and network.mbstd_group_size {settings.network.mbstd_group_size}, but got "
            f"{settings.batch_size}"
        )


def follower_loop(distributed: DistributedContext, data: ImageSet) -> None:
    """Follow the requests of the main process until it ends or is interrupted.

    Followers write no files.

    Raises:
        PeerLostError: The main process died.
        UserError: This process has other data than the main process.
    """
    settings, fingerprint = distributed.broadcast_object()
    if settings.labels.only_class is not None:
        data = data.only_class(settings.labels.only_class)
    if data.fingerprint != fingerprint:
        raise UserError(
            f"'{data.name}' differs between process {distributed.rank} and the main process; "
            "all processes must read the same data"
        )
    torch.set_num_threads(settings.threads or 1)
    runtime = replace(runtime_from_settings(settings), distributed=distributed)
    trainer = CandidateTrainer(build_batches(data, settings), runtime, None, NullCallback())
    gan: Gan | None = None
    with _ignore_shutdown_signals(), suppress(KeyboardInterrupt):
        while (request := distributed.broadcast_object()) is not None:
            if isinstance(request, TrainRequest):
                gan = gan_from_files(request.checkpoint_files, runtime.device)
                trainer.train_only(request.trial, gan, request.resume_point)
            elif isinstance(request, SampleRequest) and gan is not None:
                trainer.candidate_scorer.sample_for_score(gan, request)
            else:
                raise ValueError(f"unexpected request of the main process: {request!r:.80}")


@contextmanager
def _ignore_shutdown_signals() -> Iterator[None]:
    """Ignore signals to stop. torchrun sends them to all processes, but the main one decides."""
    previous_handlers = {
        number: signal.signal(number, signal.SIG_IGN) for number in SHUTDOWN_SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
