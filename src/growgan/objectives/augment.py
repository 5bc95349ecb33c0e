"""Augmentation of all that D sees, reals and fakes: few images it would learn by heart.

Everything is differentiable in the images, and once more, so that G learns through it and gradient
penalties work. 1, 3 and 4 channels; alpha is moved with the rest and keeps its values; non-square
images are turned in pixel coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, pi
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growgan.objectives.options import Count, Share, with_options
from growgan.objectives.regulariser import Regulariser
from growgan.objectives.step import Chance, Step
from growgan.registry import Registry


@dataclass(frozen=True)
class Augmentation(Regulariser):
    """Changes the images that D sees. Fields are options, ``augment_options.NAME``."""

    def images(self, images: Tensor, step: Step) -> Tensor:
        """Return ``images`` [N, C, H, W] as D shall see them."""
        return images


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")
AUGMENTATIONS.register("none", "images as they are")(Augmentation())

A = TypeVar("A", bound=Augmentation)


def augmentation(name: str, summary: str, paper: str) -> Callable[[type[A]], type[A]]:
    """Return a decorator that enters a class, with its usual options, under ``name``."""

    def enter(kind: type[A]) -> type[A]:
        AUGMENTATIONS.register(name, summary, paper)(kind())
        return kind

    return enter


def make_augmentation(name: str, options: Mapping[str, float]) -> Augmentation:
    """Return the augmentation ``name`` with ``options``; raise a :class:`UserError` for others."""
    return with_options(AUGMENTATIONS[name], options, "augment_options")


@augmentation("diffaugment", "colour, shift, cutout of all", "Zhao et al. 2020, 2006.10738")
@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """Brightness, saturation and contrast; a shift that leaves zeros; a square of zeros.

    Attributes:
        colour: strength, 0 to 1.
        translation: largest shift, a share of the side.
        cutout: side of the square, a share of the image's.
    """

    colour: Share = 1.0
    translation: Share = 0.125
    cutout: Share = 0.5

    def images(self, images: Tensor, step: Step) -> Tensor:
        n, c, h, w = images.shape
        dice = _Dice(n, step.chance)
        if self.colour:
            rgb, rest = images[:, :3], images[:, 3:]
            rgb = rgb + self.colour * (dice.uniform() - 0.5)
            if rgb.shape[1] == 3:
                gray = rgb.mean(1, keepdim=True)
                rgb = gray + (rgb - gray) * (1 + self.colour * (2 * dice.uniform() - 1))
            mean = rgb.mean((1, 2, 3), keepdim=True)
            rgb = mean + (rgb - mean) * (1 + self.colour * (dice.uniform() - 0.5))
            images = torch.cat([rgb, rest], 1) if c > 3 else rgb
        if self.translation:
            dy, dx = round(self.translation * h), round(self.translation * w)
            images = shifted(images, dice.integers(-dy, dy), dice.integers(-dx, dx))
        if self.cutout:
            images = images * _hole(images, self.cutout, dice)
        return images


@dataclass(frozen=True)
class Adaptive(Augmentation):
    """Acts with a probability p that follows how much D has overfitted.

    The sign is E sign D(x) on reals, or of the difference to the fakes for losses that pair. Above
    ``target`` p rises, below it p falls (Karras et al. 2020, 2006.06676, section 3).

    Attributes:
        target: of the sign.
        pace: images that it takes p to go from 0 to 1; with 0 it stays where it is.
        interval: steps between two moves.
        p: where it starts.
    """

    target: Share = 0.6
    pace: int = 500_000
    interval: Count = 4
    p: Share = 0.0

    def probability(self, step: Step) -> Tensor:
        """Return p as it stands."""
        return step.recall("augment.p", self.p)

    @torch.no_grad()
    def after(self, player: nn.Module, step: Step) -> None:
        if player is not step.discriminator:
            return
        p = self.probability(step)
        if step.sure is None:
            raise TypeError("an adaptive augmentation needs to know how sure D is")
        step.recall("augment.sign").add_(step.sure)
        if (step.index + 1) % self.interval == 0:
            mean = step.memory["augment.sign"] / self.interval
            step.curves["overfitting"] = mean.clone()
            if self.pace:
                by = self.interval * len(step.real) * step.place[1] / self.pace
                p.add_(by * (mean - self.target).sign()).clamp_(0, 1)
            step.memory["augment.sign"].zero_()
        step.curves["augment_p"] = p.clone()


@augmentation("ada", "as much as overfitting asks for", "Karras et al. 2020, 2006.06676")
@dataclass(frozen=True)
class AdaptiveAugment(Adaptive):
    """Flips, quarter turns, shifts, scales, turns; brightness, contrast, hue, saturation.

    The published set of "bgc", each with probability p; images are resampled bilinearly once, with
    the border mirrored.
    """

    def images(self, images: Tensor, step: Step) -> Tensor:
        p = self.probability(step)
        dice = _Dice(len(images), step.chance)
        with torch.autocast(images.device.type, enabled=False):
            grid = _grid(_geometry(dice, p, images.shape[2:]), images)
            return _coloured(resample(images, grid), dice, p)


@augmentation("apa", "some fakes shown as reals", "Jiang et al. 2021, 2111.06849")
@dataclass(frozen=True)
class PseudoAugment(Adaptive):
    """With probability p a real is replaced by a fake, which D is told is real.

    That is a fresh one, made for the same: a row's own would cancel where losses pair rows.
    """

    def presented(self, step: Step) -> tuple[Tensor, Tensor]:
        share, shares = step.place
        n = len(step.real)
        # All shares of a batch go on or none: those on other ranks share G's batch norm.
        everywhere = Chance(step.rng, n * shares).uniform(n * shares, 1, 1, 1)
        chosen = everywhere < self.probability(step)
        z, rest = step.apart
        z = step.chance.normal(*z.shape)
        if not chosen.any():
            return step.real, step.fake
        chosen = chosen[share * n : (share + 1) * n]
        with torch.no_grad():
            other = step.generator(torch.cat([z, rest], 1)).to(step.real.dtype)
        return torch.where(chosen, other, step.real), step.fake


class _Dice:
    """Random numbers, one for each image, of shape [N, 1, 1, 1]."""

    def __init__(self, count: int, chance: Chance) -> None:
        self.shape, self.chance = (count, 1, 1, 1), chance

    def uniform(self) -> Tensor:
        return self.chance.uniform(*self.shape)

    def normal(self) -> Tensor:
        return self.chance.normal(*self.shape)

    def integers(self, low: int, high: int) -> Tensor:
        return self.chance.integers(low, high + 1, *self.shape)

    def chosen(self, p: Tensor, value: Tensor, otherwise: float) -> Tensor:
        """Return ``value`` with probability ``p``, else ``otherwise``."""
        return torch.where(self.uniform() < p, value, torch.full_like(value, otherwise))


def shifted(images: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Return the images moved by whole pixels, zeros where nothing was."""
    n, c, h, w = images.shape
    rows = torch.arange(h, device=images.device).view(1, 1, h, 1) - dy
    columns = torch.arange(w, device=images.device).view(1, 1, 1, w) - dx
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    place = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
    moved = images.flatten(2).gather(2, place.flatten(1).unsqueeze(1).expand(n, c, h * w))
    return moved.view(n, c, h, w) * inside


