"""Image-to-image networks: the source encoder of G, the source input of D, and patches."""

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

BLOCK_NAMES = ("strided", "conv", "residual")


def make_spec(role: str, block: str = "strided", **fields: Any) -> NetworkSpec:
    layers = (
        LayerSpec("x0", block, 12, 3, 2, "pixel" if role == "generator" else "none"),
        LayerSpec("x1", block, 8, 3, 2, "pixel" if role == "generator" else "none"),
    )
    shared: dict[str, Any] = {
        "base_grid": (4, 4),
        "image_channels": 1,
        "stem_width": 16,
        "layers": layers,
        "source_channels": 2,
    }
    if role == "generator":
        return GeneratorSpec(latent_dim=6, **shared, **fields)
    return DiscriminatorSpec(**shared, **fields)


def generator_input(spec: NetworkSpec, count: int = 3, side: int = 16) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(count, spec.latent_dim, generator=rng)
    return append_condition(
        spec, z, source_images=torch.rand(count, 2, side, side, generator=rng) * 2 - 1
    )


def randomize(network: Generator | Discriminator) -> None:
    """Add noise to every weight, so that no branch is still zero."""
    rng = torch.Generator().manual_seed(5)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=rng)


def test_the_source_image_changes_the_output() -> None:
    spec = make_spec("generator")
    g = build_network(spec, 0)
    z = generator_input(spec)
    inverted = z.clone()
    inverted[:, spec.latent_dim :] = -inverted[:, spec.latent_dim :]
    assert g(z).shape == (3, 1, 16, 16)
    assert (g(z) - g(inverted)).abs().mean() > 1e-3


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_a_source_pixel_mostly_changes_the_output_at_its_position(block: str) -> None:
    """Skip connections preserve positions: a pixel in a corner changes that corner most."""
    spec = make_spec("generator", block)
    g = build_network(spec, 0)
    z = generator_input(spec)
    changed = z.clone().unflatten(1, (-1,))
    changed[:, spec.latent_dim] += 1.0  # the upper left pixel of the first channel
    change = (g(changed) - g(z)).abs().mean((0, 1))
    assert change[:4, :4].mean() > 4 * change[12:, 12:].mean()


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("factor", [1, 2])
def test_an_appended_layer_preserves_the_function_at_first(block: str, factor: int) -> None:
    spec = make_spec("generator", block)
    g = build_network(spec, 0)
    randomize(g)
    child = apply_edit(g, Append((LayerSpec("x", block, 8, 3, factor),)), 3)
    source_images = torch.rand(3, 2, 32, 32) * 2 - 1
    z = torch.randn(3, spec.latent_dim)
    before = g(append_condition(spec, z, source_images=source_images))
    after = child(append_condition(child.spec, z, source_images=source_images))
    if factor == 2:
        before = before.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(after, before, atol=1e-5)
    child.set_alpha(1.0)
    faded = child(append_condition(child.spec, z, source_images=source_images))
    child.finish_fade()
    assert torch.allclose(
        child(append_condition(child.spec, z, source_images=source_images)), faded, atol=1e-5
    )


@pytest.mark.parametrize("position", [None, "x0", "x1"])
def test_an_inserted_layer_preserves_the_function(position: str | None) -> None:
    spec = make_spec("generator")
    g = build_network(spec, 0)
    randomize(g)
    child = apply_edit(g, Insert(position), 3)
    assert torch.allclose(child(generator_input(spec)), g(generator_input(spec)), atol=1e-5)


def test_residual_output_is_added_to_the_last_source_channels() -> None:
    spec = make_spec("generator", residual_output=True)
    g, z = build_network(spec, 0), generator_input(make_spec("generator"))
    last_channel = z[:, spec.latent_dim :].unflatten(1, (2, 16, 16))[:, 1:]
    assert torch.equal(g(z), last_channel)
    randomize(g)
    assert (g(z) - last_channel).abs().mean() > 1e-3
    plain = build_network(replace(spec, residual_output=False), 0)
    plain.load_state_dict(g.state_dict())
    assert torch.allclose(plain(z) + last_channel, g(z), atol=1e-6)
    child = apply_edit(g, Append((LayerSpec("x", "strided", 8, 3, 1),)), 3)
    assert torch.allclose(child(z), g(z), atol=1e-5)
    with pytest.raises(
        UserError, match="residual_output needs source images with at least as many channels"
    ):
        replace(spec, image_channels=3)


