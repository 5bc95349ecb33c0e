"""The tensors of one training step, as losses, regularizers and conditionings see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from growgan.nets.networks import Discriminator, Generator

ObjectiveState = dict[str, Tensor]  # tensors that objectives keep from step to step, by name


def identity(images: Tensor) -> Tensor:
    """Return ``images`` unchanged."""
    return images


@dataclass(frozen=True)
class Shard:
    """A part of a batch: a micro-batch, or the part of one process under torchrun.

    Attributes:
        index: Position of this shard in the batch, from 0.
        count: Number of equal shards that make up the batch.
    """

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class ShardedRng:
    """Random numbers for one shard of a batch.

    Each shard draws the numbers of the whole batch and keeps its own rows. A batch in several
    shards therefore trains exactly as the whole batch does.

    Attributes:
        rng: Random number generator; its state must be equal in all shards.
        num_samples: Number of samples in this shard.
        shard: Which shard this is.
    """

    rng: torch.Generator
    num_samples: int
    shard: Shard = Shard()

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1).

        The first dimension must be a multiple of ``num_samples``: one or several sets of rows.
        """
        return self._sample_shard(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers; ``shape`` as in :meth:`uniform`."""
        return self._sample_shard(torch.randn, shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return integers from ``low`` to ``high`` - 1; ``shape`` as in :meth:`uniform`."""
        return self._sample_shard(partial(torch.randint, low, high), shape)

    def _sample_shard(self, sampler: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        num_sets, remainder = divmod(shape[0], self.num_samples)
        if self.shard.count == 1 or remainder:
            return sampler(shape, generator=self.rng, device=self.rng.device)
        batch_shape = (self.shard.count * shape[0], *shape[1:])
        batch = sampler(batch_shape, generator=self.rng, device=self.rng.device)
        by_shard = batch.view(num_sets, self.shard.count, self.num_samples, *shape[1:])
        return by_shard[:, self.shard.index].reshape(shape)


@dataclass
class StepContext:
    """One training step of G or D.

    Attributes:
        generator, discriminator: The networks.
        real: Real images, float ``[N, C, H, W]`` in [-1, 1].
        fake: Images that G made from ``generator_input``, same shape. Detached while D trains.
        generator_input: Float ``[N, z + condition]``: latents, labels, source images.
        rng: Random numbers of this step, on the device of the images.
        real_logits, fake_logits: D's outputs, float ``[N]``. While G trains, ``real_logits`` are
            set only for losses that need them.
        labels: Float ``[N, K]``, one-hot or all zeros for "no label", shared by the real and the
            fake image of a row. ``[N, 0]`` if labels are not used.
        source: Float ``[N, C * H * W]``, the flattened source images of image-to-image tasks,
            shared by the real and the fake image of a row. ``[N, 0]`` if there are none.
        real_features, fake_features: D's features, float ``[N, D]``. While G trains, only
            ``fake_features`` are set.
        index: Number of earlier steps, along the whole lineage.
        images_seen: Number of real images seen before, along the whole lineage.
        objective_state: Tensors that persist from step to step. They are saved with the GAN and
            inherited by its children. A name starts with its owner's, as in "lecam.real".
        augment: Differentiable augmentation of every image before D sees it.
        log_scalars: Values to log besides the loss terms, by name.
        shard: Which part of the batch this is.
        raw_fake: G's images before any regularizer changed what D sees. Empty until then.
    """

    generator: Generator
    discriminator: Discriminator
    real: Float[Tensor, "n c h w"]
    fake: Float[Tensor, "n c h w"]
    generator_input: Float[Tensor, "n z"]
    rng: torch.Generator
    real_logits: Float[Tensor, " n"]
    fake_logits: Float[Tensor, " n"]
    labels: Float[Tensor, "n k"] = field(default_factory=lambda: torch.empty(0))
    source: Float[Tensor, "n g"] = field(default_factory=lambda: torch.empty(0))
    real_features: Float[Tensor, "n d"] = field(default_factory=lambda: torch.empty(0))
    fake_features: Float[Tensor, "n d"] = field(default_factory=lambda: torch.empty(0))
    index: int = 0
    images_seen: int = 0
    objective_state: ObjectiveState = field(default_factory=dict)
    augment: Callable[[Tensor], Tensor] = identity
    log_scalars: dict[str, Tensor] = field(default_factory=dict)
    shard: Shard = Shard()
    raw_fake: Float[Tensor, "n c h w"] = field(default_factory=lambda: torch.empty(0))

    @property
    def realness_sign(self) -> int:
        """1 if a higher output of D means more real, -1 if the output is a reconstruction error."""
        return -1 if self.discriminator.spec.is_autoencoder else 1

    @property
    def latents_and_condition(self) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n rest"]]:
        """The latents, and the rest of G's input: labels and source images."""
        latent_dim = self.generator.spec.latent_dim
        return self.generator_input[:, :latent_dim], self.generator_input[:, latent_dim:]

    @property
    def sharded_rng(self) -> ShardedRng:
        """The step's random numbers for the samples of this shard."""
        return ShardedRng(self.rng, len(self.real), self.shard)

    def augmented_logits(self, images: Tensor) -> Float[Tensor, " n"]:
        """Return D's logits of the augmented ``images``."""
        return self.logits(self.augment(images))

    def logits(self, images: Tensor) -> Float[Tensor, " n"]:
        """Return D's logits of ``images`` without augmentation, each row with its condition."""
        return self.discriminator(images, *self.condition_args(images))

    def augmented_features(self, images: Tensor) -> Float[Tensor, "n d"]:
        """Return D's features of the augmented ``images``."""
        return self.discriminator.features(self.augment(images), *self.condition_args(images))

    def condition_args(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the condition of ``images`` as arguments of D, or no arguments.

        The condition is repeated if ``images`` hold the rows of the batch several times.
        """
        conditions = [tensor for tensor in (self.labels, self.source) if tensor.numel()]
        if self.source.numel() and not self.discriminator.spec.source_channels:
            conditions.pop()  # D does not see the source images.
        if not conditions:
            return ()
        return (torch.cat(conditions, 1).repeat(len(images) // len(self.real), 1),)

    def get_state(self, name: str, default: float = 0.0) -> Tensor:
        """Return the persistent scalar ``name``, created with ``default`` if it is missing."""
        if name not in self.objective_state:
            self.objective_state[name] = torch.full((), default, device=self.real.device)
        return self.objective_state[name]

    def update_ema(self, name: str, value: Tensor, decay: float) -> Tensor:
        """Move the persistent average ``name`` toward ``value`` by 1 - ``decay`` and return it.

        The first value is taken as it is. The shards of a batch move the average as the mean of
        their values would.
        """
        value = value.detach().float()
        # Step index and number of its shards so far. Kept on the CPU to avoid a GPU sync.
        index, num_shards = self.objective_state.get(
            f"{name}.count", torch.tensor([-1, 0])
        ).tolist()
        if index == self.index:
            value = torch.lerp(self.objective_state[f"{name}.batch"], value, 1 / (num_shards + 1))
        else:
            num_shards = 0
            if name in self.objective_state:
                self.objective_state[f"{name}.before"] = self.objective_state[name].clone()
        self.objective_state[f"{name}.count"] = torch.tensor([self.index, num_shards + 1])
        self.objective_state[f"{name}.batch"] = value.clone()
        start = self.objective_state.get(f"{name}.before", value)
        self.objective_state[name] = torch.lerp(start, value, 1 - decay)
        return self.objective_state[name]
