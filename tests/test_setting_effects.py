"""Settings that change nothing are refused, for every preset and network setting."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from growgan.config import NetworkConfig, NetworkSettings, Settings, make_settings
from growgan.errors import UserError
from growgan.nets.conditioning import append_condition
from growgan.nets.networks import build_network
from growgan.nets.presets import PRESETS
from growgan.run.validation import check_settings_have_effect
from growgan.search.history import SearchSpace

RESOLUTION = (16, 16)
NARROW = {"width": 16, "discriminator_width": 16, "latent_dim": 32}


def preset_network(preset: str) -> NetworkConfig:
    """Return small settings of a preset that build quickly."""
    return make_settings(PRESETS[preset].small_settings).network.model_copy(update=NARROW)


def other_values(network: NetworkConfig) -> dict[str, Any]:
    """Return another valid value for each network setting that can be compared by itself."""
    norm = "none" if network.norm != "none" else "pixel"
    return {
        "latent_dim": 24,
        "width": 32,
        "discriminator_width": 32,
        "full_width_scale": 1,
        "discriminator_full_width_scale": 1,
        "layers_per_resolution": network.layers_per_resolution + 1,
        "kernel_size": 5 if network.kernel_size != 5 else 3,
        "norm": norm,
        "discriminator_norm": "batch" if network.discriminator_norm != "batch" else "none",
        "base_grid": (8, 8),
        "attention_resolution": 8,
        "mapping_layers": network.mapping_layers + 1,
        "style_mixing_prob": 0.5,
        "label_embedding_dim": 5,
        "stem_uses_label": not network.stem_uses_label,
        "styles_use_latent": not network.styles_use_latent,
        "invertible_map_blocks": 1,
        "latent_chunk_dim": 4,
        "mbstd_group_size": 2 if network.mbstd_group_size != 2 else 4,
        "minibatch_discrimination_kernels": 3,
    }


def settings_and_space(
    preset: str, network: NetworkConfig, label_dim: int
) -> tuple[Settings, SearchSpace]:
    network = network.model_copy(
        update={"label_dim": label_dim, "logit_conditioning": "concat" if label_dim else "none"}
    )
    settings = make_settings({"preset": preset}).model_copy(update={"network": network})
    space = SearchSpace(
        preset=preset, network_settings=network, channels=3, target_resolution=RESOLUTION
    )
    return settings, space


def is_refused(settings: Settings, space: SearchSpace, name: str) -> bool:
    try:
        check_settings_have_effect(settings, space)
    except UserError as error:
        assert f"'network.{name}'" in str(error) or "'network.width'" not in str(error)
        return f"'network.{name}' has no effect" in str(error)
    return False


def outputs(space: SearchSpace) -> list[torch.Tensor]:
    """Return weights and training outputs of G and D at the target resolution, for one seed."""
    result: list[torch.Tensor] = []
    for spec in space.specs_at(space.max_level):
        network = build_network(spec, seed=0).train()
        torch.manual_seed(0)
        with torch.no_grad():  # so that no branch is zero, as some are at first
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        if spec.role == "generator":
            inputs: tuple[torch.Tensor, ...] = (
                append_condition(spec, torch.randn(8, spec.latent_dim)),
            )
        else:
            inputs = (torch.randn(8, 3, *RESOLUTION),)
            if spec.label_dim:
                inputs = (*inputs, torch.eye(spec.label_dim)[torch.arange(8) % spec.label_dim])
        with torch.no_grad():
            result += [value.clone() for value in network.state_dict().values()]
            result.append(network(*inputs))
    return result


def are_equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("label_dim", [0, 3], ids=["unlabeled", "labeled"])
@pytest.mark.parametrize("preset", [entry.name for entry in PRESETS])
def test_a_setting_is_refused_exactly_if_the_networks_stay_the_same(
    preset: str, label_dim: int
) -> None:
    network = preset_network(preset)
    _, default_space = settings_and_space(preset, network, label_dim)
    default_outputs = outputs(default_space)
    wrong = []
    for name, value in other_values(network).items():
        if value == getattr(make_settings(PRESETS[preset].published_settings).network, name):
            continue  # the published value is always accepted
        changed = network.model_copy(update={name: value})
        settings, space = settings_and_space(preset, changed, label_dim)
        refused = is_refused(settings, space, name)
        try:
            unchanged = are_equal(outputs(space), default_outputs)
        except UserError:
            continue  # the value is refused for another reason
        if refused != unchanged:
            wrong.append(f"{name}={value}: refused {refused}, networks unchanged {unchanged}")
    assert not wrong


@pytest.mark.parametrize(
    ("preset", "override"),
    [
        ("pggan", "attention_resolution=16"),
        ("dcgan", "layers_per_resolution=2"),
        ("biggan", "mbstd_group_size=8"),
        ("gan", "kernel_size=5"),
        ("pggan", "label_embedding_dim=8"),
    ],
)
def test_a_setting_without_effect_is_named(preset: str, override: str) -> None:
    name = override.split("=")[0]
    settings = make_settings(
        PRESETS[preset].small_settings, {"preset": preset}, overrides=[f"network.{override}"]
    )
    space = SearchSpace(
        preset=preset, network_settings=settings.network, channels=1, target_resolution=(32, 32)
    )
    with pytest.raises(UserError, match=f"'network.{name}' has no effect .* '{preset}'"):
        check_settings_have_effect(settings, space)


@pytest.mark.parametrize("preset", [entry.name for entry in PRESETS])
def test_the_settings_of_a_preset_are_accepted(preset: str) -> None:
    for values in (PRESETS[preset].small_settings, PRESETS[preset].published_settings):
        settings = make_settings(values, {"preset": preset})
        space = SearchSpace(
            preset=preset, network_settings=settings.network, channels=3, target_resolution=(64, 64)
        )
        check_settings_have_effect(settings, space)


def test_settings_of_edits_are_refused_for_a_policy_that_makes_none() -> None:
    settings = make_settings({"policy": "fixed"}, overrides=["edits.max_width=64"])
    space = SearchSpace("pggan", settings.network, 1, (16, 16))
    with pytest.raises(UserError, match=r"'edits.max_width' has no effect with policy 'fixed'"):
        check_settings_have_effect(settings, space)
    check_settings_have_effect(settings.model_copy(update={"policy": "dynamic"}), space)


@pytest.mark.parametrize(
    "name", [n for n in NetworkConfig.model_fields if n not in NetworkSettings.model_fields]
)
def test_derived_values_are_no_settings(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not a setting"):
        make_settings(overrides=[f"network.{name}=1"])
    assert name not in make_settings({}).to_yaml()
