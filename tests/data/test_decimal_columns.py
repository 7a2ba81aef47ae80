"""The fast way through an index's lines against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.decimal_columns import parse_columns
from app.data.index import parse_lines
from app.data.recordio import RecordError


@st.composite
def columns(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Lines of numbers of one length each, with leading zeros or without."""
    widths = draw(st.integers(1, 18)), draw(st.integers(1, 18))
    numbers = [st.integers(0, 10**width - 1).map(lambda n, width=width: f"{n:0{width}d}") for width in widths]  # type: ignore[misc]
    return draw(st.lists(st.tuples(*numbers), min_size=1, max_size=40))


@given(columns())
def test_columns_are_what_python_reads(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{key}\t{start}\n" for key, start in lines).encode()
    wanted = [[int(key), int(start)] for key, start in lines]
    found = parse_columns(text)
    if len(text) // len(lines) >= 9:
        assert found is not None
        assert found.dtype == np.int64
        assert found.tolist() == wanted
    else:
        assert found is None
    assert parse_lines("i", text).tolist() == wanted


@given(columns(), st.integers(0, 10**6), st.integers(0, 255))
def test_another_byte_anywhere_changes_neither_result_nor_error(
    lines: list[tuple[str, str]], place: int, byte: int
) -> None:
    text = bytearray("".join(f"{key}\t{start}\n" for key, start in lines), "ascii")
    text[place % len(text)] = byte
    found = parse_columns(bytes(text))
    if found is None:
        return
    # Taken for columns, it is nothing that the slow way reads otherwise.
    assert found.tolist() == [[int(part) for part in line.split(b"\t")] for line in bytes(text).split(b"\n")[:-1]]
    assert all(part.isdigit() for line in bytes(text).split(b"\n")[:-1] for part in line.split(b"\t"))


@pytest.mark.parametrize(
    "text", [b"1\t2\n", b"12345678\t1234567x\n", b"1234567 \t12345678\n", b"12345678\t123456789", b""]
)
def test_what_is_no_such_text_is_left_to_the_slow_way(text: bytes) -> None:
    assert parse_columns(text) is None


def test_many_lines_and_a_bad_digit_in_the_last_block() -> None:
    starts = np.arange(50_000, dtype=np.int64) * 7600 + 10**11
    text = b"".join(b"%08d\t%d\n" % pair for pair in enumerate(starts.tolist()))
    found = parse_columns(text)
    assert found is not None
    assert (found[:, 1] == starts).all()
    assert (found[:, 0] == np.arange(50_000)).all()
    with pytest.raises(RecordError, match="not an index of lines"):
        parse_lines("i", text[:-2] + b"x\n")
