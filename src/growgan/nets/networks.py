"""The networks, built from their specs: :class:`Generator` and :class:`Discriminator`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets import hub
from growgan.nets.blocks import BLOCKS, Block
from growgan.nets.conditioning import (
    append_condition,
    build_label_embedding,
    concat_label_maps,
    one_hot,
    split_condition,
)
from growgan.nets.ends import ENDS, NetworkEnds
from growgan.nets.invertible_map import InvertibleLatentMap
from growgan.nets.layers import LinearMapWidths, ScaledLinear, skip_init, to_channels_last
from growgan.nets.minibatch import MinibatchDiscrimination
from growgan.nets.norms import VirtualBatchNorm
from growgan.nets.resampling import downsample_average, upsample_blur, upsample_nearest
from growgan.nets.spec import (
    MAX_PARAMETERS,
    DiscriminatorSpec,
    GeneratorSpec,
    NetworkSpec,
    without_fade,
)

IMAGE = "image"  # key of the image head behind all layers
SOURCE_PIXELS_PER_CELL = 4  # per side of a cell of D's base grid, for source projection


# What a spec implies


def layer_names(spec: NetworkSpec) -> list[str]:
    """Return "stem" and the ids of the layers: the names of the widths of the network."""
    return ["stem", *(layer.id for layer in spec.layers)]


def head_positions(spec: NetworkSpec) -> dict[str, int]:
    """Return how many layers stand on the base-grid side of each image head.

    A head is named by the layer on its other side; the last and current one is named "image". While
    layers fade in, the previous head stands before them. With output skips, G also has a head
    before each layer that doubles the resolution.
    """
    positions = {len(spec.settled_layers), len(spec.layers)}
    if isinstance(spec, GeneratorSpec) and ENDS[spec.ends].output_skips:
        positions |= {i for i, layer in enumerate(spec.layers) if layer.resample_factor > 1}
    names = [*(layer.id for layer in spec.layers), IMAGE]
    return {names[i]: i for i in sorted(positions)}


def incompatibility(spec: NetworkSpec, block: str) -> str:
    """Return why the network cannot have a layer of type ``block``, or "" if it can."""
    is_discriminator = isinstance(spec, DiscriminatorSpec)
    if is_discriminator or BLOCKS[block].grid_margin == ENDS[spec.ends].grid_margin:
        return ""
    return f"block '{block}' does not fit the ends '{spec.ends}': their margins differ"


def source_encoder_spec(spec: GeneratorSpec) -> DiscriminatorSpec:
    """Return the spec of G's encoder of source images: G's layers in the direction of D.

    Raises:
        UserError: The ends of G do not support source images.
    """
    # The encoder has no styles, so norms that use one become batch norms.
    norms = {"conditional": "batch", "virtual": "batch"}
    layers = tuple(replace(layer, norm=norms.get(layer.norm, layer.norm)) for layer in spec.layers)
    encoder_spec = DiscriminatorSpec(
        base_grid=spec.base_grid,
        image_channels=spec.source_channels,
        stem_width=spec.stem_width,
        layers=layers,
        ends=spec.ends,
        weight_spec=spec.weight_spec,
        label_dim=spec.label_dim,
        label_embedding_dim=spec.label_embedding_dim,
        num_fading_layers=spec.num_fading_layers,
        logit_conditioning="concat" if spec.label_dim else "none",
    )
    # Features can only be added where those of the encoder and of G have the same size.
    factors = (spec.head_resample_factor, encoder_spec.head_resample_factor)
    if ENDS[spec.ends].grid_margin or factors != (1, 1):
        raise UserError(f"the ends '{spec.ends}' do not support source images")
    return encoder_spec


def decoder_spec(spec: DiscriminatorSpec) -> GeneratorSpec:
    """Return the spec of the decoder of an autoencoder D."""
    ends = ENDS[spec.ends].decoder_ends or spec.ends
    decoder = GeneratorSpec(
        base_grid=spec.base_grid,
        image_channels=spec.image_channels,
        stem_width=spec.stem_width,
        layers=spec.layers,
        ends=ends,
        weight_spec=spec.weight_spec,
        num_fading_layers=spec.num_fading_layers,
        latent_dim=ENDS[spec.ends].epilogue.feature_dim(spec),
    )
    # If D's head halves the image and the decoder's does not double it, the base grid is larger.
    factor = spec.head_resample_factor // decoder.head_resample_factor
    return replace(decoder, base_grid=(spec.base_grid[0] * factor, spec.base_grid[1] * factor))


# Networks


class Widths(NamedTuple):
    """The widths that a module reads and writes: "stem", the id of a layer, or None if fixed.

    Attributes:
        inputs: Name of the width of its input.
        outputs: Name of the width of its output.
        num_extra_inputs: How many channels it reads besides those of ``inputs``.
    """

    inputs: str | None = None
    outputs: str | None = None
    num_extra_inputs: int = 0


class Slot(NamedTuple):
    """A module in its place in a network.

    Attributes:
        name: Name of the module in its network.
        module: The module.
        widths: The widths that it reads and writes.
    """

    name: str
    module: nn.Module
    widths: Widths


class Network(nn.Module):
    """Base class of G and D: layers, image heads and the fade-in.

    Attributes:
        spec: The spec of the network.
        layers: The layers by id.
        heads: The image heads by the id of the layer that they stand before, and "image" for the
            current one.
        alpha: Progress of the fade-in, a scalar in [0, 1]: at 0 only the previous head counts, at 1
            only the current one.
    """

    alpha: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec, self.layer_names = spec, layer_names(spec)
        style_dim = self.ends.stem.style_dim(spec) if isinstance(spec, GeneratorSpec) else 0
        self.layers = nn.ModuleDict()
        for i, layer in enumerate(spec.layers):
            if reason := incompatibility(spec, layer.block):
                raise UserError(reason)
            self.layers[layer.id] = BLOCKS[layer.block](
                layer,
                spec.width_before(i),
                role=spec.role,
                weight_spec=spec.weight_spec,
                style_dim=style_dim,
            )
        self.heads = nn.ModuleDict()
        for key, i in head_positions(spec).items():
            self.heads[key] = self._build_head(spec.width_before(i))
        self.register_buffer("alpha", torch.ones(()))

    def _build_head(self, width: int) -> nn.Module:
        """Return an image head for features with ``width`` channels."""
        raise NotImplementedError

    @property
    def ends(self) -> NetworkEnds:
        """The ends of the network."""
        return ENDS[self.spec.ends]

    @property
    def head(self) -> nn.Module:
        """The current image head."""
        return self.heads[IMAGE]

    @property
    def previous_head(self) -> nn.Module | None:
        """The image head from before the growth that is fading in, if there is one."""
        if not self.spec.num_fading_layers:
            return None
        return self.heads[self.spec.fading_layers[0].id]

    @cached_property
    def uses_batch_statistics(self) -> bool:
        """Whether the output for an image depends on the other images of the batch."""
        types = (nn.BatchNorm2d, MinibatchDiscrimination)
        return any(isinstance(module, types) for module in self.modules())

    @property
    def fade_resample_factor(self) -> int:
        """Factor by which the layers that fade in enlarge the image: a power of two."""
        return prod(layer.resample_factor for layer in self.spec.fading_layers)

    @property
    def subnetworks(self) -> dict[str, Network]:
        """The networks within this one, by name. They grow with it."""
        children = self.named_children()
        return {name: child for name, child in children if isinstance(child, Network)}

    def set_alpha(self, alpha: float) -> None:
        """Set the progress of the fade-in, 0 to 1."""
        self.alpha.fill_(alpha)
        for subnetwork in self.subnetworks.values():
            subnetwork.set_alpha(alpha)

    def finish_fade(self) -> None:
        """End the fade-in. This removes the previous head unless it is an output skip."""
        for subnetwork in self.subnetworks.values():
            subnetwork.finish_fade()
        self.spec = without_fade(self.spec)
        for key in set(self.heads) - set(head_positions(self.spec)):
            del self.heads[key]
        self.alpha.fill_(1.0)

    def blocks(self) -> list[Block]:
        """Return the layers; the last one is next to the image."""
        return [block for block in self.layers.values() if isinstance(block, Block)]

    def slots(self, moved_heads: Mapping[str, str] | None = None) -> dict[str, Slot]:
        """Return all modules of the network and its subnetworks, by name.

        Children inherit weights by these names. A module without widths of its own has those of the
        module that contains it.

        Args:
            moved_heads: Under which keys to list some image heads instead of their own.
        """
        widths, moved_heads = self._module_widths(), moved_heads or {}
        head_dicts = {network.heads for network in (self, *self.subnetworks.values())}
        slots: dict[str, Slot] = {}

        def visit(slot: Slot, listed_name: str) -> None:
            slots[listed_name] = slot
            for key, module in slot.module.named_children():
                listed_key = moved_heads.get(key, key) if slot.module in head_dicts else key
                child_slot = Slot(
                    join_names(slot.name, key), module, widths.get(module, slot.widths)
                )
                visit(child_slot, join_names(listed_name, listed_key))

        visit(Slot("", self, Widths()), "")
        return slots

    def _module_widths(self) -> dict[nn.Module, Widths]:
        """Return the widths that linear maps, norms and image heads read and write."""
        widths: dict[nn.Module, Widths] = {}
        is_generator = self.spec.role == "generator"
        for block, (inner, outer) in zip(self.blocks(), pairwise(self.layer_names), strict=True):
            reads, writes = (inner, outer) if is_generator else (outer, inner)
            names = {"in": reads, "out": writes, "width": outer}
            widths |= _declared_widths(block, block.linear_map_widths, names)
        for key, i in head_positions(self.spec).items():
            name = self.layer_names[i]
            widths[self.heads[key]] = Widths(name, None) if is_generator else Widths(None, name)
        for subnetwork in self.subnetworks.values():
            widths |= subnetwork._module_widths()
        return widths

    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def _declared_widths(
    module: nn.Module, declared: LinearMapWidths, names: Mapping[str, str]
) -> dict[nn.Module, Widths]:
    """Return the widths of the modules in ``module``, with the names of widths replaced."""
    widths: dict[nn.Module, Widths] = {}
    for attribute, (inputs, outputs) in declared.items():
        if (submodule := getattr(module, attribute, None)) is not None:
            widths[submodule] = Widths(
                names[inputs] if inputs else None, names[outputs] if outputs else None
            )
    return widths


def join_names(name: str, key: str) -> str:
    """Return the name of an attribute of the module ``name``, where "" is the network."""
    return f"{name}.{key}" if name else key


class SourceEncoder(Network):
    """Encoder of source images, whose features are added to those of G at the same resolution.

    The features are added at the stem and behind each layer of G that doubles the resolution, like
    the skip connections of a U-Net (Ronneberger et al. 2015, 1505.04597) but as sums. Appended and
    inserted layers keep these places, so that G grows like any other network. Labels are appended
    to the source image as constant channels (Choi et al. 2018, 1711.09020).
    """

    spec: DiscriminatorSpec

    def __init__(self, generator_spec: GeneratorSpec) -> None:
        spec = source_encoder_spec(generator_spec)
        super().__init__(spec)
        if spec.label_dim:
            self.label_embedding = build_label_embedding(spec)
        doubling = [layer.id for layer in generator_spec.layers if layer.resample_factor > 1]
        self.skip_positions = {"stem", *doubling}

    def _build_head(self, width: int) -> nn.Module:
        return self.ends.from_image(self.spec, width)

    def forward(
        self, source: Float[Tensor, "n c h w"], label: Float[Tensor, "n k"]
    ) -> dict[str, Tensor]:
        """Return features by the name of the place in G where they are added."""
        if self.spec.label_dim:
            source = concat_label_maps(source, self.label_embedding(label))
        features: dict[str, Tensor] = {}
        blocks, num_settled = self.blocks(), len(self.spec.settled_layers)
        h = self.head(source)
        for i in reversed(range(len(blocks) + 1)):
            if i == num_settled and (previous_head := self.previous_head) is not None:
                previous = previous_head(downsample_average(source, self.fade_resample_factor))
                h = torch.lerp(previous, h, self.alpha.to(h.dtype))
            if self.layer_names[i] in self.skip_positions:
                features[self.layer_names[i]] = h
            h = blocks[i - 1](h) if i else h
        return features


class Generator(Network):
    """Maps latents and conditions, float ``[N, input_dim]``, to images, float ``[N, C, H, W]``.

    Images are approximately in [-1, 1].

    Attributes:
        reference_latents: Reference batch of virtual batch normalization, float ``[64, Z]``.
    """

    spec: GeneratorSpec
    reference_latents: Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__(spec)
        self.stem = self.ends.stem(spec)
        self.label_embedding = build_label_embedding(spec)
        if spec.has_source_encoder:
            self.source_encoder = SourceEncoder(spec)
        if spec.residual_output:  # start as the identity
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)
        if any(layer.norm == "virtual" for layer in spec.layers):
            if spec.source_channels:
                raise UserError(
                    "norm 'virtual' does not support source images: its reference batch has none"
                )
            count = VirtualBatchNorm.NUM_REFERENCES
            labels = one_hot(torch.arange(count), spec.label_dim)
            latents = torch.cat([torch.randn(count, spec.latent_dim), labels], 1)
            self.register_buffer("reference_latents", latents)
        uses_style = [block.uses_style for block in self.blocks()]
        self.style_indices = [sum(uses_style[:i]) for i in range(len(uses_style) + 1)]
        if spec.invertible_map_blocks:
            self.requires_grad_(False)
            self.invertible_map = InvertibleLatentMap(
                spec.latent_dim, spec.label_dim, spec.invertible_map_blocks
            )
            self.train()

    def _build_head(self, width: int) -> nn.Module:
        return self.ends.to_image(self.spec, width)

    def _module_widths(self) -> dict[nn.Module, Widths]:
        declared = self.stem.linear_map_widths
        return super()._module_widths() | _declared_widths(self.stem, declared, {"stem": "stem"})

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the frozen part behind an invertible map stays in eval mode."""
        super().train(mode)
        if self.spec.invertible_map_blocks:
            for name, child in self.named_children():
                child.train(mode and name == "invertible_map")
        return self

    @property
    def num_styles(self) -> int:
        """Number of styles of an image."""
        return self.style_indices[-1] + 1

    @cached_property
    def is_stochastic(self) -> bool:
        """Whether images in training mode also depend on PyTorch's random state."""
        return self.spec.style_mixing_prob > 0 or any(block.adds_noise for block in self.blocks())

    def forward(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        w = self.map_to_w(z)
        if self.training and self.spec.style_mixing_prob:
            w = self._mix_styles(z, w)
        return self.synthesize(w)

    def map_to_w(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n w"]:
        """Return w, of which images are a smooth function.

        Args:
            z: The latents, followed by the label (one number per class: 1 for its class, zeros for
                no label, anything between for a mixture) and the flattened source image.

        Returns:
            The normalized latent or the output of the mapping network, and the embedded label.
            With source images, the label and the source image follow unchanged, because the encoder
            uses both.
        """
        spec = self.spec
        if not spec.source_channels:
            return self._map_latents_and_label(z)
        w = self._map_latents_and_label(z[:, : spec.latent_dim + spec.label_dim])
        return torch.cat([w, z[:, spec.latent_dim :]], 1)

    def _map_latents_and_label(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n w"]:
        if not self.spec.label_dim:
            return self.stem.map_to_w(z, None)
        z, label = z.split([self.spec.latent_dim, self.spec.label_dim], 1)
        if self.spec.invertible_map_blocks:
            return self.stem.map_to_w(self.invertible_map(z, label), None)
        return self.stem.map_to_w(z, self.label_embedding(label))

    def _mix_styles(
        self, z: Float[Tensor, "n z"], w: Float[Tensor, "n w"]
    ) -> Float[Tensor, "n s w"]:
        """Replace the styles of some images by those of another latent from a random layer on."""
        latents, label = z[:, : self.spec.latent_dim], z[:, self.spec.latent_dim :]
        other_w = self.map_to_w(torch.cat([torch.randn_like(latents), label], 1))
        cut = torch.randint(1, self.num_styles + 1, (len(w), 1, 1), device=w.device)
        is_mixed = torch.rand_like(w[:, :1, None]) < self.spec.style_mixing_prob
        cut = torch.where(is_mixed, cut, self.num_styles)
        index = torch.arange(self.num_styles, device=w.device).view(-1, 1)
        return torch.where(index < cut, w[:, None], other_w[:, None])

    def synthesize(self, w: Tensor) -> Float[Tensor, "n c h w"]:
        """Return images for the output of :meth:`map_to_w`.

        Args:
            w: Float ``[N, W]``, or ``[N, num_styles, W]`` for a style per layer.
        """
        if not hasattr(self, "reference_latents"):
            return self._synthesize(w)
        reference = self.map_to_w(self.reference_latents)
        if w.ndim == 3:
            reference = reference[:, None].expand(-1, self.num_styles, -1)
        return self._synthesize(torch.cat([reference, w]))[len(reference) :]

    def _synthesize(self, w: Tensor) -> Tensor:
        if not self.spec.source_channels:
            return self._run_layers(w, {})
        w, cond = w.split([w.shape[-1] - self.spec.cond_dim, self.spec.cond_dim], -1)
        label, source = split_condition(self.spec, cond if cond.ndim == 2 else cond[:, 0])
        image = self._run_layers(w, self.source_encoder(source, label))
        if self.spec.residual_output:
            image = image + source[:, -self.spec.image_channels :]
        return image

    def _run_layers(self, w: Tensor, encoder_features: Mapping[str, Tensor]) -> Tensor:
        """Return the image of the layers, to whose features those of the encoder are added."""
        h = self.stem(w if w.ndim == 2 else w[:, 0])
        image: Tensor | None = None
        previous_image: Tensor | None = None
        blocks, num_settled = self.blocks(), len(self.spec.settled_layers)
        for i, (name, head_key) in enumerate(
            zip(self.layer_names, [*self.layers, IMAGE], strict=True)
        ):
            if name in encoder_features:
                h = h + encoder_features[name]
            if head_key in self.heads:
                image = self._to_image(h, self._style_at(w, i), self.heads[head_key], image)
            if i == num_settled and self.spec.num_fading_layers:
                previous_image = image
            if i < len(blocks):
                h = blocks[i](h, self._style_at(w, i))
        assert image is not None  # the last position has a head
        if previous_image is None:
            return image
        previous_image = upsample_nearest(previous_image, self.fade_resample_factor)
        return torch.lerp(previous_image, image, self.alpha)

    def _to_image(
        self, h: Tensor, style: Tensor, head: nn.Module, smaller_image: Tensor | None
    ) -> Tensor:
        """Return the image of features ``h``, plus the upsampled smaller one with output skips."""
        image: Tensor = head(h, style).float()
        if smaller_image is None or not self.ends.output_skips:
            return image
        # The previous and the current head have the same size if the new layers do not resample.
        if smaller_image.shape != image.shape:
            image = image + upsample_blur(smaller_image)
        return image

    def _style_at(self, w: Tensor, position: int) -> Tensor:
        """Return the style behind ``position`` layers."""
        index = self.style_indices[position]
        return self.stem.style(w if w.ndim == 2 else w[:, index], index)

    def append_cycled_labels(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n z"]:
        """Return latents followed by the labels of all classes in turn, if there are classes."""
        return append_condition(self.spec, z)

    # Hugging Face style persistence

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **hub_kwargs: Any) -> Generator:
        """Load a generator from a folder or from a repository of the Hugging Face Hub.

        Args:
            name_or_path: The folder, or the name of the repository.
            hub_kwargs: ``revision``, ``token``, ``cache_dir`` and ``local_files_only``; see
                ``huggingface_hub.snapshot_download``.

        Returns:
            The generator in eval mode.

        Raises:
            UserError: There is no such folder or repository, or it holds no valid generator.
        """
        folder = hub.resolve_model_folder(name_or_path, **hub_kwargs)
        try:
            spec = GeneratorSpec.from_json(hub.read_config(folder)["spec"])
            return build_from_weights(spec, hub.read_weights(folder)).eval()
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, UserError) as error:
            raise UserError(f"cannot load a generator from '{folder}': {error}") from error

    def save_pretrained(
        self, folder: str | Path, *, config: Mapping[str, Any] | None = None, card: str = ""
    ) -> Path:
        """Write the generator into ``folder`` and return it.

        Args:
            folder: The folder, which is created if necessary.
            config: Further content of ``config.json`` besides the spec.
            card: The model card; if empty, a minimal one.

        Raises:
            UserError: The folder cannot be written.
        """
        weights = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        config = {**(config or {}), "spec": self.spec.to_json()}
        return hub.write_model_folder(Path(folder), weights, config=config, card=card)

    def push_to_hub(
        self, repo_id: str, *, folder: str | Path | None = None, **hub_kwargs: Any
    ) -> str:
        """Upload the generator to the Hugging Face Hub and return its address.

        Args:
            repo_id: Name of the repository, "USER/NAME".
            folder: A folder that :meth:`save_pretrained` has written. If None, a temporary one.
            hub_kwargs: See :func:`growgan.nets.hub.upload_to_hub`.

        Raises:
            UserError: The upload fails.
        """
        if folder is not None:
            return hub.upload_to_hub(folder, repo_id, **hub_kwargs)
        with tempfile.TemporaryDirectory() as temporary:
            return hub.upload_to_hub(self.save_pretrained(temporary), repo_id, **hub_kwargs)


class AutoencoderDecoder(Generator):
    """Maps the features of an autoencoder D back to images."""

    def __init__(self, discriminator_spec: DiscriminatorSpec) -> None:
        super().__init__(decoder_spec(discriminator_spec))

    def _module_widths(self) -> dict[nn.Module, Widths]:
        widths = super()._module_widths()
        for module in self.stem.children():  # the latents are the features of D
            if module in widths:
                widths[module] = widths[module]._replace(inputs="stem")
        return widths


class Discriminator(Network):
    """Maps images, float ``[N, C, H, W]`` in [-1, 1], to logits, float ``[N]``.

    A patch discriminator returns ``[N, P]`` for the P cells of its base grid. A conditional one
    also receives the condition of each image, float ``[N, cond_dim]``: its label, then its
    flattened source image. An autoencoder returns the mean reconstruction error |x -
    decoder(features)| of each image instead of a logit (BEGAN, Berthelot et al. 2017; EBGAN, Zhao
    et al. 2017).

    ``spec.logit_conditioning`` says how the logit depends on the condition (φ are the features, v_y
    is the row of the linear head "classifier" for class y, ψ is the unconditional logit):

    - "none": not at all.
    - "concat": the embedded label is appended to the image as constant channels.
    - "projection": ψ(φ) + <v_y, φ> (Miyato & Koyama 2018).
    - "dual_projection": ψ(φ) + <v_y - v'_y, φ> with v' of the head "fake_classifier" (Han et al.
      2021).
    - "per_class_logits": <v_y, φ> alone (Mescheder et al. 2018).
    - "class_scores": not at all; it is log Σ_k exp <v_k, φ> (Salimans et al. 2016, section 5).
    - "source_projection": ψ(φ) + <V c, φ>, where c is the source image, averaged to
      ``SOURCE_PIXELS_PER_CELL`` pixels per side and cell. The layers then do not see it.

    With the other kinds the source image is appended to the image as further channels.
    """

    spec: DiscriminatorSpec

    def __init__(self, spec: DiscriminatorSpec) -> None:
        super().__init__(spec)
        self.epilogue = self.ends.epilogue(spec)
        if spec.logit_conditioning == "concat":
            self.label_embedding = build_label_embedding(spec)
        feature_dim = self.ends.epilogue.feature_dim(spec)
        per_cell = ("projection", "per_class_logits", "source_projection")
        self.has_patch_heads = spec.patch_discriminator and spec.logit_conditioning in per_cell
        head_sizes = dict(spec.linear_heads)
        if spec.logit_conditioning == "source_projection":
            num_cells = 1 if self.has_patch_heads else prod(spec.base_grid)
            head_sizes["source"] = spec.source_channels * SOURCE_PIXELS_PER_CELL**2 * num_cells
        head_input_dim = spec.stem_width if self.has_patch_heads else feature_dim
        self.linear_heads = nn.ModuleDict()
        for name, size in head_sizes.items():
            self.linear_heads[name] = ScaledLinear(
                head_input_dim, size, weight_spec=spec.weight_spec
            )
        if spec.class_embedding_dim:
            self.class_embeddings = nn.Parameter(
                torch.randn(spec.label_dim, spec.class_embedding_dim)
            )
        if spec.is_autoencoder:
            self.decoder = AutoencoderDecoder(spec)
        if num_kernels := spec.minibatch_discrimination_kernels:
            self.minibatch_discrimination = MinibatchDiscrimination(
                feature_dim, num_kernels, spec.weight_spec
            )
            self.minibatch_logit = ScaledLinear(num_kernels, 1, weight_spec=spec.weight_spec)

    def _build_head(self, width: int) -> nn.Module:
        return self.ends.from_image(self.spec, width)

    def _module_widths(self) -> dict[nn.Module, Widths]:
        widths = super()._module_widths()
        epilogue = self.epilogue
        widths |= _declared_widths(epilogue, epilogue.linear_map_widths, {"stem": "stem"})
        for attribute, count in epilogue.num_extra_inputs.items():
            module = getattr(epilogue, attribute)
            widths[module] = widths[module]._replace(num_extra_inputs=count)
        return widths | dict.fromkeys(self.linear_heads.values(), Widths("stem", None))

    def forward(
        self, x: Float[Tensor, "n c h w"], cond: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, " n"]:
        features = self.features(x, cond)
        if self.spec.is_autoencoder:
            return (x - self.decoder(features)).abs().float().mean((1, 2, 3))
        return self.logits(features, cond)

    def features(
        self, x: Float[Tensor, "n c h w"], cond: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, "n d"]:
        """Return the features of images."""
        # Append the condition to the channels of the image.
        if self.spec.source_channels:
            assert cond is not None
            cond, source = split_condition(self.spec, cond)
            if self.spec.logit_conditioning != "source_projection":
                x = torch.cat([x, source.to(x.dtype)], 1)
        if self.spec.logit_conditioning == "concat":
            assert cond is not None
            x = concat_label_maps(x, self.label_embedding(cond))
        # Run the layers, and blend in the previous head behind those that are fading in.
        blocks, num_settled = self.blocks(), len(self.spec.settled_layers)
        h = self.head(x)
        for block in reversed(blocks[num_settled:]):
            h = block(h)
        if (previous_head := self.previous_head) is not None:
            previous = previous_head(downsample_average(x, self.fade_resample_factor))
            h = torch.lerp(previous, h, self.alpha.to(h.dtype))
        for block in reversed(blocks[:num_settled]):
            h = block(h)
        return self.epilogue(h)

    def logits(
        self, features: Float[Tensor, "n d"], cond: Float[Tensor, "n k"] | None = None
    ) -> Float[Tensor, " n"]:
        """Return the logits of features, float ``[N]``, or ``[N, P]`` for P cells."""
        kind, heads = self.spec.logit_conditioning, self.linear_heads
        logits = self.epilogue.logits(features) if self.spec.has_logit else features.new_zeros(())
        if kind == "source_projection":
            assert cond is not None
            projection = heads["source"](self._head_input(features)).float()
            logits = _add_per_image(logits, (projection * self._source_cells(cond)).sum(-1))
        if kind in ("projection", "per_class_logits", "dual_projection"):
            assert cond is not None
            label = cond[:, : self.spec.label_dim]
            class_logits = heads["classifier"](self._head_input(features)).float()
            if kind == "dual_projection":
                class_logits = class_logits - heads["fake_classifier"](features).float()
            label = label[:, None] if self.has_patch_heads else label
            logits = _add_per_image(logits, (class_logits * label).sum(-1))
        if kind == "class_scores":  # an additional class of fakes has the score 0
            logits = _add_per_image(logits, heads["classifier"](features).float().logsumexp(1))
        if self.spec.minibatch_discrimination_kernels:
            # Equivalent to a linear map of the features with the statistics appended.
            statistics = self.minibatch_discrimination(features)
            logits = _add_per_image(logits, self.minibatch_logit(statistics).flatten())
        return logits

    def _head_input(self, features: Float[Tensor, "n d"]) -> Tensor:
        """Return features as linear heads read them: ``[N, P, stem_width]`` if per cell."""
        if not self.has_patch_heads:
            return features
        return features.unflatten(1, (self.spec.stem_width, -1)).mT

    def _source_cells(self, cond: Float[Tensor, "n k"]) -> Tensor:
        """Return the averaged source images, ``[N, D]``, or ``[N, P, D]`` if per cell."""
        _, source = split_condition(self.spec, cond)
        height, width = (SOURCE_PIXELS_PER_CELL * side for side in self.spec.base_grid)
        averaged = F.adaptive_avg_pool2d(source.float(), (height, width))
        cells = F.pixel_unshuffle(averaged, SOURCE_PIXELS_PER_CELL)
        return cells.flatten(2).mT if self.has_patch_heads else cells.flatten(1)


def _add_per_image(logits: Tensor, per_image: Tensor) -> Tensor:
    """Return ``logits`` plus a number for each image, for all cells if ``logits`` are per cell."""
    return logits + (per_image[:, None] if logits.ndim > per_image.ndim else per_image)


# Construction


@overload
def build_network(spec: GeneratorSpec, seed: int | None = None) -> Generator:
    """Build a generator."""


@overload
def build_network(spec: DiscriminatorSpec, seed: int | None = None) -> Discriminator:
    """Build a discriminator."""


@overload
def build_network(spec: NetworkSpec, seed: int | None = None) -> Generator | Discriminator:
    """Build a network of either role."""


def build_network(spec: NetworkSpec, seed: int | None = None) -> Generator | Discriminator:
    """Build the network of ``spec``.

    Args:
        spec: The spec.
        seed: Random seed of the weights. If None, PyTorch's random state is used.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if isinstance(spec, GeneratorSpec):
            return to_channels_last(Generator(spec))
        assert isinstance(spec, DiscriminatorSpec)
        return to_channels_last(Discriminator(spec))


@overload
def build_from_weights(spec: GeneratorSpec, weights: Mapping[str, Tensor]) -> Generator:
    """Build a generator with these weights."""


@overload
def build_from_weights(spec: DiscriminatorSpec, weights: Mapping[str, Tensor]) -> Discriminator:
    """Build a discriminator with these weights."""


@overload
def build_from_weights(
    spec: NetworkSpec, weights: Mapping[str, Tensor]
) -> Generator | Discriminator:
    """Build a network of either role with these weights."""


def build_from_weights(
    spec: NetworkSpec, weights: Mapping[str, Tensor]
) -> Generator | Discriminator:
    """Build the network of ``spec`` with ``weights`` as its state dict.

    A spec from an untrusted file may ask for more memory than there is. The network is therefore
    first built without memory and compared with the weights.

    Raises:
        UserError: The spec cannot be built, or the weights do not match it.
    """
    try:
        with torch.device("meta"), skip_init():
            state_dict = build_network(spec).state_dict()
    except Exception as error:  # sizes that do not fit raise errors of many types
        raise UserError(f"cannot build the network of the spec: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    num_parameters = sum(map(prod, expected.values()))
    if num_parameters > MAX_PARAMETERS:
        raise UserError(
            f"the spec has {num_parameters:,} parameters; at most {MAX_PARAMETERS:,} are allowed"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() ^ shapes.keys()):
        problem = "is missing" if name in expected else "does not belong to the spec"
        raise UserError(f"weight '{name[:99]}' {problem}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UserError(f"weight '{name}' must have the shape {shape}, but has {shapes[name]}")
    with skip_init():
        network = build_network(spec)
    network.load_state_dict(dict(weights))
    return network
