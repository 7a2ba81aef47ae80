"""URLs that are nearly right: each is answered with one sentence that says what is meant."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import storage
from app.data.build import open_source
from app.data.config import DataConfig
from app.errors import AppError
from tests.jobs import write_faces


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_faces(str(tmp_path / "parts" / "train"), classes=3, per_class=2)
    write_faces(str(tmp_path / "other"), classes=3, per_class=2)
    (tmp_path / "other" / "train.rec").rename(tmp_path / "other" / "faces.rec")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "with,comma").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("url", ["parts/train", "parts/train/", "parts//train//", "~/parts/train", "./parts/train"])
def test_a_folder_by_any_spelling(folder: Path, url: str) -> None:
    assert len(open_source(DataConfig(url=url), 0)) == 6
    assert len(open_source(DataConfig(url=f"file://{folder}/parts/train"), 0)) == 6


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("parts/train/train.rec", r"train\.rec: name the folder, not the file in it: parts/train$"),
        ("parts/train/train.idx", r"name the folder, not the file in it: parts/train$"),
        ("train.rec", r"not the file in it: \.$"),
        ("other/faces.rec", r"the files in it must be called train\.rec and train\.idx"),
        ("parts/train/lfw.bin", r"a verification set, not a dataset: .* lfw in --verify\.sets"),
        ("other", r"no train\.rec there, but faces\.rec: rename it"),
        ("parts", r"no train\.rec there, but in parts/train: name it"),
        ("run", "a run's folder, not a dataset"),
        ("photos", "photographs need one subfolder a person"),
        ("file", "file: a file; a dataset is a folder"),
        ("empty", "it does not exist; check the URL"),
        ("nowhere", "it does not exist; check the URL"),
        ("~/nowhere", "it does not exist; check the URL"),
        ("s3:/bucket/faces", r"a slash is missing: s3://"),
        ("S3://bucket/faces", r"small letters: s3://"),
        ("s4://bucket/faces", "cannot open this kind of URL"),
        (
            "https://host/faces?X-Amz-Signature=abcdef",
            r"Signature=\*\*\* has a query: a dataset is a folder.*use s3://",
        ),
        ("", r"set --data\.url"),
        ('"parts/train"', "without quotes and brackets"),
        ("[parts/train,photos]", "without quotes and brackets, several by commas: a,b"),
        ("parts/train photos", "several datasets are named by commas: parts/train,photos$"),
        ("parts/train; photos", "several datasets are named by commas: parts/train,photos$"),
        ("s3://a/b\ns3://c:secret@d", r"named by commas: s3://a/b,s3://\*\*\*@d$"),
        ("with,comma", "the folder with,comma has one in its name: rename it"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_is_meant(url: str, says: str) -> None:
    with pytest.raises(AppError, match=says) as caught:
        open_source(DataConfig(url=url), 0)
    assert "\n" not in str(caught.value)
    assert "Errno 20" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train.rec.part1", "train.rec.part0"], r"but train\.rec\.part0, train\.rec\.part1: join or unpack"),
        (["train.rec.gz"], r"but train\.rec\.gz: join or unpack"),
        (["train_0.rec", "train_1.rec"], r"but train_0\.rec, train_1\.rec: parts of one dataset must be joined"),
        (["faces.rec"], r"but faces\.rec: rename it"),
    ],
)
def test_records_in_parts_are_told(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AppError, match=says):
        open_source(DataConfig(url=str(tmp_path)), 0)


def test_output_below_a_file_is_one_sentence(folder: Path) -> None:
    with pytest.raises(storage.StorageError, match="a part of this path is a file, not a folder"):
        storage.read_bytes(str(folder / "file" / "runs"))
    with pytest.raises(storage.StorageError, match=r"a part of this path is a file|exists"):
        storage.write_bytes(str(folder / "file" / "runs" / "x"), b"x")
    with pytest.raises(storage.StorageError, match="it is a folder, where a file is expected"):
        storage.read_bytes(str(folder / "photos"))


@pytest.fixture
def plain_server(folder: Path) -> Iterator[str]:
    """Python's own server, which answers a range with the whole file."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_without_ranges_is_told(plain_server: str) -> None:
    with pytest.raises(AppError, match=r"does not know ranges; serve the files"):
        open_source(DataConfig(url=f"{plain_server}/parts/train"), 0)
