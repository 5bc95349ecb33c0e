"""Point it at images, give it a budget, and it grows a GAN for them.

The public names are loaded when they are first used, so that ``import growgan`` is quick and
loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growgan.artifacts.load import load
    from growgan.config import Settings
    from growgan.data import ImageSet, load_images
    from growgan.execution.ray_cluster import RayCluster
    from growgan.metrics.evaluate import evaluate
    from growgan.nets.networks import Generator
    from growgan.run.finetune import finetune
    from growgan.run.grow import grow
    from growgan.run.run import Run
    from growgan.search.policies import (
        DynamicPolicy,
        FixedPolicy,
        PlateauPolicy,
        ProgressivePolicy,
        RandomPolicy,
    )

__version__ = "0.1.0"

__all__ = [
    "DynamicPolicy",
    "FixedPolicy",
    "Generator",
    "ImageSet",
    "PlateauPolicy",
    "ProgressivePolicy",
    "RandomPolicy",
    "RayCluster",
    "Run",
    "Settings",
    "__version__",
    "evaluate",
    "finetune",
    "grow",
    "load",
    "load_images",
]

# Public name -> module that defines it.
_MODULES = {
    "DynamicPolicy": "growgan.search.policies",
    "FixedPolicy": "growgan.search.policies",
    "Generator": "growgan.nets.networks",
    "ImageSet": "growgan.data",
    "PlateauPolicy": "growgan.search.policies",
    "ProgressivePolicy": "growgan.search.policies",
    "RandomPolicy": "growgan.search.policies",
    "RayCluster": "growgan.execution.ray_cluster",
    "Run": "growgan.run.run",
    "Settings": "growgan.config",
    "evaluate": "growgan.metrics.evaluate",
    "finetune": "growgan.run.finetune",
    "grow": "growgan.run.grow",
    "load": "growgan.artifacts.load",
    "load_images": "growgan.data",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
