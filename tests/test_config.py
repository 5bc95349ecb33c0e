"""Tests of settings: merging, overrides and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from growgan.config import Settings, make_settings
from growgan.errors import UserError


def test_later_layers_and_overrides_win() -> None:
    settings = make_settings(
        {"batch_size": 8, "optimizer": {"lr": 1.0, "beta1": 0.5}},
        {"optimizer": {"lr": 2.0}},
        overrides=["optimizer.lr=2e-3", "loss=wasserstein"],
    )
    assert (settings.batch_size, settings.loss) == (8, "wasserstein")
    assert (settings.optimizer.lr, settings.optimizer.beta1) == (0.002, 0.5)


def test_regularizers_are_replaced_by_name_and_changed_by_key() -> None:
    assert set(make_settings(overrides=["regularizers=gp,drift"]).regularizers) == {"gp", "drift"}
    for nothing in ("none", ""):
        assert make_settings(overrides=[f"regularizers={nothing}"]).regularizers == {}
    changed = make_settings(overrides=["regularizers.r1.weight=3"]).regularizers
    assert changed == {"r1": {"weight": 3}, "r2": {}}
    assert set(make_settings({"regularizers": {"gp": {}}}).regularizers) == {"gp"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", r"unknown setting 'optimiser' \(did you mean 'optimizer'\?\)"),
        (
            "optimizer.rate=1",
            r"unknown setting 'rate'.*must be one of: beta1, .*, eps, lr, lr_decay_images",
        ),
        ("optimizer.lr=-1", r"setting 'optimizer.lr' cannot be -1: .*greater than 0"),
        ("batch_size=many", "setting 'batch_size' cannot be 'many'"),
        ("batch", "--set must be key=value, but got 'batch'"),
    ],
)
def test_a_mistake_is_named_with_the_choices(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_settings(overrides=[override])


def test_settings_are_unchanged_after_writing_and_reading_a_file(tmp_path: Path) -> None:
    settings = make_settings({"resolution": (32, 48), "growth": {"top_k": 2}, "threads": 1})
    path = tmp_path / "config.yaml"
    path.write_text(settings.to_yaml())
    assert Settings.from_yaml(path) == settings


@pytest.mark.parametrize("setting", ["network.kernel_size=4", "edits.kernel_sizes=[3,4]"])
def test_even_kernels_are_refused_before_anything_is_trained(setting: str) -> None:
    with pytest.raises(UserError, match="a kernel size must be odd"):
        make_settings(overrides=[setting])
