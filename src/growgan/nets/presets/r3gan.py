"""R3GAN (Huang et al., NeurIPS 2024, 2501.05441), a modern baseline without tricks."""

from __future__ import annotations

from dataclasses import replace
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
from growgan.nets.spec import LayerSpec, NetworkSpec, Role


class R3GANFamily(ArchitectureFamily):
    """``layers_per_resolution`` grouped bottlenecks at each resolution of G and D."""

    ends = "r3gan"

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return the layers on the base grid."""
        return tuple(
            LayerSpec(
                id=f"{role[0]}{i}",
                block=settings.block,
                width=settings.width,
                kernel_size=settings.kernel_size,
                norm=norm_for_role(role, settings),
            )
            for i in range(settings.layers_per_resolution)
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


# The settings for CIFAR-10 at the start of training. In the paper the learning rate falls to 5e-5,
# gamma falls to a tenth and beta2 rises to 0.99, each along a cosine, and D's inputs are augmented
# increasingly often. Here they stay constant.
R3GAN_SETTINGS: dict[str, Any] = {
    "loss": "relativistic",
    "regularizers": {"r1": {"gamma": 0.05, "interval": 1}, "r2": {"gamma": 0.05, "interval": 1}},
    "batch_size": 512,
    "lr_cooldown": 0.0,
    "optimizer": {"lr": 2e-4, "beta1": 0.0, "beta2": 0.9, "eps": 1e-8, "lr_decay_images": None},
    "ema": {"half_life": 5_000_000, "ramp": 0.25},
    "network": {
        "block": "grouped",
        "latent_dim": 64,
        "width": 768,
        "full_width_scale": 8,
        "layers_per_resolution": 2,
        "norm": "none",
        "discriminator_norm": "none",
        "mbstd_group_size": 0,
        "parametrization": "none",
        "lr_scaling": "none",
    },
}
# The published settings for FFHQ at 64 pixels.
R3GAN_FFHQ_64_SETTINGS = {
    "regularizers": {"r1": {"gamma": 2.0, "interval": 1}, "r2": {"gamma": 2.0, "interval": 1}},
    "batch_size": 256,
    "ema": {"half_life": 500_000, "ramp": 0.025},
}
R3GAN_SMALL_SETTINGS = {
    **small_variant(R3GAN_SETTINGS, 2e-3, width=32, full_width_scale=4, layers_per_resolution=1),
    "regularizers": {"r1": {"interval": 8}, "r2": {"interval": 8}},
}

PRESETS.register(
    "r3gan", "Grouped bottleneck layers without normalization.", "Huang et al. 2024, 2501.05441"
)(
    Preset(
        R3GANFamily(),
        R3GAN_SETTINGS,
        large_image_settings=R3GAN_FFHQ_64_SETTINGS,
        small_settings=R3GAN_SMALL_SETTINGS,
    )
)
