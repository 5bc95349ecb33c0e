"""StyleGAN2 (Karras et al., CVPR 2020, 1912.04958), as published for 256 pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Preset, brief, stage_width
from growgan.nets.presets.pggan import ProgressiveFamily
from growgan.nets.spec import LayerSpec, Role, StackSpec


class StyleFamily(ProgressiveFamily):
    """A mapping network, modulated convolutions and a sum of images in G; residual layers in D."""

    form = "style"

    def stem(
        self, role: Role, shape: StackSettings, base: tuple[int, int], channels: int
    ) -> StackSpec:
        spec = super().stem(role, shape, base, channels)
        if role == "discriminator":
            return spec
        return replace(spec, mapping=shape.mapping, mixing=shape.mixing)

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return G's one convolution at the base grid; D has its own in its end."""
        layer = LayerSpec("g0", shape.kind, shape.width, shape.kernel, norm=shape.norm)
        return (layer,) if role == "generator" else ()

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        """Return two convolutions of G, or one layer of D, which has two."""
        width = stage_width(shape, 2 * spec.resolution[0] // spec.base[0])
        if spec.role == "discriminator":
            kind, norm = shape.discriminator_kind or shape.kind, shape.discriminator_norm
            return Append((LayerSpec("x", kind, width, shape.kernel, 2, norm),))
        double = LayerSpec("x", shape.kind, width, shape.kernel, 2, shape.norm)
        return Append((double, replace(double, resample=1)))


def r1_scale(gamma: float) -> float:
    """Return how many times as strong as usual R1 is that has the weight ``gamma`` at 256 pixels.

    Usual are 2e-3 a pixel (:mod:`growgan.objectives.penalties`).
    """
    return gamma / (2e-3 * 256**2)


PUBLISHED: dict[str, Any] = {
    "loss": "non-saturating",
    # `paper256` of the authors' later code (stylegan2-ada-pytorch, train.py): gamma 1 at 256 pixels
    # (R1), for other sizes in proportion to the pixels; path length every 4 steps instead of 8.
    "regularisers": {"r1": {"scale": r1_scale(1.0)}, "path-length": {}},
    "batch": 64,
    "anneal": 0.0,
    "optimiser": {"lr": 2.5e-3, "beta1": 0.0, "beta2": 0.99, "epsilon": 1e-8, "decay": None},
    "average": {"half_life": 20_000, "ramp": 1.0},  # there no ramp at all
    "stack": {
        "kind": "modulated",
        "discriminator_kind": "smooth",
        "latent": 512,
        "width": 512,
        "taper": 8,
        "norm": "none",
        "discriminator_norm": "none",
        "deviation_group": 8,
        "rate": "equalised",
        "mapping": 8,
        "mixing": 0.9,
    },
}
SMALL = {
    **brief(PUBLISHED, 5e-3, latent=64, width=32, taper=4, mapping=2),
    "regularisers": {"r1": {}, "path-length": {}},
}

PRESETS.register("stylegan2", "styles, noise, sums of images", "Karras et al. 2020, 1912.04958")(
    Preset(StyleFamily(), PUBLISHED, small=SMALL)
)
