"""Growths: pairs of edits of the generator (G) and the discriminator (D), and which are legal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from growgan.config import EditSettings
from growgan.nets.growth_ops import Append, Edit, Insert, Widen, edit_from_json, edit_to_json
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, LayerSpec, NetworkSpec

MIN_APPENDED_WIDTH = 8  # channels


@dataclass(frozen=True)
class Growth:
    """The edits of G and of D. If both are empty, the child continues with the same networks.

    Raises:
        ValueError: An ``Append`` is not the last edit of its network.
    """

    generator_edits: tuple[Edit, ...] = ()
    discriminator_edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        for edits in (self.generator_edits, self.discriminator_edits):
            if any(isinstance(edit, Append) for edit in edits[:-1]):
                raise ValueError("an appended layer fades in, so Append must be the last edit")

    @property
    def resampling_factors(self) -> tuple[int, int]:
        """Factors by which G's images and D's input images become larger."""
        return (
            prod(edit.resample_factor for edit in self.generator_edits),
            prod(edit.resample_factor for edit in self.discriminator_edits),
        )

    def has_fade_in(self) -> bool:
        """Return whether the growth appends layers, which fade in."""
        edits = (*self.generator_edits, *self.discriminator_edits)
        return any(isinstance(edit, Append) for edit in edits)

    def grown_specs(
        self, generator_spec: GeneratorSpec, discriminator_spec: DiscriminatorSpec
    ) -> tuple[GeneratorSpec, DiscriminatorSpec]:
        """Return the specs of G and D after the growth."""
        for edit in self.generator_edits:
            generator_spec = edit.child_spec(generator_spec)
        for edit in self.discriminator_edits:
            discriminator_spec = edit.child_spec(discriminator_spec)
        return generator_spec, discriminator_spec

    def __bool__(self) -> bool:
        return bool(self.generator_edits or self.discriminator_edits)

    def __str__(self) -> str:
        networks = (("G", self.generator_edits), ("D", self.discriminator_edits))
        parts = [f"{name} + {' + '.join(map(str, edits))}" for name, edits in networks if edits]
        return " | ".join(parts) or "no growth"

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` reads back."""
        return {
            "generator": [edit_to_json(edit) for edit in self.generator_edits],
            "discriminator": [edit_to_json(edit) for edit in self.discriminator_edits],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Growth:
        """Rebuild a growth from :meth:`to_json`."""
        return cls(
            tuple(edit_from_json(edit) for edit in data["generator"]),
            tuple(edit_from_json(edit) for edit in data["discriminator"]),
        )


NO_GROWTH = Growth()


def legal_edits(
    spec: NetworkSpec, settings: EditSettings, max_height: int, default_block: str = "conv"
) -> list[Edit]:
    """Return every single legal edit of one network.

    Args:
        spec: The network.
        settings: Which edits to consider, and limits on the width and the number of layers.
        max_height: Height in pixels that the images must not exceed.
        default_block: Block of appended layers if ``settings.blocks`` is empty.
    """
    default_norm = "pixel" if spec.role == "generator" else "none"
    norm = spec.layers[-1].norm if spec.layers else default_norm
    last_width = spec.width_before(len(spec.layers))
    edits: list[Edit] = []
    if settings.append:
        factors = [1, 2] if 2 * spec.resolution[0] <= max_height else [1]
        choices = product(
            settings.blocks or (default_block,),
            settings.kernel_sizes,
            settings.width_multipliers,
            factors,
        )
        for block, kernel_size, multiplier, factor in choices:
            width = max(MIN_APPENDED_WIDTH, round(last_width * multiplier))
            edits.append(Append((LayerSpec("x", block, width, kernel_size, factor, norm),)))
    if settings.insert:
        positions = [None, *(layer.id for layer in spec.layers)]
        edits += [Insert(position, 3, norm) for position in positions]
    if settings.widen:
        edits += [Widen(None), *(Widen(layer.id) for layer in spec.layers)]
    legal = (edit for edit in edits if not edit.reason_illegal(spec))
    return [edit for edit in legal if _within_size_limits(edit.child_spec(spec), settings)]


def _within_size_limits(spec: NetworkSpec, settings: EditSettings) -> bool:
    """Return whether a network is within the largest width and number of layers."""
    max_width = max([spec.stem_width, *(layer.width for layer in spec.layers)])
    return max_width <= settings.max_width and len(spec.layers) <= settings.max_layers


def legal_growths(
    generator_spec: GeneratorSpec,
    discriminator_spec: DiscriminatorSpec,
    settings: EditSettings,
    target_resolution: tuple[int, int],
    default_blocks: tuple[str, str] = ("conv", "conv"),
) -> list[Growth]:
    """Return every growth after which G's images fit D's input, starting with no growth.

    G or D may grow alone while the resolution stays. If it doubles, both grow.

    Args:
        generator_spec, discriminator_spec: The networks to grow.
        settings: Which edits to consider.
        target_resolution: Height and width in pixels that the images must not exceed.
        default_blocks: Blocks that G and D append if ``settings.blocks`` is empty.
    """
    g_edits = legal_edits(generator_spec, settings, target_resolution[0], default_blocks[0])
    d_edits = legal_edits(discriminator_spec, settings, target_resolution[0], default_blocks[1])
    single = [Growth((edit,), ()) for edit in _without_resampling(g_edits)]
    single += [Growth((), (edit,)) for edit in _without_resampling(d_edits)]
    pairs = [
        Growth((g_edit,), (d_edit,))
        for g_edit, d_edit in product(g_edits, d_edits)
        if g_edit.resample_factor == d_edit.resample_factor and _matching_edits(g_edit, d_edit)
    ]
    return [NO_GROWTH, *single, *pairs]


def _without_resampling(edits: Iterable[Edit]) -> list[Edit]:
    return [edit for edit in edits if edit.resample_factor == 1]


def _matching_edits(generator_edit: Edit, discriminator_edit: Edit) -> bool:
    """Return whether two edits are alike enough to be tried together.

    They must be of one type. Appended layers must have equal widths unless they double the
    resolution, inserted layers must follow layers of the same number, and only the widening of a
    whole network is paired.
    """
    if type(generator_edit) is not type(discriminator_edit):
        return False
    if isinstance(generator_edit, Append) and isinstance(discriminator_edit, Append):
        return generator_edit.resample_factor == 2 or [
            layer.width for layer in generator_edit.layers
        ] == [layer.width for layer in discriminator_edit.layers]
    if isinstance(generator_edit, Insert) and isinstance(discriminator_edit, Insert):
        return (generator_edit.after or "stem")[1:] == (discriminator_edit.after or "stem")[1:]
    return (
        isinstance(generator_edit, Widen)
        and isinstance(discriminator_edit, Widen)
        and generator_edit.layer_id is None
        and discriminator_edit.layer_id is None
    )
