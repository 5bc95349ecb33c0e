"""What a figure was measured with. Figures of different protocols do not compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from growgan.errors import UserError

QUANTISATION = "uint8"  # of floats by clamp(127.5 x + 128)


@dataclass(frozen=True)
class Protocol:
    """All that a figure depends on beside the images that are judged.

    Attributes:
        metric: name of the metric.
        estimator: how it is computed from features or images, with its constants.
        features: fingerprint of the extractor, resize and weights included; "none" without one.
        reals: fingerprint of the reference images; "none" where the metric needs none.
        resolution: height and width at which both sets are compared, in pixels.
        counts: how many fakes and reals were used.
        seed: of everything drawn at random.
        quantisation: of what the images are made.
        preparation: how both sets were brought to the resolution, if they were.
    """

    metric: str
    estimator: str
    features: str = "none"
    reals: str = "none"
    resolution: tuple[int, int] = (0, 0)
    counts: tuple[int, int] = (0, 0)
    seed: int = 0
    quantisation: str = QUANTISATION
    preparation: str = "none"

    def differences(self, other: Protocol) -> list[str]:
        """Return a line for each entry in which two protocols differ."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {own} against {its}" for name, own, its in pairs if own != its]

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` reads back."""
        return asdict(self) | {"resolution": [*self.resolution], "counts": [*self.counts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Protocol:
        """Rebuild a protocol; raise a :class:`UserError` for anything that is not one."""
        try:
            missing = [f.name for f in fields(cls) if f.name not in data]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
            pairs = {name: tuple(map(int, data[name])) for name in ("resolution", "counts")}
            return cls(**{**data, **pairs})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"this is no protocol of a figure: {error}") from error


@dataclass(frozen=True)
class Figure:
    """A measured value with its protocol.

    ``stderr`` is its standard error, where that is known; ``deviation`` that over subsets, where
    the metric's protocol asks for it. ``details`` holds values a class, a level or a fold.
    """

    value: float
    protocol: Protocol
    stderr: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    deviation: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` reads back."""
        own: dict[str, Any] = {"value": self.value, "stderr": self.stderr}
        if self.deviation is not None:
            own["deviation"] = self.deviation
        if self.details:
            own["details"] = dict(self.details)
        return {**own, "protocol": self.protocol.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figure:
        """Rebuild a figure; raise a :class:`UserError` for anything that is not one."""
        try:
            value, stderr = float(data["value"]), data["stderr"]
            protocol = Protocol.from_json(data["protocol"])
            details = dict(data.get("details", {}))
            return cls(value, protocol, stderr, details, data.get("deviation"))
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"this is no figure: {error}") from error


def compare(a: Figure, b: Figure) -> float:
    """Return ``b - a`` of two figures of one protocol.

    Raises:
        UserError: the protocols differ; it names in what.
    """
    differences = a.protocol.differences(b.protocol)
    if differences:
        raise UserError(f"these figures do not compare: {'; '.join(differences)}")
    return b.value - a.value
