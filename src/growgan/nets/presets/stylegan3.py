"""StyleGAN3 (Karras et al., NeurIPS 2021, 2106.12423).

Configuration T translates with its input; configuration R rotates with it as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import NetworkConfig
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import PRESETS, Preset, resolve_base_grid, small_variant
from growgan.nets.presets.stylegan2 import STYLEGAN2_SETTINGS, StyleGAN2Family
from growgan.nets.spec import LayerSpec, NetworkSpec, Role

MIN_FOURIER_GRID_SIDE = 16  # pixels; on a smaller grid the Fourier features would alias


class StyleGAN3Family(StyleGAN2Family):
    """Two alias-free layers at each resolution from 16 pixels on in G; StyleGAN2's D."""

    ends = "stylegan3"

    def base_grid(
        self,
        settings: NetworkConfig,
        target_resolution: tuple[int, int],
        role: Role = "generator",
    ) -> tuple[int, int]:
        """Return the usual base grid of D, and one of at least 16 pixels for G if possible."""
        height, width = resolve_base_grid(target_resolution, settings.base_grid)
        if role == "generator":
            while min(height, width) < min(MIN_FOURIER_GRID_SIDE, *target_resolution):
                height, width = 2 * height, 2 * width
        return height, width

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return G's two layers on the base grid; D's are in its epilogue."""
        if role == "discriminator":
            return ()
        (layer,) = super().base_layers(role, settings, base_grid)
        return layer, replace(layer, id="g1")

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return two layers of G, or one of D, whose kernel has at least 3 pixels."""
        if spec.role == "discriminator":
            kernel_size = max(3, settings.kernel_size)
            settings = settings.model_copy(update={"kernel_size": kernel_size})
        return super().doubling_edit(settings, spec)


def stylegan3_settings(kernel_size: int, width: int) -> dict[str, Any]:
    """Return the published settings of configuration T or R.

    Args:
        kernel_size: 3 pixels for T, 1 for R.
        width: Number of channels of the widest layers of G.
    """
    return {
        **STYLEGAN2_SETTINGS,
        # From docs/configs.md of the authors' code: gamma 2 at 256 pixels, in proportion to the
        # number of pixels; a half-life of 10,000 images at batch size 32.
        "regularizers": {"r1": {"gamma_per_pixel": 2.0 / 256**2}},
        "batch_size": 32,
        "ema": {"half_life": 10_000, "ramp": 0.05},
        "optimizer": {**STYLEGAN2_SETTINGS["optimizer"], "discriminator_lr": 2e-3},
        "network": {
            **STYLEGAN2_SETTINGS["network"],
            "block": "alias-free",
            "kernel_size": kernel_size,
            "width": width,
            "discriminator_width": 512,
            "mapping_layers": 2,
            "style_mixing_prob": 0.0,
            "mbstd_group_size": 4,
        },
    }


def small_stylegan3_settings(published_settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small variant."""
    settings = small_variant(
        published_settings,
        5e-3,
        latent_dim=64,
        width=32,
        discriminator_width=32,
        full_width_scale=4,
    )
    return {**settings, "regularizers": {"r1": {}}}


STYLEGAN3_T_SETTINGS = stylegan3_settings(kernel_size=3, width=512)
STYLEGAN3_R_SETTINGS = stylegan3_settings(kernel_size=1, width=1024)
PRESETS.register(
    "stylegan3",
    "Alias-free G that translates with its input (configuration T).",
    "Karras et al. 2021, 2106.12423",
)(
    Preset(
        StyleGAN3Family(),
        STYLEGAN3_T_SETTINGS,
        small_settings=small_stylegan3_settings(STYLEGAN3_T_SETTINGS),
    )
)
PRESETS.register(
    "stylegan3-r",
    "Alias-free G that also rotates with its input (configuration R).",
    "Karras et al. 2021, 2106.12423",
)(
    Preset(
        StyleGAN3Family(),
        STYLEGAN3_R_SETTINGS,
        small_settings=small_stylegan3_settings(STYLEGAN3_R_SETTINGS),
    )
)
