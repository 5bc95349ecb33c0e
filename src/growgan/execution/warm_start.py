"""Warm start: runs that continue from another run's GAN and make it class-conditional.

"reprogram" freezes the generator and trains an invertible map of latents and labels before it
(:mod:`growgan.nets.invertible_map`). It has few weights, so few labels are enough. "finetune" adds
label inputs to G and D and trains both.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from growgan.config import NetworkConfig, OptimizerSettings, Settings, merge_settings
from growgan.data import ImageSet
from growgan.errors import UserError, unknown_name_error
from growgan.nets.growth_ops import copy_shared_slots
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.training.checkpoint import (
    CHECKPOINT_FILES,
    MANIFEST_FILE,
    load_gan,
    load_specs,
    verify_files,
)
from growgan.training.gan import Gan

PRETRAINED_FOLDER = "pretrained"  # in a run directory: the checkpoint that the run starts from
PU_PRIOR_RAMP_IMAGES = 200_000  # length of the ramp of the prior if the budget is unknown

# Settings of each method, on top of those of the pretrained run. The invertible map trains without
# equalized learning rates. At the usual rate of 2e-2 its class vectors diverge, and each class
# becomes a single image. At 5e-4 they have hardly moved after 20,000 images.
FINETUNE_METHODS: dict[str, dict[str, Any]] = {
    "reprogram": {
        "conditioning": "md",
        "loss": "positive-unlabeled",
        "network": {"invertible_map_blocks": 3},
        "optimizer": {"lr": 1e-3},
    },
    "finetune": {"conditioning": "projection"},
}


def copy_pretrained_checkpoint(checkpoint_dir: Path, run_dir: Path) -> None:
    """Copy a checkpoint into a new run, so that the run does not need the other one."""
    verify_files(checkpoint_dir)
    folder = run_dir / PRETRAINED_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*CHECKPOINT_FILES, MANIFEST_FILE):
        shutil.copyfile(checkpoint_dir / name, folder / name)


def load_pretrained_gan(run_dir: Path, device: torch.device | str = "cpu") -> Gan | None:
    """Return the GAN that the run in ``run_dir`` starts from, None if it starts from scratch."""
    folder = run_dir / PRETRAINED_FOLDER
    return load_gan(folder, str(device)) if folder.is_dir() else None


def finetune_settings(
    method: str, base_settings: Settings, num_classes: int = 0, ramp_images: int | None = None
) -> dict[str, Any]:
    """Return the settings of a run that makes a pretrained GAN conditional.

    "reprogram" gives G its own learning rate, and keeps that of D. Its loss assumes a prior
    fraction of fakes that are good enough to be real, which grows from one class to all.

    Args:
        method: "reprogram" or "finetune".
        base_settings: Settings of the pretrained run.
        num_classes: Number of classes of the data, for the initial prior.
        ramp_images: Number of images after which the prior is 1. The default is 200,000.

    Raises:
        UserError: There is no such method.
    """
    if method not in FINETUNE_METHODS:
        raise unknown_name_error("method", method, FINETUNE_METHODS)
    values = base_settings.model_dump(exclude={"policy", "growth", "resolution"})
    values = merge_settings(
        values, {**FINETUNE_METHODS[method], "policy": "fixed", "init_from": method}
    )
    if method == "reprogram":
        optimizer = base_settings.optimizer
        values["optimizer"]["discriminator_lr"] = optimizer.discriminator_lr or optimizer.lr
        prior = {"prior": 1 / num_classes} if num_classes else {}
        values["loss_options"] = {**prior, "ramp_images": ramp_images or PU_PRIOR_RAMP_IMAGES}
    return values


def warm_start_specs(
    settings: Settings, checkpoint_dir: Path | None, data: ImageSet
) -> tuple[GeneratorSpec, DiscriminatorSpec] | None:
    """Return the specs of the pretrained G and D with label inputs, None without a warm start.

    Raises:
        UserError: The settings contradict each other, or the pretrained GAN cannot become
            conditional or does not fit the data.
    """
    if settings.init_from == "none":
        if settings.network.invertible_map_blocks:
            raise UserError(
                "network.invertible_map_blocks needs a pretrained generator; see growgan finetune"
            )
        return None
    if checkpoint_dir is None or settings.policy != "fixed":
        raise UserError(
            f"init_from '{settings.init_from}' needs a pretrained run and the policy 'fixed'; see "
            "growgan finetune"
        )
    specs = conditional_specs(checkpoint_dir, settings.network)
    check_data_matches_generator(specs[0], data)
    return specs


def conditional_specs(
    checkpoint_dir: Path, network_settings: NetworkConfig
) -> tuple[GeneratorSpec, DiscriminatorSpec]:
    """Return the specs of a checkpoint with the label inputs of ``network_settings``.

    Raises:
        UserError: The networks are conditional already, or cannot become so.
    """
    generator_spec, discriminator_spec = load_specs(checkpoint_dir)
    if generator_spec.label_dim:
        raise UserError(
            f"'{checkpoint_dir}' is conditional already; it has {generator_spec.label_dim} classes"
        )
    has_virtual_norm = any(layer.norm == "virtual" for layer in generator_spec.layers)
    if has_virtual_norm and network_settings.invertible_map_blocks:
        raise UserError(
            "a generator with norm 'virtual' cannot be reprogrammed; use the method 'finetune'"
        )
    if discriminator_spec.is_autoencoder:
        raise UserError("a discriminator that is an autoencoder cannot become conditional")
    shared: dict[str, Any] = {
        "label_dim": network_settings.label_dim,
        "num_continuous_codes": network_settings.num_continuous_codes,
        "num_fading_layers": 0,
    }
    generator_fields: dict[str, Any] = {
        "invertible_map_blocks": network_settings.invertible_map_blocks
    }
    if network_settings.invertible_map_blocks:
        generator_fields["style_mixing_prob"] = 0.0  # the frozen generator is used as it is
    else:
        generator_fields |= {
            "label_embedding_dim": network_settings.label_embedding_dim,
            "stem_uses_label": network_settings.stem_uses_label,
            "styles_use_latent": True,
        }
    discriminator_fields: dict[str, Any] = {
        "logit_conditioning": network_settings.logit_conditioning,
        "linear_heads": network_settings.linear_heads,
        "class_embedding_dim": network_settings.class_embedding_dim,
        "label_embedding_dim": network_settings.label_embedding_dim,
    }
    return (
        replace(generator_spec, **shared, **generator_fields),
        replace(discriminator_spec, **shared, **discriminator_fields),
    )


def check_data_matches_generator(generator_spec: GeneratorSpec, data: ImageSet) -> None:
    """Check that ``data`` have the size and the channels of the generator's images.

    Raises:
        UserError: They do not.
    """
    generated = (generator_spec.image_channels, *generator_spec.resolution)
    expected = (data.channels, *data.resolution)
    if generated != expected:
        descriptions = [
            f"{height}x{width} with {channels} channel{'s' * (channels > 1)}"
            for channels, height, width in (generated, expected)
        ]
        raise UserError(
            f"the generator's images are {descriptions[0]}, but those of '{data.name}' are "
            f"{descriptions[1]}"
        )


def init_from_pretrained(
    pretrained: Gan,
    specs: tuple[GeneratorSpec, DiscriminatorSpec],
    optimizer_settings: OptimizerSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Gan:
    """Return a GAN of ``specs`` that computes the same as ``pretrained``, whatever the label.

    Optimizer moments, image counts and the state of the objective are new. G starts from the moving
    average of the pretrained G.
    """
    gan = Gan.create(*specs, optimizer_settings, seed=seed, device=device)
    pretrained.finish_fade()
    copy_shared_slots(pretrained.ema, gan.generator)
    copy_shared_slots(pretrained.discriminator, gan.discriminator)
    gan.ema.load_state_dict(gan.generator.state_dict())
    return gan
