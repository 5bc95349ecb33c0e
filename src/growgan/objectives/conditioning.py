"""How D is told about labels, and what both players learn from them.

A conditioning says how D's logits use a label (``judging``), which further linear maps of its
features there are (``readouts``), and which terms both losses gain. It sees features and labels,
and never images. G's side is a matter of its stack (:mod:`growgan.nets.forms`).

Notation: φ features, y the label (one number a class), f the features of fakes, CE cross entropy.
A row whose label is all zeros has none, and is left out of terms that need one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.nets import spec as specs
from growgan.objectives.regulariser import with_options
from growgan.objectives.step import Step
from growgan.registry import Registry

Rows = Float[Tensor, "n d"]


@dataclass(frozen=True)
class Conditioning:
    """What D does with labels; fields are options, by ``conditioning_options.NAME``.

    Attributes:
        judging: how logits use the label, see :class:`growgan.nets.stack.Discriminator`.
        labelled: whether the images must have labels.
    """

    judging: ClassVar[specs.Judging] = "plain"
    labelled: ClassVar[bool] = True

    def readouts(self, classes: int) -> dict[str, int]:
        """Return the names and sizes of the linear maps of features that it needs."""
        return {}

    @property
    def proxies(self) -> int:
        """Length of the learnt direction of each class; 0: it needs none."""
        return 0

    def codes(self) -> tuple[int, int]:
        """Return how many classes, and how many numbers, it makes up itself."""
        return 0, 0

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        """Return terms of D's loss, weighted."""
        return {}

    def generator(self, step: Step) -> dict[str, Tensor]:
        """Return terms of G's loss, weighted."""
        return {}


CONDITIONINGS: Registry[type[Conditioning]] = Registry("conditioning")


@CONDITIONINGS.register("none", "labels are not used")
@dataclass(frozen=True)
class Unconditional(Conditioning):
    """No label is seen by any player."""

    labelled = False


@dataclass(frozen=True)
class Judging(Conditioning):
    """What lets D's logits depend on the label.

    Attributes:
        contrary: weight of the a contrario term: that images with the label of another are fakes,
            reals and fakes alike (Boulahbal et al. 2021, 2103.15470; of text, Reed et al. 2016).
    """

    contrary: float = 0.0


@CONDITIONINGS.register("concat", "the label as maps beside the image", "Mirza & Osindero 2014")
@dataclass(frozen=True)
class Concatenation(Judging):
    """D(x, y) sees y as constant maps (Mirza & Osindero 2014, 1411.1784)."""

    judging = "concat"


@CONDITIONINGS.register("projection", "logit + <v_y, features>", "Miyato & Koyama 2018, 1802.05637")
@dataclass(frozen=True)
class Projection(Judging):
    """D(x, y) = ψ(φ) + <v_y, φ> (Miyato & Koyama 2018, equation 3)."""

    judging = "projection"

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}


@CONDITIONINGS.register("md", "a logit of its own for each class", "Mescheder et al. 2018")
@dataclass(frozen=True)
class MultiHead(Judging):
    """D(x, y) is the y-th of K logits."""

    judging = "heads"

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}


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
    """D: CE of reals, and of fakes; G: CE of fakes (Odena et al. 2017, equation 3)."""

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
        term = log_ratio(step).mean()
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register("adc", "real and fake classes in one classifier", "Hou et al. 2022")
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


@CONDITIONINGS.register("mh", "multi-hinge: fake is one more class", "Kavalerov et al. 2021")
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


@dataclass(frozen=True)
class Contrasting(Conditioning):
    """What compares features with each other, and with a learnt direction for each class.

    Features are mapped to ``width`` numbers and brought to unit length, as are the classes'
    directions, which are the rows of a linear map.

    Attributes:
        weight: of the term, in D's loss on reals and in G's on fakes.
        temperature: t.
        width: of the space in which they are compared.
    """

    weight: float = 1.0
    temperature: float = 0.5
    width: int = 128

    def readouts(self, classes: int) -> dict[str, int]:
        return {"h": self.width}

    @property
    def proxies(self) -> int:
        return self.width

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        return {"contrast": self.weight * self.term(step, step.real_features)}

    def generator(self, step: Step) -> dict[str, Tensor]:
        return {"contrast_generator": self.weight * self.term(step, step.fake_features)}

    def term(self, step: Step, features: Rows) -> Tensor:
        """Return the term of one kind of images."""
        rows = F.normalize(scores(step, "h", features), dim=1)
        proxies = F.normalize(step.discriminator.proxies.float(), dim=1)  # [classes, width]
        return self.contrast(rows, proxies, step.labels)

    def contrast(self, rows: Rows, proxies: Float[Tensor, "k d"], y: Rows) -> Tensor:
        """Return the term of rows and proxies of unit length."""
        raise NotImplementedError


@CONDITIONINGS.register("2c", "alike within a class, unlike beyond", "Kang & Park 2020, 2006.12681")
@dataclass(frozen=True)
class ConditionalContrastive(Contrasting):
    """-log of the share of a row's own: its class's direction, and rows of its class.

    Kang & Park 2020 (ContraGAN), equation 8.
    """

    def contrast(self, rows: Rows, proxies: Float[Tensor, "k d"], y: Rows) -> Tensor:
        known = y.sum(1) > 0
        rows, y = rows[known], y[known]
        to_proxy = ((rows @ proxies.T) * y).sum(1).div(self.temperature).exp()
        to_rows = (rows @ rows.T / self.temperature).exp()
        to_rows = to_rows * (1 - torch.eye(len(rows), device=rows.device))
        same = y @ y.T
        own, all_ = to_proxy + (to_rows * same).sum(1), to_proxy + to_rows.sum(1)
        return -(own / all_).log().sum() / max(1, len(rows))


