"""Tests of the loggers: TensorBoard, and Weights & Biases with a stand-in for its client."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

import growgan as gg
from growgan.config import make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.run.loggers import build_loggers
from growgan.training.progress import RunStatus

Make = Callable[..., ImageSet]
SMALL = {"policy": "fixed", "network": {"width": 8, "latent_dim": 8}, "batch_size": 8}


def grow_with_loggers(make: Make, out: Path, loggers: str, images: int = 96) -> gg.Run:
    settings = {**SMALL, "score": {"num_samples": 32}, "loggers": loggers}
    return gg.grow(make(64, 3, 16, 16), out=out, images=images, settings=settings)


def test_tensorboard_has_curves_settings_and_sheets(make_blob_images: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = grow_with_loggers(make_blob_images, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    ids = [e["id"] for e in run.events if e["event"] == "candidate"]
    expected = {f"training/{name}/{ids[0]}" for name in ("alpha", "pixels")}
    assert expected | {"candidate/score"} <= set(tags["scalars"])
    status = RunStatus("0000", "train", (16, 16), 1.0, 40, 9.0, losses={"loss_generator": 2.0})
    logger = build_loggers(tmp_path / "other", make_settings({"loggers": "tensorboard"}))[0]
    logger.progress(status)
    logger.stop({})
    other = EventAccumulator(str(tmp_path / "other" / "tensorboard"))
    other.Reload()
    (point,) = other.Scalars("objective/loss_generator/0000")
    assert (point.step, point.value) == (40, 2.0)
    candidates = [e for e in run.events if e["event"] == "candidate"]
    scores = {scalar.step: scalar.value for scalar in events.Scalars("candidate/score")}
    assert scores == pytest.approx({e["images"]: e["score"] for e in candidates}, rel=1e-5)
    assert len(events.Images("samples")) == len(candidates)
    assert "settings/text_summary" in tags["tensors"]


def test_weights_and_biases_receives_settings_and_samples(
    make_blob_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in has the signature of the client and records the calls."""
    logged: list[dict[str, Any]] = []
    recorded: dict[str, Any] = {}

    class StandInRun:
        summary: ClassVar[dict[str, str]] = {}

        def define_metric(self, name: str, *, step_metric: str) -> None:
            recorded["axis"] = (name, step_metric)

        def log(self, values: dict[str, Any]) -> None:
            logged.append(values)

        def finish(self) -> None:
            recorded["finished"] = recorded.get("finished", 0) + 1

    def init(
        *, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]
    ) -> StandInRun:
        recorded.update(project=project, name=name, id=id, resume=resume, config=config)
        return StandInRun()

    client = types.ModuleType("wandb")
    client.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    client.__dict__.update(init=init, Image=lambda path, caption: (Path(path).name, caption))
    monkeypatch.setitem(sys.modules, "wandb", client)
    run = grow_with_loggers(make_blob_images, tmp_path / "run", "wandb")
    assert recorded["project"] == "growgan" and recorded["name"] == "run"
    assert recorded["config"]["network"]["width"] == 8 and recorded["finished"] == 1
    assert recorded["axis"] == ("*", "images")
    first = recorded["id"]
    build_loggers(run.path, make_settings({"loggers": "wandb"}))
    assert (recorded["id"], recorded["resume"]) == (first, "allow")
    build_loggers(tmp_path / "other" / "run", make_settings({"loggers": "wandb"}))
    assert recorded["id"] != first
    sheets = [entry["samples"] for entry in logged if "samples" in entry]
    ids = [e["id"] for e in run.events if e["event"] == "candidate"]
    assert sheets == [("samples.png", name) for name in ids]
    assert StandInRun.summary["best"].startswith(run.best_id)


def test_no_logger_is_used_by_default_and_a_missing_client_is_refused(
    make_blob_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_settings().loggers == ()
    settings = make_settings(overrides=["loggers=tensorboard, wandb"])
    assert settings.loggers == ("tensorboard", "wandb")
    assert make_settings(overrides=["loggers=none"]).loggers == ()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match="the logger wandb needs a package that is not installed: pip install wandb"
    ):
        grow_with_loggers(make_blob_images, tmp_path / "run", "wandb")
    with pytest.raises(UserError, match="unknown logger 'tensorbord'"):
        grow_with_loggers(make_blob_images, tmp_path / "run", "tensorbord")
    assert not (tmp_path / "run").exists()
