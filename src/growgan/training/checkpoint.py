"""Checkpoints of a GAN: specs as JSON and tensors as safetensors, without pickle.

=====================  =========================================================================
spec.json              specs of G and D
weights.safetensors    G, D and the moving average, as "generator.", "discriminator.", "ema."
state.safetensors      optimizer step counts and moments; the objective's state
state.json             images and steps, optimizer settings; the position in an unfinished segment
manifest.json          SHA-256 of each of these, so that damaged files are never loaded
=====================  =========================================================================
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from growgan.config import OptimizerSettings
from growgan.errors import UserError
from growgan.files import file_sha256, replace_folder
from growgan.jsonl import parse_json
from growgan.nets.growth_ops import select_prefix
from growgan.nets.hub import save_safetensors
from growgan.nets.networks import Generator, build_from_weights
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.training.gan import Gan
from growgan.training.loop import ResumePoint

CHECKPOINT_FILES = ("spec.json", "weights.safetensors", "state.safetensors", "state.json")
MANIFEST_FILE = "manifest.json"  # written last
CheckpointFiles = Mapping[str, bytes]
# Exceptions that reading a damaged or malicious checkpoint may raise.
READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    SafetensorError,
    UserError,
)


def save_gan(gan: Gan, folder: Path, resume_point: ResumePoint | None = None) -> None:
    """Write ``gan`` to ``folder``, which appears complete or not at all.

    ``resume_point`` is its position in an unfinished segment.
    """
    with replace_folder(folder) as partial:
        _write_gan(gan, resume_point, partial)


def save_files(files: CheckpointFiles, folder: Path) -> None:
    """Write the files of :func:`gan_to_files`; ``folder`` appears complete or not at all."""
    with replace_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)


def _write_gan(gan: Gan, resume_point: ResumePoint | None, folder: Path) -> None:
    """Write the files of a checkpoint into an empty folder."""
    specs = {
        "generator": gan.generator.spec.to_json(),
        "discriminator": gan.discriminator.spec.to_json(),
    }
    networks = {"generator": gan.generator, "discriminator": gan.discriminator, "ema": gan.ema}
    weights = {
        f"{network_name}.{name}": tensor
        for network_name, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    generator_moments, discriminator_moments = gan.optimizer_moments()
    tensors = {f"objective_state.{name}": value for name, value in gan.objective_state.items()}
    for network_name, moments in (
        ("generator", generator_moments),
        ("discriminator", discriminator_moments),
    ):
        for key, by_name in moments.items():
            tensors |= {f"{network_name}.{key}.{name}": value for name, value in by_name.items()}
    state = {
        "images_seen": gan.images_seen,
        "steps": gan.steps,
        "optimizer": gan.optimizer_settings.model_dump(),
        "resume_point": asdict(resume_point) if resume_point else None,
    }
    (folder / "spec.json").write_text(json.dumps(specs, indent=1))
    (folder / "state.json").write_text(json.dumps(state))
    save_safetensors(_contiguous_on_cpu(weights), folder / "weights.safetensors")
    save_safetensors(_contiguous_on_cpu(tensors), folder / "state.safetensors")
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST_FILE).write_text(json.dumps(digests, indent=1))


def _contiguous_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def verify_files(folder: Path, file_names: Sequence[str] = CHECKPOINT_FILES) -> None:
    """Compare files with the manifest.

    Raises:
        UserError: A file is missing or differs from what was saved; the error names it.
    """
    try:
        digests: dict[str, Any] = dict(parse_json((folder / MANIFEST_FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"'{folder / MANIFEST_FILE}' cannot be read: {error}") from error
    for name in file_names:
        try:
            digest = file_sha256(folder / name)
        except OSError as error:
            raise UserError(f"'{folder / name}' cannot be read: {error.strerror}") from error
        if digest != digests.get(name):
            raise UserError(f"'{folder / name}' is damaged: its checksum differs from the manifest")


def load_specs(folder: Path) -> tuple[GeneratorSpec, DiscriminatorSpec]:
    """Read the specs of G and D.

    Raises:
        UserError: They are missing or not valid.
    """
    try:
        specs = parse_json((folder / "spec.json").read_bytes())
        generator_spec = GeneratorSpec.from_json(specs["generator"])
        discriminator_spec = DiscriminatorSpec.from_json(specs["discriminator"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder / 'spec.json'}' cannot be read: {error}") from error
    return generator_spec, discriminator_spec


def load_gan(folder: Path, device: str = "cpu") -> Gan:
    """Read back what :func:`save_gan` wrote, bit for bit.

    Raises:
        UserError: A file is missing, damaged or not valid.
    """
    verify_files(folder)
    generator_spec, discriminator_spec = load_specs(folder)
    try:
        state = parse_json((folder / "state.json").read_bytes())
        weights = load_file(folder / "weights.safetensors")
        tensors = load_file(folder / "state.safetensors")
        generator, ema = (
            build_from_weights(generator_spec, select_prefix(weights, network_name)).to(device)
            for network_name in ("generator", "ema")
        )
        discriminator = build_from_weights(
            discriminator_spec, select_prefix(weights, "discriminator")
        ).to(device)
        gan = Gan(generator, discriminator, OptimizerSettings(**state["optimizer"]), ema)
        gan.images_seen, gan.steps = int(state["images_seen"]), int(state["steps"])
        gan.objective_state = {
            name: value.to(device)
            for name, value in select_prefix(tensors, "objective_state").items()
        }
        gan.restore_moments(
            _moments_by_key(select_prefix(tensors, "generator")),
            _moments_by_key(select_prefix(tensors, "discriminator")),
        )
    except READ_ERRORS as error:
        raise UserError(f"checkpoint '{folder}' cannot be loaded: {error}") from error
    return gan


def gan_to_files(gan: Gan) -> CheckpointFiles:
    """Return the files of :func:`save_gan` by name, to send them to another process."""
    with tempfile.TemporaryDirectory() as folder:
        _write_gan(gan, None, Path(folder))
        return read_files(Path(folder))


def read_files(folder: Path) -> CheckpointFiles:
    """Return the files of a checkpoint by name.

    Raises:
        UserError: A file is missing or damaged; the error names it.
    """
    verify_files(folder)
    return {name: (folder / name).read_bytes() for name in (*CHECKPOINT_FILES, MANIFEST_FILE)}


def gan_from_files(files: CheckpointFiles, device: torch.device | str = "cpu") -> Gan:
    """Return the GAN of :func:`gan_to_files`, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return load_gan(Path(folder), str(device))


