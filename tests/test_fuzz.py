"""Damaged and hostile files lead to a clear error, never to a crash, a hang or a traceback."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import re
import subprocess
import sys
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import (
    CLEAR,
    KINDS,
    TARGETS,
    G,
    as_json,
    encoded_as,
    npz_bytes,
    pixels,
    survives,
    valid_files,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growgan.data.npz import CLASS_KEYS, IMAGE_KEYS, LABEL_KEYS
from growgan.nets.blocks import BLOCKS
from growgan.nets.ends import ENDS
from growgan.nets.norms import NORMS

BytesStrategy = st.SearchStrategy[bytes]
NAMES = sorted(TARGETS)
QUICK_CASES, SLOW_CASES = 400, 8_000  # cases per target
# Slow targets get fewer cases, and fast ones get more.
CASE_MULTIPLIERS = {"image": 4, "manifest": 1 / 2, "state": 1 / 2, "archive": 1 / 2}
CASE_MULTIPLIERS |= {"ledger": 1 / 4, "data_json": 1 / 4}
JSON_TARGETS = ("spec", "config", "ledger", "manifest", "state", "data_json", "ensemble", "export")
STRANGE_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 9),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([entry.name for entry in (*BLOCKS, *NORMS, *ENDS)]),
    st.sampled_from([[], {}, [[]], [1, 2], [["a", 3]], 8192, -1, 10**400, "../../x", "\x1b"]),
).map(deepcopy)


def num_cases(name: str, base: int) -> int:
    """Return how many cases of a target to try."""
    return int(base * CASE_MULTIPLIERS.get(name, 1))


@st.composite
def damaged(draw: st.DrawFn, valid: tuple[bytes, ...]) -> bytes:
    """A valid file with bytes changed, removed, repeated or inserted; or arbitrary bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.integers(0, 4))
        if kind == 0 and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == 2:
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == 3:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            data[at : at + 4] = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"]))
    return bytes(data)


@st.composite
def garbled(draw: st.DrawFn, valid: bytes) -> bytes:
    """JSON lines in which values are removed, or replaced by arbitrary values."""
    lines = [json.loads(line) for line in valid.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(lines))
        while isinstance(node, dict | list) and node:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = draw(st.sampled_from(keys))
            if not isinstance(node[key], dict | list) or draw(st.integers(0, 7)) == 0:
                if draw(st.integers(0, 7)) == 0:
                    del node[key]
                else:
                    node[key] = draw(STRANGE_VALUES)
                break
            node = node[key]
    return b"".join(as_json(line) + b"\n" for line in lines)


PIXEL_DTYPES, LABEL_DTYPES = ["u1"] * 6 + ["f4", "i8", "?"], ["i8", "u1", "f4", "U2", "S3", "?"]
UNUSUAL_DTYPES = "i1 u2 i4 u8 f2 f8 c8 S0 V3 V0 M8[s] m8[s] O S2,u1".split()


