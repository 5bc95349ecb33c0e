"""A measured value and its protocol. Values with different protocols cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from growgan.errors import UserError

DEFAULT_QUANTIZATION = "uint8"  # float images are rounded by clamp(127.5 x + 128)

T = TypeVar("T")


@dataclass(frozen=True)
class MeasurementProtocol:
    """Everything that a value depends on, apart from the generated images.

    Attributes:
        metric: Name of the metric.
        estimator: How the value is computed from features or images, with all constants.
        features: Fingerprint of the feature extractor, including resizing and weights; "none" for
            metrics without features.
        reference: Fingerprint of the real images; "none" for metrics without them.
        resolution: Height and width at which both sets are compared, in pixels.
        num_images: How many generated and how many real images were used.
        seed: Random seed of all draws.
        quantization: Data type to which the generated images were rounded, or "none".
        preprocessing: How both sets were brought to the resolution, or "none".
    """

    metric: str
    estimator: str
    features: str
    reference: str
    resolution: tuple[int, int]
    num_images: tuple[int, int]
    seed: int
    quantization: str = DEFAULT_QUANTIZATION
    preprocessing: str = "none"

    def differences(self, other: MeasurementProtocol) -> list[str]:
        """Return one line for each field in which two protocols differ."""
        values = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [
            f"{name}: {mine} against {theirs}" for name, mine, theirs in values if mine != theirs
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        return {**asdict(self), "resolution": [*self.resolution], "num_images": [*self.num_images]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasurementProtocol:
        """Return the protocol in ``data``; raise :class:`UserError` if it is not valid."""
        if isinstance(data, Mapping):
            missing = [f.name for f in fields(cls) if f.name not in data]
            if missing:
                raise UserError(f"not a measurement protocol: missing {', '.join(missing)}")
        return _validate(cls, data, "measurement protocol")


@dataclass(frozen=True)
class MetricResult:
    """A measured value with its protocol.

    Attributes:
        value: The value of the metric.
        protocol: Everything that the value depends on, apart from the generated images.
        stderr: Standard error of the value, if known.
        details: Further values, such as one per class or pyramid level.
        std: Standard deviation over subsets, for metrics whose protocol reports it.
    """

    value: float
    protocol: MeasurementProtocol
    stderr: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    std: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON data that :meth:`from_json` reads."""
        data: dict[str, Any] = {"value": self.value, "stderr": self.stderr}
        if self.std is not None:
            data["std"] = self.std
        if self.details:
            data["details"] = dict(self.details)
        return {**data, "protocol": self.protocol.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MetricResult:
        """Return the result in ``data``; raise :class:`UserError` if it is not valid."""
        if isinstance(data, Mapping) and "protocol" in data:
            data = {**data, "protocol": MeasurementProtocol.from_json(data["protocol"])}
        return _validate(cls, data, "metric result")


def result_difference(a: MetricResult, b: MetricResult) -> float:
    """Return ``b.value - a.value`` of two results with the same protocol.

    Raises:
        UserError: The protocols differ; the message lists the differences.
    """
    differences = a.protocol.differences(b.protocol)
    if differences:
        raise UserError(
            f"results with different protocols cannot be compared: {'; '.join(differences)}"
        )
    return b.value - a.value


def _validate(cls: type[T], data: object, what: str) -> T:
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"]))
        message = f"{location}: {problem['msg']}" if location else problem["msg"]
        raise UserError(f"not a {what}: {message}") from error