def load_resume_point(folder: Path) -> ResumePoint | None:
    """Return the GAN's position in its segment, or None if the segment was finished.

    Raises:
        UserError: ``state.json`` is missing or not valid.
    """
    try:
        values = parse_json((folder / "state.json").read_bytes())["resume_point"]
        if not values:
            return None
        return ResumePoint(
            segment_start_images=int(values["segment_start_images"]),
            segment_start_alpha=float(values["segment_start_alpha"]),
            seconds_trained=float(values["seconds_trained"]),
        )
    except READ_ERRORS as error:
        raise UserError(f"'{folder / 'state.json'}' cannot be read: {error}") from error


def load_generator(folder: Path, device: str = "cpu") -> Generator:
    """Read only the moving average of G, in evaluation mode.

    Raises:
        UserError: A file is missing, damaged or not valid.
    """
    verify_files(folder, CHECKPOINT_FILES[:2])
    try:
        weights = load_file(folder / "weights.safetensors")
        generator = build_from_weights(load_specs(folder)[0], select_prefix(weights, "ema"))
    except READ_ERRORS as error:
        raise UserError(f"checkpoint '{folder}' cannot be loaded: {error}") from error
    return generator.to(device).eval()


def _moments_by_key(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group moments named "exp_avg.NAME" by the part before the first dot."""
    keys = {name.partition(".")[0] for name in tensors}
    return {key: select_prefix(tensors, key) for key in keys}
