"""Presets: architectures with the settings of their papers, and the base grid they start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, overload

from growgan.config import NetworkConfig, merge_settings
from growgan.errors import UserError
from growgan.nets.growth_ops import Append
from growgan.nets.spec import (
    DiscriminatorSpec,
    GeneratorSpec,
    LayerSpec,
    NetworkSpec,
    Role,
    WeightSpec,
    without_fade,
)
from growgan.registry import Registry

MIN_BASE_GRID_SIDE = 4  # pixels
MAX_BASE_GRID_SIDE = 16  # pixels
LARGE_IMAGE_SIDE = 64  # pixels; from this side on, a preset may have other settings
PATCH_STRIDE_PIXELS = 8  # largest distance between the patches of a patch discriminator
NUM_SUGGESTIONS = 3  # resolutions that an error message suggests
ROLES: tuple[Role, Role] = ("generator", "discriminator")
SpecT = TypeVar("SpecT", GeneratorSpec, DiscriminatorSpec)


class ArchitectureFamily:
    """Builds the specs of an architecture: those on the base grid, and the layers that double them.

    Attributes:
        ends: Name of the ends of the networks in ``growgan.nets.ends.ENDS``.
    """

    ends = "pggan"

    def base_grid(
        self,
        settings: NetworkConfig,
        target_resolution: tuple[int, int],
        role: Role = "generator",
    ) -> tuple[int, int]:
        """Return height and width of the base grid of a network for ``target_resolution``.

        The base grid of a patch discriminator is at least an eighth of the target resolution unless
        the settings give one (PatchGAN: Isola et al. 2017, 1611.07004).
        """
        height, width = resolve_base_grid(target_resolution, settings.base_grid)
        if role == "discriminator" and settings.patch_discriminator and settings.base_grid is None:
            while PATCH_STRIDE_PIXELS * height < target_resolution[0]:
                height, width = 2 * height, 2 * width
        return height, width

    def base_generator_spec(
        self, settings: NetworkConfig, base_grid: tuple[int, int], image_channels: int
    ) -> GeneratorSpec:
        """Return the spec of G on the base grid."""
        has_labels = settings.label_dim > 0
        # With class scores, D classifies labels that G does not receive.
        receives_labels = settings.logit_conditioning != "class_scores"
        return GeneratorSpec(
            base_grid=base_grid,
            image_channels=image_channels,
            stem_width=settings.width,
            layers=self.base_layers("generator", settings, base_grid),
            ends=self.ends,
            weight_spec=_weight_spec(settings),
            label_dim=settings.label_dim if receives_labels else 0,
            num_continuous_codes=settings.num_continuous_codes,
            label_embedding_dim=settings.label_embedding_dim,
            source_channels=settings.source_channels,
            latent_dim=settings.latent_dim,
            latent_chunk_dim=settings.latent_chunk_dim,
            stem_uses_label=settings.stem_uses_label if has_labels else True,
            styles_use_latent=settings.styles_use_latent if has_labels else True,
            residual_output=settings.residual_output,
        )

    def base_discriminator_spec(
        self, settings: NetworkConfig, base_grid: tuple[int, int], image_channels: int
    ) -> DiscriminatorSpec:
        """Return the spec of D on the base grid. ``settings`` are those for D."""
        spec = DiscriminatorSpec(
            base_grid=base_grid,
            image_channels=image_channels,
            stem_width=settings.width,
            layers=self.base_layers("discriminator", settings, base_grid),
            ends=self.ends,
            weight_spec=_weight_spec(settings),
            label_dim=settings.label_dim,
            num_continuous_codes=settings.num_continuous_codes,
            label_embedding_dim=settings.label_embedding_dim,
            source_channels=settings.source_channels if settings.discriminator_sees_source else 0,
            minibatch_discrimination_kernels=settings.minibatch_discrimination_kernels,
            is_autoencoder=settings.is_autoencoder,
            patch_discriminator=settings.patch_discriminator,
        )
        if not settings.label_dim:
            return spec
        return replace(
            spec,
            logit_conditioning=settings.logit_conditioning,
            linear_heads=settings.linear_heads,
            class_embedding_dim=settings.class_embedding_dim,
        )

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return the layers on the base grid."""
        return ()

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return the layers that double the resolution of ``spec``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Preset:
    """An architecture and the settings that its paper trained it with.

    Attributes:
        family: The architecture.
        published_settings: The published settings.
        large_image_settings: What differs for images of at least ``LARGE_IMAGE_SIDE`` pixels.
        small_settings: Settings of a small variant, which is not published, for short runs.
    """

    family: ArchitectureFamily
    published_settings: Mapping[str, Any]
    large_image_settings: Mapping[str, Any] = field(default_factory=dict)
    small_settings: Mapping[str, Any] = field(default_factory=dict)

    def settings_for_side(self, min_side: int) -> Mapping[str, Any]:
        """Return the published settings for images whose shorter side is ``min_side`` pixels."""
        if min_side < LARGE_IMAGE_SIDE:
            return self.published_settings
        return merge_settings(self.published_settings, self.large_image_settings)

    def min_resolution(
        self, settings: NetworkConfig, image_channels: int, target_resolution: tuple[int, int]
    ) -> tuple[int, int]:
        """Return the smallest resolution that both networks can have before they double."""
        generator_spec = self._base_generator_spec(settings, image_channels, target_resolution)
        discriminator_spec = self._base_discriminator_spec(
            settings, image_channels, target_resolution
        )
        return max(generator_spec.resolution, discriminator_spec.resolution)

    @overload
    def network_spec(
        self,
        role: Literal["generator"],
        settings: NetworkConfig,
        image_channels: int,
        target_resolution: tuple[int, int],
        resolution: tuple[int, int] | None = None,
    ) -> GeneratorSpec: ...
    @overload
    def network_spec(
        self,
        role: Literal["discriminator"],
        settings: NetworkConfig,
        image_channels: int,
        target_resolution: tuple[int, int],
        resolution: tuple[int, int] | None = None,
    ) -> DiscriminatorSpec: ...
    @overload
    def network_spec(
        self,
        role: Role,
        settings: NetworkConfig,
        image_channels: int,
        target_resolution: tuple[int, int],
        resolution: tuple[int, int] | None = None,
    ) -> GeneratorSpec | DiscriminatorSpec: ...
    def network_spec(
        self,
        role: Role,
        settings: NetworkConfig,
        image_channels: int,
        target_resolution: tuple[int, int],
        resolution: tuple[int, int] | None = None,
    ) -> GeneratorSpec | DiscriminatorSpec:
        """Return the spec of a network.

        Args:
            role: "generator" or "discriminator".
            settings: The network settings of both.
            image_channels: Number of image channels.
            target_resolution: Height and width of the images at the end of growth.
            resolution: Height and width of the images now. If None, the target resolution.
        """
        resolution = resolution or target_resolution
        if role == "generator":
            generator_spec = self._base_generator_spec(settings, image_channels, target_resolution)
            return self._double(generator_spec, settings, resolution)
        discriminator_spec = self._base_discriminator_spec(
            settings, image_channels, target_resolution
        )
        return self._double(discriminator_spec, settings, resolution)

    def _base_generator_spec(
        self, settings: NetworkConfig, image_channels: int, target_resolution: tuple[int, int]
    ) -> GeneratorSpec:
        base_grid = self.family.base_grid(settings, target_resolution, "generator")
        return self.family.base_generator_spec(
            settings.for_role("generator"), base_grid, image_channels
        )

    def _base_discriminator_spec(
        self, settings: NetworkConfig, image_channels: int, target_resolution: tuple[int, int]
    ) -> DiscriminatorSpec:
        base_grid = self.family.base_grid(settings, target_resolution, "discriminator")
        return self.family.base_discriminator_spec(
            settings.for_role("discriminator"), base_grid, image_channels
        )

    def _double(self, spec: SpecT, settings: NetworkConfig, resolution: tuple[int, int]) -> SpecT:
        """Return ``spec`` after as many doublings as ``resolution`` needs."""
        while spec.resolution != resolution:
            edit = self.family.doubling_edit(settings.for_role(spec.role), spec)
            spec = without_fade(edit.child_spec(spec))
        return spec


