"""Lists of labels: read as arrays to the same numbers as line by line, once a node, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.data import label_list
from app.data.build import open_source
from app.data.config import DataConfig
from app.data.label_lines import _parse_line, parse_label_lines
from app.data.label_list import open_labels
from app.data.recordio import RecordError
from app.storage import ObjectInfo
from tests.jobs import ROOT, environment, write_faces

KEYS = st.one_of(
    st.integers(0, 10**20).map(str),
    st.sampled_from(["", "0007", "-3", "+4", " 5", "6 ", "1_0", "x", "٣", '"8"', "9\r"]),
)
LABELS = st.one_of(
    st.integers(0, 2**28).map(str),
    st.sampled_from(
        ["3.0", "4.000000", "5.", ".0", "6.5", "007", "1e3", "nan", "inf", "Infinity", "-1", "+2", " 2", ""]
    ),
    st.sampled_from(["8.0000000000000000000000", "7.0000000000000000000001", "3 ", '"3"', "1_1", "٣", "8\r", "0.0.0"]),
)
PATHS = st.sampled_from(
    ["p/1.jpg", "P.JPG", "p/7", "a.b.c", "", "ü.png", '"a,b.jpg"', "info", "1.0", "x\ty", "x\ry", "ann"]
)
LINES = st.one_of(
    st.tuples(KEYS, LABELS, PATHS).map("\t".join),
    st.tuples(KEYS, PATHS, LABELS).map("\t".join),
    st.tuples(KEYS, LABELS, PATHS).map(",".join),
    st.tuples(KEYS, PATHS, LABELS).map(",".join),
    st.tuples(KEYS, LABELS, PATHS).map(";".join),
    st.tuples(KEYS, PATHS, LABELS).map("; ".join),
    st.tuples(KEYS, LABELS, PATHS).map(" ".join),
    st.tuples(KEYS, PATHS, LABELS).map("  ".join),
    st.tuples(KEYS, LABELS).map("\t".join),
    st.tuples(KEYS, LABELS, LABELS, PATHS).map("\t".join),
    st.sampled_from(["", " ", "\r", "5", "id\tlabel\tpath", "id,path,label", "id;label", "id label path"]),
)


def one_by_one(text: bytes, first: int) -> list[tuple[int, int]] | str:
    """The same without an array: what stands in the list, or the error's words."""
    try:
        lines = text.decode("utf-8", "replace").split("\n")
        pairs = [_parse_line("x", line.removesuffix("\r"), number) for number, line in enumerate(lines, start=first)]
    except RecordError as error:
        return str(error)
    return [pair for pair in pairs if pair is not None]


@given(st.lists(LINES, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from([1, 9]))
@settings(deadline=None, max_examples=400)
def test_arrays_give_what_lines_give_one_by_one(lines: list[str], end: str, last: bool, first: int) -> None:
    text = (end.join(lines) + (end if last else "")).encode()
    found: list[tuple[int, int]] | str
    try:
        keys, labels = parse_label_lines("x", text, first)
        found = list(zip(keys.tolist(), labels.tolist(), strict=True))
    except RecordError as error:
        found = str(error)
    assert found == one_by_one(text, first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 3 my folder/a, b.jpg", (7, 3)),
        ("7 my folder/a.jpg 3", (7, 3)),
        ('7 "my 5.jpg" 3', (7, 3)),
        ("7   3   a.jpg ", (7, 3)),
        ("  7 3", (7, 3)),
        ("7;3;a, b.jpg", (7, 3)),
        ("7;my a.jpg;3", (7, 3)),
        ('7;"a;b.jpg";3', (7, 3)),
        ("7 ; 3 ; a.jpg", (7, 3)),
        ("7,3,my a;b.jpg", (7, 3)),
        ("7\t3\tmy a;b, c.jpg", (7, 3)),
        ("id;label;path", None),
        ("id label path", None),
        ("7;3,5;a.jpg", "expected key, label and path, parted by tabs, commas, semicolons or spaces"),
        ("7 a.jpg", "expected key, label and path"),
        ("7|3|a.jpg", "expected key, label and path"),
    ],
)
def test_columns_are_parted_by_what_stands_behind_the_key(text: str, expected: tuple[int, int] | str | None) -> None:
    if isinstance(expected, str):
        with pytest.raises(RecordError, match=expected):
            parse_label_lines("x", text.encode(), 2)
        return
    keys, labels = parse_label_lines("x", text.encode(), 1)
    assert list(zip(keys.tolist(), labels.tolist(), strict=True)) == ([expected] if expected else [])


