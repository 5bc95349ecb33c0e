"""The API of the explorer: each endpoint takes a request model and returns JSON.

Images are PNG data URIs, so that the page needs one request for everything it shows at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.artifacts.run_features import real_features, run_extractor
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.explore.request_models import (
    MAX_IMAGES_PER_RESPONSE,
    MAX_INDICES,
    MAX_INTERPOLATED_CLASSES,
    EditLatentRequest,
    ExplorerRequest,
    InterpolateClassesRequest,
    InterpolateRequest,
    LatentArithmeticRequest,
    NearestImagesRequest,
    StyleMixRequest,
)
from growgan.metrics.features.base import FeatureExtractor
from growgan.nets.spec import LayerSpec, NetworkSpec
from growgan.registry import Registry
from growgan.report.formatting import format_count, format_duration, format_resolution, format_score
from growgan.report.growth_tree import TreeNode, build_growth_tree
from growgan.report.image_files import to_pil_image
from growgan.report.inline_images import evenly_spaced, png_data_uri, sample_image
from growgan.report.run_record import CandidateRecord, RunRecord, read_run
from growgan.run.run import WEIGHTS_FILE, Run
from growgan.run.run_directory import LEDGER_FILE, STATS_FILE, candidate_dir
from growgan.sampling.trained_generator import ImageArray, TrainedGenerator
from growgan.training.checkpoint import load_specs

MAX_TIMELAPSE_FRAMES = 24
TIMELAPSE_SAMPLES_PER_SIDE = 4
CANDIDATE_SAMPLES_PER_SIDE = 6
ARITHMETIC_COLUMNS = 3  # of the result and its eight neighbors
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """An endpoint: the model of its request, and the method that handles it."""

    request_model: type[ExplorerRequest]
    handler: Callable[[ExplorerApi, Any], JsonObject]


ENDPOINTS: Registry[Endpoint] = Registry("endpoint")


def endpoint(
    request_model: type[ExplorerRequest], summary: str
) -> Callable[[Callable[[ExplorerApi, Any], JsonObject]], Callable[[ExplorerApi, Any], JsonObject]]:
    """Return a decorator that registers a method of :class:`ExplorerApi` under its name."""

    def register(
        method: Callable[[ExplorerApi, Any], JsonObject],
    ) -> Callable[[ExplorerApi, Any], JsonObject]:
        ENDPOINTS.register(method.__name__, summary)(Endpoint(request_model, method))
        return method

    return register


class ExplorerApi:
    """A run that is open in the explorer.

    Args:
        run_dir: The run directory.
        data: The training images of the run, to find the nearest ones.

    Raises:
        UserError: There is no run, or no candidate is finished.
    """

    def __init__(self, run_dir: Path, data: ImageSet | None = None) -> None:
        self.run_dir, self.data = run_dir, data
        self.run = Run.open(run_dir)
        self._generators: dict[str, TrainedGenerator] = {}
        self._cached_record: tuple[list[tuple[int, int]], RunRecord] | None = None
        # One network runs at a time, because torch already uses all threads.
        self.inference_lock = threading.Lock()
        self.export_lock = threading.Lock()
        self.generator()  # raises an error for a run without candidates

    def preload(self) -> None:
        """Do in advance what would make the first responses slow."""
        self.handle("about", {})
        self.handle("sample", {})
        if self.data is not None:
            _ = self._real_features

    def handle(self, endpoint_name: str, params: Mapping[str, Any]) -> JsonObject:
        """Handle a request.

        Args:
            endpoint_name: A name of :data:`ENDPOINTS`.
            params: Fields of the endpoint's request model.

        Raises:
            UserError: There is no such endpoint, candidate, sample, or the like.
            ValueError: ``params`` are not valid.
        """
        selected = ENDPOINTS[endpoint_name]
        request = selected.request_model.model_validate(dict(params))
        request.check()
        with self.inference_lock:
            return selected.handler(self, request)

    @property
    def record(self) -> RunRecord:
        """The run as it is now. It is read again when its files have changed."""
        paths = [self.run_dir / name for name in (LEDGER_FILE, STATS_FILE)]
        stats = [path.stat() for path in paths if path.is_file()]
        file_states = [(stat.st_mtime_ns, stat.st_size) for stat in stats]
        if self._cached_record is None or self._cached_record[0] != file_states:
            self._cached_record = file_states, read_run(self.run_dir)
        return self._cached_record[1]

    def generator(self, candidate_id: str | None = None) -> TrainedGenerator:
        """Return the generator of a candidate, of the best one by default."""
        candidate_id = candidate_id or self.run.best_id
        if candidate_id not in self._generators:
            self._generators[candidate_id] = self.run.candidate(candidate_id)
        return self._generators[candidate_id]

    @endpoint(ExplorerRequest, "Facts about the run, and what its generator supports.")
    def about(self, request: ExplorerRequest) -> JsonObject:
        """Return facts about the run, and what the generator supports."""
        record, generator = self.record, self.generator(request.candidate)
        network = generator.load_network()
        spec = network.spec
        # An image-to-image generator has no directions and no latents to edit.
        has_latents = not spec.source_channels
        ratios = generator.directions.explained_variance_ratio if has_latents else ()
        num_images = format_count(record.num_training_images)
        return {
            "name": self.run_dir.resolve().name,
            "facts": {
                "data": f"{record.data_name}, {num_images} images",
                "policy": record.policy,
                "preset": record.preset,
                "time": format_duration(record.elapsed),
                "state": "finished" if record.finished else "running or stopped",
            },
            "best_id": record.best_id,
            "candidate_id": generator.checkpoint_dir.name,
            "resolution": list(spec.resolution),
            "latent_dim": spec.latent_dim if has_latents else 0,
            "classes": list(generator.classes),
            "num_styles": network.num_styles if network.num_styles > 1 else 0,
            "has_mapping": bool(spec.mapping_layers),
            "explained_variance_ratio": [float(ratio) for ratio in ratios],
            "has_data": self.data is not None,
            "limits": {
                "images": MAX_IMAGES_PER_RESPONSE,
                "indices": MAX_INDICES,
                "interpolated_classes": MAX_INTERPOLATED_CLASSES,
            },
        }

    @endpoint(ExplorerRequest, "The growth tree, from its roots.")
    def tree(self, request: ExplorerRequest) -> JsonObject:
        """Return the nodes of the growth tree, each before its children."""
        nodes = [
            {
                "id": node.representative.id,
                "depth": depth,
                "growth": node.segments[0].growth_label,
                "resolution": format_resolution(node.representative.resolution, "×"),
                "score": format_score(
                    node.representative.score, node.representative.score_stderr, "±"
                ),
                "status": node.status,
                "on_best_lineage": node.on_best_lineage,
                "segments": [self._describe_segment(segment) for segment in node.segments],
            }
            for root in build_growth_tree(self.record)
            for node, depth in _depth_first(root)
        ]
        return {"nodes": nodes}

    @endpoint(ExplorerRequest, "One candidate: its layers, score, cost and samples.")
    def candidate(self, request: ExplorerRequest) -> JsonObject:
        """Return the layers, the score, the cost and the samples of a candidate."""
        record = self.record
        candidate_id = request.candidate or str(record.best_id)
        candidate = record.candidates_by_id.get(candidate_id)
        if candidate is None:
            raise UserError(f"this run has no candidate '{candidate_id}'")
        node = _find_node(build_growth_tree(record), candidate)
        growth = node.segments[0].growth_label
        segment_time = format_duration(candidate.seconds)
        if len(node.segments) > 1:
            number = node.segments.index(candidate) + 1
            growth += f", segment {number} of {len(node.segments)}"
            segment_time += f" of {format_duration(node.seconds)} for all segments"
        num_parameters = candidate.generator_parameters, candidate.discriminator_parameters
        return {
            "id": candidate.id,
            "facts": {
                "score": format_score(candidate.score, candidate.score_stderr, "±"),
                "resolution": format_resolution(candidate.resolution, "×"),
                "growth": growth,
                "images seen": format_count(candidate.images_seen),
                "parameters": f"G {num_parameters[0]:,}, D {num_parameters[1]:,}",
                "segment time": segment_time,
                "status": candidate.error or candidate.status,
            },
            "generator": self._describe_network(candidate.id, "generator"),
            "discriminator": self._describe_network(candidate.id, "discriminator"),
            "has_weights": self._has_weights(candidate.id),
            "segments": [self._describe_segment(segment) for segment in node.segments],
            "sample_sheet": _sample_sheet_uri(candidate, CANDIDATE_SAMPLES_PER_SIDE),
        }

    @endpoint(ExplorerRequest, "Samples of the same latents along the lineage of the best.")
    def timelapse(self, request: ExplorerRequest) -> JsonObject:
        """Return sample sheets of the same latents along the lineage of the best candidate."""
        lineage = [
            candidate
            for candidate in self.record.best_lineage
            if candidate.samples_path is not None
        ]
        return {
            "frames": [
                {
                    "id": candidate.id,
                    "caption": f"{format_resolution(candidate.resolution, '×')}, "
                    f"{format_count(candidate.images_seen)} images, "
                    f"score {format_score(candidate.score, None)}",
                    "sample_sheet": _sample_sheet_uri(candidate, TIMELAPSE_SAMPLES_PER_SIDE),
                }
                for candidate in evenly_spaced(lineage, MAX_TIMELAPSE_FRAMES)
            ]
        }

    @endpoint(ExplorerRequest, "Samples, optionally truncated or of one class.")
    def sample(self, request: ExplorerRequest) -> JsonObject:
        """Return samples and the names of their classes."""
        generator = self.generator(request.candidate)
        images = generator.sample(**request.sample_spec)
        labels = generator.sample_labels(request.count, request.labels or None)
        class_names = dict(enumerate(generator.classes))
        names = [] if labels is None else [class_names.get(label, str(label)) for label in labels]
        return {"images": png_data_uris(images), "labels": names}

    @endpoint(EditLatentRequest, "A sample, moved along directions and in single dimensions.")
    def edit_latent(self, request: EditLatentRequest) -> JsonObject:
        """Return an edited sample, and its latent before the edit."""
        generator = self.generator(request.candidate)
        images = generator.edit_latent(
            request.index,
            request.direction_offsets,
            request.latent_values,
            **request.sample_spec,
        )
        latent = generator.get_latent(request.index, **request.sample_spec)
        return {
            "images": png_data_uris(images),
            "latent": [round(float(value), 3) for value in latent],
        }

    @endpoint(InterpolateRequest, "Interpolations from each selected sample to the next.")
    def interpolate(self, request: InterpolateRequest) -> JsonObject:
        """Return interpolations between samples."""
        generator = self.generator(request.candidate)
        images = generator.interpolate(request.indices, request.steps, **request.sample_spec)
        return {"images": png_data_uris(images), "columns": request.steps}

    @endpoint(LatentArithmeticRequest, "Sums and differences of mean latents.")
    def latent_arithmetic(self, request: LatentArithmeticRequest) -> JsonObject:
        """Return the result of latent arithmetic, and images near it."""
        plus = [indices for indices in request.plus if indices]
        minus = [indices for indices in request.minus if indices]
        if not plus and not minus:
            raise UserError("latent arithmetic needs at least one set with a sample")
        generator = self.generator(request.candidate)
        images = generator.latent_arithmetic(plus, minus, **request.sample_spec)
        return {"images": png_data_uris(images), "columns": ARITHMETIC_COLUMNS}

    @endpoint(StyleMixRequest, "Coarse styles of some samples with fine styles of others.")
    def style_mix(self, request: StyleMixRequest) -> JsonObject:
        """Return a table of style mixes."""
        generator = self.generator(request.candidate)
        images = generator.style_mix(
            request.row_indices, request.column_indices, **request.sample_spec
        )
        return {"images": png_data_uris(images), "columns": len(request.column_indices)}

    @endpoint(InterpolateClassesRequest, "Interpolations between classes.")
    def interpolate_classes(self, request: InterpolateClassesRequest) -> JsonObject:
        """Return interpolations between classes."""
        generator = self.generator(request.candidate)
        images = generator.interpolate_classes(
            request.labels,
            request.steps,
            rows=request.rows,
            seed=request.seed,
            truncation=request.truncation,
        )
        return {"images": png_data_uris(images), "columns": request.images_per_row}

    @endpoint(NearestImagesRequest, "The training images nearest to a sample.")
    def nearest_images(self, request: NearestImagesRequest) -> JsonObject:
        """Return the training images nearest to a sample, and their feature distances."""
        if self.data is None:
            raise UserError("the training images are not loaded; start with --data DATA")
        generator = self.generator(request.candidate)
        samples = generator.sample(**request.sample_spec)
        if not 0 <= request.index < request.count:
            raise UserError(f"index must be from 0 to {request.count - 1}, but got {request.index}")
        if self.data.resolution != samples.shape[1:3]:
            raise UserError("this candidate's images are smaller than the training images")
        extractor, train_features = self._real_features
        sample = samples[request.index : request.index + 1]
        features = extractor(torch.from_numpy(sample.transpose(0, 3, 1, 2).copy()))
        distances = torch.cdist(features, train_features)[0]
        nearest = distances.argsort()[: request.num_neighbors]
        images = np.array(self.data.images[nearest.numpy()]).transpose(0, 2, 3, 1)
        return {
            "images": png_data_uris(images),
            "distances": [round(float(distances[index]), 3) for index in nearest],
            "sample": png_data_uris(sample)[0],
        }

    @cached_property
    def _real_features(self) -> tuple[FeatureExtractor, Tensor]:
        """The feature extractor of the run, and the features of all training images."""
        assert self.data is not None
        extractor = run_extractor(self.run, self.data)
        return extractor, real_features(self.data, extractor)

    def _has_weights(self, candidate_id: str) -> bool:
        return (candidate_dir(self.run_dir, candidate_id) / WEIGHTS_FILE).is_file()

    def _describe_segment(self, candidate: CandidateRecord) -> JsonObject:
        """Return what the page shows of a candidate in a list."""
        return {
            "id": candidate.id,
            "resolution": format_resolution(candidate.resolution, "×"),
            "score": format_score(candidate.score, None),
            "has_weights": self._has_weights(candidate.id),
        }

    def _describe_network(self, candidate_id: str, role: str) -> list[str]:
        """Return a line for each layer of a network; none if its spec was deleted."""
        try:
            specs = load_specs(candidate_dir(self.run_dir, candidate_id))
        except UserError:
            return []
        spec = specs[role == "discriminator"]
        base_grid = format_resolution(spec.base_grid, "×")
        return [f"stem {base_grid}, {spec.stem_width} channels", *_describe_layers(spec)]


def _depth_first(node: TreeNode, depth: int = 0) -> Iterator[tuple[TreeNode, int]]:
    """Yield a node and its descendants, with their depths."""
    yield node, depth
    for child in node.children:
        yield from _depth_first(child, depth + 1)


def _find_node(roots: Sequence[TreeNode], candidate: CandidateRecord) -> TreeNode:
    """Return the node of the tree that has the candidate as a segment."""
    for root in roots:
        for node, _ in _depth_first(root):
            if candidate in node.segments:
                return node
    raise ValueError(f"candidate {candidate.id} is not in the growth tree")


def _describe_layers(spec: NetworkSpec) -> list[str]:
    resampling = ", upsamples" if spec.role == "generator" else ", downsamples"

    def describe(layer: LayerSpec) -> str:
        kernel = format_resolution((layer.kernel_size, layer.kernel_size), "×")
        resamples = resampling if layer.resample_factor > 1 else ""
        norm = "" if layer.norm == "none" else f", {layer.norm} norm"
        return f"{layer.block} {kernel}, {layer.width} channels{resamples}{norm}"

    return [describe(layer) for layer in spec.layers]


def _sample_sheet_uri(candidate: CandidateRecord, samples_per_side: int) -> str:
    """Return the first samples of a candidate as a data URI, "" if it has none."""
    image = sample_image(candidate, samples_per_side)
    return "" if image is None else png_data_uri(image, fast=True)


def png_data_uris(images: ImageArray | NDArray[np.uint8]) -> list[str]:
    """Return images, uint8 [N, H, W, C], as PNG data URIs."""
    return [png_data_uri(to_pil_image(image), fast=True) for image in images]
