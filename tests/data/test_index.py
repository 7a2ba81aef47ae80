"""The index: shared by a node's processes, made again when it is lost, read as every tool writes it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import patience, storage
from app.data import folder_source, node_arrays, scan, text_lines
from app.data import index as index_module
from app.data.dataset import Dataset, open_dataset
from app.data.decode import encode_jpeg
from app.data.index import open_index, parse_lines
from app.data.node_arrays import Arrays, Column
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import MAGIC, ImageHeader, RecordError, pack_image
from app.data.scan import scan_records
from app.data.text_lines import whole_lines
from tests.jobs import ROOT, environment, write_faces

JPEG = encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8))


def write_records(folder: str, records: list[tuple[int, ImageHeader, bytes]]) -> None:
    with RecordWriter(storage.join(folder, "train.rec")) as writer:
        for key, header, image in records:
            writer.write(key, pack_image(header, image))


def same(one: Dataset, other: Dataset) -> bool:
    arrays = ("keys", "starts", "stops", "identity_starts", "identity_stops")
    return one.num_classes == other.num_classes and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40))), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
@settings(deadline=None)
def test_lines_are_read_whatever_ends_them(pairs: list[tuple[int, int]], end: str, last: bool) -> None:
    text = end.join(f"{key}\t{start}" for key, start in pairs) + (end if last else "")
    assert parse_lines("x", text.encode()).tolist() == [list(pair) for pair in pairs]


@pytest.mark.parametrize("kind", ["windows", "unordered", "twice", "small pieces"])
def test_an_index_of_another_tool_is_the_same_index(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faces(str(tmp_path), classes=4, per_class=5)
    expected = open_dataset(str(tmp_path))
    path = tmp_path / "train.idx"
    lines = path.read_text().splitlines()
    if kind == "windows":
        path.write_bytes("\r\n".join(lines).encode())
    elif kind == "unordered":
        path.write_text("\n".join(np.random.default_rng(0).permutation(lines)) + "\n")
    elif kind == "twice":
        path.write_text("\n".join(lines + lines) + "\n")
    else:
        monkeypatch.setattr("app.data.text_lines.PIECE", 5)
        monkeypatch.setattr("app.data.dataset.node_folder", lambda: None)
    found = open_dataset(str(tmp_path))
    assert same(expected, found)
    assert found.tag == expected.tag


@pytest.mark.parametrize("where", ["file", "s3"])
def test_a_lost_index_is_made_again_and_kept(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = str(tmp_path) if where == "file" else request.getfixturevalue("bucket_url")
    write_faces(folder, classes=4, per_class=5)
    expected, url = open_dataset(folder), storage.join(folder, "train.idx")
    text = storage.read_bytes(url)
    storage.delete_tree(url)
    with pytest.warns(UserWarning, match=r"train\.idx does not exist: it is made again"):
        found = open_dataset(folder)
    assert same(expected, found)
    assert found.tag == expected.tag
    assert storage.read_bytes(url) == text


def test_a_scan_shows_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(str(tmp_path), classes=2, per_class=2)
    scan_records(storage.info(str(tmp_path / "train.rec")))
    assert "reading records" in capsys.readouterr().err


def test_scanning_follows_parts_and_chunk_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.data.scan._CHUNK", 64)
    magic = MAGIC.to_bytes(4, "little")
    images = [JPEG, magic * 5, b"", b"ab" + magic, magic + b"\1" * 300] * 3
    write_records(str(tmp_path), [(k, ImageHeader((0.0,), k), image) for k, image in enumerate(images)])
    scanned = scan_records(storage.info(str(tmp_path / "train.rec")))
    lines = (tmp_path / "train.idx").read_text().split()
    assert scanned.ravel().tolist() == list(map(int, lines))
    data = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "train.rec").write_bytes(data[:-20])
    with pytest.raises(RecordError, match=r"damaged or truncated|cut off"):
        scan_records(storage.info(str(tmp_path / "train.rec")))


def test_keys_from_one_and_two_labels_are_images(tmp_path: Path) -> None:
    write_records(str(tmp_path / "a"), [(k, ImageHeader((float(k % 4),), k), JPEG) for k in range(1, 41)])
    assert len(open_dataset(str(tmp_path / "a"))) == 40
    write_records(str(tmp_path / "b"), [(k, ImageHeader((float(k % 4), 20.0), k), JPEG) for k in range(40)])
    assert len(open_dataset(str(tmp_path / "b"))) == 40


def test_pictures_that_were_left_out_and_a_lost_header(tmp_path: Path) -> None:
    records = [(0, ImageHeader((25.0, 29.0), is_array=True), b"")]
    records += [(k, ImageHeader((float((k - 1) // 6),), k), JPEG) for k in range(1, 25) if k not in (7, 20)]
    records += [(25 + i, ImageHeader((1.0 + 6 * i, 7.0 + 6 * i), 25 + i, is_array=True), b"") for i in range(4)]
    write_records(str(tmp_path / "a"), records)
    with pytest.warns(UserWarning, match="announces 24 images, the index has 22"):
        dataset = open_dataset(str(tmp_path / "a"))
    assert (len(dataset), dataset.num_classes, len(dataset.identity_starts)) == (22, 4, 4)
    write_records(
        str(tmp_path / "b"),
        [(k, h, i) for k, h, i in records if k > 7 and k != 20][:0]
        + [(k, ImageHeader((float((k - 1) // 6),), k), JPEG) for k in range(1, 25)]
        + records[-4:],
    )
    dataset = open_dataset(str(tmp_path / "b"))
    assert (len(dataset), dataset.num_classes, len(dataset.identity_starts)) == (24, 4, 4)


def test_the_processes_of_a_node_parse_once_and_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faces(str(tmp_path / "set"), classes=4, per_class=5)
    folder = tmp_path / "index"
    folder.mkdir()
    record = storage.info(str(tmp_path / "set" / "train.rec"))
    url = str(tmp_path / "set" / "train.idx")
    program = (
        "import sys; from pathlib import Path; from app import storage; from app.data.index import open_index\n"
        "index = open_index(storage.info(sys.argv[1]), sys.argv[2], folder=Path(sys.argv[3]))\n"
        "print(index.hash, index.keys.filename)"
    )
    command = [sys.executable, "-c", program, record.url, url, str(folder)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT, text=True) for _ in range(3)
    ]
    answers = {child.communicate(timeout=60)[0] for child in children}
    assert len(answers) == 1
    monkeypatch.setattr(index_module, "_make", None)  # nothing is parsed any more
    assert open_index(record, url, folder=folder).hash in answers.pop()
    assert not list(folder.glob("new-*"))


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    write_faces(str(tmp_path), classes=2, per_class=2)
    record = storage.info(str(tmp_path / "train.rec"))
    with pytest.warns(UserWarning, match="no shared index"):
        index = open_index(record, str(tmp_path / "train.idx"), folder=tmp_path / "missing")
    assert len(index.keys) == 7


def test_a_copy_of_the_files_is_the_same_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with RecordWriter(str(tmp_path / name / "train.rec")) as writer:
            write_identity_layout(writer, [0, 1], [JPEG, JPEG])
    assert open_dataset(str(tmp_path / "a")).tag == open_dataset(str(tmp_path / "b")).tag


@pytest.fixture
def one_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[storage.ObjectInfo, str, Path]:
    """A dataset, its index's URL, and a folder that keeps a single parsed index."""
    monkeypatch.setattr(node_arrays, "_KEEP", 1)
    monkeypatch.setattr(node_arrays, "_IN_USE", 0.0)
    write_faces(str(tmp_path / "set"), classes=2, per_class=2)
    folder = tmp_path / "index"
    folder.mkdir()
    return storage.info(str(tmp_path / "set" / "train.rec")), str(tmp_path / "set" / "train.idx"), folder


