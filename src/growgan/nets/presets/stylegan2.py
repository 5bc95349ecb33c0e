"""StyleGAN2 (Karras et al., CVPR 2020, 1912.04958), as published for 256 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import NetworkConfig
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import PRESETS, Preset, norm_for_role, small_variant, stage_width
from growgan.nets.presets.pggan import PGGANFamily
from growgan.nets.spec import GeneratorSpec, LayerSpec, NetworkSpec, Role


class StyleGAN2Family(PGGANFamily):
    """A mapping network, modulated convolutions and output skips in G; residual layers in D."""

    ends = "stylegan2"

    def base_generator_spec(
        self, settings: NetworkConfig, base_grid: tuple[int, int], image_channels: int
    ) -> GeneratorSpec:
        """Return the spec of G on the base grid, with its mapping network."""
        return replace(
            super().base_generator_spec(settings, base_grid, image_channels),
            mapping_layers=settings.mapping_layers,
            style_mixing_prob=settings.style_mixing_prob,
        )

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return G's one layer on the base grid; D's are in its epilogue."""
        layer = LayerSpec(
            id="g0",
            block=settings.block,
            width=settings.width,
            kernel_size=settings.kernel_size,
            norm=settings.norm,
        )
        return (layer,) if role == "generator" else ()

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Return two layers of G, or one of D, which has two convolutions."""
        is_generator = spec.role == "generator"
        # The settings for D name its block `block` if they come from `for_role`.
        block = settings.block if is_generator else settings.discriminator_block or settings.block
        doubling = LayerSpec(
            id="x",
            block=block,
            width=stage_width(settings, 2 * spec.resolution[0] // spec.base_grid[0]),
            kernel_size=settings.kernel_size,
            resample_factor=2,
            norm=norm_for_role(spec.role, settings),
        )
        return Append(
            (doubling, replace(doubling, resample_factor=1)) if is_generator else (doubling,)
        )


STYLEGAN2_SETTINGS: dict[str, Any] = {
    "loss": "non-saturating",
    # `paper256` in train.py of the authors' stylegan2-ada-pytorch: R1 with gamma 1 at 256 pixels,
    # in proportion to the number of pixels. Path length runs every 4 steps instead of every 8.
    "regularizers": {"r1": {"gamma_per_pixel": 1.0 / 256**2}, "path-length": {}},
    "batch_size": 64,
    "lr_cooldown": 0.0,
    "optimizer": {"lr": 2.5e-3, "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "lr_decay_images": None},
    "ema": {"half_life": 20_000, "ramp": 1.0},  # published without a ramp
    "network": {
        "block": "modulated",
        "discriminator_block": "blur-residual",
        "latent_dim": 512,
        "width": 512,
        "full_width_scale": 8,
        "norm": "none",
        "discriminator_norm": "none",
        "mbstd_group_size": 8,
        "parametrization": "equalized",
        "lr_scaling": "none",
        "mapping_layers": 8,
        "style_mixing_prob": 0.9,
    },
}
STYLEGAN2_SMALL_SETTINGS = {
    **small_variant(
        STYLEGAN2_SETTINGS, 5e-3, latent_dim=64, width=32, full_width_scale=4, mapping_layers=2
    ),
    "regularizers": {"r1": {}, "path-length": {}},
}

PRESETS.register(
    "stylegan2", "Style-based G with noise and output skips.", "Karras et al. 2020, 1912.04958"
)(Preset(StyleGAN2Family(), STYLEGAN2_SETTINGS, small_settings=STYLEGAN2_SMALL_SETTINGS))
