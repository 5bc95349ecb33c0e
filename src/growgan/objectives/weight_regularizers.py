"""Regularizers of the weights of G and D."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from growgan.nets.layers import ScaledWeight
from growgan.objectives.options import NonNegativeFloat, PositiveInt
from growgan.objectives.regularizer import Regularizer, WeightedPenalty, register_regularizer
from growgan.objectives.step_context import StepContext


def weight_matrices(network: nn.Module) -> Iterator[tuple[str, Float[Tensor, "... out in"]]]:
    """Yield the name and the effective weight of each layer as a matrix, one per group."""
    for name, module in _weight_layers(network):
        if module.weight_spec.uses_spectral_norm:
            # Reading the effective weight in training would advance the power iteration.
            weight = module.weight * module.weight_scale
        else:
            weight = module.effective_weight
        yield name, module.weight_matrix(weight)


def _weight_layers(network: nn.Module) -> Iterator[tuple[str, ScaledWeight]]:
    for name, module in network.named_modules():
        if isinstance(module, ScaledWeight):
            yield name, module


@register_regularizer(
    "clip",
    "Clips D's weights to a small interval after each step.",
    "Arjovsky et al. 2017, 1701.07875",
)
class WeightClipping(Regularizer):
    """After each step of D, all its effective weights and biases are clamped to [-c, c]."""

    clip_value: NonNegativeFloat = Field(0.01, description="Largest absolute weight c.")

    @torch.no_grad()
    def after_update(self, network: nn.Module, step: StepContext) -> None:
        if network is step.discriminator:
            scales = {module.weight: module.weight_scale for _, module in _weight_layers(network)}
            for parameter in network.parameters():
                bound = self.clip_value / scales.get(parameter, 1.0)
                parameter.clamp_(-bound, bound)


@register_regularizer(
    "singular-value-clamp",
    "Clamps the largest singular value of each weight of D.",
    "Brock et al. 2019, 1809.11096",
)
class SingularValueClamp(Regularizer):
    """W <- W - max(0, σ₀ - σ_c) u₀ v₀ᵀ after a step of D (Brock et al. 2019, equation 3)."""

    interval: PositiveInt = Field(8, description="Number of steps between two clamps.")
    ratio: NonNegativeFloat = Field(
        1.0, description="Bound σ_c as a multiple of the second singular value σ₁."
    )

    @torch.no_grad()
    def after_update(self, network: nn.Module, step: StepContext) -> None:
        if network is not step.discriminator or step.index % self.interval:
            return
        for _, module in _weight_layers(network):
            with torch.enable_grad():
                matrix = module.weight_matrix()
            if min(matrix.shape[-2:]) < 2:
                continue
            u, values, v = torch.linalg.svd(matrix.detach().float(), full_matrices=False)
            excess = (values[..., 0] - self.ratio * values[..., 1]).clamp(min=0)
            first_component = u[..., :, :1] @ v[..., :1, :]  # (..., out, in)
            change = (excess[..., None, None] * first_component).to(matrix.dtype)
            # The matrix is a reordered view of the weight; its gradient undoes the reordering.
            module.weight.sub_(*torch.autograd.grad(matrix, module.weight, change))


@register_regularizer(
    "orthogonal",
    "Pushes the filters of each layer of G toward orthogonality.",
    "Brock et al. 2019, 1809.11096",
)
class OrthogonalRegularization(WeightedPenalty):
    """Σ ||W Wᵀ ∘ (1 - I)||² over the weights of G, one row per output; norms are not penalized.

    The label embedding, which all layers share, is left out (as in the authors' code).
    """

    weight: NonNegativeFloat = Field(1e-4, description="Weight of the term in the loss.")

    def generator_term(self, step: StepContext) -> Tensor:
        total = torch.zeros((), device=step.fake.device)
        with torch.autocast(total.device.type, enabled=False):
            for name, matrix in weight_matrices(step.generator):
                if name.rpartition(".")[2] == "label_embedding":
                    continue
                gram = matrix.float() @ matrix.float().mT
                diagonal = torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))
                total = total + (gram - diagonal).square().sum()
        return total


@register_regularizer(
    "historical-averaging",
    "Keeps the weights of G and D near their mean over time.",
    "Salimans et al. 2016, 1606.03498",
)
class HistoricalAveraging(WeightedPenalty):
    """||θ - mean over time of θ||² for G and D (Salimans et al. 2016, section 3.3).

    The mean of a weight starts over when growth changes the weight's shape.
    """

    weight: NonNegativeFloat = Field(0.01, description="Weight of the terms in both losses.")

    has_both_terms = True

    def discriminator_term(self, step: StepContext) -> Tensor:
        return self._squared_distance_to_mean("discriminator", step.discriminator, step)

    def generator_term(self, step: StepContext) -> Tensor:
        return self._squared_distance_to_mean("generator", step.generator, step)

    def _squared_distance_to_mean(self, role: str, network: nn.Module, step: StepContext) -> Tensor:
        total = torch.zeros((), device=step.real.device)
        for name, parameter in network.named_parameters():
            mean = step.objective_state.get(f"historical.{role}.{name}")
            if mean is not None and mean.shape == parameter.shape:
                total = total + (parameter - mean).square().sum()
        return total

    @torch.no_grad()
    def after_update(self, network: nn.Module, step: StepContext) -> None:
        role = "discriminator" if network is step.discriminator else "generator"
        state = step.objective_state
        for name, parameter in network.named_parameters():
            key = f"historical.{role}.{name}"
            num_updates = step.get_state(f"{key}.steps")
            if key not in state or state[key].shape != parameter.shape:
                state[key] = parameter.detach().clone()
                num_updates.zero_()
            state[key].lerp_(parameter.detach(), 1 / num_updates.add_(1))
