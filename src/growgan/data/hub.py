"""Image datasets of the Hugging Face Hub, through the optional ``datasets`` library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from growgan.data.base import EncodedSource, Labels, encode_labels, parse_options
from growgan.data.decode import BrokenImageError
from growgan.data.folder import read_file
from growgan.errors import UserError, require_extra
from growgan.files import hash_json


class HubSource(EncodedSource):
    """One split of a dataset: an image column and, if present, a label column."""

    def __init__(self, name: str, location: str, rows: Any, column: str, label: str | None):
        labels, classes = _labels(rows, label)
        items = tuple(f"#{index}" for index in range(len(rows)))
        super().__init__(name, location, items, labels, classes)
        self.rows, self.column = rows, column

    def content_digest(self) -> str:
        digest = getattr(self.rows, "_fingerprint", None)  # covers data and transforms
        return hash_json("hub", self.location, self.column, len(self.rows), digest)

    def read_bytes(self, index: int) -> bytes:
        try:
            value = self.rows[index][self.column]
        except Exception as error:  # the library raises many types for damaged shards
            raise BrokenImageError(f"row cannot be read ({type(error).__name__})") from error
        if isinstance(value, dict) and value.get("bytes"):
            return bytes(value["bytes"])
        if isinstance(value, dict) and value.get("path"):
            return read_file(Path(value["path"]))
        if not hasattr(value, "save"):
            raise BrokenImageError("row without an image")
        buffer = io.BytesIO()
        value.save(buffer, format="PNG")
        return buffer.getvalue()


def _labels(rows: Any, column: str | None) -> tuple[Labels | None, tuple[str, ...]]:
    if column is None:
        return None, ()
    names = tuple(getattr(rows.features[column], "names", None) or ())
    values = [-1 if value is None else value for value in rows[column]]
    return encode_labels(np.asarray(values), names)


def open_hub(options: str) -> HubSource:
    """Load ``NAME[,split=train][,config=NAME]`` from the Hub or the library's cache.

    Raises:
        UserError: The library is missing, the dataset cannot be loaded, or it has no image column.
    """
    name, _, rest = options.partition(",")
    parsed = parse_options(rest, "hub", {"split": True, "config": True})
    if not name:
        raise UserError("hub: must be followed by the name of a dataset, as in hub:mnist")
    require_extra("datasets", "hub:", "'growgan[hub]'")
    import datasets

    split = parsed.get("split", "train")
    try:
        rows = datasets.load_dataset(name, parsed.get("config"), split=split)
    except Exception as error:  # the library raises many types: network, name, split, script
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"hub dataset '{name}' (split {split}) cannot be loaded: {reason}"
        ) from error
    column = _column(rows.features, "Image")
    if column is None:
        columns = ", ".join(rows.features)
        raise UserError(f"hub dataset '{name}' has no image column; its columns are: {columns}")
    rows = rows.cast_column(column, datasets.Image(decode=False))
    label = _column(rows.features, "ClassLabel") or _named_label(rows.features)
    location = f"hub:{name},split={split}"
    return HubSource(name.rsplit("/", 1)[-1], location, rows, column, label)


def _column(features: Any, kind: str) -> str | None:
    return next((key for key in features if type(features[key]).__name__ == kind), None)


def _named_label(features: Any) -> str | None:
    return next((key for key in ("label", "labels") if key in features), None)
