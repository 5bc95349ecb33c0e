"""Text-to-image: captioned glyphs, the caption VAE, and the conditional GAN."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_tasks_single_set import SMALL
from torch import nn

from growgan.cli import main
from growgan.data import ImageSet, load_images
from growgan.data.glyphs import COLORS, MAX_SHADE, parse_caption
from growgan.errors import UserError
from growgan.tasks import TASKS, caption_vae, prepare_task_data, train_task
from growgan.tasks.caption_vae import (
    CODE_DIM,
    CaptionVAE,
    GRUTextEncoder,
    PretrainedTextEncoder,
    caption_source_images,
    split_words,
    to_coarse_images,
    train_caption_vae,
)
from growgan.tasks.text2image import caption_accuracy, image_captions

INKS = ("red", "green", "blue", "black", "gray", "white")
POSITIONS = tuple("ABCDEF")
TONES = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (0, 0, 0), (125, 125, 125), (250, 250, 250))
RGB_OF_INK = dict(zip(INKS, TONES, strict=True))


@pytest.fixture(scope="module")
def bars() -> ImageSet:
    """Return images of 8x8 with a colored row on a dark background: 36 captions, 288 images."""
    captions = [f"a {ink} {position} bar" for ink, position in product(INKS, POSITIONS)]
    labels = np.arange(288) % 36
    images = np.full((288, 3, 8, 8), 60, np.uint8)
    for row, label in enumerate(labels):
        images[row, :, label % 6 + 1] = np.array(RGB_OF_INK[INKS[label // 6]])[:, None]
    return ImageSet("bars", images, labels=labels, classes=tuple(captions), fingerprint="bars")


@pytest.fixture(scope="module")
def vae(bars: ImageSet) -> CaptionVAE:
    return train_caption_vae(bars, "", 0)


def test_captions_describe_the_glyphs(tmp_path: Path) -> None:
    images = load_images("glyphs:captions,count=200", resolution=(16, 24), cache=tmp_path)
    assert images.channels == 3 and len(images.classes) == 36 * 4 * 6 * 5
    assert images.labels is not None and len(set(images.labels.tolist())) == 200
    distances = []
    for image, label in zip(images.images, images.labels, strict=True):
        words = parse_caption(images.classes[label])
        assert words is not None
        background, ink = (np.array(COLORS[words[name]]) for name in ("ground", "color"))
        assert np.abs(image[:, 0, 0].astype(int) - background).max() <= MAX_SHADE + 1
        distance = np.abs(image.astype(int) - ink[:, None, None]).max(0).min()
        distances.append(distance)
    assert np.mean(distances) < 40  # except for thin strokes, some pixel nearly has the ink's color
    assert parse_caption("a dog on grass") is None
    assert parse_caption("an italic red Q on blue") is not None
    assert load_images("glyphs:count=200", cache=tmp_path).fingerprint != images.fingerprint
    for name in ("glyphs:captions,gray", "glyphs:captions,style=serif"):
        with pytest.raises(UserError):
            load_images(name, cache=tmp_path)


def test_the_gru_reads_words_in_order() -> None:
    assert split_words("A Red-hot Q, on b") == ["A", "red", "hot", "Q", "on", "b"]
    torch.manual_seed(0)
    text_encoder = GRUTextEncoder(["blue", "on", "red"])
    word_ids = text_encoder.preprocess(["red on blue", "blue on red", "red"])
    assert word_ids.tolist() == [[3, 2, 1], [1, 2, 3], [0, 0, 3]]
    features = text_encoder(word_ids)
    assert features.shape == (3, text_encoder.feature_dim)
    assert (features[0] - features[1]).abs().max() > 0.01
    with pytest.raises(UserError, match="the word 'pink'; the known words are: blue"):
        text_encoder.preprocess(["pink on red"])


def test_a_coarse_image_shows_its_caption(bars: ImageSet, vae: CaptionVAE) -> None:
    sources = caption_source_images(vae, bars.classes, (8, 8), 0)
    assert sources.shape == (36, CODE_DIM + 3, 8, 8) and sources.dtype == np.uint8
    num_correct = 0
    for image, label in zip(sources[:, CODE_DIM:].astype(int), range(36), strict=True):
        difference = np.abs(image - 60).mean((0, 2))
        bar = image[:, label % 6 + 1].mean(1)
        nearest = min(INKS, key=lambda ink: float(np.abs(bar - RGB_OF_INK[ink]).sum()))
        num_correct += int(difference.argmax() == label % 6 + 1 and nearest == INKS[label // 6])
    assert num_correct > 6  # of 36 after 400 steps; the expected number by chance is 1
    maps = caption_source_images(vae, bars.classes[:2], (8, 8), 0, with_coarse_image=False)
    assert maps.shape == (2, CODE_DIM, 8, 8) and (maps == maps[..., :1, :1]).all()


def test_the_coarse_image_of_an_image_resembles_it(bars: ImageSet, vae: CaptionVAE) -> None:
    def mean_error(images: np.ndarray[Any, Any] | None) -> float:
        sources = caption_source_images(vae, image_captions(bars)[:36], (8, 8), 0, images=images)
        return float(np.abs(sources[:, CODE_DIM:].astype(int) - bars.images[:36]).mean())

    assert mean_error(bars.images[:36]) <= mean_error(None) + 1
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert to_coarse_images(white, (4, 4)).tolist()[0][0][0][0] == 1


def test_a_caption_vae_is_saved_and_loaded(vae: CaptionVAE, bars: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    vae.save(path, "")
    loaded = CaptionVAE.load(path)
    saved_sources, loaded_sources = (
        caption_source_images(model, bars.classes[:5], (8, 8), 3) for model in (vae, loaded)
    )
    assert np.array_equal(saved_sources, loaded_sources)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="is not a caption VAE"):
        CaptionVAE.load(path)


def test_held_out_captions_have_only_known_words(bars: ImageSet) -> None:
    train_split, test_set = TASKS["text2image"].split(bars)
    assert train_split.labels is not None and test_set.labels is not None
    train_labels, test_labels = (set(part.labels.tolist()) for part in (train_split, test_set))
    assert len(test_labels) == 4 and not train_labels & test_labels
    assert len(train_split) + len(test_set) == len(bars)
    words = {word for label in train_labels for word in split_words(bars.classes[label])}
    assert all(word in words for label in test_labels for word in split_words(bars.classes[label]))
    names = ImageSet(
        "x", bars.images, labels=np.arange(288) % 2, classes=("dress", "shirt"), fingerprint="x"
    )
    for part in TASKS["text2image"].split(names):
        assert part.labels is not None and set(part.labels.tolist()) == {0, 1}


def test_caption_accuracy_is_the_fraction_of_images_that_fit_their_captions(
    bars: ImageSet,
) -> None:
    image_sets = {"": np.array(bars.images), "shifted ": np.roll(bars.images, 1, 0)}
    metrics = caption_accuracy(bars, bars, image_sets)
    assert metrics["caption"] > 0.8 and metrics["shifted caption"] < 0.1
    assert metrics["all slots"] == metrics["caption"]


@pytest.mark.usefixtures("temporary_cache")
@pytest.mark.parametrize("task_string", ["text2image", "text2image:direct"])
def test_text2image_is_trained_evaluated_and_sampled(
    task_string: str,
    bars: ImageSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caption_vae, "MAX_TRAIN_EPOCHS", 5)
    data = prepare_task_data(task_string, bars)
    out = tmp_path / "run"
    run = train_task(task_string, data, out=out, images=64, settings={**SMALL, "policy": "fixed"})
    metrics = json.loads((out / "gallery" / "task.json").read_text())
    with_coarse_image = task_string == "text2image"
    assert metrics["real words"] > 0.6 and "words" in metrics  # chance is 0.5
    assert ("coarse words" in metrics) == with_coarse_image
    # G adds its output to the coarse image if there is one.
    assert run.best.settings.network.residual_output == with_coarse_image
    command = ["sample", str(out), "-n", "3", "--out", str(tmp_path / "s.npz")]
    assert main([*command, "--caption", "a red A bar", "--caption", "a white F bar"]) == 0
    with np.load(tmp_path / "s.npz") as file:
        assert file["images"].shape == (3, 8, 8, 3)
    refused = {
        "the word 'pink'": ["--caption", "a pink bar"],
        "cannot be combined": ["--caption", "a red A bar", "--interpolate", "0,1"],
        "channels, which no": ["--source", str(tmp_path)],
    }
    for message, options in refused.items():
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err
    assert run.best.sample(2).shape == (2, 8, 8, 3)


class Tokens(dict[str, torch.Tensor]):
    """The output of a tokenizer."""


class TextModel(nn.Module):
    """A stand-in for a text model: the features of a token are its id and the id squared."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = input_ids.float()
        return SimpleNamespace(last_hidden_state=torch.stack([x, x * x], 2))


