"""The generator of a trained candidate: samples, interpolations and latent edits.

Most methods refer to images by their indices among those of ``sample(count, seed=..., ...)``.
Look at a sheet of samples first, then pass the same arguments with the indices of some of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings
from growgan.data import ImageSet, load_images
from growgan.data.npz import read_arrays
from growgan.errors import UserError
from growgan.jsonl import parse_json
from growgan.nets.conditioning import one_hot
from growgan.nets.networks import Generator
from growgan.objectives import make_objective
from growgan.sampling.directions import LatentDirections, principal_directions
from growgan.sampling.latents import slerp, truncate_latents, truncate_styles
from growgan.training.checkpoint import load_generator
from growgan.training.gan import generate_uint8, make_generator_input

ImageArray = UInt8[np.ndarray, "n h w c"]
SOURCE_IMAGES_FILE = "source_images.npz"  # in the run of an image-to-image task: example sources
DEFAULT_COUNT = 64  # images among which indices refer to one
TRAVERSAL_RANGE_STD = 2.0  # a continuous code goes from -2 to 2 standard deviations
NUM_ARITHMETIC_NEIGHBORS = 8  # images near the result of latent arithmetic
# Half the width of the noise between these neighbors, in standard deviations (Radford et al. 2016,
# figure 7).
NEIGHBOR_NOISE_SCALE = 0.25


class SampleSpec(TypedDict, total=False):
    """Keyword arguments that identify samples, for callers that pass them on."""

    count: int
    seed: int
    truncation: float | None
    labels: Sequence[int] | None


@dataclass(frozen=True)
class TrainedGenerator:
    """The generator of a candidate.

    These arguments mean the same in all methods:

    - ``count``: number of images among which indices refer to one.
    - ``seed``: random seed of the latents.
    - ``truncation``: without a mapping network, every latent value beyond this many standard
      deviations, 0.05 to 10, is redrawn (Brock et al. 2019). With a mapping network, the distance
      of each style from the mean style is multiplied by this factor psi, 0 to 10 (Karras et al.
      2019, section B). None leaves the latents as they are.
    - ``labels``: labels to use in turn. None uses all classes in turn. Only conditional generators
      have labels.

    Attributes:
        checkpoint_dir: Folder with the candidate's checkpoint.
    """

    checkpoint_dir: Path

    def load_network(self) -> Generator:
        """Return the moving average of G, on the CPU and in evaluation mode."""
        return load_generator(self.checkpoint_dir)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it generates, as in the data; empty if it is unconditional."""
        conditioning = make_objective(self.settings).conditioning
        if not (conditioning.needs_labels and conditioning.generator_conditioned):
            return ()
        path = self.run_dir / "data.json"
        try:
            return tuple(map(str, parse_json(path.read_bytes())["classes"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{path}' cannot be read: {error}") from error

    @property
    def settings(self) -> Settings:
        """All settings of its run."""
        return Settings.from_yaml(self.run_dir / "config.yaml")

    @property
    def load_args(self) -> dict[str, Any]:
        """Arguments of ``load_images`` that preprocess images as those of its run."""
        settings = self.settings
        return {
            "resolution": settings.resolution,
            "channels": self._network.spec.image_channels,
            "fit": settings.data.fit,
        }

    def load_data(self, source: str | Path) -> ImageSet:
        """Load the training data of its run from ``source``, preprocessed as in the run.

        Raises:
            UserError: They cannot be read, or have no image of the only class of the run.
        """
        data, only_class = load_images(source, **self.load_args), self.settings.labels.only_class
        return data if only_class is None else data.only_class(only_class)

    @property
    def run_dir(self) -> Path:
        """The directory of its run."""
        return self.checkpoint_dir.parent.parent

    @cached_property
    def _network(self) -> Generator:
        return self.load_network()

    # Samples

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
        source_images: ImageArray | None = None,
    ) -> ImageArray:
        """Return ``count`` images, uint8 [N, H, W, C].

        Args:
            count: Number of images.
            seed: See the class.
            truncation: See the class.
            labels: See the class.
            source_images: For image-to-image generators: images to translate, uint8 [K, H, W, S],
                used in turn. They must have the generator's resolution. The default is the
                examples that the run saved.
        """
        z = self._sample_inputs(
            count, seed=seed, truncation=truncation, labels=labels, source_images=source_images
        )
        return self._generate(z, truncation)

    def sample_labels(
        self,
        count: int,
        labels: Sequence[int] | None = None,
        source_images: ImageArray | None = None,
    ) -> NDArray[np.int64] | None:
        """Return the labels of the images of :meth:`sample`, int64 [N]; None without classes."""
        used_labels = self._default_labels(labels, source_images)
        if used_labels is not None and used_labels is not labels:
            return np.resize(used_labels, count).astype(np.int64)
        num_classes = self._network.spec.num_classes
        return cycle_labels(count, num_classes, labels) if num_classes else None

    # Interpolation

    def interpolate(
        self,
        indices: Sequence[int],
        steps: int,
        *,
        count: int = DEFAULT_COUNT,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> ImageArray:
        """Interpolate between samples: ``steps`` images from each one to the next, and the last.

        Latents are interpolated on a great circle. Points on the line between two latents have
        smaller norms than any latent that G was trained on (White 2016, 1609.04468).

        Returns:
            Images, uint8 [(len(indices) - 1) * steps + 1, H, W, C].

        Raises:
            UserError: There are fewer than two indices, or no step.
        """
        if steps < 1 or len(indices) < 2:
            raise UserError(
                "an interpolation needs at least two indices and one step, but got "
                f"{[*indices]} and {steps}"
            )
        z = self._inputs_at(indices, count=count, seed=seed, truncation=truncation, labels=labels)
        latent_dim = self._network.spec.latent_dim
        points = [
            torch.cat(
                [
                    slerp(start[:latent_dim], end[:latent_dim], fraction),
                    torch.lerp(start[latent_dim:], end[latent_dim:], fraction),
                ]
            )
            for start, end in pairwise(z)
            for fraction in torch.arange(steps) / steps
        ]
        return self._generate(torch.stack([*points, z[-1]]), truncation)

    def interpolate_classes(
        self,
        labels: Sequence[int],
        steps: int,
        *,
        rows: int = 8,
        seed: int = 0,
        truncation: float | None = None,
    ) -> ImageArray:
        """Interpolate between classes. Each row of the result has one latent.

        From each class to the next there are ``steps`` images, whose labels are mixtures of both.
        The last class follows at the end of the row.

        Returns:
            Images row by row, uint8 [rows * ((len(labels) - 1) * steps + 1), H, W, C].

        Raises:
            UserError: The generator is not conditional, or there are fewer than two labels.
        """
        if steps < 1 or len(labels) < 2:
            raise UserError(
                "a class interpolation needs at least two labels and one step, but got "
                f"{[*labels]} and {steps}"
            )
        self._check_labels(labels)
        spec = self._network.spec
        z = self._truncate(
            make_generator_input(spec, rows, seed, source=self._source_tensor()), truncation, seed
        )
        class_vectors = one_hot(torch.tensor(labels), spec.num_classes)
        mixtures = [
            torch.lerp(start, end, fraction)
            for start, end in pairwise(class_vectors)
            for fraction in torch.arange(steps) / steps
        ]
        y = torch.stack([*mixtures, class_vectors[-1]])  # [columns, classes]
        table = z[:, None].repeat(1, len(y), 1)  # [rows, columns, inputs]
        table[:, :, spec.latent_dim : spec.latent_dim + y.shape[1]] = y
        return self._generate(table.flatten(0, 1), truncation)

    def traverse_code(
        self,
        code: int,
        steps: int,
        *,
        rows: int = 8,
        seed: int = 0,
        truncation: float | None = None,
    ) -> ImageArray:
        """Vary a continuous code of InfoGAN from -2 to 2 (Chen et al. 2016, figure 2).

        Each row of the result has one latent.

        Returns:
            Images row by row, uint8 [rows * (steps + 1), H, W, C].

        Raises:
            UserError: The generator has no such code.
        """
        spec = self._network.spec
        if not 0 <= code < spec.num_continuous_codes:
            raise UserError(
                f"code must be below the number of continuous codes, "
                f"{spec.num_continuous_codes}, but got {code}"
            )
        if steps < 1:
            raise UserError(f"steps must be at least 1, but got {steps}")
        z = self._truncate(
            make_generator_input(spec, rows, seed, source=self._source_tensor()), truncation, seed
        )
        table = z[:, None].repeat(1, steps + 1, 1)
        table[:, :, spec.latent_dim + spec.num_classes + code] = torch.linspace(
            -TRAVERSAL_RANGE_STD, TRAVERSAL_RANGE_STD, steps + 1
        )
        return self._generate(table.flatten(0, 1), truncation)

    # Edits

    def latent_arithmetic(
        self,
        plus: Sequence[Sequence[int]],
        minus: Sequence[Sequence[int]],
        *,
        count: int = DEFAULT_COUNT,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> ImageArray:
        """Add and subtract mean latents (Radford et al. 2016, figure 7).

        Each set of indices should be of images with something in common. The latents of a set are
        averaged.

        Args:
            plus: Sets whose means are added.
            minus: Sets whose means are subtracted.
            count: See the class.
            seed: See the class.
            truncation: See the class.
            labels: See the class.

        Returns:
            The image of the result and eight images near it, uint8 [9, H, W, C].
        """
        spec = self._network.spec
        total = torch.zeros(spec.input_dim)
        for sign, sets in ((1, plus), (-1, minus)):
            for indices in sets:
                z = self._inputs_at(
                    indices, count=count, seed=seed, truncation=truncation, labels=labels
                )
                total = total + sign * z.mean(0)
        rng = torch.Generator().manual_seed(seed)
        noise = torch.rand(NUM_ARITHMETIC_NEIGHBORS, spec.latent_dim, generator=rng) * 2 - 1
        noise = torch.cat([noise, noise.new_zeros(len(noise), spec.cond_dim)], 1)
        return self._generate(
            torch.cat([total[None], total + NEIGHBOR_NOISE_SCALE * noise]), truncation
        )

    def style_mix(
        self,
        row_indices: Sequence[int],
        column_indices: Sequence[int],
        *,
        count: int = DEFAULT_COUNT,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> ImageArray:
        """Mix styles: the coarse styles of one sample per row, the fine ones of one per column.

        See Karras et al. 2019, figure 3.

        Returns:
            Images row by row, uint8 [len(row_indices) * len(column_indices), H, W, C].

        Raises:
            UserError: The generator has no styles.
        """
        network = self._network
        if network.num_styles < 2:
            raise UserError("styles cannot be mixed: the layers of this generator have no styles")
        coarse, fine = (
            self._truncated_styles(
                self._inputs_at(
                    indices, count=count, seed=seed, truncation=truncation, labels=labels
                ),
                truncation,
            )
            for indices in (row_indices, column_indices)
        )
        is_coarse = (torch.arange(network.num_styles) < network.num_styles // 2).view(-1, 1)
        table = torch.where(is_coarse, coarse[:, None, None], fine[None, :, None])
        return self._generate_from_styles(table.flatten(0, 1))

    def edit_latent(
        self,
        index: int,
        direction_offsets: Mapping[int, float],
        latent_values: Mapping[int, float] | None = None,
        *,
        count: int = DEFAULT_COUNT,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> ImageArray:
        """Return an edited sample, uint8 [1, H, W, C].

        Args:
            index: Index of the sample.
            direction_offsets: By direction of :attr:`directions`, how many standard deviations to
                move along it.
            latent_values: By latent dimension, the value to set.
            count: See the class.
            seed: See the class.
            truncation: See the class.
            labels: See the class.

        Raises:
            UserError: There is no such sample, direction or latent dimension.
        """
        spec, latent_values = self._network.spec, latent_values or {}
        num_directions = len(self.directions) if direction_offsets else 0
        _check_indices("direction", direction_offsets, num_directions)
        _check_indices("latent dimension", latent_values, spec.latent_dim)
        z = self._inputs_at([index], count=count, seed=seed, truncation=truncation, labels=labels)
        for dimension, value in latent_values.items():
            z[0, dimension] = value
        if not direction_offsets:
            return self._generate(z, truncation)
        offset = self.directions.offset(direction_offsets)
        if not self.directions.in_style_space:
            z[0, : spec.latent_dim] += offset
            return self._generate(z, truncation)
        return self._generate_from_styles(self._truncated_styles(z, truncation) + offset)

    def get_latent(
        self,
        index: int,
        *,
        count: int = DEFAULT_COUNT,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
    ) -> Float[np.ndarray, " z"]:
        """Return the latent of a sample, float32 [latent_dim], before any edit."""
        z = self._inputs_at([index], count=count, seed=seed, truncation=truncation, labels=labels)
        return z[0, : self._network.spec.latent_dim].numpy()

    @cached_property
    def directions(self) -> LatentDirections:
        """The principal directions of its latents or styles.

        Raises:
            UserError: It is an image-to-image generator, whose images depend on the source most.
        """
        if self._network.spec.source_channels:
            raise UserError("image-to-image generators have no latent directions")
        return principal_directions(self._network)

    # Inputs of the network

    @cached_property
    def _saved_sources(self) -> dict[str, NDArray[Any]]:
        """The source images that the run saved, and their labels."""
        path = self.run_dir / SOURCE_IMAGES_FILE
        arrays = read_arrays(path, (("source_images",), ("labels",)))
        expected_arrays = {"source_images": (np.uint8, 4), "labels": (np.integer, 1)}
        for key, (dtype, num_axes) in expected_arrays.items():
            if key not in arrays or not arrays[key].size or arrays[key].ndim != num_axes:
                raise UserError(f"'{path}' must hold an array '{key}' with {num_axes} axes")
            if not np.issubdtype(arrays[key].dtype, dtype):
                raise UserError(
                    f"'{key}' in '{path}' must be of type {dtype.__name__}, but is "
                    f"{arrays[key].dtype}"
                )
        return arrays

    def _default_labels(
        self, labels: Sequence[int] | None, source_images: ImageArray | None
    ) -> Sequence[int] | None:
        """Return ``labels``, or the saved labels if the saved source images are used."""
        spec = self._network.spec
        uses_saved_sources = labels is None and source_images is None and spec.source_channels
        if uses_saved_sources and spec.label_dim:
            return [*map(int, self._saved_sources["labels"])]
        return labels

    def _source_tensor(self, source_images: ImageArray | None = None) -> Tensor | None:
        """Return source images, float [K, S, H, W] in [-1, 1]; None if G uses none."""
        spec = self._network.spec
        if source_images is None and spec.source_channels:
            source_images = self._saved_sources["source_images"]
        if source_images is None:
            return None
        expected_shape = (*spec.resolution, spec.source_channels)
        if source_images.shape[1:] != expected_shape:
            raise UserError(
                f"source images must have the shape {expected_shape}, but have "
                f"{source_images.shape[1:]}"
            )
        return torch.from_numpy(source_images).movedim(3, 1).float() / 127.5 - 1

    def _check_labels(self, labels: Sequence[int] | None) -> None:
        num_classes = self._network.spec.num_classes
        if labels is not None and not num_classes:
            raise UserError(f"this generator is not conditional, but got labels {[*labels]}")
        cycle_labels(0, num_classes, labels)

    def _inputs_at(
        self,
        indices: Sequence[int],
        *,
        count: int,
        seed: int,
        truncation: float | None,
        labels: Sequence[int] | None,
    ) -> Float[Tensor, "n z"]:
        """Return the inputs of the samples with these indices."""
        _check_indices("index", indices, count)
        z = self._sample_inputs(count, seed=seed, truncation=truncation, labels=labels)
        return z[list(indices)]

    def _sample_inputs(
        self,
        count: int,
        *,
        seed: int,
        truncation: float | None,
        labels: Sequence[int] | None,
        source_images: ImageArray | None = None,
    ) -> Float[Tensor, "n z"]:
        """Return the inputs of all samples: latents followed by conditions."""
        if count < 0:
            raise UserError(f"count must be at least 0, but got {count}")
        self._check_labels(labels)
        z = make_generator_input(
            self._network.spec,
            count,
            seed,
            labels=self._default_labels(labels, source_images),
            source=self._source_tensor(source_images),
        )
        return self._truncate(z, truncation, seed)

    def _truncate(self, z: Float[Tensor, "n z"], truncation: float | None, seed: int) -> Tensor:
        """Truncate the latents in ``z``, unless truncation applies to styles."""
        spec = self._network.spec
        if truncation is None or spec.mapping_layers:
            return z
        latents = truncate_latents(z[:, : spec.latent_dim], truncation, seed)
        return torch.cat([latents, z[:, spec.latent_dim :]], 1)

    @torch.no_grad()
    def _truncated_styles(self, z: Float[Tensor, "n z"], truncation: float | None) -> Tensor:
        """Return the styles of ``z``, truncated if truncation applies to styles."""
        styles = self._network.map_to_w(z)
        if truncation is None or not self._network.spec.mapping_layers:
            return styles
        return truncate_styles(self._network.stem.w_avg, styles, truncation)

    def _generate(self, z: Float[Tensor, "n z"], truncation: float | None = None) -> ImageArray:
        if truncation is not None and self._network.spec.mapping_layers:
            return self._generate_from_styles(self._truncated_styles(z, truncation))
        with torch.no_grad():
            return _to_channels_last(generate_uint8(self._network, z))

    def _generate_from_styles(self, styles: Tensor) -> ImageArray:
        with torch.no_grad():
            return _to_channels_last(generate_uint8(self._network, styles, input_is_styles=True))


def cycle_labels(count: int, num_classes: int, labels: Sequence[int] | None) -> NDArray[np.int64]:
    """Return ``labels`` repeated to ``count``, int64 [count]; all classes if ``labels`` is None.

    Raises:
        UserError: A label is not below ``num_classes``.
    """
    used_labels = labels or range(num_classes)
    _check_indices("label", used_labels, num_classes)
    return np.resize(used_labels, count).astype(np.int64)


def _check_indices(name: str, indices: Sequence[int] | Mapping[int, object], count: int) -> None:
    """Check that all indices are from 0 to ``count`` - 1.

    Raises:
        UserError: One is not. The message calls it ``name``.
    """
    for index in indices:
        if not 0 <= index < count:
            raise UserError(f"{name} must be from 0 to {count - 1}, but got {index}")


def _to_channels_last(images: Tensor) -> ImageArray:
    """Return uint8 [N, C, H, W] as an array [N, H, W, C]."""
    channels_last: NDArray[np.uint8] = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
    return channels_last
