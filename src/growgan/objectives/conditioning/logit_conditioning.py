"""Conditionings in which D's logits depend on the label or the source image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Vectors,
    cross_entropy_per_sample,
    linear_head_output,
    mean_over_labeled,
)
from growgan.objectives.options import NonNegativeFloat, NonNegativeInt
from growgan.objectives.step_context import StepContext


@CONDITIONINGS.register("none", "Labels are not used.")
class Unconditional(Conditioning):
    """Neither G nor D sees labels."""

    needs_labels = False


class LogitConditioning(Conditioning):
    """D's logits depend on the condition."""

    mismatch_weight: NonNegativeFloat = Field(
        0.0,
        description="Weight of a term of D's loss that treats images with a wrong condition as"
        " fakes (Boulahbal et al. 2021, 2103.15470; for text, Reed et al. 2016, 1605.05396).",
    )

    def mismatched_condition(self, step: StepContext, shift: int) -> tuple[Tensor, Tensor]:
        """Return the condition of another row for each row, and which rows really differ.

        Args:
            step: The training step.
            shift: Number of rows between a row and the one that provides its new condition.

        Returns:
            The shifted condition, float ``[N, C]``, and a boolean mask ``[N]``. Without source
            images the mask is false where both labels are equal or one is missing.
        """
        (condition,) = step.condition_args(step.real)
        labels, other_labels = step.labels, step.labels.roll(shift, 0)
        both_labeled = (labels.sum(1) > 0.5) & (other_labels.sum(1) > 0.5)
        differ = (other_labels * labels).sum(1) < 0.5
        is_mismatch = (both_labeled & differ) | bool(step.source.numel())
        return condition.roll(shift, 0), is_mismatch


@CONDITIONINGS.register(
    "source-concat",
    "D receives the source image as additional channels; for image-to-image tasks.",
    "Isola et al. 2017, 1611.07004",
)
class SourceConditioning(LogitConditioning):
    """D(x, c) sees the source image c as additional channels (Isola et al. 2017)."""

    mismatch_channels: NonNegativeInt = Field(
        0,
        description="Number of leading channels of the source image that the mismatch term takes"
        " from another row. If 0, all channels and the label.",
    )

    needs_labels = False
    needs_source = True

    def mismatched_condition(self, step: StepContext, shift: int) -> tuple[Tensor, Tensor]:
        shifted, is_mismatch = super().mismatched_condition(step, shift)
        if self.mismatch_channels:
            (condition,) = step.condition_args(step.real)
            start = step.labels.shape[1]
            end = start + self.mismatch_channels * step.real[0, 0].numel()
            shifted = torch.cat(
                [condition[:, :start], shifted[:, start:end], condition[:, end:]], 1
            )
        return shifted, is_mismatch


@CONDITIONINGS.register(
    "source-projection",
    "Projection of D's features on the source image; for image-to-image tasks.",
    "Miyato & Koyama 2018, 1802.05637",
)
class SourceProjection(SourceConditioning):
    """D(x, c) = ψ(φ) + <V c, φ>, where c is the source image of x.

    As for super-resolution in Miyato & Koyama 2018, section 4.2, D's layers see only x. Each cell
    of D's base grid is compared with 4x4 pixels of c, averaged from more pixels if necessary. This
    covers a coarse image whose sides are 4 times those of the base grid.
    """

    logit_conditioning = "source_projection"


