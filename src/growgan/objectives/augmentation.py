"""Augmentation of every image that D sees, real or fake, against overfitting of small data sets.

All augmentations are twice differentiable in the images, so that G learns through them and
gradient penalties work. They support 1, 3 and 4 channels. Alpha moves with the image and keeps its
values. Non-square images are rotated in pixel coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log, pi
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from growgan.objectives.options import Fraction, NonNegativeInt, PositiveInt, with_options
from growgan.objectives.regularizer import Regularizer
from growgan.objectives.step_context import Shard, ShardedRng, StepContext
from growgan.registry import Registry


class DiscriminatorAugmentation(Regularizer):
    """Changes the images that D sees. Users set the fields as ``augmentation_options.NAME``."""

    def augment(self, images: Tensor, step: StepContext) -> Tensor:
        """Return the augmented ``images`` [N, C, H, W]."""
        return images


AUGMENTATIONS: Registry[DiscriminatorAugmentation] = Registry("augmentation")
AUGMENTATIONS.register("none", "No augmentation.")(DiscriminatorAugmentation())

AugmentationT = TypeVar("AugmentationT", bound=DiscriminatorAugmentation)


def register_augmentation(
    name: str, summary: str, paper: str
) -> Callable[[type[AugmentationT]], type[AugmentationT]]:
    """Return a decorator that registers a class, with its default options, as ``name``."""

    def register(component: type[AugmentationT]) -> type[AugmentationT]:
        AUGMENTATIONS.register(name, summary, paper)(component())
        return component

    return register


def make_augmentation(name: str, options: Mapping[str, float]) -> DiscriminatorAugmentation:
    """Return the augmentation ``name`` with ``options``.

    Raises:
        UserError: The name or an option is unknown, or a value is not valid.
    """
    return with_options(AUGMENTATIONS[name], options, "augmentation_options")


@register_augmentation(
    "diffaugment",
    "Random color, translation and cutout of every image.",
    "Zhao et al. 2020, 2006.10738",
)
class DiffAugment(DiscriminatorAugmentation):
    """Brightness, saturation and contrast; a shift filled with zeros; a rectangle of zeros."""

    color: Fraction = Field(1.0, description="Strength of the color changes, from 0 to 1.")
    translation: Fraction = Field(
        0.125, description="Largest shift as a fraction of the image's side."
    )
    cutout: Fraction = Field(
        0.5, description="Side of the cutout as a fraction of the image's side."
    )

    def augment(self, images: Tensor, step: StepContext) -> Tensor:
        n, c, h, w = images.shape
        random = _PerImageRandom(n, step.sharded_rng)
        if self.color:
            rgb, alpha = images[:, :3], images[:, 3:]
            rgb = rgb + self.color * (random.uniform() - 0.5)
            if rgb.shape[1] == 3:
                gray = rgb.mean(1, keepdim=True)
                rgb = gray + (rgb - gray) * (1 + self.color * (2 * random.uniform() - 1))
            mean = rgb.mean((1, 2, 3), keepdim=True)
            rgb = mean + (rgb - mean) * (1 + self.color * (random.uniform() - 0.5))
            images = torch.cat([rgb, alpha], 1) if c > 3 else rgb
        if self.translation:
            dy, dx = round(self.translation * h), round(self.translation * w)
            images = shift_images(images, random.integers(-dy, dy), random.integers(-dx, dx))
        if self.cutout:
            images = images * _cutout_mask(images, self.cutout, random)
        return images


class AdaptiveProbability(DiscriminatorAugmentation):
    """Augments with a probability p that adapts to the overfitting of D.

    The overfitting heuristic is r_t = E sign D(x) on real images, or the sign of the difference to
    the fakes for relativistic losses. p rises while r_t is above its target and falls below it
    (Karras et al. 2020, 2006.06676, section 3).
    """

    target_real_sign: Fraction = Field(
        0.6, description="Target of r_t, the mean sign of D's logits of real images."
    )
    ramp_images: NonNegativeInt = Field(
        500_000,
        description="Number of images in which p can rise from 0 to 1. If 0, p is constant.",
    )
    interval: PositiveInt = Field(4, description="Number of steps between two updates of p.")
    initial_probability: Fraction = Field(0.0, description="Initial value of p.")

    def probability(self, step: StepContext) -> Tensor:
        """Return the current p, a scalar."""
        return step.get_state("augmentation.p", self.initial_probability)

    @torch.no_grad()
    def adapt_probability(self, step: StepContext, real_sign: Tensor) -> None:
        """Move p after a step of D, in which the mean sign of real logits was ``real_sign``."""
        p = self.probability(step)
        sign_sum = step.get_state("augmentation.sign")
        sign_sum.add_(real_sign)
        if (step.index + 1) % self.interval == 0:
            mean_sign = sign_sum / self.interval
            step.log_scalars["real_sign"] = mean_sign.clone()
            if self.ramp_images:
                num_images = self.interval * len(step.real) * step.shard.count
                change = num_images / self.ramp_images
                p.add_(change * (mean_sign - self.target_real_sign).sign()).clamp_(0, 1)
            sign_sum.zero_()
        step.log_scalars["augment_p"] = p.clone()


@register_augmentation(
    "ada",
    "Random geometry and color with a probability that adapts to overfitting.",
    "Karras et al. 2020, 2006.06676",
)
class AdaptiveDiscriminatorAugmentation(AdaptiveProbability):
    """The published set "bgc": flips, rotations, scalings, shifts and color transformations.

    Each transformation is applied with probability p. The geometric ones are joined into one
    bilinear resampling with reflected borders.
    """

    def augment(self, images: Tensor, step: StepContext) -> Tensor:
        p = self.probability(step)
        random = _PerImageRandom(len(images), step.sharded_rng)
        with torch.autocast(images.device.type, enabled=False):
            grid = _sampling_grid(_random_affine(random, p, images.shape[2:]), images)
            return _random_color_transform(grid_sample_reflect(images, grid), random, p)


@register_augmentation(
    "apa",
    "Presents some fakes as real, with a probability that adapts to overfitting.",
    "Jiang et al. 2021, 2111.06849",
)
class AdaptivePseudoAugmentation(AdaptiveProbability):
    """Each real image is replaced by a fake with probability p, and D treats it as real.

    The fake is a new one with the same condition. The fake of the same row would cancel out in
    losses that compare row by row.
    """

    def transform_batch(self, step: StepContext) -> tuple[Tensor, Tensor]:
        n = len(step.real)
        batch_size = n * step.shard.count
        # All shards decide on the whole batch: if one calls G, all must, for synchronized norms.
        batch_random = ShardedRng(step.rng, batch_size, Shard()).uniform(batch_size, 1, 1, 1)
        replaced = batch_random < self.probability(step)
        z, condition = step.latents_and_condition
        z = step.sharded_rng.normal(*z.shape)
        if not replaced.any():
            return step.real, step.fake
        replaced = replaced[step.shard.index * n : (step.shard.index + 1) * n]
        with torch.no_grad():
            pseudo_real = step.generator(torch.cat([z, condition], 1)).to(step.real.dtype)
        return torch.where(replaced, pseudo_real, step.real), step.fake


class _PerImageRandom:
    """Random numbers of shape [N, 1, 1, 1], one per image."""

    def __init__(self, num_images: int, rng: ShardedRng) -> None:
        self.shape, self.rng = (num_images, 1, 1, 1), rng

    def uniform(self) -> Tensor:
        return self.rng.uniform(*self.shape)

    def normal(self) -> Tensor:
        return self.rng.normal(*self.shape)

    def integers(self, low: int, high: int) -> Tensor:
        return self.rng.integers(low, high + 1, *self.shape)

    def with_probability(self, p: Tensor, value: Tensor, default: float) -> Tensor:
        """Return ``value`` with probability ``p``, else ``default``, for each image."""
        return torch.where(self.uniform() < p, value, torch.full_like(value, default))


def shift_images(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Return the images shifted down by ``dy`` and right by ``dx`` pixels, filled with zeros."""
    n, c, h, w = images.shape
    rows = torch.arange(h, device=images.device).view(1, 1, h, 1) - dy
    columns = torch.arange(w, device=images.device).view(1, 1, 1, w) - dx
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    source = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
    shifted = images.flatten(2).gather(2, source.flatten(1).unsqueeze(1).expand(n, c, h * w))
    return shifted.view(n, c, h, w) * inside


