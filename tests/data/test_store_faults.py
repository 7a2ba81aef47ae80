"""A store that answers 503, stalls, resets and truncates; files that are replaced while they are read."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import s3fs

from app import deadline, storage
from app.data.dataset import content_tag, open_dataset
from app.data.reader import RecordReader
from app.storage import StorageError
from demo.object_store import ObjectStore
from tests.jobs import write_faces


class _Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the store; ranges of a .rec file meet the faults of the list, one each."""

    def do_GET(self) -> None:
        server = self.server
        fault = ""
        if ".rec" in self.path and self.headers.get("Range"):
            with server.lock:  # type: ignore[attr-defined]
                fault = server.faults.pop(0) if server.faults else ""  # type: ignore[attr-defined]
        if fault == "503":
            self.send_error(503)
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if fault == "stall":
            server.free.wait(30)  # type: ignore[attr-defined]
            return
        upstream = http.client.HTTPConnection(server.store, timeout=30)  # type: ignore[attr-defined]
        upstream.request(self.command, self.path, headers=dict(self.headers.items()))
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "truncate" else body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.store = object_store.environment["AWS_ENDPOINT_URL"].split("://")[1]  # type: ignore[attr-defined]
    server.faults, server.lock, server.free = [], threading.Lock(), threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.free.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("faults", [["503"], ["reset"], ["truncate"], ["truncate", "503", "reset"]])
def test_what_passes_costs_time_and_no_record(faults: list[str], bucket_url: str, proxy: ThreadingHTTPServer) -> None:
    write_faces_directly(bucket_url, proxy)
    dataset = open_dataset(bucket_url)
    reader = RecordReader(dataset, max_request_bytes=1 << 12, max_gap_bytes=0)
    expected = reader.read(range(len(dataset)))
    proxy.faults.extend(faults)  # type: ignore[attr-defined]
    assert reader.read(range(len(dataset))) == expected
    assert proxy.faults == []  # type: ignore[attr-defined]


def test_a_request_that_hangs_is_sent_again(
    bucket_url: str, proxy: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "HEDGE", 0.1)
    write_faces_directly(bucket_url, proxy)
    dataset = open_dataset(bucket_url)
    reader = RecordReader(dataset)
    proxy.faults.append("stall")  # type: ignore[attr-defined]
    records = reader.read([0, 1, 2])
    assert [reader.parse(p, r)[0].id for p, r in enumerate(records)] == [1, 2, 3]
    assert reader.fetcher.figures()["hedged"] >= 1


def write_faces_directly(folder: str, proxy: ThreadingHTTPServer) -> None:
    """The proxy takes no uploads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.store}")  # type: ignore[attr-defined]
        s3fs.S3FileSystem.clear_instance_cache()
        write_faces(folder, classes=4, per_class=5)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("where", ["file", "s3"])
def test_a_file_replaced_by_one_of_the_same_size_is_named(where: str, request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue("tmp_path" if where == "file" else "bucket_url"))
    write_faces(folder, classes=4, per_class=5)
    dataset = open_dataset(folder)
    reader = RecordReader(dataset)
    reader.read(np.arange(3))
    data = storage.read_bytes(dataset.url)
    storage.write_bytes(dataset.url, data[:100] + bytes(len(data) - 100))
    with pytest.raises(StorageError, match=r"train\.rec.*replaced") as caught:
        reader.read(np.arange(3))
    assert not caught.value.transient


class _PlainServer(BaseHTTPRequestHandler):
    """Files with ranges and one of the two headers that tell a version; conditional requests mean nothing to it."""

    def do_GET(self) -> None:
        data, version = self.server.files.get(self.path, (None, ""))  # type: ignore[attr-defined]
        if data is None:
            self.send_error(404)
            return
        start, stop = 0, len(data)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if asked else 200)
        self.send_header(self.server.header, version)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("header", "versions"),
    [
        ("Last-Modified", ("Thu, 26 Nov 2026 00:00:00 GMT", "Thu, 26 Nov 2026 00:00:01 GMT")),
        ("ETag", ('"one"', '"two"')),
        ("ETag", ('W/"one"', 'W/"two"')),
    ],
)
def test_a_file_replaced_on_a_plain_web_server_is_named(header: str, versions: tuple[str, str], tmp_path: Path) -> None:
    write_faces(str(tmp_path), classes=4, per_class=5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _PlainServer)
    server.header = header  # type: ignore[attr-defined]
    server.files = {  # type: ignore[attr-defined]
        f"/{name}": ((tmp_path / name).read_bytes(), versions[0]) for name in ("train.rec", "train.idx")
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        reader = RecordReader(open_dataset(f"http://127.0.0.1:{server.server_port}"))
        assert reader.read([3, 4]) == RecordReader(open_dataset(str(tmp_path))).read([3, 4])
        data = server.files["/train.rec"][0]  # type: ignore[attr-defined]
        server.files["/train.rec"] = (data[:100] + bytes(len(data) - 100), versions[1])  # type: ignore[attr-defined]
        with pytest.raises(StorageError, match=r"train\.rec.*another version.*replaced") as caught:
            reader.read([3, 4])
        assert not caught.value.transient
    finally:
        server.shutdown()
        server.server_close()


def test_a_date_of_a_web_server_is_no_part_of_the_data() -> None:
    info = storage.ObjectInfo("http://host/train.rec", 9, "Thu, 26 Nov 2026 00:00:00 GMT")
    assert content_tag(info, "ab") == "9-ab"
    assert content_tag(replace(info, tag="an-etag"), "ab") == "9-ab-an-etag"