def test_the_source_encoder_receives_the_label() -> None:
    spec = make_spec("generator", label_dim=3)
    g = build_network(spec, 0)
    z, label, source = generator_input(spec).split([spec.latent_dim, 3, 2 * 16 * 16], 1)
    encoder_inputs: list[Tensor] = []
    g.source_encoder.head.register_forward_pre_hook(
        lambda _, inputs: encoder_inputs.append(inputs[0])
    )
    images = g(torch.cat([z, label, source], 1))
    assert torch.equal(encoder_inputs[0][:, :2].flatten(1), source)
    assert torch.equal(encoder_inputs[0][:, 2:], label[:, :, None, None].expand(-1, -1, 16, 16))
    g_of_100_classes = build_network(
        replace(spec, label_dim=100), 0
    )  # more than the maximum number of image channels
    assert (
        g_of_100_classes(
            append_condition(
                g_of_100_classes.spec, z, source_images=source.unflatten(1, (2, 16, 16))
            )
        ).shape
        == images.shape
    )
    wider = apply_edit(g, Widen(), 3)
    assert torch.allclose(wider(torch.cat([z, label, source], 1)), images, atol=1e-4)
    other_label_images = g(torch.cat([z, label.roll(1, 1), source], 1))
    assert (images - other_label_images).abs().mean() > 1e-3


def test_a_widened_generator_preserves_its_function() -> None:
    spec = make_spec("generator")
    g = build_network(spec, 0)
    randomize(g)
    child = apply_edit(g, Widen(), 3)
    assert (
        child.subnetworks["source_encoder"].num_parameters()
        > 3 * g.subnetworks["source_encoder"].num_parameters()
    )
    assert torch.allclose(child(generator_input(spec)), g(generator_input(spec)), atol=1e-4)


def test_d_depends_on_the_source_images() -> None:
    spec = make_spec("discriminator")
    d = build_network(spec, 0)
    x, source = torch.rand(3, 1, 16, 16), torch.rand(3, 2, 16, 16)
    logits, flipped_logits = d(x, source.flatten(1)), d(x, source.flip(0).flatten(1))
    assert logits.shape == (3,) and (logits - flipped_logits)[[0, 2]].abs().min() > 1e-4
    assert torch.allclose(logits[1], flipped_logits[1], atol=1e-5)


def test_the_logit_of_a_patch_depends_only_on_that_patch() -> None:
    spec = replace(make_spec("discriminator"), patch_discriminator=True, source_channels=0)
    d = build_network(spec, 0)
    randomize(d)
    x = torch.rand(2, 1, 16, 16)
    changed = x.clone()
    changed[:, :, 15, 15] += 1.0
    logits, changed_logits = d(x).view(2, 4, 4), d(changed).view(2, 4, 4)
    assert (logits - changed_logits)[:, 3, 3].abs().min() > 1e-5
    assert torch.allclose(logits[:, 0, 0], changed_logits[:, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("side", "patches"), [(16, 4), (32, 4), (64, 8), (256, 32)])
def test_the_patch_grid_is_as_fine_as_published(side: int, patches: int) -> None:
    """As published, D has 64, 128, 256 and 512 channels, and the grid of G is 4x4."""
    published = TASKS["pix2pix"].published_settings(side)
    shape = make_settings(published).network
    d = PRESETS["pggan"].network_spec(
        "discriminator", shape.for_role("discriminator"), 3, (side, side)
    )
    g = PRESETS["pggan"].network_spec("generator", shape.for_role("generator"), 3, (side, side))
    assert d.base_grid == (patches, patches) and g.base_grid == (4, 4)
    halvings = side // patches
    assert [layer.width for layer in d.layers] == [256, 128, 64][: len(d.layers)]
    assert d.stem_width == 512 and halvings == 2 ** len(d.layers)
    assert g.layers[-1].width == (64 if side >= 32 else 128)
    shape_4x4 = make_settings(published, {"network": {"base_grid": (4, 4)}}).network
    assert PRESETS["pggan"].family.base_grid(shape_4x4, (side, side), "discriminator") == (4, 4)


def test_the_receptive_field_of_a_patch_has_54_pixels() -> None:
    shape = make_settings(
        TASKS["pix2pix"].published_settings(64), {"network": {"width": 16}}
    ).network
    d = build_network(
        PRESETS["pggan"].network_spec(
            "discriminator", shape.for_role("discriminator"), 1, (64, 64)
        ),
        0,
    )
    randomize(d)
    x = torch.rand(2, 1, 64, 64).requires_grad_()
    d.train(False)
    d(x).view(2, 8, 8)[0, 4, 4].backward()
    assert x.grad is not None
    has_gradient = x.grad[0, 0].abs() > 0
    assert int(has_gradient.any(0).sum()) == int(has_gradient.any(1).sum()) == 54


def test_ends_without_support_for_source_images_are_refused() -> None:
    with pytest.raises(UserError, match="the ends 'dcgan' do not support source images"):
        build_network(replace(make_spec("generator"), ends="dcgan"), 0)
    assert without_fade(make_spec("generator")).source_channels == 2
