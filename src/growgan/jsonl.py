"""JSON from untrusted files, and JSON lines whose checksums reveal damaged or missing lines."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from growgan.errors import UserError

CHECKSUM = re.compile(rb', "chain": (\d{1,10})}$')  # at the end of a line
LEDGER_FORMAT = 1  # version of the events in a run's ledger.jsonl


def parse_json(data: bytes | str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: The text is not valid JSON, or is nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def validate_id(value: object) -> str:
    """Return ``value`` if it is a short word, which is safe as the name of a folder.

    Raises:
        ValueError: It is anything else.
    """
    if not re.fullmatch(r"\w{1,20}", str(value)):
        raise ValueError(f"an id must be a word of at most 20 characters, but got {value!r}")
    return str(value)


def check_ledger_format(run_dir: Path, start_event: Mapping[str, Any]) -> None:
    """Check that the run in ``run_dir`` was written in the current format.

    Raises:
        UserError: It was not.
    """
    ledger_format = start_event.get("format")
    if ledger_format != LEDGER_FORMAT:
        raise UserError(
            f"'{run_dir}' was written by another version of growgan: its ledger has format "
            f"{ledger_format!r}, and this version reads format {LEDGER_FORMAT}; "
            "start a new run with another --out"
        )


def encode_line(record: Mapping[str, Any], previous_checksum: int = 0) -> bytes:
    """Return ``record`` as a line of JSON that ends with a checksum.

    The checksum covers the line and ``previous_checksum``, that of the line before, so that the
    lines form a chain.
    """
    text = json.dumps(record, allow_nan=False).encode()
    return text[:-1] + b', "chain": %d}\n' % zlib.crc32(text, previous_checksum)


def decode_line(line: bytes, previous_checksum: int = 0) -> dict[str, Any]:
    """Return the record of a line. A line without a checksum is not verified.

    Raises:
        ValueError: The checksum does not match, or the line is not a JSON object.
    """
    match = CHECKSUM.search(line)
    if match:
        text = line[: match.start()] + b"}"
        if zlib.crc32(text, previous_checksum) != int(match[1]):
            raise ValueError("its checksum does not match, or the line before it is missing")
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError("it is not a JSON object")
    record.pop("chain", None)
    return record


def last_checksum(lines: Sequence[bytes]) -> int:
    """Return the checksum of the last line that has one, or 0."""
    return next((int(match[1]) for line in lines[::-1] if (match := CHECKSUM.search(line))), 0)


def backup_path(path: Path) -> Path:
    """Return the path of the backup copy of a file of lines. The copy may not exist."""
    return path.with_name(f".{path.name}.copy")


def read_records(path: Path, *, strict: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines.

    An incomplete last line is skipped: a crash may leave one. A line that is damaged or missing is
    read from the backup copy, if there is one.

    Raises:
        UserError: With ``strict``, a line before the last is damaged in both files. In any case,
            the two files have different valid lines.
    """
    return (record for _, record in read_verified_lines(path, strict=strict))


def read_verified_lines(
    path: Path, *, strict: bool = True
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of :func:`read_records` as bytes, each with its record."""
    both_files = [
        file.read_bytes().split(b"\n") if file.is_file() else []
        for file in (path, backup_path(path))
    ]
    previous_checksum = 0
    for number, versions in enumerate(zip_longest(*both_files, fillvalue=b""), 1):
        valid, problems = _decode_versions(versions, previous_checksum)
        if len(valid) > 1:
            raise UserError(
                f"'{path}' and its copy '{backup_path(path).name}' differ from line {number} on; "
                "remove the one that belongs to another run"
            )
        for line, record in valid.items():
            previous_checksum = last_checksum([line]) or previous_checksum
            yield line, record
        is_last = not any(_has_lines_after(lines, number) for lines in both_files)
        if strict and problems and not valid and not is_last:
            raise UserError(f"'{path}' is damaged in line {number}: {problems[0]}")


def _decode_versions(
    versions: Iterable[bytes], previous_checksum: int
) -> tuple[dict[bytes, dict[str, Any]], list[str]]:
    """Return the records of the valid versions of a line, and the problems of the others."""
    valid, problems = {}, []
    for line in filter(bytes.strip, versions):
        try:
            valid[line] = decode_line(line, previous_checksum)
        except ValueError as error:
            problems.append(str(error))
    return valid, problems


def _has_lines_after(lines: Sequence[bytes], number: int) -> bool:
    return any(line.strip() for line in lines[number:])
