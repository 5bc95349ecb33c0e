"""Damaged and hostile files end in a clear error, never in a crash, a hang or a traceback."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import TARGETS, seeds, survives
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = sorted(TARGETS)
QUICK, LONG = 400, 12_000  # cases of each target
SLOW = {"archive": 10, "image": 2, "ledger": 4}  # so many times fewer


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A valid file with bytes changed, cut, repeated or put in; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(seeds(name))))
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
def garbled(draw: st.DrawFn, name: str) -> bytes:
    """JSON lines in which values have been replaced by values of any kind."""
    strange = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=5),
        st.just([]),
        st.just({}),
        st.just(10**400),
    )
    lines = [json.loads(line) for line in seeds(name)[0].decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(lines))
        while isinstance(place, dict | list) and place:
            key = draw(
                st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
            )
            if not isinstance(place[key], dict | list) or draw(st.booleans()):
                place[key] = draw(strange)
                break
            place = place[key]
    return "\n".join(json.dumps(line) for line in lines).encode() + b"\n"


def cases(name: str, most: int) -> settings:
    return settings(
        max_examples=max(20, most // SLOW.get(name, 1)),
        deadline=10_000,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


def run(name: str, most: int) -> None:
    @cases(name, most)
    @given(damaged(name))
    def each(data: bytes) -> None:
        survives(TARGETS[name], data)

    each()
    if name in ("spec", "ledger"):

        @cases(name, most)
        @given(garbled(name))
        def every(data: bytes) -> None:
            survives(TARGETS[name], data)

        every()


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_end_in_a_clear_error(name: str) -> None:
    run(name, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(name: str) -> None:
    run(name, LONG)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_files_found_by_coverage(name: str) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install 'growgan[fuzz]'")
    count = LONG // SLOW.get(name, 1)
    command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), name, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = re.findall(r"^#(\d+)\s+DONE", done.stderr, re.MULTILINE)
    assert ran and int(ran[-1]) >= count


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("spec", b"[" * 100_000),
        ("spec", b'{"generator": ' * 50_000),
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
    ],
)  # fmt: skip
def test_known_tricks_do_not_work(name: str, data: bytes) -> None:
    survives(TARGETS[name], data)
