"""The stack machine for pickles: what it builds equals what pickle builds, and nothing a file says can hurt."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.plain_pickle import PickleError, RefusedName, Text, load_plain
from app.plain_values import Array

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 2**31 - 1), inner, max_size=4)
    ),
    max_leaves=20,
)


def _decoded(value: Any) -> Any:
    if isinstance(value, Text):
        return value.decode()
    if isinstance(value, list | tuple):
        return type(value)(_decoded(item) for item in value)
    return {key: _decoded(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(_plain, st.integers(0, 5))
def test_it_builds_what_pickle_builds(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    assert _decoded(load_plain(data)[0]) == value
    assert load_plain(b"xyz" + data, start=3)[1] == len(data) + 3


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["b1", "u1", "<i4", ">i8", "<f4", ">f8", "<f2"])
def test_arrays_come_back_whatever_type_and_order(protocol: int, kind: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(kind)
    for given_array in (array, array.T, array[:, :1], array[0, 0]):
        read = load_plain(pickle.dumps(given_array, protocol=protocol))[0]
        values = read.values if isinstance(read, Array) else read
        assert np.array_equal(values, given_array)


# The first ends a process that lets np.ndarray be called; with known addresses it runs code.
ATTACKS = {
    "ndarray called": b"cnumpy\nndarray\n((I8\ntcnumpy\ndtype\n(S'i8'\nI00\nI01\ntRI4096\ntR.",
    "far memo index": b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "text memo index": b"Np99999999999999999\n.",
    "own functions set": b"c_codecs\nencode\n}X\x01\x00\x00\x00aNsb.",
    "bytes of a length": b"c__builtin__\nbytearray\n(I9999999999\ntR.",
    "bytes announced": b"\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "text announced": b"\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "long announced": b"\x8b" + struct.pack("<I", 2**31 - 1) + b"x.",
    "digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a shape beyond its bytes": pickle.dumps(np.zeros(2, np.uint8), 2).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
    "empty": b"",
    "pop of nothing": b"0.",
    "mark of nothing": b"t.",
    "persistent id": b"NQ.",
    "extension": b"\x82\x01.",
    "instance": b"(ios\nsystem\n.",
    "new object": b"cbuiltins\nobject\n)\x81.",
    "buffers": b"\x97.",
    "a list that is none": b"NNa.",
    "odd items": b"}(Nu.",
    "float key": b"}F1.5\nNs.",
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=list(ATTACKS))
def test_attacks_are_one_clear_error_in_little_memory(data: bytes) -> None:
    tracemalloc.start()
    if data in (ATTACKS["far memo index"], ATTACKS["text memo index"]):  # harmless here: an entry of a dict
        assert load_plain(data)[0] is None
    else:
        with pytest.raises(PickleError):
            load_plain(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * len(data) + (8 << 20)


@pytest.mark.parametrize(
    "unit", [b"]", b"(", b"}", b"N2", b"]q\x00h\x00", b"K\x01", b"J\xff\xff\xff\x00", b")\x85", b"\x8c\x00"]
)
def test_memory_stays_within_twice_the_file_and_64_mib(unit: bytes) -> None:
    program = f"""
import resource, sys
from app.plain_pickle import PickleError, load_plain
data = {unit!r} * (3_000_000 // {len(unit)}) + b"."
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_plain(data)
except PickleError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 64 + 6


def test_names_are_refused_by_name_before_anything_happens() -> None:
    for data in (b"cos\nsystem\n(S'true'\ntR.", b"\x8c\x02os\x8c\x06system\x93."):
        with pytest.raises(RefusedName, match=r"^os\.system$"):
            load_plain(data)


def test_a_million_opcodes_take_seconds() -> None:
    started = time.monotonic()
    load_plain(b"(" + b"\x88" * 1_000_000 + b"l.")
    assert time.monotonic() - started < 20  # a bound against quadratic time, not a claim of speed
