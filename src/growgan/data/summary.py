"""A summary of an image source, as shown by ``growgan data``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from growgan.data.base import Source, SourceContext
from growgan.data.cache import default_cache
from growgan.data.decode import BrokenImageError
from growgan.data.parallel import run_blocks
from growgan.data.prepare import PreprocessPlan, Size, SizeHistogram, make_plan, parse_resolution
from growgan.data.sources import open_source
from growgan.data.store import DuplicateFinder, pixel_digest
from growgan.errors import UserError


@dataclass(frozen=True)
class DatasetSummary:
    """Counts, sizes, channels, classes, broken and duplicate images of a source."""

    name: str
    source: str
    num_files: int  # image files, including broken ones
    num_ignored: int  # other files
    sizes: Counter[Size]
    channels: Counter[int]
    classes: dict[str, int]
    num_unlabeled: int
    broken: tuple[str, ...]  # "name (reason)"
    duplicates: tuple[str, ...]  # "name (same as name)"
    plan: PreprocessPlan | None  # how load_images would prepare them; None if it needs a resolution
    num_enlarged: int  # images that are smaller than the resolution and would be scaled up

    @property
    def num_usable(self) -> int:
        """Number of images that can be read."""
        return self.num_files - len(self.broken)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values."""
        return {
            "name": self.name,
            "source": self.source,
            "files": self.num_files,
            "ignored": self.num_ignored,
            "count": self.num_usable,
            "sizes": [
                {"height": size[0], "width": size[1], "count": count}
                for size, count in self.sizes.most_common()
            ],
            "channels": {str(kind): count for kind, count in sorted(self.channels.items())},
            "classes": self.classes,
            "unlabeled": self.num_unlabeled,
            "broken": list(self.broken),
            "duplicates": list(self.duplicates),
            "prepared": self.plan
            and {
                "resolution": list(self.plan.resolution),
                "channels": self.plan.channels,
                "fit": self.plan.fit,
                "enlarged": self.num_enlarged,
            },
        }


ScannedImage = tuple[Size, int, bytes]  # size, channels, pixel digest


def scan_block(source: Source, start: int, stop: int) -> list[ScannedImage | str]:
    """Decode images; return size, channels and digest of each, or the reason why it is broken."""
    results: list[ScannedImage | str] = []
    for index in range(start, stop):
        try:
            pixels = source.load_pixels(index, None)
        except BrokenImageError as error:
            results.append(str(error))
            continue
        height, width, channels = pixels.shape
        results.append(((height, width), channels, pixel_digest(pixels)))
    return results


def summarize(
    source: str | Path,
    *,
    resolution: int | Size | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> DatasetSummary:
    """Decode every image of a source and summarize them. Nothing is stored.

    Raises:
        UserError: The source is unknown, missing or empty.
    """
    size = parse_resolution(resolution)
    cache = default_cache() if cache is None else cache
    opened = open_source(source, SourceContext(cache, seed))
    opened.size_histogram()  # refuses archives with a suspicious number of pixels
    histogram, broken, readable = SizeHistogram(), [], []
    duplicates = DuplicateFinder(opened)
    blocks = run_blocks(partial(scan_block, opened), len(opened), 32)
    for index, scanned in enumerate(chain.from_iterable(blocks)):
        if isinstance(scanned, str):
            broken.append(f"{opened.item_name(index)} ({scanned})")
            continue
        histogram.sizes[scanned[0]] += 1
        histogram.channels[scanned[1]] += 1
        duplicates.add([index], [scanned[2]])
        readable.append(index)
    return _summary(opened, histogram, tuple(broken), duplicates, readable, size)


def _summary(
    source: Source,
    histogram: SizeHistogram,
    broken: tuple[str, ...],
    duplicates: DuplicateFinder,
    readable: list[int],
    size: Size | None,
) -> DatasetSummary:
    try:
        plan = make_plan(histogram, size, None)
    except UserError:  # mixed sizes or no readable image; the tables show it
        plan = None
    classes, unlabeled = _count_classes(source, readable)
    return DatasetSummary(
        name=source.name,
        source=source.location,
        num_files=len(source),
        num_ignored=source.num_ignored,
        sizes=histogram.sizes,
        channels=histogram.channels,
        classes=classes,
        num_unlabeled=unlabeled,
        broken=broken,
        duplicates=duplicates.describe(),
        plan=plan,
        num_enlarged=_count_enlarged(histogram, plan),
    )


def _count_classes(source: Source, readable: list[int]) -> tuple[dict[str, int], int]:
    if source.labels is None:
        return {}, len(readable)
    labels = source.labels[np.array(readable, dtype=np.int64)]
    counts = np.bincount(labels[labels >= 0], minlength=len(source.classes))
    named = zip(source.classes, counts.tolist(), strict=True)
    return dict(named), int((labels < 0).sum())


def _count_enlarged(histogram: SizeHistogram, plan: PreprocessPlan | None) -> int:
    if plan is None or plan.fit == "border":
        return 0
    height, width = plan.resolution
    return sum(n for size, n in histogram.sizes.items() if size[0] < height or size[1] < width)
