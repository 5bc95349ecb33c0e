"""G and D with everything training has given them: the unit that is trained, saved and grown."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.quasirandom import SobolEngine

from growgan.config import OptimizerSettings
from growgan.nets.conditioning import append_condition
from growgan.nets.growth_ops import Edit, Moments, grow_network
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.resampling import downsample_average
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.objectives.step_context import ObjectiveState
from growgan.training.optimizers import make_optimizer, moments_by_name, restore_moments


class Gan:
    """G, D, the moving average of G, and both optimizers.

    Attributes:
        generator, discriminator: The networks in training.
        ema: Exponential moving average of G, which :meth:`generate` samples from.
        optimizer_settings: Settings of both optimizers.
        generator_optimizer, discriminator_optimizer: Adam for each network.
        images_seen: Real images seen along the whole lineage.
        steps: Training steps along the whole lineage.
        objective_state: Tensors that the objective keeps from step to step, by name.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        optimizer_settings: OptimizerSettings,
        ema: Generator | None = None,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.ema = ema if ema is not None else deepcopy(generator)
        self.ema.requires_grad_(False).eval()
        self.optimizer_settings = optimizer_settings
        self.generator_optimizer = make_optimizer(generator, optimizer_settings)
        self.discriminator_optimizer = make_optimizer(discriminator, optimizer_settings)
        self.images_seen = 0
        self.steps = 0
        self.objective_state: ObjectiveState = {}

    @classmethod
    def create(
        cls,
        generator_spec: GeneratorSpec,
        discriminator_spec: DiscriminatorSpec,
        optimizer_settings: OptimizerSettings,
        *,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> Gan:
        """Build both networks with random weights that are a function of ``seed``."""
        generator = build_network(generator_spec, 2 * seed).to(device)
        discriminator = build_network(discriminator_spec, 2 * seed + 1).to(device)
        return cls(generator, discriminator, optimizer_settings)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of G's images in pixels."""
        return self.generator.spec.resolution

    @property
    def alpha(self) -> float:
        """Fade-in weight of the newest layers, 0 to 1; 1 if nothing fades in."""
        return min(float(self.generator.alpha), float(self.discriminator.alpha))

    def set_alpha(self, alpha: float) -> None:
        """Set the fade-in weight of G, D and the moving average; clamped to [0, 1]."""
        alpha = min(1.0, max(0.0, alpha))
        for network in (self.generator, self.discriminator, self.ema):
            if network.spec.num_fading_layers:
                network.set_alpha(alpha)

    def finish_fade(self) -> None:
        """Remove the layers that have faded out, together with their moments."""
        if not (self.generator.spec.num_fading_layers or self.discriminator.spec.num_fading_layers):
            return
        generator_moments, discriminator_moments = self.optimizer_moments()
        for network in (self.generator, self.discriminator, self.ema):
            network.finish_fade()
        self.restore_moments(generator_moments, discriminator_moments)

    def optimizer_moments(self) -> tuple[Moments, Moments]:
        """Return step counts and moments of G's and D's optimizers by parameter name."""
        return (
            moments_by_name(self.generator, self.generator_optimizer),
            moments_by_name(self.discriminator, self.discriminator_optimizer),
        )

    def restore_moments(self, generator_moments: Moments, discriminator_moments: Moments) -> None:
        """Replace both optimizers by new ones with the moments of :meth:`optimizer_moments`."""
        self.generator_optimizer = make_optimizer(self.generator, self.optimizer_settings)
        self.discriminator_optimizer = make_optimizer(self.discriminator, self.optimizer_settings)
        restore_moments(self.generator, self.generator_optimizer, generator_moments)
        restore_moments(self.discriminator, self.discriminator_optimizer, discriminator_moments)

    def grown_copy(
        self,
        generator_edits: Sequence[Edit] = (),
        discriminator_edits: Sequence[Edit] = (),
        *,
        seed: int = 0,
    ) -> Gan:
        """Return a grown child, which shares no memory with this GAN or its other children.

        The child inherits every weight, moment and average by layer. New weights are a function of
        ``seed``. Without edits the child is an exact copy.

        Raises:
            ValueError: The resolutions of G and D would differ.
        """
        # Copy everything. An earlier growth has to be complete before the next one.
        child = deepcopy(self)
        if generator_edits or discriminator_edits:
            child.finish_fade()

        # Apply each edit to the spec, and build a network that inherits weights and moments.
        generator_moments, discriminator_moments = child.optimizer_moments()
        for edit in generator_edits:
            child.ema, _ = grow_network(child.ema, edit, seed)
            child.generator, generator_moments = grow_network(
                child.generator, edit, seed, generator_moments
            )
        # D's seed differs from G's, so that the new layers of both do not start equal.
        discriminator_seed = ~seed & 0xFFFFFFFF
        for edit in discriminator_edits:
            child.discriminator, discriminator_moments = grow_network(
                child.discriminator, edit, discriminator_seed, discriminator_moments
            )
        child.ema.requires_grad_(False).eval()
        child.restore_moments(generator_moments, discriminator_moments)

        resolution = child.discriminator.spec.resolution
        if child.resolution != resolution:
            raise ValueError(
                f"G's resolution {child.resolution} must equal D's resolution {resolution}"
            )
        return child

    def __deepcopy__(self, memo: dict[int, object]) -> Gan:
        copy = Gan(
            deepcopy(self.generator),
            deepcopy(self.discriminator),
            self.optimizer_settings,
            deepcopy(self.ema),
        )
        copy.restore_moments(*self.optimizer_moments())
        copy.images_seen, copy.steps = self.images_seen, self.steps
        copy.objective_state = {name: value.clone() for name, value in self.objective_state.items()}
        return copy

    def downsample_images(self, images: Tensor) -> Tensor:
        """Return ``images`` [N, C, H, W] averaged down to the resolution of G."""
        return downsample_average(images, images.shape[-1] // self.resolution[1])

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the average of G toward G by ``1 - decay``.

        This uses torch's averaging function without ``AveragedModel``, which has a fixed decay,
        wraps the network and would have to be rebuilt whenever the network grows.
        """
        averaged: list[Tensor] = list(self.ema.parameters())
        get_ema_multi_avg_fn(decay)(averaged, list(self.generator.parameters()), 0)
        # Copy buffers: running statistics are averages already, and the singular vectors of
        # spectral normalization belong to the current weights.
        for average, current in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(current)

    @torch.no_grad()
    def generate(
        self,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 256,
        source: Float[Tensor, "k c h w"] | None = None,
    ) -> UInt8[Tensor, "n c h w"]:
        """Return ``count`` images of the moving average, uint8 on the CPU.

        The latents depend on ``seed`` alone, whatever the resolution. Labels and ``source`` images
        are used in turn.
        """
        generator_input = make_generator_input(self.ema.spec, count, seed, source=source)
        return generate_uint8(self.ema, generator_input, batch_size)


def make_generator_input(
    spec: GeneratorSpec,
    count: int,
    seed: int,
    labels: Sequence[int] | None = None,
    source: Float[Tensor, "k c h w"] | None = None,
) -> Float[Tensor, "n z"]:
    """Return ``count`` inputs of G: latents followed by the condition."""
    latents = sample_latents(count, spec.latent_dim, seed)
    return append_condition(spec, latents, labels, seed, source_images=source)


def sample_latents(count: int, latent_size: int, seed: int) -> Float[Tensor, "n z"]:
    """Return standard normal latents that are a function of ``seed``."""
    return torch.randn(count, latent_size, generator=torch.Generator().manual_seed(seed))


def sobol_latents(
    count: int, latent_size: int, seed: int, num_sequences: int = 1
) -> Float[Tensor, "n z"]:
    """Return normal latents that cover their space evenly: scrambled Sobol sequences.

    They are meant for scores. The Frechet distance of 5,000 of them varies half as much from seed
    to seed as that of independent latents, because most of the variation comes from the means
    (``benchmarks/latent_sampling.py``).

    Args:
        count: Number of latents.
        latent_size: Length of a latent.
        seed: Seed of the scrambling.
        num_sequences: Number of independently scrambled sequences, used in turn. A jackknife over
            sequences then measures how much a score varies.
    """
    length = -(-count // num_sequences)
    sequences = [
        SobolEngine(latent_size, scramble=True, seed=seed * num_sequences + k).draw(length)
        for k in range(num_sequences)
    ]
    uniform = torch.stack(sequences, 1).flatten(0, 1)[:count]
    return torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))


def generate_uint8(
    generator: Generator, z: Tensor, batch_size: int = 256, *, input_is_styles: bool = False
) -> UInt8[Tensor, "n c h w"]:
    """Return G's images as uint8 on the CPU: 127.5 x + 128, clamped.

    Args:
        generator: The network.
        z: Inputs of G, or styles w if ``input_is_styles``.
        batch_size: Number of images per forward pass.
        input_is_styles: Whether to skip the mapping from z to w.
    """
    device = next(generator.parameters()).device
    forward = generator.synthesize if input_is_styles else generator
    batches = [forward(part.to(device)) for part in z.split(batch_size)]
    return torch.cat([(x * 127.5 + 128).clamp(0, 255).to(torch.uint8).cpu() for x in batches])
