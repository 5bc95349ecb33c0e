"""JSON that may come from a stranger, and lines of it that say whether they are whole."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growgan.errors import UserError

SUM = re.compile(rb', "crc": (\d{1,10})}$')


def parse(data: bytes | str) -> Any:
    """Return the value of a JSON text; raise ValueError for whatever is none, or nests too deep."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def folder_name(value: object) -> str:
    """Return an id that may name a folder, a short word; raise ValueError for anything else."""
    if not re.fullmatch(r"\w{1,20}", str(value)):
        raise ValueError(f"an id is a short word, not {value!r}")
    return str(value)


def to_line(event: Mapping[str, Any]) -> bytes:
    """Return ``event`` as one line of JSON that ends with the checksum of what is before it."""
    text = json.dumps(event, allow_nan=False).encode()
    return text[:-1] + b', "crc": %d}\n' % zlib.crc32(text)


def from_line(line: bytes) -> dict[str, Any]:
    """Return the object of a line; raise ValueError for one that is damaged, or no object."""
    found = SUM.search(line)
    if found and zlib.crc32(line[: found.start()] + b"}") != int(found[1]):
        raise ValueError("its checksum is another")
    event = parse(line)
    if not isinstance(event, dict):
        raise ValueError("it is no object")
    event.pop("crc", None)
    return event


def copy_of(path: Path) -> Path:
    """Return where the copy of a file of lines is kept, if one is."""
    return path.with_name(f".{path.name}.copy")


def read_lines(path: Path, *, strict: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines; a torn last line is passed over.

    A line that is damaged is read from the file's copy, if there is one.

    Raises:
        UserError: if ``strict``, a line before the last is damaged in both; it is named.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    copies: list[bytes] | None = None
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            yield from_line(line)
        except ValueError as error:
            if copies is None:
                copy = copy_of(path)
                copies = copy.read_bytes().split(b"\n") if copy.is_file() else []
            try:
                yield from_line(copies[number])
            except (IndexError, ValueError):
                if strict and any(rest.strip() for rest in lines[number + 1 :]):
                    raise UserError(f"'{path}' is damaged in line {number + 1}: {error}") from error
