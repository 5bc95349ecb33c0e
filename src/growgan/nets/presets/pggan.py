"""PGGAN (Karras et al., ICLR 2018): the stacks that the whole program grows from.

It has no small form of its own: it is grown with growgan's own recipe, the defaults of
:mod:`growgan.config` (relativistic loss, strided layers, rates by width), not as published.
"""

from __future__ import annotations

from dataclasses import replace

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Family, Preset, stage_width
from growgan.nets.spec import LayerSpec, Role, StackSpec


class ProgressiveFamily(Family):
    """Plain convolutions, pixel norm in G, minibatch deviation in D, equalised rates."""

    def stem(
        self, role: Role, shape: StackSettings, base: tuple[int, int], channels: int
    ) -> StackSpec:
        spec = super().stem(role, shape, base, channels)
        group = 0 if role == "generator" else shape.deviation_group
        return replace(spec, deviation_group=group)

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        """Return all but one of G's convolutions at the base grid; D has its own in its end."""
        return tuple(
            LayerSpec(f"g{i}", shape.kind, shape.width, shape.kernel, norm=shape.norm)
            for i in range(shape.convolutions - 1 if role == "generator" else 0)
        )

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        """Return ``shape.convolutions`` layers, the first of which doubles."""
        width = stage_width(shape, 2 * spec.resolution[0] // spec.base[0])
        norm = shape.norm if spec.role == "generator" else shape.discriminator_norm
        return Append(
            tuple(
                LayerSpec("x", shape.kind, width, shape.kernel, 1 + (i == 0), norm)
                for i in range(shape.convolutions)
            )
        )


PUBLISHED = {
    "loss": "wasserstein",
    "regularisers": {"gp": {"weight": 10.0}, "drift": {"weight": 0.001}},
    "batch": 16,
    "anneal": 0.0,
    "optimiser": {"lr": 1e-3, "beta1": 0.0, "beta2": 0.99, "epsilon": 1e-8, "decay": None},
    # 0.999 a step at batch 16 halves in 693 steps.
    "average": {"half_life": 11_088, "ramp": 1.0},
    "stack": {
        "kind": "conv",
        "latent": 512,
        "width": 512,
        "taper": 8,
        "convolutions": 2,
        "deviation_group": 4,
        "rate": "equalised",
    },
}

PRESETS.register("pggan", "progressive growing of GANs", "Karras et al. 2018, 1710.10196")(
    Preset(ProgressiveFamily(), PUBLISHED)
)
