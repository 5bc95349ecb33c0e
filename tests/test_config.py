"""Settings: merging, overrides, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from growgan.config import Settings, make_settings
from growgan.errors import UserError


def test_later_layers_and_overrides_win() -> None:
    settings = make_settings(
        {"batch": 8, "optimiser": {"lr": 1.0, "beta1": 0.5}},
        {"optimiser": {"lr": 2.0}},
        overrides=["optimiser.lr=2e-3", "loss=wasserstein"],
    )
    assert (settings.batch, settings.loss) == (8, "wasserstein")
    assert (settings.optimiser.lr, settings.optimiser.beta1) == (0.002, 0.5)


def test_regularisers_are_replaced_by_name_and_changed_by_key() -> None:
    assert set(make_settings(overrides=["regularisers=gp,drift"]).regularisers) == {"gp", "drift"}
    for nothing in ("none", ""):
        assert make_settings(overrides=[f"regularisers={nothing}"]).regularisers == {}
    changed = make_settings(overrides=["regularisers.r1.weight=3"]).regularisers
    assert changed == {"r1": {"weight": 3}, "r2": {}}
    assert set(make_settings({"regularisers": {"gp": {}}}).regularisers) == {"gp"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1", r"unknown setting 'optimizer' \(did you mean 'optimiser'\?\)"),
        (
            "optimiser.rate=1",
            r"unknown setting 'rate'.*must be one of: beta1, .*, discriminator_lr, epsilon, lr",
        ),
        ("optimiser.lr=-1", r"setting 'optimiser.lr' cannot be -1: .*greater than 0"),
        ("batch=many", "setting 'batch' cannot be 'many'"),
        ("batch", "--set takes key=value, but got 'batch'"),
    ],
)
def test_a_mistake_is_named_with_the_choices(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings(overrides=[override])


def test_settings_survive_a_file(tmp_path: Path) -> None:
    settings = make_settings({"resolution": (32, 48), "growth": {"top_k": 2}, "threads": 1})
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml())
    assert Settings.from_yaml(path) == settings


@pytest.mark.parametrize("setting", ["stack.kernel=4", "actions.kernels=[3,4]"])
def test_even_kernels_are_refused_before_anything_is_trained(setting: str) -> None:
    with pytest.raises(UserError, match="a kernel's size must be odd"):
        make_settings(overrides=[setting])
