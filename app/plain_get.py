"""Ranged reads of one S3 object over kept connections: the driver's request, without what the driver costs.

A driver spends some 3 ms of processor time on a request (building, signing, its hooks, the event loop), as much as
decoding 30 faces. Here it signs one URL that serves all ranges for a while, and a request is a line and two headers
on an open socket. This is for answers that are whole, right and in time, nothing else: all others are raised, and the
caller asks again through the driver, whose errors are explained, retried and waited for as everywhere.
"""

from __future__ import annotations

import io
import os
import select
import socket
import ssl
import time
import weakref
from http.client import parse_headers
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from fsspec.asyn import sync

_SIGNED_FOR, _USED_FOR = 3600, 300  # seconds; keys that change are noticed after the second
_MISSES, _REST = 3, 60.0  # after so many failures in a row it rests so many seconds
_HEAD = 1 << 16  # bytes of an answer's head, at most


class PlainGet:
    """Reads ranges of the object at ``path``; several threads may.

    Args:
        filesystem: s3fs's; it opens the store and signs.
        tag: ETag that the object must have; empty: any.
    """

    def __init__(self, filesystem: Any, path: str, tag: str) -> None:
        self._filesystem, self._path, self._tag = filesystem, path, tag
        self._idle: list[socket.socket] = []
        self._url, self._signed_at = "", -_USED_FOR * 2.0
        self._misses, self._rests_until = 0, 0.0
        # What a request must say besides is the driver's matter: requester pays, keys of the customer...
        self._fits = not (filesystem.req_kw or filesystem.s3_additional_kwargs)
        weakref.finalize(self, _close, self._idle)

    def read(self, start: int, stop: int, seconds: float) -> memoryview | None:
        """Bytes [start, stop); None: not now, ask the driver.

        Raises:
            OSError: no such answer; ``TimeoutError``: not within ``seconds``.
        """
        if not self._fits or time.monotonic() < self._rests_until:
            return None
        deadline = time.monotonic() + seconds
        connection = None
        try:
            url = urlsplit(self._signed())
            if url.scheme in getproxies() and not proxy_bypass(url.hostname or ""):
                self._fits = False
                return None
            connection = self._open(url.scheme, url.hostname or "", url.port, deadline)
            pinned = f'If-Match: "{self._tag}"\r\n' if self._tag else ""
            connection.settimeout(_left(deadline))
            connection.sendall(
                f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\n"
                f"Range: bytes={start}-{stop - 1}\r\n{pinned}Accept-Encoding: identity\r\n\r\n".encode()
            )
            data, kept = _receive(connection, stop - start, deadline)
        except Exception as error:  # signing may fail in any of the driver's ways
            self._missed(connection)
            raise (
                error if isinstance(error, OSError) else OSError(f"no plain answer ({type(error).__name__})")
            ) from None
        self._misses = 0
        if kept:
            self._idle.append(connection)
        else:
            connection.close()
        return data

    def _signed(self) -> str:
        if time.monotonic() - self._signed_at > _USED_FOR:
            self._url = sync(self._filesystem.loop, self._sign)
            self._signed_at = time.monotonic()
        return self._url

    async def _sign(self) -> str:
        await self._filesystem.set_session()
        bucket, key, version = self._filesystem.split_path(self._path)
        client = await self._filesystem.get_s3(bucket)
        wanted = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        return str(await client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=_SIGNED_FOR))

    def _open(self, scheme: str, host: str, port: int | None, deadline: float) -> socket.socket:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            waiting = select.poll()
            waiting.register(connection, select.POLLIN)
            if not waiting.poll(0):
                return connection
            connection.close()  # an idle connection on which something came was closed by the store
        secure = scheme == "https"
        connection = socket.create_connection((host, port or (443 if secure else 80)), timeout=_left(deadline))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not secure:
            return connection
        try:
            context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
            return context.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise

    def _missed(self, connection: socket.socket | None) -> None:
        if connection is not None:
            connection.close()
        self._signed_at = -_USED_FOR * 2.0
        self._misses += 1
        if self._misses >= _MISSES:
            self._misses, self._rests_until = 0, time.monotonic() + _REST


def _receive(connection: socket.socket, size: int, deadline: float) -> tuple[memoryview, bool]:
    """The body of an answer of exactly ``size`` bytes, and whether the connection may be used again."""
    head = b""
    while (end := head.find(b"\r\n\r\n")) < 0:
        connection.settimeout(_left(deadline))
        piece = connection.recv(_HEAD)
        if not piece or len(head) > _HEAD:
            raise ConnectionError("the answer has no whole head")
        head += piece
    lines = io.BytesIO(head[: end + 4])
    status = lines.readline().split()
    headers = parse_headers(lines)
    if len(status) < 2 or status[1] != b"206" or headers.get("Content-Length") != str(size):
        raise ConnectionError("the answer is not the range")
    data = np.empty(size, dtype=np.uint8).data
    first = head[end + 4 :]
    if len(first) > size:
        raise ConnectionError("the answer is longer than its head says")
    data[: len(first)] = first
    have = len(first)
    while have < size:
        connection.settimeout(_left(deadline))
        count = connection.recv_into(data[have:])
        if not count:
            raise ConnectionError(f"the answer ends after {have} of {size} bytes")
        have += count
    return data, headers.get("Connection", "").lower() != "close" and status[0] == b"HTTP/1.1"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    return left


def _close(connections: list[socket.socket]) -> None:
    while connections:
        connections.pop().close()
