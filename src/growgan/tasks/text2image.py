"""Text-to-image in two stages: a conditional VAE decodes a coarse image, and a GAN refines it.

The class names are the captions. G and D see the coarse image and the caption's code as source
image. D also learns that real images with the code of another image's caption are fake (GAN-CLS:
Reed et al. 2016, 1605.05396). With few captions, the other image sometimes has the same one.

The code of each image is drawn once; conditioning augmentation would redraw it at each step.
``text2image:direct`` omits the coarse image, as the first stage of StackGAN does (Zhang et al.
2017, 1612.03242).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from growgan.config import merge_settings
from growgan.data import ImageSet, default_cache
from growgan.data.glyphs import parse_caption
from growgan.files import hash_json
from growgan.metrics.functional.classification_accuracy_score import fit_classifier
from growgan.run.run import Run
from growgan.sampling.trained_generator import TrainedGenerator
from growgan.tasks.base import TASKS, TEST_FRACTION, Task
from growgan.tasks.caption_vae import (
    CODE_DIM,
    SOURCE_CHANNEL_ORDER,
    CaptionVAE,
    caption_source_images,
    split_words,
    train_caption_vae,
)
from growgan.tasks.evaluation import (
    generate_from_source,
    random_subset,
    require_labels,
    save_task_sheet,
)
from growgan.tasks.pix2pix import PIX2PIX_PUBLISHED, PIX2PIX_SMALL

CAPTION_VAE_FILE = "caption_vae.safetensors"  # in the run directory
CAPTION_VAE_VERSION = 5  # raised whenever a cached caption VAE can no longer be used
DIRECT_VARIANT = "direct"
MIN_CAPTIONS_PER_WORD = 5  # training captions with each word of a caption that is held out
MAX_TEST_CAPTION_IMAGES = 1_000
NUM_SHEET_CAPTIONS = 12
SAMPLES_PER_CAPTION = 3  # on the sheet
MAX_TESTED_WORDS = 12


@dataclass(frozen=True)
class TextToImageTask(Task):
    """``text2image[:direct][:ENCODER]``, where ENCODER is a text model on the Hugging Face Hub."""

    sheet_caption: ClassVar[str] = (
        "Each column shows one caption that was not trained on. Rows: the coarse image (unless"
        " :direct), three generated images, and a real image."
    )

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        require_labels(task_name, data)
        data = super().prepare(task_name, variant, data, target)
        fingerprint = hash_json(data.fingerprint, f"{task_name}:{variant}:{SOURCE_CHANNEL_ORDER}")
        return replace(data, fingerprint=fingerprint)

    def split(self, data: ImageSet, variant: str = "") -> tuple[ImageSet, ImageSet]:
        """Hold out all images of some captions, whose words all occur in other captions.

        If the captions have too few words in common, hold out random images instead.
        """
        assert data.labels is not None
        words_by_caption = [set(split_words(caption)) for caption in data.classes]
        counts = Counter(word for words in words_by_caption for word in words)
        candidates = [
            k
            for k, words in enumerate(words_by_caption)
            if all(counts[word] > MIN_CAPTIONS_PER_WORD for word in words)
        ]
        if len(candidates) < 2 / TEST_FRACTION:
            return data.split_held_out(TEST_FRACTION)
        order = np.random.default_rng(len(candidates)).permutation(candidates)
        is_test = np.isin(data.labels, order[: round(TEST_FRACTION * len(candidates))])
        return data.subset(np.flatnonzero(~is_test)), data.subset(np.flatnonzero(is_test))

    def shape_placeholder(self, data: ImageSet, variant: str) -> ImageSet:
        """Return the images with blank source images, since the caption VAE is not trained yet."""
        with_coarse_image, _ = _parse_variant(variant)
        channels = CODE_DIM + data.channels * with_coarse_image
        blank = np.broadcast_to(np.uint8(0), (len(data), channels, *data.resolution))
        return replace(data, source_images=blank)

    def small_settings(self, variant: str) -> Mapping[str, Any]:
        """Return the small settings. Without a coarse image, G cannot add its output to it."""
        with_coarse_image, _ = _parse_variant(variant)
        if with_coarse_image:
            return self.small_overrides
        return merge_settings(self.small_overrides, DIRECT_OVERRIDES)

    def make_training_set(self, train_split: ImageSet, variant: str, seed: int) -> ImageSet:
        """Return the images; the source of each is its caption's code and its coarse version."""
        train_split = train_split.labeled_subset()
        with_coarse_image, text_encoder_name = _parse_variant(variant)
        sources = caption_source_images(
            load_or_train_caption_vae(train_split, text_encoder_name, seed),
            image_captions(train_split),
            train_split.resolution,
            seed,
            images=train_split.images,
            with_coarse_image=with_coarse_image,
        )
        return replace(train_split, source_images=sources)

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return how often generated images show what their new captions say.

        Classifiers, trained on real training images, decide; see :func:`caption_accuracy`. Names
        that start with "real" are for real images, names with "coarse" for coarse images.
        """
        with_coarse_image, text_encoder_name = _parse_variant(variant)
        vae = load_or_train_caption_vae(train_set, text_encoder_name, run.best.settings.seed)
        vae.save(run.path / CAPTION_VAE_FILE, text_encoder_name)
        test_images = random_subset(test_set, MAX_TEST_CAPTION_IMAGES)
        captions, resolution = image_captions(test_images), train_set.resolution
        sources = caption_source_images(
            vae, captions, resolution, 1, with_coarse_image=with_coarse_image
        )
        generated = generate_from_source(run.best, torch.from_numpy(sources)).numpy()
        image_sets = {"": generated, "real ": np.array(test_images.images)}
        rows = []
        if with_coarse_image:
            coarse_images = sources[:, CODE_DIM:]
            image_sets["coarse "] = coarse_images
            rows.append(coarse_images[:NUM_SHEET_CAPTIONS])
        metrics = caption_accuracy(train_set, test_images, image_sets)
        for k in range(SAMPLES_PER_CAPTION):
            sheet_sources = caption_source_images(
                vae,
                captions[:NUM_SHEET_CAPTIONS],
                resolution,
                2 + k,
                with_coarse_image=with_coarse_image,
            )
            rows.append(generate_from_source(run.best, torch.from_numpy(sheet_sources)).numpy())
        rows.append(np.array(test_images.images[:NUM_SHEET_CAPTIONS]))
        save_task_sheet(run, rows)
        return metrics


def _parse_variant(variant: str) -> tuple[bool, str]:
    """Return whether there are coarse images, and the name of the pretrained text encoder or ""."""
    first, _, text_encoder_name = variant.partition(":")
    if first == DIRECT_VARIANT:
        return False, text_encoder_name
    return True, variant


def image_captions(data: ImageSet) -> list[str]:
    """Return each image's caption."""
    assert data.labels is not None
    return [data.classes[label] for label in data.labels]


