"""The condition of an image: its label and its source image.

G's input is the latent followed by the condition; D receives the condition beside the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.nets.layers import ScaledLinear
from growgan.nets.resampling import downsample_average
from growgan.nets.spec import GeneratorSpec, NetworkSpec


def one_hot(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n k"]:
    """Return one-hot labels, modulo ``num_classes``; a label of -1 gives zeros."""
    size = max(1, num_classes)
    encoded = F.one_hot(labels.clamp(min=0) % size, size)[:, :num_classes]
    return encoded.float() * (labels >= 0).float()[:, None]


def append_condition(
    spec: GeneratorSpec,
    z: Float[Tensor, "n z"],
    labels: Sequence[int] | None = None,
    seed: int = 0,
    source_images: Float[Tensor, "k c h w"] | None = None,
) -> Float[Tensor, "n inputs"]:
    """Return G's input: latents followed by a condition for each.

    Args:
        spec: The spec of G.
        z: The latents.
        labels: Class indices, repeated in turn. If None, all classes.
        seed: Random seed of the continuous codes.
        source_images: Images in [-1, 1] at G's resolution or a multiple of it, repeated in turn.

    Raises:
        UserError: G needs source images, and there are none.
    """
    parts = [z]
    if spec.label_dim:
        # With continuous codes alone, one empty label stands for all.
        indices = range(max(1, spec.num_classes)) if labels is None else labels
        classes = _cycle_rows(torch.tensor(indices, device=z.device), len(z))
        rng = torch.Generator().manual_seed(~seed & 0xFFFFFFFF)
        codes = torch.randn(len(z), spec.num_continuous_codes, generator=rng).to(z.device)
        parts += [one_hot(classes, spec.num_classes), codes]
    if spec.source_channels:
        if source_images is None:
            raise UserError("this generator translates images, but there are no source images")
        factor = source_images.shape[-1] // spec.resolution[1]
        resized = downsample_average(source_images.to(z.device), factor)
        parts.append(_cycle_rows(resized, len(z)).flatten(1))
    return torch.cat(parts, 1)


def _cycle_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Return ``num_rows`` rows, repeating from the first."""
    return rows[torch.arange(num_rows, device=rows.device) % len(rows)]


def split_condition(
    spec: NetworkSpec, cond: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n c h w"]]:
    """Return the label and the source image of each condition."""
    label, source = cond.split([spec.label_dim, spec.cond_dim - spec.label_dim], 1)
    return label, source.unflatten(1, (spec.source_channels, *spec.resolution))


def concat_label_maps(
    x: Float[Tensor, "n c h w"], label: Float[Tensor, "n e"]
) -> Float[Tensor, "n d h w"]:
    """Return images with each entry of their label appended as a constant channel."""
    maps = label.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, maps], 1)


def build_label_embedding(spec: NetworkSpec) -> nn.Module:
    """Return the learned embedding of labels, or the identity for one-hot labels."""
    if not spec.label_embedding_dim or not spec.embedded_label_dim:
        return nn.Identity()
    # A one-hot label has one nonzero entry, so this gain gives embeddings of unit variance.
    return ScaledLinear(
        spec.label_dim,
        spec.label_embedding_dim,
        gain=spec.label_dim**0.5,
        weight_spec=spec.weight_spec,
    )
