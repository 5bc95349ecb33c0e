"""Combinations of all registered components train, grow and continue to train.

The cases come from the registries, so that a new entry is covered as soon as it is registered. The
quick test covers every legal pair of values, the slow test many more combinations. A combination
that is refused must give a reason.
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
from growgan.nets.blocks import BLOCKS
from growgan.nets.flops import count_parameters
from growgan.nets.growth_ops import Append
from growgan.nets.layers import skip_init
from growgan.nets.norms import NORMS
from growgan.nets.presets import PRESETS
from growgan.nets.spec import LayerSpec, NetworkSpec
from growgan.objectives import AUGMENTATIONS, LOSSES, REGULARIZERS, make_objective
from growgan.objectives.conditioning import CONDITIONINGS
from growgan.run.validation import derive_network_settings, validate_settings
from growgan.search.history import SearchSpace
from growgan.training.gan import Gan
from growgan.training.runtime import make_runtime
from growgan.training.step import training_step

AXES = {
    "preset": [entry.name for entry in PRESETS],
    "loss": [entry.name for entry in LOSSES],
    "augment": [entry.name for entry in AUGMENTATIONS],
    "block": [entry.name for entry in BLOCKS],
    "norm": [entry.name for entry in NORMS],
    "conditioning": [entry.name for entry in CONDITIONINGS],
    "channels": [1, 3, 4],
    "regularizer": [entry.name for entry in REGULARIZERS],
}
SIZE = (32, 16)
NUM_REGULARIZERS = 2  # regularizers per case; with one there would be twice as many cases
REFUSAL_PHRASES = (
    "cannot be combined",
    "do not support",
    "does not fit",
    "does not support",
    "has no effect",
    "has no meaning",
    "needs feature maps",
    "needs a style",
    "needs reference latents",
)

Case = tuple[Any, ...]  # a value per axis; the last one is a tuple of regularizers
Pair = frozenset[tuple[str, Any]]  # values of two axes


def pairs_in_case(case: Case) -> set[Pair]:
    """Return the pairs of values in a case."""
    *values, regularizer_names = case
    axes = list(zip(AXES, values, strict=False))
    pairs = {frozenset(pair) for pair in combinations(axes, 2)}
    return pairs | {
        frozenset((axis_value, ("regularizer", r)))
        for axis_value in axes
        for r in regularizer_names
    }


def all_pairs() -> Iterator[Pair]:
    """Yield all pairs of values, legal or not."""
    axes = [[(axis, value) for value in values] for axis, values in AXES.items()]
    for a, b in combinations(axes, 2):
        yield from map(frozenset, product(a, b))


def pair_refusal(pair: Pair) -> str:
    """Return why a pair is refused with default values and every preset, or "" if it is legal."""
    first_reason, fixed_values = "", dict(pair)
    for preset in (
        [fixed_values["preset"]] if "preset" in fixed_values else ["pggan", *AXES["preset"]]
    ):
        default_block = make_settings(PRESETS[preset].small_settings).network.block
        default_values = (preset, "non-saturating", "none", default_block, "none", "none", 3)
        values = (
            fixed_values.get(axis, value) for axis, value in zip(AXES, default_values, strict=False)
        )
        case_reason = refusal((*values, (fixed_values.get("regularizer", "drift"),)))
        if not case_reason:
            return ""
        first_reason = first_reason or case_reason
    return first_reason


def random_case(
    rng: random.Random, fixed_values: Mapping[str, Any], pair_value: Callable[[Pair], int]
) -> Case:
    """Return a case with ``fixed_values``; the other values maximize the sum of ``pair_value``.

    Ties are broken at random.
    """
    values_by_axis = dict(fixed_values)

    def best_value(axis: str, values: list[Any]) -> Any:
        other_values = [item for item in values_by_axis.items() if item[0] != axis]
        scores = [
            sum(pair_value(frozenset((item, (axis, v)))) for item in other_values) for v in values
        ]
        best = [v for v, score in zip(values, scores, strict=True) if score == max(scores)]
        return rng.choice(best)

    for axis in rng.sample(list(AXES), len(AXES)):
        values_by_axis.setdefault(axis, best_value(axis, AXES[axis]))
    regularizer_names = [values_by_axis["regularizer"]]
    while len(regularizer_names) < NUM_REGULARIZERS:
        regularizer_names.append(
            best_value(
                "regularizer", [r for r in AXES["regularizer"] if r not in regularizer_names]
            )
        )
    return (
        *(values_by_axis[axis] for axis in AXES if axis != "regularizer"),
        tuple(regularizer_names),
    )


def covering_cases(illegal: Collection[Pair]) -> list[Case]:
    """Return legal cases that cover all legal pairs, found greedily."""
    missing = dict.fromkeys(pair for pair in all_pairs() if pair not in illegal)
    cases: list[Case] = []
    rng = random.Random(0)
    while missing:
        for _ in range(50):
            uncovered_pair = rng.choice(list(missing))
            candidates = [
                random_case(
                    rng,
                    dict(uncovered_pair),
                    lambda pair: -99 if pair in illegal else pair in missing,
                )
                for _ in range(5)
            ]
            case = max(candidates, key=lambda c: len(missing.keys() & pairs_in_case(c)))
            if not refusal(case):
                break
        else:
            raise AssertionError(f"no legal case for {uncovered_pair}: {refusal(case)}")
        cases.append(case)
        for pair in pairs_in_case(case):
            missing.pop(pair, None)
    return cases


def case_id(case: Case) -> str:
    *values, regularizer_names = case
    return "-".join(map(str, (*values, *regularizer_names)))


def block_settings(preset: str, block_name: str) -> dict[str, str]:
    """Return the block settings of both networks; empty if the block is only appended."""
    if is_appended(preset, block_name):
        return {}
    return {
        "block": block_name,
        "discriminator_block": block_name
        if BLOCKS[block_name].supports_discriminator
        else "blur-residual",
    }


def is_appended(preset: str, block_name: str) -> bool:
    """Return whether layers of a block, which cannot resample, are appended to other layers."""
    return not BLOCKS[block_name].can_resample and PRESETS[preset].family.ends != "dense"


def case_settings(case: Case) -> Settings:
    preset, loss, augment, block_name, norm, conditioning, _, regularizer_names = case
    options = {
        r: {"interval": 1} if hasattr(REGULARIZERS[r], "interval") else {}
        for r in regularizer_names
    }
    if "lecam" in options:
        options["lecam"]["start_step"] = 0
    return make_settings(
        {**PRESETS[preset].small_settings, "regularizers": {}},
        {
            "preset": preset,
            "batch_size": 8,
            "optimizer": {"eps": 1e-30},  # even a tiny gradient moves its weight
            "loss": loss,
            "regularizers": options,
            "augmentation": augment,
            "conditioning": conditioning,
            "augmentation_options": {"initial_probability": 0.5}
            if augment in ("ada", "apa")
            else {},
            "network": {
                "width": 8,
                "discriminator_width": 8,
                **block_settings(preset, block_name),
                "norm": norm,
                "discriminator_norm": "batch" if norm == "batch" else "none",
            },
        },
    )


@cache
def noise(channels: int, with_source: bool) -> ImageSet:
    rng, shape = np.random.default_rng(0), (32, channels, *SIZE)
    pixels, source_pixels = (rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(2))
    labels = np.arange(32) % 3
    names = ("a", "b", "c")
    return ImageSet(
        "noise",
        pixels,
        labels,
        names,
        "noise",
        source_images=source_pixels if with_source else None,
    )


def images(case: Case) -> ImageSet:
    """Return the images of a case, with source images if it needs them."""
    *_, conditioning, channels, regularizer_names = case
    return noise(channels, CONDITIONINGS[conditioning].needs_source or "l1" in regularizer_names)


@cache
def cached_num_parameters(spec: NetworkSpec) -> int:
    """Return the number of parameters of a network."""
    with skip_init():
        return count_parameters(spec)


def prepare(case: Case) -> tuple[Settings, SearchSpace, tuple[NetworkSpec, NetworkSpec]]:
    """Return settings, search space and specs of a case; raise a UserError if it is illegal."""
    settings = derive_network_settings(validate_settings(case_settings(case)), images(case))
    space = SearchSpace(settings.preset, settings.network, images(case).channels, SIZE)
    specs = space.specs_at(0)
    for spec in specs:
        cached_num_parameters(growth_edit(case, space, spec.role, spec).child_spec(spec))
    return settings, space, specs


def refusal(case: Case) -> str:
    """Return why a case is illegal, or "" if it is legal."""
    try:
        prepare(case)
    except UserError as error:
        return str(error)
    return ""


def check(case: Case) -> None:
    """Train, grow and train again; all values must stay finite and all weights must change."""
    settings, space, specs = prepare(case)
    gan = Gan.create(*specs, settings.optimizer, seed=0)
    batches, objective = Batches(images(case), 8, 0), make_objective(settings)
    runtime = make_runtime("cpu", "bfloat16")
    for grown in (False, True):
        if grown:
            edits = [growth_edit(case, space, role, spec) for role, spec in specs_by_role(gan)]
            gan = gan.grown_copy((edits[0],), (edits[1],), seed=1)
            gan.set_alpha(0.5)
        before = {name: parameter.detach().clone() for name, parameter in weights(gan)}
        for _ in range(3):
            terms = training_step(gan, batches, objective, settings, runtime=runtime)
            assert all(bool(torch.isfinite(value).all()) for value in terms.values()), terms
        unchanged = [
            name
            for name, parameter in weights(gan)
            if torch.equal(parameter, before[name]) and not has_gradient(parameter)
        ]
        # Relativistic losses have no gradient to the last biases of D.
        unchanged = [
            name for name in unchanged if not name.startswith("D.") or not name.endswith("bias")
        ]
        if "clip" in settings.regularizers:  # clipped weights may stay at the bound
            unchanged = [name for name in unchanged if not name.startswith("D.")]
        assert unchanged == [], unchanged
        assert all(bool(torch.isfinite(parameter).all()) for _, parameter in weights(gan))


def has_gradient(parameter: torch.nn.Parameter) -> bool:
    """Return whether a parameter has a gradient, which may be too small to change it."""
    return parameter.grad is not None and bool(parameter.grad.any())


def growth_edit(case: Case, space: SearchSpace, role: str, spec: NetworkSpec) -> Append:
    """Return an edit that doubles the resolution or, if that is the maximum, appends a layer."""
    preset, block_name = case[0], case[3]
    shape = space.network_settings.for_role(role)
    norm = shape.norm if role == "generator" else shape.discriminator_norm
    layers: tuple[LayerSpec, ...] = ()
    if space.max_level:
        layers = PRESETS[preset].family.doubling_edit(shape, spec).layers
    elif not is_appended(preset, block_name):
        layers = (LayerSpec("x", shape.block, 8, norm=norm),)
    if is_appended(preset, block_name):
        edge = layers[-1].width if layers else spec.width_before(len(spec.layers))
        layers += (LayerSpec("x", block_name, edge, 1, norm="none"),)
    return Append(layers)


def specs_by_role(gan: Gan) -> list[tuple[str, Any]]:
    return [("generator", gan.generator.spec), ("discriminator", gan.discriminator.spec)]


def weights(gan: Gan) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for role, module in (("G", gan.generator), ("D", gan.discriminator)):
        for key, value in module.named_parameters():
            yield f"{role}.{key}", value


ILLEGAL = {pair: reason for pair in all_pairs() if (reason := pair_refusal(pair))}
CASES = covering_cases(ILLEGAL)


def test_every_legal_pair_of_values_is_covered() -> None:
    covered = set().union(*map(pairs_in_case, CASES))
    for pair in all_pairs():
        assert (pair in covered) != (pair in ILLEGAL), pair


def test_refused_pairs_give_a_reason() -> None:
    for pair, reason in ILLEGAL.items():
        assert any(phrase in reason for phrase in REFUSAL_PHRASES), (pair, reason)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_legal_pair_of_values_trains_and_grows(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", AXES["regularizer"])
@pytest.mark.parametrize("loss", AXES["loss"])
def test_combinations_of_four_values_train_and_grow(loss: str, regularizer: str) -> None:
    """Combine every preset, loss, regularizer and augmentation with random values of other axes.

    If the random values are refused, the default block of the preset without labels is used. If
    that is refused too, the error must give a reason.
    """
    rng = random.Random(f"{loss} {regularizer}")
    for preset, augment in product(AXES["preset"], AXES["augment"]):
        fixed_values = {
            "preset": preset,
            "loss": loss,
            "augment": augment,
            "regularizer": regularizer,
        }
        default_block = make_settings(PRESETS[preset].small_settings).network.block
        cases = [random_case(rng, fixed_values, lambda pair: 0) for _ in range(3)]
        cases.append((preset, loss, augment, default_block, "none", "none", 3, (regularizer,)))
        legal = next((case for case in cases if not refusal(case)), None)
        if legal is not None:
            check(legal)
        else:
            assert any(phrase in refusal(cases[-1]) for phrase in REFUSAL_PHRASES), refusal(
                cases[-1]
            )
