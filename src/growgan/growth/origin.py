"""Runs that go on from another run's pair, to teach it labels.

"reprogram" freezes the generator and learns an invertible map of latents and labels before it
(:mod:`growgan.nets.modifier`): few labels are enough, since there is little to learn. "fine-tune"
lets both players read labels and trains all of them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growgan.config import SPECTRAL, OptimiserSettings, Settings, StackSettings, merged
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.nets.layers import Scaled
from growgan.nets.spec import StackSpec
from growgan.nets.stack import Stack
from growgan.training.checkpoint import FILES, MANIFEST, check_files, load_gan, load_specs
from growgan.training.gan import Gan

ORIGIN = "origin"  # folder in a run, with the candidate that it goes on from
RAMP = 200_000  # images until D takes all fakes for good, where nobody knows how many there will be

# What each way sets, beside the settings of the run that it goes on from. The modifier's maps are
# stored as they are used: at the rate of a preset whose maps are not (2e-2), its class vectors run
# away, and each class becomes one image; at 5e-4 they have hardly moved after 20,000 images.
WAYS: dict[str, dict[str, Any]] = {
    "reprogram": {
        "conditioning": "md",
        "loss": "positive-unlabelled",
        "stack": {"modifier": 3},
        "optimiser": {"lr": 1e-3},
    },
    "fine-tune": {"conditioning": "projection"},
}


def keep_origin(candidate: Path, out: Path) -> None:
    """Copy the pair that a new run in ``out`` goes on from, so that it needs no other run."""
    check_files(candidate)
    for name in (*FILES, MANIFEST):
        (out / ORIGIN).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(candidate / name, out / ORIGIN / name)


def stacks_of(candidate: Path, shape: StackSettings) -> tuple[StackSpec, StackSpec]:
    """Return the stacks of a candidate with the labels that ``shape`` knows.

    Raises:
        UserError: they know labels already, or cannot be given any.
    """
    g, d = load_specs(candidate)
    if g.classes:
        raise UserError(f"'{candidate}' is conditional already: it knows {g.classes} classes")
    if any(layer.norm == "virtual" for layer in g.layers) and shape.modifier:
        raise UserError("a generator with norm 'virtual' cannot be reprogrammed; fine-tune it")
    if d.energy:
        raise UserError("a D that gives errors and no logits cannot be taught labels")
    shared: dict[str, Any] = {"classes": shape.classes, "continuous": shape.continuous, "fading": 0}
    own: dict[str, Any] = {"modifier": shape.modifier}
    if shape.modifier:
        own["mixing"] = 0.0  # what is frozen is drawn as it is
    else:
        own |= {"embedding": shape.embedding, "label_stem": shape.label_stem}
        own |= {"latent_style": True}
    told: dict[str, Any] = {
        "judging": shape.judging,
        "readouts": shape.readouts,
        "proxies": shape.proxies,
    }
    return replace(g, **shared, **own), replace(d, **shared, **told, embedding=shape.embedding)


def continued(
    parent: Gan,
    stacks: tuple[StackSpec, StackSpec],
    settings: OptimiserSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Gan:
    """Return a pair of ``stacks`` that computes what ``parent`` does, whatever the label.

    Moments, counts of images and what the objective remembers begin anew. G begins as the
    parent's running average, which is its better half.
    """
    child = Gan.create(*stacks, settings, seed=seed, device=device)
    parent.finish_fade()
    _take_over(child.generator, parent.average)
    _take_over(child.discriminator, parent.discriminator)
    child.average.load_state_dict(child.generator.state_dict())
    return child


@torch.no_grad()
def _take_over(new: Stack, old: Stack) -> None:
    """Copy what ``old`` has; what reads more inputs than there begins by not seeing them."""
    known = dict(old.named_modules())
    for name, module in new.named_modules():
        before = known.get(name)
        if before is None:
            continue
        own, theirs = _tensors(module), _tensors(before)
        for key in own.keys() & theirs.keys():
            value, place = theirs[key].to(own[key].device), own[key]
            if value.shape == place.shape:
                place.copy_(value)
            elif key == "weight" and isinstance(module, Scaled) and isinstance(before, Scaled):
                ratio = 1.0 if module.rate in SPECTRAL else before.scale / module.scale
                place.zero_()
                place[:, : value.shape[1]] = value * ratio


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of ``module`` itself."""
    parameters = module.named_parameters(recurse=False)
    return dict(parameters) | dict(module.named_buffers(recurse=False))


def origin_of(out: Path, device: torch.device | str = "cpu") -> Gan | None:
    """Return the pair that the run in ``out`` goes on from, None if it begins with none."""
    folder = out / ORIGIN
    return load_gan(folder, str(device)) if folder.is_dir() else None


def check_reals(generator: StackSpec, data: ImageSet) -> None:
    """Raise a :class:`UserError` unless ``data`` are of the form that the generator draws."""
    own, form = (generator.channels, *generator.resolution), (data.channels, *data.resolution)
    if own != form:
        told = [f"{h}x{w} with {c} channel{'s' * (c > 1)}" for c, h, w in (own, form)]
        raise UserError(f"the generator draws images of {told[0]}, but '{data.name}' has {told[1]}")


def origin_stacks(
    settings: Settings, folder: Path | None, data: ImageSet
) -> tuple[StackSpec, StackSpec] | None:
    """Return the stacks of the pair in ``folder`` with labels, if the run goes on from one."""
    if settings.origin == "none":
        if settings.stack.modifier:
            raise UserError("stack.modifier is of a frozen generator: see growgan condition")
        return None
    if folder is None or settings.policy != "fixed":
        raise UserError(
            f"origin '{settings.origin}' goes on from another run, by the policy fixed: see "
            "growgan condition"
        )
    stacks = stacks_of(folder, settings.stack)
    check_reals(stacks[0], data)
    return stacks


def settings_for(
    way: str, known: Settings, classes: int = 0, images: int | None = None
) -> dict[str, Any]:
    """Return the settings of a run that goes on ``way`` from one with the settings ``known``.

    To reprogram, D keeps its rate and G has one of its own. What D takes for good among fakes is
    at first one class of the ``classes`` of the data, and all after so many ``images``, which the
    budget affords; after ``RAMP`` where that is not known.
    """
    if way not in WAYS:
        raise UserError(f"a way must be one of: {', '.join(WAYS)}, but got '{way}'")
    values = known.model_dump(exclude={"policy", "growth", "resolution"})
    values = merged(values, {**WAYS[way], "policy": "fixed", "origin": way})
    if way == "reprogram":
        rates = known.optimiser
        values["optimiser"]["discriminator_lr"] = rates.discriminator_lr or rates.lr
        prior = {"prior": 1 / classes} if classes else {}
        values["loss_options"] = {**prior, "ramp": images or RAMP}
    return values
