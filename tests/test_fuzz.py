"""Damaged and hostile files end in a clear error, never in a crash, a hang or a traceback."""

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
    kept,
    npz_bytes,
    pixels,
    survives,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growgan.data.npz import CLASS_KEYS, IMAGE_KEYS, LABEL_KEYS
from growgan.nets.blocks import BLOCKS
from growgan.nets.forms import FORMS
from growgan.nets.norms import NORMS

Bytes = st.SearchStrategy[bytes]
NAMES = sorted(TARGETS)
QUICK, LONG = 400, 8_000  # cases of a target
# Those that take longer have fewer, those that take no time more.
TIMES = {"image": 4, "manifest": 1 / 2, "state": 1 / 2, "archive": 1 / 2}
TIMES |= {"ledger": 1 / 4, "facts": 1 / 4}
JSON = ("spec", "config", "ledger", "manifest", "state", "facts", "pool", "export")
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 9),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([each.name for each in (*BLOCKS, *NORMS, *FORMS)]),
    st.sampled_from([[], {}, [[]], [1, 2], [["a", 3]], 8192, -1, 10**400, "../../x", "\x1b"]),
).map(deepcopy)


def amount(name: str, most: int) -> int:
    """Return how many cases of a target are tried."""
    return int(most * TIMES.get(name, 1))


