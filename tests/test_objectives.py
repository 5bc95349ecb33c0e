"""Losses at hand-worked logits; regularisers where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.config import SPECTRAL
from growgan.errors import UserError
from growgan.nets.layers import Conv, Dense, GroupedConv, Project
from growgan.nets.players import Discriminator, build
from growgan.nets.spec import StackSpec
from growgan.objectives import (
    LOSSES,
    REGULARISERS,
    Objective,
    Step,
    make_augmentation,
    make_loss,
    make_regulariser,
)
from growgan.objectives.regulariser import Penalty, Term
from growgan.objectives.weights import matrices
from growgan.training.doctor import singular_values

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
    "minimax": (
        (math.log(2) + math.log(4 / 3)) / 2 + (math.log(4) + math.log(2)) / 2,
        -(math.log(4) + math.log(2)) / 2,
    ),
    "least-squares": (
        (1 + (math.log(3) - 1) ** 2 + math.log(3) ** 2) / 4,
        ((math.log(3) - 1) ** 2 + 1) / 4,
    ),
    "hinge": ((1 + 0) / 2 + (1 + math.log(3) + 1) / 2, -math.log(3) / 2),
    # Both halves of hinge's, with π = 0.1 of the reals' taken from the fakes'.
    "positive-unlabelled": (1.1 * 1 / 2 + 0.9 * (2 + math.log(3)) / 2, -math.log(3) / 2),
    # Energies: k is 0 at first; a margin of 0.5 lies below ln 3 and above 0.
    "began": (math.log(3) / 2, math.log(3) / 2),
    "ebgan": (math.log(3) / 2 + 0.5 / 2, math.log(3) / 2),
}


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_each_loss_has_its_closed_form_value(name: str) -> None:
    loss, (d, g) = LOSSES[name](), EXPECTED[name]
    assert float(loss.discriminator(REAL, FAKE, {})) == pytest.approx(d, abs=1e-6)
    assert float(loss.generator(REAL, FAKE, {})) == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_each_loss_pushes_the_logits_the_right_way(name: str) -> None:
    real, fake = torch.tensor([-0.2, 0.3]), torch.tensor([0.1, 0.2])
    loss, memory = LOSSES[name](), {"began.k": torch.tensor(0.5)}
    up = -1 if loss.energies else 1  # the energy of a real falls, its logit rises
    for each in (real, fake):
        each.requires_grad_()
    loss.discriminator(real, fake, memory).backward()
    assert real.grad is not None and fake.grad is not None
    assert (up * real.grad < 0).all() and (up * fake.grad > 0).all()
    fake.grad = None
    loss.generator(real, fake, memory).backward()
    assert fake.grad is not None and (up * fake.grad < 0).all()
    sure = loss.sure(torch.tensor([2.0]) * up, torch.tensor([-2.0]) * up)
    assert sure.tolist() == [1.0], "a real far on its own side is known for one"


def test_began_follows_its_controller() -> None:
    """k grows while fakes have less than γ of the reals' energy, and stays in [0, 1]."""
    loss = make_loss("began", {"gamma": 0.5, "step": 0.1})
    memory: dict[str, Tensor] = {}
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0])  # means 3 and 0.5
    curves = loss.curves(real, fake, memory, 2)
    assert float(curves["began_k"]) == pytest.approx(0.1 * (0.5 * 3 - 0.5))
    assert float(curves["began_convergence"]) == pytest.approx(3 + abs(0.5 * 3 - 0.5))
    k = 0.1
    assert float(loss.discriminator(real, fake, memory)) == pytest.approx(3 - k * 0.5)
    for _ in range(30):
        loss.curves(real, fake, memory, 2)
    assert float(memory["began.k"]) == 1
    loss.curves(real * 0, real, memory, 2)
    assert float(memory["began.k"]) == pytest.approx(1 - 0.1 * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_loss("hing", {}), r"unknown loss 'hing' \(did you mean 'hinge'\?\)"),
        (lambda: make_loss("ebgan", {"margn": 1.0}), "unknown loss_options setting 'margn'"),
        (lambda: make_loss("hinge", {"margin": 1.0}), "unknown loss_options setting 'margin'"),
        (
            lambda: make_regulariser("r1", {"every": 0.0}),
            "setting 'regularisers.r1.every' must be a whole number of at least 1, but got 0",
        ),
        (
            lambda: make_regulariser("gp", {"weight": -1.0}),
            "setting 'regularisers.gp.weight' must be a number of at least 0",
        ),
        *(
            (partial(make_regulariser, name, {option: value}), f"{name}.{option}' must be {legal}")
            for name, option, value, legal in (
                ("top-k", "least", 2.0, "a number from 0 to 1, but got 2"),
                ("top-k", "epoch", 0.0, "a whole number of at least 1"),
                ("replay", "share", 3.0, "a number from 0 to 1"),
                ("replay", "size", 0.0, "a whole number of at least 1"),
                ("path-length", "share", 1.5, "a number from 0 to 1"),
                ("lecam", "decay", 3.0, "a number from 0 to 1"),
                ("gp", "every", 2.7, "a whole number of at least 1, but got 2.7"),
                ("feature-matching", "alone", 2.0, "a whole number from 0 to 1"),
                ("latent", "damping", 0.0, "a number above 0"),
                ("r1", "weight", float("nan"), "a number of at least 0, but got nan"),
                ("r1", "weight", float("inf"), "a number of at least 0, but got inf"),
            )
        ),
        (
            lambda: make_augmentation("apa", {"p": 3.0}),
            "augment_options.p' must be a number from 0",
        ),
        (lambda: make_loss("began", {"gamma": 1.1}), "loss_options.gamma' must be a number from 0"),
        (lambda: make_regulariser("r1", {"function": 1.0}), "unknown regularisers.r1 setting"),
    ],
)
def test_options_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


