"""Growth: a pair of edits, one list for G and one for D, and which of them are legal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from growgan.config import ActionSettings
from growgan.nets.edits import Append, Edit, Insert, Widen, edit_from_json, edit_to_json
from growgan.nets.spec import LayerSpec, StackSpec


@dataclass(frozen=True)
class Growth:
    """What to change in G and in D; both empty means: train on unchanged."""

    generator: tuple[Edit, ...] = ()
    discriminator: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        for edits in (self.generator, self.discriminator):
            if any(isinstance(edit, Append) for edit in edits[:-1]):
                raise ValueError("what is appended fades in, so it must be the last edit of a side")

    @property
    def factors(self) -> tuple[int, int]:
        """How much larger G's images and D's input become."""
        return (
            prod(edit.factor for edit in self.generator),
            prod(edit.factor for edit in self.discriminator),
        )

    def fades(self) -> bool:
        """Return whether something fades in."""
        return any(isinstance(edit, Append) for edit in (*self.generator, *self.discriminator))

    def specs(self, generator: StackSpec, discriminator: StackSpec) -> tuple[StackSpec, StackSpec]:
        """Return the specs of the pair once it has grown."""
        for edit in self.generator:
            generator = edit.spec(generator)
        for edit in self.discriminator:
            discriminator = edit.spec(discriminator)
        return generator, discriminator

    def __bool__(self) -> bool:
        return bool(self.generator or self.discriminator)

    def __str__(self) -> str:
        sides = (("G", self.generator), ("D", self.discriminator))
        parts = [f"{name} + {' + '.join(map(str, edits))}" for name, edits in sides if edits]
        return " | ".join(parts) or "train on"

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` reads back."""
        return {
            "generator": [edit_to_json(edit) for edit in self.generator],
            "discriminator": [edit_to_json(edit) for edit in self.discriminator],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Growth:
        """Rebuild a growth."""
        return cls(
            tuple(edit_from_json(edit) for edit in data["generator"]),
            tuple(edit_from_json(edit) for edit in data["discriminator"]),
        )


UNCHANGED = Growth()


def player_edits(
    spec: StackSpec, space: ActionSettings, target: int, kind: str = "conv"
) -> list[Edit]:
    """Return every single edit of one player whose images stay within ``target`` rows.

    What is appended is of ``kind``, unless ``space`` names others.
    """
    usual = "pixel" if spec.role == "generator" else "none"
    norm = spec.layers[-1].norm if spec.layers else usual
    edge = spec.width_before(len(spec.layers))
    edits: list[Edit] = []
    if space.append:
        sizes = [1] + [2] * (2 * spec.resolution[0] <= target)
        choices = product(space.kinds or (kind,), space.kernels, space.widths, sizes)
        for name, kernel, scale, resample in choices:
            width = max(8, round(edge * scale))
            edits.append(Append((LayerSpec("x", name, width, kernel, resample, norm),)))
    if space.insert:
        places = [None, *(layer.id for layer in spec.layers)]
        edits += [Insert(place, 3, norm) for place in places]
    if space.widen:
        edits += [Widen(None), *(Widen(layer.id) for layer in spec.layers)]
    legal = (edit for edit in edits if not edit.obstacle(spec))
    return [edit for edit in legal if _fits(edit.spec(spec), space)]


def _fits(child: StackSpec, space: ActionSettings) -> bool:
    """Return whether a stack stays within what a search may build."""
    widest = max([child.stem, *(layer.width for layer in child.layers)])
    return widest <= space.widest and len(child.layers) <= space.deepest


def legal_growths(
    generator: StackSpec,
    discriminator: StackSpec,
    space: ActionSettings,
    target: tuple[int, int],
    kinds: tuple[str, str] = ("conv", "conv"),
) -> list[Growth]:
    """Return every growth that keeps G's images fitting D's input, the unchanged one first.

    ``kinds`` are what G and D append, unless ``space`` names others.
    One side may grow alone as long as its size stays; when the size doubles, both do.
    """
    g_edits = player_edits(generator, space, target[0], kinds[0])
    d_edits = player_edits(discriminator, space, target[0], kinds[1])
    alone = [Growth((edit,), ()) for edit in _same_size(g_edits)]
    alone += [Growth((), (edit,)) for edit in _same_size(d_edits)]
    both = [
        Growth((g,), (d,))
        for g, d in product(g_edits, d_edits)
        if g.factor == d.factor and _alike(g, d)
    ]
    return [UNCHANGED, *alone, *both]


def _same_size(edits: Iterable[Edit]) -> list[Edit]:
    return [edit for edit in edits if edit.factor == 1]


def _alike(g: Edit, d: Edit) -> bool:
    """Pair like with like: one kind of edit, after layers of one number; or any two doublings."""
    if type(g) is not type(d):
        return False
    if isinstance(g, Append) and isinstance(d, Append):
        return g.factor == 2 or [layer.width for layer in g.layers] == [
            layer.width for layer in d.layers
        ]
    if isinstance(g, Insert) and isinstance(d, Insert):
        return (g.after or "stem")[1:] == (d.after or "stem")[1:]
    return isinstance(g, Widen) and isinstance(d, Widen) and g.layer is None and d.layer is None