@st.composite
def an_array(draw: st.DrawFn, axes: int, *, odd: bool) -> np.ndarray[Any, Any]:
    """An array with ``axes`` axes and a usual dtype, or any array if ``odd``. Mostly two images."""
    kinds = PIXEL_DTYPES if axes > 1 else LABEL_DTYPES
    kind = np.dtype(draw(st.sampled_from(kinds + UNUSUAL_DTYPES if odd else kinds)))
    axes = draw(st.integers(0, 5)) if odd else axes
    shape = [draw(st.sampled_from((2, 2, 8, 3, 1, 0, 70)[: 7 if odd else 4])) for _ in range(axes)]
    shape = [2, *shape[1:3], *(n % 9 for n in shape[3:])] if axes and not odd else shape[:4]
    if kind.kind == "O":
        return np.full(shape[:2], None, dtype=object)
    pattern = draw(st.binary(min_size=8, max_size=40))
    size = max(1, int(np.prod(shape)) * kind.itemsize)
    return np.ndarray(shape, kind, pattern * (size // len(pattern) + 1))


@st.composite
def an_entry(draw: st.DrawFn, axes: int) -> bytes:
    """An entry of an npz file: a usual, unusual or damaged array, or arbitrary bytes."""
    kind = draw(st.integers(0, 9))
    if kind < 8:
        return _npy(draw(an_array(axes, odd=kind > 5)))
    return draw(damaged((_npy(pixels()),)) if kind == 8 else st.binary(max_size=9))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about dtypes that only NumPy reads
        np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


@st.composite
def arrays(draw: st.DrawFn, groups: dict[tuple[str, ...], int]) -> bytes:
    """A valid zip file of arrays, under up to two names of each group."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((0, 8)))) as archive:
        for names, axes in groups.items():
            min_size = draw(st.sampled_from((1, 1, 1, 0)))
            chosen = st.lists(st.sampled_from(names), min_size=min_size, max_size=2, unique=True)
            for name in draw(chosen):
                suffix = draw(st.sampled_from((".npy",) * 7 + ("",)))
                archive.writestr(name + suffix, draw(an_entry(axes)))
    return file.getvalue()


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """A valid zip file of images and other files under arbitrary names."""
    file, images = io.BytesIO(), tuple(encoded_as(kind, pixels()[0]) for kind in KINDS)
    folder = st.sampled_from(
        ("", "a/", "b/", "../", "/", "a/../", "c:/", "__MACOSX/", "\x1b/", ".")
    )
    suffix = st.sampled_from((".png", ".png", ".jpg", ".WEBP", ".tga", "", ".txt", "/"))
    name = st.builds("{}{}{}".format, folder, st.text(max_size=3), suffix)
    content = st.one_of(st.sampled_from(images), damaged(images), st.just(bytes(1 << 12)))
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about duplicate names
        for entry_name in draw(st.lists(name, max_size=6)):
            entry = zipfile.ZipInfo(entry_name)
            entry.compress_type = draw(st.sampled_from((0, 8, 8, 12, 14)))
            archive.writestr(entry, draw(content))
            entry.flag_bits |= draw(st.sampled_from((0, 0, 0, 1)))  # claims to be encrypted
            size_error = draw(st.sampled_from((0, 0, 0, 0, 1, -1, 1 << 31)))
            entry.file_size = max(0, entry.file_size + size_error)
    return file.getvalue()


def mostly(common: BytesStrategy, rare: BytesStrategy) -> BytesStrategy:
    """Three in four cases of the first strategy. ``st.one_of`` removes duplicates."""
    return st.integers(0, 3).flatmap(lambda number: common if number else rare)


def cases_of(name: str, folder: Path) -> BytesStrategy:
    """Cases for a target: files with damaged bytes, and valid files with strange content."""
    valid = valid_files(name, folder)
    bytewise = damaged(valid)
    if name in JSON_TARGETS:
        return mostly(garbled(valid[-1]), bytewise)
    if name in ("idx", "labels"):  # damage after packing is found by a checksum
        return mostly(bytewise, damaged(valid[:1]).map(gzip.compress))
    strategies = {
        "npz": arrays({IMAGE_KEYS: 3, LABEL_KEYS: 1, CLASS_KEYS: 1}),
        "source_images": arrays({("source_images",): 4, ("labels",): 1}),
        "archive": entries(),
    }
    return mostly(strategies[name], bytewise) if name in strategies else bytewise


def try_cases(name: str, base: int, folder: Path, *, reproducible: bool) -> int:
    """Try cases of a target, the same ones each time if ``reproducible``; return how many."""
    tried = 0

    @settings(
        max_examples=num_cases(name, base),
        deadline=10_000,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=reproducible,
    )
    @given(cases_of(name, folder))
    def try_case(data: bytes) -> None:
        nonlocal tried
        tried += 1
        survives(TARGETS[name], data, folder)

    try_case()
    return tried


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    for data in valid_files(name, tmp_path):
        TARGETS[name](data, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_lead_to_a_clear_error(name: str, tmp_path: Path) -> None:
    assert try_cases(name, QUICK_CASES, tmp_path, reproducible=True) >= num_cases(name, QUICK_CASES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    assert try_cases(name, SLOW_CASES, tmp_path, reproducible=False) >= num_cases(name, SLOW_CASES)


def test_the_number_of_cases_is_as_documented() -> None:
    """Each of the tests above asserts that it tried its part of them."""
    assert sum(num_cases(name, QUICK_CASES) for name in NAMES) >= 5_000
    assert sum(num_cases(name, SLOW_CASES) for name in NAMES) >= 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_found_by_coverage(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'growgan[fuzz]'")
    count, program = num_cases(name, SLOW_CASES), Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, str(program), name, str(count), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    num_runs = re.findall(r"^#(\d+)\s+DONE", process.stderr, re.MULTILINE)
    assert num_runs and int(num_runs[-1]) >= count


def test_no_file_is_left_outside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for name in NAMES:
        for data in valid_files(name, tmp_path / "inside" / name):
            TARGETS[name](data, tmp_path / "inside" / name)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("spec", b"[" * 100_000),
        ("spec", b'{"generator": ' * 50_000),
        ("export", as_json({"spec": {**G.to_json(), "latent_dim": 0}})),
        ("export", as_json({"spec": {**G.to_json(), "invertible_map_blocks": 2}})),
        ("config", b"[" * 20_000),
        ("config", b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + b"".join(
            b"%c: &%c [*%c, *%c]\n" % (104 + i, 104 + i, 103 + i if i else 99, 103 + i if i else 99)
            for i in range(18)
        )),
        ("config", b"seed: !!python/object/apply:os.system ['true']"),
        ("ledger", b"[" * 100_000),
        ("ledger", b'{"event": "candidate"}\n'),
        ("ledger", b"\xff\xfe\n"),
        ("idx", b"\0\0\x08\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("npz", npz_bytes(images=pixels(), labels=np.array(3))),
        ("source_images", npz_bytes(source_images=pixels()[..., None], labels=np.array([7.5]))),
        ("data_json", b'{"classes": 7}'),
        ("ensemble", b"{}"),
    ],
)  # fmt: skip
def test_known_attacks_lead_to_a_clear_error(name: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CLEAR):
        TARGETS[name](data, tmp_path)
