"""Captions: rendered, read, sketched, and drawn by a conditional GAN."""

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
from test_applications import SMALL
from torch import nn

from growgan.cli import main
from growgan.data import ImageSet, load_images
from growgan.data.captioned import COLOURS, SHADE, slots
from growgan.errors import UserError
from growgan.tasks import TASKS, sketch, train_task
from growgan.tasks.sketch import (
    CODE,
    Pretrained,
    Sketcher,
    Words,
    coarse,
    given_for,
    learn,
    words_of,
)
from growgan.tasks.text2image import agreement, said

INKS, PLACES = ("red", "green", "blue", "black", "gray", "white"), tuple("ABCDEF")
TONES = ((250, 0, 0), (0, 250, 0), (0, 0, 250), (0, 0, 0), (125, 125, 125), (250, 250, 250))
SHADES = dict(zip(INKS, TONES, strict=True))


@pytest.fixture(scope="module")
def bars() -> ImageSet:
    """A coloured row of 8×8 at one of six places on a dark ground: 36 captions, 288 images."""
    captions = [f"a {ink} {place} bar" for ink, place in product(INKS, PLACES)]
    labels = np.arange(288) % 36
    images = np.full((288, 3, 8, 8), 60, np.uint8)
    for row, label in enumerate(labels):
        images[row, :, label % 6 + 1] = np.array(SHADES[INKS[label // 6]])[:, None]
    return ImageSet("bars", images, labels, tuple(captions), "bars")


@pytest.fixture(scope="module")
def drawer(bars: ImageSet) -> Sketcher:
    return learn(bars, "", 0)


def test_captions_say_what_is_drawn(tmp_path: Path) -> None:
    images = load_images("glyphs:captions,count=200", resolution=(16, 24), cache=tmp_path)
    assert images.channels == 3 and len(images.classes) == 36 * 4 * 6 * 5
    assert images.labels is not None and len(set(images.labels.tolist())) == 200
    far = []
    for picture, label in zip(images.images, images.labels, strict=True):
        found = slots(images.classes[label])
        assert found is not None
        ground, ink = (np.array(COLOURS[found[name]]) for name in ("ground", "colour"))
        assert np.abs(picture[:, 0, 0].astype(int) - ground).max() <= SHADE + 1
        apart = np.abs(picture.astype(int) - ink[:, None, None]).max(0).min()
        far.append(apart)
    assert np.mean(far) < 40  # some pixel has nearly the ink's colour, thin strokes aside
    assert slots("a dog on grass") is None and slots("an italic red Q on blue") is not None
    assert load_images("glyphs:count=200", cache=tmp_path).fingerprint != images.fingerprint
    for name in ("glyphs:captions,gray", "glyphs:captions,style=serif"):
        with pytest.raises(UserError):
            load_images(name, cache=tmp_path)


def test_words_are_read_in_their_order() -> None:
    assert words_of("A Red-hot Q, on b") == ["A", "red", "hot", "Q", "on", "b"]
    torch.manual_seed(0)
    words = Words(["blue", "on", "red"])
    read = words.read(["red on blue", "blue on red", "red"])
    assert read.tolist() == [[3, 2, 1], [1, 2, 3], [0, 0, 3]]
    features = words(read)
    assert features.shape == (3, words.size)
    assert (features[0] - features[1]).abs().max() > 0.01
    with pytest.raises(UserError, match="no caption had the word 'pink'; these are known: blue"):
        words.read(["pink on red"])


def test_a_sketch_shows_what_its_caption_says(bars: ImageSet, drawer: Sketcher) -> None:
    made = given_for(drawer, bars.classes, (8, 8), 0)
    assert made.shape == (36, CODE + 3, 8, 8) and made.dtype == np.uint8
    right = 0
    for picture, label in zip(made[:, CODE:].astype(int), range(36), strict=True):
        differ = np.abs(picture - 60).mean((0, 2))
        bar = picture[:, label % 6 + 1].mean(1)
        nearest = min(INKS, key=lambda ink: float(np.abs(bar - SHADES[ink]).sum()))
        right += int(differ.argmax() == label % 6 + 1 and nearest == INKS[label // 6])
    assert right > 6  # of 36, after 400 steps; chance: 1
    alone = given_for(drawer, bars.classes[:2], (8, 8), 0, sketched=False)
    assert alone.shape == (2, CODE, 8, 8) and (alone == alone[..., :1, :1]).all()


def test_a_sketch_of_an_image_is_like_it(bars: ImageSet, drawer: Sketcher) -> None:
    def wrong(images: np.ndarray[Any, Any] | None) -> float:
        made = given_for(drawer, said(bars)[:36], (8, 8), 0, images)[:, CODE:]
        return float(np.abs(made.astype(int) - bars.images[:36]).mean())

    assert wrong(bars.images[:36]) <= wrong(None) + 1
    assert (
        coarse(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), (4, 4)).tolist()[0][0][0][0] == 1
    )


def test_a_sketcher_is_kept_in_a_file(drawer: Sketcher, bars: ImageSet, tmp_path: Path) -> None:
    drawer.write_to(tmp_path / "s", "")
    again = Sketcher.read_from(tmp_path / "s")
    first, second = (given_for(each, bars.classes[:5], (8, 8), 3) for each in (drawer, again))
    assert np.array_equal(first, second)
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:200])
    with pytest.raises(UserError, match="is no sketcher of captions"):
        Sketcher.read_from(tmp_path / "s")


def test_captions_are_held_out_where_all_of_their_words_are_known(bars: ImageSet) -> None:
    seen, new = TASKS["text2image"].split(bars)
    assert seen.labels is not None and new.labels is not None
    kept, held = set(seen.labels.tolist()), set(new.labels.tolist())
    assert len(held) == 4 and not kept & held and len(seen) + len(new) == len(bars)
    words = {word for label in kept for word in words_of(bars.classes[label])}
    assert all(word in words for label in held for word in words_of(bars.classes[label]))
    named = ImageSet("x", bars.images, np.arange(288) % 2, ("dress", "shirt"), "x")
    seen, new = TASKS["text2image"].split(named)
    assert set(seen.labels.tolist()) == set(new.labels.tolist()) == {0, 1}  # type: ignore[union-attr]


def test_agreement_is_the_share_that_shows_what_is_said(bars: ImageSet) -> None:
    sets = {"": np.array(bars.images), "next ": np.roll(bars.images, 1, 0)}
    found = agreement(bars, bars, sets)
    assert found["caption"] > 0.8 and found["next caption"] < 0.1
    assert found["everything"] == found["caption"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("kind", ["text2image", "text2image:direct"])
def test_images_are_made_from_captions(
    kind: str,
    bars: ImageSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sketch, "EPOCHS", 5)
    task = TASKS["text2image"]
    data = task.prepare("text2image", kind.partition(":")[2], bars)
    out = tmp_path / "run"
    run = train_task(kind, data, out=out, images=64, settings={**SMALL, "policy": "fixed"})
    found = json.loads((out / "gallery" / "task.json").read_text())
    assert found["true words"] > 0.6 and "words" in found  # chance: a half
    assert ("sketched words" in found) == (kind == "text2image")
    # What G makes is added to the sketch, where there is one.
    assert run.best.settings.stack.difference == (kind == "text2image")
    command = ["sample", str(out), "-n", "3", "--out", str(tmp_path / "s.npz")]
    assert main([*command, "--caption", "a red A bar", "--caption", "a white F bar"]) == 0
    with np.load(tmp_path / "s.npz") as file:
        assert file["images"].shape == (3, 8, 8, 3)
    refused = {
        "the word 'pink'": ["--caption", "a pink bar"],
        "exclude each other": ["--caption", "a red A bar", "--walk", "0,1"],
        "channels, which no file holds": ["--given", str(tmp_path)],
    }
    for message, words in refused.items():
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err
    assert run.best.sample(2).shape == (2, 8, 8, 3)


class Tokens(dict[str, torch.Tensor]):
    """What a tokenizer returns."""


class Reader(nn.Module):
    """As a text model of the hub is called: features of a token are its number, and its square."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = input_ids.float()
        return SimpleNamespace(last_hidden_state=torch.stack([x, x * x], 2))


class TwoTowers(nn.Module):
    """A network of texts and images, as CLIP: called as a whole it wants both."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        super().__init__()
        self.text_model = Reader()


class Translator(nn.Module):
    """A network that reads a text and writes another, as T5."""

    config = SimpleNamespace(is_encoder_decoder=True)

    def get_encoder(self) -> nn.Module:
        return Reader()


class Tokenizer:
    """Words by their lengths, filled up with zeros, where it is told by which token."""

    pad_token: str | None = None
    eos_token = "end"

    def __call__(self, texts: Sequence[str], **how: Any) -> Tokens:
        assert how == {"padding": True, "truncation": True, "return_tensors": "pt"}
        assert self.pad_token is not None
        longest = max(len(text.split()) for text in texts)
        ids = [[len(w) for w in t.split()] + [0] * (longest - len(t.split())) for t in texts]
        numbers = torch.tensor(ids)
        return Tokens(input_ids=numbers, attention_mask=(numbers > 0).long())


@pytest.mark.parametrize("kind", [Reader, TwoTowers, Translator])
def test_a_pretrained_text_encoder_is_read_by_its_name(
    monkeypatch: pytest.MonkeyPatch, bars: ImageSet, tmp_path: Path, kind: type[nn.Module]
) -> None:
    named: list[str] = []

    def loader(found: Any) -> Any:
        def load(name: str) -> Any:
            named.append(name)
            return found

        return SimpleNamespace(from_pretrained=load)

    module = ModuleType("transformers")
    module.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(module, "AutoTokenizer", loader(Tokenizer()), raising=False)
    monkeypatch.setattr(module, "AutoModel", loader(kind()), raising=False)
    made = learn(bars.subset(np.arange(64)), "some/encoder", 0)
    assert named == ["some/encoder"] * 2
    assert isinstance(made.text, Pretrained) and made.text.size == 2
    read = made.text.read(["ab abcd", "abc"])
    assert read.tolist() == [[3.0, 10.0], [3.0, 9.0]]  # means over tokens, padding left out
    made.write_to(tmp_path / "s", "some/encoder")
    again = Sketcher.read_from(tmp_path / "s")
    first, second = (given_for(each, bars.classes[:3], (8, 8), 1) for each in (made, again))
    assert np.array_equal(first, second)


def test_a_text_encoder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise OSError(f"{name} is not a local folder")

    module = ModuleType("transformers")
    module.__spec__ = ModuleSpec("transformers", None)
    monkeypatch.setitem(sys.modules, "transformers", module)
    for name in ("AutoTokenizer", "AutoModel"):
        found = SimpleNamespace(from_pretrained=load)
        monkeypatch.setattr(module, name, found, raising=False)
    with pytest.raises(UserError, match="text encoder 'no/such' cannot be had: no/such is not"):
        Pretrained("no/such")
