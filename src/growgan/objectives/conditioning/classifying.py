"""What has a classifier on D's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.errors import UserError
from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Rows,
    cross_entropies,
    cross_entropy,
    mean_of_known,
    scores,
)
from growgan.objectives.options import Range
from growgan.objectives.step import Step

REACH = 3.0  # of log r, within which a divergence is what its formula says


@dataclass(frozen=True)
class Classifying(Conditioning):
    """What has a classifier p on D's features.

    Attributes:
        weight: of D's term.
        generator_weight: of G's.
    """

    weight: float = 1.0
    generator_weight: float = 1.0

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}


@CONDITIONINGS.register("ac", "an auxiliary classifier", "Odena et al. 2017, 1610.09585")
@dataclass(frozen=True)
class AuxiliaryClassifier(Classifying):
    """D: CE of reals, and of fakes; G: CE of fakes (Odena et al. 2017, equation 3).

    For G it counts 0.1, as in the code of Gulrajani et al. 2017: at 1, as in the paper, G draws
    what is sure to be of a class, and little else of it.
    """

    generator_weight: float = 0.1

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        on_reals, on_fakes = (
            cross_entropy(scores(step, "p", each), step.labels)
            for each in (step.real_features, step.fake_features)
        )
        return {"class": self.weight * (on_reals + on_fakes)}

    def generator(self, step: Step) -> dict[str, Tensor]:
        term = cross_entropy(scores(step, "p", step.fake_features), step.labels)
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register("tac", "a twin classifier, of fakes alone", "Gong et al. 2019, 1907.02690")
@dataclass(frozen=True)
class TwinAuxiliaryClassifier(Classifying):
    """D: CE_p of reals and CE_q of fakes; G: CE_p - CE_q of fakes (Gong et al. 2019, equation 4).

    The twin q takes from G what the classifier alone gives it: to make labels too clear.
    """

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes, "q": classes}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        return {
            "class": self.weight
            * cross_entropy(scores(step, "p", step.real_features), step.labels),
            "twin": self.weight * cross_entropy(scores(step, "q", step.fake_features), step.labels),
        }

    def generator(self, step: Step) -> dict[str, Tensor]:
        term = mean_of_known(*log_ratio(step))
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "adc", "real and fake classes in one classifier", "Hou et al. 2022, 2107.10060"
)
@dataclass(frozen=True)
class DiscriminativeClassifier(Classifying):
    """One classifier of 2K classes, (y, real) and (y, fake) (Hou et al. 2022, 2107.10060).

    D: CE of reals and fakes; G: CE to (y, real) less CE to (y, fake) on fakes.
    """

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": 2 * classes}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        real, fake = self._targets(step)
        on_reals = cross_entropy(scores(step, "p", step.real_features), real)
        on_fakes = cross_entropy(scores(step, "p", step.fake_features), fake)
        return {"class": self.weight * (on_reals + on_fakes)}

    def generator(self, step: Step) -> dict[str, Tensor]:
        real, fake = self._targets(step)
        seen = scores(step, "p", step.fake_features)
        term = cross_entropy(seen, real) - cross_entropy(seen, fake)
        return {"class_generator": self.generator_weight * term}

    def _targets(self, step: Step) -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(step.labels)
        return torch.cat([step.labels, nothing], 1), torch.cat([nothing, step.labels], 1)


@CONDITIONINGS.register(
    "mh", "multi-hinge: fake is one more class", "Kavalerov et al. 2021, 1912.04216"
)
@dataclass(frozen=True)
class MultiHinge(Classifying):
    """Crammer-Singer hinge of K + 1 classes, the last of which is "fake" (1912.04216).

    D: [1 - C_y + C_¬y]₊ on reals, [1 - C_K + C_¬K]₊ on fakes; G: [1 - C_y + C_¬y]₊ on fakes, where
    C_¬y is the largest of the others.
    """

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes + 1}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        own = F.pad(step.labels, (0, 1))
        fake = F.pad(torch.zeros_like(step.labels), (0, 1), value=1.0)
        on_reals = multi_hinge(scores(step, "p", step.real_features), own)
        on_fakes = multi_hinge(scores(step, "p", step.fake_features), fake)
        return {"class": self.weight * (on_reals + on_fakes)}

    def generator(self, step: Step) -> dict[str, Tensor]:
        term = multi_hinge(scores(step, "p", step.fake_features), F.pad(step.labels, (0, 1)))
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "f-cgan", "G also closes the gap of two classifiers", "Han et al. 2021, 2108.09016"
)
@dataclass(frozen=True)
class FDivergence(TwinAuxiliaryClassifier):
    """L_G gains E f(r), r = exp(CE_q - CE_p) on fakes; D: CE_p of reals, CE_q of fakes.

    Attributes:
        divergence: 0 reverse KL, 1 KL, 2 Pearson, 3 squared Hellinger, 4 Jensen-Shannon.
    """

    divergence: Annotated[int, Range(0, 4)] = 0

    def generator(self, step: Step) -> dict[str, Tensor]:
        # r is the density of reals over that of fakes, within the class.
        ratio, known = log_ratio(step)
        term = mean_of_known(divergence(self.divergence, -ratio) * known, known)
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "semi", "a class more, of fakes; few labels do", "Salimans et al. 2016, 1606.03498"
)
@dataclass(frozen=True)
class SemiSupervised(Conditioning):
    """D is a classifier of K classes and of fakes: its logit is log Σ_k exp l_k, that of fakes 0.

    D: CE of the reals that have a label, beside the loss, for which "non-saturating" stands in the
    paper, as does "feature-matching" for G's. G draws from all classes and is told none
    (Salimans et al. 2016, 1606.03498, section 5).

    Attributes:
        weight: of the cross entropy.
    """

    weight: float = 1.0

    judging = "classes"
    told = False

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        term = cross_entropy(scores(step, "p", step.real_features), step.labels)
        return {"class": self.weight * term}


@CONDITIONINGS.register(
    "infogan", "codes that D can read off images", "Chen et al. 2016, 1606.03657"
)
@dataclass(frozen=True)
class InfoGan(Conditioning):
    """Both losses gain -log Q(c | G(z, c)), Q a readout of D; labels are not needed.

    Attributes:
        categories: of the categorical code, uniform.
        numbers: continuous codes, standard normal, with Q of unit variance.
        weight: λ.
    """

    categories: int = 10
    numbers: int = 2
    weight: float = 1.0

    labelled = False

    def __post_init__(self) -> None:
        if not sum(self.codes()):
            raise UserError(
                "conditioning 'infogan' needs a code: set categories or numbers above 0"
            )

    def codes(self) -> tuple[int, int]:
        return self.categories, self.numbers

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        return {"code": self.weight * self._surprise(step)}

    def generator(self, step: Step) -> dict[str, Tensor]:
        return {"code_generator": self.weight * self._surprise(step)}

    def _surprise(self, step: Step) -> Tensor:
        guess, k = scores(step, "p", step.fake_features), self.categories
        numbers = 0.5 * (guess[:, k:] - step.labels[:, k:]).square().sum(1).mean()
        return cross_entropy(guess[:, :k], step.labels[:, :k]) + numbers


def divergence(kind: int, log_r: Tensor) -> Tensor:
    """Return f(r), whose mean over fakes is the divergence of reals from fakes; r = p/q.

    Reverse KL -log r, KL r log r, Pearson (r - 1)², squared Hellinger (sqrt(r) - 1)²,
    Jensen-Shannon ½ (r log r - (r + 1) log((r + 1)/2)).

    The gradient is that of the divergence itself. Where fakes move their density moves, too, and r
    with it, so that a fake's share is f(r) - r f'(r), the functional derivative by q: up to a
    constant -log r, -r, -r², -sqrt(r) and -½ log(r + 1). Each falls with r: G moves to where reals
    are more frequent than fakes. By f(r) alone all but the first would move it to where r is the
    argument of f's minimum. Beyond ±``REACH`` the slopes by log r stay as they are there: they
    would vanish where r is small, which is where G is most wrong, and grow as r² where it is large.
    """
    near = log_r.detach().clamp(-REACH, REACH)
    r = near.exp()
    middle = ((r + 1) / 2).log()
    if kind == 0:
        value, slope = -log_r.detach(), -torch.ones_like(r)
    elif kind == 1:
        value, slope = r * near, -r
    elif kind == 2:
        value, slope = (r - 1).square(), -2 * r.square()
    elif kind == 3:
        value, slope = (r.sqrt() - 1).square(), -0.5 * r.sqrt()
    else:
        value, slope = 0.5 * (r * near - (r + 1) * middle), -0.5 * r / (r + 1)
    return value + slope * (log_r - log_r.detach())


def log_ratio(step: Step) -> tuple[Tensor, Tensor]:
    """Return CE_p - CE_q of each fake: how much clearer its class is among fakes.

    And 0 where there is no label, 1 where there is one.
    """
    (p, known), (q, _) = (
        cross_entropies(scores(step, name, step.fake_features), step.labels) for name in "pq"
    )
    return p - q, known


def multi_hinge(values: Rows, y: Rows) -> Tensor:
    """Return the mean of [1 - C_y + C_¬y]₊ over the rows that have a label."""
    own = (values * y).sum(1)
    others = (values - 1e9 * y).amax(1)
    known = y.sum(1)
    return mean_of_known(F.relu(1 - own + others) * known, known)
