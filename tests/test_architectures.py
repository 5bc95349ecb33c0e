"""Published architectures: parameter counts, the mathematics of their layers, and growth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weight_specs import EQUALIZED, NONE, SPECTRAL_NORM, WEIGHT_SPECS

from growgan.config import EditSettings, Settings, make_settings
from growgan.errors import UserError
from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.flops import count_parameters
from growgan.nets.growth_ops import Append, Insert, Widen, apply_edit
from growgan.nets.layers import LinearToGrid, ScaledConv2d, ScaledLinear, ScaledWeight
from growgan.nets.minibatch import MinibatchDiscrimination
from growgan.nets.networks import Discriminator, Generator, build_network
from growgan.nets.norms import VirtualBatchNorm
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.resampling import (
    ScaledStridedConv2d,
    blur_conv_downsample,
    downsample_blur,
    downsample_lowpass,
    upsample_blur,
    upsample_conv_blur,
    upsample_lowpass,
)
from growgan.nets.spec import (
    DiscriminatorSpec,
    GeneratorSpec,
    LayerSpec,
    NetworkSpec,
)
from growgan.objectives.regularizer import Penalty, make_regularizer
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.search.growth import legal_edits
from growgan.training.checkpoint import save_gan
from growgan.training.gan import Gan

NAMES = [entry.name for entry in PRESETS]
GROWING = [name for name in NAMES if name != "gan"]  # "gan" cannot double its resolution


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_block(
    block_name: str,
    out_channels: int,
    in_channels: int,
    *,
    resample_factor: int = 1,
    norm: str = "pixel",
) -> Block:
    """Return a block of a generator with random weights, in evaluation mode."""
    torch.manual_seed(0)
    layer = LayerSpec("g0", block_name, out_channels, resample_factor=resample_factor, norm=norm)
    block = BLOCKS[block_name](
        layer, in_channels, role="generator", weight_spec=EQUALIZED, style_dim=6
    )
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return block.eval().requires_grad_(False)


def published(name: str, side: int) -> tuple[NetworkSpec, NetworkSpec]:
    """Return the published networks of a preset for RGB images of ``side`` pixels."""
    preset = PRESETS[name]
    shape = make_settings(
        preset.published_settings, preset.large_image_settings if side >= 64 else {}
    ).network
    g, d = (preset.network_spec(role, shape, 3, (side, side)) for role in ROLES)
    return g, d


def small(name: str, side: int) -> tuple[NetworkSpec, NetworkSpec]:
    """Return the small networks of a preset, grown to ``side`` pixels."""
    preset = PRESETS[name]
    shape = make_settings(preset.small_settings, {"network": {"width": 16}}).network
    g, d = (preset.network_spec(role, shape, 3, (32, 32), (side, side)) for role in ROLES)
    return g, d


# Sizes


def test_sngan_has_the_published_layers_at_32_pixels() -> None:
    """Miyato et al. 2018, table 4: three blocks of 256 channels in G, four of 128 in D."""
    g, d = published("sngan", 32)

    def block_parameters(inputs: int, outputs: int, shortcut: bool) -> int:
        convolutions = 9 * inputs * outputs + 9 * outputs * outputs + 2 * outputs
        return convolutions + shortcut * (inputs * outputs + outputs)

    norms = 2 * 256
    expected = 128 * 16 * 256 + 256 + 3 * (block_parameters(256, 256, True) + 2 * norms)
    assert count_parameters(g) == expected + norms + 9 * 256 * 3 + 3
    expected = block_parameters(3, 128, True) + block_parameters(128, 128, True)
    assert count_parameters(d) == expected + 2 * block_parameters(128, 128, False) + 128 + 1
    assert [s.resolution for s in (g, d)] == [(32, 32)] * 2 and d.base_grid == (8, 8)


def test_sagan_has_attention_at_32_pixels_in_networks_for_128_pixels() -> None:
    """Zhang et al. 2019, section 5.1: on feature maps of 32×32 in both networks."""
    for spec in published("sagan", 128):
        attention_index = next(
            i for i, layer in enumerate(spec.layers) if layer.block == "attention"
        )
        doublings = sum(layer.resample_factor == 2 for layer in spec.layers[:attention_index])
        assert spec.base_grid[0] * 2**doublings == 32 and spec.weight_spec == SPECTRAL_NORM


def test_biggan_has_the_published_number_of_parameters() -> None:
    """70,433,988 and 87,982,370 at 128 pixels with 1,000 classes, apart from known differences."""
    g, d = published("biggan", 128)
    # The values of their attention have C/2 channels; ours have C/8 (SAGAN, equation 2).
    extra_attention = [2 * c * (c // 2) - 2 * c * (c // 8) for c in (192, 96)]
    assert count_parameters(d) + 1000 * 1536 + extra_attention[1] == 87_982_370
    normalized_channels = 96 * (16 + 16 + 16 + 8 + 8 + 4 + 4 + 2 + 2 + 1)  # in all layers
    class_weights = 1000 * 128 + 128 * 2 * normalized_channels
    # Their style layers have no bias; their stem has one bias per grid cell.
    extra_biases = 15 * 16 * 96 - 2 * normalized_channels
    assert count_parameters(g) + class_weights + extra_attention[0] + extra_biases == 70_433_988


def conditional(name: str, side: int, classes: int) -> tuple[NetworkSpec, NetworkSpec]:
    """Return the default networks of a preset with projection conditioning on ``classes``."""
    preset = PRESETS[name]
    labels = {
        "label_dim": classes,
        "logit_conditioning": "projection",
        "linear_heads": (("classifier", classes),),
    }
    settings = make_settings(preset.settings_for_side(side)).network.model_copy(update=labels)
    g, d = (preset.network_spec(role, settings, 3, (side, side)) for role in ROLES)
    return g, d


@pytest.mark.parametrize(
    ("name", "millions"), [("biggan", (70.4, 88.0)), ("biggan-deep", (50.4, 34.6))]
)
def test_conditional_biggan_is_as_large_as_published(
    name: str, millions: tuple[float, float]
) -> None:
    """Brock et al. 2019: 1,000 classes at 128 pixels share one embedding (appendix B)."""
    result = [count_parameters(spec) / 1e6 for spec in conditional(name, 128, 1000)]
    assert result == pytest.approx(millions, rel=0.05)


def test_biggan_deep_has_the_published_number_of_parameters() -> None:
    """Brock et al. 2019, appendix B: 50.4 M in G and 34.6 M in D at 128 pixels."""
    g, d = published("biggan-deep", 128)
    # The class embedding has as many dimensions as the latent vector.
    with_classes = replace(g, latent_dim=2 * g.latent_dim)
    assert count_parameters(with_classes) + 1000 * 128 == pytest.approx(50.4e6, rel=0.005)
    assert count_parameters(d) + 1000 * 2048 == pytest.approx(34.6e6, rel=0.005)


def test_stylegan2_has_the_published_number_of_parameters() -> None:
    """At 256 pixels: 24,767,458 in G with its mapping network, 24,001,089 in D."""
    g, d = published("stylegan2", 256)
    assert (count_parameters(g), count_parameters(d)) == (24_767_458, 24_001_089)


@pytest.mark.parametrize(("name", "millions"), [("stylegan3", 22.3), ("stylegan3-r", 15.8)])
def test_stylegan3_is_about_as_large_as_published(name: str, millions: float) -> None:
    """Karras et al. 2021, figure 3, at 256 pixels.

    The original has 14 layers at every resolution; growgan has two per resolution, so that it can
    grow.
    """
    g, _ = published(name, 256)
    assert count_parameters(g) / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize(("name", "gamma"), [("stylegan2", 1.0), ("stylegan3", 2.0)])
def test_the_gradient_penalty_at_256_pixels_is_the_published_one(name: str, gamma: float) -> None:
    """paper256 in train.py of stylegan2-ada-pytorch; docs/configs.md of stylegan3."""
    options = PRESETS[name].settings_for_side(256)["regularizers"]["r1"]
    penalty = make_regularizer("r1", options)
    assert isinstance(penalty, Penalty)
    assert penalty.weight_at((256, 256)) == pytest.approx(gamma)


def test_pggan_has_the_published_number_of_parameters() -> None:
    """Karras et al. 2018, table 2: 23.1 M in each network at 1024 pixels."""
    assert [count_parameters(spec) / 1e6 for spec in published("pggan", 1024)] == [
        pytest.approx(23.1, abs=0.05)
    ] * 2


def test_the_discriminators_of_gan_and_dcgan_mirror_the_generators() -> None:
    """DCGAN: Radford et al. 2016, figure 1, reversed. GAN: two layers of 240 units."""
    convolutions = [(128, 256), (256, 512), (512, 1024)]
    inner = sum(16 * a * b + 3 * b for a, b in convolutions)
    assert count_parameters(published("dcgan", 64)[1]) == 16 * 3 * 128 + 128 + inner + 16 * 1024 + 1
    expected = 3 * 28**2 * 240 + 240 + 240 * 240 + 240 + 240 + 1
    assert count_parameters(published("gan", 28)[1]) == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pggan"])
def test_small_settings_differ_from_published_ones_only_in_width_and_learning_rate(
    name: str,
) -> None:
    """The loss, the regularizers and the structure of the networks are the published ones."""
    preset = PRESETS[name]
    small = make_settings(preset.small_settings)
    published = make_settings(preset.published_settings)
    assert small.loss == published.loss
    assert set(small.regularizers) == set(published.regularizers)
    for key in ("beta1", "beta2", "eps", "lr_decay_images"):
        assert getattr(small.optimizer, key) == getattr(published.optimizer, key), key
    for key in (
        "block",
        "norm",
        "discriminator_norm",
        "init",
        "parametrization",
        "lr_scaling",
        "kernel_size",
        "style_mixing_prob",
    ):
        assert getattr(small.network, key) == getattr(published.network, key), key
    assert small.network.width < published.network.width


def test_r3gan_has_the_published_layers_at_32_pixels() -> None:
    """Huang et al. 2024, table 5: eight blocks of 768 channels in each network, groups of 16."""
    g, d = published("r3gan", 32)
    block_parameters = 2 * 768 * 1536 + 1536 * 16 * 9 + 2 * 1536
    assert count_parameters(g) == 8 * block_parameters + 16 * 768 + 64 * 768 + 3 * 768
    assert count_parameters(d) == 8 * block_parameters + 16 * 768 + 768 + 3 * 768


# Layers


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda: ScaledConv2d(12, 20, 3, weight_spec=SPECTRAL_NORM),
        lambda: ScaledStridedConv2d(12, 20, 4, transposed=True, weight_spec=SPECTRAL_NORM),
        lambda: LinearToGrid(12, 5, (3, 4), gain=1.0, weight_spec=SPECTRAL_NORM),
        lambda: ScaledLinear(12, 20, weight_spec=SPECTRAL_NORM),
    ],
    ids=["conv", "strided", "linear-to-grid", "linear"],
)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_spectral_weights_have_a_largest_singular_value_of_1(
    make_layer: object, bfloat16: bool
) -> None:
    torch.manual_seed(0)
    layer = make_layer()  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for _ in range(200):
            train_weight = layer.effective_weight
        layer.eval()
        u_before = layer.u.clone()
        eval_weight = layer.effective_weight
    assert torch.equal(u_before, layer.u), "u is updated only in training"
    matrix = eval_weight.detach().flatten(1)
    if isinstance(layer, LinearToGrid):  # one row per grid cell and channel
        matrix = eval_weight.detach().permute(0, 2, 3, 1).flatten(0, 2)
    assert float(torch.linalg.matrix_norm(matrix.float(), 2)) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(train_weight, eval_weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        ScaledConv2d(12, 20, 3, weight_spec=WEIGHT_SPECS["orthogonal_spectral_norm"]),
        ScaledStridedConv2d(
            12, 20, 4, transposed=False, weight_spec=WEIGHT_SPECS["orthogonal_spectral_norm"]
        ),
        LinearToGrid(12, 5, (3, 4), gain=1.0, weight_spec=WEIGHT_SPECS["orthogonal_spectral_norm"]),
        ScaledLinear(20, 12, weight_spec=WEIGHT_SPECS["orthogonal_spectral_norm"]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_orthogonal_weights_start_with_all_singular_values_1(layer: ScaledWeight) -> None:
    """Brock et al. 2019, section 3, after Saxe et al. 2014."""
    values = torch.linalg.svdvals(layer.weight_matrix().detach())
    torch.testing.assert_close(values, torch.ones_like(values))


def test_both_networks_of_biggan_have_orthogonal_initialization() -> None:
    assert {
        spec.weight_spec for name in ("biggan", "biggan-deep") for spec in published(name, 32)
    } == {WEIGHT_SPECS["orthogonal_spectral_norm"]}


def test_the_gradient_of_a_spectrally_normalized_weight_matches_equation_12() -> None:
    """d(W/σ) = (dW - (u'dW v) W/σ) / σ (Miyato et al. 2018, equation 12)."""
    torch.manual_seed(0)
    layer = ScaledLinear(4, 3, weight_spec=SPECTRAL_NORM).double()
    for _ in range(500):
        layer.largest_singular_value(update_u=True)
    layer.eval()
    weight = layer.weight.detach()
    u, values, v = torch.linalg.svd(weight)
    upstream = torch.randn(3, 4, dtype=torch.float64)
    (layer.effective_weight * upstream).sum().backward()
    normalized = weight / values[0]
    product = (upstream * normalized).sum()
    expected = (upstream - product * torch.outer(u[:, 0], v[0])) / values[0]
    torch.testing.assert_close(layer.weight.grad, expected)


def test_attention_matches_the_equations_of_its_paper() -> None:
    """Zhang et al. 2019, equations 1 to 3, computed position by position."""
    block = random_block("attention", 16, 16)
    x = noise(2, 16, 3, 4)
    flat = x.flatten(2).double()

    def apply_to(name: str, values: Tensor) -> Tensor:
        conv = block.get_submodule(name)
        assert isinstance(conv, ScaledConv2d)
        return conv.effective_weight[:, :, 0, 0].double() @ values

    expected = torch.empty_like(flat)
    for n in range(2):
        f, g, h = (apply_to(name, flat[n]) for name in "fgh")
        for j in range(12):
            beta = torch.softmax(torch.stack([f[:, i] @ g[:, j] for i in range(12)]), 0)
            attended = sum((beta[i] * h[:, i] for i in range(12)), torch.zeros(2).double())
            expected[n, :, j] = flat[n, :, j] + block.gamma.double() * apply_to("v", attended)  # type: ignore[operator]
    torch.testing.assert_close(block(x).flatten(2).double(), expected, rtol=1e-4, atol=1e-4)
    block.gamma.zero_()  # type: ignore[operator]
    assert torch.equal(block(x), x), "a new layer changes nothing"


@pytest.mark.parametrize("resample", [1, 2])
def test_modulation_scales_the_weights_per_sample(resample: int) -> None:
    """Karras et al. 2020, equations 1 and 3: modulated and demodulated weights of each sample."""
    block = random_block("modulated", 5, 7, resample_factor=resample, norm="none")
    x, style = noise(3, 7, 6, 6), noise(3, 6, seed=2)
    scale = block.affine(style)  # type: ignore[operator]
    weight = block.conv.effective_weight  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    for n in range(3):
        modulated = weight * scale[n].view(1, 7, 1, 1)
        demodulated = modulated / (modulated.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if resample == 2:
            h = upsample_conv_blur(x[n : n + 1], demodulated)
        else:
            h = F.conv2d(x[n : n + 1], demodulated, padding=1)
        h = h * 2**0.5 + block.sample_noise(h) * block.noise_strength + block.bias[:, None, None]  # type: ignore[operator,index]
        expected = F.leaky_relu(h, 0.2)
        torch.testing.assert_close(block(x, style)[n : n + 1], expected, rtol=1e-4, atol=1e-4)


def test_noise_is_random_in_training_and_fixed_in_evaluation() -> None:
    block = random_block("modulated", 5, 7, norm="none")
    x, style = noise(3, 7, 6, 6), noise(3, 6, seed=2)
    assert torch.equal(block(x, style), block(x, style))
    block.train()
    assert not torch.equal(block(x, style), block(x, style))


def blur(x: Tensor, gain: float) -> Tensor:
    """Convolve rows and columns with [1, 3, 3, 1] / 8 after padding with 3 zeros per side.

    The result is 3 pixels larger than ``x`` in both directions.
    """
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    x = F.pad(x, (3, 3, 3, 3))
    h, w = x.shape[2] - 3, x.shape[3] - 3
    rows = sum((taps[i] * x[:, :, i : i + h] for i in range(4)), torch.zeros(()))
    return gain * sum((taps[i] * rows[..., i : i + w] for i in range(4)), torch.zeros(()))


def insert_zeros(x: Tensor) -> Tensor:
    """Insert zeros between the pixels."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    out[:, :, ::2, ::2] = x
    return out


def test_blurred_resampling_matches_filtering_and_striding() -> None:
    x, weight = noise(2, 3, 6, 8), noise(4, 3, 3, 3, seed=2)
    blurred = blur(x, 1)  # [2, 3, 9, 11]
    torch.testing.assert_close(downsample_blur(x), blurred[:, :, 2:-2:2, 2:-2:2][..., :3, :4])
    blurred = blur(insert_zeros(x), 4)
    torch.testing.assert_close(upsample_blur(x), blurred[:, :, 1:-1, 1:-1])
    convolved = F.conv2d(F.pad(insert_zeros(x), (2, 2, 2, 2)), weight.flip(2, 3))
    expected = blur(convolved, 4)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(upsample_conv_blur(x, weight), expected, rtol=1e-4, atol=1e-4)
    blurred = blur(x, 1)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(blur_conv_downsample(x, weight), F.conv2d(blurred, weight, stride=2))
    flat = torch.ones(1, 1, 8, 8)
    assert torch.allclose(upsample_blur(flat)[..., 2:-2, 2:-2], torch.ones(12, 12))
    assert torch.allclose(downsample_blur(flat)[..., 1:-1, 1:-1], torch.ones(2, 2))


@pytest.mark.parametrize(
    "resample",
    [
        downsample_blur,
        upsample_blur,
        lambda x: upsample_lowpass(x, 2),
        lambda x: upsample_lowpass(x, 4),
        lambda x: downsample_lowpass(x, 2, radial=False),
        lambda x: downsample_lowpass(x, 2, radial=True),
    ],
)
@pytest.mark.parametrize("shape", [(6, 8), (18, 10)])
def test_filters_and_their_gradients_in_bfloat16_match_float32(
    resample: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    x = noise(2, 3, *shape).bfloat16().float().requires_grad_()
    full_precision = resample(x)
    upstream = noise(*full_precision.shape, seed=2).bfloat16().float()
    (expected_gradient,) = torch.autograd.grad(full_precision, x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        y = resample(x)
        low_precision = resample(x.bfloat16())
        assert low_precision.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y, x, upstream.to(y.dtype))
    for result, reference in (
        (y, full_precision),
        (low_precision, full_precision),
        (gradient, expected_gradient),
    ):
        assert result.shape == reference.shape
        torch.testing.assert_close(result.float(), reference, rtol=0.02, atol=0.05)


def test_images_of_stylegan2_are_sums_over_all_resolutions() -> None:
    g, _ = small("stylegan2", 16)
    generator = build_network(g, 0)
    assert isinstance(generator, Generator)
    generator.eval().requires_grad_(False)
    assert list(generator.heads) == ["g1", "g3", "image"], "4, 8 and 16 pixels"
    w = generator.map_to_w(noise(2, g.latent_dim))
    h, image = generator.stem(w), None
    for layer, head in zip(
        generator.layers.values(), [*list(generator.layers)[1:], "image"], strict=True
    ):
        h = layer(h, w)
        if head in generator.heads:
            rgb = generator.heads[head](h, w)
            image = rgb if image is None else upsample_blur(image) + rgb
    assert image is not None
    torch.testing.assert_close(generator.synthesize(w), image)


def test_style_mixing_uses_two_latents_and_only_in_training() -> None:
    g = replace(small("stylegan2", 16)[0], style_mixing_prob=1.0)
    generator = build_network(g, 0)
    assert isinstance(generator, Generator)
    z = noise(64, g.latent_dim)
    w = generator.map_to_w(z)
    mixed = generator._mix_styles(z, w)
    assert mixed.shape == (64, generator.num_styles, g.latent_dim)
    is_first_latent = (mixed == w[:, None]).all(2)  # [64, styles]
    assert is_first_latent[:, 0].all(), "the first style comes from the first latent"
    assert (is_first_latent.int().diff(dim=1) <= 0).all(), "there is at most one crossover"
    assert 0.2 < float(is_first_latent[:, 1:].float().mean()) < 0.8
    same = w[:, None].expand(-1, generator.num_styles, -1)
    generator.eval()
    torch.testing.assert_close(generator.synthesize(same), generator(z))


def test_each_layer_of_biggan_receives_one_chunk_of_the_latents() -> None:
    spec = small("biggan", 32)[0]
    generator = build_network(spec, 0).eval()
    assert isinstance(generator, Generator)
    z = noise(2, spec.latent_dim)
    chunks = z.split(20, 1)
    assert torch.equal(generator.stem.style(z, 0), chunks[1])
    assert torch.equal(generator.stem.style(z, 2), chunks[3])
    assert torch.equal(generator.stem.style(z, 3), chunks[1]), "chunks are reused"
    changed = torch.cat([z[:, :20], noise(2, 60, seed=3)], 1)
    assert torch.equal(generator.stem(z), generator.stem(changed)), "the stem uses the first chunk"


def source_spec(ends: str, norm: str = "pixel") -> GeneratorSpec:
    """Return the spec of a G that maps 8×8 source images to images."""
    layer = LayerSpec("g0", "residual", 8, 3, 2, norm)
    return GeneratorSpec(
        base_grid=(4, 4),
        image_channels=3,
        stem_width=8,
        layers=(layer,),
        latent_dim=4,
        ends=ends,
        source_channels=1,
    )


def test_norms_and_ends_without_support_for_source_images_are_refused() -> None:
    with pytest.raises(UserError, match="norm 'virtual' does not support source images"):
        build_network(source_spec("pggan", "virtual"))
    with pytest.raises(UserError, match="the ends 'resnet' do not support source images"):
        build_network(source_spec("resnet"))


def test_latent_arithmetic_works_with_source_images(tmp_path: Path) -> None:
    g = source_spec("pggan")
    d = DiscriminatorSpec(base_grid=(8, 8), image_channels=3, stem_width=8)
    gan = Gan.create(g, d, Settings().optimizer, seed=0)
    save_gan(gan, tmp_path / "candidates" / "0000")
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    np.savez(tmp_path / "source_images.npz", source_images=images, labels=np.zeros(4, np.int64))
    model = TrainedGenerator(tmp_path / "candidates" / "0000")
    assert model.latent_arithmetic([[0, 1]], [[2]], count=4).shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(
        model.latent_arithmetic([[3]], [], count=4)[0], model.sample(4)[3]
    )


def test_minibatch_discrimination_sums_similarities_to_the_batch() -> None:
    torch.manual_seed(0)
    layer = MinibatchDiscrimination(6, 4, NONE).requires_grad_(False)
    features = noise(5, 6)
    rows = layer.projection(features).view(5, 4, 5)
    for i in range(5):
        for b in range(4):
            expected = sum(float((-(rows[i, b] - rows[j, b]).abs().sum()).exp()) for j in range(5))
            assert float(layer(features)[i, b]) == pytest.approx(expected, rel=1e-5)
    identical = features[:1].expand(5, 6)
    torch.testing.assert_close(layer(identical), torch.full((5, 4), 5.0))


def test_virtual_batch_norm_treats_samples_independently() -> None:
    norm = VirtualBatchNorm(3, 8, NONE).requires_grad_(False)
    x = noise(VirtualBatchNorm.NUM_REFERENCES + 2, 3, 4, 4) * 3 + 1
    result = norm(x)
    for n in (-1, -2):
        with_references = torch.cat([x[: VirtualBatchNorm.NUM_REFERENCES], x[n:][:1]])
        torch.testing.assert_close(norm(with_references)[-1], result[n])
        mean = torch.cat([with_references.flatten(2)]).mean((0, 2))
        mean_square = with_references.square().mean((0, 2, 3))
        expected = (x[n] - mean[:, None, None]) / (mean_square - mean**2 + 1e-5).sqrt()[
            :, None, None
        ]
        torch.testing.assert_close(result[n], expected, rtol=1e-4, atol=1e-4)


# Growth


@pytest.mark.parametrize("name", GROWING)
def test_growth_of_every_preset_preserves_the_function_at_first(name: str) -> None:
    preset = PRESETS[name]
    shape = make_settings(preset.small_settings, {"network": {"width": 16}}).network
    specs = small(name, 16)
    for role, spec in zip(ROLES, specs, strict=True):
        parent = build_network(spec, 0).eval().requires_grad_(False)
        edit = preset.family.doubling_edit(shape.for_role(role), spec)
        child = apply_edit(parent, edit, 1).eval().requires_grad_(False)
        if isinstance(parent, Generator):
            child_inputs = noise(4, spec.latent_dim)
            expected = F.interpolate(parent(child_inputs), scale_factor=2)
        else:
            inputs = noise(4, 3, 16, 16)
            child_inputs = F.interpolate(inputs, scale_factor=2)
            expected = parent(inputs)
        torch.testing.assert_close(child(child_inputs), expected, rtol=1e-5, atol=1e-5)
        child.set_alpha(1.0)
        grown = child(child_inputs)
        child.finish_fade()
        torch.testing.assert_close(child(child_inputs), grown)
        assert child.spec.resolution == (32, 32)
        assert set(child.state_dict()) == set(build_network(child.spec, 0).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_every_legal_edit_can_be_applied(name: str) -> None:
    side = 32 if name == "gan" else 16
    for spec in small(name, side):
        block_name = spec.layers[-1].block if spec.layers else "conv"
        network = build_network(spec, 0)
        edit_types = {type(edit) for edit in legal_edits(spec, EditSettings(), 32, block_name)}
        for edit in legal_edits(spec, EditSettings(kernel_sizes=(3,)), 32, block_name):
            child = apply_edit(network, edit, 1)
            assert child.num_parameters() > network.num_parameters()
        assert Append in edit_types or name == "gan"


@pytest.mark.parametrize("name", NAMES)
def test_an_inserted_layer_does_not_change_the_output(name: str) -> None:
    """This holds at every position, also before an upsampling layer with an output skip."""
    spec = small(name, 32)[0]
    parent = build_network(spec, 0).eval().requires_grad_(False)
    assert isinstance(parent, Generator)
    z = noise(4, parent.spec.latent_dim)
    expected = parent(z)
    for position in (None, *(layer.id for layer in spec.layers)):
        edit = Insert(position, norm="none")
        if edit.reason_illegal(spec):
            continue
        child = apply_edit(parent, edit, 1).eval().requires_grad_(False)
        torch.testing.assert_close(child(z), expected, rtol=1e-5, atol=1e-5)


def test_illegal_edits_are_refused_with_a_reason() -> None:
    g, d = small("sngan", 16)
    with pytest.raises(
        UserError,
        match="cannot apply 'widen all x2' to the generator: block 'preactivation' cannot",
    ):
        Widen().child_spec(g)
    with pytest.raises(UserError, match="spectral norm cannot normalize the zero weights"):
        Insert(None).child_spec(d)
    plain = replace(g, ends="pggan", layers=())
    with pytest.raises(UserError, match="duplicated channels change the largest singular value"):
        Widen().child_spec(replace(plain, weight_spec=SPECTRAL_NORM))
    with pytest.raises(
        UserError, match="block 'modulated' needs a style, but the layers of D have none"
    ):
        build_network(Append((LayerSpec("x", "modulated"),)).child_spec(d))
    with pytest.raises(
        UserError, match="block 'attention' keeps its number of channels, 32, but the width is 8"
    ):
        build_network(Append((LayerSpec("x", "attention", 8),)).child_spec(d))


def test_an_autoencoder_with_a_downsampling_head_preserves_the_image_size() -> None:
    d = build_network(replace(small("sngan", 32)[1], is_autoencoder=True), 0)
    assert isinstance(d, Discriminator)
    x = noise(2, 3, 32, 32)
    assert d.decoder(d.features(x)).shape == x.shape and d(x).shape == (2,)


# StyleGAN3


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two sets of images in decibels."""
    return float(-10 * torch.log10((a - b).square().mean() / (b.max() - b.min()).square()))


def transform_input(name: str, transform: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Return 64×64 images of an untrained generator before and after an input transform."""
    preset = PRESETS[name]
    shape = make_settings(preset.small_settings, {"network": {"width": 32}}).network
    g = build_network(preset.network_spec("generator", shape, 3, (64, 64)), 0)
    assert isinstance(g, Generator)
    g.eval().requires_grad_(False)
    z = noise(2, g.spec.latent_dim)
    before = g(z)
    g.stem.transform.copy_(torch.tensor(transform))  # type: ignore[operator,union-attr]
    return before, g(z)


@pytest.mark.parametrize("pixels", [1, 3, 5])
@pytest.mark.parametrize("name", ["stylegan3", "stylegan3-r"])
def test_stylegan3_is_equivariant_to_translation(name: str, pixels: int) -> None:
    """Karras et al. 2021, table 1, report 66 dB for translations of the trained network."""
    before, after = transform_input(name, [[1, 0, -pixels / 64], [0, 1, 0], [0, 0, 1]])
    assert psnr(after[..., 8:-8, 8 + pixels : -8], before[..., 8:-8, 8 : -8 - pixels]) > 55


def test_stylegan3_r_is_equivariant_to_rotation() -> None:
    """Karras et al. 2021, table 1, report 40 dB for config R and 13 dB for config T."""
    angle = torch.tensor(torch.pi / 6)
    rotation = [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0], [0.0, 0.0, 1.0]]
    for name, low, high in (("stylegan3-r", 35, 99), ("stylegan3", 0, 30)):
        before, after = transform_input(name, rotation)  # type: ignore[arg-type]
        grid = F.affine_grid(
            torch.tensor(rotation)[None, :2].expand(2, 2, 3),
            list(before.shape),
            align_corners=False,
        )
        rotated = F.grid_sample(before, grid, mode="bicubic", align_corners=False)
        assert low < psnr(after[..., 20:-20, 20:-20], rotated[..., 20:-20, 20:-20]) < high


def test_the_lowpass_filters_keep_low_and_remove_high_frequencies() -> None:
    t = torch.arange(256) * 1.0
    for cycles, gain in ((0.05, 1.0), (0.2, 1.0), (2**-1.5, 0.5)):
        wave = torch.sin(2 * torch.pi * cycles * t).expand(1, 1, 256, 256)
        upsampled = upsample_lowpass(wave, 2)[0, 0, 64:-64, 64:-64]
        expected = torch.sin(2 * torch.pi * cycles * (torch.arange(512) - 0.5) / 2)[64:-64]
        assert float((upsampled - gain * expected).abs().max()) < 0.05
    for cycles, passes in ((0.1, True), (0.3, False), (0.4, False)):  # per pixel of the input
        wave = torch.sin(2 * torch.pi * cycles * t).expand(1, 1, 256, 256)
        for radial in (False, True):
            amplitude = float(
                downsample_lowpass(wave, 2, radial=radial)[..., 32:-32, 32:-32].abs().max()
            )
            assert amplitude > 0.9 if passes else amplitude < 0.05, (cycles, radial)


def test_alias_free_and_other_blocks_cannot_be_combined() -> None:
    g, _ = small("stylegan3", 16)
    with pytest.raises(UserError, match="block 'conv' does not fit the ends 'stylegan3'"):
        build_network(Append((LayerSpec("x", "conv"),)).child_spec(g))
    with pytest.raises(UserError, match="block 'alias-free' does not fit the ends 'resnet'"):
        build_network(Append((LayerSpec("x", "alias-free"),)).child_spec(small("sngan", 16)[0]))
