"""A search over several ranks: the first decides, scores and writes, the others train along."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from growgan.config import Settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.growth.executor import Asked, Silent, Trainer
from growgan.growth.scoring import batches_of
from growgan.growth.stop import SIGNALS
from growgan.training.checkpoint import unpacked
from growgan.training.gan import Gan
from growgan.training.ranks import Ranks
from growgan.training.runtime import runtime_of


def check_ranks(ranks: Ranks, settings: Settings) -> None:
    """Raise a :class:`UserError` unless each rank gets whole groups of every batch."""
    whole = ranks.count * max(1, settings.stack.deviation_group)
    if ranks.count > 1 and settings.batch % whole:
        raise UserError(
            f"batch {settings.batch} must be a multiple of {whole}, so that each of {ranks.count} "
            "ranks has whole groups; set batch, or stack.deviation_group"
        )


def follow(ranks: Ranks, data: ImageSet) -> None:
    """Train along with the first rank until it lets go or is interrupted; nothing is written.

    Raises:
        LostRank: the first rank is gone.
        UserError: this rank's data are other data.
    """
    settings, fingerprint = ranks.tell()
    if settings.labels.only is not None:
        data = data.only(settings.labels.only)
    if data.fingerprint != fingerprint:
        raise UserError(f"'{data.name}' is other data on rank {ranks.rank} than on the first")
    torch.set_num_threads(settings.threads or 1)
    runtime = replace(runtime_of(settings), ranks=ranks)
    trainer = Trainer(batches_of(data, settings), runtime, None, Silent())
    with _deaf(), suppress(KeyboardInterrupt):
        while (told := ranks.tell()) is not None:
            if isinstance(told, Asked):  # to score the pair that was trained last
                trainer.draw(gan, told)
                continue
            task, files, mark = told
            gan: Gan = unpacked(files, runtime.device)
            trainer.along(task, gan, mark)


@contextmanager
def _deaf() -> Iterator[None]:
    """Hear no signal to stop: torchrun passes it to all, and the first rank decides when."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