class Linear(nn.Module):
    """D(x) = <w, x>: its gradient is w everywhere."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        w = torch.arange(1.0, 17.0).view(1, 4, 4)
        self.w = nn.Parameter(w * norm / w.norm())

    def forward(self, x: Tensor) -> Tensor:
        # A product that autocast takes in bfloat16; tests of coarse images change the size of w.
        return F.linear(x.flatten(1), self.w.flatten()[None]).flatten()


def a_step(discriminator: nn.Module, channels: int = 1, *, count: int = 8) -> Step:
    rng = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(count, channels, 4, 4, generator=rng) for _ in range(2))
    logits = (discriminator(real), discriminator(fake)) if count else (real, fake)
    z = torch.zeros(8, 4)
    return Step(nn.Identity(), discriminator, real, fake, z, rng, *logits)  # type: ignore[arg-type]


def value(name: str, step: Step) -> float:
    rule = REGULARISERS[name]
    assert isinstance(rule, Penalty)
    found = rule.discriminator(step)
    assert found is not None
    return float(found.detach())


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
        rule = REGULARISERS[name]
        assert isinstance(rule, Penalty)
        found = rule.discriminator(a_step(critic))
        assert found is not None
        found.backward()
    # d/dw of ||w||²/2 is w, and of (||w|| - 1)² it is 2 (||w|| - 1) w/||w||: here the same.
    torch.testing.assert_close(critic.w.grad, critic.w.detach(), rtol=2e-2, atol=1e-3)
    assert not torch.equal(critic.w.grad, critic.w.detach()), "autocast has touched nothing"


def test_r1_agrees_with_finite_differences_on_a_stack() -> None:
    d = build(StackSpec("discriminator", (4, 4), 1, 6, deviation_group=0), 0).double()
    assert isinstance(d, Discriminator)
    x, eps = torch.randn(2, 1, 4, 4, dtype=torch.float64), 1e-6

    def total(images: Tensor) -> Tensor:
        # D's own logits are rounded to float32, too coarse for differences.
        return d.end.output(d.features(images)[:, :, None, None]).sum().detach()  # type: ignore[operator,union-attr]

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
    r1 = make_regulariser("r1", {"weight": 0.5, "every": 4})
    objective = Objective(make_loss("wasserstein", {}), {"r1": r1})
    terms = [objective.discriminator(replace(a_step(Linear(3.0)), index=i)) for i in range(5)]
    assert ["r1" in t for t in terms] == [True, False, False, False, True]
    assert float(terms[0]["r1"].detach()) == pytest.approx(4.5 * 0.5 * 4, rel=1e-5)
    assert set(terms[1]) == {"loss_discriminator"}


def test_a_lazy_term_of_g_counts_the_steps_of_g() -> None:
    ones = Term(function=lambda step: torch.ones(()), player="generator", every=2)
    objective = Objective(make_loss("wasserstein", {}), {"x": ones}, critic_steps=2)
    steps = [replace(a_step(Linear(3.0)), index=i) for i in range(1, 10, 2)]
    acted = [float(objective.generator(step).get("x", torch.zeros(()))) for step in steps]
    assert acted == [2, 0, 2, 0, 2]


def test_the_usual_gradient_penalty_weighs_a_coarse_image_as_it_weighs_the_fine_one() -> None:
    fine, coarse = (a_step(Linear(1.0)) for _ in range(2))
    # D of the fine image looks only at means over 2x2, so it is a D of the coarse one too.
    weight = torch.arange(1.0, 5.0).view(1, 2, 2)
    fine.discriminator.w.data = weight.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    coarse.discriminator.w.data = weight
    coarse.real = F.avg_pool2d(fine.real, 2)
    same = (s.discriminator(s.real) for s in (fine, coarse))
    torch.testing.assert_close(*same)
    objective = Objective(make_loss("wasserstein", {}), {"r1": make_regulariser("r1", {})})
    terms = [float(objective.discriminator(s)["r1"].detach()) for s in (fine, coarse)]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


LAYERS = {
    "dense": lambda rate: Dense(6, 5, rate=rate),
    "slow": lambda rate: Dense(6, 5, rate=rate, speed=0.01),
    "project": lambda rate: Project(3, 4, (2, 2), gain=1.0, rate=rate),
    "grouped": lambda rate: GroupedConv(8, 2, 1, gain=1.0, rate=rate),
    "convolution": lambda rate: Conv(4, 6, 1, rate=rate),
}


def jacobian(layer: nn.Module) -> Tensor:
    """The linear map that a layer is, at one place: [out, in]."""
    known = layer.weight.shape[1]  # type: ignore[union-attr,index]
    if isinstance(layer, GroupedConv):
        known *= layer.groups
    shape = (known,) if isinstance(layer, Dense | Project) else (known, 1, 1)
    zero = torch.zeros(1, *shape)
    made = torch.autograd.functional.jacobian(lambda x: layer.eval()(x).flatten(), zero)
    return made.flatten(1)  # type: ignore[union-attr]


@pytest.mark.parametrize("rate", ["plain", "equalised", "transfer", "spectral", "orthogonal"])
@pytest.mark.parametrize("name", LAYERS)
def test_matrices_are_the_maps_in_use(name: str, rate: str) -> None:
    if name == "grouped" and rate in SPECTRAL:
        return
    layer = LAYERS[name](rate)  # type: ignore[no-untyped-call]
    ((_, found),) = matrices(layer)
    values = torch.linalg.svdvals(found.detach()).flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(jacobian(layer))[: len(values)]
    torch.testing.assert_close(values, expected)
    (largest,) = singular_values(layer).values()
    assert largest == pytest.approx(expected[:3].tolist(), rel=1e-3)


@pytest.mark.parametrize("name", ["project", "grouped", "dense"])
def test_the_largest_singular_value_of_each_map_is_clamped(name: str) -> None:
    layer = LAYERS[name]("equalised")  # type: ignore[no-untyped-call]
    step = a_step(layer, count=0)  # which judges nothing here
    before = torch.linalg.svdvals(next(matrices(layer))[1].detach())
    make_regulariser("singular-clamp", {}).after(layer, step)
    after = torch.linalg.svdvals(next(matrices(layer))[1].detach())
    torch.testing.assert_close(after[..., 0], before[..., 1])
    torch.testing.assert_close(after[..., 1:], before[..., 1:])


def test_orthogonal_looks_within_groups_at_places_and_not_at_the_labels_embedding() -> None:
    grouped = GroupedConv(8, 2, 1, gain=1.0, rate="plain")
    grouped.weight.data = torch.eye(2).repeat(4, 1)[:, :, None, None]  # alike in all groups
    project = Project(16, 4, (2, 2), gain=1.0, rate="plain")
    rows = torch.eye(16).view(2, 2, 4, 16)  # [h, w, c, z]
    project.weight.data = rows.permute(2, 3, 0, 1) + 0
    label = Dense(3, 4, rate="plain")
    player = nn.ModuleDict({"a": grouped, "b": project, "label": label})
    step = a_step(Linear(1.0))
    step.generator = player  # type: ignore[assignment]
    rule = make_regulariser("orthogonal", {})
    assert isinstance(rule, Penalty)
    assert float(rule.generator(step).detach()) == 0  # type: ignore[union-attr]
    grouped.weight.data[0, 1] = 0.5  # now its two rows have the product 0.5
    assert float(rule.generator(step).detach()) == pytest.approx(2 * 0.25)  # type: ignore[union-attr]


def test_orthogonal_sees_a_slow_map_as_it_is_used() -> None:
    slow, usual = (Dense(8, 8, rate="equalised", speed=speed) for speed in (0.01, 1.0))
    usual.weight.data = slow.weight.data * 0.01
    step, rule = a_step(Linear(1.0)), make_regulariser("orthogonal", {})
    assert isinstance(rule, Penalty)
    found = []
    for layer in (slow, usual):
        step.generator = layer  # type: ignore[assignment]
        found.append(rule.generator(step).detach())  # type: ignore[union-attr]
    torch.testing.assert_close(found[0], found[1])
