"""Ranged reads of one S3 object over kept connections: the driver's request, without what the driver costs.

A driver spends some 3 ms of processor time on a request (building, signing, its hooks, the event loop), as much as
decoding 30 faces. Here it signs one URL that serves all ranges for a while, and asks over open connections. This is for
answers that are whole, right and in time, nothing else: all others are raised, and the caller asks again through the
driver, whose errors are explained, retried and waited for as everywhere.
"""

from __future__ import annotations

import os
import select
import ssl
import time
import weakref
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from fsspec.asyn import sync

from app import storage

_SIGNED_FOR, _USED_FOR = 3600, 300  # seconds; keys that change are noticed after the second
_MISSES, _REST = 3, 60.0  # after so many failures in a row it rests so many seconds
_PIECE = 1 << 18  # bytes


class PlainGet:
    """Reads ranges of the object at ``path``; several threads may.

    Args:
        filesystem: s3fs's; it opens the store and signs.
        tag: ETag that the object must have; empty: any.
    """

    def __init__(self, filesystem: Any, path: str, tag: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._tag = tag
        self._idle: list[HTTPConnection] = []
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
            connection = self._connect(url, deadline)
            data = self._get(connection, f"{url.path}?{url.query}", start, stop, deadline)
        except Exception as error:  # signing may fail in any of the driver's ways
            self._missed()
            if connection is not None:
                connection.close()
            raise (
                error if isinstance(error, OSError) else OSError(f"no plain answer ({type(error).__name__})")
            ) from None
        self._misses = 0
        self._idle.append(connection)  # where the store closed it, the next request finds that out
        return data

    def _get(self, connection: HTTPConnection, target: str, start: int, stop: int, deadline: float) -> memoryview:
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        if self._tag:
            headers["If-Match"] = f'"{self._tag}"'
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            ours = response.headers.get("Content-Range", "").startswith(f"bytes {start}-{stop - 1}/")
            tag = storage.plain_tag(response.headers.get("ETag", ""))
            if self._tag and tag and tag != self._tag:  # some stores pass over If-Match
                raise ConnectionError("the answer is of another version")
            if response.status != 206 or not ours or response.length != stop - start:
                raise ConnectionError("the answer is not the range")
            data = memoryview(bytearray(stop - start))
            have = 0
            while piece := response.read1(_PIECE):  # what has come, so that a trickle meets the deadline
                data[have : have + len(piece)] = piece
                have += len(piece)
                _left(deadline)
        if have != len(data):
            raise ConnectionError(f"the answer ends after {have} of {len(data)} bytes")
        return data

    def _connect(self, url: SplitResult, deadline: float) -> HTTPConnection:
        """One that is open and silent, or a new one; its socket waits until the deadline at most."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            if _is_silent(connection):
                connection.sock.settimeout(_left(deadline))
                return connection
            connection.close()
        host, limit = url.hostname or "", _left(deadline)
        if url.scheme != "https":
            return HTTPConnection(host, url.port, timeout=limit)
        context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
        return HTTPSConnection(host, url.port, timeout=limit, context=context)

    def _signed(self) -> str:
        if time.monotonic() - self._signed_at > _USED_FOR:
            self._url = sync(self._filesystem.loop, self._sign)
            self._signed_at = time.monotonic()
        return self._url

    async def _sign(self) -> str:
        await self._filesystem.set_session()
        bucket, key, _ = self._filesystem.split_path(self._path)
        client = await self._filesystem.get_s3(bucket)
        wanted = {"Bucket": bucket, "Key": key}
        return str(await client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=_SIGNED_FOR))

    def _missed(self) -> None:
        self._signed_at = -_USED_FOR * 2.0
        self._misses += 1
        if self._misses >= _MISSES:
            self._misses, self._rests_until = 0, time.monotonic() + _REST


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    return left


def _is_silent(connection: HTTPConnection) -> bool:
    """Not closed by either side: an idle connection on which something came was closed by the store."""
    if connection.sock is None:
        return False
    waiting = select.poll()
    waiting.register(connection.sock, select.POLLIN)
    return not waiting.poll(0)


def _close(connections: list[HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
