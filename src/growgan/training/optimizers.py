"""Adam, its learning rates, and its moments by parameter name, to be saved and inherited."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor, nn

from growgan.config import OptimizerSettings, Settings
from growgan.nets.growth_ops import GRADIENT_POWERS


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Adam:
    """Return Adam over all parameters of ``network``."""
    device = next(network.parameters()).device.type
    return torch.optim.Adam(
        network.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=device in ("cpu", "cuda"),
    )


def learning_rates(
    settings: Settings, budget_fraction: float, images_seen: int
) -> tuple[float, float]:
    """Return the learning rates of G and D.

    A rate is constant for ``optimizer.lr_decay_images`` images and then falls as 1/sqrt(images).
    Over the last ``lr_cooldown`` of the budget it also falls linearly to 0.

    Args:
        settings: The settings of the run.
        budget_fraction: Used fraction of the budget, 0 to 1.
        images_seen: Real images that the GAN has seen.
    """
    optimizer = settings.optimizer
    cooldown = (1 - budget_fraction) / settings.lr_cooldown if settings.lr_cooldown else 1.0
    decay = 1.0
    if optimizer.lr_decay_images:
        decay = sqrt(max(1.0, images_seen / optimizer.lr_decay_images))
    factor = min(1.0, max(cooldown, 0.0)) / decay
    return factor * optimizer.lr, factor * (optimizer.discriminator_lr or optimizer.lr)


def moments_by_name(
    network: nn.Module, optimizer: torch.optim.Adam
) -> dict[str, dict[str, Tensor]]:
    """Return step counts and moments by parameter name: ``{"step": {name: ...}, ...}``."""
    moments: dict[str, dict[str, Tensor]] = {key: {} for key in GRADIENT_POWERS}
    for name, parameter in network.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if key in moments:
                moments[key][name] = tensor
    return moments


def restore_moments(
    network: nn.Module, optimizer: torch.optim.Adam, moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Copy step counts and moments to the parameters of the same name, where there are any."""
    for name, parameter in network.named_parameters():
        if name in moments.get("step", {}):
            fused = optimizer.param_groups[0]["fused"]
            step_device = parameter.device if fused else torch.device("cpu")
            state = {"step": moments["step"][name].to(step_device, torch.float32, copy=True)}
            for key in ("exp_avg", "exp_avg_sq"):
                # The fused kernel needs moments with the memory layout of their parameter.
                state[key] = torch.empty_like(parameter, requires_grad=False)
                state[key].copy_(moments[key][name])
            optimizer.state[parameter] = state
