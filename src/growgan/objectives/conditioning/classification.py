"""Conditionings with a classifier on D's features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from growgan.errors import UserError
from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Vectors,
    cross_entropy,
    cross_entropy_per_sample,
    linear_head_output,
    mean_over_labeled,
)
from growgan.objectives.options import NonNegativeFloat, NonNegativeInt
from growgan.objectives.step_context import StepContext

Divergence = Literal["reverse-kl", "kl", "pearson", "squared-hellinger", "jensen-shannon"]

MAX_ABS_LOG_RATIO = 3.0  # bound of |log r| within which the gradient is that of the f-divergence


class ClassifierConditioning(Conditioning):
    """A classifier p on D's features."""

    weight: NonNegativeFloat = Field(1.0, description="Weight of the classifier in D's loss.")
    generator_weight: NonNegativeFloat = Field(
        1.0, description="Weight of the classifier in G's loss."
    )

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}


@CONDITIONINGS.register("ac", "An auxiliary classifier (ACGAN).", "Odena et al. 2017, 1610.09585")
class AuxiliaryClassifier(ClassifierConditioning):
    """D: CE of real and of fake images; G: CE of fakes (Odena et al. 2017, equation 3).

    The default weight of G's term is 0.1, as in the code of Gulrajani et al. 2017. With the
    paper's weight of 1, G makes only the most typical images of each class.
    """

    generator_weight: NonNegativeFloat = Field(
        0.1, description="Weight of the classifier in G's loss."
    )

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        real = cross_entropy(
            linear_head_output(step, "classifier", step.real_features), step.labels
        )
        fake = cross_entropy(
            linear_head_output(step, "classifier", step.fake_features), step.labels
        )
        return {"class": self.weight * (real + fake)}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        logits = linear_head_output(step, "classifier", step.fake_features)
        return {"class_generator": self.generator_weight * cross_entropy(logits, step.labels)}


@CONDITIONINGS.register(
    "tac",
    "An auxiliary classifier and a twin trained on fakes (TAC-GAN).",
    "Gong et al. 2019, 1907.02690",
)
class TwinAuxiliaryClassifier(ClassifierConditioning):
    """D: CE_p of real images and CE_q of fakes; G: CE_p - CE_q of fakes (Gong et al., equation 4).

    The twin q removes the incentive of G to make classes more distinct than they are.
    """

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes, "fake_classifier": num_classes}

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        real_logits = linear_head_output(step, "classifier", step.real_features)
        fake_logits = linear_head_output(step, "fake_classifier", step.fake_features)
        return {
            "class": self.weight * cross_entropy(real_logits, step.labels),
            "class_fake": self.weight * cross_entropy(fake_logits, step.labels),
        }

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        term = mean_over_labeled(*class_log_ratio(step))
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "adc",
    "One classifier of all pairs of class and real or fake (ADC-GAN).",
    "Hou et al. 2022, 2107.10060",
)
class AuxiliaryDiscriminativeClassifier(ClassifierConditioning):
    """One classifier of 2K classes, (y, real) and (y, fake) (Hou et al. 2022).

    D: CE of real and fake images; G: CE to (y, real) minus CE to (y, fake) of fakes.
    """

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": 2 * num_classes}

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        real_targets, fake_targets = self._targets(step)
        real_logits = linear_head_output(step, "classifier", step.real_features)
        fake_logits = linear_head_output(step, "classifier", step.fake_features)
        real = cross_entropy(real_logits, real_targets)
        fake = cross_entropy(fake_logits, fake_targets)
        return {"class": self.weight * (real + fake)}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        real_targets, fake_targets = self._targets(step)
        logits = linear_head_output(step, "classifier", step.fake_features)
        term = cross_entropy(logits, real_targets) - cross_entropy(logits, fake_targets)
        return {"class_generator": self.generator_weight * term}

    def _targets(self, step: StepContext) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros_like(step.labels)
        return torch.cat([step.labels, zeros], 1), torch.cat([zeros, step.labels], 1)


@CONDITIONINGS.register(
    "mh",
    "Multi-hinge loss with fake as one more class.",
    "Kavalerov et al. 2021, 1912.04216",
)
class MultiHinge(ClassifierConditioning):
    """Crammer-Singer hinge loss of K + 1 classes, the last of which is "fake".

    D: [1 - C_y + C_¬y]₊ on real images, [1 - C_K + C_¬K]₊ on fakes; G: [1 - C_y + C_¬y]₊ on
    fakes. C_¬y is the largest of the other outputs.
    """

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes + 1}

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        class_targets = F.pad(step.labels, (0, 1))
        fake_targets = F.pad(torch.zeros_like(step.labels), (0, 1), value=1.0)
        real_logits = linear_head_output(step, "classifier", step.real_features)
        fake_logits = linear_head_output(step, "classifier", step.fake_features)
        real = multi_hinge_loss(real_logits, class_targets)
        fake = multi_hinge_loss(fake_logits, fake_targets)
        return {"class": self.weight * (real + fake)}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        logits = linear_head_output(step, "classifier", step.fake_features)
        term = multi_hinge_loss(logits, F.pad(step.labels, (0, 1)))
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "f-cgan",
    "G minimizes an f-divergence estimated by a real and a fake classifier.",
    "Han et al. 2021, 2108.09016",
)
class FDivergence(TwinAuxiliaryClassifier):
    """L_G gains E f(r), r = exp(CE_q - CE_p) of fakes; D: CE_p of reals and CE_q of fakes."""

    divergence: Divergence = Field("reverse-kl", description="The f-divergence to minimize.")

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        # r is the density of real images divided by that of fakes, within the class.
        log_ratio, is_labeled = class_log_ratio(step)
        values = f_divergence(self.divergence, -log_ratio) * is_labeled
        term = mean_over_labeled(values, is_labeled)
        return {"class_generator": self.generator_weight * term}


