"""Video (Mathieu et al. 2016, 1511.05440): the next frame from the last ones.

G sees three frames and makes the fourth; D judges it beside them. A film goes on by giving G what
it has made. An L1 loss alone answers an open future with the mean of all, which is blurred.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.typing import NDArray

from growgan.data import ImageSet
from growgan.data.files import combine
from growgan.errors import UserError, unknown
from growgan.growth.run import Run
from growgan.tasks.base import TASKS, TEST, Images, Task, draw, likeness, made_of
from growgan.tasks.folders import stems
from growgan.tasks.pix2pix import PUBLISHED
from growgan.tasks.pix2pix import SMALL as PAIRED

SEEN, AHEAD = 3, 10  # frames that G is given, and how many a film goes on
STILLS = 2_000  # images that are made to move, at most: each makes a film of 13 frames
FILMS = 4  # on the sheet
FASTEST = 3  # pixels a frame and axis
MEASURED = 200  # films of these, at most

Frames = UInt8[np.ndarray, "t c h w"]


class NextFrame(Task):
    """Films of ``AHEAD`` rows: frames in their order, each with the ``SEEN`` before it."""

    sheet: ClassVar[str] = "Pairs of rows: how a film goes on, and how G lets it go on."

    def prepare(
        self, name: str, kind: str, data: ImageSet, truth: ImageSet | None = None
    ) -> ImageSet:
        data = super().prepare(name, kind, data, truth)
        if kind not in self.kinds:
            raise unknown(f"kind of task '{name}'", kind, self.kinds)
        films = moving(data) if kind == "moving" else cut(data)
        given = [
            np.concatenate(film[t - SEEN : t]) for film in films for t in range(SEEN, len(film))
        ]
        return replace(
            data,
            images=np.concatenate([film[SEEN:] for film in films]),
            given=np.stack(given),
            labels=None,
            classes=(),
            fingerprint=combine(data.fingerprint, f"{name}:{kind}"),
        )

    def split(self, data: ImageSet, kind: str = "") -> tuple[ImageSet, ImageSet]:
        """Return most films, and the others in an order drawn by chance; none is in both parts."""
        films = len(data) // AHEAD
        held = max(1, round(TEST * films))
        if held >= films:
            raise UserError(f"'{data.name}' needs two films of {SEEN + AHEAD} frames at least")
        order = np.random.default_rng((films, 0)).permutation(films)
        seen, new = (
            data.subset((part[:, None] * AHEAD + np.arange(AHEAD)).ravel())
            for part in (np.sort(order[held:]), order[:held])
        )
        return seen, new

    def show(self, run: Run, kind: str, seen: ImageSet, new: ImageSet) -> dict[str, float]:
        """Let films go on; return how near each frame is, and how near the last one given was.

        "sharpness" is the mean difference of neighbouring pixels beside the truth's, 1 if equal.
        """
        films = min(MEASURED, len(new) // AHEAD)
        assert new.given is not None
        shape = (films, AHEAD, *new.images.shape[1:])
        truth = torch.from_numpy(np.array(new.images[: films * AHEAD])).view(shape)
        given = torch.from_numpy(np.array(new.given[: films * AHEAD : AHEAD]))
        made = torch.stack(go_on(run, given, AHEAD), 1)
        stay = given[:, -truth.shape[2] :]
        figures: dict[str, float] = {}
        for ahead in (1, 3, AHEAD):
            frame = truth[:, ahead - 1]
            for name, images in (("", made[:, ahead - 1]), ("copied ", stay)):
                found = likeness(images, frame)
                figures |= {f"{name}{key}, {ahead} ahead": found[key] for key in ("psnr", "ssim")}
        figures["sharpness, 1 ahead"] = sharpness(made[:, 0]) / sharpness(truth[:, 0])
        figures[f"sharpness, {AHEAD} ahead"] = sharpness(made[:, -1]) / sharpness(truth[:, -1])
        rows = [
            film.numpy() for pair in zip(truth[:FILMS], made[:FILMS], strict=True) for film in pair
        ]
        draw(run, rows)
        return figures


def go_on(run: Run, given: Images, frames: int) -> list[Images]:
    """Return so many frames more of each film, uint8 [N, C, H, W] each."""
    films, channels = [], given.shape[1] // SEEN
    for _ in range(frames):
        films.append(made_of(run.best, given))
        given = torch.cat([given[:, channels:], films[-1]], 1)
    return films


def sharpness(images: Images) -> float:
    """Return the mean difference of neighbouring pixels, in 1/255."""
    x = images.float()
    return float((x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()) / 2)


def cut(data: ImageSet) -> list[Frames]:
    """Return images, which are frames in their order, as films; what is left over is dropped.

    Files go by the numbers in their names: frame 2 before frame 10. Where images have labels each
    is a clip of its own, in which a film lies wholly.

    Raises:
        UserError: there are fewer than two films, or files that cannot be read.
    """
    if data.broken:
        raise UserError(
            f"'{data.name}' has {len(data.broken):,} broken files, so that films would leap: "
            f"{data.broken[0]}; remove them, and what lies before or behind them"
        )
    length, names = SEEN + AHEAD, stems(data)
    labels = np.zeros(len(data), np.int64) if data.labels is None else data.labels
    order = np.arange(len(data))
    if names is not None:
        order = np.array(sorted(order, key=lambda row: numbered(names[row])))
    clips = [order[labels[order] == label] for label in np.unique(labels)]
    films = [
        np.array(data.images[clip[start : start + length]])
        for clip in clips
        for start in range(0, len(clip) - length + 1, length)
    ]
    if len(films) < 2:
        raise UserError(
            f"'{data.name}' has {len(data)} frames in {len(clips)} clips: {len(films)} whole films;"
            f" two films need {2 * length}"
        )
    return films


def numbered(name: str) -> list[tuple[int, str]]:
    """Return a name as it is sorted where numbers count as such."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def moving(data: ImageSet) -> list[Frames]:
    """Return films in which an image of half its size flies about and bounces off the rim.

    Where each begins and how fast it flies is a function of its row (Srivastava et al. 2015,
    1502.04681, have two digits in each).
    """
    height, width = data.resolution
    if min(height, width) < 8:
        raise UserError(f"images of {height}x{width} are too small to move")
    films = []
    chosen = np.random.default_rng((len(data), 1)).permutation(len(data))[:STILLS]
    for row in np.sort(chosen).tolist():
        image = torch.from_numpy(np.array(data.images[row : row + 1])).float()
        sprite = F.avg_pool2d(image, 2)[0].round().byte().numpy()
        rim = np.concatenate([sprite[:, 0], sprite[:, -1], sprite[:, :, 0], sprite[:, :, -1]], 1)
        film = np.empty((SEEN + AHEAD, len(sprite), height, width), np.uint8)
        film[:] = np.median(rim, axis=1).astype(np.uint8)[:, None, None]
        rng = np.random.default_rng(row)
        places = [
            bounce(rng, room, SEEN + AHEAD)
            for room in (height - sprite.shape[1], width - sprite.shape[2])
        ]
        for frame, y, x in zip(film, *places, strict=True):
            frame[:, y : y + sprite.shape[1], x : x + sprite.shape[2]] = sprite
        films.append(film)
    return films


def bounce(rng: np.random.Generator, room: int, frames: int) -> NDArray[np.int64]:
    """Return where something is that flies between 0 and ``room`` at an even speed."""
    start, speed = rng.integers(room + 1), rng.integers(1, FASTEST + 1) * rng.choice([-1, 1])
    way = (start + speed * np.arange(frames)) % (2 * room)
    return np.minimum(way, 2 * room - way)


# What changes is added to the last frame; and without norms, so that how bright it is is not lost.
SMALL: dict[str, Any] = {
    **PAIRED,
    "optimiser": {"beta1": 0.5},
    "stack": {**PAIRED["stack"], "difference": True, "norm": "none"},
}

TASKS.register("next-frame", "a film goes on", "Mathieu et al. 2016, 1511.05440")(
    NextFrame(PUBLISHED, SMALL, {"moving": moving, "frames": cut})
)
