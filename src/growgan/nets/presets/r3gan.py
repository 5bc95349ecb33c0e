"""R3GAN (Huang et al., NeurIPS 2024, 2501.05441): a modern baseline without tricks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Family, Preset, brief, stage_width
from growgan.nets.spec import LayerSpec, Role, StackSpec


class BasisFamily(Family):
    """Grouped bottlenecks, ``convolutions`` a resolution, in G as in D."""

    form = "basis"

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        return tuple(
            LayerSpec(f"{role[0]}{i}", shape.kind, shape.width, shape.kernel, 1, _norm(role, shape))
            for i in range(shape.convolutions)
        )

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        width = stage_width(shape, 2 * spec.resolution[0] // spec.base[0])
        norm = _norm(spec.role, shape)
        double = LayerSpec("x", shape.kind, width, shape.kernel, 2, norm)
        return Append((double, *(replace(double, resample=1),) * (shape.convolutions - 1)))


def _norm(role: Role, shape: StackSettings) -> str:
    return shape.norm if role == "generator" else shape.discriminator_norm


# Published for CIFAR-10; there the rate falls to 5e-5, gamma to a tenth and beta2 rises to 0.99
# along cosines, and D's inputs are augmented more and more: here all stays as it starts.
PUBLISHED: dict[str, Any] = {
    "loss": "relativistic",
    "regularisers": {"r1": {"weight": 0.05, "every": 1}, "r2": {"weight": 0.05, "every": 1}},
    "batch": 512,
    "anneal": 0.0,
    "optimiser": {"lr": 2e-4, "beta1": 0.0, "beta2": 0.9, "epsilon": 1e-8, "decay": None},
    "average": {"half_life": 5_000_000, "ramp": 0.25},
    "stack": {
        "kind": "grouped",
        "latent": 64,
        "width": 768,
        "taper": 8,
        "convolutions": 2,
        "norm": "none",
        "discriminator_norm": "none",
        "deviation_group": 0,
        "rate": "plain",
    },
}
# As published for FFHQ at 64 pixels.
FFHQ_64 = {
    "regularisers": {"r1": {"weight": 2.0, "every": 1}, "r2": {"weight": 2.0, "every": 1}},
    "batch": 256,
    "average": {"half_life": 500_000, "ramp": 0.025},
}
SMALL = {
    **brief(PUBLISHED, 2e-3, width=32, taper=4, convolutions=1),
    "regularisers": {"r1": {"every": 8}, "r2": {"every": 8}},
}

PRESETS.register("r3gan", "grouped bottlenecks, no tricks", "Huang et al. 2024, 2501.05441")(
    Preset(BasisFamily(), PUBLISHED, large=FFHQ_64, small=SMALL)
)
