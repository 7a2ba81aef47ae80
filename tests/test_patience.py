"""An outage of the store costs the time it lasts: a small server answers 503, resets or loses answers for a while."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import s3fs

from app import patience, storage
from app.storage import StorageError


class Store(BaseHTTPRequestHandler):
    """One object; ``faults`` are used up, one a request."""

    faults: ClassVar[list[str]] = []
    content: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fault(self) -> bool:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif fault:
            self._answer(int(fault), b"<Error><Code>ServiceUnavailable</Code><Message>away</Message></Error>")
        return bool(fault)

    def do_GET(self) -> None:
        """The object."""
        if self._fault():
            return
        key = self.path.split("?")[0]
        self._answer(200, self.content[key]) if key in self.content else self._answer(404)

    def do_HEAD(self) -> None:
        """Whether it is there."""
        self.do_GET()

    def do_PUT(self) -> None:
        """Store it; a fault "lost" stores it and breaks the connection off."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.path.split("?")[0]
        if self.faults[:1] == ["lost"]:
            self.content[key] = body
            self.faults[0] = "reset"
        if self._fault():
            return
        if self.headers.get("If-None-Match") and key in self.content:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code><Message>it exists</Message></Error>")
            return
        self.content[key] = body
        self._answer(200)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    Store.faults, Store.content = [], {"/b/x": b"hello"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k" * 8)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s" * 8)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(patience, "_answered", set())
    yield Store.faults
    server.shutdown()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("fault", ["503", "502", "500", "reset"])
def test_an_outage_is_waited_for(faults: list[str], fault: str) -> None:
    assert storage.read_bytes("s3://b/x") == b"hello"
    before = patience.counters.retries
    faults += [fault] * 12
    assert storage.read_bytes("s3://b/x") == b"hello"
    assert not faults
    assert fault == "reset" or patience.counters.retries > before


def test_an_outage_longer_than_patience_is_a_transient_error(
    faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.exists("s3://b/x")
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0.3")
    faults += ["503"] * 1000
    with pytest.raises(StorageError, match="s3://b/x") as caught:
        storage.read_bytes("s3://b/x")
    assert caught.value.transient


def test_what_the_store_refuses_is_not_asked_twice(faults: list[str]) -> None:
    before = patience.counters.retries
    with pytest.raises(StorageError, match="does not exist"):
        storage.read_bytes("s3://b/nothing")
    assert patience.counters.retries == before
    assert not faults


def test_a_conditional_write_whose_answer_is_lost_has_succeeded(faults: list[str]) -> None:
    assert storage.exists("s3://b/x")
    faults.append("lost")
    assert storage.write_bytes("s3://b/commit", b"mine", if_absent=True)
    assert Store.content["/b/commit"] == b"mine"
    assert not storage.write_bytes("s3://b/commit", b"somebody else's", if_absent=True)


def test_a_store_that_never_answered_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def request() -> None:
        calls.append(1)
        raise StorageError("nobody there", transient=True, kind="unreachable")

    monkeypatch.setattr(patience, "_answered", set())
    with pytest.raises(StorageError):
        patience.patiently("https://nowhere/x", request, answers=lambda _: False)
    assert len(calls) == 1


def test_what_is_asked_within_a_deadline_does_not_wait_on_its_own_account(
    faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.exists("s3://b/x")
    faults += ["503"] * 1000
    requests: list[float] = []

    def read() -> bytes:
        requests.append(time.monotonic())
        return storage.read_bytes("s3://b/x")

    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "100000")  # which would be waited first, if waits stacked
    with pytest.raises(StorageError, match="s3://b/x"):
        patience.persist(read, time.monotonic() + 1)
    assert len(requests) > 2


def test_a_deadline_allows_what_the_store_refuses_only_when_told() -> None:
    answers = [StorageError("denied", kind="denied"), None]

    def action() -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "done"

    with pytest.raises(StorageError):
        patience.persist(action, time.monotonic() + 60)
    answers[:0] = [StorageError("denied", kind="denied")]
    assert patience.persist(action, time.monotonic() + 60, whatever=True) == "done"
