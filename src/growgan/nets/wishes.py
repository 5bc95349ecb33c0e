"""What a sample is made for, beside its latents: a label, and a given image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.layers import Dense, downsample
from growgan.nets.spec import StackSpec


def one_hot(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n k"]:
    """Return labels (modulo ``classes``) as one number a class; -1 is all zeros."""
    known = F.one_hot(labels.clamp(min=0) % max(1, classes), max(1, classes))[:, :classes]
    return known.float() * (labels >= 0).float()[:, None]


def labelled(
    spec: StackSpec,
    z: Float[Tensor, "n z"],
    labels: Sequence[int] | None = None,
    seed: int = 0,
    given: Float[Tensor, "k c h w"] | None = None,
) -> Float[Tensor, "n inputs"]:
    """Return latents with what each sample is made for.

    Args:
        labels: take turns (None: all of them); codes are drawn by ``seed``.
        given: images in [-1, 1] of the stack's size, or so many times as large; they take turns.

    Raises:
        UserError: the stack is called with images, and there are none.
    """
    parts = [z]
    if spec.classes:
        # Where there are but numbers, no label stands for none.
        wanted = range(max(1, spec.categories)) if labels is None else labels
        turns = torch.tensor(wanted, device=z.device)
        rng = torch.Generator().manual_seed(~seed & 0xFFFFFFFF)
        numbers = torch.randn(len(z), spec.continuous, generator=rng).to(z.device)
        parts += [one_hot(_in_turn(turns, len(z)), spec.categories), numbers]
    if spec.given:
        if given is None:
            raise UserError("this generator makes images from images, and none is given")
        shown = downsample(given.to(z.device), given.shape[-1] // spec.resolution[1])
        parts.append(_in_turn(shown, len(z)).flatten(1))
    return torch.cat(parts, 1)


def _in_turn(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count, device=rows.device) % len(rows)]


def apart(
    spec: StackSpec, wish: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n c h w"]]:
    """Return what samples are made for as the label and the given image."""
    label, given = wish.split([spec.classes, spec.wish - spec.classes], 1)
    return label, given.unflatten(1, (spec.given, *spec.resolution))


def with_maps(x: Float[Tensor, "n c h w"], label: Float[Tensor, "n e"]) -> Float[Tensor, "n d h w"]:
    """Return images with the numbers of their labels as constant maps behind their channels."""
    maps = label.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, maps], 1)


def label_map(spec: StackSpec) -> nn.Module:
    """Return what embeds a label: a learnt vector a class, or the label as it is."""
    if not spec.embedding or not spec.label_width:
        return nn.Identity()
    # Each starts as a vector of unit deviation: one class in so many is read.
    return Dense(spec.classes, spec.embedding, gain=spec.classes**0.5, rate=spec.rate)
