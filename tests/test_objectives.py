"""Losses at hand-worked logits; regularisers where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.nets.spec import StackSpec
from growgan.nets.stack import Discriminator, build
from growgan.objectives.losses import LOSSES
from growgan.objectives.objective import Objective
from growgan.objectives.regularisers import REGULARISERS, Step

REAL = torch.tensor([0.0, math.log(3.0)])
FAKE = torch.tensor([math.log(3.0), 0.0])

# softplus(0) = ln 2, softplus(ln 3) = ln 4, softplus(-ln 3) = ln (4/3).
EXPECTED = {
    "non-saturating": (
        (math.log(2) + math.log(4 / 3)) / 2 + (math.log(4) + math.log(2)) / 2,
        (math.log(4 / 3) + math.log(2)) / 2,
    ),
    "wasserstein": (0.0, -math.log(3) / 2),
    "relativistic": ((math.log(4) + math.log(4 / 3)) / 2, (math.log(4 / 3) + math.log(4)) / 2),
}


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_each_loss_has_its_closed_form_value(name: str) -> None:
    loss, (d, g) = LOSSES[name], EXPECTED[name]
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(d, abs=1e-6)
    assert float(loss.generator(REAL, FAKE)) == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_each_loss_pushes_the_logits_the_right_way(name: str) -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    LOSSES[name].discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    LOSSES[name].generator(real, fake).backward()
    assert (fake.grad < 0).all()


class Linear(nn.Module):
    """D(x) = <w, x>: its gradient is w everywhere."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        w = torch.arange(1.0, 17.0).view(1, 4, 4)
        self.w = nn.Parameter(w * norm / w.norm())

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).sum((1, 2, 3))


def a_step(discriminator: nn.Module, channels: int = 1) -> Step:
    rng = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(8, channels, 4, 4, generator=rng) for _ in range(2))
    logits = (discriminator(real), discriminator(fake))
    z = torch.zeros(8, 4)
    return Step(nn.Identity(), discriminator, real, fake, z, rng, *logits)  # type: ignore[arg-type]


def value(name: str, step: Step) -> float:
    return float(REGULARISERS[name].term(step).detach())


@pytest.mark.parametrize("norm", [0.5, 3.0])
def test_gradient_penalties_of_a_linear_critic_are_known(norm: float) -> None:
    step = a_step(Linear(norm))
    for name in ("r1", "r2"):
        assert value(name, step) == pytest.approx(norm**2 / 2, rel=1e-5)
    assert value("gp", step) == pytest.approx((norm - 1) ** 2, rel=1e-4)
    drift = step.real_logits.square().mean()
    assert value("drift", step) == pytest.approx(float(drift.detach()), rel=1e-6)


@pytest.mark.parametrize("name", ["r1", "r2", "gp"])
def test_gradient_penalties_train_the_critic_under_bfloat16_autocast_too(name: str) -> None:
    critic = Linear(2.0)
    with torch.autocast("cpu", torch.bfloat16):
        REGULARISERS[name].term(a_step(critic)).backward()
    # d/dw of ||w||²/2 is w, and of (||w|| - 1)² it is 2 (||w|| - 1) w/||w||: here the same.
    torch.testing.assert_close(critic.w.grad, critic.w.detach(), rtol=1e-4, atol=1e-5)


def test_r1_agrees_with_finite_differences_on_a_stack() -> None:
    d = build(StackSpec("discriminator", (4, 4), 1, 6, deviation_group=0), 0).double()
    assert isinstance(d, Discriminator)
    x, eps = torch.randn(2, 1, 4, 4, dtype=torch.float64), 1e-6

    def total(images: Tensor) -> Tensor:
        # D's own logits are rounded to float32, too coarse for differences.
        return d.output(d.features(images)[:, :, None, None]).sum().detach()

    slopes = torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=torch.float64)
        shift[i] = eps
        up, down = (total(x + sign * shift.view_as(x)) for sign in (1, -1))
        slopes.view(-1)[i] = (up - down) / (2 * eps)
    expected = 0.5 * slopes.square().sum((1, 2, 3)).mean()
    step = a_step(Linear(1.0))
    step.discriminator, step.real = d, x
    # Penalties run in float32, the differences in float64.
    assert value("r1", _single(step)) == pytest.approx(float(expected), rel=1e-3)


def _single(step: Step) -> Step:
    step.discriminator = step.discriminator.float()
    step.real = step.real.float()
    return step


def test_a_lazy_regulariser_acts_every_kth_step_k_times_as_strong() -> None:
    objective = Objective("wasserstein", {"r1": (0.5, 4)})
    step = a_step(Linear(3.0))
    named: list[Callable[[], dict[str, Tensor]]] = [
        lambda i=i: objective.discriminator(step, i)  # type: ignore[misc]
        for i in range(5)
    ]
    terms = [make() for make in named]
    assert ["r1" in t for t in terms] == [True, False, False, False, True]
    assert float(terms[0]["r1"].detach()) == pytest.approx(4.5 * 0.5 * 4, rel=1e-5)
    assert set(terms[1]) == {"loss_discriminator"}


def test_the_usual_gradient_penalty_weighs_a_coarse_image_as_it_weighs_the_fine_one() -> None:
    fine, coarse = (a_step(Linear(1.0)) for _ in range(2))
    # D of the fine image looks only at means over 2x2, so it is a D of the coarse one too.
    weight = torch.arange(1.0, 5.0).view(1, 2, 2)
    fine.discriminator.w.data = weight.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    coarse.discriminator.w.data = weight
    coarse.real = F.avg_pool2d(fine.real, 2)
    same = (s.discriminator(s.real) for s in (fine, coarse))
    torch.testing.assert_close(*same)
    objective = Objective("wasserstein", {"r1": (None, 16)})
    terms = [float(objective.discriminator(s, 0)["r1"].detach()) for s in (fine, coarse)]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)