PRESETS: Registry[Preset] = Registry("preset")


def _weight_spec(settings: NetworkConfig) -> WeightSpec:
    return WeightSpec(
        init=settings.init,
        parametrization=settings.parametrization,
        lr_scaling=settings.lr_scaling,
    )


def norm_for_role(role: Role, settings: NetworkConfig) -> str:
    """Return the name of the norm of G or D."""
    return settings.norm if role == "generator" else settings.discriminator_norm


def small_variant(
    published_settings: Mapping[str, Any], lr: float, **network: Any
) -> dict[str, Any]:
    """Return the settings of a small variant of a preset.

    A budget of minutes needs many small steps, and narrow networks allow a higher learning rate
    than wide ones. With the published settings, little is learned in ten minutes on two cores.

    Args:
        published_settings: The published settings.
        lr: Learning rate of G and D.
        network: Network settings that differ from the published ones.
    """
    return {
        **published_settings,
        "batch_size": 32,
        "critic_steps": 1,
        "lr_cooldown": 0.3,
        "ema": {"half_life": 10_000, "ramp": 0.15},
        "optimizer": {**published_settings["optimizer"], "lr": lr, "discriminator_lr": None},
        "network": {**published_settings["network"], **network},
    }


def resolve_base_grid(
    target_resolution: tuple[int, int], base_grid: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return the base grid from which doublings reach ``target_resolution``.

    Args:
        target_resolution: Height and width in pixels.
        base_grid: A base grid to check. If None, the smallest one with sides of at least
            ``MIN_BASE_GRID_SIDE``.

    Raises:
        UserError: ``base_grid`` does not reach the target, or no base grid with sides of at most
            ``MAX_BASE_GRID_SIDE`` does.
    """
    target = f"{target_resolution[0]}x{target_resolution[1]}"
    if base_grid is not None:
        height, width = base_grid
        factor = target_resolution[0] // height
        is_power_of_two = factor & (factor - 1) == 0
        if target_resolution != (height * factor, width * factor) or not is_power_of_two:
            reachable = ", ".join(f"{height * 2**k}x{width * 2**k}" for k in range(6))
            raise UserError(
                f"resolution {target} cannot be reached by doubling the base grid {height}x{width},"
                f" which reaches {reachable}"
            )
        return base_grid
    height, width = _halve_to_base_grid(target_resolution)
    if max(height, width) > MAX_BASE_GRID_SIDE:
        suggestions = ", ".join(_nearby_resolutions(target_resolution))
        raise UserError(
            f"resolution {target} cannot be reached by doubling a grid of at most "
            f"{MAX_BASE_GRID_SIDE}x{MAX_BASE_GRID_SIDE}; the nearest resolutions that can are "
            f"{suggestions}"
        )
    return height, width


def _halve_to_base_grid(target_resolution: tuple[int, int]) -> tuple[int, int]:
    """Return the sides halved as long as both are even and the halves are long enough."""
    height, width = target_resolution
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 2 * MIN_BASE_GRID_SIDE:
        height, width = height // 2, width // 2
    return height, width


def _nearby_resolutions(target_resolution: tuple[int, int]) -> list[str]:
    """Return resolutions near ``target_resolution`` that doubling reaches, the nearest first."""
    suggestions: list[str] = []
    for multiple in (2**k for k in range(3, 13)):
        height, width = (
            max(multiple, round(side / multiple) * multiple) for side in target_resolution
        )
        is_reachable = max(_halve_to_base_grid((height, width))) <= MAX_BASE_GRID_SIDE
        if is_reachable and f"{height}x{width}" not in suggestions:
            suggestions.append(f"{height}x{width}")
    return suggestions[:NUM_SUGGESTIONS]


def stage_width(settings: NetworkConfig, resolution_factor: int) -> int:
    """Return the number of channels at ``resolution_factor`` times the base grid.

    It is the full width up to ``full_width_scale`` times the base grid, and halves with each
    further doubling. With ``width=512, full_width_scale=8`` these are PGGAN's min(16384/side, 512)
    for a 4×4 base grid.
    """
    tapered_width = settings.full_width_scale * settings.width // resolution_factor
    return max(8, min(settings.width, tapered_width))
