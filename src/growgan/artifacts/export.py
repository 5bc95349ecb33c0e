"""Exports a generator as safetensors, ONNX or TorchScript, with a model card."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growgan import __version__
from growgan.errors import UserError, require_extra
from growgan.nets.hub import MODEL_CARD_FILE, WEIGHTS_FILE, read_config
from growgan.nets.networks import Generator
from growgan.registry import Registry
from growgan.report.formatting import format_count, format_duration, format_resolution
from growgan.report.run_record import RunRecord, read_run
from growgan.sampling.trained_generator import TrainedGenerator

TRACE_BATCH_SIZE = 2  # images with which a graph is traced
ONNX_OPSET = 18
NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
CARD_HASH_KEY = "card_hash"  # in config.json: hash of the generated model card
CARD_HASH_LENGTH = 16  # hexadecimal digits

ExportWriter = Callable[[nn.Module, tuple[Tensor, ...], Path], None]


@dataclass(frozen=True)
class ExportFormat:
    """An export format.

    Attributes:
        writer: Writes a graph, given a module, example inputs and the path without a suffix. None
            if the format has no graph: every export contains the weights.
        file_names: Files that the writer may write.
    """

    writer: ExportWriter | None = None
    file_names: tuple[str, ...] = ()


EXPORT_FORMATS: Registry[ExportFormat] = Registry("export format")


class ExportModule(nn.Module):
    """The exported function: latents (and labels) to images.

    Shapes: z [N, latent_dim], y [N, classes] for conditional generators, and images [N, C, H, W]
    in about [-1, 1].
    """

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return images."""
        images: Tensor = self.network(z if y is None else torch.cat([z, y], 1))
        return images


def write_onnx(module: nn.Module, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write an ONNX graph with the inputs ``z`` (and ``y``) and the output ``images``."""
    require_extra("onnxscript", "ONNX", "'growgan[onnx]'")
    batch = torch.export.Dim("n")
    with _silence_exporter():
        program: Any = torch.onnx.export(
            module,
            example_inputs,
            dynamo=True,
            input_names=["z", "y"][: len(example_inputs)],
            output_names=["images"],
            dynamic_shapes=tuple({0: batch} for _ in example_inputs),
            opset_version=ONNX_OPSET,
            optimize=False,  # the optimizer rounds 1e-8 to 0, and norms would divide by 0
            verbose=False,
        )
        program.save(str(path.with_suffix(".onnx")))


def write_torchscript(module: nn.Module, example_inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write a TorchScript module, called as ``images = module(z)`` or ``module(z, y)``."""
    with _silence_exporter():
        traced: Any = torch.jit.trace(module, example_inputs, check_trace=False)
        traced.save(str(path.with_suffix(".pt")))


EXPORT_FORMATS.register("safetensors", "Weights and spec, for growgan and from_pretrained.")(
    ExportFormat()
)
EXPORT_FORMATS.register("onnx", "Graph for ONNX runtimes, with any batch size.", "onnx.ai")(
    ExportFormat(write_onnx, ("model.onnx", "model.onnx.data"))
)
EXPORT_FORMATS.register(
    "torchscript", "Traced module that PyTorch loads without growgan, in Python and C++."
)(ExportFormat(write_torchscript, ("model.pt",)))


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress the warnings, the log messages and the output of an exporter."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    previous_levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, previous_levels, strict=True):
                logger.setLevel(level)


@torch.no_grad()
def export(generator: TrainedGenerator, to: str, out: str | Path) -> Path:
    """Export a generator: weights, spec, model card and, if the format has one, a graph.

    An earlier export in ``out`` is replaced, except for a model card that was edited by hand.

    Args:
        generator: The generator of a run.
        to: Name of a format in :data:`EXPORT_FORMATS`.
        out: Folder to write.

    Returns:
        The folder.

    Raises:
        UserError: The format is unknown or cannot express the network, an extra is not installed,
            or ``out`` has other files or cannot be written.
    """
    export_format, out = EXPORT_FORMATS[to], Path(out)
    is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken and not _is_export(out):
        raise UserError(f"'{out}' holds files that are not an export; choose another --out")
    network = generator.load_network()
    if network.spec.source_channels:
        raise UserError("image-to-image generators cannot be exported yet")
    record = read_run(generator.run_dir)
    card = model_card(generator, record)
    config = {**_export_config(generator, record), CARD_HASH_KEY: _card_hash(card)}
    if card_was_edited(out):
        card = (out / MODEL_CARD_FILE).read_text("utf-8")
    # Graphs of an earlier export may be of another generator.
    for entry in EXPORT_FORMATS:
        for name in entry.value.file_names:
            (out / name).unlink(missing_ok=True)
    network.save_pretrained(out, config=config, card=card)
    if export_format.writer is None:
        return out

    spec = network.spec
    example_inputs = [torch.randn(TRACE_BATCH_SIZE, spec.latent_dim)]
    if spec.label_dim:
        example_inputs.append(torch.eye(TRACE_BATCH_SIZE, spec.label_dim))
    module = ExportModule(network).eval()
    module(*example_inputs)  # fill caches before the graph is traced
    try:
        export_format.writer(module, tuple(example_inputs), out / "model")
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"this generator cannot be exported as {to}: {reason}") from error
    return out