def _cutout_mask(images: Tensor, size_fraction: float, random: _PerImageRandom) -> Tensor:
    """Return [N, 1, H, W]: 0 in a rectangle at a random position, 1 elsewhere."""
    masks = []
    for axis in (2, 3):
        side = images.shape[axis]
        hole = int(size_fraction * side + 0.5)
        position = torch.arange(side, device=images.device).view(
            [-1 if dim == axis else 1 for dim in range(4)]
        )
        start = random.integers(-(hole // 2), side - hole // 2 - hole % 2)
        masks.append((position >= start) & (position < start + hole))
    return (~(masks[0] & masks[1])).to(images.dtype)


def _random_affine(random: _PerImageRandom, p: Tensor, image_size: torch.Size) -> Tensor:
    """Return random affine maps [N, 2, 3] from output to input pixels, relative to the center."""
    one = torch.ones(random.shape, device=p.device)
    flip = random.with_probability(p, torch.where(random.uniform() < 0.5, -one, one), 1.0)
    quarter_turns = random.with_probability(p, random.integers(0, 3).float(), 0.0) * (pi / 2)
    scale = random.with_probability(p, (0.2 * log(2) * random.normal()).exp(), 1.0)
    # Rotate before and after the anisotropic scaling. At least one of the two has probability p.
    p_each = 1 - (1 - p).clamp(min=0).sqrt()
    before, after = (
        random.with_probability(p_each, (2 * random.uniform() - 1) * pi, 0.0) for _ in range(2)
    )
    stretch = random.with_probability(p, (0.2 * log(2) * random.normal()).exp(), 1.0)
    matrix = _rotation_matrix(quarter_turns + before)
    matrix = matrix @ _scale_matrix(scale * flip * stretch, scale / stretch)
    matrix = matrix @ _rotation_matrix(after)
    shifts = [
        random.with_probability(p, (0.125 * side * (2 * random.uniform() - 1)).round(), 0.0)
        + random.with_probability(p, 0.125 * side * random.normal(), 0.0)
        for side in reversed(image_size)
    ]
    return torch.cat([matrix, torch.stack(shifts, 1).view(-1, 2, 1)], 2)


def _rotation_matrix(angle: Tensor) -> Tensor:
    cos, sin = angle.view(-1).cos(), angle.view(-1).sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _scale_matrix(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x.view(-1), y.view(-1)], 1))


