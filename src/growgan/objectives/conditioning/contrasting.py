"""What compares features with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from growgan.objectives.conditioning.base import (
    CONDITIONINGS,
    Conditioning,
    Rows,
    scores,
)
from growgan.objectives.options import Count, Positive
from growgan.objectives.step import Step


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
    temperature: Positive = 0.5
    width: Count = 128

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
        to_proxy = ((rows @ proxies.T) * y).sum(1)
        to_rows = (rows @ rows.T).fill_diagonal_(float("-inf"))
        all_ = torch.cat([to_proxy[:, None], to_rows], 1) / self.temperature
        # The first stands for the class, and always is its own.
        others = F.pad((y @ y.T) < 0.5, (1, 0))
        own = all_.masked_fill(others, float("-inf"))
        return (all_.logsumexp(1) - own.logsumexp(1)).sum() / max(1, len(rows))


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
