"""The weight specs (initialization, parametrization, learning-rate scaling) that presets use."""

from __future__ import annotations

from growgan.nets.spec import WeightSpec

NONE = WeightSpec(parametrization="none")
EQUALIZED = WeightSpec(parametrization="equalized")
SPECTRAL_NORM = WeightSpec(parametrization="spectral_norm")
WEIGHT_SPECS = {
    "none": NONE,
    "normal": WeightSpec(init="normal", parametrization="none"),
    "orthogonal": WeightSpec(init="orthogonal", parametrization="none"),
    "equalized": EQUALIZED,
    "width": WeightSpec(parametrization="equalized", lr_scaling="width"),
    "spectral_norm": SPECTRAL_NORM,
    "orthogonal_spectral_norm": WeightSpec(init="orthogonal", parametrization="spectral_norm"),
}
