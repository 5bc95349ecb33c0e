"""StyleGAN3 (Karras et al., NeurIPS 2021, 2106.12423): T moves with its input, R turns, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Preset, base_grid, brief, stage_width
from growgan.nets.presets.stylegan2 import PUBLISHED as STYLEGAN2
from growgan.nets.presets.stylegan2 import StyleFamily, r1_scale
from growgan.nets.spec import LayerSpec, Role, StackSpec

BASE = 16  # pixels: waves need a grid on which they are slow


class AliasFreeFamily(StyleFamily):
    """Two alias-free layers a resolution from 16 pixels on; StyleGAN2's D."""

    form = "fourier"

    def base(
        self, shape: StackSettings, target: tuple[int, int], role: Role = "generator"
    ) -> tuple[int, int]:
        """Return a grid of at least 16 pixels for G, where the target has them; D's is usual."""
        height, width = base_grid(target, shape.base)
        while role == "generator" and min(height, width) < min(BASE, *target):
            height, width = 2 * height, 2 * width
        return height, width

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return G's two layers at the base grid."""
        layers = [
            LayerSpec(f"g{i}", shape.kind, shape.width, shape.kernel, norm=shape.norm)
            for i in range(2)
        ]
        return tuple(layers) if role == "generator" else ()

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        if spec.role == "discriminator":
            return super().doubling(shape.model_copy(update={"kernel": max(3, shape.kernel)}), spec)
        factor = 2 * spec.resolution[0] // spec.base[0]
        double = LayerSpec("x", shape.kind, stage_width(shape, factor), shape.kernel, 2, shape.norm)
        return Append((double, replace(double, resample=1)))


def published(kernel: int, width: int) -> dict[str, Any]:
    """Return the settings of T (kernels of 3 pixels) or R (of 1, twice as wide)."""
    own = {"kind": "alias-free", "kernel": kernel, "width": width, "discriminator_width": 512}
    stack = {**STYLEGAN2["stack"], **own, "mapping": 2, "mixing": 0.0, "deviation_group": 4}
    return {
        **STYLEGAN2,
        # docs/configs.md of the authors' code: gamma 2 at 256 pixels, four times as much at twice
        # the size; its half-life is 10,000 images at batch 32.
        "regularisers": {"r1": {"scale": r1_scale(2.0)}},
        "batch": 32,
        "average": {"half_life": 10_000, "ramp": 0.05},
        "optimiser": {**STYLEGAN2["optimiser"], "discriminator_lr": 2e-3},
        "stack": stack,
    }


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a small form."""
    narrow = {"latent": 64, "width": 32, "discriminator_width": 32, "taper": 4}
    return {**brief(settings, 5e-3, **narrow), "regularisers": {"r1": {}}}


T, R = published(3, 512), published(1, 1024)
PRESETS.register(
    "stylegan3", "alias-free, moves with its input (T)", "Karras et al. 2021, 2106.12423"
)(Preset(AliasFreeFamily(), T, small=small(T)))
PRESETS.register(
    "stylegan3-r", "alias-free, turns with its input (R)", "Karras et al. 2021, 2106.12423"
)(Preset(AliasFreeFamily(), R, small=small(R)))
