"""The index: shared by a node's processes, made again when it is lost, read as every tool writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import storage
from app.data import index as index_module
from app.data.dataset import Dataset, open_dataset
from app.data.decode import encode_jpeg
from app.data.index import open_index, parse_lines
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import MAGIC, ImageHeader, RecordError, pack_image
from app.data.scan import scan_records
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
        monkeypatch.setattr(index_module, "_PIECE", 5)
        monkeypatch.setattr("app.data.dataset.index_folder", lambda: None)
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
