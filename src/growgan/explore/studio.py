"""What the explorer can do with a run: each question is a form, each answer plain data.

Images go out as PNG data URIs, so that a page needs one request for all that it shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.explore.forms import (
    CombineForm,
    Form,
    MixForm,
    MorphForm,
    NearestForm,
    VaryForm,
    WalkForm,
)
from growgan.growth.gallery import extractor_of, real_features
from growgan.growth.model import Images, Model
from growgan.growth.run import Run
from growgan.metrics.features import Extractor
from growgan.nets.spec import LayerSpec, StackSpec
from growgan.registry import Registry
from growgan.report.branches import Branch, branches
from growgan.report.pictures import data_uri, evenly, sample_picture
from growgan.report.run import CandidateRecord, RunRecord, read_run
from growgan.report.sheet import to_picture
from growgan.report.text import count, duration, scored, size

FRAMES, FACES = 24, 4  # of the time-lapse: moments, and faces along a side
SLIDERS = 10  # directions
Answer = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One thing that can be asked: the form, and what answers it."""

    form: type[Form]
    answer: Callable[[Studio, Any], Answer]


QUESTIONS: Registry[Question] = Registry("question")


def question(
    form: type[Form], summary: str
) -> Callable[[Callable[[Studio, Any], Answer]], Callable[[Studio, Any], Answer]]:
    """Return a decorator that enters a method of :class:`Studio` under its name."""

    def enter(method: Callable[[Studio, Any], Answer]) -> Callable[[Studio, Any], Answer]:
        QUESTIONS.register(method.__name__, summary)(Question(form, method))
        return method

    return enter


