"""Base classes and the registry of regularizers.

A regularizer adds a term to a loss, changes what the networks train on, or changes weights after
an update. To add one, decorate a function with :func:`register_term` or a class with
:func:`register_regularizer`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from growgan.objectives.losses import Loss
from growgan.objectives.options import (
    NonNegativeFloat,
    OptionGroup,
    PositiveInt,
    with_options,
)
from growgan.objectives.step_context import StepContext
from growgan.registry import Registry


class Regularizer(OptionGroup):
    """Hooks into a training step, all of which do nothing by default.

    The fields are options; users set them as ``regularizers.NAME.FIELD``.

    Attributes:
        has_both_terms: Whether it adds a term to both losses. The log then names G's term
            ``NAME_generator``.
    """

    has_both_terms: ClassVar[bool] = False

    def supports_loss(self, loss: type[Loss]) -> bool:
        """Return whether the regularizer can be combined with ``loss``."""
        return True

    def transform_generator_input(self, step: StepContext) -> Tensor:
        """Return the input of G for this step, in place of ``step.generator_input``."""
        return step.generator_input

    def transform_batch(self, step: StepContext) -> tuple[Tensor, Tensor]:
        """Return the real and fake images that D trains on, in place of the step's."""
        return step.real, step.fake

    def select_logits(self, step: StepContext, logits: Tensor) -> Tensor:
        """Return those logits of fakes that G's loss uses."""
        return logits

    def after_update(self, network: nn.Module, step: StepContext) -> None:
        """Change ``network`` or the objective's state after the update of ``network``."""


class Penalty(Regularizer):
    """A regularizer that adds a term to the loss of D, of G, or of both."""

    interval: PositiveInt = Field(
        1,
        description="Number of steps between two evaluations of the term. A lazy term is weighted"
        " by its interval.",
    )

    def weight_at(self, resolution: tuple[int, int]) -> float:
        """Return the weight of the term for images of this height and width in pixels."""
        raise NotImplementedError

    def discriminator_term(self, step: StepContext) -> Tensor | None:
        """Return the unweighted term of D's loss, a scalar, or None."""
        return None

    def generator_term(self, step: StepContext) -> Tensor | None:
        """Return the unweighted term of G's loss, a scalar, or None."""
        return None


class WeightedPenalty(Penalty):
    """A penalty with one weight at every resolution."""

    weight: NonNegativeFloat = Field(1.0, description="Weight of the term in the loss.")

    def weight_at(self, resolution: tuple[int, int]) -> float:
        return self.weight


REGULARIZERS: Registry[Regularizer] = Registry("regularizer")

RegularizerT = TypeVar("RegularizerT", bound=Regularizer)


def register_regularizer(
    name: str, summary: str, paper: str = ""
) -> Callable[[type[RegularizerT]], type[RegularizerT]]:
    """Return a decorator that registers a class, with its default options, as ``name``."""

    def register(component: type[RegularizerT]) -> type[RegularizerT]:
        REGULARIZERS.register(name, summary, paper)(component())
        return component

    return register


class LossTerm(WeightedPenalty):
    """A term of one loss that is a function of the step.

    Attributes:
        function: Returns the unweighted term, a scalar.
        applies_to: The network whose loss gets the term.
        needs_target: Whether the term compares each fake with its own target image. The data must
            then hold pairs, and G learns the mean of all plausible targets.
    """

    function: Callable[[StepContext], Tensor] = Field(exclude=True)
    applies_to: Literal["discriminator", "generator"] = Field("discriminator", exclude=True)
    needs_target: bool = Field(False, exclude=True)

    def discriminator_term(self, step: StepContext) -> Tensor | None:
        return self.function(step) if self.applies_to == "discriminator" else None

    def generator_term(self, step: StepContext) -> Tensor | None:
        return self.function(step) if self.applies_to == "generator" else None


def register_term(
    name: str,
    summary: str,
    paper: str,
    *,
    weight: float = 1.0,
    applies_to: Literal["discriminator", "generator"] = "discriminator",
    needs_target: bool = False,
) -> Callable[[Callable[[StepContext], Tensor]], Callable[[StepContext], Tensor]]:
    """Return a decorator that registers a function of a step as the regularizer ``name``."""

    def register(function: Callable[[StepContext], Tensor]) -> Callable[[StepContext], Tensor]:
        term = LossTerm(
            function=function, weight=weight, applies_to=applies_to, needs_target=needs_target
        )
        REGULARIZERS.register(name, summary, paper)(term)
        return function

    return register


def target_based_regularizers(names: Iterable[str]) -> list[str]:
    """Return the names of the regularizers that compare each fake with its own target image."""
    regularizers = {name: REGULARIZERS[name] for name in names}
    return [
        name
        for name, regularizer in regularizers.items()
        if isinstance(regularizer, LossTerm) and regularizer.needs_target
    ]


def make_regularizer(name: str, options: Mapping[str, float | None]) -> Regularizer:
    """Return the regularizer ``name`` with ``options``; None keeps an option's default.

    Raises:
        UserError: The name or an option is unknown, or a value is not valid.
    """
    changed = {key: value for key, value in options.items() if value is not None}
    return with_options(REGULARIZERS[name], changed, f"regularizers.{name}")


def disable_compile() -> AbstractContextManager[object]:
    """Return a context in which layers run uncompiled.

    Compiled layers can be differentiated only once.
    """
    # Loading the compiler takes a second, and nothing is compiled before it is loaded.
    compiler_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiler_loaded else nullcontext()


def squared_gradient_norm(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return ||∇_x D(x)||² for each image, float32 ``[N]``, differentiable.

    Under autocast, D's matrix products are computed in bfloat16. This changes the direction of the
    penalty's gradient by less than two degrees (``benchmarks/precision.py penalties``). Squares
    and sums must stay in float32.
    """
    images = images.detach().float().requires_grad_()
    with disable_compile():
        (gradient,) = torch.autograd.grad(
            discriminator(images).float().sum(), images, create_graph=True
        )
    with torch.autocast(images.device.type, enabled=False):
        return gradient.float().square().sum((1, 2, 3))
