"""DCGAN (Radford et al., ICLR 2016): strided convolutions and batch normalization."""

from __future__ import annotations

from typing import Any

from growgan.config import NetworkConfig
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import (
    PRESETS,
    ArchitectureFamily,
    Preset,
    norm_for_role,
    small_variant,
    stage_width,
)
from growgan.nets.spec import LayerSpec, NetworkSpec


class DCGANFamily(ArchitectureFamily):
    """4×4 convolutions of stride 2, with ReLU in G and leaky ReLU in D.

    The image heads resample as well.
    """

    ends = "dcgan"

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return the layer that doubles the resolution."""
        factor = spec.resolution[0] // spec.base_grid[0]  # includes that of the head
        layer = LayerSpec(
            id="x",
            block=settings.block,
            width=stage_width(settings, factor),
            kernel_size=settings.kernel_size,
            resample_factor=2,
            norm=norm_for_role(spec.role, settings),
            activation="relu" if spec.role == "generator" else "leaky_relu",
        )
        return Append((layer,))


DCGAN_SETTINGS: dict[str, Any] = {
    "loss": "non-saturating",
    "regularizers": {},
    "batch_size": 128,
    "lr_cooldown": 0.0,
    "optimizer": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "lr_decay_images": None},
    "network": {
        "block": "strided",
        "latent_dim": 100,
        "width": 1024,
        "full_width_scale": 1,
        "norm": "batch",
        "discriminator_norm": "batch",
        "mbstd_group_size": 0,
        "init": "normal",
        "parametrization": "none",
        "lr_scaling": "none",
    },
}

PRESETS.register(
    "dcgan", "Strided convolutions and batch normalization.", "Radford et al. 2016, 1511.06434"
)(
    Preset(
        DCGANFamily(),
        DCGAN_SETTINGS,
        small_settings=small_variant(DCGAN_SETTINGS, 8e-4, width=64, full_width_scale=2),
    )
)