def _sampling_grid(affine: Tensor, images: Tensor) -> Tensor:
    """Return the grid [N, H, W, 2] of an ``affine`` [N, 2, 3] map in pixels from the center."""
    half_width, half_height = images.shape[3] / 2, images.shape[2] / 2
    (a, b, x), (c, d, y) = (row.unbind(1) for row in affine.unbind(1))
    row_x = [a, b * (half_height / half_width), x / half_width]
    row_y = [c * (half_width / half_height), d, y / half_height]
    normalized = torch.stack([torch.stack(row_x, 1), torch.stack(row_y, 1)], 1)
    return F.affine_grid(normalized, list(images.shape), align_corners=False)


def _random_color_transform(images: Tensor, random: _PerImageRandom, p: Tensor) -> Tensor:
    """Return the images with the colors of each mapped by a random affine map."""
    c = min(images.shape[1], 3)
    brightness = random.with_probability(p, 0.2 * random.normal(), 0.0)
    contrast = random.with_probability(p, (0.5 * log(2) * random.normal()).exp(), 1.0)
    rgb, alpha = (images[:, :c] + brightness) * contrast, images[:, c:]
    invert = random.with_probability(p, random.integers(0, 1).float(), 0.0)
    if c < 3:
        rgb = rgb * (1 - 2 * invert)  # A gray image is all luma.
    else:
        hue = random.with_probability(p, (2 * random.uniform() - 1) * pi, 0.0)
        saturation = random.with_probability(p, (log(2) * random.normal()).exp(), 1.0)
        matrix = _color_matrix(hue, invert, saturation).to(rgb.dtype)
        rgb = torch.einsum("nij,njhw->nihw", matrix, rgb)
    return torch.cat([rgb, alpha], 1) if images.shape[1] > 3 else rgb


def _color_matrix(hue: Tensor, invert: Tensor, saturation: Tensor) -> Tensor:
    """Return [N, 3, 3]: luma inversion, then a hue rotation, then a scaling of saturation."""
    gray_projection = torch.full((3, 3), 1 / 3, device=hue.device)
    identity = torch.eye(3, device=hue.device)
    chroma_projection = identity - gray_projection
    cross_product = 3**-0.5 * (identity.roll(1, 0) - identity.roll(-1, 0))
    angle, scale, sign = (t.view(-1, 1, 1) for t in (hue, saturation, 1 - 2 * invert))
    rotation = angle.cos() * chroma_projection + angle.sin() * cross_product
    return sign * gray_projection + scale * rotation


class _GridSample(torch.autograd.Function):
    """Bilinear sampling that can be differentiated twice in the images.

    torch.nn.functional.grid_sample can be differentiated once; gradient penalties need twice (as
    in grid_sample_gradfix of StyleGAN3).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        grad_input: Tensor = _GridSampleTranspose.apply(  # type: ignore[no-untyped-call]
            grad_outputs[0], grid, ctx.shape
        )
        return grad_input, None


class _GridSampleTranspose(torch.autograd.Function):
    """The transpose of :class:`_GridSample`. Both are linear, so each is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        bilinear, reflection = 0, 2
        images = grad_output.new_empty(shape)  # The kernel reads only the shape.
        grad_input: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            grad_output, images, grid, bilinear, reflection, False, [True, False]
        )[0]
        return grad_input

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return grid_sample_reflect(grad_outputs[0], grid), None, None


def grid_sample_reflect(images: Tensor, grid: Tensor) -> Tensor:
    """Return ``images`` [N, C, H, W] sampled at ``grid`` [N, H, W, 2], with reflected borders.

    The result is linear in the images and twice differentiable in them. The grid gets no gradient.
    """
    constant_grid = grid.detach().to(images.dtype)
    sampled: Tensor = _GridSample.apply(images, constant_grid)  # type: ignore[no-untyped-call]
    return sampled
