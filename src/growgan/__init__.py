"""Point it at images, give it a budget, and it grows a GAN for them.

The public names are loaded when they are first used, so that ``import growgan`` is quick and
loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growgan.config import Settings
    from growgan.data import ImageSet, load_images
    from growgan.growth import Run, grow
    from growgan.growth.cluster import Cluster
    from growgan.growth.condition import condition
    from growgan.growth.load import load
    from growgan.growth.policies import Dynamic, Fixed, Plateau, Progressive
    from growgan.growth.policies import RandomGrowth as Random
    from growgan.metrics.evaluate import evaluate
    from growgan.nets.players import Generator

__version__ = "0.1.0"

__all__ = [
    "Cluster",
    "Dynamic",
    "Fixed",
    "Generator",
    "ImageSet",
    "Plateau",
    "Progressive",
    "Random",
    "Run",
    "Settings",
    "__version__",
    "condition",
    "evaluate",
    "grow",
    "load",
    "load_images",
]

_HOMES = {
    "Cluster": "growgan.growth.cluster:Cluster",
    "Dynamic": "growgan.growth.policies:Dynamic",
    "Fixed": "growgan.growth.policies:Fixed",
    "Generator": "growgan.nets.players:Generator",
    "ImageSet": "growgan.data:ImageSet",
    "Plateau": "growgan.growth.policies:Plateau",
    "Progressive": "growgan.growth.policies:Progressive",
    "Random": "growgan.growth.policies:RandomGrowth",
    "Run": "growgan.growth:Run",
    "Settings": "growgan.config:Settings",
    "condition": "growgan.growth.condition:condition",
    "evaluate": "growgan.metrics.evaluate:evaluate",
    "grow": "growgan.growth:grow",
    "load": "growgan.growth.load:load",
    "load_images": "growgan.data:load_images",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, attribute = _HOMES[name].split(":")
    value: object = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
