"""Networks, layers and edits, compared with hand-derived values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weight_specs import EQUALIZED, NONE, WEIGHT_SPECS

from growgan.config import NetworkConfig, make_settings
from growgan.errors import UserError
from growgan.nets.flops import count_parameters
from growgan.nets.growth_ops import (
    Append,
    Edit,
    Insert,
    Widen,
    apply_edit,
    edit_from_json,
    edit_to_json,
    plan_transfers,
)
from growgan.nets.layers import LinearToGrid, ScaledConv2d, ScaledWeight
from growgan.nets.minibatch import MinibatchStdDev
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.norms import PixelNorm
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import resolve_base_grid, stage_width
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec, LayerSpec, NetworkSpec

BLOCK_NAMES = ("conv", "strided", "residual")


def g_spec(block: str = "conv", base: tuple[int, int] = (4, 4), channels: int = 1) -> NetworkSpec:
    layers = (
        LayerSpec("g0", block, 16),
        LayerSpec("g1", block, 12, resample_factor=2),
        LayerSpec("g2", block, 12, kernel_size=5),
    )
    return GeneratorSpec(
        base_grid=base, image_channels=channels, stem_width=16, layers=layers, latent_dim=32
    )


def d_spec(block: str = "conv", base: tuple[int, int] = (4, 4), channels: int = 1) -> NetworkSpec:
    layers = (
        LayerSpec("d0", block, 16, norm="none"),
        LayerSpec("d1", block, 12, resample_factor=2, norm="none"),
        LayerSpec("d2", block, 12, kernel_size=5, norm="none"),
    )
    return DiscriminatorSpec(
        base_grid=base, image_channels=channels, stem_width=16, layers=layers, mbstd_group_size=4
    )


def energy_spec(block: str = "conv") -> NetworkSpec:
    return replace(d_spec(block), is_autoencoder=True)


def randomized_network(spec: NetworkSpec, seed: int = 0) -> Generator | Discriminator:
    """Return a network with random parameters, so that no bias or branch is still zero."""
    network = build_network(spec, seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return network.requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_pixel_norm_divides_by_the_root_mean_square_over_channels() -> None:
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    expected = torch.tensor([3.0, 4.0]) / math.sqrt(12.5)
    torch.testing.assert_close(PixelNorm()(x).flatten(), expected, rtol=1e-6, atol=0)


def test_minibatch_stddev_appends_the_mean_deviation_of_each_group() -> None:
    x = torch.zeros(4, 1, 1, 2)
    x[0], x[1], x[2], x[3] = 1.0, 3.0, 10.0, 10.0
    out = MinibatchStdDev(2)(x)
    assert out.shape == (4, 2, 1, 2)
    # The biased standard deviation of {1, 3} is 1; that of {10, 10} is sqrt(1e-8).
    torch.testing.assert_close(out[:2, 1], torch.ones(2, 1, 2), rtol=1e-4, atol=0)
    torch.testing.assert_close(out[2:, 1], torch.full((2, 1, 2), 1e-4), rtol=1e-3, atol=0)


def test_equalized_weights_are_unit_normal_and_scaled_by_gain_over_root_fan_in() -> None:
    torch.manual_seed(0)
    conv = ScaledConv2d(32, 64, 3)
    assert abs(float(conv.weight.detach().std()) - 1) < 0.02
    assert conv.weight_scale == pytest.approx(math.sqrt(2) / math.sqrt(32 * 9))
    x = noise(2, 32, 5, 5)
    expected = F.conv2d(x, conv.weight * math.sqrt(2 / 288), conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)
    plain = ScaledConv2d(32, 64, 3, weight_spec=NONE)
    assert plain.weight_scale == 1.0
    assert float(plain.weight.detach().std()) == pytest.approx(math.sqrt(2 / 288), rel=0.03)


@pytest.mark.parametrize("width", [8, 32, 64, 256])
def test_width_scaled_learning_rates_limit_the_change_of_an_output(width: int) -> None:
    conv = ScaledConv2d(width, 4, 3, weight_spec=WEIGHT_SPECS["width"])
    effective_std = float((conv.weight * conv.weight_scale).detach().std())
    assert effective_std == pytest.approx(math.sqrt(2 / (9 * width)), rel=0.1)
    # A step of Adam changes every stored weight by the learning rate; equal inputs add up.
    change = conv.weight_scale * 9 * width
    at_reference = math.sqrt(2 * 288)
    assert change == pytest.approx(at_reference * min(1.0, math.sqrt(width / 32)))


def test_linear_to_grid_is_a_linear_map_onto_the_grid() -> None:
    layer = LinearToGrid(8, 3, (2, 5), gain=1.0, weight_spec=EQUALIZED)
    z = noise(4, 8)
    expected = torch.einsum("nz,czhw->nchw", z, layer.weight / math.sqrt(8))
    torch.testing.assert_close(layer(z), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("resample", [1, 2])
def test_every_block_and_kernel_size_keeps_or_doubles_the_resolution(
    block: str, kernel: int, resample: int
) -> None:
    layer = LayerSpec("g0", block, 10, kernel, resample)
    g = build_network(
        GeneratorSpec(
            base_grid=(4, 6), image_channels=3, stem_width=8, layers=(layer,), latent_dim=16
        ),
        0,
    )
    mirrored = LayerSpec("d0", block, 10, kernel, resample, norm="none")
    d = build_network(
        DiscriminatorSpec(base_grid=(4, 6), image_channels=3, stem_width=8, layers=(mirrored,)), 0
    )
    x = g(noise(2, 16))
    assert x.shape == (2, 3, 4 * resample, 6 * resample)
    assert d(x).shape == (2,)


def test_a_network_rebuilt_from_json_is_identical() -> None:
    spec = g_spec("residual", (5, 3), 4)
    restored = NetworkSpec.from_json(spec.to_json())
    assert restored == spec and hash(restored) == hash(spec)
    z = noise(2, 32)
    assert torch.equal(build_network(spec, 3)(z), build_network(restored, 3)(z))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem_width": 0}, "stem_width must be greater than or equal to 1, but got 0"),
        ({"stem_width": 1.5}, "stem_width must be a valid integer, but got 1.5"),
        ({"stem_width": True}, "stem_width must be a valid integer, but got True"),
        ({"num_fading_layers": 9}, r"num_fading_layers must be at most 3 \(layers\), but got 9"),
        ({"color": 1}, "a network spec has no field 'color'"),
        ({"mbstd_group_size": 4}, "a network spec has no field 'mbstd_group_size'"),
        ({"base_grid": None}, "base_grid must be a valid tuple, but got None"),
        ({"role": "critic"}, "'critic' found using 'role' does not match"),
    ],
)
def test_an_invalid_spec_is_refused_with_its_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkSpec.from_json({**g_spec().to_json(), **change})


EDITS: list[Edit] = [
    Append((LayerSpec("x", "conv", 9, 5, 2, "none"), LayerSpec("x", "conv", 8, norm="none"))),
    Append((LayerSpec("x", "residual", 9, 7, 1, "none"),)),
    Insert("?1", 3, "none"),
    Insert(None, 3, "none"),
    Widen(),
    Widen("stem"),
    Widen("?0"),
    Widen("?2"),
]


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edit_preserves_the_function_of_the_generator(block: str, edit: Edit) -> None:
    parent = randomized_network(g_spec(block))
    z = noise(8, 32)
    before = parent(z)
    child = apply_edit(parent, _with_layer_prefix(edit, "g"), seed=5)
    expected = F.interpolate(before, scale_factor=edit.resample_factor)
    scale = float(before.abs().max())
    assert float((child(z) - expected).detach().abs().max()) <= 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("make", [d_spec, energy_spec])
@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_an_edit_preserves_the_function_of_the_discriminator(
    block: str, edit: Edit, make: Callable[[str], NetworkSpec]
) -> None:
    parent = randomized_network(make(block))
    x = noise(8, 1, 8, 8)
    before = parent(x)
    child = apply_edit(parent, _with_layer_prefix(edit, "d"), seed=5)
    after = child(F.interpolate(x, scale_factor=edit.resample_factor))
    scale = float(before.abs().max())
    assert float((after - before).detach().abs().max()) <= 1e-5 * max(1.0, scale)


def _with_layer_prefix(edit: Edit, prefix: str) -> Edit:
    values = {
        name: value.replace("?", prefix) if isinstance(value, str) else value
        for name, value in vars(edit).items()
    }
    return type(edit)(**values)


def test_fade_in_blends_old_and_new_layers_in_both_networks() -> None:
    layer = LayerSpec("x", "conv", 9, 3, 2)
    g = apply_edit(randomized_network(g_spec()), Append((layer,)), 1)
    d = apply_edit(randomized_network(d_spec()), Append((layer,)), 1)
    z, x = noise(4, 32), noise(4, 1, 16, 16)

    def output_at(network: nn.Module, inputs: Tensor, alpha: float) -> Tensor:
        network.alpha.fill_(alpha)  # type: ignore[operator]
        return network(inputs)

    blend = 0.25 * output_at(g, z, 1.0) + 0.75 * output_at(g, z, 0.0)
    torch.testing.assert_close(output_at(g, z, 0.25), blend, rtol=1e-5, atol=1e-5)
    # D blends features, not logits: blend the features and apply the remaining layers.
    assert isinstance(d, Discriminator) and d.previous_head is not None
    new = d.layers["d3"](d.head(x))
    old = d.previous_head(F.avg_pool2d(x, 2))
    h = 0.25 * new + 0.75 * old
    for name in ("d2", "d1", "d0"):
        h = d.layers[name](h)
    features = d.epilogue(h)
    torch.testing.assert_close(output_at(d, x, 0.25), d.logits(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", BLOCK_NAMES)
@pytest.mark.parametrize("edit", EDITS, ids=str)
@pytest.mark.parametrize("make", [g_spec, d_spec])
def test_an_edit_keeps_the_statistics_of_batch_normalization(
    make: Callable[[str], NetworkSpec], edit: Edit, block: str
) -> None:
    plain = make(block)
    spec = replace(plain, layers=tuple(replace(layer, norm="batch") for layer in plain.layers))
    parent = randomized_network(spec)
    rng = torch.Generator().manual_seed(3)
    for name, value in parent.named_buffers():
        if "running" in name:
            value.copy_(torch.rand(value.shape, generator=rng) + 0.5)
    parent.eval()
    inputs = noise(8, 32) if spec.role == "generator" else noise(8, 1, 8, 8)
    before, child = (
        parent(inputs),
        apply_edit(parent, _with_layer_prefix(edit, spec.role[0]), seed=5).eval(),
    )
    if spec.role == "generator":
        after, before = child(inputs), F.interpolate(before, scale_factor=edit.resample_factor)
    else:
        after = child(F.interpolate(inputs, scale_factor=edit.resample_factor))
    scale = float(before.abs().max())
    assert float((after - before).detach().abs().max()) <= 1e-5 * max(1.0, scale)


def test_energies_are_mean_reconstruction_errors_during_and_after_a_fade_in() -> None:
    d = apply_edit(
        randomized_network(energy_spec()), Append((LayerSpec("x", "conv", 9, 3, 2, "none"),)), 1
    )
    assert isinstance(d, Discriminator)
    x = noise(4, 1, 16, 16)
    for alpha in (0.0, 0.3, 1.0):
        d.set_alpha(alpha)
        assert float(d.decoder.alpha) == float(d.alpha) == pytest.approx(alpha)
        reconstruction = d.decoder(d.features(x))
        torch.testing.assert_close(d(x), (x - reconstruction).abs().mean((1, 2, 3)))
    energy = d(x)
    d.finish_fade()
    torch.testing.assert_close(d(x), energy, rtol=0, atol=0)
    assert set(d.state_dict()) == set(build_network(d.spec).state_dict())


def test_finish_fade_keeps_only_the_new_head() -> None:
    g = apply_edit(randomized_network(g_spec()), Append((LayerSpec("x", "conv", 9, 3, 2),)), 1)
    g.alpha.fill_(1.0)
    z = noise(4, 32)
    faded = g(z)
    g.finish_fade()
    assert g.spec.num_fading_layers == 0 and g.previous_head is None
    torch.testing.assert_close(g(z), faded, rtol=0, atol=0)
    assert torch.equal(g(z), g(z)) and set(g.state_dict()) == set(
        build_network(g.spec).state_dict()
    )


@pytest.mark.parametrize("make", [g_spec, d_spec, energy_spec])
@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_every_linear_map_of_a_network_that_can_be_widened_names_its_widths(
    block: str, make: Callable[[str], NetworkSpec]
) -> None:
    network = build_network(make(block), 0)
    names = {"stem", *(layer.id for layer in network.spec.layers)}
    linear_maps = [s for s in network.slots().values() if isinstance(s.module, ScaledWeight)]
    assert len(linear_maps) > len(network.layers)
    for slot in linear_maps:
        widths = {slot.widths.inputs, slot.widths.outputs} - {None}
        assert widths and widths <= names, slot.name


def test_only_an_appended_layer_renames_the_image_head() -> None:
    parent = randomized_network(g_spec())
    for edit, child_name in [
        (Append((LayerSpec("x", width=9), LayerSpec("x", width=8))), "heads.g3.conv.weight"),
        (Insert("g2", 3, "none"), "heads.image.conv.weight"),
        (Widen(), "heads.image.conv.weight"),
    ]:
        transfers = plan_transfers(parent, apply_edit(parent, edit, 1), edit)
        assert transfers["heads.image.conv.weight"].child_name == child_name
        assert len({transfer.child_name for transfer in transfers.values()}) == len(transfers)
        assert transfers.keys() == parent.state_dict().keys() - {"alpha"}


def test_duplicated_channels_get_different_gradients() -> None:
    child = apply_edit(randomized_network(g_spec()), Widen(), 3).requires_grad_()
    child(noise(8, 32)).square().sum().backward()
    gradient = child.layers["g1"].conv.weight.grad
    assert isinstance(gradient, Tensor)
    first, second = gradient.chunk(2)
    assert float((first - second).norm() / first.norm()) > 0.01


@pytest.mark.parametrize("edit", EDITS)
def test_edits_round_trip_through_json(edit: Edit) -> None:
    assert edit_from_json(edit_to_json(edit)) == edit


def test_widths_follow_the_published_formula() -> None:
    shape = NetworkConfig(width=512, full_width_scale=8)
    widths = [stage_width(shape, 2**s) for s in range(9)]
    # Karras et al. 2018, table 2: 512 up to 32 x 32, then 256, 128, ... 16 at 1024 x 1024.
    assert widths == [512, 512, 512, 512, 256, 128, 64, 32, 16]


def test_pggan_at_1024_pixels_has_the_published_size() -> None:
    # Karras et al. 2018, table 2: 23.1 M parameters in G and in D at 1024 x 1024.
    shape = NetworkConfig(
        block="conv", latent_dim=512, width=512, layers_per_resolution=2, full_width_scale=8
    )
    for role in ("generator", "discriminator"):
        spec = PRESETS["pggan"].network_spec(role, shape, 3, (1024, 1024))  # type: ignore[arg-type]
        with torch.device("meta"):
            network = (Generator if role == "generator" else Discriminator)(spec)
        assert network.num_parameters() == pytest.approx(23.1e6, rel=0.005)
        assert len(spec.layers) == 16 + (role == "generator")


@pytest.mark.parametrize(
    ("target", "base"),
    [((32, 32), (4, 4)), ((48, 32), (6, 4)), ((28, 28), (7, 7)), ((5, 5), (5, 5))],
)
def test_the_base_grid_is_the_smallest_with_sides_of_at_least_four(
    target: tuple[int, int], base: tuple[int, int]
) -> None:
    assert resolve_base_grid(target) == base


def test_an_unreachable_resolution_is_refused_with_alternatives() -> None:
    with pytest.raises(
        UserError, match=r"37x37 cannot be reached.*nearest resolutions that can are 40x40"
    ):
        resolve_base_grid((37, 37))
    with pytest.raises(UserError, match=r"by doubling the base grid 5x5, which reaches 5x5, 10x10"):
        resolve_base_grid((32, 32), (5, 5))


def published(name: str, channels: int, size: int) -> tuple[NetworkSpec, NetworkSpec]:
    """Return the published networks of a preset."""
    preset = PRESETS[name]
    shape = make_settings(preset.published_settings).network
    g, d = (
        preset.network_spec(role, shape, channels, (size, size))
        for role in ("generator", "discriminator")
    )
    return g, d


def test_dcgan_has_the_published_layers() -> None:
    """Radford et al. 2016, figure 1: 4x4x1024, 8x8x512, 16x16x256, 32x32x128, 64x64x3."""
    g, d = published("dcgan", 3, 64)
    assert [g.stem_width, *(layer.width for layer in g.layers)] == [1024, 512, 256, 128]
    assert [layer.width for layer in d.layers][::-1] == [128, 256, 512] and d.stem_width == 1024
    channels = [(1024, 512), (512, 256), (256, 128)]
    # Each convolution has a bias per channel, and its norm has a gain and a bias.
    inner = sum(16 * a * b + 3 * b for a, b in channels)
    expected = 100 * 1024 * 16 + 3 * 1024 + inner + 16 * 128 * 3 + 3
    assert count_parameters(g) == expected
    z, x = noise(2, 100), noise(2, 3, 64, 64)
    assert build_network(g, 0)(z).shape == x.shape and build_network(d, 0)(x).shape == (2,)
    assert float(build_network(g, 0)(z).detach().abs().max()) <= 1
    first = build_network(d, 0).head.conv.weight  # type: ignore[union-attr]
    assert float(first.detach().std()) == pytest.approx(0.02, rel=0.05)  # type: ignore[operator]


def test_the_original_gan_is_dense_and_has_a_fixed_resolution() -> None:
    g, d = published("gan", 1, 28)
    assert g.resolution == d.resolution == (28, 28)
    assert count_parameters(g) == 100 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 784 + 784
    z, x = noise(2, 100), noise(2, 1, 28, 28)
    assert build_network(g, 0)(z).shape == x.shape and build_network(d, 0)(x).shape == (2,)
    with pytest.raises(UserError, match="block 'dense' cannot change the resolution"):
        build_network(Append((LayerSpec("x", "dense", resample_factor=2),)).child_spec(g))


def test_pixel_norm_matches_its_formula_and_is_twice_differentiable() -> None:
    norm = PixelNorm()
    for width in (3, 80):  # computed by a matrix product and by a reduction
        x = torch.randn(2, width, 3, 2, requires_grad=True)
        expected = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)
    x = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,)) and torch.autograd.gradgradcheck(norm, (x,))
