"""Everything with everything: whatever is registered trains, grows and trains on, in any company.

The cases are made from the registries, so a new entry is covered as soon as it is registered. The
quick test takes a set of cases in which each two names meet at least once, the slow one far more.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch

from growgan.config import Settings, make_settings
from growgan.data import Batches, ImageSet
from growgan.errors import UserError
from growgan.growth.history import Space
from growgan.growth.run import check_names, for_data
from growgan.nets.blocks import BLOCKS
from growgan.nets.cost import parameters as parameters_of
from growgan.nets.edits import Append
from growgan.nets.norms import NORMS
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.objectives import AUGMENTATIONS, LOSSES, REGULARISERS, make_objective
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.training.gan import Gan
from growgan.training.runtime import make_runtime
from growgan.training.stage import step

AXES = {
    "preset": [entry.name for entry in PRESETS],
    "loss": [entry.name for entry in LOSSES],
    "regulariser": [entry.name for entry in REGULARISERS],
    "augment": [entry.name for entry in AUGMENTATIONS],
    "kind": [entry.name for entry in BLOCKS],
    "norm": [entry.name for entry in NORMS],
    "conditioning": [entry.name for entry in CONDITIONINGS],
    "channels": [1, 3, 4],
}
SIZE = (32, 16)
REFUSED = ("has no meaning for", "layer cannot double the grid")

Case = tuple[Any, ...]


def pairwise(axes: list[list[Any]]) -> Iterator[Case]:
    """Yield cases in which every two values of two axes meet, greedily: not the fewest, but few."""
    places = list(combinations(range(len(axes)), 2))
    missing = {(i, j, a, b) for i, j in places for a, b in product(axes[i], axes[j])}
    dice = random.Random(0)
    while missing:
        i, j, a, b = min(missing, key=repr)
        best: Case = ()
        most = -1
        for _ in range(30):
            case = [dice.choice(axis) for axis in axes]
            case[i], case[j] = a, b
            count = sum((k, m, case[k], case[m]) in missing for k, m in places)
            if count > most:
                best, most = tuple(case), count
        missing -= {(k, m, best[k], best[m]) for k, m in places}
        yield best


def name(case: Case) -> str:
    return "-".join(map(str, case))


QUICK = list(pairwise(list(AXES.values())))


def settings_of(case: Case) -> Settings:
    preset, loss, regulariser, augment, kind, norm, conditioning, _ = case
    options = {"every": 1} if hasattr(REGULARISERS[regulariser], "every") else {}
    if regulariser == "lecam":
        options["start"] = 0
    return make_settings(
        {**PRESETS[preset].small, "regularisers": {}},
        {
            "preset": preset,
            "batch": 8,
            "optimiser": {"epsilon": 1e-30},  # however small a gradient is, its weight moves
            "loss": loss,
            "regularisers": {regulariser: options},
            "augment": augment,
            "conditioning": conditioning,
            "augment_options": {"p": 0.5} if augment in ("ada", "apa") else {},
            "stack": {
                "width": 8,
                "discriminator_width": 8,
                "kind": kind,
                "discriminator_kind": kind if BLOCKS[kind].judges else "smooth",
                "norm": norm,
                "discriminator_norm": "batch" if norm == "batch" else "none",
            },
        },
    )


@cache
def images(channels: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (32, channels, *SIZE), dtype=np.uint8)
    return ImageSet("noise", pixels, np.arange(32) % 3, ("a", "b", "c"), "noise")


def check(case: Case) -> None:
    """Take steps, grow, take steps; all is finite, and nothing stands still."""
    settings = settings_of(case)
    try:
        settings = for_data(check_names(settings), images(case[-1]))
    except UserError as error:
        assert any(why in str(error) for why in REFUSED), "what is refused says why"
        return
    space = Space(settings.preset, settings.stack, case[-1], SIZE)
    try:
        stacks = space.stacks(0)
        for spec in stacks:
            parameters_of(edit_of(space, spec.role, spec).spec(spec))
    except UserError as error:
        assert any(why in str(error) for why in REFUSED), "what is refused says why"
        return
    gan = Gan.create(*stacks, settings.optimiser, seed=0)
    batches, objective = Batches(images(case[-1]), 8, 0), make_objective(settings)
    runtime = make_runtime("cpu", "bfloat16")
    for doubled in (False, True):
        if doubled:
            edits = [edit_of(space, role, spec) for role, spec in roles(gan)]
            gan = gan.branch((edits[0],), (edits[1],), seed=1)
            gan.set_alpha(0.5)
        before = {n: p.detach().clone() for n, p in parameters(gan)}
        for _ in range(3):
            terms = step(gan, batches, objective, settings, runtime)
            assert all(bool(torch.isfinite(value).all()) for value in terms.values()), terms
        still = [n for n, p in parameters(gan) if torch.equal(p, before[n]) and not pulled(p)]
        # Losses that see differences alone may leave the biases nearest to the logit.
        still = [n for n in still if not n.startswith("D.") or not n.endswith("bias")]
        if "clip" in case:  # what lies at the border of the box stays there
            still = [n for n in still if not n.startswith("D.")]
        assert still == [], still
        assert all(bool(torch.isfinite(p).all()) for _, p in parameters(gan))


def pulled(parameter: torch.nn.Parameter) -> bool:
    """Return whether it has a gradient, if only one too small to move it beside older ones."""
    return parameter.grad is not None and bool(parameter.grad.any())


def edit_of(space: Space, role: str, spec: StackSpec) -> Append:
    """Return what doubles a stack, or a layer of its own size where it cannot be doubled."""
    shape = space.shape.of(role)
    if space.levels:
        return PRESETS[space.preset].family.doubling(shape, spec)
    norm = shape.norm if role == "generator" else shape.discriminator_norm
    return Append((LayerSpec("x", shape.kind, 8, norm=norm),))


def roles(gan: Gan) -> list[tuple[str, Any]]:
    return [("generator", gan.generator.spec), ("discriminator", gan.discriminator.spec)]


def parameters(gan: Gan) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for role, player in (("G", gan.generator), ("D", gan.discriminator)):
        for key, value in player.named_parameters():
            yield f"{role}.{key}", value


def test_the_quick_cases_cover_all_pairs() -> None:
    for (i, first), (j, second) in combinations(enumerate(AXES.values()), 2):
        assert {(c[i], c[j]) for c in QUICK} == set(product(first, second))


@pytest.mark.parametrize("case", QUICK, ids=name)
def test_each_two_work_together(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("regulariser", AXES["regulariser"])
@pytest.mark.parametrize("loss", AXES["loss"])
def test_many_work_together(loss: str, regulariser: str) -> None:
    """All there are would be millions: each loss meets each regulariser in forty companies."""
    axes = {**AXES, "loss": [loss], "regulariser": [regulariser]}
    dice = random.Random(f"{loss} {regulariser}")
    for _ in range(40):
        check(tuple(dice.choice(axis) for axis in axes.values()))