@CONDITIONINGS.register(
    "d2d-ce", "data to data, easy pairs left out", "Kang et al. 2021, 2111.01118"
)
@dataclass(frozen=True)
class DataToDataCrossEntropy(Contrasting):
    """-log softmax of a row's own direction against rows of other classes, both with margins.

    Kang et al. 2021 (ReACGAN), equation 5.

    Attributes:
        positive_margin: m_p, above which a row is near enough to its direction.
        negative_margin: m_n, below which two rows are far enough apart.
    """

    positive_margin: float = 0.98
    negative_margin: float = 0.02

    def contrast(self, rows: Rows, proxies: Float[Tensor, "k d"], y: Rows) -> Tensor:
        known = y.sum(1) > 0
        rows, y = rows[known], y[known]
        own = ((rows @ proxies.T) * y).sum(1)
        own = (own - self.positive_margin).clamp(max=0) / self.temperature
        others = (rows @ rows.T - self.negative_margin).clamp(min=0) / self.temperature
        others = others.masked_fill((y @ y.T) > 0.5, float("-inf"))
        whole = torch.logsumexp(torch.cat([own[:, None], others], 1), 1)
        return (whole - own).sum() / max(1, len(rows))


@CONDITIONINGS.register(
    "p2gan", "projection on the difference of two classifiers", "Han et al. 2021"
)
@dataclass(frozen=True)
class DualProjection(Judging):
    """D = ψ + <v_y^p - v_y^q, φ>, with CE_p of reals and CE_q of fakes (2108.09016, equation 8).

    Attributes:
        weight: of both cross entropies.
        adaptive: 1 for a weight exp(-w(φ)) of each image's own, with the penalty mean w.
    """

    weight: float = 1.0
    adaptive: int = 0

    judging = "difference"

    def readouts(self, classes: int) -> dict[str, int]:
        weights = {"w": 1} if self.adaptive else {}
        return {"p": classes, "q": classes, **weights}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        return {
            "class": self.weight * self._term(step, "p", step.real_features),
            "twin": self.weight * self._term(step, "q", step.fake_features),
        }

    def _term(self, step: Step, name: str, features: Rows) -> Tensor:
        each, known = cross_entropies(scores(step, name, features), step.labels)
        if self.adaptive:
            w = scores(step, "w", features)[:, 0]
            each = torch.exp(-w) * each + w * known
        return each.sum() / known.sum().clamp(min=1)


@CONDITIONINGS.register("f-cgan", "G also closes the gap of two classifiers", "Han et al. 2021")
@dataclass(frozen=True)
class FDivergence(Classifying):
    """L_G gains E f(r), r = exp(CE_q - CE_p) on fakes; D: CE_p of reals, CE_q of fakes.

    Attributes:
        divergence: 0 reverse KL, 1 KL, 2 Pearson, 3 squared Hellinger, 4 Jensen-Shannon.
    """

    divergence: int = 0

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes, "q": classes}

    def discriminator(self, step: Step) -> dict[str, Tensor]:
        return TwinAuxiliaryClassifier(self.weight).discriminator(step)

    def generator(self, step: Step) -> dict[str, Tensor]:
        # r is the density of reals over that of fakes, within the class.
        log_r = -log_ratio(step)
        term = divergence(int(self.divergence), log_r).mean()
        return {"class_generator": self.generator_weight * term}


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
    """
    log_r = log_r.clamp(-10, 10)
    r = log_r.exp()
    if kind == 0:
        return -log_r
    if kind == 1:
        return r * log_r
    if kind == 2:
        return (r - 1).square()
    if kind == 3:
        return (r.sqrt() - 1).square()
    return 0.5 * (r * log_r - (r + 1) * ((r + 1) / 2).log())


def scores(step: Step, name: str, features: Rows) -> Tensor:
    """Return what D's readout ``name`` makes of features, float32."""
    values: Tensor = step.discriminator.readouts[name](features)
    return values.float()


def cross_entropies(logits: Rows, y: Rows) -> tuple[Tensor, Tensor]:
    """Return each row's cross entropy, 0 where there is no label, and 1 where there is one."""
    known = y.sum(1)
    return -(F.log_softmax(logits.float(), 1) * y).sum(1), known


def cross_entropy(logits: Rows, y: Rows) -> Tensor:
    """Return the mean cross entropy of the rows that have a label."""
    each, known = cross_entropies(logits, y)
    return each.sum() / known.sum().clamp(min=1)


def log_ratio(step: Step) -> Tensor:
    """Return CE_p - CE_q of each fake: how much clearer its class is among fakes."""
    each = [
        cross_entropies(scores(step, name, step.fake_features), step.labels)[0] for name in "pq"
    ]
    return each[0] - each[1]


def multi_hinge(values: Rows, y: Rows) -> Tensor:
    """Return the mean of [1 - C_y + C_¬y]₊ over the rows that have a label."""
    own = (values * y).sum(1)
    others = (values - 1e9 * y).amax(1)
    known = y.sum(1)
    return (F.relu(1 - own + others) * known).sum() / known.sum().clamp(min=1)


def make_conditioning(name: str, options: Mapping[str, float]) -> Conditioning:
    """Return the conditioning ``name`` with ``options``.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    return with_options(CONDITIONINGS[name](), options, "conditioning_options")