@pytest.mark.parametrize(
    "line",
    [
        "{}\t{}\tp/{}.jpg",
        "{}\t{}.000000\tp/{}.jpg",
        "{},p/{}.jpg,{}",
        "{}\t{}",
        "{},{},p/{}.jpg",
        "{};{};p/{}.jpg",
        "{} p/{}.jpg {}",
    ],
)
def test_lists_as_tools_write_them_need_no_look_at_single_lines(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a line was looked at")

    monkeypatch.setattr("app.data.label_lines._parse_line", never)
    numbers = np.arange(0, 3 * 10**7, 99_991)
    text = "\r\n".join(line.format(n, n, n) for n in numbers.tolist()).encode()
    keys, labels = parse_label_lines("x", text, 2)
    assert np.array_equal(keys, numbers)
    assert np.array_equal(labels, numbers)


def test_the_processes_of_a_node_read_a_list_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.lst").write_text("".join(f"{key}\t{key % 7}\tp\n" for key in range(99, -1, -1)))
    (tmp_path / "node").mkdir()
    program = (
        "import sys, numpy as np; from pathlib import Path; from app.data.label_list import open_labels\n"
        "found = open_labels(sys.argv[1], np.arange(90), 'set', folder=Path(sys.argv[2]))\n"
        "print(found.hash, found.num_classes, found.labels.filename)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x.lst"), str(tmp_path / "node")]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) for _ in range(3)
    ]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert len(answers) == 1
    made: list[int] = []
    read = label_list._read_list

    def counted(text: ObjectInfo) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        made.append(1)
        return read(text)

    monkeypatch.setattr(label_list, "_read_list", counted)
    found = open_labels(str(tmp_path / "x.lst"), np.arange(90), "set", folder=tmp_path / "node")
    assert found.hash in answers.pop()
    assert found.labels.tolist() == [key % 7 for key in range(90)]
    assert not made
    other = open_labels(str(tmp_path / "x.lst"), np.arange(5), "another set", folder=tmp_path / "node")
    assert (other.labels.tolist(), other.num_classes, made) == ([0, 1, 2, 3, 4], 5, [1])
    (tmp_path / "x.lst").write_text("".join(f"{key}\t{key % 3}\tp\n" for key in range(99, -1, -1)))
    assert open_labels(str(tmp_path / "x.lst"), np.arange(90), "set", folder=tmp_path / "node").num_classes == 3


def test_an_upload_whose_version_nobody_tells_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = label_list.storage.info
    monkeypatch.setattr(label_list.storage, "info", lambda url: ObjectInfo(url, info(url).size, ""))
    (tmp_path / "node").mkdir()
    for labels in ([0, 1], [1, 0]):
        (tmp_path / "x.lst").write_text("".join(f"{key}\t{label}\tp\n" for key, label in enumerate(labels)))
        found = open_labels(str(tmp_path / "x.lst"), np.arange(2), "set", folder=tmp_path / "node")
        assert found.labels.tolist() == labels


def test_a_file_that_is_no_list_is_not_held_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.lst").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match=r"x\.lst: a line of more than 8 MiB.*no list of lines"):
        open_labels(str(tmp_path / "x.lst"), np.arange(2), "set")
    write_faces(str(tmp_path), classes=2, per_class=2)
    with (tmp_path / "train.idx").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match=r"train\.idx: a line of more than 8 MiB"):
        open_source(DataConfig(url=str(tmp_path)), 0)
