"""Losses at logits with known results, option errors, gradient penalties, weight matrices."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weight_specs import EQUALIZED, NONE, WEIGHT_SPECS

from growgan.config import make_settings
from growgan.errors import UserError
from growgan.nets.layers import LinearToGrid, ScaledConv2d, ScaledGroupedConv2d, ScaledLinear
from growgan.nets.networks import Discriminator, build_network
from growgan.nets.spec import DiscriminatorSpec
from growgan.objectives import (
    LOSSES,
    REGULARIZERS,
    Objective,
    StepContext,
    make_augmentation,
    make_loss,
    make_regularizer,
)
from growgan.objectives.options import option_defaults
from growgan.objectives.regularizer import LossTerm, Penalty
from growgan.objectives.weight_regularizers import weight_matrices
from growgan.training.health import top_singular_values

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
    # The hinge terms, with π = 0.1 of the real term subtracted from the fake term.
    "positive-unlabeled": (1.1 * 1 / 2 + 0.9 * (2 + math.log(3)) / 2, -math.log(3) / 2),
    # Reconstruction errors: k starts at 0; the margin of 0.5 is between 0 and ln 3.
    "began": (math.log(3) / 2, math.log(3) / 2),
    "ebgan": (math.log(3) / 2 + 0.5 / 2, math.log(3) / 2),
}


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_each_loss_matches_its_closed_form(name: str) -> None:
    loss, (d, g) = LOSSES[name](), EXPECTED[name]
    assert float(loss.discriminator_loss(REAL, FAKE, {})) == pytest.approx(d, abs=1e-6)
    assert float(loss.generator_loss(REAL, FAKE, {})) == pytest.approx(g, abs=1e-6)


@pytest.mark.parametrize("name", [entry.name for entry in LOSSES])
def test_the_gradients_of_each_loss_have_the_right_sign(name: str) -> None:
    real, fake = torch.tensor([-0.2, 0.3]), torch.tensor([0.1, 0.2])
    loss, state = LOSSES[name](), {"began.k": torch.tensor(0.5)}
    sign = -1 if loss.uses_energy else 1  # the error of a real image falls, its logit rises
    for logits in (real, fake):
        logits.requires_grad_()
    loss.discriminator_loss(real, fake, state).backward()
    assert real.grad is not None and fake.grad is not None
    assert (sign * real.grad < 0).all() and (sign * fake.grad > 0).all()
    fake.grad = None
    loss.generator_loss(real, fake, state).backward()
    assert fake.grad is not None and (sign * fake.grad < 0).all()
    signs = loss.real_sign(torch.tensor([2.0]) * sign, torch.tensor([-2.0]) * sign)
    assert signs.tolist() == [1.0], "a real image with an extreme logit is classified as real"


def test_began_updates_k_by_its_control_equation() -> None:
    """k grows while the error of fakes is below γ times that of real images, within [0, 1]."""
    loss = make_loss("began", {"gamma": 0.5, "k_learning_rate": 0.1})
    state: dict[str, Tensor] = {}
    real, fake = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0])  # means 3 and 0.5
    scalars = loss.update_state(real, fake, state, 2)
    assert float(scalars["began_k"]) == pytest.approx(0.1 * (0.5 * 3 - 0.5))
    assert float(scalars["began_convergence"]) == pytest.approx(3 + abs(0.5 * 3 - 0.5))
    k = 0.1
    assert float(loss.discriminator_loss(real, fake, state)) == pytest.approx(3 - k * 0.5)
    for _ in range(30):
        loss.update_state(real, fake, state, 2)
    assert float(state["began.k"]) == 1
    loss.update_state(real * 0, real, state, 2)
    assert float(state["began.k"]) == pytest.approx(1 - 0.1 * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_loss("hing", {}), r"unknown loss 'hing' \(did you mean 'hinge'\?\)"),
        (lambda: make_loss("ebgan", {"margn": 1.0}), "unknown loss_options setting 'margn'"),
        (lambda: make_loss("hinge", {"margin": 1.0}), "unknown loss_options setting 'margin'"),
        (
            lambda: make_regularizer("r1", {"interval": 0.0}),
            "setting 'regularizers.r1.interval' must be greater than 0, but got 0",
        ),
        (
            lambda: make_regularizer("gp", {"weight": -1.0}),
            "setting 'regularizers.gp.weight' must be greater than or equal to 0, but got -1",
        ),
        *(
            (
                partial(make_regularizer, name, {option: value}),
                f"{name}.{option}' must be {expected}",
            )
            for name, option, value, expected in (
                ("top-k", "min_fraction", 2.0, "less than or equal to 1, but got 2"),
                ("top-k", "images_per_decay", 0.0, "greater than 0"),
                ("replay", "replay_fraction", 3.0, "less than or equal to 1"),
                ("replay", "buffer_size", 0.0, "greater than 0"),
                ("path-length", "batch_fraction", 1.5, "less than or equal to 1"),
                ("lecam", "ema_decay", 3.0, "less than or equal to 1"),
                ("gp", "interval", 2.7, "a valid integer, .* but got 2.7"),
                ("feature-matching", "replace_loss", 2.0, "a valid boolean"),
                ("latent-optimization", "damping", 0.0, "greater than 0"),
                ("r1", "gamma", float("nan"), "a finite number, but got nan"),
                ("r1", "gamma", float("inf"), "a finite number, but got inf"),
            )
        ),
        (
            lambda: make_augmentation("apa", {"initial_probability": 3.0}),
            "augmentation_options.initial_probability' must be less than or equal to 1",
        ),
        (
            lambda: make_loss("began", {"gamma": 1.1}),
            "loss_options.gamma' must be less than or equal to 1",
        ),
        (lambda: make_regularizer("gp", {"function": 1.0}), "unknown regularizers.gp setting"),
    ],
)
def test_invalid_options_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


class Linear(nn.Module):
    """D(x) = <w, x>: its gradient is w everywhere."""

    def __init__(self, norm: float, side: int = 4) -> None:
        super().__init__()
        w = torch.arange(1.0, 1.0 + side**2).view(1, side, side)
        self.w = nn.Parameter(w * norm / w.norm())

    def forward(self, x: Tensor) -> Tensor:
        # Autocast computes F.linear in bfloat16.
        return F.linear(x.flatten(1), self.w.flatten()[None]).flatten()


def make_step(
    discriminator: nn.Module, channels: int = 1, *, count: int = 8, side: int = 4
) -> StepContext:
    rng = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(count, channels, side, side, generator=rng) for _ in range(2))
    logits = (discriminator(real), discriminator(fake)) if count else (real, fake)
    z = torch.zeros(8, 4)
    return StepContext(nn.Identity(), discriminator, real, fake, z, rng, *logits)  # type: ignore[arg-type]


def penalty_value(name: str, step: StepContext) -> float:
    regularizer = REGULARIZERS[name]
    assert isinstance(regularizer, Penalty)
    result = regularizer.discriminator_term(step)
    assert result is not None
    return float(result.detach())


@pytest.mark.parametrize("norm", [0.5, 3.0])
def test_gradient_penalties_of_a_linear_critic_match_their_formulas(norm: float) -> None:
    step = make_step(Linear(norm))
    for name in ("r1", "r2"):
        assert penalty_value(name, step) == pytest.approx(norm**2 / 2, rel=1e-5)
    assert penalty_value("gp", step) == pytest.approx((norm - 1) ** 2, rel=1e-4)
    drift = step.real_logits.square().mean()
    assert penalty_value("drift", step) == pytest.approx(float(drift.detach()), rel=1e-6)


@pytest.mark.parametrize("name", ["r1", "r2", "gp"])
def test_gradient_penalties_train_the_critic_under_bfloat16_autocast(name: str) -> None:
    critic = Linear(2.0)
    with torch.autocast("cpu", torch.bfloat16):
        regularizer = REGULARIZERS[name]
        assert isinstance(regularizer, Penalty)
        result = regularizer.discriminator_term(make_step(critic))
        assert result is not None
        result.backward()
    # d/dw of ||w||²/2 is w, and of (||w|| - 1)² it is 2 (||w|| - 1) w/||w||, which is w for
    # ||w|| = 2.
    torch.testing.assert_close(critic.w.grad, critic.w.detach(), rtol=2e-2, atol=1e-3)
    assert not torch.equal(critic.w.grad, critic.w.detach()), "autocast had no effect"


def test_r1_agrees_with_finite_differences_of_a_network() -> None:
    d = build_network(
        DiscriminatorSpec(base_grid=(4, 4), image_channels=1, stem_width=6, mbstd_group_size=0), 0
    ).double()
    assert isinstance(d, Discriminator)
    x, eps = torch.randn(2, 1, 4, 4, dtype=torch.float64), 1e-6

    def total(images: Tensor) -> Tensor:
        # D rounds its logits to float32, which is too coarse for finite differences.
        return d.epilogue.logit_layer(d.features(images)[:, :, None, None]).sum().detach()  # type: ignore[operator,union-attr]

    slopes = torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=torch.float64)
        shift[i] = eps
        up, down = (total(x + sign * shift.view_as(x)) for sign in (1, -1))
        slopes.view(-1)[i] = (up - down) / (2 * eps)
    expected = 0.5 * slopes.square().sum((1, 2, 3)).mean()
    step = make_step(Linear(1.0))
    step.discriminator, step.real = d, x
    # Penalties are computed in float32, the finite differences in float64.
    assert penalty_value("r1", _single(step)) == pytest.approx(float(expected), rel=1e-3)


def _single(step: StepContext) -> StepContext:
    step.discriminator = step.discriminator.float()
    step.real = step.real.float()
    return step


def test_a_lazy_regularizer_applies_every_k_steps_with_k_times_its_weight() -> None:
    r1 = make_regularizer("r1", {"gamma": 0.5, "interval": 4})
    objective = Objective(make_loss("wasserstein", {}), {"r1": r1})
    terms = [
        objective.discriminator_terms(replace(make_step(Linear(3.0)), index=i)) for i in range(5)
    ]
    assert ["r1" in t for t in terms] == [True, False, False, False, True]
    assert float(terms[0]["r1"].detach()) == pytest.approx(4.5 * 0.5 * 4, rel=1e-5)
    assert set(terms[1]) == {"loss_discriminator"}


def test_a_lazy_term_of_g_counts_the_steps_of_g() -> None:
    constant_term = LossTerm(
        function=lambda step: torch.ones(()), applies_to="generator", interval=2
    )
    objective = Objective(make_loss("wasserstein", {}), {"x": constant_term}, critic_steps=2)
    steps = [replace(make_step(Linear(3.0)), index=i) for i in range(1, 10, 2)]
    values = [float(objective.generator_terms(step).get("x", torch.zeros(()))) for step in steps]
    assert values == [2, 0, 2, 0, 2]


def test_the_default_gradient_penalty_does_not_depend_on_the_resolution() -> None:
    fine, coarse = (make_step(Linear(1.0)) for _ in range(2))
    # D of the fine image depends only on means over 2x2 pixels, like D of the coarse image.
    weight = torch.arange(1.0, 5.0).view(1, 2, 2)
    fine.discriminator.w.data = weight.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    coarse.discriminator.w.data = weight
    coarse.real = F.avg_pool2d(fine.real, 2)
    logits = (s.discriminator(s.real) for s in (fine, coarse))
    torch.testing.assert_close(*logits)
    objective = Objective(make_loss("wasserstein", {}), {"r1": make_regularizer("r1", {})})
    terms = [float(objective.discriminator_terms(s)["r1"].detach()) for s in (fine, coarse)]
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_explicit_default_options_of_r1_and_r2_change_nothing(name: str) -> None:
    defaults = option_defaults(REGULARIZERS[name])
    assert make_regularizer(name, defaults) == REGULARIZERS[name]
    for option, value in defaults.items():
        overridden = make_settings(overrides=[f"regularizers.{name}.{option}={json.dumps(value)}"])
        assert make_regularizer(name, overridden.regularizers[name]) == REGULARIZERS[name]
    for side in (16, 32, 256):
        weight = make_penalty(name, {}).weight_at((side, side))
        assert weight == pytest.approx(0.002 * side**2)  # gamma 2 at 32x32 pixels


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_gamma_is_the_published_weight_at_every_resolution(name: str) -> None:
    """γ/2 E ||∇D||² (Mescheder et al. 2018); the gradient of D has norm 3 everywhere."""
    objective = Objective(
        make_loss("wasserstein", {}), {name: make_regularizer(name, {"gamma": 10.0, "interval": 1})}
    )
    for side in (4, 8):
        step = make_step(Linear(3.0, side), side=side)
        term = objective.discriminator_terms(step)[name]
        assert float(term.detach()) == pytest.approx(10 / 2 * 3**2, rel=1e-5)


def test_gamma_and_gamma_per_pixel_cannot_be_combined() -> None:
    with pytest.raises(UserError, match=r"'regularizers.r1.gamma_per_pixel' has no effect while"):
        make_regularizer("r1", {"gamma": 1.0, "gamma_per_pixel": 0.1})


def make_penalty(name: str, options: dict[str, float | None]) -> Penalty:
    penalty = make_regularizer(name, options)
    assert isinstance(penalty, Penalty)
    return penalty


LAYERS = {
    "linear": lambda spec: ScaledLinear(6, 5, weight_spec=spec),
    "low-lr": lambda spec: ScaledLinear(6, 5, weight_spec=spec, lr_multiplier=0.01),
    "linear-to-grid": lambda spec: LinearToGrid(3, 4, (2, 2), gain=1.0, weight_spec=spec),
    "grouped": lambda spec: ScaledGroupedConv2d(8, 2, 1, gain=1.0, weight_spec=spec),
    "convolution": lambda spec: ScaledConv2d(4, 6, 1, weight_spec=spec),
}


def jacobian(layer: nn.Module) -> Tensor:
    """Return the Jacobian of a layer for a single pixel: [out, in]."""
    num_inputs = layer.weight.shape[1]  # type: ignore[union-attr,index]
    if isinstance(layer, ScaledGroupedConv2d):
        num_inputs *= layer.groups
    shape = (num_inputs,) if isinstance(layer, ScaledLinear | LinearToGrid) else (num_inputs, 1, 1)
    zero = torch.zeros(1, *shape)
    jacobian_matrix = torch.autograd.functional.jacobian(lambda x: layer.eval()(x).flatten(), zero)
    return jacobian_matrix.flatten(1)  # type: ignore[union-attr]


@pytest.mark.parametrize("weight_spec_name", WEIGHT_SPECS)
@pytest.mark.parametrize("name", LAYERS)
def test_weight_matrices_are_the_jacobians_of_the_layers(name: str, weight_spec_name: str) -> None:
    weight_spec = WEIGHT_SPECS[weight_spec_name]
    if name == "grouped" and weight_spec.uses_spectral_norm:
        return
    layer = LAYERS[name](weight_spec)  # type: ignore[no-untyped-call]
    ((_, result),) = weight_matrices(layer)
    values = torch.linalg.svdvals(result.detach()).flatten().sort(descending=True).values
    expected = torch.linalg.svdvals(jacobian(layer))[: len(values)]
    torch.testing.assert_close(values, expected)
    (largest,) = top_singular_values(layer).values()
    assert largest == pytest.approx(expected[:3].tolist(), rel=1e-3)


@pytest.mark.parametrize("name", ["linear-to-grid", "grouped", "linear"])
def test_the_largest_singular_value_of_each_layer_is_clamped(name: str) -> None:
    layer = LAYERS[name](EQUALIZED)  # type: ignore[no-untyped-call]
    step = make_step(layer, count=0)  # no images
    before = torch.linalg.svdvals(next(weight_matrices(layer))[1].detach())
    make_regularizer("singular-value-clamp", {}).after_update(layer, step)
    after = torch.linalg.svdvals(next(weight_matrices(layer))[1].detach())
    torch.testing.assert_close(after[..., 0], before[..., 1])
    torch.testing.assert_close(after[..., 1:], before[..., 1:])


def test_orthogonal_regularization_is_per_group_and_skips_the_label_embedding() -> None:
    grouped = ScaledGroupedConv2d(8, 2, 1, gain=1.0, weight_spec=NONE)
    grouped.weight.data = torch.eye(2).repeat(4, 1)[:, :, None, None]  # the identity in each group
    project = LinearToGrid(16, 4, (2, 2), gain=1.0, weight_spec=NONE)
    rows = torch.eye(16).view(2, 2, 4, 16)  # [h, w, c, z]
    project.weight.data = rows.permute(2, 3, 0, 1) + 0
    label = ScaledLinear(3, 4, weight_spec=NONE)
    network = nn.ModuleDict({"a": grouped, "b": project, "label_embedding": label})
    step = make_step(Linear(1.0))
    step.generator = network  # type: ignore[assignment]
    regularizer = make_regularizer("orthogonal", {})
    assert isinstance(regularizer, Penalty)
    assert float(regularizer.generator_term(step).detach()) == 0  # type: ignore[union-attr]
    grouped.weight.data[0, 1] = 0.5  # the inner product of its two rows is 0.5
    assert float(regularizer.generator_term(step).detach()) == pytest.approx(2 * 0.25)  # type: ignore[union-attr]


def test_orthogonal_regularization_uses_effective_weights() -> None:
    low_lr, default_lr = (
        ScaledLinear(8, 8, weight_spec=EQUALIZED, lr_multiplier=lr_multiplier)
        for lr_multiplier in (0.01, 1.0)
    )
    default_lr.weight.data = low_lr.weight.data * 0.01
    step, regularizer = make_step(Linear(1.0)), make_regularizer("orthogonal", {})
    assert isinstance(regularizer, Penalty)
    result = []
    for layer in (low_lr, default_lr):
        step.generator = layer  # type: ignore[assignment]
        result.append(regularizer.generator_term(step).detach())  # type: ignore[union-attr]
    torch.testing.assert_close(result[0], result[1])
