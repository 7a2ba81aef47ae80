"""Recipes, manifests, headers of tensors and lists that are made to take time or memory, or hold what is not data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.checkpoint.manifest import CheckpointError, Manifest, StoredObject
from app.data.dataset import open_dataset
from app.data.label_list import open_labels
from app.data.prepare.alignment import read_landmarks
from app.data.prepare.pair_list import read_pairs
from app.data.prepare.reorder import read_people
from app.data.prepare.source import Source
from app.errors import AppError
from app.evaluate.ijb import load_metadata
from tests.attacks.bounded import read
from tests.attacks.tensor_files import tensor_file
from tests.jobs import write_faces

_WIDE = b"\xf0\x9f\x98\x80"  # one letter beyond 16 bits


def _manifest(**changes: Any) -> bytes:
    plain = {"name": "a", "size": 0, "chunks": [], "rows": None}
    about = {"format": 2, "step": 1, "world_size": 1, "objects": [plain], "meta": {}}
    return json.dumps({**about, **changes}).encode()


def _item(**changes: Any) -> bytes:
    return _manifest(objects=[{"name": "a", "size": 0, "chunks": [], "rows": None, **changes}])


MANIFESTS = {
    "a key twice": _manifest().replace(b'"step": 1', b'"step": 1, "step": 2'),
    "an object twice": _manifest(objects=json.loads(_manifest())["objects"] * 2),
    "digits": _manifest().replace(b'"step": 1', b'"step": ' + b"9" * 5000),
    "beyond float64": _manifest().replace(b'"step": 1', b'"step": 1e999'),
    "NaN": _manifest(step=float("nan")),
    "a negative step": _manifest(step=-1),
    "nested": _manifest().replace(b"{}", b"[" * 100_000),
    "millions of values": _manifest(meta={"a": [[]] * 2_000_000}),
    "many keys": _manifest(meta={f"{number:x}": 0 for number in range(400_000)}),
    "many long keys": _manifest(meta={f"{number:045d}": 0 for number in range(700_000)}),
    "many dicts": _manifest(meta={"a": [{"a": 1.5}] * 200_000}),
    "a long text of one wide letter": _manifest(meta={"a": ""}).replace(b'""', b'"' + b"x" * (39 << 20) + _WIDE + b'"'),
    "a long text of one escaped letter": _manifest(meta={"a": "x" * (39 << 20) + _WIDE.decode()}),
    **{
        f"the name {name!r}": _item(name=name)
        for name in ("/etc/passwd", "..", "../a", "a\\b", "a\0", "a\nb", "", None)
    },
    **{f"the rows {rows!r}": _item(rows=rows) for rows in ([5, 1], [1, 2, 3], "ab", [-1, 1], [1e300, 1])},
    **{f"the size {size!r}": _item(size=size) for size in (-1, 10**30, "x", None)},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none_is_damage(name: str) -> None:
    read("manifest", MANIFESTS[name]).refused(len(MANIFESTS[name]), "DamagedError")


def test_a_manifest_of_half_a_million_chunks_is_read_in_twice_its_size() -> None:
    chunks = tuple(f"{number:064d}" for number in range(560_000))
    data = Manifest(1, 1, (StoredObject("a", len(chunks) << 20, chunks),)).to_json()
    outcome = read("manifest", data)
    outcome.bounded(len(data))
    assert not outcome.error
    with pytest.raises(CheckpointError, match="too large"):
        Manifest(1, 1, (StoredObject("a", len(chunks) << 20, chunks * 2),)).to_json()


def _placed(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}


TENSORS: dict[str, dict[str, Any] | bytes] = {
    "sizes beyond float64": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 64]}}',
    "a negative size": {"a": _placed(shape=[-4, -4])},
    "bytes before the file": {"a": _placed(data_offsets=[-8, 56])},
    "three offsets": {"a": _placed(data_offsets=[0, 64, 64])},
    "sizes beyond int64": {"a": _placed(shape=[0, 2**62, 2**62], data_offsets=[0, 0])},
    "an unknown type": {"a": _placed(dtype="F128")},
    "nested": b"[" * 100_000,
    "no object": b'"a"',
    "millions of lists": b'{"__metadata__": [' + b"[]," * 1_300_000 + b"[]]}",
    "many tensors": {f"{n}": _placed(shape=[0], data_offsets=[0, 0]) for n in range(60_000)},
    "a long text of one wide letter": b'{"__metadata__": "' + b"x" * (3 << 20) + _WIDE + b'", "a": 1}',
    "a header of 30 MB": b'{"__metadata__": "' + b"x" * (30 << 20) + b'"}',
    "the same bytes again and again": {f"{n}": _placed(shape=[2**18], data_offsets=[0, 2**20]) for n in range(5000)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_header_of_tensors_that_is_none_is_damage(name: str) -> None:
    data = tensor_file(TENSORS[name], body=1 << 20 if "again" in name else 64)
    read("tensors", data).refused(len(data), "DamagedError")


TOMLS = {
    "digits in hexadecimal": "[optim]\nlr = 0x" + "f" * 10_000,
    "digits in binary": "[train]\nbatch_size = 0b" + "1" * 900_000,
    "a long key": "[" + "a" * 900_000 + "]\na = 1",
    "a long field": "[train]\n" + "a" * 900_000 + " = 1",
    "tables": "".join(f"[a{number}]\n" for number in range(100_000)),
    "an unknown table": "[trian]\n",
    "not a number": "[optim]\nlr = nan",
    "infinite": "[optim]\nlr = 1e999",
    "an escape sequence": '["\\u001b[2J"]\na = 1',
    "dots of other keys": "\n".join(f"k{number}." + ".".join(["a"] * 250) + " = 1" for number in range(2000)),
    "dots": "\n".join(".".join(["a"] * 250) + f".b{number} = 1" for number in range(1500)),
}


@pytest.mark.parametrize("name", TOMLS)
def test_a_recipe_made_to_take_time_is_refused(name: str) -> None:
    read("toml", TOMLS[name].encode()).refused(len(TOMLS[name]), "RecipeError")


_TWICE = "config.notes = [config.notes, config.notes]\n" * 60
CONFIGURATIONS = {
    "powers": "config.lr = 9**9**9",
    "parentheses": "config.lr = " + "(" * 5000 + "1" + ")" * 5000,
    "a sum": "config.lr = " + "1+" * 100_000 + "1",
    "signs": "config.lr = " + "-" * 100_000 + "1",
    "calls": "config.lr = f" + "()" * 50_000,
    "text times": "config.rec = 'a' * 10**9",
    "a list times": "config.margin_list = [1] * 10**9",
    "a shift": "config.lr = 1 << 10**9",
    "digits in hexadecimal": "config.lr = 0x" + "f" * 200_000,
    "a format": "config.rec = f'{1:999999999}'",
    "a list that doubles": "config.notes = [0]\n" + _TWICE + "config.margin_list = config.notes",
    "copies that double": "config.notes = [0]\n"
    + _TWICE.replace("config.notes,", "list(config.notes),")
    + "config.margin_list = config.notes",
    "dicts that double": "a = {0: 0}\n" + "a = {0: a, 1: a}\n" * 60 + "config.rec = f'{a}'",
    "semicolons": "a;" * 120_000,
    "names": "config.lr = [" + "a," * 120_000 + "a]",
    "names in a text": "a = f'" + "{a}" * 16_000 + "'",
    "as many names as are read": "a;" * 24_000,
    "a program": "__import__('os').system('true')",
    "a default that is called": "def f(epoch, x=__import__('os')):\n    return 1\nconfig.lr_func = f",
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_made_to_take_time_is_refused(name: str) -> None:
    data = f"config = edict()\n{CONFIGURATIONS[name]}\n".encode()
    read("py", data).refused(len(data), "RecipeError")


def _index(url: Path) -> object:
    write_faces(str(url / "faces"), classes=2, per_class=2)
    (url / "faces" / "train.idx").write_bytes((url / "given").read_bytes())
    return open_dataset(str(url / "faces"))


def _pairs(url: Path) -> object:
    (url / "photographs" / "a").mkdir(parents=True)
    (url / "photographs" / "a" / "1.jpg").write_bytes(b"x")
    return read_pairs(str(url / "given"), Source(str(url / "photographs")))


def _people(url: Path) -> object:
    (url / "people.json").write_bytes((url / "given").read_bytes())
    return read_people(str(url))


def _points(url: Path) -> object:
    (url / "given.json").write_bytes((url / "given").read_bytes())
    return read_landmarks(str(url / "given.json"))


def _ijb(url: Path) -> object:
    (url / "meta").mkdir()
    (url / "meta" / "ijbc_face_tid_mid.txt").write_bytes(b"1.jpg 1 1\n2.jpg 2 2\n")
    (url / "meta" / "ijbc_template_pair_label.txt").write_bytes(b"1 2 1\n")
    (url / "meta" / "ijbc_name_5pts_score.txt").write_bytes((url / "given").read_bytes())
    return load_metadata(str(url), "ijbc")


_FACE = b" 1" * 11 + b"\n"
LISTS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "index: before the file": (_index, b"0\t-8\n1\t48\n"),
    "index: beyond the file": (_index, b"0\t0\n1\t9223372036854775800\n"),
    "index: beyond int64": (_index, b"0\t0\n1\t99999999999999999999\n"),
    "index: fractions": (_index, b"0\t0\n1.5\t48\n"),
    "index: lines again and again": (_index, b"0\t0\n" * 2_000_000),
    "index: one line": (_index, b"1" * 2_000_000),
    "labels: beyond float64": (lambda url: open_labels(str(url / "given"), np.array([1]), ""), b"1\t1e999\ta\n"),
    "labels: NaN": (lambda url: open_labels(str(url / "given"), np.array([1]), ""), b"1\tnan\ta\n"),
    "labels: digits": (lambda url: open_labels(str(url / "given"), np.array([1]), ""), b"9" * 5000 + b"\t1\ta\n"),
    "table of points: blanks": (lambda url: read_landmarks(str(url / "given")), b"a" + b" " * 3_000_000 + b"1"),
    "table of points: a long cell": (lambda url: read_landmarks(str(url / "given")), b'"' + b"a" * 200_000 + b'",1'),
    "table of points: infinite": (lambda url: read_landmarks(str(url / "given")), b"a.jpg" + b",1e999" * 10),
    "points: nested": (_points, b'{"a": ' + b"[" * 100_000),
    "points: digits": (_points, b'{"a": [[' + b"9" * 4000 + b",1],[1,1],[1,1],[1,1],[1,1]]}"),
    "points: beyond float64": (_points, b'{"a": [[1e999,1],[1,1],[1,1],[1,1],[1,1]]}'),
    "points: millions of lists": (_points, b'{"a": [' + b"[]," * 2_000_000 + b"[]]}"),
    "pairs: blanks": (_pairs, b"a" + b" " * 3_000_000 + b"1"),
    "pairs: words": (_pairs, b"a " * 9000 + b"1"),
    "pairs: a long cell": (_pairs, b'"' + b"a" * 200_000 + b'" b 1'),
    "pairs: digits that are none": (_pairs, "10 300\na ² ³\n".encode()),
    "pairs: an escape sequence": (_pairs, b"\x1b[2J \x1b[31m 1\n"),
    "people: nested": (_people, b"[" * 100_000),
    "people: millions of lists": (_people, b"[" + b"[]," * 3_000_000 + b"[]]"),
    "people: NaN": (_people, b"[NaN]"),
    "IJB: a path out of its folder": (_ijb, b"../../etc/passwd" + _FACE + b"2.jpg" + _FACE),
    "IJB: no number": (_ijb, b"1.jpg" + _FACE.replace(b"1", b"x", 1) + b"2.jpg" + _FACE),
    "IJB: not UTF-8": (_ijb, b"\xff.jpg x" + _FACE[2:] + b"2.jpg" + _FACE),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_none_is_one_named_error(name: str, tmp_path: Path) -> None:
    reader, data = LISTS[name]
    (tmp_path / "given").write_bytes(data)
    with pytest.raises(AppError) as caught:
        reader(tmp_path)
    assert str(caught.value).isprintable()
    assert 0 < len(str(caught.value)) < 4200
