"""One optimiser a player, and how its moments are named, saved and inherited."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from growgan.config import OptimiserSettings

MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}  # name in Adam's state: power of the gradient in it


def make_optimiser(player: nn.Module, settings: OptimiserSettings) -> torch.optim.Adam:
    """Return Adam over all parameters of ``player``, in their order."""
    device = next(player.parameters()).device.type
    return torch.optim.Adam(
        player.parameters(),
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=device in ("cpu", "cuda"),
    )


def moments(player: nn.Module, optimiser: torch.optim.Adam) -> dict[str, dict[str, Tensor]]:
    """Return step counts and moments by parameter name: ``{"step": {name: ...}, ...}``."""
    state: dict[str, dict[str, Tensor]] = {key: {} for key in ("step", *MOMENTS)}
    for name, parameter in player.named_parameters():
        for key, tensor in optimiser.state.get(parameter, {}).items():
            if key in state:
                state[key][name] = tensor
    return state


def restore_moments(
    player: nn.Module, optimiser: torch.optim.Adam, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Give each parameter the step count and moments saved under its name, if there are any."""
    for name, parameter in player.named_parameters():
        if name in state.get("step", {}):
            fused = optimiser.param_groups[0]["fused"]
            place = parameter.device if fused else torch.device("cpu")
            own = {"step": state["step"][name].to(place, torch.float32, copy=True)}
            for key in MOMENTS:
                # The fused kernel walks memory: moments must be laid out as their parameter is.
                own[key] = torch.empty_like(parameter, requires_grad=False)
                own[key].copy_(state[key][name])
            optimiser.state[parameter] = own
