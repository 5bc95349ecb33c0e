"""What a regulariser is: a term of a loss, or a hand on what the players see, or on their weights.

A new one is one function under :func:`term`, or one class under ``REGULARISERS.register``; it is
then listed, configured, combined with every loss and covered by the matrix test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from growgan.objectives.options import Count, with_options
from growgan.objectives.step import Step
from growgan.registry import Registry


@dataclass(frozen=True)
class Regulariser:
    """Does nothing; override what it shall do. Fields are options, ``regularisers.NAME.FIELD``.

    Attributes:
        requires: the attribute that a loss must have for it, if any.
        both: True if it has a term for either player; G's is then logged apart.
    """

    requires: ClassVar[str | None] = None
    both: ClassVar[bool] = False

    def latents(self, step: Step) -> Tensor:
        """Return the latents that both players train on, in place of ``step.latents``."""
        return step.latents

    def presented(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return the reals and the fakes that D trains on, in place of ``step``'s."""
        return step.real, step.fake

    def kept(self, step: Step, logits: Tensor) -> Tensor:
        """Return those of the fakes' ``logits`` that G learns from."""
        return logits

    def after(self, player: nn.Module, step: Step) -> None:
        """Change ``player`` in place, or what is remembered, after it has moved."""


@dataclass(frozen=True)
class Penalty(Regulariser):
    """A regulariser that adds terms to the players' losses.

    Attributes:
        weight: what its terms are multiplied by.
        scale: this too, whatever the weight: 4 is four times as strong as usual.
        every: take its terms at every k-th step, k times as strong (lazily).
    """

    weight: float = 1.0
    scale: float = 1.0
    every: Count = 1

    def strength(self, resolution: tuple[int, int]) -> float:
        """Return the weight for images of this height and width."""
        return self.scale * self.weight

    def discriminator(self, step: Step) -> Tensor | None:
        """Return a term of D's loss, unweighted."""
        return None

    def generator(self, step: Step) -> Tensor | None:
        """Return a term of G's loss, unweighted."""
        return None


REGULARISERS: Registry[Regulariser] = Registry("regulariser")

R = TypeVar("R", bound=Regulariser)


def regulariser(name: str, summary: str, paper: str = "") -> Callable[[type[R]], type[R]]:
    """Return a decorator that enters a class, with its usual options, under ``name``."""

    def enter(kind: type[R]) -> type[R]:
        REGULARISERS.register(name, summary, paper)(kind())
        return kind

    return enter


@dataclass(frozen=True)
class Term(Penalty):
    """A term of one player's loss that is a function of the step.

    Attributes:
        function: the unweighted term, a scalar.
        player: whose loss it belongs to.
        per_pixel: True if the weight is for an image of one pixel, and grows with their number.
        paired: True if it holds each fake against its own truth: there must be one, and what G is
            asked for is the mean of all that may be right.
    """

    function: Callable[[Step], Tensor] = lambda step: step.real.sum() * 0
    player: str = "discriminator"
    per_pixel: bool = False
    paired: bool = False

    def strength(self, resolution: tuple[int, int]) -> float:
        return self.scale * self.weight * (prod(resolution) if self.per_pixel else 1)

    def discriminator(self, step: Step) -> Tensor | None:
        return self.function(step) if self.player == "discriminator" else None

    def generator(self, step: Step) -> Tensor | None:
        return self.function(step) if self.player == "generator" else None


def term(
    name: str, summary: str, paper: str, **how: Any
) -> Callable[[Callable[[Step], Tensor]], Callable[[Step], Tensor]]:
    """Return a decorator that enters a function of a step as the regulariser ``name``."""

    def enter(function: Callable[[Step], Tensor]) -> Callable[[Step], Tensor]:
        REGULARISERS.register(name, summary, paper)(Term(function=function, **how))
        return function

    return enter


def paired(names: Iterable[str]) -> list[str]:
    """Return the names of those regularisers that hold each fake against its own truth."""
    found = ((name, REGULARISERS[name]) for name in names)
    return [name for name, each in found if isinstance(each, Term) and each.paired]


def make_regulariser(name: str, options: Mapping[str, float | None]) -> Regulariser:
    """Return the regulariser ``name`` with ``options``; None means as registered.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    usual = REGULARISERS[name]
    if options.get("weight") is not None and isinstance(usual, Term):
        usual = replace(usual, per_pixel=False)  # a given weight is the same at every resolution
    given = {key: value for key, value in options.items() if value is not None}
    return with_options(usual, given, f"regularisers.{name}")


def as_written() -> AbstractContextManager[object]:
    """Return a context in which no layer runs compiled: what is, can be differentiated but once."""
    # Nothing is compiled before torch's compiler was loaded, which takes a second.
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def gradient_square(judge: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ||∇_x D(x)||² for each image, float32 ``[N]``, differentiable again.

    Under autocast D's products are taken in bfloat16 here, too, which turns what D learns from a
    penalty by less than two degrees (``benchmarks/precision.py penalties``). Squares and sums stay
    in float32: they must.
    """
    x = x.detach().float().requires_grad_()
    with as_written():
        (gradient,) = torch.autograd.grad(judge(x).float().sum(), x, create_graph=True)
    with torch.autocast(x.device.type, enabled=False):
        return gradient.float().square().sum((1, 2, 3))
