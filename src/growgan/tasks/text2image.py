"""Text to image in two stages: a sketch by a conditional VAE, which a conditional GAN refines.

The classes' names are the captions. G and D see the sketch and the caption's code beside it, and D
learns that images with the code of another image's caption are fakes (GAN-CLS: Reed et al. 2016,
1605.05396); of few captions another image's is now and then the same. Each image's code is drawn
once (conditioning augmentation draws one a step). As StackGAN's first stage (Zhang et al. 2017,
1612.03242), ``text2image:direct`` leaves the sketch out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.config import merged
from growgan.data import ImageSet, default_cache
from growgan.data.captioned import slots
from growgan.data.files import combine
from growgan.growth.model import Model
from growgan.growth.run import Run
from growgan.metrics.accuracy import classifier
from growgan.tasks.base import TASKS, TEST, Task, draw, labels_of, made_of, some
from growgan.tasks.pix2pix import PUBLISHED as PAIRED
from growgan.tasks.pix2pix import SMALL as SMALL_PAIRED
from growgan.tasks.sketch import CODE, ORDER, Sketcher, given_for, learn, words_of

SKETCHER = "sketcher.safetensors"  # in the run's folder
DIRECT = "direct"
COMMON = 5  # captions that have each word of one that may be held out
MEASURED = 1_000  # images for captions that were never seen, at most
SHOWN, TRIES = 12, 3  # captions on the sheet, and images of each
WORDS = 12  # that images are asked for, at most


class TextToImage(Task):
    """``text2image[:direct][:ENCODER]``; the encoder is a text model's name on the hub."""

    sheet: ClassVar[str] = (
        "A column a caption. Rows: the sketch, where there is one, what is made of three more, and"
        " a true image."
    )

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        labels_of(name, data)
        data = super().prepare(name, kind, data, truth)
        return replace(data, fingerprint=combine(data.fingerprint, f"{name}:{kind}:{ORDER}"))

    def split(self, data: ImageSet, kind: str = "") -> tuple[ImageSet, ImageSet]:
        """Return images of most captions, and of others, all of whose words are known.

        Where captions have no words in common images are held out, and no captions.
        """
        assert data.labels is not None
        said = [set(words_of(caption)) for caption in data.classes]
        common = Counter(word for words in said for word in words)
        free = [k for k, words in enumerate(said) if all(common[w] > COMMON for w in words)]
        if len(free) < 2 / TEST:
            return data.held_out(TEST)
        held = np.random.default_rng(len(free)).permutation(free)[: round(TEST * len(free))]
        new = np.isin(data.labels, held)
        return data.subset(np.flatnonzero(~new)), data.subset(np.flatnonzero(new))

    def outline(self, data: ImageSet, kind: str) -> ImageSet:
        """Return the images with blank sketches and codes, which are yet to be learnt."""
        channels = CODE + data.channels * _kind(kind)[0]
        form = (len(data), channels, *data.resolution)
        return replace(data, given=np.broadcast_to(np.uint8(0), form))

    def beginning(self, kind: str) -> Mapping[str, Any]:
        """Return the small form's settings; without a sketch there is nothing to add to."""
        return self.small if _kind(kind)[0] else merged(self.small, WHOLE)

    def taught(self, seen: ImageSet, kind: str, seed: int) -> ImageSet:
        """Return the images, each with a sketch of it and its caption's code."""
        assert seen.labels is not None
        seen = seen.subset(np.flatnonzero(seen.labels >= 0))
        sketched, text = _kind(kind)
        made = sketcher(seen, text, seed)
        given = given_for(made, said(seen), seen.resolution, seed, seen.images, sketched=sketched)
        return replace(seen, given=given)

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Return how often images for new captions show what these say.

        A classifier for each thing that a caption says has learnt from the images that were
        trained on; "true" is its share of right answers for true images.
        """
        sketched, text = _kind(kind)
        made = sketcher(seen, text, run.best.settings.seed)
        made.write_to(run.path / SKETCHER, text)
        rows = some(new, MEASURED)
        captions = said(rows)
        given = given_for(made, captions, seen.resolution, 1, sketched=sketched)
        images = made_of(run.best, torch.from_numpy(given)).numpy()
        sets = {"": images, "true ": np.array(rows.images)}
        if sketched:
            sets["sketched "] = given[:, CODE:]
        figures = agreement(seen, rows, sets)
        lines = [given[:SHOWN, CODE:]] if sketched else []
        for k in range(TRIES):
            again = given_for(made, captions[:SHOWN], seen.resolution, 2 + k, sketched=sketched)
            lines.append(made_of(run.best, torch.from_numpy(again)).numpy())
        draw(run, [*lines, np.array(rows.images[:SHOWN])])
        return figures


def _kind(kind: str) -> tuple[bool, str]:
    """Return whether there are sketches, and the name of the text encoder."""
    first, _, rest = kind.partition(":")
    return (False, rest) if first == DIRECT else (True, kind)


def said(data: ImageSet) -> list[str]:
    """Return each image's caption."""
    assert data.labels is not None
    return [data.classes[label] for label in data.labels]