@CONDITIONINGS.register(
    "semi",
    "Semi-supervised: D classifies images into the classes and fake; few labels suffice.",
    "Salimans et al. 2016, 1606.03498",
)
class SemiSupervisedClassifier(Conditioning):
    """D classifies into K classes and "fake": its logit is log Σ_k exp l_k, that of fake is 0.

    D's loss gains the CE of labeled real images. G draws from all classes and receives no label.
    The paper combines this with loss "non-saturating" and regularizer "feature-matching"
    (Salimans et al. 2016, section 5).
    """

    weight: NonNegativeFloat = Field(1.0, description="Weight of the cross entropy.")

    logit_conditioning = "class_scores"
    generator_conditioned = False

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        logits = linear_head_output(step, "classifier", step.real_features)
        return {"class": self.weight * cross_entropy(logits, step.labels)}


@CONDITIONINGS.register(
    "infogan",
    "Learns interpretable codes without labels (InfoGAN).",
    "Chen et al. 2016, 1606.03657",
)
class InfoGan(Conditioning):
    """Both losses gain -log Q(c | G(z, c)), where Q is a linear head of D. Labels are not used."""

    num_categories: NonNegativeInt = Field(
        10, description="Number of categories of the uniform categorical code; 0 for none."
    )
    num_continuous: NonNegativeInt = Field(
        2, description="Number of continuous codes, which are standard normal."
    )
    weight: NonNegativeFloat = Field(1.0, description="Weight λ of the mutual information.")

    needs_labels = False

    @model_validator(mode="after")
    def _require_a_code(self) -> InfoGan:
        if not sum(self.code_sizes()):
            raise UserError(
                "conditioning 'infogan' needs a code: set"
                " conditioning_options.num_categories or conditioning_options.num_continuous"
                " above 0"
            )
        return self

    def code_sizes(self) -> tuple[int, int]:
        return self.num_categories, self.num_continuous

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        return {"code": self.weight * self._code_negative_log_likelihood(step)}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        return {"code_generator": self.weight * self._code_negative_log_likelihood(step)}

    def _code_negative_log_likelihood(self, step: StepContext) -> Tensor:
        prediction = linear_head_output(step, "classifier", step.fake_features)
        k = self.num_categories
        continuous = 0.5 * (prediction[:, k:] - step.labels[:, k:]).square().sum(1).mean()
        return cross_entropy(prediction[:, :k], step.labels[:, :k]) + continuous


def f_divergence(divergence: Divergence, log_ratio: Tensor) -> Tensor:
    """Return f(r), whose mean over fakes is the divergence of reals from fakes; r = p/q.

    Reverse KL: -log r. KL: r log r. Pearson: (r - 1)². Squared Hellinger: (sqrt(r) - 1)².
    Jensen-Shannon: ½ (r log r - (r + 1) log((r + 1)/2)).

    The gradient is that of the divergence itself. When fakes move, their density q and with it r
    change, so the contribution of a fake is f(r) - r f'(r), the functional derivative in q. Up to a
    constant it is -log r, -r, -r², -sqrt(r) and -½ log(r + 1). Each falls with r, so G moves to
    where real images are more frequent than fakes. The gradient of f(r) alone would instead, for
    all but the first, move G to where f has its minimum.

    Beyond ±``MAX_ABS_LOG_RATIO`` the derivative in log r is constant. Otherwise it would vanish
    for small r, where G is most wrong, and grow as r² for large r.
    """
    clamped = log_ratio.detach().clamp(-MAX_ABS_LOG_RATIO, MAX_ABS_LOG_RATIO)
    r = clamped.exp()
    if divergence == "reverse-kl":
        value, slope = -log_ratio.detach(), -torch.ones_like(r)
    elif divergence == "kl":
        value, slope = r * clamped, -r
    elif divergence == "pearson":
        value, slope = (r - 1).square(), -2 * r.square()
    elif divergence == "squared-hellinger":
        value, slope = (r.sqrt() - 1).square(), -0.5 * r.sqrt()
    else:
        log_mean = ((r + 1) / 2).log()
        value, slope = 0.5 * (r * clamped - (r + 1) * log_mean), -0.5 * r / (r + 1)
    return value + slope * (log_ratio - log_ratio.detach())


def class_log_ratio(step: StepContext) -> tuple[Tensor, Tensor]:
    """Return CE_p - CE_q of each fake, and 1 for fakes with a label and 0 for the others.

    It is positive if the class is more evident among fakes than among real images. It is 0 for
    rows without a label.
    """
    real_logits = linear_head_output(step, "classifier", step.fake_features)
    fake_logits = linear_head_output(step, "fake_classifier", step.fake_features)
    by_real, is_labeled = cross_entropy_per_sample(real_logits, step.labels)
    by_fake, _ = cross_entropy_per_sample(fake_logits, step.labels)
    return by_real - by_fake, is_labeled


def multi_hinge_loss(logits: Vectors, targets: Vectors) -> Tensor:
    """Return the mean of [1 - C_y + C_¬y]₊ over the rows that have a label."""
    target_output = (logits * targets).sum(1)
    largest_other = (logits - 1e9 * targets).amax(1)
    is_labeled = targets.sum(1)
    return mean_over_labeled(F.relu(1 - target_output + largest_other) * is_labeled, is_labeled)
