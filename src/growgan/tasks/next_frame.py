"""Video prediction (Mathieu et al. 2016, 1511.05440): the next frame from the previous ones.

G generates the fourth frame from three frames, and D sees all four. Longer predictions feed the
generated frames back into G. Trained with only an L1 loss, G would predict the mean of all possible
futures, which is blurred.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.typing import NDArray

from growgan.data import ImageSet
from growgan.errors import UserError, unknown_name_error
from growgan.files import hash_json
from growgan.run.run import Run
from growgan.tasks.base import TASKS, TEST_FRACTION, Task
from growgan.tasks.evaluation import (
    ImagesNCHW,
    generate_from_source,
    image_similarity,
    save_task_sheet,
    split_indices,
)
from growgan.tasks.paired import file_stems
from growgan.tasks.pix2pix import PIX2PIX_PUBLISHED, PIX2PIX_SMALL

NUM_CONTEXT_FRAMES = 3  # frames that G reads
NUM_PREDICTED_FRAMES = 10  # frames of a clip that are predicted
CLIP_LENGTH = NUM_CONTEXT_FRAMES + NUM_PREDICTED_FRAMES  # frames
EVALUATED_FRAMES = (1, 3, NUM_PREDICTED_FRAMES)  # positions after the context frames
MAX_STILL_IMAGES = 2_000  # images made into moving clips, one clip each
MAX_SPEED_PIXELS_PER_FRAME = 3  # along each axis
MIN_MOVING_SIDE_PIXELS = 8  # shorter side of an image made into a moving clip
MAX_TEST_CLIPS = 200
NUM_SHEET_CLIPS = 4

Clip = UInt8[np.ndarray, "t c h w"]


@dataclass(frozen=True)
class NextFrameTask(Task):
    """``next-frame:VARIANT``. The images are predicted frames; their sources are context frames.

    Each clip gives ``NUM_PREDICTED_FRAMES`` consecutive rows.
    """

    sheet_caption: ClassVar[str] = "Pairs of rows: the frames of a clip, and the predicted frames."

    def prepare(
        self, task_name: str, variant: str, data: ImageSet, target: ImageSet | None = None
    ) -> ImageSet:
        data = super().prepare(task_name, variant, data, target)
        if variant not in CLIP_FUNCTIONS:
            raise unknown_name_error(f"variant of task '{task_name}'", variant, CLIP_FUNCTIONS)
        clips = CLIP_FUNCTIONS[variant](data)
        contexts = [
            np.concatenate(clip[t - NUM_CONTEXT_FRAMES : t])
            for clip in clips
            for t in range(NUM_CONTEXT_FRAMES, len(clip))
        ]
        return replace(
            data,
            images=np.concatenate([clip[NUM_CONTEXT_FRAMES:] for clip in clips]),
            source_images=np.stack(contexts),
            labels=None,
            classes=(),
            fingerprint=hash_json(data.fingerprint, f"{task_name}:{variant}"),
        )

    def split(self, data: ImageSet, variant: str = "") -> tuple[ImageSet, ImageSet]:
        """Hold out random clips. All frames of a clip are in the same part."""
        num_clips = len(data) // NUM_PREDICTED_FRAMES
        if num_clips < 2:
            raise UserError(
                f"task 'next-frame' needs at least 2 clips of {CLIP_LENGTH} frames, but"
                f" '{data.name}' has {num_clips}"
            )
        train_clips, test_clips = split_indices(num_clips, TEST_FRACTION)
        offsets = np.arange(NUM_PREDICTED_FRAMES)
        train_split, test_set = (
            data.subset((clips[:, None] * NUM_PREDICTED_FRAMES + offsets).ravel())
            for clips in (train_clips, test_clips)
        )
        return train_split, test_set

    def evaluate(
        self, run: Run, variant: str, train_set: ImageSet, test_set: ImageSet
    ) -> dict[str, float]:
        """Return the similarity of predicted and real frames, and the relative sharpness.

        "last frame psnr" and "last frame ssim" are those of a baseline that repeats the last
        context frame. "relative sharpness" is the sharpness of the prediction divided by that of
        the real frame; 1 is ideal.
        """
        num_clips = min(MAX_TEST_CLIPS, len(test_set) // NUM_PREDICTED_FRAMES)
        num_rows = num_clips * NUM_PREDICTED_FRAMES
        assert test_set.source_images is not None
        target = torch.from_numpy(np.array(test_set.images[:num_rows])).unflatten(
            0, (num_clips, NUM_PREDICTED_FRAMES)
        )
        context = torch.from_numpy(np.array(test_set.source_images[:num_rows:NUM_PREDICTED_FRAMES]))
        predicted = torch.stack(predict_frames(run, context, NUM_PREDICTED_FRAMES), 1)
        last_frame = context[:, -target.shape[2] :]
        metrics: dict[str, float] = {}
        for position in EVALUATED_FRAMES:
            target_frame = target[:, position - 1]
            for prefix, images in (("", predicted[:, position - 1]), ("last frame ", last_frame)):
                similarity = image_similarity(images, target_frame)
                metrics |= {
                    f"{prefix}{name}, frame +{position}": similarity[name]
                    for name in ("psnr", "ssim")
                }
        for position in (1, NUM_PREDICTED_FRAMES):
            metrics[f"relative sharpness, frame +{position}"] = sharpness(
                predicted[:, position - 1]
            ) / sharpness(target[:, position - 1])
        rows = []
        for k in range(min(NUM_SHEET_CLIPS, num_clips)):
            rows += [target[k].numpy(), predicted[k].numpy()]
        save_task_sheet(run, rows)
        return metrics


def predict_frames(run: Run, context: ImagesNCHW, num_frames: int) -> list[ImagesNCHW]:
    """Return the next frames of each clip, uint8 [N, C, H, W] each.

    Args:
        run: The finished run.
        context: The last frames of each clip, concatenated along the channels.
        num_frames: Number of frames to predict.
    """
    frames, channels = [], context.shape[1] // NUM_CONTEXT_FRAMES
    for _ in range(num_frames):
        frames.append(generate_from_source(run.best, context))
        context = torch.cat([context[:, channels:], frames[-1]], 1)
    return frames


def sharpness(images: ImagesNCHW) -> float:
    """Return the mean absolute difference of neighboring pixels, in 1/255."""
    x = images.float()
    return float((x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()) / 2)


def split_into_clips(data: ImageSet) -> list[Clip]:
    """Cut a sequence of frames into clips of ``CLIP_LENGTH`` frames; drop the rest.

    Files are sorted by the numbers in their names: frame 2 comes before frame 10. With labels, each
    class is a sequence of its own.

    Raises:
        UserError: There are fewer than two clips, or unreadable files.
    """
    if data.broken:
        raise UserError(
            f"'{data.name}' has {len(data.broken):,} broken files, so its clips would skip frames:"
            f" {data.broken[0]}; remove these files and start a new folder after each gap"
        )
    names = file_stems(data)
    labels = np.zeros(len(data), np.int64) if data.labels is None else data.labels
    order = np.arange(len(data))
    if names is not None:
        order = np.array(sorted(order, key=lambda row: natural_sort_key(names[row])))
    sequences = [order[labels[order] == label] for label in np.unique(labels)]
    clips = [
        np.array(data.images[rows[start : start + CLIP_LENGTH]])
        for rows in sequences
        for start in range(0, len(rows) - CLIP_LENGTH + 1, CLIP_LENGTH)
    ]
    if len(clips) < 2:
        raise UserError(
            f"task 'next-frame:frames' needs at least 2 clips of {CLIP_LENGTH} consecutive frames,"
            f" but the {len(data)} frames of '{data.name}' in {len(sequences)} sequence(s) give"
            f" {len(clips)}"
        )
    return clips


def natural_sort_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers in a name by value."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def make_moving_clips(data: ImageSet) -> list[Clip]:
    """Return a clip for each image: the image, at half its size, moves and bounces off the edges.

    The start and the speed depend only on the image's row. The clips of Srivastava et al. 2015
    (1502.04681) show two digits each; these show one image.
    """
    height, width = data.resolution
    if min(height, width) < MIN_MOVING_SIDE_PIXELS:
        raise UserError(
            f"task 'next-frame:moving' needs images of at least {MIN_MOVING_SIDE_PIXELS} pixels per"
            f" side, but these are {height}x{width}"
        )
    clips = []
    chosen_rows = np.random.default_rng((len(data), 1)).permutation(len(data))[:MAX_STILL_IMAGES]
    for row in np.sort(chosen_rows).tolist():
        image = torch.from_numpy(np.array(data.images[row : row + 1])).float()
        sprite = F.avg_pool2d(image, 2)[0].round().byte().numpy()
        sprite_height, sprite_width = sprite.shape[1:]
        edges = np.concatenate([sprite[:, 0], sprite[:, -1], sprite[:, :, 0], sprite[:, :, -1]], 1)
        clip = np.empty((CLIP_LENGTH, len(sprite), height, width), np.uint8)
        clip[:] = np.median(edges, axis=1).astype(np.uint8)[:, None, None]
        rng = np.random.default_rng(row)
        tops = bouncing_positions(rng, height - sprite_height, CLIP_LENGTH)
        lefts = bouncing_positions(rng, width - sprite_width, CLIP_LENGTH)
        for frame, top, left in zip(clip, tops, lefts, strict=True):
            frame[:, top : top + sprite_height, left : left + sprite_width] = sprite
        clips.append(clip)
    return clips


def bouncing_positions(
    rng: np.random.Generator, max_position: int, num_frames: int
) -> NDArray[np.int64]:
    """Return positions of uniform motion that is reflected at 0 and ``max_position``."""
    start = rng.integers(max_position + 1)
    velocity = rng.integers(1, MAX_SPEED_PIXELS_PER_FRAME + 1) * rng.choice([-1, 1])
    position = (start + velocity * np.arange(num_frames)) % (2 * max_position)
    return np.minimum(position, 2 * max_position - position)


CLIP_FUNCTIONS: dict[str, Callable[[ImageSet], list[Clip]]] = {
    "moving": make_moving_clips,
    "frames": split_into_clips,
}

# G adds its output to the last frame. It has no norms, which would lose the absolute brightness.
NEXT_FRAME_SMALL: dict[str, Any] = {
    **PIX2PIX_SMALL,
    "optimizer": {"beta1": 0.5},
    "network": {**PIX2PIX_SMALL["network"], "residual_output": True, "norm": "none"},
}

TASKS.register("next-frame", "Predict the next video frames.", "Mathieu et al. 2016, 1511.05440")(
    NextFrameTask(
        published_overrides=PIX2PIX_PUBLISHED,
        small_overrides=NEXT_FRAME_SMALL,
        example_variants=tuple(CLIP_FUNCTIONS),
    )
)
