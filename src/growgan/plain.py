"""JSON that may come from a stranger, and lines of it that say whether they are whole."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from growgan.errors import UserError

SUM = re.compile(rb', "(chain|crc)": (\d{1,10})}$')  # at the end of a line: its checksum


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


def to_line(event: Mapping[str, Any], before: int = 0) -> bytes:
    """Return ``event`` as one line of JSON that ends with a checksum, its link in a chain.

    It covers what is before it in the line, and the checksum ``before`` it, of the last line.
    """
    text = json.dumps(event, allow_nan=False).encode()
    return text[:-1] + b', "chain": %d}\n' % zlib.crc32(text, before)


def from_line(line: bytes, before: int = 0) -> dict[str, Any]:
    """Return the object of a line; raise ValueError for one that is damaged, or no object.

    Lines of earlier versions end with a checksum of their own ("crc"), or with none.
    """
    found = SUM.search(line)
    if found:
        text, chained = line[: found.start()] + b"}", found[1] == b"chain"
        if zlib.crc32(text, before if chained else 0) != int(found[2]):
            raise ValueError("its checksum is another" + ", or a line is missing" * chained)
    event = parse(line)
    if not isinstance(event, dict):
        raise ValueError("it is no object")
    for key in ("chain", "crc"):
        event.pop(key, None)
    return event


def last_sum(lines: Sequence[bytes]) -> int:
    """Return the checksum of the last of ``lines`` that ends with one, 0 if none does."""
    return next((int(found[2]) for line in lines[::-1] if (found := SUM.search(line))), 0)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_of(path: Path) -> Path:
    """Return where the copy of a file of lines is kept, if one is."""
    return path.with_name(f".{path.name}.copy")


def read_lines(path: Path, *, strict: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of lines; a torn last line is passed over.

    A line that is damaged or missing is read from the file's copy, if there is one.

    Raises:
        UserError: if ``strict``, a line before the last is damaged in both, and it is named; or
            file and copy go on differently.
    """
    return (event for _, event in whole_lines(path, strict=strict))


def whole_lines(path: Path, *, strict: bool = True) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of :func:`read_lines` as they are written, each with its object."""
    both = [
        file.read_bytes().split(b"\n") if file.is_file() else [] for file in (path, copy_of(path))
    ]
    before = 0
    for number, lines in enumerate(zip_longest(*both, fillvalue=b""), 1):
        whole, problems = _whole(lines, before)
        if len(whole) > 1:
            raise UserError(
                f"'{path}' and its copy '{copy_of(path).name}' differ from line {number} on; "
                "remove the one that is of another run"
            )
        for line, event in whole.items():
            before = last_sum([line]) or before
            yield line, event
        if strict and problems and not whole and any(_left(text, number) for text in both):
            raise UserError(f"'{path}' is damaged in line {number}: {problems[0]}")


def _whole(lines: Iterable[bytes], before: int) -> tuple[dict[bytes, dict[str, Any]], list[str]]:
    """Return the objects of those ``lines`` that are whole, and what is wrong with the others."""
    whole, problems = {}, []
    for line in filter(bytes.strip, lines):
        try:
            whole[line] = from_line(line, before)
        except ValueError as error:
            problems.append(str(error))
    return whole, problems


def _left(lines: Sequence[bytes], number: int) -> bool:
    """Return whether anything follows line ``number``."""
    return any(line.strip() for line in lines[number:])
