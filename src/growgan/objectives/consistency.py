"""D should not care about what does not matter: consistency under small changes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.objectives.augment import shifted
from growgan.objectives.regulariser import Penalty, regulariser, term
from growgan.objectives.step import Chance, Step

SHIFT = 0.125  # of the image, at most: 4 pixels at 32x32


def moved(images: Tensor, chance: Chance) -> Tensor:
    """Return each image flipped by chance and shifted by up to an eighth, its border mirrored."""
    n, _, h, w = images.shape
    flip = chance.uniform(n, 1, 1, 1) < 0.5
    images = torch.where(flip, images.flip(3), images)
    dy, dx = max(1, round(SHIFT * h)), max(1, round(SHIFT * w))
    padded = F.pad(
        images, (dx, dx, dy, dy), mode="reflect" if min(h, w) > max(dy, dx) else "replicate"
    )
    down, right = (most - chance.integers(0, 2 * most + 1, n, 1, 1, 1) for most in (dy, dx))
    return shifted(padded, down, right)[:, :, dy : dy + h, dx : dx + w]


def _disagreement(step: Step, images: Tensor, logits: Tensor) -> Tensor:
    return (logits - step.verdict(moved(images, step.chance))).square().mean()


@term("cr", "D agrees on a real and its shifted copy", "Zhang et al. 2020, 1910.12027", weight=10.0)
def consistency(step: Step) -> Tensor:
    """E |D(x) - D(T(x))|² on reals, T a flip and a shift."""
    return _disagreement(step, step.real, step.verdict(step.real))


@term("bcr", "as cr, on fakes too", "Zhao et al. 2021, 2002.04724", weight=10.0)
def balanced_consistency(step: Step) -> Tensor:
    """E |D(x) - D(T(x))|² on reals plus the same on fakes."""
    fake = step.fake.detach()
    on_fakes = _disagreement(step, fake, step.verdict(fake))
    return consistency(step) + on_fakes


@regulariser("zcr", "D ignores small steps of z, G does not", "Zhao et al. 2021, 2002.04724")
@dataclass(frozen=True)
class LatentConsistency(Penalty):
    """D: E |D(G(z)) - D(G(z + σ ε))|²; G: -E |G(z) - G(z + σ ε)|², per pixel.

    Attributes:
        weight: of D's term; ``generator_weight`` of G's, relative to that.
        noise: σ.
    """

    weight: float = 5.0
    generator_weight: float = 0.1
    noise: float = 0.07

    both = True

    def discriminator(self, step: Step) -> Tensor:
        with torch.no_grad():
            made, near = self._pair(step, step.made if len(step.made) else step.fake)
        return (step.verdict(made) - step.verdict(near)).square().mean()

    def generator(self, step: Step) -> Tensor:
        made, near = self._pair(step, step.fake)
        return -self.generator_weight * (made - near).square().mean()

    def _pair(self, step: Step, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return G(z) and G(z + σ ε), which differ in nothing else: no mixing, the same noise."""
        z, rest = step.apart
        near = torch.cat([z + self.noise * step.chance.normal(*z.shape), rest], 1)
        if step.generator.noisy:
            return _unmixed(step, step.latents), _unmixed(step, near)
        return fake, step.generator(near)


def _unmixed(step: Step, latents: Tensor) -> Tensor:
    """Return G's images of ``latents``, each of one style, with noise that depends on the step."""
    with torch.random.fork_rng([latents.device] if latents.is_cuda else []):
        torch.manual_seed(step.rng.initial_seed())
        return step.generator.synthesise(step.generator.embed(latents))
