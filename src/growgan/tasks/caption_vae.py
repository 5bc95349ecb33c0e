"""A conditional VAE that decodes captions to coarse images, the first stage of text-to-image.

A text encoder reads the caption: a GRU that is trained with the VAE, or a pretrained model. It
gives a distribution of codes instead of a single code (conditioning augmentation: Zhang et al.
2017, 1612.03242, section 3.2), so that new captions lie between those of the training set.

A further loss requires that the words of the caption can be predicted from the code. Otherwise the
code would omit words that change few pixels of a coarse image, such as a letter, and the GAN could
not recover them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from growgan.data import ImageSet
from growgan.data.cache import write_cache_file
from growgan.errors import UserError, require_extra
from growgan.nets.layers import to_channels_last
from growgan.tasks.evaluation import IMAGES_PER_CHUNK, ImagesNCHW

CODE_DIM = 32  # length of a caption's code
VAE_LATENT_DIM = 16  # length of the latent, for what the caption does not say
MAX_COARSE_SIDE_PIXELS = 16  # shorter side of a coarse image
TEXT_FEATURE_DIM = 128  # features of a caption, by the GRU
WORD_EMBEDDING_DIM = 64
HIDDEN_DIM = 256  # width of the fully connected layers
DECODER_WIDTHS = (64, 64, 48)  # channels of the decoder's base grid and of its layers
MAX_TRAIN_STEPS = 4_000
MAX_TRAIN_EPOCHS = 100  # few images need fewer steps
TRAIN_BATCH_SIZE = 64
LEARNING_RATE = 2e-3
PRIOR_LATENT_FRACTION = 0.5  # first fraction of the steps, with latents that ignore the image
PIXEL_STD = 0.3  # standard deviation of the decoder's output distribution, in [-1, 1]
CODE_KL_WEIGHT = 0.1
WORD_LOSS_WEIGHT = 20.0
SOURCE_CHANNEL_ORDER = "code, coarse image"  # order of the channels of G's source images
CODE_MAP_RANGE = 3.0  # code values are clipped to [-3, 3] to store them as uint8
CAPTIONS_PER_CHUNK = 256  # captions that a pretrained text encoder reads at once

CodeVectors = Float[Tensor, "n c"]


class TextEncoder(Protocol):
    """A module that maps captions to features."""

    @property
    def feature_dim(self) -> int:
        """Number of features."""

    def preprocess(self, captions: Sequence[str]) -> Tensor:
        """Return the input of :meth:`__call__` for captions, row by row."""

    def __call__(self, text_inputs: Tensor) -> Float[Tensor, "n d"]:
        """Return the features."""


class GRUTextEncoder(nn.Module):
    """A GRU over the word embeddings of a caption (Cho et al. 2014)."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.word_ids = {word: k for k, word in enumerate(vocabulary, 1)}
        self.embedding = nn.Embedding(len(vocabulary) + 1, WORD_EMBEDDING_DIM, padding_idx=0)
        self.gru = nn.GRU(WORD_EMBEDDING_DIM, TEXT_FEATURE_DIM, batch_first=True)

    @property
    def feature_dim(self) -> int:
        """Number of features."""
        return TEXT_FEATURE_DIM

    def preprocess(self, captions: Sequence[str]) -> Int[Tensor, "n t"]:
        """Return the ids of the words. Shorter captions are padded with zeros at the start.

        Raises:
            UserError: A word is not in the vocabulary.
        """
        rows = []
        for caption in captions:
            words = split_words(caption)
            if unknown_words := [word for word in words if word not in self.word_ids]:
                vocabulary = ", ".join(sorted(self.word_ids))
                raise UserError(
                    f"no training caption has the word '{unknown_words[0]}'; the known words are:"
                    f" {vocabulary}"
                )
            rows.append([self.word_ids[word] for word in words])
        longest = max(1, *map(len, rows))
        return torch.tensor([[0] * (longest - len(row)) + row for row in rows])

    def forward(self, text_inputs: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Return the features of word ids."""
        _, last_hidden = self.gru(self.embedding(text_inputs))
        features: Tensor = last_hidden[0]
        return features


class PretrainedTextEncoder(nn.Module):
    """A frozen text model from the Hugging Face Hub; the features are the mean over its tokens.

    A model of text and images (CLIP) contributes only its text tower, and an encoder-decoder model
    (T5) only its encoder.

    Args:
        model_name: A text model that ``transformers`` can load, like "distilbert-base-uncased".

    Raises:
        UserError: The model cannot be loaded.
    """

    def __init__(self, model_name: str) -> None:
        super().__init__()
        require_extra("transformers", f"text encoder '{model_name}'", "transformers")
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model_name)
            model = AutoModel.from_pretrained(model_name).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise UserError(f"text encoder '{model_name}' cannot be loaded: {error}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        # The list hides the model from state_dict(): its weights stay on the hub.
        self.frozen_model = [getattr(model, "text_model", model)]

    @cached_property
    def feature_dim(self) -> int:
        """Number of features."""
        return self.preprocess(["a"]).shape[1]

    @torch.no_grad()
    def preprocess(self, captions: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return the features of captions. They are computed here, once, as the model is frozen."""
        features = []
        for start in range(0, len(captions), CAPTIONS_PER_CHUNK):
            chunk = list(captions[start : start + CAPTIONS_PER_CHUNK])
            tokens = self.tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
            hidden = self.frozen_model[0](**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            features.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(features).float()

    def forward(self, text_inputs: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the features unchanged."""
        return text_inputs


class FiLMConv2d(nn.Module):
    """A convolution whose channels are scaled and shifted by features (FiLM: Perez et al. 2018).

    The features are float [N, HIDDEN_DIM].
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_and_shift = nn.Linear(HIDDEN_DIM, 2 * out_channels)

    def forward(
        self, h: Float[Tensor, "n c h w"], features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n e h w"]:
        """Return the activations after the ReLU."""
        scale, shift = self.scale_and_shift(features)[:, :, None, None].chunk(2, 1)
        return F.relu(self.conv(h) * (1 + scale) + shift)


class CaptionVAE(nn.Module):
    """A VAE from captions and latents to coarse images.

    The image encoder, from coarse images to latents, is used in training only, and to find the
    coarse image of a training image.

    Args:
        text_encoder: Reads the captions.
        vocabulary: The words that the word classifier predicts from codes during training.
        image_channels: Channels of the coarse images.
        resolution: Height and width of the coarse images in pixels.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        vocabulary: Sequence[str],
        image_channels: int,
        resolution: tuple[int, int],
    ) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.vocabulary = tuple(vocabulary)
        self.resolution = resolution
        self.code_head = nn.Linear(text_encoder.feature_dim, 2 * CODE_DIM)
        self.word_classifier = nn.Linear(CODE_DIM, len(vocabulary))
        self.base_grid = DECODER_WIDTHS[0], *(-(-side // 4) for side in resolution)
        self.image_encoder = nn.Sequential(
            nn.Conv2d(image_channels, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        num_image_features = 64 * (resolution[0] // 4) * (resolution[1] // 4)
        self.latent_head = nn.Sequential(
            nn.Linear(num_image_features + CODE_DIM, HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(HIDDEN_DIM, 2 * VAE_LATENT_DIM),
        )
        self.decoder_mlp = nn.Sequential(
            nn.Linear(CODE_DIM + VAE_LATENT_DIM, HIDDEN_DIM),
            nn.ReLU(),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
            nn.ReLU(),
        )
        self.to_base_grid = nn.Linear(HIDDEN_DIM, prod(self.base_grid))
        self.decoder_layers = nn.ModuleList(map(FiLMConv2d, DECODER_WIDTHS, DECODER_WIDTHS[1:]))
        self.to_image = nn.Conv2d(DECODER_WIDTHS[-1], image_channels, 3, padding=1)
        # The memory format is set here so that a loaded model rounds exactly as the trained one.
        to_channels_last(self)

    def encode_captions(self, captions: Sequence[str]) -> tuple[CodeVectors, CodeVectors]:
        """Return the mean and the log standard deviation of each caption's code."""
        return self._encode_text(self.text_encoder.preprocess(captions))

    def _encode_text(self, text_inputs: Tensor) -> tuple[CodeVectors, CodeVectors]:
        mean, log_std = self.code_head(self.text_encoder(text_inputs)).chunk(2, 1)
        return mean, log_std

    def encode_images(
        self, coarse_images: Float[Tensor, "n c h w"], code: CodeVectors
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the log standard deviation of the latents of coarse images."""
        features = self.image_encoder(coarse_images).flatten(1)
        mean, log_std = self.latent_head(torch.cat([features, code], 1)).chunk(2, 1)
        return mean, log_std

    def decode(self, code: CodeVectors, latents: Tensor) -> Float[Tensor, "n c h w"]:
        """Return coarse images, approximately in [-1, 1]."""
        features = self.decoder_mlp(torch.cat([code, latents], 1))
        h = F.relu(self.to_base_grid(features)).unflatten(1, self.base_grid)
        for layer in self.decoder_layers:
            h = F.interpolate(layer(h, features), scale_factor=2)
        coarse_images: Tensor = self.to_image(h)[..., : self.resolution[0], : self.resolution[1]]
        return coarse_images

    def loss(
        self,
        coarse_images: Float[Tensor, "n c h w"],
        text_inputs: Tensor,
        word_targets: Bool[Tensor, "n v"],
        rng: torch.Generator,
        *,
        latents_from_prior: bool,
    ) -> Tensor:
        """Return the negative evidence lower bound plus the losses of the codes.

        Args:
            coarse_images: In [-1, 1].
            text_inputs: The output of the text encoder's ``preprocess``.
            word_targets: The output of :meth:`word_targets`.
            rng: Source of the codes and latents.
            latents_from_prior: Draw the latents from the prior instead of the image encoder, so
                that the decoder has to use the caption.
        """
        code_mean, code_log_std = self._encode_text(text_inputs)
        code = reparameterize(code_mean, code_log_std, rng)
        if latents_from_prior:
            mean = log_std = code.new_zeros(len(code), VAE_LATENT_DIM)
        else:
            mean, log_std = self.encode_images(coarse_images, code)
        decoded = self.decode(code, reparameterize(mean, log_std, rng))
        errors = ((decoded - coarse_images) / PIXEL_STD).square()
        reconstruction_loss = errors.sum((1, 2, 3)).mean() / 2
        word_losses = F.binary_cross_entropy_with_logits(
            self.word_classifier(code), word_targets.float(), reduction="none"
        )
        code_loss = (
            CODE_KL_WEIGHT * kl_to_standard_normal(code_mean, code_log_std)
            + WORD_LOSS_WEIGHT * word_losses.sum(1).mean()
        )
        return reconstruction_loss + kl_to_standard_normal(mean, log_std) + code_loss

    def word_targets(self, captions: Sequence[str]) -> Bool[Tensor, "n v"]:
        """Return which words of the vocabulary each caption contains."""
        columns = {word: k for k, word in enumerate(self.vocabulary)}
        targets = torch.zeros(len(captions), len(columns), dtype=torch.bool)
        for row, caption in zip(targets, captions, strict=True):
            row[[columns[word] for word in split_words(caption)]] = True
        return targets

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a model from a file.

        Raises:
            UserError: The file is missing or does not hold a caption VAE of this version.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})["growgan"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata["channel_order"] != SOURCE_CHANNEL_ORDER:
                raise ValueError("an earlier version of growgan wrote it")
            vocabulary = [str(word) for word in metadata["vocabulary"]]
            vae = cls(
                build_text_encoder(metadata["text_encoder"], vocabulary),
                vocabulary,
                int(metadata["image_channels"]),
                (int(metadata["resolution"][0]), int(metadata["resolution"][1])),
            )
            vae.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"'{path}' is not a caption VAE: {error}") from None
        return vae.eval()

    def save(self, path: Path, text_encoder_name: str) -> None:
        """Write the weights and everything that :meth:`load` needs to a file.

        Args:
            path: File to write.
            text_encoder_name: Name of the pretrained text encoder; empty for a GRU.
        """
        metadata: Mapping[str, Any] = {
            "text_encoder": text_encoder_name,
            "channel_order": SOURCE_CHANNEL_ORDER,
            "vocabulary": self.vocabulary,
            "image_channels": self.to_image.out_channels,
            "resolution": self.resolution,
        }
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_cache_file(path, save(weights, metadata={"growgan": json.dumps(metadata)}))


def build_text_encoder(
    text_encoder_name: str, vocabulary: Sequence[str]
) -> GRUTextEncoder | PretrainedTextEncoder:
    """Return the pretrained text encoder of this name, or a new GRU if the name is empty."""
    if text_encoder_name:
        return PretrainedTextEncoder(text_encoder_name)
    return GRUTextEncoder(vocabulary)


def split_words(caption: str) -> list[str]:
    """Return a caption's words in lower case. Words of one letter keep their case."""
    words = re.findall(r"\w+", caption)
    return [word if len(word) == 1 else word.lower() for word in words]


def reparameterize(mean: Tensor, log_std: Tensor, rng: torch.Generator) -> Tensor:
    """Return a sample from each normal distribution, differentiable in its parameters."""
    return mean + log_std.exp() * torch.randn(mean.shape, generator=rng)


def kl_to_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the mean over rows of KL(N(mean, std²) || N(0, 1))."""
    terms = mean.square() + (2 * log_std).exp() - 1 - 2 * log_std
    return terms.sum(1).mean() / 2


def to_coarse_images(images: ImagesNCHW, resolution: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Return images uint8 at the coarse resolution, in [-1, 1]."""
    return F.interpolate(images.float(), resolution, mode="area") / 127.5 - 1


def train_caption_vae(data: ImageSet, text_encoder_name: str, seed: int) -> CaptionVAE:
    """Train a caption VAE.

    Args:
        data: Labeled images; the names of their classes are the captions.
        text_encoder_name: Name of a pretrained text encoder; if empty, a GRU is trained.
        seed: Random seed.
    """
    assert data.labels is not None
    labeled_rows = np.flatnonzero(data.labels >= 0)
    steps_per_epoch = max(1, len(labeled_rows) // TRAIN_BATCH_SIZE)
    steps = min(MAX_TRAIN_STEPS, MAX_TRAIN_EPOCHS * steps_per_epoch)
    height, width = data.resolution
    factor = max(1, min(height, width) // MAX_COARSE_SIDE_PIXELS)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        vocabulary = sorted({word for caption in data.classes for word in split_words(caption)})
        text_encoder = build_text_encoder(text_encoder_name, vocabulary)
        vae = CaptionVAE(
            text_encoder, vocabulary, data.channels, (height // factor, width // factor)
        )
    text_inputs, word_targets = (
        text_encoder.preprocess(data.classes),
        vae.word_targets(data.classes),
    )
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng, batch_rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    for k in range(steps):
        rows = np.sort(batch_rng.choice(labeled_rows, TRAIN_BATCH_SIZE))
        pixels = torch.from_numpy(np.array(data.images[rows]))
        labels = data.labels[rows]
        optimizer.zero_grad()
        loss = vae.loss(
            to_coarse_images(pixels, vae.resolution),
            text_inputs[labels],
            word_targets[labels],
            rng,
            latents_from_prior=k < PRIOR_LATENT_FRACTION * steps,
        )
        loss.backward()
        optimizer.step()
        schedule.step()
    return vae.eval()


@torch.no_grad()
def caption_source_images(
    vae: CaptionVAE,
    captions: Sequence[str],
    resolution: tuple[int, int],
    seed: int,
    images: NDArray[np.uint8] | None = None,
    *,
    with_coarse_image: bool = True,
) -> NDArray[np.uint8]:
    """Return G's source images, uint8 [N, CODE_DIM + C, H, W]: constant code maps, coarse images.

    Args:
        vae: Encodes the captions and decodes the coarse images.
        captions: One for each source image.
        resolution: Height and width of the source images in pixels.
        seed: Random seed of the codes and latents.
        images: Images uint8 [N, C, H, W] whose coarse versions to return. If None, the latents of
            the coarse images are random.
        with_coarse_image: If false, return only the code maps, uint8 [N, CODE_DIM, H, W].
    """
    rng, chunks = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), IMAGES_PER_CHUNK):
        chunk = slice(start, start + IMAGES_PER_CHUNK)
        code = reparameterize(*vae.encode_captions(captions[chunk]), rng)
        maps = (code / CODE_MAP_RANGE).clamp(-1, 1)[..., None, None].expand(-1, -1, *resolution)
        if with_coarse_image:
            # Always drawn, so that the codes are the same with and without images.
            latents = torch.randn(len(code), VAE_LATENT_DIM, generator=rng)
            if images is not None:
                pixels = torch.from_numpy(np.array(images[chunk]))
                latents, _ = vae.encode_images(to_coarse_images(pixels, vae.resolution), code)
            coarse_images = vae.decode(code, latents).clamp(-1, 1)
            upscaled = F.interpolate(coarse_images, resolution, mode="bilinear")
            maps = torch.cat([maps, upscaled], 1)
        chunks.append(((maps + 1) * 127.5).round().to(torch.uint8).numpy())
    return np.concatenate(chunks)