@st.composite
def damaged(draw: st.DrawFn, sound: tuple[bytes, ...]) -> bytes:
    """A valid file with bytes changed, cut, repeated or put in; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(sound)))
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
def garbled(draw: st.DrawFn, sound: bytes) -> bytes:
    """JSON lines in which values have been taken out, or replaced by values of any kind."""
    lines = [json.loads(line) for line in sound.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(lines))
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 7)) == 0:
                if draw(st.integers(0, 7)) == 0:
                    del place[key]
                else:
                    place[key] = draw(STRANGE)
                break
            place = place[key]
    return b"".join(as_json(line) + b"\n" for line in lines)


PIXELS, NUMBERS = ["u1"] * 6 + ["f4", "i8", "?"], ["i8", "u1", "f4", "U2", "S3", "?"]
ODD = "i1 u2 i4 u8 f2 f8 c8 S0 V3 V0 M8[s] m8[s] O S2,u1".split()


@st.composite
def an_array(draw: st.DrawFn, axes: int, *, odd: bool) -> np.ndarray[Any, Any]:
    """An array of so many axes and a usual type, or of any if ``odd``; of two images mostly."""
    kinds = PIXELS if axes > 1 else NUMBERS
    kind = np.dtype(draw(st.sampled_from(kinds + ODD if odd else kinds)))
    axes = draw(st.integers(0, 5)) if odd else axes
    shape = [draw(st.sampled_from((2, 2, 8, 3, 1, 0, 70)[: 7 if odd else 4])) for _ in range(axes)]
    shape = [2, *shape[1:3], *(n % 9 for n in shape[3:])] if axes and not odd else shape[:4]
    if kind.kind == "O":
        return np.full(shape[:2], None, dtype=object)
    few = draw(st.binary(min_size=8, max_size=40))
    size = max(1, int(np.prod(shape)) * kind.itemsize)
    return np.ndarray(shape, kind, few * (size // len(few) + 1))


@st.composite
def an_entry(draw: st.DrawFn, axes: int) -> bytes:
    """What a file of arrays has under a name: a usual array, an odd or damaged one, or none."""
    kind = draw(st.integers(0, 9))
    if kind < 8:
        return _npy(draw(an_array(axes, odd=kind > 5)))
    return draw(damaged((_npy(pixels()),)) if kind == 8 else st.binary(max_size=9))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of types that only numpy reads
        np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


@st.composite
def arrays(draw: st.DrawFn, groups: dict[tuple[str, ...], int]) -> bytes:
    """An npz file, whole as a zip, of entries under one or two names of each group, or none."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from((0, 8)))) as packed:
        for names, axes in groups.items():
            least = draw(st.sampled_from((1, 1, 1, 0)))
            some = st.lists(st.sampled_from(names), min_size=least, max_size=2, unique=True)
            for name in draw(some):
                ending = draw(st.sampled_from((".npy",) * 7 + ("",)))
                packed.writestr(name + ending, draw(an_entry(axes)))
    return file.getvalue()


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """A zip, whole as such, of images and other things under any names."""
    file, images = io.BytesIO(), tuple(encoded_as(kind, pixels()[0]) for kind in KINDS)
    folder = st.sampled_from(
        ("", "a/", "b/", "../", "/", "a/../", "c:/", "__MACOSX/", "\x1b/", ".")
    )
    ending = st.sampled_from((".png", ".png", ".jpg", ".WEBP", ".tga", "", ".txt", "/"))
    name = st.builds("{}{}{}".format, folder, st.text(max_size=3), ending)
    content = st.one_of(st.sampled_from(images), damaged(images), st.just(bytes(1 << 12)))
    with zipfile.ZipFile(file, "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for each in draw(st.lists(name, max_size=6)):
            entry = zipfile.ZipInfo(each)
            entry.compress_type = draw(st.sampled_from((0, 8, 8, 12, 14)))
            packed.writestr(entry, draw(content))
            entry.flag_bits |= draw(st.sampled_from((0, 0, 0, 1)))  # says that it is encrypted
            more = draw(st.sampled_from((0, 0, 0, 0, 1, -1, 1 << 31)))
            entry.file_size = max(0, entry.file_size + more)
    return file.getvalue()


def mostly(often: Bytes, seldom: Bytes) -> Bytes:
    """Three in four of the first; ``st.one_of`` takes the same thing only once."""
    return st.integers(0, 3).flatmap(lambda number: often if number else seldom)


def cases_of(name: str, folder: Path) -> Bytes:
    """What is tried on a target: files damaged in bytes, and such as are whole but strange."""
    sound = kept(name, folder)
    bytewise = damaged(sound)
    if name in JSON:
        return mostly(garbled(sound[-1]), bytewise)
    if name in ("idx", "labels"):  # a checksum finds what is damaged after it was packed
        return mostly(bytewise, damaged(sound[:1]).map(gzip.compress))
    whole = {
        "npz": arrays({IMAGE_KEYS: 3, LABEL_KEYS: 1, CLASS_KEYS: 1}),
        "given": arrays({("given",): 4, ("labels",): 1}),
        "archive": entries(),
    }
    return mostly(whole[name], bytewise) if name in whole else bytewise


def run(name: str, most: int, folder: Path, *, same: bool) -> int:
    """Try so many cases of a target, the ``same`` ones each time or others; return how many."""
    tried = 0

    @settings(
        max_examples=amount(name, most),
        deadline=10_000,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=same,
    )
    @given(cases_of(name, folder))
    def each(data: bytes) -> None:
        nonlocal tried
        tried += 1
        survives(TARGETS[name], data, folder)

    each()
    return tried


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    for data in kept(name, tmp_path):
        TARGETS[name](data, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_end_in_a_clear_error(name: str, tmp_path: Path) -> None:
    assert run(name, QUICK, tmp_path, same=True) >= amount(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    assert run(name, LONG, tmp_path, same=False) >= amount(name, LONG)


def test_cases_are_as_many_as_is_said() -> None:
    """Each of the tests above asserts that it tried its share."""
    assert sum(amount(name, QUICK) for name in NAMES) >= 5_000
    assert sum(amount(name, LONG) for name in NAMES) >= 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_found_by_coverage(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'growgan[fuzz]'")
    count, program = amount(name, LONG), Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, str(program), name, str(count), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = re.findall(r"^#(\d+)\s+DONE", done.stderr, re.MULTILINE)
    assert ran and int(ran[-1]) >= count


def test_nothing_is_left_beside_the_folder_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for name in NAMES:
        for data in kept(name, tmp_path / "own" / name):
            TARGETS[name](data, tmp_path / "own" / name)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("spec", b"[" * 100_000),
        ("spec", b'{"generator": ' * 50_000),
        ("export", as_json({"spec": {**G.to_json(), "latent": 0}})),
        ("export", as_json({"spec": {**G.to_json(), "modifier": 2}})),
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
        ("given", npz_bytes(given=pixels()[..., None], labels=np.array([7.5]))),
        ("facts", b'{"classes": 7}'),
        ("pool", b"{}"),
    ],
)  # fmt: skip
def test_known_tricks_do_not_work(name: str, data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CLEAR):
        TARGETS[name](data, tmp_path)
