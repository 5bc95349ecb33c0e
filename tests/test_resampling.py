"""Strided convolutions: no initial checkerboard, and the same derivatives as PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from weight_specs import EQUALIZED, NONE, WEIGHT_SPECS

from growgan.nets.resampling import CHECKERBOARD_LR_MULTIPLIER, ScaledStridedConv2d


@torch.no_grad()
def test_upsampling_has_no_initial_checkerboard_and_the_usual_variance() -> None:
    torch.manual_seed(0)
    images = {
        name: ScaledStridedConv2d(96, 96, 4, transposed=True, weight_spec=weight_spec)(
            torch.ones(1, 96, 6, 6)
        )
        for name, weight_spec in WEIGHT_SPECS.items()
    }
    for name, image in images.items():
        inside = image[:, :, 2:-2, 2:-2]
        checkerboard = float(inside.std((2, 3)).mean())
        is_damped = name in ("equalized", "width")
        assert (checkerboard < 1e-4 * float(inside.std())) == is_damped, name
    x = torch.randn(16, 96, 8, 8)
    damped, undamped = (
        float(ScaledStridedConv2d(96, 96, 4, transposed=True, weight_spec=weight_spec)(x).std())
        for weight_spec in (EQUALIZED, NONE)
    )
    assert damped == pytest.approx(undamped, rel=0.1)


def test_the_checkerboard_part_of_a_kernel_learns_more_slowly() -> None:
    """The same change of the stored weights changes the image less if its signs alternate."""
    torch.manual_seed(0)
    layer = ScaledStridedConv2d(4, 4, 4, transposed=True, weight_spec=EQUALIZED)
    x, signs = torch.randn(2, 4, 8, 8), torch.tensor([1.0, -1.0, 1.0, -1.0])
    weight_changes = (torch.ones(4, 4), torch.outer(signs, torch.ones(4)), signs.outer(signs))
    with torch.no_grad():
        before, norms = layer(x), []
        for change in weight_changes:
            layer.weight += change
            norms.append(float((layer(x) - before).norm()))
            layer.weight -= change
    undamped_norms = []
    for change in weight_changes:
        weight = change.expand(4, 4, 4, 4) * layer.weight_scale
        undamped_norms.append(float(F.conv_transpose2d(x, weight, stride=2, padding=1).norm()))
    ratios = [norm / undamped for norm, undamped in zip(norms, undamped_norms, strict=True)]
    assert ratios == pytest.approx(
        [1, CHECKERBOARD_LR_MULTIPLIER, CHECKERBOARD_LR_MULTIPLIER**2], rel=1e-4
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernel", [2, 4, 6])
def test_strided_convolutions_of_small_grids_have_the_derivatives_of_pytorch(
    transposed: bool, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First derivatives use one matrix product; penalties also need second derivatives."""
    monkeypatch.setattr("growgan.nets.resampling.MATMUL_MIN_WEIGHTS", 0)
    torch.manual_seed(0)
    layer = ScaledStridedConv2d(3, 5, kernel, transposed=transposed, weight_spec=NONE).double()
    size = (2, 4) if transposed else (4, 8)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    convolution = F.conv_transpose2d if transposed else F.conv2d
    weight = layer.weight.transpose(0, 1) if transposed else layer.weight
    reference = convolution(x, weight, layer.bias, stride=2, padding=kernel // 2 - 1)
    inputs, upstream = (x, layer.weight, layer.bias), torch.randn_like(reference)
    derivatives = []
    for y in (layer(x), reference):
        first = torch.autograd.grad((y * upstream).sum(), inputs, retain_graph=True)
        (gradient,) = torch.autograd.grad((y.square() * upstream).sum(), x, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), inputs)
        derivatives.append((y.detach(), *first, *second))
    for result, expected in zip(*derivatives, strict=True):
        torch.testing.assert_close(result, expected)
