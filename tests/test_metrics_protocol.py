"""Figures carry their protocol, and those of different protocols are not compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from growgan.errors import UserError
from growgan.metrics.protocol import Figure, Protocol, compare

PROTOCOL = Protocol("kid", "unbiased, 100 x 1000", "domain-1a", "reals-2b", (32, 32), (500, 900), 7)


def test_a_figure_survives_json() -> None:
    figure = Figure(0.25, PROTOCOL, 0.5, {"shirt": 1.0}, deviation=0.1)
    assert Figure.from_json(json.loads(json.dumps(figure.to_json()))) == figure


def test_figures_of_one_protocol_compare() -> None:
    assert compare(Figure(0.25, PROTOCOL), Figure(0.75, PROTOCOL)) == 0.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": "pixels-8"}, "features: domain-1a against pixels-8"),
        ({"counts": (500, 901)}, r"counts: \(500, 900\) against \(500, 901\)"),
        ({"seed": 8, "reals": "other"}, "reals: reals-2b against other; seed: 7 against 8"),
    ],
)
def test_other_protocols_are_refused_by_name(change: dict[str, object], named: str) -> None:
    other = replace(PROTOCOL, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=named):
        compare(Figure(0.25, PROTOCOL), Figure(0.25, other))


def test_a_protocol_that_does_not_say_all_is_none() -> None:
    known = PROTOCOL.to_json()
    for name in known:
        with pytest.raises(UserError, match=name):
            Protocol.from_json({key: value for key, value in known.items() if key != name})


@pytest.mark.parametrize("data", [{}, {"value": 1.0}, {"value": 1, "stderr": None, "protocol": {}}])
def test_what_is_no_figure_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(UserError, match="this is no"):
        Figure.from_json(data)
