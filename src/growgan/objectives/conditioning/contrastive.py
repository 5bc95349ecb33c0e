"""Conditionings that compare D's features with each other and with class embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Vectors,
    linear_head_output,
)
from growgan.objectives.options import NonNegativeFloat, PositiveFloat, PositiveInt
from growgan.objectives.step_context import StepContext


class ContrastiveConditioning(Conditioning):
    """A contrastive loss of D's features and a learned embedding of each class.

    A linear head maps features to embeddings. Embeddings of images and of classes are normalized
    to unit length.
    """

    weight: NonNegativeFloat = Field(
        1.0, description="Weight of the term in D's loss on real and in G's loss on fake images."
    )
    temperature: PositiveFloat = Field(0.5, description="Temperature of the softmax.")
    embedding_size: PositiveInt = Field(128, description="Length of the embeddings.")

    def linear_heads(self, num_classes: int) -> dict[str, int]:
        return {"embedding": self.embedding_size}

    @property
    def class_embedding_dim(self) -> int:
        return self.embedding_size

    def discriminator_terms(self, step: StepContext) -> dict[str, Tensor]:
        return {"contrast": self.weight * self.contrastive_term(step, step.real_features)}

    def generator_terms(self, step: StepContext) -> dict[str, Tensor]:
        return {"contrast_generator": self.weight * self.contrastive_term(step, step.fake_features)}

    def contrastive_term(self, step: StepContext, features: Vectors) -> Tensor:
        """Return the contrastive loss of real or fake ``features``."""
        embeddings = F.normalize(linear_head_output(step, "embedding", features), dim=1)
        class_embeddings = F.normalize(step.discriminator.class_embeddings.float(), dim=1)
        return self.contrastive_loss(embeddings, class_embeddings, step.labels)

    def contrastive_loss(
        self, embeddings: Vectors, class_embeddings: Float[Tensor, "k d"], targets: Vectors
    ) -> Tensor:
        """Return the loss of unit ``embeddings`` [N, d] with one-hot ``targets`` [N, K]."""
        raise NotImplementedError


@CONDITIONINGS.register(
    "2c",
    "Contrastive loss with images of the same class as positives (ContraGAN).",
    "Kang & Park 2020, 2006.12681",
)
class ConditionalContrastive(ContrastiveConditioning):
    """-log of the softmax weight of an image's class embedding and of images of its class.

    Kang & Park 2020 (ContraGAN), equation 8.
    """

    def contrastive_loss(
        self, embeddings: Vectors, class_embeddings: Float[Tensor, "k d"], targets: Vectors
    ) -> Tensor:
        is_labeled = targets.sum(1) > 0
        embeddings, targets = embeddings[is_labeled], targets[is_labeled]
        to_class = ((embeddings @ class_embeddings.T) * targets).sum(1)
        to_images = (embeddings @ embeddings.T).fill_diagonal_(float("-inf"))
        similarities = torch.cat([to_class[:, None], to_images], 1) / self.temperature
        # The first column is the class embedding, which is always a positive.
        is_negative = F.pad((targets @ targets.T) < 0.5, (1, 0))
        positives = similarities.masked_fill(is_negative, float("-inf"))
        losses = similarities.logsumexp(1) - positives.logsumexp(1)
        return losses.sum() / max(1, len(embeddings))


@CONDITIONINGS.register(
    "d2d-ce",
    "Contrastive loss against images of other classes, with margins (ReACGAN).",
    "Kang et al. 2021, 2111.01118",
)
class DataToDataCrossEntropy(ContrastiveConditioning):
    """-log softmax of the class embedding against images of other classes, both with margins.

    Kang et al. 2021 (ReACGAN), equation 5.
    """

    positive_margin: NonNegativeFloat = Field(
        0.98, description="Similarity to the class embedding above which an image has no loss."
    )
    negative_margin: NonNegativeFloat = Field(
        0.02, description="Similarity below which images of different classes have no loss."
    )

    def contrastive_loss(
        self, embeddings: Vectors, class_embeddings: Float[Tensor, "k d"], targets: Vectors
    ) -> Tensor:
        is_labeled = targets.sum(1) > 0
        embeddings, targets = embeddings[is_labeled], targets[is_labeled]
        positive = ((embeddings @ class_embeddings.T) * targets).sum(1)
        positive = (positive - self.positive_margin).clamp(max=0) / self.temperature
        negatives = (embeddings @ embeddings.T - self.negative_margin).clamp(min=0)
        negatives = negatives / self.temperature
        negatives = negatives.masked_fill((targets @ targets.T) > 0.5, float("-inf"))
        total = torch.logsumexp(torch.cat([positive[:, None], negatives], 1), 1)
        return (total - positive).sum() / max(1, len(embeddings))