def _hole(images: Tensor, side: float, dice: _Dice) -> Tensor:
    """Return [N, 1, H, W]: 0 in a rectangle at a random place, 1 elsewhere."""
    masks = []
    for axis in (2, 3):
        length = images.shape[axis]
        hole = int(side * length + 0.5)
        place = torch.arange(length, device=images.device).view(
            [-1 if a == axis else 1 for a in range(4)]
        )
        begin = dice.integers(-(hole // 2), length - hole // 2 - hole % 2)
        masks.append((place >= begin) & (place < begin + hole))
    return (~(masks[0] & masks[1])).to(images.dtype)


def _geometry(dice: _Dice, p: Tensor, size: torch.Size) -> Tensor:
    """Return [N, 2, 3]: where, in pixels from the middle, each place of the result comes from."""
    one = torch.ones(dice.shape, device=p.device)
    flip = dice.chosen(p, torch.where(dice.uniform() < 0.5, -one, one), 1.0)
    quarter = dice.chosen(p, dice.integers(0, 3).float(), 0.0) * (pi / 2)
    scale = dice.chosen(p, (0.2 * log(2) * dice.normal()).exp(), 1.0)
    # Two turns, before and after the stretch, each with a chance that makes p for both together.
    part = 1 - (1 - p).clamp(min=0).sqrt()
    before, after = (dice.chosen(part, (2 * dice.uniform() - 1) * pi, 0.0) for _ in range(2))
    stretch = dice.chosen(p, (0.2 * log(2) * dice.normal()).exp(), 1.0)
    matrix = _turn(quarter + before) @ _diagonal(scale * flip * stretch, scale / stretch)
    matrix = matrix @ _turn(after)
    shifts = [
        dice.chosen(p, (0.125 * length * (2 * dice.uniform() - 1)).round(), 0.0)
        + dice.chosen(p, 0.125 * length * dice.normal(), 0.0)
        for length in reversed(size)
    ]
    return torch.cat([matrix, torch.stack(shifts, 1).view(-1, 2, 1)], 2)


def _turn(angle: Tensor) -> Tensor:
    cos, sin = angle.view(-1).cos(), angle.view(-1).sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x.view(-1), y.view(-1)], 1))


