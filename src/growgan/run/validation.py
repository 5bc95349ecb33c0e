"""Checks of settings against each other and the data, and the network settings that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from growgan.config import EditSettings, NetworkSettings, Settings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.distributed import check_batch_size
from growgan.metrics.features.own_network import MIN_TRAINING_IMAGES
from growgan.nets.blocks import BLOCKS
from growgan.nets.networks import build_network
from growgan.nets.norms import NORMS
from growgan.nets.presets import PRESETS
from growgan.nets.spec import NetworkSpec
from growgan.objectives import make_objective, target_based_regularizers
from growgan.objectives.conditioning import Conditioning
from growgan.registry import Registry
from growgan.run.loggers import check_loggers
from growgan.search.history import SearchSpace
from growgan.search.policies import POLICIES, make_policy
from growgan.training.distributed import init_distributed
from growgan.training.runtime import runtime_from_settings


def validate_settings(settings: Settings) -> Settings:
    """Check the settings as far as possible without data.

    Returns:
        The settings, with a D that is an autoencoder if the loss needs one.

    Raises:
        UserError: A name is unknown, or settings do not fit each other.
    """
    network = settings.network
    make_policy(settings.policy, settings.growth)
    names: list[tuple[Registry[Any], list[str]]] = [
        (PRESETS, [settings.preset]),
        (BLOCKS, [name for name in (network.block, network.discriminator_block) if name]),
        (BLOCKS, list(settings.edits.blocks)),
        (NORMS, [network.norm, network.discriminator_norm]),
    ]
    for registry, names_of_kind in names:
        for name in names_of_kind:
            registry[name]
    check_loggers(settings.loggers)
    check_batch_size(init_distributed(), settings)
    uses_energy = make_objective(settings).loss.uses_energy
    if uses_energy and network.minibatch_discrimination_kernels:
        raise UserError(
            "network.minibatch_discrimination_kernels has no meaning for the loss "
            f"'{settings.loss}'"
        )
    runtime_from_settings(settings)
    group_size = network.mbstd_group_size
    if group_size and settings.batch_size % group_size:
        raise UserError(
            f"batch_size {settings.batch_size} must be a multiple of network.mbstd_group_size "
            f"{group_size}, or real and fake images would share a group; 0 disables the groups"
        )
    network = network.model_copy(update={"is_autoencoder": uses_energy})
    return settings.model_copy(update={"network": network})


def derive_network_settings(settings: Settings, data: ImageSet) -> Settings:
    """Check the settings against the data.

    Returns:
        The settings, with the network settings that the conditioning and the data determine.

    Raises:
        UserError: The data lack labels or source images that the settings need, or the settings
            cannot use what the data have.
    """
    conditioning = make_objective(settings).conditioning
    _check_labels(settings, conditioning, data)
    _check_source_images(settings, conditioning, data)
    num_categories, num_continuous_codes = conditioning.code_sizes()
    if conditioning.needs_labels:
        label_dim = len(data.classes)
    else:
        label_dim = num_categories + num_continuous_codes
    linear_heads = conditioning.linear_heads(label_dim) if label_dim else {}
    source_images = data.source_images
    derived = {
        "label_dim": label_dim,
        "source_channels": 0 if source_images is None else int(source_images.shape[1]),
        "discriminator_sees_source": conditioning.discriminator_sees_source,
        "num_continuous_codes": num_continuous_codes,
        "logit_conditioning": conditioning.logit_conditioning,
        "linear_heads": tuple(linear_heads.items()),
        "class_embedding_dim": conditioning.class_embedding_dim,
    }
    network = settings.network.model_copy(update=derived)
    return settings.model_copy(update={"network": network})


# Settings that change how the networks compute or train, but not which modules they consist of.
SETTINGS_BEYOND_MODULES = frozenset(
    {
        "latent_dim",
        "init",
        "parametrization",
        "lr_scaling",
        "style_mixing_prob",
        "mbstd_group_size",
        "residual_output",
        "patch_discriminator",
    }
)


def check_settings_have_effect(settings: Settings, space: SearchSpace) -> None:
    """Refuse settings of the networks or the edits that change nothing in this run.

    Each network setting that differs from the preset's own value is reset to it. If G and D stay
    the same at every resolution, the setting has no effect.

    Raises:
        UserError: A setting has no effect. The message names it and the reason.
    """
    if space.warm_start_specs is None:  # a pretrained GAN brings its own networks
        _check_network_settings(settings, space)
    if settings.policy in POLICIES and not POLICIES[settings.policy].uses_edit_settings:
        default_edits = EditSettings()
        for name in EditSettings.model_fields:
            if getattr(settings.edits, name) != getattr(default_edits, name):
                raise UserError(
                    f"setting 'edits.{name}' has no effect with policy '{settings.policy}', which "
                    "does not choose among edits; leave it out"
                )


def _check_network_settings(settings: Settings, space: SearchSpace) -> None:
    preset, network = PRESETS[settings.preset], settings.network
    defaults = make_settings(preset.small_settings).network
    published = make_settings(preset.published_settings).network
    for name in NetworkSettings.model_fields:
        value, default = getattr(network, name), getattr(defaults, name)
        generator_name = name.removeprefix("discriminator_")
        if value in (default, getattr(published, name)):
            continue
        if name != generator_name and value == getattr(network, generator_name):
            continue  # the same value as in G is the default of D
        reset = replace(space, network_settings=network.model_copy(update={name: default}))
        beyond_modules = generator_name in SETTINGS_BEYOND_MODULES
        if not _have_equal_networks(space, reset, compare_modules=not beyond_modules):
            continue
        height, width = space.target_resolution
        labels = "with" if network.label_dim else "without"
        raise UserError(
            f"setting 'network.{name}' has no effect on the networks of preset "
            f"'{settings.preset}' at {height}x{width} {labels} labels; leave it out"
        )


def _have_equal_networks(first: SearchSpace, second: SearchSpace, *, compare_modules: bool) -> bool:
    """Return whether the specs, or else the modules, of G and D are equal at every resolution."""
    try:
        if first.max_level != second.max_level:
            return False
        for level in range(first.max_level + 1):
            for spec, other in zip(first.specs_at(level), second.specs_at(level), strict=True):
                if spec != other and not (compare_modules and _modules(spec) == _modules(other)):
                    return False
    except UserError:
        return False  # one of them cannot be built, so they differ
    return True


def _modules(spec: NetworkSpec) -> tuple[str, list[tuple[str, torch.Size]]]:
    """Return the modules of a network, and the names and shapes of its tensors."""
    with torch.device("meta"):  # no memory is allocated
        network = build_network(spec)
    return str(network), [(name, value.shape) for name, value in network.state_dict().items()]


def check_num_images(data: ImageSet) -> None:
    """Raise a :class:`UserError` if there are too few images to train on."""
    if len(data) < MIN_TRAINING_IMAGES:
        raise UserError(
            f"a run needs at least {MIN_TRAINING_IMAGES} images, but there are {len(data)}"
        )


def _check_labels(settings: Settings, conditioning: Conditioning, data: ImageSet) -> None:
    """Check the labels that the conditioning and the score need."""
    name, num_classes = settings.conditioning, len(data.classes)
    if conditioning.needs_labels and (data.labels is None or num_classes < 2):
        raise UserError(
            f"conditioning '{name}' needs labels of at least two classes, but '{data.name}' has "
            f"{num_classes or 'none'}; put the images of each class into a folder of its own"
        )
    if settings.score.kind == "intra-fd" and not conditioning.needs_labels:
        raise UserError(
            f"score.kind 'intra-fd' has no meaning for the conditioning '{name}', which uses no "
            "labels; see: growgan list conditionings"
        )


def _check_source_images(settings: Settings, conditioning: Conditioning, data: ImageSet) -> None:
    """Check the source images that image-to-image settings need, or that others cannot use."""
    has_source_images = data.source_images is not None
    if settings.score.kind == "energy-score" and not (
        has_source_images and conditioning.discriminator_sees_source
    ):
        raise UserError(
            "score.kind 'energy-score' has no meaning for the conditioning "
            f"'{settings.conditioning}'"
        )
    needing_source = list(target_based_regularizers(settings.regularizers))
    if conditioning.needs_source:
        needing_source.append(f"conditioning '{settings.conditioning}'")
    if needing_source and not has_source_images:
        raise UserError(
            f"{needing_source[0]} has no meaning for '{data.name}', which has no source images to "
            "transform; see: growgan list tasks"
        )
    if has_source_images and settings.augmentation != "none":
        raise UserError(
            "augmentation has no meaning for image-to-image tasks: source and output must match"
        )
