"""Results carry their protocol, and results with different protocols cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from growgan.errors import UserError
from growgan.metrics.result import MeasurementProtocol, MetricResult, result_difference

PROTOCOL = MeasurementProtocol(
    metric="kid",
    estimator="unbiased, 100 x 1000",
    features="own-1a",
    reference="real-2b",
    resolution=(32, 32),
    num_images=(500, 900),
    seed=7,
)


def test_a_result_survives_json() -> None:
    result = MetricResult(0.25, PROTOCOL, 0.5, {"shirt": 1.0}, std=0.1)
    assert MetricResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_results_with_the_same_protocol_are_compared() -> None:
    assert result_difference(MetricResult(0.25, PROTOCOL), MetricResult(0.75, PROTOCOL)) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "pixels-8"}, "features: own-1a against pixels-8"),
        ({"num_images": (500, 901)}, r"num_images: \(500, 900\) against \(500, 901\)"),
        ({"seed": 8, "reference": "other"}, "reference: real-2b against other; seed: 7 against 8"),
    ],
)
def test_different_protocols_are_refused_by_name(change: dict[str, object], message: str) -> None:
    other = replace(PROTOCOL, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        result_difference(MetricResult(0.25, PROTOCOL), MetricResult(0.25, other))


def test_an_incomplete_protocol_is_refused() -> None:
    data = PROTOCOL.to_json()
    for name in data:
        with pytest.raises(UserError, match=name):
            MeasurementProtocol.from_json(
                {key: value for key, value in data.items() if key != name}
            )


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"value": 1.0},
        {"value": 1, "stderr": None, "protocol": {}},
        {"value": "high", "stderr": None, "protocol": PROTOCOL.to_json()},
        [],
    ],
)
def test_invalid_results_are_refused(data: Any) -> None:
    with pytest.raises(UserError, match="not a m"):
        MetricResult.from_json(data)