class Studio:
    """A run that is open in the explorer.

    Args:
        run: its directory.
        data: what it was trained on, for the nearest images.
    """

    def __init__(self, run: Path, data: ImageSet | None = None) -> None:
        self.path, self.data = run, data
        self.run = Run.open(run)
        self._models: dict[str, Model] = {}
        self._read: tuple[object, RunRecord] | None = None
        self.lock = threading.Lock()  # one network at a time: torch has all threads already
        self.writing = threading.Lock()  # one graph at a time
        self.model()  # a run without a candidate is refused here

    def warm(self) -> None:
        """Do now what would make the first answers slow."""
        self.ask("about", {})
        self.ask("sample", {})
        if self.data is not None:
            _ = self._features

    def ask(self, name: str, given: Mapping[str, Any]) -> Answer:
        """Answer a question of :data:`QUESTIONS`.

        Raises:
            UserError: what is asked for is not there.
            ValueError: ``given`` does not fit the question's form.
        """
        asked = QUESTIONS[name]
        form = asked.form.model_validate(dict(given))
        form.checked()
        with self.lock:
            return asked.answer(self, form)

    @property
    def record(self) -> RunRecord:
        """The run as it is now; it may still be growing, and is read again where it has."""
        files = (self.path / name for name in ("ledger.jsonl", "stats.jsonl"))
        marks = [
            (s.st_mtime_ns, s.st_size) for each in files if each.is_file() and (s := each.stat())
        ]
        if self._read is None or self._read[0] != marks:
            self._read = marks, read_run(self.path)
        return self._read[1]

    def model(self, candidate: str | None = None) -> Model:
        """Return a candidate's generator, the best one's for None, kept from call to call."""
        name = candidate or self.run.best_id
        if name not in self._models:
            self._models[name] = self.run.candidate(name)
        return self._models[name]

    @question(Form, "what the run is, and what its generator can do")
    def about(self, form: Form) -> Answer:
        known, model = self.record, self.model(form.candidate)
        network = model.network()
        facts = {
            "data": f"{known.data_name}, {count(known.data_count)} images",
            "policy": known.policy,
            "preset": known.preset,
            "time": duration(known.elapsed),
            "state": "finished" if known.finished else "still growing, or stopped",
        }
        spec = network.spec
        # What is made from images varies with these, and has no directions of its own.
        shares = [] if spec.given else [float(share) for share in model.directions.shares]
        return {
            "name": self.path.resolve().name,
            "facts": facts,
            "best": known.best,
            "candidate": model.folder.name,
            "resolution": list(spec.resolution),
            "latent": 0 if spec.given else spec.latent,
            "classes": list(model.classes),
            "styles": network.styles if network.styles > 1 else 0,
            "mapping": bool(spec.mapping),
            "directions": shares,
            "data_given": self.data is not None,
        }

    @question(Form, "the growth tree, from the roots on")
    def tree(self, form: Form) -> Answer:
        rows: list[Answer] = []

        def add(branch: Branch, depth: int) -> None:
            face = branch.face
            rows.append(
                {
                    "id": face.id,
                    "depth": depth,
                    "growth": branch.members[0].origin,
                    "size": size(face.resolution, "×"),
                    "score": scored(face.score, face.score_stderr, "±"),
                    "status": branch.status,
                    "leads": branch.leads,
                    "members": [self._member(each) for each in branch.members],
                }
            )
            for child in branch.children:
                add(child, depth + 1)

        for root in branches(self.record):
            add(root, 0)
        return {"nodes": rows}

    @question(Form, "one candidate: its layers, score, cost and samples")
    def candidate(self, form: Form) -> Answer:
        known = self.record
        own = known.by_id.get(form.candidate or str(known.best))
        if own is None:
            raise UserError(f"there is no candidate '{form.candidate}' in this run")
        branch = _branch_of(branches(known), own)
        slices, first = len(branch.members), branch.members[0]
        nth = f", slice {branch.members.index(own) + 1} of {slices}" if slices > 1 else ""
        in_all = f", of {duration(branch.seconds)} in all slices" if slices > 1 else ""
        facts = {
            "score": scored(own.score, own.score_stderr, "±"),
            "size": size(own.resolution, "×"),
            "grown by": first.origin + nth,
            "images seen": count(own.images),
            "parameters": f"G {own.generator_parameters:,}, D {own.discriminator_parameters:,}",
            "time of this slice": duration(own.seconds) + in_all,
            "status": own.error or own.status,
        }
        return {
            "id": own.id,
            "facts": facts,
            "generator": self._layers(own.id, "generator"),
            "discriminator": self._layers(own.id, "discriminator"),
            "drawable": self._drawable(own.id),
            "members": [self._member(each) for each in branch.members],
            "samples": _sheet(own, 6),
        }

    @question(Form, "the same latents through the growth of the best")
    def timelapse(self, form: Form) -> Answer:
        line = [c for c in self.record.best_lineage if c.samples is not None]
        return {
            "frames": [
                {
                    "id": c.id,
                    "text": f"{size(c.resolution, '×')}, {count(c.images)} images, "
                    f"score {scored(c.score, None)}",
                    "samples": _sheet(c, FACES),
                }
                for c in evenly(line, FRAMES)
            ]
        }

    @question(Form, "samples, truncated or not, of any class")
    def sample(self, form: Form) -> Answer:
        model = self.model(form.candidate)
        images = model.sample(**form.sheet)
        labels = model.labels(form.count, form.labels or None)
        known = dict(enumerate(model.classes))
        names = [] if labels is None else [known.get(label, str(label)) for label in labels]
        return {"images": pictures(images), "labels": names}

    @question(VaryForm, "one sample, moved along directions and latents")
    def vary(self, form: VaryForm) -> Answer:
        model = self.model(form.candidate)
        drawn = model.vary(form.pick, form.along, form.latents, **form.sheet)
        own = model.latents(form.pick, **form.sheet)
        return {"images": pictures(drawn), "latents": [round(float(value), 3) for value in own]}

    @question(WalkForm, "the way from each pick to the next")
    def walk(self, form: WalkForm) -> Answer:
        model = self.model(form.candidate)
        images = model.walk(form.picks, form.steps, **form.sheet)
        return {"images": pictures(images), "columns": form.steps}

    @question(CombineForm, "sums of mean latents")
    def combine(self, form: CombineForm) -> Answer:
        plus, minus = ([each for each in sets if each] for sets in (form.plus, form.minus))
        if not plus and not minus:
            raise UserError("a sum needs a set with an image in it")
        model = self.model(form.candidate)
        images = model.combine(plus, minus, **form.sheet)
        return {"images": pictures(images), "columns": 3}

    @question(MixForm, "coarse styles of some, fine styles of others")
    def mix(self, form: MixForm) -> Answer:
        model = self.model(form.candidate)
        images = model.mix(form.rows, form.columns, **form.sheet)
        return {"images": pictures(images), "columns": len(form.columns)}

    @question(MorphForm, "latents on their way between classes")
    def morph(self, form: MorphForm) -> Answer:
        model = self.model(form.candidate)
        how = {"rows": form.rows, "seed": form.seed}
        images = model.morph(form.labels, form.steps, truncation=form.truncation, **how)
        return {"images": pictures(images), "columns": form.across}

    @question(NearestForm, "the training images nearest to a sample")
    def nearest(self, form: NearestForm) -> Answer:
        if self.data is None:
            raise UserError("the training images are not known here: add --data DATA to explore")
        model = self.model(form.candidate)
        drawn = model.sample(**form.sheet)
        if not 0 <= form.pick < form.count:
            raise UserError(f"pick {form.pick} is none of the {form.count} images")
        if self.data.resolution != drawn.shape[1:3]:
            raise UserError("this candidate's images are smaller than the training images")
        features, reals = self._features
        own = drawn[form.pick : form.pick + 1]
        distances = torch.cdist(features(torch.from_numpy(own.transpose(0, 3, 1, 2).copy())), reals)
        distances = distances[0]
        found = distances.argsort()[: form.shown]
        images = np.array(self.data.images[found.numpy()]).transpose(0, 2, 3, 1)
        return {
            "images": pictures(images),
            "distances": [round(float(distances[i]), 3) for i in found],
            "sample": pictures(own)[0],
        }

    @cached_property
    def _features(self) -> tuple[Extractor, Tensor]:
        """The run's own features, and those of all training images."""
        assert self.data is not None
        extractor = extractor_of(self.run, self.data)
        return extractor, real_features(self.data, extractor)

    def _drawable(self, candidate: str) -> bool:
        return (self.path / "candidates" / candidate / "weights.safetensors").is_file()

    def _member(self, candidate: CandidateRecord) -> Answer:
        """Return what a page needs to offer a candidate: a slice of a branch of the tree."""
        return {
            "id": candidate.id,
            "size": size(candidate.resolution, "×"),
            "score": scored(candidate.score, None),
            "drawable": self._drawable(candidate.id),
        }

    def _layers(self, candidate: str, player: str) -> list[str]:
        """Return a stack in words, a line a layer."""
        from growgan.training.checkpoint import load_specs

        try:
            specs = load_specs(self.path / "candidates" / candidate)
        except UserError:
            return []
        spec = specs[player == "discriminator"]
        return [f"stem {size(spec.base, '×')}, {spec.stem} channels", *_in_words(spec)]


def _branch_of(known: Sequence[Branch], candidate: CandidateRecord) -> Branch:
    """Return the branch of a tree that a candidate is a slice of."""
    left = [*known]
    while candidate not in left[0].members:
        left += left.pop(0).children
    return left[0]


def _in_words(spec: StackSpec) -> list[str]:
    def line(layer: LayerSpec) -> str:
        doubled = ", doubles" if layer.resample > 1 and spec.role == "generator" else ""
        halved = ", halves" if layer.resample > 1 and spec.role != "generator" else ""
        norm = "" if layer.norm == "none" else f", {layer.norm} norm"
        kernel = size((layer.kernel, layer.kernel), "×")
        return f"{layer.kind} {kernel}, {layer.width} channels{doubled}{halved}{norm}"

    return [line(layer) for layer in spec.layers]


def _sheet(candidate: CandidateRecord, cells: int) -> str:
    """Return the first samples of a candidate's sheet, "" where there is none."""
    shown = sample_picture(candidate, cells)
    return "" if shown is None else data_uri(shown, quick=True)


def pictures(images: Images | NDArray[np.uint8]) -> list[str]:
    """Return uint8 [N, H, W, C] as PNG data URIs."""
    return [data_uri(to_picture(image), quick=True) for image in images]
