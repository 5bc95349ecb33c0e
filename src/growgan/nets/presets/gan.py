"""The first GAN (Goodfellow et al., NIPS 2014), which consists of dense layers."""

from __future__ import annotations

from typing import Any

from growgan.config import NetworkConfig
from growgan.errors import UserError
from growgan.nets.growth_ops import Append
from growgan.nets.presets.base import PRESETS, ArchitectureFamily, Preset, small_variant
from growgan.nets.spec import LayerSpec, NetworkSpec, Role


class DenseFamily(ArchitectureFamily):
    """Dense layers. The networks grow in depth and width, at one resolution."""

    ends = "dense"

    def base_grid(
        self,
        settings: NetworkConfig,
        target_resolution: tuple[int, int],
        role: Role = "generator",
    ) -> tuple[int, int]:
        """Return the target resolution: there is no smaller grid."""
        return target_resolution

    def base_layers(
        self, role: Role, settings: NetworkConfig, base_grid: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return the hidden layers."""
        if settings.block == "attention":
            raise UserError("block 'attention' needs feature maps, but dense networks have vectors")
        return tuple(
            LayerSpec(
                id=f"{role[0]}{i}", block="dense", width=settings.width, kernel_size=1, norm="none"
            )
            for i in range(settings.layers_per_resolution)
        )

    def doubling_edit(self, settings: NetworkConfig, spec: NetworkSpec) -> Append:
        """Raise an error, because dense networks cannot double their resolution."""
        raise NotImplementedError("dense networks cannot double their resolution")


# Two hidden layers of 1,200 units in G, as in the authors' code for MNIST. D has leaky rectifiers
# instead of maxout units, and the learning rate is one for Adam, which was published later.
GAN_SETTINGS: dict[str, Any] = {
    "loss": "non-saturating",
    "regularizers": {},
    "batch_size": 100,
    "lr_cooldown": 0.0,
    "optimizer": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "eps": 1e-8, "lr_decay_images": None},
    "network": {
        "block": "dense",
        "latent_dim": 100,
        "width": 1200,
        "discriminator_width": 240,
        "layers_per_resolution": 1,
        "norm": "none",
        "mbstd_group_size": 0,
        "parametrization": "none",
        "lr_scaling": "none",
    },
}

GAN_SMALL_SETTINGS = small_variant(GAN_SETTINGS, 8e-4, width=128, discriminator_width=64)

PRESETS.register(
    "gan", "The original GAN: dense layers at one resolution.", "Goodfellow et al. 2014, 1406.2661"
)(Preset(DenseFamily(), GAN_SETTINGS, small_settings=GAN_SMALL_SETTINGS))
