"""A conditional VAE that draws coarse images from captions: the first stage of text to image.

Words are read by a recurrent network that learns with it, or by a pretrained one. What a caption
says becomes a distribution of codes rather than one (conditioning augmentation: Zhang et al. 2017,
1612.03242, section 3.2), so that captions that nobody wrote lie between those that somebody did.
Its words must be legible in the code: what no pixel of a coarse image gains much by, a letter
beside colours, would be left out of it otherwise, and nothing behind the code could know it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from growgan.data import ImageSet
from growgan.data.files import write_atomic
from growgan.errors import UserError, require
from growgan.nets.layers import channels_last

CODE = 32  # numbers that stand for a caption
LATENT = 16  # numbers that stand for what it does not say
SIDE = 16  # pixels of the sketch's smaller side, at most
FEATURES = 128  # of a caption, by the network that learns here
HIDDEN = 256  # width of the dense layers
WIDTHS = (64, 64, 48)  # of a sketch's grid, and of what is made of it
STEPS, BATCH, RATE = 4_000, 64, 2e-3
BLIND = 0.5  # first share of the steps, in which only the caption is heard
EPOCHS = 100  # over few images, which need fewer steps
SPREAD = 0.3  # deviation of a pixel about its mean, in [-1, 1]
VAGUE = 0.1  # weight of the divergence of codes
LEGIBLE = 20.0  # weight of the words that are read from codes
ORDER = "code, sketch"  # of the channels that G makes images from
RANGE = 3.0  # of a code's values that a map shows

Codes = Float[Tensor, "n c"]
Images = UInt8[Tensor, "n c h w"]


class Words(nn.Module):
    """Captions to features: embedded words, read in their order (GRU: Cho et al. 2014)."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__()
        self.numbers = {word: k for k, word in enumerate(vocabulary, 1)}
        self.words = nn.Embedding(len(vocabulary) + 1, 64, padding_idx=0)
        self.reader = nn.GRU(64, FEATURES, batch_first=True)

    @property
    def size(self) -> int:
        """Number of features."""
        return FEATURES

    def read(self, captions: Sequence[str]) -> Int[Tensor, "n t"]:
        """Return the numbers of words, 0 before the first one of the shorter captions.

        Raises:
            UserError: a word that was never seen.
        """
        rows = []
        for caption in captions:
            said = words_of(caption)
            if strange := [word for word in said if word not in self.numbers]:
                known = ", ".join(sorted(self.numbers))
                raise UserError(f"no caption had the word '{strange[0]}'; these are known: {known}")
            rows.append([self.numbers[word] for word in said])
        longest = max(1, *map(len, rows))
        return torch.tensor([[0] * (longest - len(row)) + row for row in rows])

    def forward(self, read: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        features: Tensor = self.reader(self.words(read))[1][0]
        return features


class Pretrained(nn.Module):
    """Captions to features by a network of the hub, which stays as it is: the mean of its tokens.

    Of a network of texts and images (CLIP) the part that reads texts, of one that translates (T5)
    its encoder.

    Args:
        name: of a text model that ``transformers`` can load, like "distilbert-base-uncased".

    Raises:
        UserError: there is no such model.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        require("transformers", f"text encoder '{name}'", "transformers")
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModel.from_pretrained(name).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise UserError(f"text encoder '{name}' cannot be had: {error}") from error
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        # Kept in a list: its weights are of the hub, and not of what learns here.
        self.model = [getattr(model, "text_model", model)]

    @cached_property
    def size(self) -> int:
        """Number of features."""
        return self.read(["a"]).shape[1]

    @torch.no_grad()
    def read(self, captions: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return the features of captions."""
        found = []
        for start in range(0, len(captions), 256):
            some = list(captions[start : start + 256])
            tokens = self.tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            hidden = self.model[0](**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None].to(hidden.dtype)
            found.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.cat(found).float()

    def forward(self, read: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return read


class Modulated(nn.Module):
    """A convolution whose channels are scaled and moved as features say (FiLM: Perez et al. 2018).

    The features are of what is drawn as a whole, float [N, HIDDEN].
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, 1, 1)
        self.style = nn.Linear(HIDDEN, 2 * width)

    def forward(
        self, h: Float[Tensor, "n c h w"], features: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n e h w"]:
        scale, shift = self.style(features)[:, :, None, None].chunk(2, 1)
        return F.relu(self.conv(h) * (1 + scale) + shift)


class Sketcher(nn.Module):
    """Captions and latents to coarse images; while it learns, images to latents.

    Attributes:
        vocabulary: the words that are read from codes while it learns.
    """

    def __init__(
        self,
        text: Words | Pretrained,
        vocabulary: Sequence[str],
        channels: int,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.text, self.vocabulary, self.size = text, tuple(vocabulary), size
        self.code = nn.Linear(text.size, 2 * CODE)
        self.words = nn.Linear(CODE, len(vocabulary))
        self.grid = WIDTHS[0], *(-(-side // 4) for side in size)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()
        )
        seen = 64 * (size[0] // 4) * (size[1] // 4)
        self.latent = nn.Sequential(
            nn.Linear(seen + CODE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.features = nn.Sequential(
            nn.Linear(CODE + LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()
        )
        self.start = nn.Linear(HIDDEN, prod(self.grid))
        self.layers = nn.ModuleList(map(Modulated, WIDTHS, WIDTHS[1:]))
        self.image = nn.Conv2d(WIDTHS[-1], channels, 3, 1, 1)
        channels_last(self)  # here, so that one from a file rounds as the one that learnt does

    def codes(self, captions: Sequence[str]) -> tuple[Codes, Codes]:
        """Return the mean and the logarithm of the deviation of each caption's code."""
        return self._codes(self.text.read(captions))

    def _codes(self, read: Tensor) -> tuple[Codes, Codes]:
        mean, log_deviation = self.code(self.text(read)).chunk(2, 1)
        return mean, log_deviation

    def latents(self, x: Float[Tensor, "n c h w"], code: Codes) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the deviation of the latents of coarse images."""
        features = self.encoder(x).flatten(1)
        mean, log_deviation = self.latent(torch.cat([features, code], 1)).chunk(2, 1)
        return mean, log_deviation

    def draw(self, code: Codes, z: Tensor) -> Float[Tensor, "n c h w"]:
        """Return coarse images, about [-1, 1]."""
        features = self.features(torch.cat([code, z], 1))
        h = F.relu(self.start(features)).unflatten(1, self.grid)
        for layer in self.layers:
            h = F.interpolate(layer(h, features), scale_factor=2)
        drawn: Tensor = self.image(h)[..., : self.size[0], : self.size[1]]
        return drawn

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        read: Tensor,
        words: Bool[Tensor, "n v"],
        rng: torch.Generator,
        *,
        blind: bool,
    ) -> Tensor:
        """Return the negative bound of coarse images [-1, 1], with what is asked of codes.

        Args:
            read: what :attr:`text` makes of the captions.
            words: what :meth:`said` makes of them.
            blind: latents are drawn and say nothing of the images: the caption must.
        """
        code_mean, code_deviation = self._codes(read)
        code = drawn(code_mean, code_deviation, rng)
        nothing = code.new_zeros(len(code), LATENT)
        mean, deviation = (nothing, nothing) if blind else self.latents(x, code)
        made = self.draw(code, drawn(mean, deviation, rng))
        wrong = ((made - x) / SPREAD).square().sum((1, 2, 3)).mean() / 2
        misread = F.binary_cross_entropy_with_logits(
            self.words(code), words.float(), reduction="none"
        )
        own = VAGUE * divergence(code_mean, code_deviation) + LEGIBLE * misread.sum(1).mean()
        return wrong + divergence(mean, deviation) + own

    def said(self, captions: Sequence[str]) -> Bool[Tensor, "n v"]:
        """Return which words of the vocabulary a caption has."""
        places = {word: k for k, word in enumerate(self.vocabulary)}
        found = torch.zeros(len(captions), len(places), dtype=torch.bool)
        for row, caption in zip(found, captions, strict=True):
            row[[places[word] for word in words_of(caption)]] = True
        return found

    @classmethod
    def read_from(cls, path: Path) -> Self:
        """Return the one in a file; raise a :class:`UserError` where there is none."""
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["growgan"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if told["order"] != ORDER:
                raise ValueError("it is of an earlier version")
            vocabulary = [str(word) for word in told["vocabulary"]]
            text = Pretrained(told["text"]) if told["text"] else Words(vocabulary)
            size = int(told["size"][0]), int(told["size"][1])
            made = cls(text, vocabulary, int(told["channels"]), size)
            made.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"'{path}' is no sketcher of captions: {error}") from None
        return made.eval()

    def write_to(self, path: Path, text: str) -> None:
        """Write the weights, and what is needed to build it again."""
        told: Mapping[str, Any] = {
            "text": text,
            "order": ORDER,
            "vocabulary": self.vocabulary,
            "channels": self.image.out_channels,
            "size": self.size,
        }
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        write_atomic(path, save(weights, metadata={"growgan": json.dumps(told)}))


def words_of(caption: str) -> list[str]:
    """Return a caption's words; capitals matter where a word is one letter."""
    found = re.findall(r"\w+", caption)
    return [word if len(word) == 1 else word.lower() for word in found]


def drawn(mean: Tensor, log_deviation: Tensor, rng: torch.Generator) -> Tensor:
    """Return a draw from each normal distribution."""
    return mean + log_deviation.exp() * torch.randn(mean.shape, generator=rng)


def divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return the mean over rows of KL(N(mean, deviation²) || N(0, 1))."""
    each = mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation
    return each.sum(1).mean() / 2


def coarse(images: Images, size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Return images [-1, 1] at the sketch's size."""
    return F.interpolate(images.float(), size, mode="area") / 127.5 - 1


def learn(data: ImageSet, text: str, seed: int) -> Sketcher:
    """Return a sketcher that has learnt from images whose classes are captions.

    Args:
        text: name of a pretrained text model; "": words are learnt here.
    """
    assert data.labels is not None
    rows = np.flatnonzero(data.labels >= 0)
    steps = min(STEPS, EPOCHS * max(1, len(rows) // BATCH))
    height, width = data.resolution
    shrink = max(1, min(height, width) // SIDE)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        vocabulary = sorted({word for caption in data.classes for word in words_of(caption)})
        reader = Pretrained(text) if text else Words(vocabulary)
        size = height // shrink, width // shrink
        made = Sketcher(reader, vocabulary, data.channels, size)
    read, words = reader.read(data.classes), made.said(data.classes)
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng, order = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    for k in range(steps):
        some = np.sort(order.choice(rows, BATCH))
        x = coarse(torch.from_numpy(np.array(data.images[some])), made.size)
        labels = data.labels[some]
        optimiser.zero_grad()
        made.loss(x, read[labels], words[labels], rng, blind=k < BLIND * steps).backward()
        optimiser.step()
        schedule.step()
    return made.eval()


@torch.no_grad()
def given_for(
    made: Sketcher,
    captions: Sequence[str],
    size: tuple[int, int],
    seed: int,
    images: NDArray[np.uint8] | None = None,
    *,
    sketched: bool = True,
) -> NDArray[np.uint8]:
    """Return what G makes images from, uint8 [N, CODE + C, H, W]: the code as maps, and a sketch.

    Args:
        images: of which the sketches shall be; without them the latents are drawn.
        sketched: without, there are the maps alone.
    """
    rng, found = torch.Generator().manual_seed(seed), []
    for start in range(0, len(captions), 1024):
        code = drawn(*made.codes(captions[start : start + 1024]), rng)
        maps = (code / RANGE).clamp(-1, 1)[..., None, None].expand(-1, -1, *size)
        if sketched:
            z = torch.randn(len(code), LATENT, generator=rng)
            if images is not None:
                seen = torch.from_numpy(np.array(images[start : start + 1024]))
                z = made.latents(coarse(seen, made.size), code)[0]
            sketch = F.interpolate(made.draw(code, z).clamp(-1, 1), size, mode="bilinear")
            maps = torch.cat([maps, sketch], 1)
        found.append(((maps + 1) * 127.5).round().to(torch.uint8).numpy())
    return np.concatenate(found)