def load_or_train_caption_vae(train_set: ImageSet, text_encoder_name: str, seed: int) -> CaptionVAE:
    """Return the caption VAE of a training set from the cache; train it first if needed."""
    version = f"caption_vae:{CAPTION_VAE_VERSION}:{text_encoder_name}:{seed}"
    key = hash_json(train_set.fingerprint, version)[:24]
    path = default_cache() / "caption_vaes" / f"{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_caption_vae(train_set, text_encoder_name, seed).save(path, text_encoder_name)
    return CaptionVAE.load(path)


def sources_for_captions(
    model: TrainedGenerator, captions: Sequence[str], num_images: int, seed: int
) -> NDArray[np.uint8]:
    """Return source images for a model of this task, uint8 [N, H, W, channels].

    Args:
        model: A generator of a text2image run.
        captions: Captions, repeated in turn.
        num_images: Number of source images.
        seed: Random seed.

    Raises:
        UserError: The run is not one of this task, or a caption has an unknown word.
    """
    vae = CaptionVAE.load(model.run_dir / CAPTION_VAE_FILE)
    spec = model.load_network().spec
    sources = caption_source_images(
        vae,
        [captions[k % len(captions)] for k in range(num_images)],
        spec.resolution,
        seed,
        with_coarse_image=spec.source_channels == spec.image_channels + CODE_DIM,
    )
    return np.ascontiguousarray(np.moveaxis(sources, 1, 3))


