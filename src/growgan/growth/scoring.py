"""What a run's children are made and scored with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from growgan.config import Settings
from growgan.data import ImageSet, default_cache
from growgan.data.batches import Batches
from growgan.errors import UserError
from growgan.growth.budget import Budget
from growgan.growth.executor import SCORE_SEED, Trainer
from growgan.growth.ledger import Ledger
from growgan.growth.origin import origin_of
from growgan.growth.search import Search
from growgan.metrics.features import Extractor, domain_extractor
from growgan.metrics.protocol import Protocol
from growgan.metrics.score import GROUPS, Scorer
from growgan.metrics.watch import Progress, unseen
from growgan.objectives import make_objective
from growgan.training.doctor import LOOKED_AT
from growgan.training.runtime import Runtime


def keep_protocol(ledger: Ledger, protocol: Protocol) -> None:
    """Write down what scores are measured with, once; a resumed run must score by the same.

    Raises:
        UserError: the scores in the ledger are of another protocol; it says in what it differs.
    """
    for event in ledger.read():
        if event["event"] == "protocol":
            differences = Protocol.from_json(event["protocol"]).differences(protocol)
            if differences:
                raise UserError(
                    "the run's scores were measured otherwise, and new ones would not compare: "
                    + "; ".join(differences)
                )
            return
    ledger.append({"event": "protocol", "protocol": protocol.to_json()})


def trainer_of(
    out: Path, settings: Settings, search: Search, data: ImageSet, runtime: Runtime
) -> Trainer:
    """Return what makes the run's children."""
    # All scores of a run are by one network, the one that its first budget could afford.
    start = next(Ledger(out / "ledger.jsonl").read())
    first, copy = Budget(**start["budget"]), out / "extractor.safetensors"

    def learnt(done: int, count: int) -> None:
        if done == 1:
            search.display.message("learning, once, by what these images are told apart")

    scorer = make_scorer(data, settings, first, runtime.device, copy, learnt)
    drawn = f"latents {SCORE_SEED:#x}, even in {GROUPS} groups"
    keep_protocol(search.ledger, replace(scorer.protocol, preparation=drawn))
    origin = origin_of(out, runtime.device) if settings.origin != "none" else None
    batches = batches_of(data, settings)
    # Other ranks have a share of each batch, and do not know in how many parts it went alone.
    parts = search.parts if runtime.ranks.count == 1 else 1
    return Trainer(batches, runtime, scorer, search.keeper, origin, parts)


def make_scorer(
    data: ImageSet,
    settings: Settings,
    budget: Budget,
    device: torch.device,
    copy: Path | None = None,
    progress: Progress = unseen,
) -> Scorer:
    """Return the scorer for ``data``; its feature network is trained once and cached.

    The run that it is for keeps a ``copy`` of it. A budget under four minutes gets a network that
    is trained for less, in tenths.
    """
    extractor = None
    if settings.score.kind != "swd":
        effort = min(1.0, math.ceil((budget.seconds or 240) / 24) / 10)
        extractor = domain_extractor(
            data.images,
            data.labels,
            fingerprint=data.fingerprint,
            cache=default_cache(),
            device=device,
            effort=effort,
            copy=copy,
            progress=progress,
        )
    return scorer_of(data, settings, extractor)


def scorer_of(data: ImageSet, settings: Settings, extractor: Extractor | None) -> Scorer:
    """Return the scorer for ``data`` with a network that is there."""
    score = settings.score
    return Scorer(
        data.images, extractor, samples=score.samples, kind=score.kind, labels=data.labels
    )


def batches_of(data: ImageSet, settings: Settings) -> Batches:
    """Return the batches that a run trains on: of all images, or of those that ``labels`` says.

    Some are held out, unless images repeat. Labels that the conditioning does not use are left out;
    so are images without a label where D has but one logit for each class, and none for them.
    """
    own, conditioning = settings.labels, make_objective(settings).conditioning
    bare = data.labels is not None and bool((data.labels < 0).any())
    few = own.share < 1 or (bare and conditioning.judging == "heads")
    seen = data.labelled(own.share, settings.seed) if few else data
    seen = seen.balanced() if own.balance else seen
    seen = seen if conditioning.labelled else replace(seen, labels=None)
    held = 0 if own.balance else held_out(len(seen))
    return Batches(seen, settings.batch, settings.seed, held)


def held_out(images: int) -> int:
    """Return how many images are kept from training, for the doctor to try D on."""
    return min(LOOKED_AT, images // 50) if images >= 2000 else 0