def test_old_indexes_go_and_who_has_mapped_one_keeps_it(one_of_many: tuple[storage.ObjectInfo, str, Path]) -> None:
    record, url, folder = one_of_many
    first = open_index(record, url, folder=folder)
    second = open_index(replace(record, tag="another upload"), url, folder=folder)
    assert [path.parent.name for path in folder.glob("*/index.json")] == [Path(second.keys.filename).parent.name]  # type: ignore[attr-defined]
    assert first.keys.tolist() == second.keys.tolist()
    assert first.bounds.tolist() == second.bounds.tolist()


def test_an_index_that_another_process_takes_for_an_old_one_is_made_anew(
    one_of_many: tuple[storage.ObjectInfo, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, url, folder = one_of_many
    expected = open_index(record, url, folder=folder).hash
    load, turns = node_arrays._load, [1]

    def raced(path: Path) -> Arrays:
        if turns and turns.pop():
            shutil.rmtree(path)  # between the look and the reading
        return load(path)

    monkeypatch.setattr(node_arrays, "_load", raced)
    assert open_index(record, url, folder=folder).hash == expected
    assert len(list(folder.glob("*/index.json"))) == 1


def test_indexes_that_a_start_uses_now_stay_however_many(
    one_of_many: tuple[storage.ObjectInfo, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_arrays, "_IN_USE", 3600.0)
    record, url, folder = one_of_many
    for _ in range(2):  # the second process of the node
        for number in range(12):
            open_index(replace(record, tag=str(number)), url, folder=folder)
        monkeypatch.setattr(index_module, "_make", None)


def test_what_another_boot_left_is_not_believed(
    one_of_many: tuple[storage.ObjectInfo, str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record, url, folder = one_of_many
    (tmp_path / "boot").write_text("the second")
    before = open_index(record, url, folder=folder)
    (path,) = folder.glob("*/keys")
    path.write_bytes(bytes(path.stat().st_size))  # as a file system may leave what was not yet on the disk
    monkeypatch.setattr(node_arrays, "_BOOT", tmp_path / "boot")
    assert open_index(record, url, folder=folder).hash == before.hash
    assert open_index(record, url, folder=folder).keys.tolist() == list(range(len(before.keys)))


def test_files_whose_version_nobody_tells_share_nothing(
    one_of_many: tuple[storage.ObjectInfo, str, Path],
) -> None:
    record, url, folder = one_of_many
    assert len(open_index(replace(record, tag=""), url, folder=folder).keys) == 7
    assert not list(folder.glob("*/index.json"))


def test_old_indexes_are_cleared_away_by_many_at_once(
    one_of_many: tuple[storage.ObjectInfo, str, Path],
) -> None:
    record, url, folder = one_of_many
    with ThreadPoolExecutor(8) as pool:
        uploads = [replace(record, tag=str(number % 5)) for number in range(60)]
        found = list(pool.map(lambda upload: open_index(upload, url, folder=folder).hash, uploads))
    assert len(set(found)) == 1
    assert not list(folder.glob("new-*"))


@pytest.mark.parametrize("name", ["index.json", "keys", "bounds"])
@pytest.mark.parametrize("left", ["nothing", "half"])
def test_a_parsed_index_that_a_crash_left_incomplete_is_made_anew(
    one_of_many: tuple[storage.ObjectInfo, str, Path], name: str, left: str
) -> None:
    record, url, folder = one_of_many
    expected = open_index(record, url, folder=folder).hash
    (path,) = folder.glob(f"*/{name}")
    data = path.read_bytes()
    path.unlink()  # what is mapped stays
    path.write_bytes(b"" if left == "nothing" else data[: len(data) // 16 * 8])
    assert open_index(record, url, folder=folder).hash == expected
    assert path.read_bytes() == data


def test_a_full_disk_leaves_each_process_its_own_index(
    one_of_many: tuple[storage.ObjectInfo, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, url, folder = one_of_many

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    append = Column.append
    monkeypatch.setattr(Column, "append", lambda self, values: full() if self._file else append(self, values))
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(open_index(record, url, folder=folder).keys) == 7
    assert not list(folder.glob("*/index.json"))


KILLED = """
import os, sys
from app import storage
from app.data import index
index._check_end = lambda *_: os.kill(os.getpid(), 9)  # both arrays are written
index.open_index(storage.info(sys.argv[1]), sys.argv[2], folder=index.Path(sys.argv[3]))
"""


def test_what_killed_processes_left_half_made_goes_and_what_others_make_now_stays(
    one_of_many: tuple[storage.ObjectInfo, str, Path],
) -> None:
    record, url, folder = one_of_many
    for _ in range(2):
        arguments = (record.url, url, str(folder))
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment(), cwd=ROOT, check=False)
        assert done.returncode == -9
    (left,) = folder.glob("new-*")  # of the first the second cleared away
    assert (left / "bounds").stat().st_size
    during: list[set[str]] = []

    def make(_: Path | None) -> Arrays:
        open_index(replace(record, tag="another upload"), url, folder=folder)
        during.append({path.name for path in folder.glob("new-*")})
        with Column(_, "a") as column:
            column.append(np.arange(3))
        return Arrays({"a": column.array})

    node_arrays.share(folder, "a third", make)
    assert len(during[0]) == 1
    assert left.name not in during[0]
    assert not list(folder.glob("new-*"))


@pytest.mark.parametrize("kind", ["scan", "lines", "folder"])
def test_what_is_read_long_before_the_first_step_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each part counts for the watchdog, though other threads fetch it: 130 GB take longer than a step may."""
    parts, told = 20, list[int]()
    for person in range(parts):
        (tmp_path / str(person)).mkdir()
    write_faces(str(tmp_path))
    what = storage.info(str(tmp_path / ("train.idx" if kind == "lines" else "train.rec")))
    monkeypatch.setattr(scan, "_CHUNK", what.size // parts)
    monkeypatch.setattr(text_lines, "PIECE", what.size // parts)
    monkeypatch.setattr(patience, "listeners", [lambda: told.append(1)])
    if kind == "scan":
        scan_records(what)
    elif kind == "lines":
        list(whole_lines(what))
    else:
        list(folder_source._walk_any(str(tmp_path)))
    assert len(told) >= parts


def test_an_index_of_odd_lines_changes_no_warnings_of_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that reads the next piece may use what its libraries call outdated."""
    before, during = list(warnings.filters), list[object]()
    parse = np.fromstring

    def seen(*arguments: Any, **options: Any) -> np.ndarray:
        during.extend(warnings.filters)
        return parse(*arguments, **options)

    monkeypatch.setattr(np, "fromstring", seen)
    assert parse_lines("x", b"1\t5\n22\t333\n").tolist() == [[1, 5], [22, 333]]
    assert during == before
