"""Regularisers that look at the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growgan.objectives.regulariser import Penalty, Regulariser, regulariser
from growgan.objectives.step import Step


def matrices(player: nn.Module) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Yield the weights that are linear maps: name, stored value, and the factor to the one in use.

    A weight [out, in, ...] is the matrix [out, in * ...] of what it does at one place.
    """
    for name, module in player.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            yield name, weight, float(getattr(module, "scale", 1.0))


@regulariser("clip", "D's weights held in a box", "Arjovsky et al. 2017, 1701.07875")
@dataclass(frozen=True)
class WeightClipping(Regulariser):
    """After each step of D its weights, as they are used, are clamped to [-c, c].

    Attributes:
        largest: c.
    """

    largest: float = 0.01

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        if player is step.discriminator:
            for _, weight, scale in matrices(player):
                weight.clamp_(-self.largest / scale, self.largest / scale)


@regulariser(
    "singular-clamp", "the largest singular value of D's weights held", "Brock et al. 2019"
)
@dataclass(frozen=True)
class SingularClamp(Regulariser):
    """W <- W - max(0, σ₀ - σ_c) u₀ v₀ᵀ after D's steps (Brock et al. 2019, 1809.11096, equation 3).

    Attributes:
        ratio: σ_c is so many times the second singular value σ₁.
    """

    every: int = 8
    ratio: float = 1.0

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        if player is not step.discriminator or step.index % self.every:
            return
        for _, weight, _scale in matrices(player):
            flat = weight.flatten(1)
            if min(flat.shape) < 2:
                continue
            u, values, v = torch.linalg.svd(flat.float(), full_matrices=False)
            excess = (values[0] - self.ratio * values[1]).clamp(min=0)
            weight.sub_((excess * torch.outer(u[:, 0], v[0])).view_as(weight).to(weight.dtype))


@regulariser("orthogonal", "G's filters kept apart", "Brock et al. 2019, 1809.11096")
@dataclass(frozen=True)
class Orthogonal(Penalty):
    """Σ ||W Wᵀ ∘ (1 - I)||² over G's weights, one row an output: lengths are left free."""

    weight: float = 1e-4

    def generator(self, step: Step) -> Tensor:
        total = torch.zeros((), device=step.fake.device)
        for _, weight, scale in matrices(step.generator):
            rows = (weight * scale).flatten(1).float()
            gram = rows @ rows.T
            total = total + (gram - torch.diag(gram.diagonal())).square().sum()
        return total


@regulariser("historical", "weights near their mean over time", "Salimans et al. 2016")
@dataclass(frozen=True)
class HistoricalAveraging(Penalty):
    """||θ - mean over time of θ||² for both players (Salimans et al. 2016, section 3.3)."""

    weight: float = 0.01

    both = True

    def discriminator(self, step: Step) -> Tensor:
        return self._distance("discriminator", step.discriminator, step)

    def generator(self, step: Step) -> Tensor:
        return self._distance("generator", step.generator, step)

    def _distance(self, role: str, player: nn.Module, step: Step) -> Tensor:
        total = torch.zeros((), device=step.real.device)
        for name, parameter in player.named_parameters():
            mean = step.memory.get(f"historical.{role}.{name}")
            if mean is not None and mean.shape == parameter.shape:
                total = total + (parameter - mean).square().sum()
        return total

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        role = "discriminator" if player is step.discriminator else "generator"
        seen = step.recall(f"historical.{role}").add_(1)
        for name, parameter in player.named_parameters():
            key = f"historical.{role}.{name}"
            if key not in step.memory or step.memory[key].shape != parameter.shape:
                step.memory[key] = parameter.detach().clone()  # it has grown: its history is new
            step.memory[key].lerp_(parameter.detach(), 1 / seen)
