"""Runs that are followed elsewhere."""

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


def grown(make: Make, out: Path, tracking: str, images: int = 96) -> gg.Run:
    settings = {**SMALL, "score": {"num_samples": 32}, "loggers": tracking}
    return gg.grow(make(64, 3, 16, 16), out=out, images=images, settings=settings)


def test_tensorboard_has_curves_settings_and_sheets(make_blob_images: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = grown(make_blob_images, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    ids = [e["id"] for e in run.events if e["event"] == "candidate"]
    own = {f"training/{name}/{ids[0]}" for name in ("alpha", "pixels")}
    assert own | {"candidate/score"} <= set(tags["scalars"])
    status = RunStatus("0000", "train", (16, 16), 1.0, 40, 9.0, losses={"loss_generator": 2.0})
    followed = build_loggers(tmp_path / "other", make_settings({"loggers": "tensorboard"}))[0]
    followed.progress(status)
    followed.stop({})
    other = EventAccumulator(str(tmp_path / "other" / "tensorboard"))
    other.Reload()
    (point,) = other.Scalars("objective/loss_generator/0000")
    assert (point.step, point.value) == (40, 2.0)
    told = [e for e in run.events if e["event"] == "candidate"]
    scores = {each.step: each.value for each in events.Scalars("candidate/score")}
    assert scores == pytest.approx({e["images"]: e["score"] for e in told}, rel=1e-5)
    assert len(events.Images("samples")) == len(told)
    assert "settings/text_summary" in tags["tensors"]


def test_weights_and_biases_gets_the_same_through_its_client(
    make_blob_images: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in of the client's signature, which writes down what it is told."""
    logged: list[dict[str, Any]] = []
    began: dict[str, Any] = {}

    class Told:
        summary: ClassVar[dict[str, str]] = {}

        def define_metric(self, name: str, *, step_metric: str) -> None:
            began["axis"] = (name, step_metric)

        def log(self, values: dict[str, Any]) -> None:
            logged.append(values)

        def finish(self) -> None:
            began["finished"] = began.get("finished", 0) + 1

    def init(
        *, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]
    ) -> Told:
        began.update(project=project, name=name, id=id, resume=resume, config=config)
        return Told()

    client = types.ModuleType("wandb")
    client.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    client.__dict__.update(init=init, Image=lambda path, caption: (Path(path).name, caption))
    monkeypatch.setitem(sys.modules, "wandb", client)
    run = grown(make_blob_images, tmp_path / "run", "wandb")
    assert began["project"] == "growgan" and began["name"] == "run"
    assert began["config"]["network"]["width"] == 8 and began["finished"] == 1
    assert began["axis"] == ("*", "images")
    first = began["id"]
    build_loggers(run.path, make_settings({"loggers": "wandb"}))
    assert (began["id"], began["resume"]) == (first, "allow")
    build_loggers(tmp_path / "other" / "run", make_settings({"loggers": "wandb"}))
    assert began["id"] != first
    sheets = [each["samples"] for each in logged if "samples" in each]
    told = [e["id"] for e in run.events if e["event"] == "candidate"]
    assert sheets == [("samples.png", name) for name in told]
    assert Told.summary["best"].startswith(run.best_id)


def test_none_is_on_by_default_and_a_missing_client_leaves_nothing_behind(
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
        grown(make_blob_images, tmp_path / "run", "wandb")
    with pytest.raises(UserError, match="unknown logger 'tensorbord'"):
        grown(make_blob_images, tmp_path / "run", "tensorbord")
    assert not (tmp_path / "run").exists()