class TwoTowerModel(nn.Module):
    """A stand-in for a model of text and images, such as CLIP."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        super().__init__()
        self.text_model = TextModel()


class EncoderDecoderModel(nn.Module):
    """A stand-in for an encoder-decoder model, such as T5."""

    config = SimpleNamespace(is_encoder_decoder=True)

    def get_encoder(self) -> nn.Module:
        return TextModel()


class Tokenizer:
    """Token ids are word lengths, padded with zeros. A padding token has to be set first."""

    pad_token: str | None = None
    eos_token = "end"

    def __call__(self, texts: Sequence[str], **kwargs: Any) -> Tokens:
        assert kwargs == {"padding": True, "truncation": True, "return_tensors": "pt"}
        assert self.pad_token is not None
        longest = max(len(text.split()) for text in texts)
        rows = [[len(word) for word in text.split()] for text in texts]
        input_ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return Tokens(input_ids=input_ids, attention_mask=(input_ids > 0).long())


@pytest.mark.parametrize("model_type", [TextModel, TwoTowerModel, EncoderDecoderModel])
def test_a_pretrained_text_encoder_is_loaded_by_name(
    monkeypatch: pytest.MonkeyPatch, bars: ImageSet, tmp_path: Path, model_type: type[nn.Module]
) -> None:
    loaded_names: list[str] = []

    def make_loader(result: Any) -> Any:
        def load(name: str) -> Any:
            loaded_names.append(name)
            return result

        return SimpleNamespace(from_pretrained=load)

    module = ModuleType("transformers")
    module.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(module, "AutoTokenizer", make_loader(Tokenizer()), raising=False)
    monkeypatch.setattr(module, "AutoModel", make_loader(model_type()), raising=False)
    vae = train_caption_vae(bars.subset(np.arange(64)), "some/encoder", 0)
    assert loaded_names == ["some/encoder"] * 2
    assert isinstance(vae.text_encoder, PretrainedTextEncoder)
    assert vae.text_encoder.feature_dim == 2
    features = vae.text_encoder.preprocess(["ab abcd", "abc"])
    assert features.tolist() == [[3.0, 10.0], [3.0, 9.0]]  # means over tokens without padding
    vae.save(tmp_path / "vae.safetensors", "some/encoder")
    loaded = CaptionVAE.load(tmp_path / "vae.safetensors")
    saved_sources, loaded_sources = (
        caption_source_images(model, bars.classes[:3], (8, 8), 1) for model in (vae, loaded)
    )
    assert np.array_equal(saved_sources, loaded_sources)


def test_a_missing_text_encoder_gives_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name} is not a local folder")

    module = ModuleType("transformers")
    module.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", module)
    for name in ("AutoTokenizer", "AutoModel"):
        loader = SimpleNamespace(from_pretrained=load)
        monkeypatch.setattr(module, name, loader, raising=False)
    with pytest.raises(UserError, match="text encoder 'no/such' cannot be loaded: no/such is not"):
        PretrainedTextEncoder("no/such")
