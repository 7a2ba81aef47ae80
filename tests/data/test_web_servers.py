"""Web servers, and caches before them, that do not do what the protocol says: right records or one clear error, and
never the whole object in memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from app import patience
from app.data.build import open_source
from app.data.config import DataConfig
from app.errors import AppError
from app.storage import StorageError
from tests.jobs import write_faces

Answer = tuple[int, dict[str, str], bytes]


def well(data: bytes, asked: Message) -> Answer:
    """As a server should, with no version."""
    if not (text := asked.get("Range")):
        return 200, {}, data
    first, last = text.removeprefix("bytes=").split("-")
    start, stop = int(first), min(int(last) + 1, len(data))
    if start >= len(data):
        return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
    return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        data = server.files.get(self.path.strip("/"))  # type: ignore[attr-defined]
        if data is None:
            status, headers, body = 404, {}, b""
        else:
            odd = self.path.endswith(server.odd) and (self.command == "GET" or server.heads)  # type: ignore[attr-defined]
            status, headers, body = (server.change if odd else well)(data, self.headers)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            if headers.get("Content-Length") or not headers.get("Content-Length", "x"):
                self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(
    folder: Path, change: Callable[[bytes, Message], Answer] = well, *, odd: str = ".rec", heads: bool = False
) -> Iterator[str]:
    """URL of a server of the folder's files; ``change`` makes the answers for those that end in ``odd``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}  # type: ignore[attr-defined]
    server.change, server.odd, server.heads = change, odd, heads  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0.1")
    write_faces(str(tmp_path), classes=4, per_class=5)
    return tmp_path


def whole(data: bytes, _: Message) -> Answer:
    return 200, {}, data


def endless(_: bytes, __: Message) -> Answer:
    """The whole file, which is announced as larger than any memory; who reads it waits for the rest."""
    return 200, {"Content-Length": str(1 << 50)}, bytes(1 << 16)


def zipped(data: bytes, asked: Message) -> Answer:
    status, headers, body = well(data, asked)
    return status, {**headers, "Content-Encoding": "gzip"}, gzip.compress(body)


def other(data: bytes, _: Message) -> Answer:
    """A cache that knows only one range."""
    return 206, {"Content-Range": f"bytes 0-99/{len(data)}"}, data[:100]


def shifted(data: bytes, asked: Message) -> Answer:
    status, headers, body = well(data, asked)
    first = int(asked["Range"].removeprefix("bytes=").split("-")[0])
    return status, {**headers, "Content-Range": f"bytes {first + 4}-{first + 3 + len(body)}/{len(data)}"}, body


def short(data: bytes, asked: Message) -> Answer:
    status, headers, body = well(data, asked)
    return status, {**headers, "Content-Length": str(len(body) + 7)}, body


def page(_: bytes, __: Message) -> Answer:
    """A portal's page in the place of everything."""
    return 200, {}, b"<html>Please log in</html>"


BAD = {
    "no ranges": (whole, "does not know ranges"),
    "no ranges, huge": (endless, "does not know ranges"),
    "compressed": (zipped, "compresses what it sends"),
    "one range for all": (other, "sent another range"),
    "shifted by four": (shifted, "sent another range"),
    "announces more than it sends": (short, "broke off"),
    "another page": (page, "does not know ranges|truncated or was replaced"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("when", ["opening", "training"])
def test_what_is_not_the_range_is_told_and_names_the_file(faces: Path, kind: str, when: str) -> None:
    change, message = BAD[kind]
    bad = [when == "opening"]

    def choose(data: bytes, asked: Message) -> Answer:
        return change(data, asked) if bad[0] else well(data, asked)

    def use(url: str) -> None:
        source = open_source(DataConfig(url=url), 0)
        bad[0] = True
        source.read(np.arange(10, 14))

    with serving(faces, choose) as url, pytest.raises(StorageError, match=rf"train\.rec.*({message})"):
        use(url)


def test_a_server_that_is_wrong_once_costs_a_request(faces: Path) -> None:
    turns = [other, shifted, short]

    def choose(data: bytes, asked: Message) -> Answer:
        return turns.pop()(data, asked) if turns and trains else well(data, asked)

    trains = False
    with serving(faces, choose) as url:
        source = open_source(DataConfig(url=url), 0)
        trains = True
        assert source.read(np.arange(20)) == open_source(DataConfig(url=str(faces)), 0).read(np.arange(20))
    assert not turns


def test_a_file_that_grew_on_a_server_without_versions_is_named(faces: Path) -> None:
    more = [0]

    def choose(data: bytes, asked: Message) -> Answer:
        return well(data + bytes(more[0]), asked)

    with serving(faces, choose) as url:
        source = open_source(DataConfig(url=url), 0)
        more[0] = 8
        with pytest.raises(StorageError, match=r"train\.rec: it has \d+ bytes now.*replaced"):
            source.read(np.arange(3))


def test_a_server_without_versions_has_no_cache(faces: Path, tmp_path: Path) -> None:
    with serving(faces) as url:
        with pytest.warns(UserWarning, match="neither ETag nor date"):
            source = open_source(DataConfig(url=url, cache=str(tmp_path / "cache")), 0)
        source.read(np.arange(3))
    assert not (tmp_path / "cache").exists()


def test_moved_files_are_followed_and_rings_are_told(faces: Path) -> None:
    with serving(faces) as target:

        def moved(_: bytes, __: Message) -> Answer:
            return 302, {"Location": f"{target}/train.rec"}, b""

        with serving(faces, moved) as url:
            found = open_source(DataConfig(url=url), 0).read(np.arange(20))
            assert found == open_source(DataConfig(url=str(faces)), 0).read(np.arange(20))

    def ring(_: bytes, __: Message) -> Answer:
        return 302, {"Location": "/train.rec"}, b""

    with serving(faces, ring) as url, pytest.raises(AppError, match=r"train\.rec.*redirects in a ring"):
        open_source(DataConfig(url=url), 0)


@pytest.mark.parametrize("name", ["train.rec", "train.idx"])
@pytest.mark.parametrize("header", ["Content-Length", "Content-Encoding"])
def test_a_server_that_tells_no_size_is_told(faces: Path, name: str, header: str) -> None:
    def streamed(data: bytes, _: Message) -> Answer:
        return 200, {header: "gzip" if header == "Content-Encoding" else ""}, data

    with (
        serving(faces, streamed, odd=name, heads=True) as url,
        pytest.raises(AppError, match=rf"{name}.* does not tell its size"),
    ):
        open_source(DataConfig(url=url), 0)
