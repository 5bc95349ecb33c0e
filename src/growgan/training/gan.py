"""A pair of players with all that training has given them: the unit that grows."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.quasirandom import SobolEngine

from growgan.config import OptimiserSettings
from growgan.nets.edits import Edit, apply, inherit, renamed
from growgan.nets.layers import downsample
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.spec import StackSpec
from growgan.nets.wishes import labelled
from growgan.objectives.step import Memory
from growgan.training.optimisers import MOMENTS, make_optimiser, moments, restore_moments


class Gan:
    """G, D, the running average of G, and both optimisers.

    Attributes:
        generator, discriminator: the players.
        average: exponential moving average of G; what :meth:`generate` samples from.
        images: real images seen so far along the whole lineage.
        steps: training steps so far along the whole lineage.
        memory: what the objective remembers from step to step, by name.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        optimiser: OptimiserSettings,
        average: Generator | None = None,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.average = average if average is not None else deepcopy(generator)
        self.average.requires_grad_(False).eval()
        self.optimiser_settings = optimiser
        self.generator_optimiser = make_optimiser(generator, optimiser)
        self.discriminator_optimiser = make_optimiser(discriminator, optimiser)
        self.images = 0
        self.steps = 0
        self.memory: Memory = {}

    @classmethod
    def create(
        cls,
        generator: StackSpec,
        discriminator: StackSpec,
        optimiser: OptimiserSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> Gan:
        """Build both players with random weights that are a function of ``seed``."""
        players = (build(generator, 2 * seed), build(discriminator, 2 * seed + 1))
        g, d = (player.to(device) for player in players)
        return cls(cast(Generator, g), cast(Discriminator, d), optimiser)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of G's images."""
        return self.generator.spec.resolution

    @property
    def alpha(self) -> float:
        """How far the growth that is fading in has come, 0 to 1."""
        return min(float(self.generator.alpha), float(self.discriminator.alpha))

    def set_alpha(self, alpha: float) -> None:
        """Set the fade of all three stacks, 0 to 1."""
        alpha = min(1.0, max(0.0, alpha))
        for stack in (self.generator, self.discriminator, self.average):
            if stack.spec.fading:
                stack.set_alpha(alpha)

    def finish_fade(self) -> None:
        """Drop the old heads, and their moments with them."""
        if not (self.generator.spec.fading or self.discriminator.spec.fading):
            return
        saved = self.moments()
        for stack in (self.generator, self.discriminator, self.average):
            stack.finish_fade()
        self.restore_moments(*saved)

    def moments(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
        """Return G's and D's optimiser state by parameter name."""
        return (
            moments(self.generator, self.generator_optimiser),
            moments(self.discriminator, self.discriminator_optimiser),
        )

    def restore_moments(
        self, generator: dict[str, dict[str, Tensor]], discriminator: dict[str, dict[str, Tensor]]
    ) -> None:
        """Start both optimisers anew from state by parameter name, as :meth:`moments` gives it."""
        self.generator_optimiser = make_optimiser(self.generator, self.optimiser_settings)
        self.discriminator_optimiser = make_optimiser(self.discriminator, self.optimiser_settings)
        restore_moments(self.generator, self.generator_optimiser, generator)
        restore_moments(self.discriminator, self.discriminator_optimiser, discriminator)

    def branch(
        self,
        generator: Sequence[Edit] = (),
        discriminator: Sequence[Edit] = (),
        *,
        seed: int = 0,
    ) -> Gan:
        """Return a child that has grown; it shares no memory with this pair or with siblings.

        Every weight, moment and running average is carried over by layer id; new ones are a
        function of ``seed``. With no edits at all the child is an exact copy.

        Raises:
            ValueError: if G's images would no longer fit D's input.
        """
        child = deepcopy(self)
        if generator or discriminator:
            child.finish_fade()
        for edit in generator:
            child._edit_generator(edit, seed)
        for edit in discriminator:
            child._edit_discriminator(edit, seed)
        made, judged = child.generator.spec, child.discriminator.spec
        if made.resolution != judged.resolution:
            raise ValueError(f"G makes {made.resolution} images, but D judges {judged.resolution}")
        return child

    def _edit_generator(self, edit: Edit, seed: int) -> None:
        parent = self.generator
        state = moments(parent, self.generator_optimiser)
        device = next(parent.parameters()).device
        self.generator = cast(Generator, apply(parent, edit, seed).to(device))
        self.average = cast(Generator, apply(self.average, edit, seed).to(device))
        self.average.requires_grad_(False).eval()
        self.generator_optimiser = make_optimiser(self.generator, self.optimiser_settings)
        inherited = _inherit_moments(parent, self.generator, edit, state, seed)
        restore_moments(self.generator, self.generator_optimiser, inherited)

    def _edit_discriminator(self, edit: Edit, seed: int) -> None:
        parent, state = (
            self.discriminator,
            moments(self.discriminator, self.discriminator_optimiser),
        )
        device = next(parent.parameters()).device
        # Another stream than G's, or both players' new layers would start alike.
        self.discriminator = cast(Discriminator, apply(parent, edit, ~seed & 0xFFFFFFFF).to(device))
        self.discriminator_optimiser = make_optimiser(self.discriminator, self.optimiser_settings)
        inherited = _inherit_moments(parent, self.discriminator, edit, state, seed)
        restore_moments(self.discriminator, self.discriminator_optimiser, inherited)

    def __deepcopy__(self, memo: dict[int, object]) -> Gan:
        copy = Gan(
            deepcopy(self.generator),
            deepcopy(self.discriminator),
            self.optimiser_settings,
            deepcopy(self.average),
        )
        copy.restore_moments(*self.moments())
        copy.images, copy.steps = self.images, self.steps
        copy.memory = {name: value.clone() for name, value in self.memory.items()}
        return copy

    def shown(self, images: Tensor) -> Tensor:
        """Return ``images`` [N, C, H, W], at the target resolution or this, at the pair's own."""
        return downsample(images, images.shape[-1] // self.resolution[1])

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the running average towards G by ``1 - decay``."""
        own: list[Tensor] = list(self.average.parameters())
        torch._foreach_lerp_(own, list(self.generator.parameters()), 1 - decay)
        # Running statistics are averages already, and a singular vector follows its weight.
        for mine, other in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(other)

    @torch.no_grad()
    def generate(
        self,
        count: int,
        *,
        seed: int = 0,
        batch: int = 256,
        given: Float[Tensor, "k c h w"] | None = None,
    ) -> UInt8[Tensor, "n c h w"]:
        """Return ``count`` images of the running average, uint8 on the CPU.

        The same ``seed`` gives the same latents at any age and resolution of the pair; labels
        and ``given`` images take turns.
        """
        rows = inputs(self.average.spec, count, seed, given=given)
        return to_uint8(self.average, rows, batch)


def inputs(
    spec: StackSpec,
    count: int,
    seed: int,
    labels: Sequence[int] | None = None,
    given: Float[Tensor, "k c h w"] | None = None,
) -> Float[Tensor, "n z"]:
    """Return what G is called with: latents, and what :func:`labelled` adds to them."""
    return labelled(spec, latents(count, spec.latent, seed), labels, seed, given)


def latents(count: int, length: int, seed: int) -> Float[Tensor, "n z"]:
    """Return standard normal latents that are a function of ``seed``."""
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed))


def even_latents(count: int, length: int, seed: int, groups: int = 1) -> Float[Tensor, "n z"]:
    """Return normal latents that fill their space evenly: scrambled Sobol sequences.

    For scores only: the Frechet distance of 5,000 of them varies half as much from seed to seed as
    that of independent ones (benchmarks/latents.py), since its largest part is that of the means.
    Every ``groups``-th row belongs to one sequence, scrambled on its own, so that a jackknife over
    such groups sees how much the distance varies.
    """
    each = -(-count // groups)
    sets = [
        SobolEngine(length, scramble=True, seed=seed * groups + k).draw(each) for k in range(groups)
    ]
    even = torch.stack(sets, 1).flatten(0, 1)[:count]
    return torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6))


def to_uint8(
    player: Generator, z: Tensor, batch: int = 256, *, embedded: bool = False
) -> UInt8[Tensor, "n c h w"]:
    """Return G's images as uint8 on the CPU: (127.5 x + 128), clamped.

    ``z`` are latents, or with ``embedded`` what G makes of them first.
    """
    device = next(player.parameters()).device
    make = player.synthesise if embedded else player
    parts = [make(chunk.to(device)) for chunk in z.split(batch)]
    return torch.cat([(x * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu() for x in parts])


def _inherit_moments(
    parent: Generator | Discriminator,
    child: Generator | Discriminator,
    edit: Edit,
    state: dict[str, dict[str, Tensor]],
    seed: int,
) -> dict[str, dict[str, Tensor]]:
    """Return the child's optimiser state: inherited where the parent had it, absent elsewhere."""
    names = {name: value.detach() for name, value in child.named_parameters()}
    nothing = {name: value.new_zeros(()).expand(value.shape) for name, value in names.items()}
    result: dict[str, dict[str, Tensor]] = {}
    for key, power in MOMENTS.items():
        given = inherit(parent, child, edit, state[key], seed, fresh=names, power=power)
        result[key] = nothing | given
    specs = parent.spec, child.spec
    steps = {renamed(name, edit, *specs): step for name, step in state["step"].items()}
    result["step"] = {name: step for name, step in steps.items() if name in names}
    return result
