"""Everything with everything: whatever is registered trains, grows and trains on, in any company.

The cases are made from the registries, so a new entry is covered as soon as it is registered. The
quick test takes a set of legal cases in which each two names meet that can, the slow one far more;
what is refused is refused for a reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping
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
from growgan.nets.cost import parameters
from growgan.nets.edits import Append
from growgan.nets.layers import unset
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
    "augment": [entry.name for entry in AUGMENTATIONS],
    "kind": [entry.name for entry in BLOCKS],
    "norm": [entry.name for entry in NORMS],
    "conditioning": [entry.name for entry in CONDITIONINGS],
    "channels": [1, 3, 4],
    "regulariser": [entry.name for entry in REGULARISERS],
}
SIZE = (32, 16)
AT_ONCE = 2  # regularisers in a case: one at a time there would be twice as many cases
REFUSED = ("has no meaning", "cannot be given images")

Case = tuple[Any, ...]  # a value of each axis, the last of which is a tuple of regularisers
Meeting = frozenset[tuple[str, Any]]  # of the values of two axes


def meetings(case: Case) -> set[Meeting]:
    """Return which two values meet in a case."""
    *values, several = case
    axes = list(zip(AXES, values, strict=False))
    found = {frozenset(two) for two in combinations(axes, 2)}
    return found | {frozenset((one, ("regulariser", r))) for one in axes for r in several}


def all_meetings() -> Iterator[Meeting]:
    """Yield what there is, legal or not."""
    names = [[(axis, value) for value in of] for axis, of in AXES.items()]
    for a, b in combinations(names, 2):
        yield from map(frozenset, product(a, b))


def conflict(two: Meeting) -> str:
    """Return why two are refused in plain company, whatever the preset, "" if they are not."""
    reason, held = "", dict(two)
    for preset in [held["preset"]] if "preset" in held else ["pggan", *AXES["preset"]]:
        own = make_settings(PRESETS[preset].small).stack.kind
        plain = (preset, "non-saturating", "none", own, "none", "none", 3)
        values = (held.get(axis, value) for axis, value in zip(AXES, plain, strict=False))
        found = refusal((*values, (held.get("regulariser", "drift"),)))
        if not found:
            return ""
        reason = reason or found
    return reason


def drawn(dice: random.Random, held: Mapping[str, Any], worth: Callable[[Meeting], int]) -> Case:
    """Return a case with the values ``held``, and others whose meetings are worth most, by turns.

    What is worth as much is drawn by ``dice``.
    """
    chosen = dict(held)

    def best(axis: str, values: list[Any]) -> Any:
        beside = [(other, value) for other, value in chosen.items() if other != axis]
        worths = [sum(worth(frozenset((one, (axis, v)))) for one in beside) for v in values]
        return dice.choice([v for v, w in zip(values, worths, strict=True) if w == max(worths)])

    for axis in dice.sample(list(AXES), len(AXES)):
        chosen.setdefault(axis, best(axis, AXES[axis]))
    several = [chosen["regulariser"]]
    while len(several) < AT_ONCE:
        several.append(best("regulariser", [r for r in AXES["regulariser"] if r not in several]))
    return (*(chosen[axis] for axis in AXES if axis != "regulariser"), tuple(several))


def covering(illegal: Collection[Meeting]) -> list[Case]:
    """Return legal cases in which all that can meet do, greedily: not the fewest, but few."""
    missing = dict.fromkeys(two for two in all_meetings() if two not in illegal)
    cases: list[Case] = []
    dice = random.Random(0)
    while missing:
        for _ in range(50):
            wanted = dice.choice(list(missing))
            tried = [
                drawn(dice, dict(wanted), lambda two: -99 if two in illegal else two in missing)
                for _ in range(5)
            ]
            case = max(tried, key=lambda c: len(missing.keys() & meetings(c)))
            if not refusal(case):
                break
        else:
            raise AssertionError(f"no legal case for {wanted}: {refusal(case)}")
        cases.append(case)
        for two in meetings(case):
            missing.pop(two, None)
    return cases


def name(case: Case) -> str:
    *values, several = case
    return "-".join(map(str, (*values, *several)))


def kinds_of(preset: str, kind: str) -> dict[str, str]:
    """Return the kinds of both stacks: the preset's own where ``kind`` comes on top (on_top)."""
    if on_top(preset, kind):
        return {}
    return {"kind": kind, "discriminator_kind": kind if BLOCKS[kind].judges else "smooth"}


def on_top(preset: str, kind: str) -> bool:
    """Return whether layers of a kind, which cannot double a grid, are appended to others."""
    return not BLOCKS[kind].resamples and PRESETS[preset].family.form != "dense"


def settings_of(case: Case) -> Settings:
    preset, loss, augment, kind, norm, conditioning, _, several = case
    options = {r: {"every": 1} if hasattr(REGULARISERS[r], "every") else {} for r in several}
    if "lecam" in options:
        options["lecam"]["start"] = 0
    return make_settings(
        {**PRESETS[preset].small, "regularisers": {}},
        {
            "preset": preset,
            "batch": 8,
            "optimiser": {"epsilon": 1e-30},  # however small a gradient is, its weight moves
            "loss": loss,
            "regularisers": options,
            "augment": augment,
            "conditioning": conditioning,
            "augment_options": {"p": 0.5} if augment in ("ada", "apa") else {},
            "stack": {
                "width": 8,
                "discriminator_width": 8,
                **kinds_of(preset, kind),
                "norm": norm,
                "discriminator_norm": "batch" if norm == "batch" else "none",
            },
        },
    )


