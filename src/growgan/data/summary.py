"""What is in a source of images: what ``growgan data`` shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from growgan.data.decode import BrokenImage
from growgan.data.files import default_cache
from growgan.data.parallel import run_blocks
from growgan.data.prepare import Plan, Size, Survey, make_plan, parse_resolution
from growgan.data.sources import Request, Source, open_source
from growgan.data.store import Repeats, pixel_digest
from growgan.errors import UserError


@dataclass(frozen=True)
class Summary:
    """Counts, sizes, channels, classes, broken and duplicate images of a source."""

    name: str
    source: str
    files: int  # images looked at, broken ones included
    ignored: int  # other files beside them
    sizes: Counter[Size]
    channels: Counter[int]
    classes: dict[str, int]
    unlabelled: int
    broken: tuple[str, ...]  # "name (why)"
    duplicates: tuple[str, ...]  # "name (same as name)"
    plan: Plan | None  # what load_images would make of them; None where it needs a resolution
    enlarged: int  # images smaller than that resolution, which crop, pad or stretch scale up

    @property
    def count(self) -> int:
        """Images that can be used."""
        return self.files - len(self.broken)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "name": self.name,
            "source": self.source,
            "files": self.files,
            "ignored": self.ignored,
            "count": self.count,
            "sizes": [
                {"height": size[0], "width": size[1], "count": count}
                for size, count in self.sizes.most_common()
            ],
            "channels": {str(kind): count for kind, count in sorted(self.channels.items())},
            "classes": self.classes,
            "unlabelled": self.unlabelled,
            "broken": list(self.broken),
            "duplicates": list(self.duplicates),
            "prepared": self.plan
            and {
                "resolution": list(self.plan.resolution),
                "channels": self.plan.channels,
                "fit": self.plan.fit,
                "enlarged": self.enlarged,
            },
        }


Scanned = tuple[Size, int, bytes]  # size, channels, pixel digest


def scan_block(source: Source, start: int, stop: int) -> list[Scanned | str]:
    """Decode images fully: what each is, or why it is broken."""
    found: list[Scanned | str] = []
    for index in range(start, stop):
        try:
            pixels = source.pixels(index, None)
        except BrokenImage as error:
            found.append(str(error))
            continue
        height, width, channels = pixels.shape
        found.append(((height, width), channels, pixel_digest(pixels)))
    return found


def summarise(
    source: str | Path,
    *,
    resolution: int | Size | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> Summary:
    """Decode every image of a source and say what there is; nothing is stored.

    Raises UserError for a source that is unknown, missing or empty, not for broken images.
    """
    size = parse_resolution(resolution)
    cache = default_cache() if cache is None else cache
    opened = open_source(source, Request(cache, seed))
    opened.survey()  # refuses an archive of more pixels than anybody's images have
    survey, broken, good = Survey(), [], []
    repeats = Repeats(opened)
    blocks = run_blocks(partial(scan_block, opened), len(opened), 32)
    for index, scanned in enumerate(one for block in blocks for one in block):
        if isinstance(scanned, str):
            broken.append(f"{opened.item(index)} ({scanned})")
            continue
        survey.sizes[scanned[0]] += 1
        survey.channels[scanned[1]] += 1
        repeats.add([index], [scanned[2]])
        good.append(index)
    return _summary(opened, survey, tuple(broken), repeats, good, size)


def _summary(
    source: Source,
    survey: Survey,
    broken: tuple[str, ...],
    repeats: Repeats,
    good: list[int],
    size: Size | None,
) -> Summary:
    try:
        plan = make_plan(survey, size, None)
    except UserError:  # mixed sizes, or nothing readable: said by the tables
        plan = None
    classes, unlabelled = _count_classes(source, good)
    return Summary(
        name=source.name,
        source=source.location,
        files=len(source),
        ignored=source.ignored,
        sizes=survey.sizes,
        channels=survey.channels,
        classes=classes,
        unlabelled=unlabelled,
        broken=broken,
        duplicates=repeats.listed(),
        plan=plan,
        enlarged=_count_enlarged(survey, plan),
    )


def _count_classes(source: Source, good: list[int]) -> tuple[dict[str, int], int]:
    if source.labels is None:
        return {}, len(good)
    labels = source.labels[np.array(good, dtype=np.int64)]
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes))
    named = zip(source.classes, counts.tolist(), strict=True)
    return dict(named), int((labels < 0).sum())


def _count_enlarged(survey: Survey, plan: Plan | None) -> int:
    if plan is None or plan.fit == "border":
        return 0
    height, width = plan.resolution
    return sum(n for size, n in survey.sizes.items() if size[0] < height or size[1] < width)
