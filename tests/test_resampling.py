"""Strided convolutions: no checkerboard at first, and the derivatives of PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from weight_specs import EQUALIZED, NONE, WEIGHT_SPECS

from growgan.nets.resampling import CHECKERBOARD_LR_MULTIPLIER, ScaledStridedConv2d


@torch.no_grad()
def test_upsampling_starts_without_a_checkerboard_and_with_the_usual_variance() -> None:
    torch.manual_seed(0)
    drawn = {
        name: ScaledStridedConv2d(96, 96, 4, transposed=True, weight_spec=weight_spec)(
            torch.ones(1, 96, 6, 6)
        )
        for name, weight_spec in WEIGHT_SPECS.items()
    }
    for name, image in drawn.items():
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


def test_the_alternating_part_of_a_kernel_learns_more_slowly() -> None:
    """The same change of the stored weights moves the image less where it alternates."""
    torch.manual_seed(0)
    layer = ScaledStridedConv2d(4, 4, 4, transposed=True, weight_spec=EQUALIZED)
    x, turns = torch.randn(2, 4, 8, 8), torch.tensor([1.0, -1.0, 1.0, -1.0])
    with torch.no_grad():
        before, moved = layer(x), []
        for change in (torch.ones(4, 4), torch.outer(turns, torch.ones(4)), turns.outer(turns)):
            layer.weight += change
            moved.append(float((layer(x) - before).norm()))
            layer.weight -= change
    flat = torch.nn.functional.conv_transpose2d
    plain = [
        float(flat(x, change.expand(4, 4, 4, 4) * layer.weight_scale, stride=2, padding=1).norm())
        for change in (torch.ones(4, 4), torch.outer(turns, torch.ones(4)), turns.outer(turns))
    ]
    shares = [m / p for m, p in zip(moved, plain, strict=True)]
    assert shares == pytest.approx(
        [1, CHECKERBOARD_LR_MULTIPLIER, CHECKERBOARD_LR_MULTIPLIER**2], rel=1e-4
    )


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("kernel", [2, 4, 6])
def test_strided_convolutions_of_few_pixels_have_the_derivatives_of_pytorch(
    doubles: bool, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first order (by one product) and of the second (as penalties take them)."""
    monkeypatch.setattr("growgan.nets.resampling.MATMUL_MIN_WEIGHTS", 0)
    torch.manual_seed(0)
    layer = ScaledStridedConv2d(3, 5, kernel, transposed=doubles, weight_spec=NONE).double()
    size = (2, 4) if doubles else (4, 8)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    call = F.conv_transpose2d if doubles else F.conv2d
    weight = layer.weight.transpose(0, 1) if doubles else layer.weight
    theirs = call(x, weight, layer.bias, stride=2, padding=kernel // 2 - 1)
    inputs, factor = (x, layer.weight, layer.bias), torch.randn_like(theirs)
    found = []
    for y in (layer(x), theirs):
        first = torch.autograd.grad((y * factor).sum(), inputs, retain_graph=True)
        (slope,) = torch.autograd.grad((y.square() * factor).sum(), x, create_graph=True)
        second = torch.autograd.grad(slope.square().sum(), inputs)
        found.append((y.detach(), *first, *second))
    for ours, its in zip(*found, strict=True):
        torch.testing.assert_close(ours, its)
