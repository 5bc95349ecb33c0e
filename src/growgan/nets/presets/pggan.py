"""PGGAN (Karras et al., ICLR 2018), the architecture that growgan grows by default.

It has no small variant: it is grown with growgan's own recipe, the defaults of
:mod:`growgan.config`, which has a relativistic loss, strided layers and learning rates scaled by
width.
"""

from __future__ import annotations

from dataclasses import replace

from growgan.config import NetworkConfig
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import (
    PRESETS,
    ArchitectureFamily,
    Preset,
    norm_for_role,
    stage_width,
)
from growgan.nets.spec import DiscriminatorSpec, LayerSpec, NetworkSpec, Role


class PGGANFamily(ArchitectureFamily):
    """Convolutions with equalized learning rate, pixel norm in G, minibatch std in D."""

    def base_discriminator_spec(
        self, settings: NetworkConfig, base_grid: tuple[int, int], image_channels: int
    ) -> DiscriminatorSpec:
        """Return the spec of D on the base grid, with its minibatch standard deviation layer."""
        spec = super().base_discriminator_spec(settings, base_grid, image_channels)
        return replace(spec, mbstd_group_size=settings.mbstd_group_size)

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return all but one of G's layers on the base grid; D's are in its epilogue."""
        if role == "discriminator":
            return ()
        return tuple(
            LayerSpec(
                id=f"g{i}",
                block=settings.block,
                width=settings.width,
                kernel_size=settings.kernel_size,
                norm=settings.norm,
            )
            for i in range(settings.layers_per_resolution - 1)
        )

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return ``layers_per_resolution`` layers, the first of which doubles the resolution."""
        doubling = LayerSpec(
            id="x",
            block=settings.block,
            width=stage_width(settings, 2 * spec.resolution[0] // spec.base_grid[0]),
            kernel_size=settings.kernel_size,
            resample_factor=2,
            norm=norm_for_role(spec.role, settings),
        )
        others = [replace(doubling, resample_factor=1)] * (settings.layers_per_resolution - 1)
        return Append((doubling, *others))


PGGAN_SETTINGS = {
    "loss": "wasserstein",
    "regularizers": {"gp": {"weight": 10.0}, "drift": {"weight": 0.001}},
    "batch_size": 16,
    "lr_cooldown": 0.0,
    "optimizer": {"lr": 1e-3, "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "lr_decay_images": None},
    # 0.999 per step is a half-life of 693 steps, at batch size 16.
    "ema": {"half_life": 11_088, "ramp": 1.0},
    "network": {
        "block": "conv",
        "latent_dim": 512,
        "width": 512,
        "full_width_scale": 8,
        "layers_per_resolution": 2,
        "mbstd_group_size": 4,
        "parametrization": "equalized",
        "lr_scaling": "none",
    },
}

PRESETS.register("pggan", "Progressive growing of GANs.", "Karras et al. 2018, 1710.10196")(
    Preset(PGGANFamily(), PGGAN_SETTINGS)
)
