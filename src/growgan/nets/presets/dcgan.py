"""DCGAN (Radford et al., ICLR 2016): strided convolutions, normalisation over the batch."""

from __future__ import annotations

from typing import Any

from growgan.config import StackSettings
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Family, Preset, brief, stage_width
from growgan.nets.spec import LayerSpec, StackSpec


class DcganFamily(Family):
    """4×4 convolutions of stride 2, ReLU in G, leaky ReLU in D; both heads resample, too."""

    form = "dcgan"

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        generator = spec.role == "generator"
        factor = spec.resolution[0] // spec.base[0]  # that of the head included
        width = stage_width(shape, factor)
        norm = shape.norm if generator else shape.discriminator_norm
        activation = "relu" if generator else "leaky_relu"
        return Append((LayerSpec("x", shape.kind, width, shape.kernel, 2, norm, activation),))


PUBLISHED: dict[str, Any] = {
    "loss": "non-saturating",
    "regularisers": {},
    "batch": 128,
    "anneal": 0.0,
    "optimiser": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1e-8, "decay": None},
    "stack": {
        "kind": "strided",
        "latent": 100,
        "width": 1024,
        "taper": 1,
        "norm": "batch",
        "discriminator_norm": "batch",
        "deviation_group": 0,
        "rate": "normal",
    },
}

PRESETS.register("dcgan", "strided convolutions and batch norm", "Radford et al. 2016, 1511.06434")(
    Preset(DcganFamily(), PUBLISHED, small=brief(PUBLISHED, 8e-4, width=64, taper=2))
)
