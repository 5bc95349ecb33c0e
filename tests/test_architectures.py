"""The published architectures: their sizes, their layers' mathematics, and that each can grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.config import ActionSettings, Settings, make_settings
from growgan.errors import UserError
from growgan.growth.actions import player_edits
from growgan.growth.model import Model
from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.cost import parameters
from growgan.nets.edits import Append, Insert, Widen, apply
from growgan.nets.filters import (
    shrink,
    smooth_double,
    smooth_downsample,
    smooth_halve,
    smooth_upsample,
    stretch,
)
from growgan.nets.layers import (
    Conv,
    Dense,
    MinibatchDiscrimination,
    Project,
    Scaled,
)
from growgan.nets.norms import VirtualNorm
from growgan.nets.players import Discriminator, Generator, build
from growgan.nets.presets import PRESETS
from growgan.nets.presets.base import ROLES
from growgan.nets.spec import LayerSpec, Role, StackSpec
from growgan.nets.strided import StridedConv
from growgan.objectives.regulariser import Penalty, make_regulariser
from growgan.training.checkpoint import save_gan
from growgan.training.gan import Gan

NAMES = [entry.name for entry in PRESETS]
GROWING = [name for name in NAMES if name != "gan"]  # which has no grid to double


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(kind: str, width: int, inner: int, role: Role = "generator", **how: object) -> Block:
    """Return a layer with no weight at its special initial value."""
    torch.manual_seed(0)
    layer = LayerSpec("g0", kind, width, **how)  # type: ignore[arg-type]
    style = 6 if role == "generator" else 0
    made = BLOCKS[kind](layer, inner, role=role, rate="equalised", style=style)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return made.eval().requires_grad_(False)


def published(name: str, side: int) -> tuple[StackSpec, StackSpec]:
    """Return the stacks of a preset as its paper has them for RGB images of that size."""
    preset = PRESETS[name]
    shape = make_settings(preset.published, preset.large if side >= 64 else {}).stack
    g, d = (preset.stack(role, shape, 3, (side, side)) for role in ROLES)
    return g, d


def small(name: str, side: int) -> tuple[StackSpec, StackSpec]:
    """Return the small form of a preset."""
    preset = PRESETS[name]
    shape = make_settings(preset.small, {"stack": {"width": 16}}).stack
    g, d = (preset.stack(role, shape, 3, (32, 32), (side, side)) for role in ROLES)
    return g, d


# Sizes


def test_sngan_has_the_published_layers_at_32_pixels() -> None:
    """Miyato et al. 2018, table 4: three layers of 256 in G, four of 128 in D."""
    g, d = published("sngan", 32)

    def layer(reads: int, writes: int, shortcut: bool) -> int:
        convolutions = 9 * reads * writes + 9 * writes * writes + 2 * writes
        return convolutions + shortcut * (reads * writes + writes)

    norms = 2 * 256
    expected = 128 * 16 * 256 + 256 + 3 * (layer(256, 256, True) + 2 * norms)
    assert parameters(g) == expected + norms + 9 * 256 * 3 + 3
    first = layer(3, 128, True)
    assert parameters(d) == first + layer(128, 128, True) + 2 * layer(128, 128, False) + 128 + 1
    assert [s.resolution for s in (g, d)] == [(32, 32)] * 2 and d.base == (8, 8)


def test_sagan_has_attention_between_layers_at_32_pixels_of_128() -> None:
    """Zhang et al. 2019, section 5.1: on features of 32×32 in both players."""
    for spec in published("sagan", 128):
        at = next(i for i, layer in enumerate(spec.layers) if layer.kind == "attention")
        doublings = sum(layer.resample == 2 for layer in spec.layers[:at])
        assert spec.base[0] * 2**doublings == 32 and spec.rate == "spectral"


def test_biggan_has_as_many_parameters_as_the_authors_print() -> None:
    """70,433,988 and 87,982,370 at 128 pixels with 1,000 classes; the differences are known."""
    g, d = published("biggan", 128)
    # Theirs has values of half of the channels in its attention, ours of an eighth (equation 2).
    attention = [2 * c * (c // 2) - 2 * c * (c // 8) for c in (192, 96)]
    assert parameters(d) + 1000 * 1536 + attention[1] == 87_982_370
    channels = 96 * (16 + 16 + 16 + 8 + 8 + 4 + 4 + 2 + 2 + 1)  # that norms see in all layers
    classes = 1000 * 128 + 128 * 2 * channels
    # Their maps from styles have no bias, their stem one for each place of the grid.
    biases = 15 * 16 * 96 - 2 * channels
    assert parameters(g) + classes + attention[0] + biases == 70_433_988


def conditional(name: str, side: int, classes: int) -> tuple[StackSpec, StackSpec]:
    """Return the stacks of a preset as a user gets them, with projection to so many classes."""
    preset = PRESETS[name]
    labels = {"classes": classes, "judging": "projection", "readouts": (("p", classes),)}
    shape = make_settings(preset.settings(side), {"stack": labels}).stack
    g, d = (preset.stack(role, shape, 3, (side, side)) for role in ROLES)
    return g, d


@pytest.mark.parametrize(
    ("name", "millions"), [("biggan", (70.4, 88.0)), ("biggan-deep", (50.4, 34.6))]
)
def test_classes_cost_as_much_as_published(name: str, millions: tuple[float, float]) -> None:
    """Brock et al. 2019: 1,000 classes at 128 pixels share one embedding (appendix B)."""
    found = [parameters(spec) / 1e6 for spec in conditional(name, 128, 1000)]
    assert found == pytest.approx(millions, rel=0.05)


def test_biggan_deep_has_as_many_parameters_as_published() -> None:
    """Brock et al. 2019, appendix B: 50.4 M in G and 34.6 M in D at 128 pixels."""
    g, d = published("biggan-deep", 128)
    with_classes = replace(g, latent=2 * g.latent)  # a class is embedded in as many dimensions
    assert parameters(with_classes) + 1000 * 128 == pytest.approx(50.4e6, rel=0.005)
    assert parameters(d) + 1000 * 2048 == pytest.approx(34.6e6, rel=0.005)


def test_stylegan2_has_as_many_parameters_as_the_authors_print() -> None:
    """At 256 pixels: 24,767,458 in G with its mapping network, 24,001,089 in D."""
    g, d = published("stylegan2", 256)
    assert (parameters(g), parameters(d)) == (24_767_458, 24_001_089)


@pytest.mark.parametrize(("name", "millions"), [("stylegan3", 22.3), ("stylegan3-r", 15.8)])
def test_stylegan3_is_about_as_large_as_published(name: str, millions: float) -> None:
    """Karras et al. 2021, figure 3, at 256 pixels.

    There 14 layers whatever the size, here two for each size, so that each may grow.
    """
    g, _ = published(name, 256)
    assert parameters(g) / 1e6 == pytest.approx(millions, rel=0.1)


@pytest.mark.parametrize(("name", "gamma"), [("stylegan2", 1.0), ("stylegan3", 2.0)])
def test_the_gradient_penalty_at_256_pixels_is_the_authors(name: str, gamma: float) -> None:
    """paper256 in train.py of stylegan2-ada-pytorch; docs/configs.md of stylegan3."""
    options = PRESETS[name].settings(256)["regularisers"]["r1"]
    penalty = make_regulariser("r1", options)
    assert isinstance(penalty, Penalty)
    assert penalty.strength((256, 256)) == pytest.approx(gamma)


def test_pggan_has_as_many_parameters_as_published() -> None:
    """Karras et al. 2018, table 2: 23.1 M in each player at 1024 pixels."""
    assert [parameters(spec) / 1e6 for spec in published("pggan", 1024)] == [
        pytest.approx(23.1, abs=0.05)
    ] * 2


def test_the_discriminators_of_the_first_presets_are_the_generators_mirrored() -> None:
    """Radford et al. 2016, figure 1, turned round; of the first GAN two layers of 240 units."""
    maps = [(128, 256), (256, 512), (512, 1024)]
    inner = sum(16 * a * b + 3 * b for a, b in maps)
    assert parameters(published("dcgan", 64)[1]) == 16 * 3 * 128 + 128 + inner + 16 * 1024 + 1
    expected = 3 * 28**2 * 240 + 240 + 240 * 240 + 240 + 240 + 1
    assert parameters(published("gan", 28)[1]) == expected


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pggan"])
def test_small_forms_are_of_the_same_making(name: str) -> None:
    """Narrower, and at rates for that; norms, losses and what regularises are the published."""
    preset = PRESETS[name]
    small, whole = make_settings(preset.small), make_settings(preset.published)
    assert small.loss == whole.loss and set(small.regularisers) == set(whole.regularisers)
    for key in ("beta1", "beta2", "epsilon", "decay"):
        assert getattr(small.optimiser, key) == getattr(whole.optimiser, key), key
    for key in ("kind", "norm", "discriminator_norm", "rate", "kernel", "mixing"):
        assert getattr(small.stack, key) == getattr(whole.stack, key), key
    assert small.stack.width < whole.stack.width


def test_r3gan_has_the_published_layers_at_32_pixels() -> None:
    """Huang et al. 2024, table 5: eight layers of 768 in each player, groups of 16."""
    g, d = published("r3gan", 32)
    layer = 2 * 768 * 1536 + 1536 * 16 * 9 + 2 * 1536
    assert parameters(g) == 8 * layer + 16 * 768 + 64 * 768 + 3 * 768
    assert parameters(d) == 8 * layer + 16 * 768 + 768 + 3 * 768


# Layers


@pytest.mark.parametrize(
    "make",
    [
        lambda: Conv(12, 20, 3, rate="spectral"),
        lambda: StridedConv(12, 20, 4, doubles=True, rate="spectral"),
        lambda: Project(12, 5, (3, 4), gain=1.0, rate="spectral"),
        lambda: Dense(12, 20, rate="spectral"),
    ],
    ids=["conv", "strided", "project", "dense"],
)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_spectral_weights_have_a_largest_singular_value_of_1(make: object, bfloat16: bool) -> None:
    torch.manual_seed(0)
    layer = make()  # type: ignore[operator]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        for _ in range(200):
            used = layer.used
        layer.eval()
        before = layer.u.clone()
        again = layer.used
    assert torch.equal(before, layer.u), "u follows in training alone"
    matrix = again.detach().flatten(1)
    if isinstance(layer, Project):  # rows are the places of the grid, and the channels
        matrix = again.detach().permute(0, 2, 3, 1).flatten(0, 2)
    assert float(torch.linalg.matrix_norm(matrix.float(), 2)) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(used, again, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        Conv(12, 20, 3, rate="orthogonal"),
        StridedConv(12, 20, 4, doubles=False, rate="orthogonal"),
        Project(12, 5, (3, 4), gain=1.0, rate="orthogonal"),
        Dense(20, 12, rate="orthogonal"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_orthogonal_weights_start_with_all_singular_values_1(layer: Scaled) -> None:
    """Brock et al. 2019, section 3, after Saxe et al. 2014."""
    values = torch.linalg.svdvals(layer.matrix().detach())
    torch.testing.assert_close(values, torch.ones_like(values))


def test_biggan_starts_orthogonal_in_both_players() -> None:
    assert {spec.rate for name in ("biggan", "biggan-deep") for spec in published(name, 32)} == {
        "orthogonal"
    }


def test_the_gradient_of_a_spectral_weight_is_that_of_the_quotient() -> None:
    """d(W/σ) = (dW - (u'dW v) W/σ) / σ (Miyato et al. 2018, equation 12)."""
    torch.manual_seed(0)
    layer = Dense(4, 3, rate="spectral").double()
    for _ in range(500):
        layer.singular(follow=True)
    layer.eval()
    weight = layer.weight.detach()
    u, values, v = torch.linalg.svd(weight)
    upstream = torch.randn(3, 4, dtype=torch.float64)
    (layer.used * upstream).sum().backward()
    used = weight / values[0]
    inner = (upstream * used).sum()
    expected = (upstream - inner * torch.outer(u[:, 0], v[0])) / values[0]
    torch.testing.assert_close(layer.weight.grad, expected)


def test_attention_is_what_the_paper_says() -> None:
    """Zhang et al. 2019, equations 1 to 3, one place after the other."""
    made = block("attention", 16, 16)
    x = noise(2, 16, 3, 4)
    flat = x.flatten(2).double()

    def apply_to(name: str, values: Tensor) -> Tensor:
        conv = made.get_submodule(name)
        assert isinstance(conv, Conv)
        return conv.used[:, :, 0, 0].double() @ values

    expected = torch.empty_like(flat)
    for n in range(2):
        f, g, h = (apply_to(name, flat[n]) for name in "fgh")
        for j in range(12):
            beta = torch.softmax(torch.stack([f[:, i] @ g[:, j] for i in range(12)]), 0)
            seen = sum((beta[i] * h[:, i] for i in range(12)), torch.zeros(2).double())
            expected[n, :, j] = flat[n, :, j] + made.gamma.double() * apply_to("v", seen)  # type: ignore[operator]
    torch.testing.assert_close(made(x).flatten(2).double(), expected, rtol=1e-4, atol=1e-4)
    made.gamma.zero_()  # type: ignore[operator]
    assert torch.equal(made(x), x), "a new layer changes nothing"


@pytest.mark.parametrize("resample", [1, 2])
def test_modulation_is_that_of_the_weights_of_each_sample(resample: int) -> None:
    """Karras et al. 2020, equations 1 and 3: scaled and normed weights, sample by sample."""
    made = block("modulated", 5, 7, resample=resample, norm="none")
    x, style = noise(3, 7, 6, 6), noise(3, 6, seed=2)
    scale = made.affine(style)  # type: ignore[operator]
    weight = made.conv.used  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    for n in range(3):
        own = weight * scale[n].view(1, 7, 1, 1)
        own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if resample == 2:
            h = smooth_double(x[n : n + 1], own)
        else:
            h = F.conv2d(x[n : n + 1], own, padding=1)
        h = h * 2**0.5 + made.noise(h) * made.strength + made.bias[:, None, None]  # type: ignore[operator,index]
        expected = F.leaky_relu(h, 0.2)
        torch.testing.assert_close(made(x, style)[n : n + 1], expected, rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_in_training_and_fixed_afterwards() -> None:
    made = block("modulated", 5, 7, norm="none")
    x, style = noise(3, 7, 6, 6), noise(3, 6, seed=2)
    assert torch.equal(made(x, style), made(x, style))
    made.train()
    assert not torch.equal(made(x, style), made(x, style))


def filtered(x: Tensor, gain: float) -> Tensor:
    """Filter by loops with [1 3 3 1] / 8, zeros outside, so that three pixels are lost of six."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    x = F.pad(x, (3, 3, 3, 3))
    h, w = x.shape[2] - 3, x.shape[3] - 3
    rows = sum((taps[i] * x[:, :, i : i + h] for i in range(4)), torch.zeros(()))
    return gain * sum((taps[i] * rows[..., i : i + w] for i in range(4)), torch.zeros(()))


def spread(x: Tensor) -> Tensor:
    """Put zeros between the pixels."""
    out = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    out[:, :, ::2, ::2] = x
    return out


def test_smooth_resampling_is_filtering_and_taking_each_second_pixel() -> None:
    x, weight = noise(2, 3, 6, 8), noise(4, 3, 3, 3, seed=2)
    whole = filtered(x, 1)  # [2, 3, 9, 11], from one pixel before the first on
    torch.testing.assert_close(smooth_downsample(x), whole[:, :, 2:-2:2, 2:-2:2][..., :3, :4])
    whole = filtered(spread(x), 4)
    torch.testing.assert_close(smooth_upsample(x), whole[:, :, 1:-1, 1:-1])
    convolved = F.conv2d(F.pad(spread(x), (2, 2, 2, 2)), weight.flip(2, 3))
    expected = filtered(convolved, 4)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(smooth_double(x, weight), expected, rtol=1e-4, atol=1e-4)
    blurred = filtered(x, 1)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(smooth_halve(x, weight), F.conv2d(blurred, weight, stride=2))
    flat = torch.ones(1, 1, 8, 8)
    assert torch.allclose(smooth_upsample(flat)[..., 2:-2, 2:-2], torch.ones(12, 12))
    assert torch.allclose(smooth_downsample(flat)[..., 1:-1, 1:-1], torch.ones(2, 2))


@pytest.mark.parametrize(
    "resample",
    [
        smooth_downsample,
        smooth_upsample,
        lambda x: stretch(x, 2),
        lambda x: stretch(x, 4),
        lambda x: shrink(x, 2, radial=False),
        lambda x: shrink(x, 2, radial=True),
    ],
)
@pytest.mark.parametrize("shape", [(6, 8), (18, 10)])
def test_filters_in_bfloat16_are_the_same_forwards_and_backwards(
    resample: Callable[[Tensor], Tensor], shape: tuple[int, int]
) -> None:
    x = noise(2, 3, *shape).bfloat16().float().requires_grad_()
    exact = resample(x)
    slope = noise(*exact.shape, seed=2).bfloat16().float()
    (expected,) = torch.autograd.grad(exact, x, slope)
    with torch.autocast("cpu", torch.bfloat16):
        y = resample(x)
        low = resample(x.bfloat16())
        assert low.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(y, x, slope.to(y.dtype))
    for value, truth in ((y, exact), (low, exact), (found, expected)):
        assert value.shape == truth.shape
        torch.testing.assert_close(value.float(), truth, rtol=0.02, atol=0.05)


def test_images_of_stylegan2_are_sums_over_all_sizes() -> None:
    g, _ = small("stylegan2", 16)
    player = build(g, 0)
    assert isinstance(player, Generator)
    player.eval().requires_grad_(False)
    assert list(player.heads) == ["g0", "g2", "g4"], "4, 8 and 16 pixels"
    w = player.embed(noise(2, g.latent))
    h, image = player.stem(w), None
    for name, layer in player.layers.items():
        h = layer(h, w)
        if name in player.heads:
            own = player.heads[name](h, w)
            image = own if image is None else smooth_upsample(image) + own
    assert image is not None
    torch.testing.assert_close(player.synthesise(w), image)


def test_mixed_styles_are_those_of_two_latents_in_training_alone() -> None:
    g = replace(small("stylegan2", 16)[0], mixing=1.0)
    player = build(g, 0)
    assert isinstance(player, Generator)
    z = noise(64, g.latent)
    w = player.embed(z)
    mixed = player._mixed(z, w)
    assert mixed.shape == (64, player.styles, g.latent)
    own = (mixed == w[:, None]).all(2)  # [64, styles]
    assert own[:, 0].all(), "the first style is the latent's own"
    assert (own.int().diff(dim=1) <= 0).all(), "and from somewhere on it is another's"
    assert 0.2 < float(own[:, 1:].float().mean()) < 0.8
    same = w[:, None].expand(-1, player.styles, -1)
    player.eval()
    torch.testing.assert_close(player.synthesise(same), player(z))


def test_each_layer_of_biggan_sees_its_own_piece_of_the_latents() -> None:
    spec = small("biggan", 32)[0]
    player = build(spec, 0).eval()
    assert isinstance(player, Generator)
    z = noise(2, spec.latent)
    pieces = z.split(20, 1)
    assert torch.equal(player.stem.style(z, 0), pieces[1])
    assert torch.equal(player.stem.style(z, 2), pieces[3])
    assert torch.equal(player.stem.style(z, 3), pieces[1]), "a stack that outgrew its latents"
    changed = torch.cat([z[:, :20], noise(2, 60, seed=3)], 1)
    assert torch.equal(player.stem(z), player.stem(changed)), "the stem has the first"


def given(form: str, norm: str = "pixel") -> StackSpec:
    """Return a G that makes images of 8×8 from images."""
    layer = LayerSpec("g0", "residual", 8, 3, 2, norm)
    return StackSpec("generator", (4, 4), 3, 8, (layer,), 4, form=form, given=1)


def test_what_cannot_be_given_images_says_so() -> None:
    with pytest.raises(UserError, match="norm 'virtual' has no meaning where images are made from"):
        build(given("progressive", "virtual"))
    with pytest.raises(UserError, match="a stack of form 'resnet' cannot be given images"):
        build(given("resnet"))


def test_sums_of_what_was_made_from_images(tmp_path: Path) -> None:
    g = given("progressive")
    gan = Gan.create(g, StackSpec("discriminator", (8, 8), 3, 8), Settings().optimiser, seed=0)
    save_gan(gan, tmp_path / "candidates" / "0000")
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8, 1)
    np.savez(tmp_path / "given.npz", given=images, labels=np.zeros(4, np.int64))
    model = Model(tmp_path / "candidates" / "0000")
    assert model.combine([[0, 1]], [[2]], count=4).shape == (9, 8, 8, 3)
    np.testing.assert_array_equal(model.combine([[3]], [], count=4)[0], model.sample(4)[3])


def test_minibatch_discrimination_counts_what_is_near() -> None:
    torch.manual_seed(0)
    layer = MinibatchDiscrimination(6, 4, "plain").requires_grad_(False)
    features = noise(5, 6)
    rows = layer.rows(features).view(5, 4, 5)
    for i in range(5):
        for b in range(4):
            near = sum(float((-(rows[i, b] - rows[j, b]).abs().sum()).exp()) for j in range(5))
            assert float(layer(features)[i, b]) == pytest.approx(near, rel=1e-5)
    twins = features[:1].expand(5, 6)
    torch.testing.assert_close(layer(twins), torch.full((5, 4), 5.0)), "all alike"


def test_a_virtual_norm_makes_no_sample_depend_on_another() -> None:
    norm = VirtualNorm(3, 8, "plain").requires_grad_(False)
    x = noise(VirtualNorm.REFERENCES + 2, 3, 4, 4) * 3 + 1
    out = norm(x)
    for n in (-1, -2):
        alone = torch.cat([x[: VirtualNorm.REFERENCES], x[n:][:1]])
        torch.testing.assert_close(norm(alone)[-1], out[n])
        mean = torch.cat([alone.flatten(2)]).mean((0, 2))
        square = alone.square().mean((0, 2, 3))
        expected = (x[n] - mean[:, None, None]) / (square - mean**2 + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(out[n], expected, rtol=1e-4, atol=1e-4)


# Growth


@pytest.mark.parametrize("name", GROWING)
def test_every_preset_grows_without_a_change_at_first(name: str) -> None:
    preset = PRESETS[name]
    shape = make_settings(preset.small, {"stack": {"width": 16}}).stack
    specs = small(name, 16)
    for role, spec in zip(ROLES, specs, strict=True):
        parent = build(spec, 0).eval().requires_grad_(False)
        edit = preset.family.doubling(shape.of(role), spec)
        child = apply(parent, edit, 1).eval().requires_grad_(False)
        if isinstance(parent, Generator):
            given, more = noise(4, spec.latent), noise(4, spec.latent)
            expected = F.interpolate(parent(given), scale_factor=2)
        else:
            given, more = noise(4, 3, 16, 16), F.interpolate(noise(4, 3, 16, 16), scale_factor=2)
            expected = parent(given)
        torch.testing.assert_close(child(more), expected, rtol=1e-5, atol=1e-5)
        child.set_alpha(1.0)
        grown = child(more)
        child.finish_fade()
        torch.testing.assert_close(child(more), grown)
        assert child.spec.resolution == (32, 32)
        assert set(child.state_dict()) == set(build(child.spec, 0).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_every_edit_that_is_offered_can_be_made(name: str) -> None:
    side = 32 if name == "gan" else 16
    for spec in small(name, side):
        kind = spec.layers[-1].kind if spec.layers else "conv"
        stack = build(spec, 0)
        made = {type(edit) for edit in player_edits(spec, ActionSettings(), 32, kind)}
        for edit in player_edits(spec, ActionSettings(kernels=(3,)), 32, kind):
            child = apply(stack, edit, 1)
            assert child.parameter_count() > stack.parameter_count()
        assert Append in made or name == "gan"


def test_what_cannot_be_widened_or_inserted_says_why() -> None:
    g, d = small("sngan", 16)
    with pytest.raises(UserError, match="cannot take 'widen all x2': preactivation layers cannot"):
        Widen().spec(g)
    with pytest.raises(UserError, match="no weight of zeros has a largest singular value"):
        Insert(None).spec(d)
    plain = replace(g, form="progressive", layers=())
    with pytest.raises(UserError, match="duplicated rows has another largest singular value"):
        Widen().spec(replace(plain, rate="spectral"))
    with pytest.raises(UserError, match="a modulated layer has no meaning for D"):
        build(Append((LayerSpec("x", "modulated"),)).spec(d))
    with pytest.raises(UserError, match="an attention layer keeps its 32 channels, not 8"):
        build(Append((LayerSpec("x", "attention", 8),)).spec(d))


def test_an_autoencoder_of_a_head_that_halves_gives_images_of_their_size() -> None:
    d = build(replace(small("sngan", 32)[1], energy=True), 0)
    assert isinstance(d, Discriminator)
    x = noise(2, 3, 32, 32)
    assert d.decoder(d.features(x)).shape == x.shape and d(x).shape == (2,)


# StyleGAN3


def psnr(a: Tensor, b: Tensor) -> float:
    """Return how alike two sets of images are, in decibels."""
    return float(-10 * torch.log10((a - b).square().mean() / (b.max() - b.min()).square()))


def moved(name: str, motion: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Return 64×64 images of an untrained generator, before and after its waves are moved."""
    preset = PRESETS[name]
    shape = make_settings(preset.small, {"stack": {"width": 32}}).stack
    g = build(preset.stack("generator", shape, 3, (64, 64)), 0)
    assert isinstance(g, Generator)
    g.eval().requires_grad_(False)
    z = noise(2, g.spec.latent)
    before = g(z)
    g.stem.moved.copy_(torch.tensor(motion))  # type: ignore[operator,union-attr]
    return before, g(z)


@pytest.mark.parametrize("pixels", [1, 3, 5])
@pytest.mark.parametrize("name", ["stylegan3", "stylegan3-r"])
def test_stylegan3_moves_with_its_input(name: str, pixels: int) -> None:
    """Karras et al. 2021, table 1, give 66 dB for shifts of the trained network."""
    before, after = moved(name, [[1, 0, -pixels / 64], [0, 1, 0], [0, 0, 1]])
    assert psnr(after[..., 8:-8, 8 + pixels : -8], before[..., 8:-8, 8 : -8 - pixels]) > 55


def test_stylegan3_r_turns_with_its_input() -> None:
    """Karras et al. 2021, table 1, give 40 dB for R, and 13 dB for T, which does not turn."""
    angle = torch.tensor(torch.pi / 6)
    turn = [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0], [0.0, 0.0, 1.0]]
    for name, low, high in (("stylegan3-r", 35, 99), ("stylegan3", 0, 30)):
        before, after = moved(name, turn)  # type: ignore[arg-type]
        grid = F.affine_grid(
            torch.tensor(turn)[None, :2].expand(2, 2, 3), list(before.shape), align_corners=False
        )
        turned = F.grid_sample(before, grid, mode="bicubic", align_corners=False)
        assert low < psnr(after[..., 20:-20, 20:-20], turned[..., 20:-20, 20:-20]) < high


def test_the_filters_pass_what_is_slow_and_stop_what_is_fast() -> None:
    t = torch.arange(256) * 1.0
    for cycles, share in ((0.05, 1.0), (0.2, 1.0), (2**-1.5, 0.5)):
        wave = torch.sin(2 * torch.pi * cycles * t).expand(1, 1, 256, 256)
        twice = stretch(wave, 2)[0, 0, 64:-64, 64:-64]
        exact = torch.sin(2 * torch.pi * cycles * (torch.arange(512) - 0.5) / 2)[64:-64]
        assert float((twice - share * exact).abs().max()) < 0.05
    for cycles, passes in ((0.1, True), (0.3, False), (0.4, False)):  # of the higher rate
        wave = torch.sin(2 * torch.pi * cycles * t).expand(1, 1, 256, 256)
        for radial in (False, True):
            size = float(shrink(wave, 2, radial=radial)[..., 32:-32, 32:-32].abs().max())
            assert size > 0.9 if passes else size < 0.05, (cycles, radial)


def test_layers_with_a_margin_keep_to_themselves() -> None:
    g, _ = small("stylegan3", 16)
    with pytest.raises(UserError, match="conv layer has no meaning for the form 'fourier'"):
        build(Append((LayerSpec("x", "conv"),)).spec(g))
    with pytest.raises(UserError, match="alias-free layer has no meaning for the form 'resnet'"):
        build(Append((LayerSpec("x", "alias-free"),)).spec(small("sngan", 16)[0]))
