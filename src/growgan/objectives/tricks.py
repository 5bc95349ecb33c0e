"""Other hands on a step: what D is shown, which latents are drawn, what G learns from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.objectives.options import Count, Positive, Share, Switch
from growgan.objectives.regulariser import (
    Penalty,
    Regulariser,
    as_written,
    regulariser,
    term,
)
from growgan.objectives.step import Step


@regulariser("top-k", "G learns from its best fakes", "Sinha et al. 2020, 2002.06224")
@dataclass(frozen=True)
class TopK(Regulariser):
    """G's loss sees the k fakes that D finds most real; k falls from the batch to a share of it.

    Attributes:
        decay: of k, in ``epoch`` images.
        least: share of the batch below which k does not fall.
    """

    decay: Share = 0.99
    least: Share = 0.5
    epoch: Count = 50_000

    def kept(self, step: Step, logits: Tensor) -> Tensor:
        share = max(self.decay ** (step.images / self.epoch), self.least)
        scores = step.up * logits.detach().view(len(logits), -1).mean(1)
        return logits[scores.topk(max(1, ceil(share * len(logits)))).indices]


@regulariser(
    "feature-matching", "mean features of fakes as of reals", "Salimans et al. 2016, 1606.03498"
)
@dataclass(frozen=True)
class FeatureMatching(Penalty):
    """G: ||E f(x) - E f(G(z))||² / d, f the d features that D's logit is a linear map of.

    Attributes:
        alone: 1 in place of G's loss, whose value stays in the log, as in the paper (section 3.1);
            0 beside it.
    """

    alone: Switch = 0

    def kept(self, step: Step, logits: Tensor) -> Tensor:
        return logits.detach() + 0 * logits if self.alone else logits

    def generator(self, step: Step) -> Tensor:
        with torch.no_grad():
            real = step.features(step.real).float().mean(0)
        fake = step.features(step.fake).float().mean(0)
        return (real - fake).square().mean()


@term(
    "pulling-away",
    "D's features of fakes unlike each other",
    "Zhao et al. 2017, 1609.03126",
    player="generator",
    weight=0.1,
)
def pulling_away(step: Step) -> Tensor:
    """Mean squared cosine of the features of two different fakes (1609.03126, equation 4)."""
    features = F.normalize(step.features(step.fake).float(), dim=1)
    cosines = (features @ features.T).square()
    n = len(features)
    return (cosines.sum() - cosines.diagonal().sum()) / max(1, n * (n - 1))


@regulariser("path-length", "equal steps of z, equal steps of G", "Karras et al. 2020, 1912.04958")
@dataclass(frozen=True)
class PathLength(Penalty):
    """E (||J_wᵀ y|| - a)², y normal images, a its running average (StyleGAN2, section 3.2).

    Each layer has a w of its own, and the square of the norm is the mean over layers, as published
    in code. Without a mapping network w is the latents: labels and given images do not count.

    Attributes:
        decay: of a, a time that the term is taken.
        share: of the batch that it is taken on.
    """

    weight: float = 2.0
    every: int = 4
    decay: Share = 0.99
    share: Share = 0.5

    def generator(self, step: Step) -> Tensor:
        z = step.latents[: max(1, round(self.share * len(step.latents)))]
        with torch.autocast(z.device.type, enabled=False):
            w = step.generator.embed(z.float())
        w = w if w.requires_grad else w.requires_grad_()
        w = w[:, None].expand(-1, step.generator.styles, -1)  # [n, styles, w]
        with as_written():
            images = step.generator.synthesise(w).float()
            y = step.chance.normal(*images.shape)
            y = y / prod(images.shape[2:]) ** 0.5
            (slope,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
        slope = slope[..., : step.generator.spec.latent].float()
        lengths = slope.square().sum(2).mean(1).sqrt()
        mean = step.average("path.mean", lengths.mean(), self.decay)
        step.curves["path_mean"] = mean.clone()
        return (lengths - mean).square().mean()


@regulariser("latent", "z moved to what D likes", "Wu et al. 2019, 1912.00953 (LOGAN)")
@dataclass(frozen=True)
class LatentOptimisation(Regulariser):
    """z + α g / (β + ||g||²), g the gradient of D(G(z)) in z, taken as a constant.

    Where D gives errors it is that of -D(G(z)). What stands behind z stays as it is.

    Attributes:
        rate: α.
        damping: β.
    """

    rate: float = 0.9
    damping: Positive = 5.0

    def latents(self, step: Step) -> Tensor:
        with torch.enable_grad(), torch.autocast(step.latents.device.type, enabled=False):
            z, rest = (each.detach().float() for each in step.apart)
            z.requires_grad_()
            fakes = step.generator(torch.cat([z, rest], 1))
            (slope,) = torch.autograd.grad(step.up * step.judge(fakes).sum(), z)
        length = slope.square().sum(1, keepdim=True)
        moved = z.detach() + self.rate * slope / (self.damping + length)
        return torch.cat([moved, rest], 1)


@regulariser("replay", "half of D's fakes are old ones", "Shrivastava et al. 2017, 1612.07828")
@dataclass(frozen=True)
class Replay(Regulariser):
    """D trains on fakes of which a share comes from a buffer of past ones (1612.07828).

    An old one takes the place of a new one, of its own label where there are labels, which takes
    its place in the buffer: what D was not shown stays there (as in CycleGAN's code, 1703.10593).

    Attributes:
        size: fakes in the buffer.
        share: of a batch that comes from there.
    """

    size: Count = 1024
    share: Share = 0.5

    def presented(self, step: Step) -> tuple[Tensor, Tensor]:
        fake, store = step.fake.detach(), step.memory.get("replay.fakes")
        made = step.made if len(step.made) else fake  # whatever D is shown of it
        labels = step.labels if step.labels.numel() else fake.new_zeros(len(fake), 0)
        known = step.memory.get("replay.labels")
        if store is None or known is None or store.shape[1:] != fake.shape[1:]:
            store, known = fake[:0].clone(), labels[:0]  # it has grown: its past is of another size
        shown, room = fake, int(self.size) - len(store)
        if len(store):
            rows, places = _alike(labels[: round(self.share * len(fake))], known, step)
            shown = fake.index_copy(0, rows, store[places])
            if room <= 0:
                store = store.index_copy(0, places, made[rows])
        if room > 0:
            store, known = torch.cat([store, made[:room]]), torch.cat([known, labels[:room]])
        step.memory["replay.fakes"], step.memory["replay.labels"] = store, known
        return step.real, shown


def _alike(labels: Tensor, known: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Return rows of ``labels`` [n, k], and for each a place of its own in ``known`` [m, k].

    The place is drawn among those with the row's label; rows for which none is left are left out.
    """
    order = torch.rand(len(known), generator=step.rng, device=step.rng.device).argsort()
    turn = (labels[:, None] == labels[None]).all(2).tril(-1).sum(1)  # of the row in its label
    same = (labels[:, None] == known[order][None]).all(2)  # [n, m]
    hit = same & (same.cumsum(1) == turn[:, None] + 1)
    rows = hit.any(1).nonzero()[:, 0]
    return rows, order[hit[rows].int().argmax(1)]


@regulariser("dat", "D trains on attacked images", "Li et al. 2020, 2008.09041")
@dataclass(frozen=True)
class DirectAdversarialTraining(Regulariser):
    """x' = x - clip(∇_x |mean D(x) - mean D(G)|, -1, 1), fakes likewise; D sees these alone.

    Means over the whole batch; both stay in the range of images.
    """

    def presented(self, step: Step) -> tuple[Tensor, Tensor]:
        real, fake = step.real.float(), step.fake.detach().float()
        with torch.autocast(real.device.type, enabled=False):
            with torch.no_grad():
                levels = [step.judge(images).mean() for images in (real, fake)]
            shown = [
                _attacked(step, images, other)
                for images, other in zip((real, fake), reversed(levels), strict=True)
            ]
        return shown[0], shown[1]


def _attacked(step: Step, images: Tensor, other: Tensor) -> Tensor:
    """Return ``images`` moved so that D's mean logit of them comes nearer to ``other``."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        gap = (step.judge(x).mean() - other).abs()
        (slope,) = torch.autograd.grad(gap / step.place[1], x)  # a share of a mean over all
    return (images - slope.clamp(-1, 1)).clamp(-1, 1)
