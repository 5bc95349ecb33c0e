"""What lets D's logits depend on the label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Rows,
    cross_entropies,
    mean_of_known,
    scores,
)
from growgan.objectives.options import Switch
from growgan.objectives.step import Step


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


@CONDITIONINGS.register("image", "a given image beside the image", "Isola et al. 2017, 1611.07004")
@dataclass(frozen=True)
class Given(Judging):
    """D(x, c) sees the image c that x is made from as further channels; for tasks alone.

    Attributes:
        turned: how many of c's channels, the first ones, the a contrario term takes from another;
            0: all of them.
    """

    turned: int = 0

    labelled = False
    given = True


@CONDITIONINGS.register(
    "image-projection",
    "logit + <V c, features> of a given image",
    "Miyato & Koyama 2018, 1802.05637",
)
@dataclass(frozen=True)
class GivenProjection(Given):
    """D(x, c) = ψ(φ) + <V c, φ>, c the image that x is made from; for tasks alone.

    As of super-resolution in Miyato & Koyama 2018, section 4.2: D's layers see x alone. Each place
    of D's base is compared with 4 x 4 pixels of c, averaged where it has more: all that there is of
    a coarse image whose sides are 4 times the base's.
    """

    judging = "image"


@CONDITIONINGS.register(
    "domains", "each image into one of the other kind", "Zhu et al. 2017, 1703.10593"
)
@dataclass(frozen=True)
class Domains(Conditioning):
    """Two kinds of images, none of which has a partner; D has a logit for each; for tasks alone.

    G's loss gains cycle · E |G(G(c, y), y') - c| + identity · E |G(x, y) - x|, where c is an image
    of the other kind y' and x one of y (Zhu et al. 2017, equations 2 and 5.2). One G goes both
    ways, as in StarGAN (Choi et al. 2018, 1711.09020).

    Attributes:
        cycle: weight of the way there and back.
        identity: weight of what should stay as it is.
    """

    cycle: float = 10.0
    identity: float = 5.0

    judging = "heads"
    given = True
    beside = False

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}

    def generator(self, step: Step) -> dict[str, Tensor]:
        given = step.given.view_as(step.fake)
        back = self._made(step, step.fake, step.labels.flip(1))
        terms = {"cycle": self.cycle * (back.float() - given).abs().mean()}
        if self.identity:
            same = self._made(step, step.real, step.labels)
            terms["identity"] = self.identity * (same.float() - step.real.float()).abs().mean()
        return terms

    def _made(self, step: Step, images: Tensor, labels: Tensor) -> Tensor:
        z = step.latents[:, : step.generator.spec.latent]
        made: Tensor = step.generator(torch.cat([z, labels, images.flatten(1).float()], 1))
        return made


@CONDITIONINGS.register(
    "concat", "the label as maps beside the image", "Mirza & Osindero 2014, 1411.1784"
)
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


@CONDITIONINGS.register(
    "md", "a logit of its own for each class", "Mescheder et al. 2018, 1801.04406"
)
@dataclass(frozen=True)
class MultiHead(Judging):
    """D(x, y) is the y-th of K logits."""

    judging = "heads"

    def readouts(self, classes: int) -> dict[str, int]:
        return {"p": classes}


@CONDITIONINGS.register(
    "p2gan", "projection on the difference of two classifiers", "Han et al. 2021, 2108.09016"
)
@dataclass(frozen=True)
class DualProjection(Judging):
    """D = ψ + <v_y^p - v_y^q, φ>, with CE_p of reals and CE_q of fakes (2108.09016, equation 8).

    In the paper's adaptive form an image's cross entropy counts exp(-w) with the penalty w, which
    has no floor: where a class is sure, CE = 0, the loss falls with w for ever, and exp(-w) grows
    beyond all numbers. Here it counts λ = sigmoid(-w), with the penalty -log λ: the same up to 1,
    and never below 0. w is read off φ / ||φ||, so that it begins near 0 (λ = ½) whatever the
    length of φ, in float32, and without a gradient to φ.

    Attributes:
        weight: of both cross entropies.
        adaptive: 1 for a weight λ(φ) of each image's own, with the penalty mean -log λ.
    """

    weight: float = 1.0
    adaptive: Switch = 0

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
            with torch.autocast(features.device.type, enabled=False):
                w = scores(step, "w", F.normalize(features.detach().float(), dim=1))[:, 0]
            log = F.logsigmoid(-w)  # of λ
            each = log.exp() * each - log * known
        return mean_of_known(each, known)
