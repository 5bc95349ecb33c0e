"""What a preset is, and the grid that a stack starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from growgan.config import StackSettings, merged
from growgan.errors import UserError
from growgan.nets.edits import Append
from growgan.nets.spec import LayerSpec, Role, StackSpec, without_fade
from growgan.registry import Registry

LARGEST_BASE = 16
LARGE = 64  # pixels, from which on a preset may be another one
PATCH = 8  # pixels from one patch that D judges to the next
ROLES: tuple[Role, Role] = ("generator", "discriminator")


class Family:
    """How a preset's stacks begin and how they double.

    Attributes:
        form: name of how they begin and end.
    """

    form = "progressive"

    def base(
        self, shape: StackSettings, target: tuple[int, int], role: Role = "generator"
    ) -> tuple[int, int]:
        """Return the grid that a player's stack on the way to ``target`` begins with.

        That of a D that judges patches is not coarser than an eighth of the target, where
        ``shape`` does not say otherwise (PatchGAN: Isola et al. 2017, 1611.07004).
        """
        height, width = base_grid(target, shape.base)
        patched = role == "discriminator" and shape.patches and shape.base is None
        while patched and PATCH * height < target[0]:
            height, width = 2 * height, 2 * width
        return height, width

    def stem(
        self, role: Role, shape: StackSettings, base: tuple[int, int], channels: int
    ) -> StackSpec:
        """Return the stack at the base grid."""
        generator = role == "generator"
        by_role: dict[bool, dict[str, Any]] = {
            True: {"label_stem": shape.label_stem, "latent_style": shape.latent_style},
            False: {
                "judging": shape.judging,
                "readouts": shape.readouts,
                "proxies": shape.proxies,
            },
        }
        return StackSpec(
            role,
            base,
            channels,
            shape.width,
            self.first(role, shape, base),
            latent=shape.latent if generator else 0,
            rate=shape.rate,
            form=self.form,
            chunk=shape.chunk if generator else 0,
            kernels=0 if generator else shape.kernels,
            classes=0 if generator and shape.judging == "classes" else shape.classes,
            given=shape.given if generator or shape.beside else 0,
            difference=shape.difference and generator,
            patches=shape.patches and not generator,
            embedding=shape.embedding,
            continuous=shape.continuous,
            **(by_role[generator] if shape.classes else {}),
            energy=shape.energy and not generator,
        )

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return the layers at the base grid."""
        return ()

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        """Return the layers that double ``spec``'s resolution."""
        raise NotImplementedError


@dataclass(frozen=True)
class Preset:
    """A family of stacks, and the settings that its paper trained it with.

    Attributes:
        family: how its stacks are made.
        published: what it is trained with, as published.
        large: what is otherwise from ``LARGE`` pixels on.
        small: what it is grown with: a small form, which need not be as published.
    """

    family: Family
    published: Mapping[str, Any]
    large: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, side: int) -> Mapping[str, Any]:
        """Return the published settings for images whose smaller side is so many pixels."""
        return merged(self.published, self.large) if side >= LARGE else self.published

    def smallest(
        self, shape: StackSettings, channels: int, target: tuple[int, int]
    ) -> tuple[int, int]:
        """Return the smallest resolution on the way to ``target`` that both players have."""
        return max(self._stem(role, shape, channels, target).resolution for role in ROLES)

    def _stem(
        self, role: Role, shape: StackSettings, channels: int, target: tuple[int, int]
    ) -> StackSpec:
        base = self.family.base(shape, target, role)
        return self.family.stem(role, shape.of(role), base, channels)

    def stack(
        self,
        role: Role,
        shape: StackSettings,
        channels: int,
        target: tuple[int, int],
        resolution: tuple[int, int] | None = None,
    ) -> StackSpec:
        """Return a complete stack at ``resolution`` on the way to ``target`` (None: there)."""
        spec = self._stem(role, shape, channels, target)
        while spec.resolution != (resolution or target):
            spec = without_fade(self.family.doubling(shape.of(role), spec).spec(spec))
        return spec


def brief(published: Mapping[str, Any], lr: float, **stack: Any) -> dict[str, Any]:
    """Return the settings of a small form: what differs of the stack, and one rate for it.

    A budget of minutes wants many small steps, and a narrow stack bears a higher rate than a wide
    one: at the published ones a small form learns little in ten minutes on two cores.
    """
    return {
        **published,
        "batch": 32,
        "critic_steps": 1,
        "anneal": 0.3,
        "average": {"half_life": 10_000, "ramp": 0.15},
        "optimiser": {**published["optimiser"], "lr": lr, "discriminator_lr": None},
        "stack": {**published["stack"], **stack},
    }


PRESETS: Registry[Preset] = Registry("preset")


def base_grid(target: tuple[int, int], base: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the grid from which doublings reach ``target``: the smallest with sides >= 4.

    Raises:
        UserError: ``base`` does not reach ``target``, or no small grid does.
    """
    if base is not None:
        factor = target[0] // base[0]
        if base[0] * factor != target[0] or base[1] * factor != target[1] or factor & (factor - 1):
            reach = ", ".join(f"{base[0] * 2**k}x{base[1] * 2**k}" for k in range(6))
            raise UserError(
                f"resolution {target[0]}x{target[1]} cannot be reached from base grid "
                f"{base[0]}x{base[1]} by doubling; it may be: {reach}"
            )
        return base
    height, width = _halved(target)
    if max(height, width) > LARGEST_BASE:
        raise UserError(
            f"resolution {target[0]}x{target[1]} cannot be reached by doubling a grid of at most "
            f"{LARGEST_BASE}x{LARGEST_BASE}; near ones that can: {', '.join(_near(target))}"
        )
    return height, width


def _halved(target: tuple[int, int]) -> tuple[int, int]:
    """Return the sides halved as long as both are even and stay at 4 or more."""
    height, width = target
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width = height // 2, width // 2
    return height, width


def _near(target: tuple[int, int]) -> list[str]:
    """Return resolutions near ``target`` that doubling reaches, the nearest first."""
    found = []
    for unit in (2**k for k in range(3, 13)):
        sides = [max(unit, round(side / unit) * unit) for side in target]
        near = f"{sides[0]}x{sides[1]}"
        if max(_halved((sides[0], sides[1]))) <= LARGEST_BASE and near not in found:
            found.append(near)
    return found[:3]


def stage_width(shape: StackSettings, factor: int) -> int:
    """Return the width at ``factor`` times the base grid: full up to ``taper``, then halving.

    With ``width=512, taper=8`` these are PGGAN's min(16384/side, 512) for a 4×4 base.
    """
    return max(8, min(shape.width, shape.taper * shape.width // factor))
