"""A run's generator for other programs: as safetensors, ONNX or TorchScript, with a model card."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growgan import __version__
from growgan.errors import UserError, require
from growgan.growth.model import Model
from growgan.nets.players import Generator
from growgan.nets.pretrained import CARD, WEIGHTS, read_config
from growgan.registry import Registry
from growgan.report.run import RunRecord, read_run
from growgan.report.text import count, duration, size

Writer = Callable[[nn.Module, tuple[Tensor, ...], Path], None]

EXPORTS: Registry[Writer] = Registry("export")
TRACED = 2  # images of the call that a graph is made from
OPSET = 18
GRAPHS = ("model.onnx", "model.onnx.data", "model.pt")
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")
MADE = "card"  # in config.json: a hash of the model card as it was made


class Drawing(nn.Module):
    """What is exported: latents [N, latent], and labels [N, classes] where there are classes, to
    images [N, C, H, W] of about [-1, 1].
    """

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        images: Tensor = self.network(z if y is None else torch.cat([z, y], 1))
        return images


@EXPORTS.register("safetensors", "weights and spec, for growgan and from_pretrained")
def write_nothing_more(drawing: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Do nothing: each export has the weights."""


@EXPORTS.register("onnx", "graph for ONNX runtimes, of any batch size", "onnx.ai")
def write_onnx(drawing: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Write ``path``.onnx, with the inputs ``z`` (and ``y``) and the output ``images``."""
    require("onnxscript", "ONNX", "'growgan[onnx]'")
    batch = torch.export.Dim("n")
    with _quiet():
        program: Any = torch.onnx.export(
            drawing,
            example,
            dynamo=True,
            input_names=["z", "y"][: len(example)],
            output_names=["images"],
            dynamic_shapes=tuple({0: batch} for _ in example),
            opset_version=OPSET,
            optimize=False,  # it takes 1e-8 for nothing, and a norm without it divides by 0
            verbose=False,
        )
        program.save(str(path.with_suffix(".onnx")))


@EXPORTS.register("torchscript", "traced module that torch loads without growgan, C++ too")
def write_torchscript(drawing: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    """Write ``path``.pt, called as G is: ``images = module(z)``, or ``module(z, y)``."""
    with _quiet():
        traced: Any = torch.jit.trace(drawing, example, check_trace=False)
        traced.save(str(path.with_suffix(".pt")))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep an exporter's remarks on its own inside to itself, those of its loggers too."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


@torch.no_grad()
def export(model: Model, to: str, out: str | Path) -> Path:
    """Write a generator into the folder ``out``: weights, spec, model card, and what ``to`` names.

    What an earlier export left there is replaced, but for a card that was changed by hand.

    Args:
        to: a name of :data:`EXPORTS`.

    Raises:
        UserError: an unknown name, an extra that is missing, an ``out`` that holds something else
            or cannot be written, or a network that the format has no words for.
    """
    write, out = EXPORTS[to], Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _is_ours(out))):
        raise UserError(f"'{out}' holds other things than an export; choose another --out")
    network = model.network()
    if network.spec.given:
        raise UserError("generators that make images from images cannot be exported yet")
    known = read_run(model.run_folder)
    card = model_card(model, known)
    config = {**_config(model, known), MADE: _mark(card)}
    if own_card(out):
        card = (out / CARD).read_text("utf-8")
    for name in GRAPHS:
        (out / name).unlink(missing_ok=True)  # it may be of another generator
    network.save_pretrained(out, config=config, card=card)
    spec = network.spec
    example = [torch.randn(TRACED, spec.latent)]
    if spec.classes:
        example.append(torch.eye(TRACED, spec.classes))
    drawing = Drawing(network).eval()
    drawing(*example)  # what is kept from call to call is made outside of the graph
    try:
        write(drawing, tuple(example), out / "model")
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"this generator cannot be written as {to}: {reason}") from error
    return out


def _is_ours(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CARD).is_file()


def own_card(folder: Path) -> bool:
    """Return whether an export's model card was changed by hand since it was written."""
    if not _is_ours(folder):
        return False
    return bool(read_config(folder).get(MADE) != _mark((folder / CARD).read_text("utf-8")))


def _mark(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]


def _config(model: Model, known: RunRecord) -> dict[str, Any]:
    """Return what stands beside the spec."""
    own = known.by_id[model.folder.name]
    return {
        "growgan": __version__,
        "classes": list(model.classes),
        "fit": model.form["fit"],
        "data": known.data_name,
        "images": own.images,
        "score": own.score,
        "growth": [c.origin for c in known.lineage(own.id) if not c.trains_on],
    }


def model_card(model: Model, known: RunRecord) -> str:
    """Return the card of a model, Markdown with the hub's head: what it is, use, making, limits."""
    own, spec = known.by_id[model.folder.name], model.network().spec
    grown = [c.origin for c in known.lineage(own.id) if not c.trains_on]
    # The hub has no name for the task of drawing an image of a class.
    task = [] if model.classes else ["pipeline_tag: unconditional-image-generation"]
    head = ["---", "library_name: growgan", *task, "tags: [gan, growgan]", "---"]
    score = "none" if own.score is None else f"{own.score:.4g} (growgan's own, lower is better)"
    facts = {
        "images": f"{size(spec.resolution)}, {spec.channels} channels",
        "trained on": f"{known.data_name}: {count(known.data_count)} images",
        "parameters of G": f"{own.generator_parameters:,}",
        "images seen": f"{own.images:,}",
        "score": score,
        "grown by": " → ".join(grown),
        "time": duration(known.elapsed),
        "machine": known.machine,
        "growgan": known.version,
    }
    if model.classes:
        facts["classes"] = ", ".join(model.classes)
    table = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(
        [*head, f"# A generator of {known.data_name}", "", "| | |", "|---|---|", *table, "", USE]
    )


USE = """## Use

```python
import growgan as gg
import torch

images = gg.load("FOLDER").sample(64, seed=0)  # uint8 [64, H, W, C]

network = gg.Generator.from_pretrained("FOLDER")
z = torch.randn(64, network.spec.latent)
images = network(network.labelled(z))  # float [64, C, H, W], about [-1, 1]; any classes take turns
```

`network` takes float [N, latent + classes]: latents, and where there are classes 1 at each image's
own and 0 elsewhere. `network.labelled(z)` adds them.

`model.onnx` and `model.pt`, where they are here, take `z`, float32 [N, latent], standard normal,
and where there are classes `y`, float32 [N, classes], with 1 at each image's class and 0 elsewhere.
They give `images`, float32 [N, C, H, W], of about [-1, 1].

## Limits

It draws what its training images are like, with their gaps and their bias, and may repeat some of
them: `growgan evaluate RUN DATA --metrics memorisation --held-out OTHER` tells. Its score compares
with those of the same run alone.
"""
