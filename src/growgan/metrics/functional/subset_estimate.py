"""Mean and standard deviation of a metric over subsets of the data."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SubsetEstimate:
    """The mean of a metric over subsets, ``value``, and its standard deviation over them, ``std``.

    The standard deviation divides by the number of subsets, as published figures do. It is 0 for
    one subset.
    """

    value: float
    std: float

    @classmethod
    def from_subsets(cls, values: Tensor) -> SubsetEstimate:
        """Return the mean and the standard deviation of ``values`` [num_subsets]."""
        return cls(float(values.mean()), float(values.std(correction=0)))