@CONDITIONINGS.register(
    "unpaired",
    "Translation between two sets of unpaired images (CycleGAN).",
    "Zhu et al. 2017, 1703.10593",
)
class UnpairedTranslation(Conditioning):
    """Two sets of images without pairs; D has one logit per set; for image-to-image tasks.

    G's loss gains cycle_weight · E |G(G(c, y), y') - c| + identity_weight · E |G(x, y) - x|, where
    c is an image of the other set y' and x an image of set y (Zhu et al. 2017, equation 2 and
    section 5.2). One G translates in both directions, as in StarGAN (Choi et al. 2018, 1711.09020).
    """

    cycle_weight: NonNegativeFloat = Field(
        10.0, description="Weight of the cycle consistency: translation there and back."
    )
    identity_weight: NonNegativeFloat = Field(
        5.0, description="Weight of the identity term: images of the target set should not change."
    )

    logit_conditioning = "per_class_logits"
    needs_source = True
    discriminator_sees_source = False

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        source = step.source.view_as(step.fake)
        restored = self._translate(step, step.fake, step.labels.flip(1))
        terms = {"cycle": self.cycle_weight * (restored.float() - source).abs().mean()}
        if self.identity_weight:
            same = self._translate(step, step.real, step.labels)
            distance = (same.float() - step.real.float()).abs().mean()
            terms["identity"] = self.identity_weight * distance
        return terms

    def _translate(self, step: StepContext, images: Tensor, labels: Tensor) -> Tensor:
        z = step.generator_input[:, : step.generator.spec.latent_dim]
        translated: Tensor = step.generator(torch.cat([z, labels, images.flatten(1).float()], 1))
        return translated


@CONDITIONINGS.register(
    "concat",
    "D receives the label as additional channels.",
    "Mirza & Osindero 2014, 1411.1784",
)
class LabelConcatenation(LogitConditioning):
    """D(x, y) sees y as constant feature maps (Mirza & Osindero 2014)."""

    logit_conditioning = "concat"


@CONDITIONINGS.register(
    "projection",
    "Projection of D's features on an embedding of the label.",
    "Miyato & Koyama 2018, 1802.05637",
)
class LabelProjection(LogitConditioning):
    """D(x, y) = ψ(φ) + <v_y, φ> (Miyato & Koyama 2018, equation 3)."""

    logit_conditioning = "projection"

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}


@CONDITIONINGS.register("md", "D has one logit per class.", "Mescheder et al. 2018, 1801.04406")
class MultiHead(LogitConditioning):
    """D(x, y) is the y-th of K logits."""

    logit_conditioning = "per_class_logits"

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"classifier": num_classes}


@CONDITIONINGS.register(
    "p2gan",
    "Projection on the difference of a real and a fake classifier.",
    "Han et al. 2021, 2108.09016",
)
class DualProjection(LogitConditioning):
    """D = ψ + <v_y^p - v_y^q, φ>, with CE_p of reals and CE_q of fakes (Han et al., equation 8).

    In the paper's adaptive form, an image's cross entropy is weighted by exp(-w) with a penalty w.
    The penalty has no lower bound: where CE = 0, the loss falls with w forever and exp(-w)
    overflows. Here the weight is λ = sigmoid(-w) with the penalty -log λ, which behaves in the same
    way up to λ = 1 and is never negative. w is a linear function of φ / ||φ||, so that λ is near ½
    at first whatever the length of φ. It is computed in float32 without a gradient to φ.
    """

    weight: NonNegativeFloat = Field(1.0, description="Weight of both cross entropies.")
    adaptive_weighting: bool = Field(
        False,
        description="Weight the cross entropy of each image by a learned λ, with the penalty"
        " -log λ.",
    )

    logit_conditioning = "dual_projection"

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        heads = {"classifier": num_classes, "fake_classifier": num_classes}
        return {**heads, "adaptive_weight": 1} if self.adaptive_weighting else heads

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        real = self._weighted_cross_entropy(step, "classifier", step.real_features)
        fake = self._weighted_cross_entropy(step, "fake_classifier", step.fake_features)
        return {"class": self.weight * real, "class_fake": self.weight * fake}

    def _weighted_cross_entropy(
        self, step: StepContext, head_name: str, features: Vectors
    ) -> Tensor:
        logits = linear_head_output(step, head_name, features)
        losses, is_labeled = cross_entropy_per_sample(logits, step.labels)
        if self.adaptive_weighting:
            with torch.autocast(features.device.type, enabled=False):
                unit_features = F.normalize(features.detach().float(), dim=1)
                w = linear_head_output(step, "adaptive_weight", unit_features)[:, 0]
            log_weight = F.logsigmoid(-w)
            losses = log_weight.exp() * losses - log_weight * is_labeled
        return mean_over_labeled(losses, is_labeled)