@cache
def noise(channels: int, given: bool) -> ImageSet:
    rng, shape = np.random.default_rng(0), (32, channels, *SIZE)
    pixels, others = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    labels = np.arange(32) % 3
    names = ("a", "b", "c")
    return ImageSet("noise", pixels, labels, names, "noise", given=others if given else None)


def images(case: Case) -> ImageSet:
    """Return images for a case, made from others where that is asked for."""
    *_, conditioning, channels, several = case
    return noise(channels, CONDITIONINGS[conditioning].given or "l1" in several)


@cache
def size(spec: StackSpec) -> int:
    """Return the parameters of a stack, which is built for that."""
    with unset():
        return parameters(spec)


def prepared(case: Case) -> tuple[Settings, Space, tuple[StackSpec, StackSpec]]:
    """Return what a case trains; raise a UserError where it is illegal."""
    settings = for_data(check_names(settings_of(case)), images(case))
    space = Space(settings.preset, settings.stack, images(case).channels, SIZE)
    stacks = space.stacks(0)
    for spec in stacks:
        size(edit_of(case, space, spec.role, spec).spec(spec))
    return settings, space, stacks


def refusal(case: Case) -> str:
    """Return why a case is illegal, "" if it is not."""
    try:
        prepared(case)
    except UserError as error:
        return str(error)
    return ""


def check(case: Case) -> None:
    """Take steps, grow, take steps; all is finite, and nothing stands still."""
    settings, space, stacks = prepared(case)
    gan = Gan.create(*stacks, settings.optimiser, seed=0)
    batches, objective = Batches(images(case), 8, 0), make_objective(settings)
    runtime = make_runtime("cpu", "bfloat16")
    for doubled in (False, True):
        if doubled:
            edits = [edit_of(case, space, role, spec) for role, spec in roles(gan)]
            gan = gan.branch((edits[0],), (edits[1],), seed=1)
            gan.set_alpha(0.5)
        before = {n: p.detach().clone() for n, p in weights(gan)}
        for _ in range(3):
            terms = step(gan, batches, objective, settings, runtime)
            assert all(bool(torch.isfinite(value).all()) for value in terms.values()), terms
        still = [n for n, p in weights(gan) if torch.equal(p, before[n]) and not pulled(p)]
        # Losses that see differences alone may leave the biases nearest to the logit.
        still = [n for n in still if not n.startswith("D.") or not n.endswith("bias")]
        if "clip" in settings.regularisers:  # what lies at the border of the box stays there
            still = [n for n in still if not n.startswith("D.")]
        assert still == [], still
        assert all(bool(torch.isfinite(p).all()) for _, p in weights(gan))


def pulled(parameter: torch.nn.Parameter) -> bool:
    """Return whether it has a gradient, if only one too small to move it beside older ones."""
    return parameter.grad is not None and bool(parameter.grad.any())


def edit_of(case: Case, space: Space, role: str, spec: StackSpec) -> Append:
    """Return what doubles a stack, or a layer of its own size where it cannot be doubled."""
    preset, kind = case[0], case[3]
    shape = space.shape.of(role)
    norm = shape.norm if role == "generator" else shape.discriminator_norm
    layers: tuple[LayerSpec, ...] = ()
    if space.levels:
        layers = PRESETS[preset].family.doubling(shape, spec).layers
    elif not on_top(preset, kind):
        layers = (LayerSpec("x", shape.kind, 8, norm=norm),)
    if on_top(preset, kind):
        edge = layers[-1].width if layers else spec.width_before(len(spec.layers))
        layers += (LayerSpec("x", kind, edge, 1, norm="none"),)
    return Append(layers)


def roles(gan: Gan) -> list[tuple[str, Any]]:
    return [("generator", gan.generator.spec), ("discriminator", gan.discriminator.spec)]


def weights(gan: Gan) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for role, player in (("G", gan.generator), ("D", gan.discriminator)):
        for key, value in player.named_parameters():
            yield f"{role}.{key}", value


ILLEGAL = {two: reason for two in all_meetings() if (reason := conflict(two))}
QUICK = covering(ILLEGAL)


def test_all_that_may_meet_meet_in_a_case() -> None:
    met = set().union(*map(meetings, QUICK))
    for two in all_meetings():
        assert (two in met) != (two in ILLEGAL), two


def test_what_is_refused_says_why() -> None:
    for two, reason in ILLEGAL.items():
        assert any(why in reason for why in REFUSED), (two, reason)


@pytest.mark.parametrize("case", QUICK, ids=name)
def test_each_two_work_together(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("regulariser", AXES["regulariser"])
@pytest.mark.parametrize("loss", AXES["loss"])
def test_all_work_together(loss: str, regulariser: str) -> None:
    """Every architecture × loss × regulariser × augmentation; what else there is, is drawn.

    Where what is drawn is refused, the preset's own layers, without labels, stand in for it; a case
    that is refused even then has no meaning, and says so.
    """
    dice = random.Random(f"{loss} {regulariser}")
    for preset, augment in product(AXES["preset"], AXES["augment"]):
        held = {"preset": preset, "loss": loss, "augment": augment, "regulariser": regulariser}
        own = make_settings(PRESETS[preset].small).stack.kind
        cases = [drawn(dice, held, lambda two: 0) for _ in range(3)]
        cases.append((preset, loss, augment, own, "none", "none", 3, (regulariser,)))
        legal = next((case for case in cases if not refusal(case)), None)
        if legal is not None:
            check(legal)
        else:
            assert any(why in refusal(cases[-1]) for why in REFUSED), refusal(cases[-1])