def _grid(affine: Tensor, images: Tensor) -> Tensor:
    """Return the sampling grid of an ``affine`` [N, 2, 3] map in pixels from the middle."""
    wide, high = images.shape[3] / 2, images.shape[2] / 2
    (a, b, x), (c, d, y) = (row.unbind(1) for row in affine.unbind(1))
    rows = [a, b * (high / wide), x / wide], [c * (wide / high), d, y / high]
    relative = torch.stack([torch.stack(row, 1) for row in rows], 1)
    return F.affine_grid(relative, list(images.shape), align_corners=False)


def _coloured(images: Tensor, dice: _Dice, p: Tensor) -> Tensor:
    """Return the images with their colours mapped by a random affine map each."""
    c = min(images.shape[1], 3)
    brightness = dice.chosen(p, 0.2 * dice.normal(), 0.0)
    contrast = dice.chosen(p, (0.5 * log(2) * dice.normal()).exp(), 1.0)
    rgb, rest = (images[:, :c] + brightness) * contrast, images[:, c:]
    invert = dice.chosen(p, dice.integers(0, 1).float(), 0.0)
    if c < 3:
        rgb = rgb * (1 - 2 * invert)  # gray is all luma
    else:
        hue = dice.chosen(p, (2 * dice.uniform() - 1) * pi, 0.0)
        saturation = dice.chosen(p, (log(2) * dice.normal()).exp(), 1.0)
        matrix = _colour_matrix(hue, invert, saturation).to(rgb.dtype)
        rgb = torch.einsum("nij,njhw->nihw", matrix, rgb)
    return torch.cat([rgb, rest], 1) if images.shape[1] > 3 else rgb


def _colour_matrix(hue: Tensor, invert: Tensor, saturation: Tensor) -> Tensor:
    """Return [N, 3, 3]: luma mirrored or not, then hue turned, then saturation scaled."""
    along = torch.full((3, 3), 1 / 3, device=hue.device)  # projection on gray
    unit = torch.eye(3, device=hue.device)
    across = unit - along
    cross = 3**-0.5 * (unit.roll(1, 0) - unit.roll(-1, 0))
    angle, scale, sign = (t.view(-1, 1, 1) for t in (hue, saturation, 1 - 2 * invert))
    return sign * along + scale * (angle.cos() * across + angle.sin() * cross)


class _Resample(torch.autograd.Function):
    """Bilinear sampling at a fixed grid, which torch can differentiate only once."""

    @staticmethod
    def forward(context: Any, images: Tensor, grid: Tensor) -> Tensor:
        context.save_for_backward(grid)
        context.shape = images.shape
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = context.saved_tensors
        given = gradients[0], grid, context.shape
        spread: Tensor = _Spread.apply(*given)  # type: ignore[no-untyped-call]
        return spread, None


class _Spread(torch.autograd.Function):
    """The transpose of :class:`_Resample`, which is linear: each is the other's derivative."""

    @staticmethod
    def forward(context: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        context.save_for_backward(grid)
        bilinear, reflection = 0, 2
        images = gradient.new_empty(shape)  # of which the kernel needs the shape alone
        spread: Tensor = torch.ops.aten.grid_sampler_2d_backward(
            gradient, images, grid, bilinear, reflection, False, [True, False]
        )[0]
        return spread

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = context.saved_tensors
        return resample(gradients[0], grid), None, None


def resample(images: Tensor, grid: Tensor) -> Tensor:
    """Return ``images`` [N, C, H, W] at ``grid`` [N, H, W, 2], the border mirrored.

    Linear in the images and differentiable any number of times; the grid is a constant.
    """
    given = images, grid.detach().to(images.dtype)
    sampled: Tensor = _Resample.apply(*given)  # type: ignore[no-untyped-call]
    return sampled
