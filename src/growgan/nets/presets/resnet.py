"""Residual GANs: SNGAN, SAGAN and BigGAN.

All three have pre-activation residual layers and spectral normalization in D. Below 64 pixels the
settings are those published for CIFAR-10, from 64 pixels on those for ImageNet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import NetworkConfig
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import (
    LARGE_IMAGE_SIDE,
    PRESETS,
    ArchitectureFamily,
    Preset,
    norm_for_role,
    small_variant,
    stage_width,
)
from growgan.nets.spec import LayerSpec, NetworkSpec, Role


class ResnetFamily(ArchitectureFamily):
    """Residual layers that double the resolution; D starts with layers that keep the base grid."""

    ends = "resnet"

    def base_grid(
        self,
        settings: NetworkConfig,
        target_resolution: tuple[int, int],
        role: Role = "generator",
    ) -> tuple[int, int]:
        """Return the usual base grid, or one twice as large for D on small images."""
        height, width = super().base_grid(settings, target_resolution, role)
        shorter_side = min(target_resolution)
        is_small = 4 * min(height, width) <= shorter_side < LARGE_IMAGE_SIDE
        if role == "discriminator" and is_small:
            return 2 * height, 2 * width
        return height, width

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return the layers of D on the base grid: two on a larger one, else one."""
        if role == "generator":
            return ()
        return tuple(
            LayerSpec(
                id=f"d{i}",
                block=settings.block,
                width=settings.width,
                kernel_size=settings.kernel_size,
                norm=settings.discriminator_norm,
                activation="relu",
            )
            for i in range(2 if min(base_grid) >= 8 else 1)
        )

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return a layer that doubles the resolution, and attention at its resolution."""
        doubling = LayerSpec(
            id="x",
            block=settings.block,
            width=stage_width(settings, 2 * spec.resolution[0] // spec.base_grid[0]),
            kernel_size=settings.kernel_size,
            resample_factor=2,
            norm=norm_for_role(spec.role, settings),
            activation="relu",
        )
        if 2 * min(spec.resolution) // spec.head_resample_factor != settings.attention_resolution:
            return Append((doubling,))
        attention = LayerSpec(
            id="x", block="attention", width=doubling.width, kernel_size=1, norm="none"
        )
        return Append((doubling, attention))


class BigGANDeepFamily(ResnetFamily):
    """BigGAN-deep: a bottleneck that keeps the resolution before each that doubles it."""

    ends = "biggan-deep"

    def base_grid(
        self,
        settings: NetworkConfig,
        target_resolution: tuple[int, int],
        role: Role = "generator",
    ) -> tuple[int, int]:
        """Return the usual base grid, for both networks."""
        return super().base_grid(settings, target_resolution)

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return no layers."""
        return ()

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return a layer that keeps the resolution, one that doubles it, and attention."""
        doubling, *attention = super().doubling_edit(settings, spec).layers
        width_before = spec.width_before(len(spec.layers))
        same_resolution = replace(doubling, width=width_before, resample_factor=1)
        return Append((same_resolution, doubling, *attention))


RESNET_NETWORK: dict[str, Any] = {
    "block": "preactivation",
    "latent_dim": 128,
    "width": 256,
    "discriminator_width": 128,
    "full_width_scale": 8,
    "norm": "batch",
    "discriminator_norm": "none",
    "mbstd_group_size": 0,
    "parametrization": "none",
    "discriminator_parametrization": "spectral_norm",
    "lr_scaling": "none",
}
SNGAN_SETTINGS: dict[str, Any] = {
    "loss": "hinge",
    "regularizers": {},
    "batch_size": 64,
    "critic_steps": 5,
    "lr_cooldown": 1.0,
    "optimizer": {"lr": 2e-4, "beta1": 0.0, "beta2": 0.9, "eps": 1e-8, "lr_decay_images": None},
    "network": RESNET_NETWORK,
}
WIDE_NETWORK = {"width": 1024, "discriminator_width": 1024, "full_width_scale": 2}
SAGAN_SETTINGS: dict[str, Any] = {
    **SNGAN_SETTINGS,
    "critic_steps": 1,
    "lr_cooldown": 0.0,
    "optimizer": {**SNGAN_SETTINGS["optimizer"], "lr": 1e-4, "discriminator_lr": 4e-4},
    "network": {
        **RESNET_NETWORK,
        "parametrization": "spectral_norm",
        "attention_resolution": 16,
    },
}
# From the authors' script for CIFAR-10, with a chunk of the latent for each layer.
BIGGAN_SETTINGS: dict[str, Any] = {
    **SNGAN_SETTINGS,
    "critic_steps": 4,
    "batch_size": 50,
    "lr_cooldown": 0.0,
    "optimizer": {**SNGAN_SETTINGS["optimizer"], "beta2": 0.999},
    # 0.9999 per step is a half-life of 6,931 steps, at batch size 50.
    "ema": {"half_life": 346_550, "ramp": 1.0},
    "network": {
        **RESNET_NETWORK,
        "discriminator_width": 256,
        "norm": "conditional",
        "init": "orthogonal",
        "parametrization": "spectral_norm",
        "latent_dim": 80,
        "latent_chunk_dim": 20,
    },
}
SAGAN_128_SETTINGS: dict[str, Any] = {
    "batch_size": 256,
    "network": {**WIDE_NETWORK, "attention_resolution": 32},
}
BIGGAN_128_SETTINGS: dict[str, Any] = {
    "batch_size": 2048,
    "critic_steps": 2,
    "regularizers": {"orthogonal": {}},
    "optimizer": {"lr": 5e-5, "discriminator_lr": 2e-4, "beta2": 0.999},
    # 0.9999 per step at batch size 2,048.
    "ema": {"half_life": 14_194_688, "ramp": 1.0},
    "network": {
        "width": 1536,
        "discriminator_width": 1536,
        "full_width_scale": 2,
        "latent_dim": 120,
        "attention_resolution": 64,
        # All layers share one label embedding beside their chunk of z. The stem receives none.
        "label_embedding_dim": 128,
        "stem_uses_label": False,
    },
}
BIGGAN_DEEP_SETTINGS: dict[str, Any] = {
    **BIGGAN_SETTINGS,
    "network": {
        **BIGGAN_SETTINGS["network"],
        "block": "bottleneck",
        "width": 512,
        "discriminator_width": 512,
        "latent_dim": 128,
        "latent_chunk_dim": 0,
    },
}
BIGGAN_DEEP_128_SETTINGS: dict[str, Any] = {
    **BIGGAN_128_SETTINGS,
    "network": {
        **BIGGAN_128_SETTINGS["network"],
        "width": 2048,
        "discriminator_width": 2048,
        "latent_dim": 128,
        "latent_chunk_dim": 0,
        "stem_uses_label": True,  # the stem receives what each layer does
    },
}


NARROW_NETWORK = {"width": 32, "discriminator_width": 32, "full_width_scale": 4}
RESNET_FAMILY = ResnetFamily()
PRESETS.register(
    "sngan", "Residual layers, spectral normalization in D.", "Miyato et al. 2018, 1802.05957"
)(
    Preset(
        RESNET_FAMILY,
        SNGAN_SETTINGS,
        large_image_settings={"network": WIDE_NETWORK},
        small_settings=small_variant(SNGAN_SETTINGS, 1.6e-3, **NARROW_NETWORK),
    )
)
PRESETS.register(
    "sagan", "SNGAN with self-attention and two learning rates.", "Zhang et al. 2019, 1805.08318"
)(
    Preset(
        RESNET_FAMILY,
        SAGAN_SETTINGS,
        large_image_settings=SAGAN_128_SETTINGS,
        small_settings=small_variant(SAGAN_SETTINGS, 1e-3, **NARROW_NETWORK),
    )
)
PRESETS.register(
    "biggan",
    "Wide residual layers, each with its own chunk of the latent.",
    "Brock et al. 2019, 1809.11096",
)(
    Preset(
        RESNET_FAMILY,
        BIGGAN_SETTINGS,
        large_image_settings=BIGGAN_128_SETTINGS,
        small_settings=small_variant(BIGGAN_SETTINGS, 8e-4, **NARROW_NETWORK),
    )
)
PRESETS.register(
    "biggan-deep",
    "BigGAN with bottleneck layers and twice the depth.",
    "Brock et al. 2019, 1809.11096",
)(
    Preset(
        BigGANDeepFamily(),
        BIGGAN_DEEP_SETTINGS,
        large_image_settings=BIGGAN_DEEP_128_SETTINGS,
        small_settings=small_variant(BIGGAN_DEEP_SETTINGS, 8e-4, **NARROW_NETWORK),
    )
)
