"""Convolutions of stride 2: no lattice at first, and torch's derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from growgan.config import Rate
from growgan.nets.strided import LATTICE, StridedConv

RATES: tuple[Rate, ...] = ("plain", "normal", "equalised", "transfer", "spectral", "orthogonal")


@torch.no_grad()
def test_a_doubling_begins_without_a_lattice_and_as_large_as_ever() -> None:
    torch.manual_seed(0)
    drawn = {
        rate: StridedConv(96, 96, 4, doubles=True, rate=rate)(torch.ones(1, 96, 6, 6))
        for rate in RATES
    }
    for rate, image in drawn.items():
        inside = image[:, :, 2:-2, 2:-2]
        lattice = float(inside.std((2, 3)).mean())
        even = rate in ("equalised", "transfer")
        assert (lattice < 1e-4 * float(inside.std())) == even, rate
    x = torch.randn(16, 96, 8, 8)
    even, usual = (
        float(StridedConv(96, 96, 4, doubles=True, rate=rate)(x).std())
        for rate in ("equalised", "plain")
    )
    assert even == pytest.approx(usual, rel=0.1)


def test_what_would_draw_a_lattice_is_learnt_more_slowly() -> None:
    """The same change of the stored weights moves the image less where it alternates."""
    torch.manual_seed(0)
    layer = StridedConv(4, 4, 4, doubles=True, rate="equalised")
    x, turns = torch.randn(2, 4, 8, 8), torch.tensor([1.0, -1.0, 1.0, -1.0])
    with torch.no_grad():
        before, moved = layer(x), []
        for change in (torch.ones(4, 4), torch.outer(turns, torch.ones(4)), turns.outer(turns)):
            layer.weight += change
            moved.append(float((layer(x) - before).norm()))
            layer.weight -= change
    flat = torch.nn.functional.conv_transpose2d
    plain = [
        float(flat(x, change.expand(4, 4, 4, 4) * layer.scale, stride=2, padding=1).norm())
        for change in (torch.ones(4, 4), torch.outer(turns, torch.ones(4)), turns.outer(turns))
    ]
    shares = [m / p for m, p in zip(moved, plain, strict=True)]
    assert shares == pytest.approx([1, LATTICE, LATTICE**2], rel=1e-4)


@pytest.mark.parametrize("doubles", [False, True])
@pytest.mark.parametrize("kernel", [2, 4, 6])
def test_strided_convolutions_of_few_pixels_have_torchs_derivatives(
    doubles: bool, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first order (by one product) and of the second (as penalties take them)."""
    monkeypatch.setattr("growgan.nets.strided.MANY", 0)
    torch.manual_seed(0)
    layer = StridedConv(3, 5, kernel, doubles=doubles, rate="plain").double()
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
