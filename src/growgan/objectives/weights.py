"""Regularisers that look at the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from growgan.config import SPECTRAL
from growgan.nets.layers import Scaled
from growgan.objectives.options import Count
from growgan.objectives.regulariser import Penalty, Regulariser, regulariser
from growgan.objectives.step import Step


def matrices(player: nn.Module) -> Iterator[tuple[str, Float[Tensor, "... out in"]]]:
    """Yield the linear maps in use: name, and what they do at one place, one matrix a group."""
    for name, module in _maps(player):
        # What is in use in training moves a spectral map's singular vector; this does not.
        spectral = module.rate in SPECTRAL
        yield name, module.matrix(module.weight * module.scale if spectral else module.used)


def _maps(player: nn.Module) -> Iterator[tuple[str, Scaled]]:
    yield from ((name, each) for name, each in player.named_modules() if isinstance(each, Scaled))


@regulariser("clip", "D's weights held in a box", "Arjovsky et al. 2017, 1701.07875")
@dataclass(frozen=True)
class WeightClipping(Regulariser):
    """After each step of D all its parameters, as they are used, are clamped to [-c, c].

    Attributes:
        largest: c.
    """

    largest: float = 0.01

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        if player is step.discriminator:
            scales = {module.weight: module.scale for _, module in _maps(player)}
            for parameter in player.parameters():
                bound = self.largest / scales.get(parameter, 1.0)
                parameter.clamp_(-bound, bound)


@regulariser(
    "singular-clamp",
    "the largest singular value of D's weights held",
    "Brock et al. 2019, 1809.11096",
)
@dataclass(frozen=True)
class SingularClamp(Regulariser):
    """W <- W - max(0, σ₀ - σ_c) u₀ v₀ᵀ after D's steps (Brock et al. 2019, 1809.11096, equation 3).

    Attributes:
        ratio: σ_c is so many times the second singular value σ₁.
    """

    every: Count = 8
    ratio: float = 1.0

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        if player is not step.discriminator or step.index % self.every:
            return
        for _, module in _maps(player):
            with torch.enable_grad():
                matrix = module.matrix()
            if min(matrix.shape[-2:]) < 2:
                continue
            u, values, v = torch.linalg.svd(matrix.detach().float(), full_matrices=False)
            excess = (values[..., 0] - self.ratio * values[..., 1]).clamp(min=0)
            first = u[..., :, :1] @ v[..., :1, :]  # [..., out, in]
            change = (excess[..., None, None] * first).to(matrix.dtype)
            # A matrix is its weight in another order, which the gradient undoes.
            module.weight.sub_(*torch.autograd.grad(matrix, module.weight, change))


@regulariser("orthogonal", "G's filters kept apart", "Brock et al. 2019, 1809.11096")
@dataclass(frozen=True)
class Orthogonal(Penalty):
    """Σ ||W Wᵀ ∘ (1 - I)||² over G's weights, one row an output: lengths are left free.

    The label's embedding, which all layers share, is left out (as in the authors' code).
    """

    weight: float = 1e-4

    def generator(self, step: Step) -> Tensor:
        total = torch.zeros((), device=step.fake.device)
        with torch.autocast(total.device.type, enabled=False):
            for name, matrix in matrices(step.generator):
                if name.rpartition(".")[2] == "label":
                    continue
                gram = matrix.float() @ matrix.float().mT
                lengths = torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
                total = total + (gram - lengths).square().sum()
        return total


@regulariser("historical", "weights near their mean over time", "Salimans et al. 2016, 1606.03498")
@dataclass(frozen=True)
class HistoricalAveraging(Penalty):
    """||θ - mean over time of θ||² for both players (Salimans et al. 2016, section 3.3).

    Each weight's mean is over its own life, which begins anew when it grows.
    """

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
        for name, parameter in player.named_parameters():
            key = f"historical.{role}.{name}"
            seen = step.recall(f"{key}.steps")
            if key not in step.memory or step.memory[key].shape != parameter.shape:
                step.memory[key] = parameter.detach().clone()  # it has grown: its history is new
                seen.zero_()
            step.memory[key].lerp_(parameter.detach(), 1 / seen.add_(1))
