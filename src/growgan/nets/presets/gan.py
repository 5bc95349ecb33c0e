"""The first GAN (Goodfellow et al., NIPS 2014): dense layers all the way."""

from __future__ import annotations

from typing import Any

from growgan.config import StackSettings
from growgan.errors import UserError
from growgan.nets.edits import Append
from growgan.nets.presets.base import PRESETS, Family, Preset, brief
from growgan.nets.spec import LayerSpec, Role, StackSpec


class DenseFamily(Family):
    """Vectors of features from end to end; it grows in depth and width, at one resolution."""

    form = "dense"

    def base(
        self, shape: StackSettings, target: tuple[int, int], role: Role = "generator"
    ) -> tuple[int, int]:
        """Return the target: there is no smaller grid to begin with."""
        return target

    def first(
        self, role: Role, shape: StackSettings, base: tuple[int, int]
    ) -> tuple[LayerSpec, ...]:
        if shape.kind == "attention":
            raise UserError("an attention layer has no meaning for vectors, which have no grid")
        return tuple(
            LayerSpec(f"{role[0]}{i}", "dense", shape.width, 1, 1, "none")
            for i in range(shape.convolutions)
        )

    def doubling(self, shape: StackSettings, spec: StackSpec) -> Append:
        raise NotImplementedError("a dense stack has no grid to double")


# Two hidden layers of 1,200 units in G, as for MNIST in the authors' code; D there is of maxout
# units, here of leaky rectifiers, and the rate is Adam's of a later day.
PUBLISHED: dict[str, Any] = {
    "loss": "non-saturating",
    "regularisers": {},
    "batch": 100,
    "anneal": 0.0,
    "optimiser": {"lr": 2e-4, "beta1": 0.5, "beta2": 0.999, "epsilon": 1e-8, "decay": None},
    "stack": {
        "kind": "dense",
        "latent": 100,
        "width": 1200,
        "discriminator_width": 240,
        "convolutions": 1,
        "norm": "none",
        "deviation_group": 0,
        "rate": "plain",
    },
}

SMALL = brief(PUBLISHED, 8e-4, width=128, discriminator_width=64)

PRESETS.register("gan", "dense layers at one resolution", "Goodfellow et al. 2014, 1406.2661")(
    Preset(DenseFamily(), PUBLISHED, small=SMALL)
)
