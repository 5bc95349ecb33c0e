"""Images made from images: stacks with an encoder, and what both players are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from growgan.config import make_settings
from growgan.errors import UserError
from growgan.nets.conditioning import append_condition
from growgan.nets.growth_ops import Append, Insert, Widen, apply_edit
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.presets import PRESETS
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, LayerSpec, NetworkSpec, without_fade
from growgan.tasks.base import TASKS

KINDS = ("strided", "conv", "residual")


def spec_of(role: str, kind: str = "strided", **more: Any) -> NetworkSpec:
    layers = (
        LayerSpec("x0", kind, 12, 3, 2, "pixel" if role == "generator" else "none"),
        LayerSpec("x1", kind, 8, 3, 2, "pixel" if role == "generator" else "none"),
    )
    shared: dict[str, Any] = {
        "base_grid": (4, 4),
        "image_channels": 1,
        "stem_width": 16,
        "layers": layers,
        "source_channels": 2,
    }
    if role == "generator":
        return GeneratorSpec(latent_dim=6, **shared, **more)
    return DiscriminatorSpec(**shared, **more)


def rows(spec: NetworkSpec, count: int = 3, side: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(count, spec.latent_dim, generator=rng)
    return append_condition(
        spec, z, source_images=torch.rand(count, 2, side, side, generator=rng) * 2 - 1
    )


def awake(stack: Generator | Discriminator) -> None:
    """Give every weight a value: nothing is the identity because a branch is still zero."""
    rng = torch.Generator().manual_seed(5)
    for weight in stack.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=rng)


def test_what_is_given_decides_the_image() -> None:
    spec = spec_of("generator")
    g = build_network(spec, 0)
    z = rows(spec)
    other = z.clone()
    other[:, spec.latent_dim :] = -other[:, spec.latent_dim :]
    assert g(z).shape == (3, 1, 16, 16)
    assert (g(z) - g(other)).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_pixel_reaches_its_own_place_first(kind: str) -> None:
    """The skips keep places: what is given in a corner changes that corner most."""
    spec = spec_of("generator", kind)
    g = build_network(spec, 0)
    z = rows(spec)
    turned = z.clone().unflatten(1, (-1,))
    turned[:, spec.latent_dim] += 1.0  # the upper left pixel of the first channel
    change = (g(turned) - g(z)).abs().mean((0, 1))
    assert change[:4, :4].mean() > 4 * change[12:, 12:].mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_appended_changes_nothing_at_first(kind: str, factor: int) -> None:
    spec = spec_of("generator", kind)
    g = build_network(spec, 0)
    awake(g)
    child = apply_edit(g, Append((LayerSpec("x", kind, 8, 3, factor),)), 3)
    given = torch.rand(3, 2, 32, 32) * 2 - 1
    z = torch.randn(3, spec.latent_dim)
    before = g(append_condition(spec, z, source_images=given))
    after = child(append_condition(child.spec, z, source_images=given))
    if factor == 2:
        before = before.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(after, before, atol=1e-5)
    child.set_alpha(1.0)
    faded = child(append_condition(child.spec, z, source_images=given))
    child.finish_fade()
    assert torch.allclose(
        child(append_condition(child.spec, z, source_images=given)), faded, atol=1e-5
    )


@pytest.mark.parametrize("place", [None, "x0", "x1"])
def test_what_is_inserted_changes_nothing_at_first(place: str | None) -> None:
    spec = spec_of("generator")
    g = build_network(spec, 0)
    awake(g)
    child = apply_edit(g, Insert(place), 3)
    assert torch.allclose(child(rows(spec)), g(rows(spec)), atol=1e-5)


def test_what_is_made_is_added_to_the_last_channels_given() -> None:
    spec = spec_of("generator", residual_output=True)
    g, z = build_network(spec, 0), rows(spec_of("generator"))
    last = z[:, spec.latent_dim :].unflatten(1, (2, 16, 16))[:, 1:]
    assert torch.equal(g(z), last)
    awake(g)
    assert (g(z) - last).abs().mean() > 1e-3
    plain = build_network(replace(spec, residual_output=False), 0)
    plain.load_state_dict(g.state_dict())
    assert torch.allclose(plain(z) + last, g(z), atol=1e-6)
    child = apply_edit(g, Append((LayerSpec("x", "strided", 8, 3, 1),)), 3)
    assert torch.allclose(child(z), g(z), atol=1e-5)
    with pytest.raises(
        UserError, match="residual_output needs source images with at least as many channels"
    ):
        replace(spec, image_channels=3)


def test_the_encoder_is_told_the_label() -> None:
    spec = spec_of("generator", label_dim=3)
    g = build_network(spec, 0)
    z, label, given = rows(spec).split([spec.latent_dim, 3, 2 * 16 * 16], 1)
    seen: list[Tensor] = []
    g.source_encoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made = g(torch.cat([z, label, given], 1))
    assert torch.equal(seen[0][:, :2].flatten(1), given)
    assert torch.equal(seen[0][:, 2:], label[:, :, None, None].expand(-1, -1, 16, 16))
    many = build_network(replace(spec, label_dim=100), 0)  # more than images may have channels
    assert (
        many(append_condition(many.spec, z, source_images=given.unflatten(1, (2, 16, 16)))).shape
        == made.shape
    )
    wider = apply_edit(g, Widen(), 3)
    assert torch.allclose(wider(torch.cat([z, label, given], 1)), made, atol=1e-4)
    other = g(torch.cat([z, label.roll(1, 1), given], 1))
    assert (made - other).abs().mean() > 1e-3


def test_a_wider_stack_computes_what_it_did() -> None:
    spec = spec_of("generator")
    g = build_network(spec, 0)
    awake(g)
    child = apply_edit(g, Widen(), 3)
    assert (
        child.subnetworks["source_encoder"].num_parameters()
        > 3 * g.subnetworks["source_encoder"].num_parameters()
    )
    assert torch.allclose(child(rows(spec)), g(rows(spec)), atol=1e-4)


def test_d_sees_what_was_given_beside_the_image() -> None:
    spec = spec_of("discriminator")
    d = build_network(spec, 0)
    x, given = torch.rand(3, 1, 16, 16), torch.rand(3, 2, 16, 16)
    one, other = d(x, given.flatten(1)), d(x, given.flip(0).flatten(1))
    assert one.shape == (3,) and (one - other)[[0, 2]].abs().min() > 1e-4
    assert torch.allclose(one[1], other[1], atol=1e-5)


def test_patches_are_judged_each_for_itself() -> None:
    spec = replace(spec_of("discriminator"), patch_discriminator=True, source_channels=0)
    d = build_network(spec, 0)
    awake(d)
    x = torch.rand(2, 1, 16, 16)
    changed = x.clone()
    changed[:, :, 15, 15] += 1.0
    logits, moved = d(x).view(2, 4, 4), d(changed).view(2, 4, 4)
    assert (logits - moved)[:, 3, 3].abs().min() > 1e-5
    assert torch.allclose(logits[:, 0, 0], moved[:, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("side", "places"), [(16, 4), (32, 4), (64, 8), (256, 32)])
def test_patches_are_no_coarser_than_an_eighth_of_the_images(side: int, places: int) -> None:
    """64, 128 and 256 channels on the way to a grid of 512, as published; G's alike, to 4x4."""
    published = TASKS["pix2pix"].published_settings(side)
    shape = make_settings(published).network
    d = PRESETS["pggan"].network_spec(
        "discriminator", shape.for_role("discriminator"), 3, (side, side)
    )
    g = PRESETS["pggan"].network_spec("generator", shape.for_role("generator"), 3, (side, side))
    assert d.base_grid == (places, places) and g.base_grid == (4, 4)
    halvings = side // places
    assert [layer.width for layer in d.layers] == [256, 128, 64][: len(d.layers)]
    assert d.stem_width == 512 and halvings == 2 ** len(d.layers)
    assert g.layers[-1].width == (64 if side >= 32 else 128)
    whole = make_settings(published, {"network": {"base_grid": (4, 4)}}).network
    assert PRESETS["pggan"].family.base_grid(whole, (side, side), "discriminator") == (4, 4)


def test_a_patch_sees_fifty_four_pixels() -> None:
    shape = make_settings(
        TASKS["pix2pix"].published_settings(64), {"network": {"width": 16}}
    ).network
    d = build_network(
        PRESETS["pggan"].network_spec(
            "discriminator", shape.for_role("discriminator"), 1, (64, 64)
        ),
        0,
    )
    awake(d)
    x = torch.rand(2, 1, 64, 64).requires_grad_()
    d.train(False)
    d(x).view(2, 8, 8)[0, 4, 4].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs() > 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == 54


def test_a_stack_of_another_form_cannot_be_given_images() -> None:
    with pytest.raises(UserError, match="the ends 'dcgan' do not support source images"):
        build_network(replace(spec_of("generator"), ends="dcgan"), 0)
    assert without_fade(spec_of("generator")).source_channels == 2