def sketcher(seen: ImageSet, text: str, seed: int) -> Sketcher:
    """Return what draws sketches of images like ``seen``, learnt now or kept in the cache."""
    key = combine(seen.fingerprint, f"sketcher:4:{text}:{seed}")[:24]
    path = default_cache() / "sketchers" / f"{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        learn(seen, text, seed).write_to(path, text)
    return Sketcher.read_from(path)


def given_by(model: Model, captions: Sequence[str], count: int, seed: int) -> NDArray[np.uint8]:
    """Return what a model makes ``count`` images of captions from, which take turns.

    Raises:
        UserError: it is of no run of this task, or does not know a word.
    """
    made = Sketcher.read_from(model.folder.parent.parent / SKETCHER)
    told = [captions[k % len(captions)] for k in range(count)]
    spec = model.network().spec
    sketched = spec.given == spec.channels + CODE
    given = given_for(made, told, spec.resolution, seed, sketched=sketched)
    return np.ascontiguousarray(np.moveaxis(given, 1, 3))


def agreement(
    seen: ImageSet, new: ImageSet, sets: dict[str, NDArray[np.uint8]]
) -> dict[str, float]:
    """Return the share of images in which classifiers see what their captions say.

    Captions like those of ``glyphs:captions`` are taken apart. Others are one thing each, where all
    of them were trained on; captions that nobody saw as a whole are judged by :func:`worded`.
    """
    if not all(slots(caption) for x in (seen, new) for caption in set(said(x))):
        if set(said(new)) - set(said(seen)):
            return worded(seen, new, sets)
        parts = [[{"caption": caption} for caption in said(x)] for x in (seen, new)]
    else:
        parts = [[slots(caption) or {} for caption in said(x)] for x in (seen, new)]
    figures: dict[str, float] = {}
    right = {name: np.ones(len(new), dtype=bool) for name in sets}
    for slot in parts[0][0]:
        values = sorted({each.get(slot, "") for part in parts for each in part})
        known, wanted = (
            np.array([values.index(each.get(slot, "")) for each in part]) for part in parts
        )
        classify = classifier((np.array(seen.images), known), len(values))
        for name, images in sets.items():
            hit = classify(images) == wanted
            right[name] &= hit
            figures[f"{name}{slot}"] = float(hit.mean())
    return figures | {f"{name}everything": float(hit.mean()) for name, hit in right.items()}


def worded(seen: ImageSet, new: ImageSet, sets: dict[str, NDArray[np.uint8]]) -> dict[str, float]:
    """Return the mean share of images of which classifiers rightly say whether a word was said.

    One for each word that about half of the captions have, or as near to that as there are. Images
    with and without it weigh as much, so that chance is a half. Nothing is said where no word is in
    some of the captions, old and new, but not in all.
    """
    texts = [[set(words_of(caption)) for caption in said(x)] for x in (seen, new)]
    shares: dict[str, list[float]] = {
        word: [sum(word in text for text in each) / len(each) for each in texts]
        for word in sorted(set().union(*texts[1]))
    }
    fit = [word for word, both in shares.items() if all(0 < share < 1 for share in both)]
    fit = sorted(fit, key=lambda word: abs(shares[word][0] - 0.5))[:WORDS]
    found: dict[str, list[float]] = {name: [] for name in sets}
    for word in fit:
        known, wanted = (np.array([int(word in text) for text in each]) for each in texts)
        # As many with the word as without it, or a classifier of a rare one would always say no.
        rows = [np.flatnonzero(known == k) for k in (0, 1)]
        even = np.concatenate([np.resize(part, max(map(len, rows))) for part in rows])
        classify = classifier((np.array(seen.images[np.sort(even)]), known[np.sort(even)]), 2)
        for name, images in sets.items():
            right = classify(images) == wanted
            found[name].append(float(np.mean([right[wanted == k].mean() for k in (0, 1)])))
    return {f"{name}words": float(np.mean(each)) for name, each in found.items() if each}


WHOLE: dict[str, Any] = {"stack": {"difference": False}}
OWN: dict[str, Any] = {
    "conditioning_options": {"contrary": 1.0, "turned": CODE},
}
PUBLISHED: dict[str, Any] = {
    **PAIRED,
    **OWN,
    "regularisers": {},
    "stack": {**PAIRED["stack"], "patches": False, "latent": 100, "kind": "residual"},
}
SMALL: dict[str, Any] = {
    **SMALL_PAIRED,
    **OWN,
    "regularisers": {"r1": SMALL_PAIRED["regularisers"]["r1"]},
    "optimiser": {"lr": 1e-2, "beta1": 0.5},
    "stack": {
        **SMALL_PAIRED["stack"],
        "patches": False,
        "latent": 32,
        "discriminator_width": 32,
        "norm": "none",
        "difference": True,
    },
}

TASKS.register("text2image", "images from captions", "Zhang et al. 2017, 1612.03242")(
    TextToImage(PUBLISHED, SMALL, {DIRECT: None})
)
