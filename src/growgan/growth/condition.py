"""Teach a trained generator labels: what ``growgan condition`` and ``gg.condition`` do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.growth.budget import Budget
from growgan.growth.origin import settings_for
from growgan.growth.run import Run, grow
from growgan.training.progress import Shown


def condition(
    run: Run,
    data: ImageSet,
    *,
    out: str | Path,
    way: str = "reprogram",
    budget: str | Budget | None = None,
    images: int | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    display: Shown = None,
) -> Run:
    """Make the best pair of ``run`` conditional, by ``data`` with labels, and return the new run.

    Args:
        data: at the resolution and with the channels of the run, of which few labels are enough:
            ``settings={"labels": {"share": 0.01}}`` takes one in a hundred of each class.
        way: "reprogram" keeps the generator as it is and learns an invertible map of latents and
            labels before it (InRep+, Lee et al. 2021, 2112.10930); "fine-tune" lets both players
            read labels and trains them on.
        budget: as in :func:`growgan.grow`.
        images: as in :func:`growgan.grow`.
        settings: nested values beside those of ``run`` and those of the way.

    The new run is complete by itself, and is resumed as any other.

    Raises:
        UserError: an unknown way, data of another form or without labels, a pair that knows labels
            already, or what :func:`growgan.grow` refuses.
    """
    best = run.best
    values = settings_for(way, best.settings, len(data.classes), images or affordable(run, budget))
    chosen = make_settings(values, settings or {}, overrides=overrides)
    return grow(
        data,
        out=out,
        budget=budget,
        images=images,
        settings=chosen,
        display=display,
        origin=best.folder,
    )


def affordable(run: Run, budget: str | Budget | None) -> int | None:
    """Return how many images a budget pays for, None where it is none.

    Time is counted in the images that the best pair of ``run`` trained on in as much of it.
    """
    limit = Budget.parse(budget) if isinstance(budget, str) else budget
    if limit is None or limit.seconds is None:
        return limit.images if limit else None
    tried = {event["id"]: event for event in run.events if event["event"] == "candidate"}
    return round(limit.seconds * tried[run.best_id]["rate"]) or None