def caption_accuracy(
    train_set: ImageSet, test_set: ImageSet, image_sets: Mapping[str, NDArray[np.uint8]]
) -> dict[str, float]:
    """Return the fraction of images that classifiers find consistent with their captions.

    Captions in the form of ``glyphs:captions`` are split into slots, such as the letter; there is
    a classifier for each slot, and "all slots" counts the images for which all are right. Other
    captions are classes of one classifier if all of them are in the training set; otherwise
    :func:`word_accuracy` is used.

    Args:
        train_set: Images that the classifiers are trained on.
        test_set: Images whose captions were used.
        image_sets: Images uint8 [N, C, H, W] for the captions of ``test_set``, row by row, by the
            prefix of the metrics' names.
    """
    captions_by_set = [image_captions(image_set) for image_set in (train_set, test_set)]
    distinct = [set(captions) for captions in captions_by_set]
    slots_by_set: list[list[dict[str, str]]]
    if all(parse_caption(caption) for captions in distinct for caption in captions):
        slots_by_set = [[parse_caption(caption) or {} for caption in c] for c in captions_by_set]
    elif distinct[1] - distinct[0]:
        return word_accuracy(train_set, test_set, image_sets)
    else:
        slots_by_set = [[{"caption": caption} for caption in c] for c in captions_by_set]
    metrics: dict[str, float] = {}
    all_correct = {prefix: np.ones(len(test_set), dtype=bool) for prefix in image_sets}
    for slot in slots_by_set[0][0]:
        values = sorted({s.get(slot, "") for image_slots in slots_by_set for s in image_slots})
        train_labels, test_labels = (
            np.array([values.index(s.get(slot, "")) for s in image_slots])
            for image_slots in slots_by_set
        )
        classify = fit_classifier((np.array(train_set.images), train_labels), len(values))
        for prefix, images in image_sets.items():
            is_correct = classify(images) == test_labels
            all_correct[prefix] &= is_correct
            metrics[f"{prefix}{slot}"] = float(is_correct.mean())
    for prefix, is_correct in all_correct.items():
        metrics[f"{prefix}all slots"] = float(is_correct.mean())
    return metrics


def word_accuracy(
    train_set: ImageSet, test_set: ImageSet, image_sets: Mapping[str, NDArray[np.uint8]]
) -> dict[str, float]:
    """Return the balanced accuracy of classifiers that decide whether a caption has a word.

    There is a classifier for each of up to ``MAX_TESTED_WORDS`` words, those nearest to occurring
    in half of the training captions, and "words" is the mean over them. Images with and without
    the word count equally, so that chance is 0.5. The result is empty if no word occurs in some but
    not all captions of both sets.
    """
    words_by_set = [
        [set(split_words(caption)) for caption in image_captions(image_set)]
        for image_set in (train_set, test_set)
    ]
    frequencies: dict[str, list[float]] = {
        word: [
            sum(word in words for words in captions) / len(captions) for captions in words_by_set
        ]
        for word in sorted(set().union(*words_by_set[1]))
    }
    varying = [word for word, pair in frequencies.items() if all(0 < f < 1 for f in pair)]
    tested = sorted(varying, key=lambda word: abs(frequencies[word][0] - 0.5))[:MAX_TESTED_WORDS]
    accuracies: dict[str, list[float]] = {prefix: [] for prefix in image_sets}
    for word in tested:
        train_labels, test_labels = (
            np.array([int(word in words) for words in captions]) for captions in words_by_set
        )
        # Balance the classes. Otherwise the classifier of a rare word would always say no.
        class_rows = [np.flatnonzero(train_labels == k) for k in (0, 1)]
        larger = max(map(len, class_rows))
        rows = np.sort(np.concatenate([np.resize(part, larger) for part in class_rows]))
        classify = fit_classifier((np.array(train_set.images[rows]), train_labels[rows]), 2)
        for prefix, images in image_sets.items():
            is_correct = classify(images) == test_labels
            recalls = [is_correct[test_labels == k].mean() for k in (0, 1)]
            accuracies[prefix].append(float(np.mean(recalls)))
    return {f"{prefix}words": float(np.mean(a)) for prefix, a in accuracies.items() if a}


DIRECT_OVERRIDES: dict[str, Any] = {"network": {"residual_output": False}}
MISMATCH_OVERRIDES: dict[str, Any] = {
    "conditioning_options": {"mismatch_weight": 1.0, "mismatch_channels": CODE_DIM},
}
TEXT2IMAGE_PUBLISHED: dict[str, Any] = {
    **PIX2PIX_PUBLISHED,
    **MISMATCH_OVERRIDES,
    "regularizers": {},
    "network": {
        **PIX2PIX_PUBLISHED["network"],
        "patch_discriminator": False,
        "latent_dim": 100,
        "block": "residual",
    },
}
TEXT2IMAGE_SMALL: dict[str, Any] = {
    **PIX2PIX_SMALL,
    **MISMATCH_OVERRIDES,
    "regularizers": {"r1": PIX2PIX_SMALL["regularizers"]["r1"]},
    "optimizer": {"lr": 1e-2, "beta1": 0.5},
    "network": {
        **PIX2PIX_SMALL["network"],
        "patch_discriminator": False,
        "latent_dim": 32,
        "discriminator_width": 32,
        "norm": "none",
        "residual_output": True,
    },
}

TASKS.register("text2image", "Generate images from captions.", "Zhang et al. 2017, 1612.03242")(
    TextToImageTask(
        published_overrides=TEXT2IMAGE_PUBLISHED,
        small_overrides=TEXT2IMAGE_SMALL,
        example_variants=(DIRECT_VARIANT,),
    )
)