def _is_export(folder: Path) -> bool:
    return (folder / WEIGHTS_FILE).is_file() and (folder / MODEL_CARD_FILE).is_file()


def card_was_edited(folder: Path) -> bool:
    """Return whether the model card of an export was edited by hand."""
    if not _is_export(folder):
        return False
    card = (folder / MODEL_CARD_FILE).read_text("utf-8")
    return bool(read_config(folder).get(CARD_HASH_KEY) != _card_hash(card))


def _card_hash(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:CARD_HASH_LENGTH]


def _export_config(generator: TrainedGenerator, record: RunRecord) -> dict[str, Any]:
    """Return the entries of ``config.json`` besides the spec."""
    candidate = record.candidates_by_id[generator.checkpoint_dir.name]
    return {
        "growgan": __version__,
        "class_names": list(generator.classes),
        "fit": generator.load_args["fit"],
        "dataset": record.data_name,
        "images_seen": candidate.images_seen,
        "score": candidate.score,
        "growth": _growth_labels(record, candidate.id),
    }


def _growth_labels(record: RunRecord, candidate_id: str) -> list[str]:
    """Return the growths that led to a candidate, the first one first."""
    lineage = record.lineage(candidate_id)
    return [candidate.growth_label for candidate in lineage if not candidate.is_continuation]


def model_card(generator: TrainedGenerator, record: RunRecord) -> str:
    """Return the model card: Markdown with the metadata that the Hugging Face Hub reads."""
    candidate = record.candidates_by_id[generator.checkpoint_dir.name]
    spec = generator.load_network().spec
    metadata = ["library_name: growgan", "tags: [gan, growgan]"]
    if not generator.classes:  # the hub has no task name for conditional image generation
        metadata.insert(1, "pipeline_tag: unconditional-image-generation")
    score = "none"
    if candidate.score is not None:
        score = f"{candidate.score:.4g} (growgan's own score; lower is better)"
    num_images = format_count(record.num_training_images)
    facts = {
        "Images": f"{format_resolution(spec.resolution)}, {spec.image_channels} channels",
        "Training data": f"{record.data_name}: {num_images} images",
        "Parameters of the generator": f"{candidate.generator_parameters:,}",
        "Training images processed": f"{candidate.images_seen:,}",
        "Score": score,
        "Growth": " → ".join(_growth_labels(record, candidate.id)),
        "Time of the run": format_duration(record.elapsed),
        "Machine": record.machine,
        "growgan version": record.version,
    }
    if generator.classes:
        facts["Classes"] = ", ".join(generator.classes)
    return "\n".join(
        [
            *("---", *metadata, "---"),
            f"# GAN trained on {record.data_name}",
            "",
            "| Property | Value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            MODEL_CARD_USAGE,
        ]
    )


MODEL_CARD_USAGE = """## Use

```python
import growgan as gg
import torch

images = gg.load("FOLDER").sample(64, seed=0)  # uint8 [64, H, W, C]

network = gg.Generator.from_pretrained("FOLDER")
z = torch.randn(64, network.spec.latent_dim)
images = network(network.append_cycled_labels(z))  # float [64, C, H, W], about [-1, 1]
```

The input of `network` is a float tensor [N, latent + classes]: standard normal latents and, for
conditional generators, one-hot labels. `network.append_cycled_labels(z)` appends the labels of all
classes in turn.

`model.onnx` and `model.pt`, if they are present, have the input `z`, float32 [N, latent].
Conditional generators also have the input `y`, float32 [N, classes], with one-hot labels. The
output is `images`, float32 [N, C, H, W] in about [-1, 1].

## Limits

The images resemble the training data, including their gaps and biases. Some may be copies of
training images. To measure this, run `growgan evaluate RUN DATA --metrics memorization --held-out
OTHER`. The score can only be compared with scores of the same run.
"""
