"""Ranged reads over kept connections: right bytes without the driver, which is asked where they are not to be had."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import numpy as np
import pytest
import s3fs

from app import plain_get, storage
from app.data.fetch import RangeFetcher
from app.plain_get import PlainGet

DATA = np.random.default_rng(0).bytes(300_000)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """Endpoint of a server that gives these bytes, one a connection, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def use_store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    variables = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def plain(url: str, tag: str = "") -> PlainGet:
    filesystem, path = storage.open_filesystem(url)
    return PlainGet(filesystem, path, tag)


def test_ranges_come_without_the_driver_over_one_connection(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(bucket_url, "odd name+é%20.rec")
    storage.write_bytes(url, DATA)
    fetcher = RangeFetcher(storage.info(url))
    opened: list[object] = []
    connect = HTTPConnection.connect

    def counted(self: HTTPConnection) -> None:
        opened.append(self)
        connect(self)

    monkeypatch.setattr(HTTPConnection, "connect", counted)

    async def never(*_: object, **__: object) -> None:
        raise AssertionError("the driver was asked")

    monkeypatch.setattr(fetcher, "_request", never)
    for start, stop in ((0, 1), (1000, 250_000), (299_999, 300_000), (0, 300_000)):
        assert fetcher.fetch([(start, stop)]) == [DATA[start:stop]]
    assert len(opened) == 1
    assert (fetcher.requests, fetcher.figures()["retries"]) == (4, 0)


def test_a_replaced_object_is_not_read(bucket_url: str) -> None:
    url = storage.join(bucket_url, "a.rec")
    storage.write_bytes(url, DATA)
    reader = plain(url, storage.info(url).tag)
    assert bytes(reader.read(5, 9, 10.0) or b"") == DATA[5:9]
    storage.write_bytes(url, DATA[::-1])
    with pytest.raises(ConnectionError):
        reader.read(5, 9, 10.0)


def test_a_connection_that_the_store_closed_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server hangs up after each answer, though the answer does not say so."""
    with answering(HEAD + b"abcd", HEAD + b"efgh") as endpoint:
        use_store(endpoint, monkeypatch)
        reader = plain("s3://bucket/key")
        assert bytes(reader.read(0, 4, 10.0) or b"") == b"abcd"
        time.sleep(0.2)
        assert bytes(reader.read(0, 4, 10.0) or b"") == b"efgh"


HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-3/9\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        HEAD + b"abc",
        HEAD.replace(b"0-3", b"1-4") + b"abcd",
        HEAD.replace(b"206", b"200") + b"abcd",
        HEAD.replace(b"Length: 4", b"Length: 5") + b"abcde",
        b"HTTP/1.1 206 \r\nContent-Range: bytes 0-3/9\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 206 \r\n" + b"X: y\r\n" * 20_000,
        b"\xff\r\n\r\n",
    ],
)
def test_only_a_whole_answer_of_the_right_size_is_taken(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(answer) as endpoint:
        use_store(endpoint, monkeypatch)
        with pytest.raises(OSError, match=r"answer|closed connection|ended"):
            plain("s3://bucket/key").read(0, 4, 10.0)


def test_a_trickle_is_given_up_in_time_and_after_three_failures_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        use_store(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        reader = plain("s3://bucket/key")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                reader.read(0, 4, 0.05)
        assert reader.read(0, 4, 0.05) is None
        monkeypatch.setattr(plain_get, "_REST", 0.0)
        reader._rests_until = 0.0
        with pytest.raises(TimeoutError):
            reader.read(0, 4, 0.05)


def test_a_proxy_is_the_drivers_matter(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(bucket_url, "a.rec")
    storage.write_bytes(url, DATA)
    reader = plain(url)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert reader.read(0, 4, 10.0) is None
