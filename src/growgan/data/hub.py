"""Image datasets of the Hugging Face hub, through the optional ``datasets`` library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from growgan.data.decode import BrokenImage
from growgan.data.files import combine
from growgan.data.folder import read_file
from growgan.data.sources import EncodedSource, Labels, name_classes, parse_options
from growgan.errors import UserError, require


class HubSource(EncodedSource):
    """The rows of one split: an image column, and a label column if there is one."""

    def __init__(self, name: str, location: str, rows: Any, column: str, label: str | None):
        labels, classes = _labels(rows, label)
        items = tuple(f"#{index}" for index in range(len(rows)))
        super().__init__(name, location, items, labels, classes)
        self.rows, self.column = rows, column

    def content(self) -> str:
        mark = getattr(self.rows, "_fingerprint", None)  # the library's own, of data and transforms
        return combine("hub", self.location, self.column, len(self.rows), mark)

    def read(self, index: int) -> bytes:
        try:
            value = self.rows[index][self.column]
        except Exception as error:  # whatever the library meets in a damaged shard
            raise BrokenImage(f"row cannot be read ({type(error).__name__})") from error
        if isinstance(value, dict) and value.get("bytes"):
            return bytes(value["bytes"])
        if isinstance(value, dict) and value.get("path"):
            return read_file(Path(value["path"]))
        if not hasattr(value, "save"):
            raise BrokenImage("row without an image")
        packed = io.BytesIO()
        value.save(packed, format="PNG")
        return packed.getvalue()


def _labels(rows: Any, column: str | None) -> tuple[Labels | None, tuple[str, ...]]:
    if column is None:
        return None, ()
    names = tuple(getattr(rows.features[column], "names", None) or ())
    values = [-1 if value is None else value for value in rows[column]]
    return name_classes(np.asarray(values), names)


def open_hub(options: str) -> HubSource:
    """Load ``NAME[,split=train][,config=NAME]`` from the hub or the library's own cache.

    Raises UserError where the library is missing, the dataset cannot be had, or it holds no
    column of images.
    """
    name, _, rest = options.partition(",")
    chosen = parse_options(rest, "hub", {"split": True, "config": True})
    if not name:
        raise UserError("hub: needs a dataset's name, like hub:mnist")
    require("datasets", "hub:", "'growgan[hub]'")
    import datasets

    split = chosen.get("split", "train")
    try:
        rows = datasets.load_dataset(name, chosen.get("config"), split=split)
    except Exception as error:  # network, name, split, script: the library raises many kinds
        why = " ".join(str(error).split())[:200]
        raise UserError(f"hub dataset '{name}' (split {split}) cannot be loaded: {why}") from error
    column = _column(rows.features, "Image")
    if column is None:
        there = ", ".join(rows.features)
        raise UserError(f"hub dataset '{name}' has no column of images; it has: {there}")
    rows = rows.cast_column(column, datasets.Image(decode=False))
    label = _column(rows.features, "ClassLabel") or _named_label(rows.features)
    location = f"hub:{name},split={split}"
    return HubSource(name.rsplit("/", 1)[-1], location, rows, column, label)


def _column(features: Any, kind: str) -> str | None:
    return next((key for key in features if type(features[key]).__name__ == kind), None)


def _named_label(features: Any) -> str | None:
    return next((key for key in ("label", "labels") if key in features), None)
