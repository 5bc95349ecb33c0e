"""Residual GANs: SNGAN, SAGAN and BigGAN.

All three are made of pre-activation layers and have spectral normalisation in D. At 32 pixels they
are as published for CIFAR-10, from 64 pixels on as published for ImageNet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import LARGE, PRESETS, Family, Preset, brief, stage_width
from growgan.nets.spec import LayerSpec, Role, StackSpec


class ResnetFamily(Family):
    """Residual layers that double; D ends with layers that keep their grid."""

    form = "resnet"

    def base(
        self, shape: StackSettings, target: tuple[int, int], role: Role = "generator"
    ) -> tuple[int, int]:
        """Return the target's base grid, twice that in a small D, whose last two layers keep it."""
        height, width = super().base(shape, target, role)
        if (
            role == "discriminator"
            and min(target) < LARGE
            and min(target) >= 4 * min(height, width)
        ):
            return 2 * height, 2 * width
        return height, width

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        if role == "generator":
            return ()
        count = 2 if min(base) >= 8 else 1
        norm = shape.discriminator_norm
        return tuple(
            LayerSpec(f"d{i}", shape.kind, shape.width, shape.kernel, 1, norm, "relu")
            for i in range(count)
        )

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        """Return the layer that doubles, and attention where its features are of that size."""
        generator = spec.role == "generator"
        norm = shape.norm if generator else shape.discriminator_norm
        width = stage_width(shape, 2 * spec.resolution[0] // spec.base[0])
        layers = [LayerSpec("x", shape.kind, width, shape.kernel, 2, norm, "relu")]
        if 2 * min(spec.resolution) // spec.head_factor == shape.attention:
            layers.append(LayerSpec("x", "attention", width, 1, 1, "none"))
        return Append(tuple(layers))


class DeepFamily(ResnetFamily):
    """BigGAN-deep: a bottleneck that keeps its size before each that doubles it."""

    form = "deep"

    def base(
        self, shape: StackSettings, target: tuple[int, int], role: Role = "generator"
    ) -> tuple[int, int]:
        """Return the target's base grid, for both players."""
        return super().base(shape, target)

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        return ()

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        double, *attention = super().doubling(shape, spec).layers
        edge = spec.width_before(len(spec.layers))
        keep = replace(double, width=edge, resample=1)
        return Append((keep, double, *attention))


STACK: dict[str, Any] = {
    "kind": "preactivation",
    "latent": 128,
    "width": 256,
    "discriminator_width": 128,
    "taper": 8,
    "norm": "batch",
    "discriminator_norm": "none",
    "deviation_group": 0,
    "rate": "plain",
    "discriminator_rate": "spectral",
}
SNGAN: dict[str, Any] = {
    "loss": "hinge",
    "regularisers": {},
    "batch": 64,
    "critic_steps": 5,
    "anneal": 1.0,
    "optimiser": {"lr": 2e-4, "beta1": 0.0, "beta2": 0.9, "epsilon": 1e-8, "decay": None},
    "stack": STACK,
}
WIDE = {"width": 1024, "discriminator_width": 1024, "taper": 2}
SAGAN: dict[str, Any] = {
    **SNGAN,
    "critic_steps": 1,
    "anneal": 0.0,
    "optimiser": {**SNGAN["optimiser"], "lr": 1e-4, "discriminator_lr": 4e-4},
    "stack": {**STACK, "rate": "spectral", "attention": 16},
}
# As the authors' script has it for CIFAR-10, with a piece of the latents for each layer.
BIGGAN: dict[str, Any] = {
    **SNGAN,
    "critic_steps": 4,
    "batch": 50,
    "anneal": 0.0,
    "optimiser": {**SNGAN["optimiser"], "beta2": 0.999},
    # 0.9999 a step at batch 50 halves in 6931 steps.
    "average": {"half_life": 346_550, "ramp": 1.0},
    "stack": {
        **STACK,
        "discriminator_width": 256,
        "norm": "conditional",
        "rate": "orthogonal",
        "discriminator_rate": "orthogonal",
        "latent": 80,
        "chunk": 20,
    },
}
SAGAN_128: dict[str, Any] = {"batch": 256, "stack": {**WIDE, "attention": 32}}
BIGGAN_128: dict[str, Any] = {
    "batch": 2048,
    "critic_steps": 2,
    "regularisers": {"orthogonal": {}},
    "optimiser": {"lr": 5e-5, "discriminator_lr": 2e-4, "beta2": 0.999},
    # 0.9999 a step at batch 2048.
    "average": {"half_life": 14_194_688, "ramp": 1.0},
    "stack": {
        "width": 1536,
        "discriminator_width": 1536,
        "taper": 2,
        "latent": 120,
        "attention": 64,
        # One embedding of a class for all layers, beside each one's piece of z; the stem has none.
        "embedding": 128,
        "label_stem": False,
    },
}
DEEP: dict[str, Any] = {
    **BIGGAN,
    "stack": {
        **BIGGAN["stack"],
        "kind": "bottleneck",
        "width": 512,
        "discriminator_width": 512,
        "latent": 128,
        "chunk": 0,
    },
}
DEEP_128: dict[str, Any] = {
    **BIGGAN_128,
    "stack": {
        **BIGGAN_128["stack"],
        "width": 2048,
        "discriminator_width": 2048,
        "latent": 128,
        "chunk": 0,
        "label_stem": True,  # it reads all that each layer does
    },
}


NARROW = {"width": 32, "discriminator_width": 32, "taper": 4}
FAMILY = ResnetFamily()
PRESETS.register(
    "sngan", "residual layers, spectral normalisation in D", "Miyato et al. 2018, 1802.05957"
)(Preset(FAMILY, SNGAN, large={"stack": WIDE}, small=brief(SNGAN, 1.6e-3, **NARROW)))
PRESETS.register(
    "sagan", "SNGAN with self-attention, and rates for both", "Zhang et al. 2019, 1805.08318"
)(Preset(FAMILY, SAGAN, large=SAGAN_128, small=brief(SAGAN, 1e-3, **NARROW)))
PRESETS.register(
    "biggan", "wide, a piece of the latents for each layer", "Brock et al. 2019, 1809.11096"
)(Preset(FAMILY, BIGGAN, large=BIGGAN_128, small=brief(BIGGAN, 8e-4, **NARROW)))
PRESETS.register("biggan-deep", "bottlenecks, twice the layers", "Brock et al. 2019, 1809.11096")(
    Preset(DeepFamily(), DEEP, large=DEEP_128, small=brief(DEEP, 8e-4, **NARROW))
)
