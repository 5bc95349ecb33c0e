"""Makes a pretrained GAN class-conditional, for ``growgan finetune`` and the Python API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.execution.warm_start import finetune_settings
from growgan.run.grow import grow
from growgan.run.run import Run
from growgan.search.budget import Budget
from growgan.training.progress import DisplayArg


def finetune(
    run: Run,
    data: ImageSet,
    *,
    out: str | Path,
    method: str = "reprogram",
    budget: str | Budget | None = None,
    images: int | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    display: DisplayArg = None,
) -> Run:
    """Make the best GAN of ``run`` conditional on the labels of ``data``; return the new run.

    The new run does not need the old one, and is resumed like any other.

    Args:
        run: The run to start from.
        data: Labeled images with the resolution and the channels of the run. Few labels are enough:
            ``settings={"labels": {"fraction": 0.01}}`` uses one percent of each class.
        out: Directory of the new run.
        method: "reprogram" freezes the generator and trains an invertible map of latents and labels
            before it (InRep+, Lee et al. 2021, 2112.10930). "finetune" adds label inputs to G and D
            and trains both.
        budget: As in :func:`growgan.grow`.
        images: As in :func:`growgan.grow`.
        settings: Nested values that differ from the settings of ``run`` and of the method.
        overrides: ``key=value`` settings, which take precedence over ``settings``.
        display: As in :func:`growgan.grow`.

    Raises:
        UserError: The method is unknown, the data have no labels or another shape, the GAN is
            conditional already, or :func:`growgan.grow` refuses the run.
    """
    best = run.best
    method_settings = finetune_settings(
        method,
        best.settings,
        num_classes=len(data.classes),
        ramp_images=images or images_within_budget(run, budget),
    )
    return grow(
        data,
        out=out,
        budget=budget,
        images=images,
        settings=make_settings(method_settings, settings or {}, overrides=overrides),
        display=display,
        init_from=best.checkpoint_dir,
    )


def images_within_budget(run: Run, budget: str | Budget | None) -> int | None:
    """Return how many images a budget allows, None without a budget.

    Time is converted at the training speed of the best candidate of ``run``.
    """
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    if budget is None or budget.seconds is None:
        return budget.images if budget else None
    candidates = {event["id"]: event for event in run.events if event["event"] == "candidate"}
    return round(budget.seconds * candidates[run.best_id]["images_per_second"]) or None
