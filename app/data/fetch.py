"""Ranges of one object in one version: pinned, bounded in time, asked again, and counted.

An object that is replaced while it is read is an error that names it, whatever its new size: in S3 every request says
``If-Match``, and every answer is compared by its ETag or date; a local file is held open and compared with what was
opened. ``app.deadline`` bounds each request. A range of S3 is asked for by ``app.plain_get`` first, and by the driver
when that brings no whole answer in time.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.http import HTTPFileSystem

from app import storage
from app.deadline import Requests
from app.errors import AppError
from app.patience import patiently
from app.plain_get import PlainGet
from app.storage import ObjectInfo, StorageError
from app.store_requests import get_http_range, get_s3_range, is_s3

Octets = bytes | memoryview


class RangeFetcher:
    """Reads ranges of the object that ``info`` describes; open one a process."""

    def __init__(self, info: ObjectInfo) -> None:
        self.info = info
        self.requests = self.bytes_read = 0
        self._requests = Requests(hedges=True)
        self._filesystem, self._path = storage.open_filesystem(info.url)
        self._lock = threading.Lock()
        self._file: int | None = None
        self._plain: PlainGet | None = None
        if hasattr(self._filesystem, "_call_s3"):
            self._plain = PlainGet(self._filesystem, self._path, info.tag)
        if storage.is_local(self._filesystem):
            with storage.explained(info.url, "read"):
                self._file = os.open(self._path, os.O_RDONLY)
                status = os.fstat(self._file)
            self._opened = self._state(status)
            if status.st_size != info.size or (info.tag and str(status.st_mtime) != info.tag):
                raise self._changed("the file is another one now")

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        """Bytes of half-open ranges, in their order.

        Raises:
            StorageError: the object was replaced or truncated, or the store does not give it; ``transient`` if it may
                later.
        """
        chunks = patiently(self.info.url, lambda: self._fetch(ranges), answers=_came_from_the_store)
        for (start, stop), chunk in zip(ranges, chunks, strict=True):
            if len(chunk) != stop - start:
                raise self._changed(f"bytes {start}-{stop} came back with {len(chunk)} bytes")
        with self._lock:
            self.requests += len(ranges)
            self.bytes_read += sum(map(len, chunks))
        return chunks

    def figures(self) -> dict[str, float]:
        """Counters, and the median and 99th percentile of the last thousand requests' seconds."""
        times = list(self._requests.latencies) or [0.0]
        return {
            "requests": self.requests,
            "bytes_read": self.bytes_read,
            "retries": self._requests.retries,
            "hedged": self._requests.hedged,
            "latency_p50": float(np.quantile(times, 0.5)),
            "latency_p99": float(np.quantile(times, 0.99)),
        }

    def _fetch(self, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        if self._file is not None:
            return self._read_file(ranges)
        if len(ranges) == 1 and (chunk := self._read_plainly(*ranges[0])) is not None:
            return [chunk]
        if isinstance(self._filesystem, AsyncFileSystem):
            with storage.explained(self.info.url, f"read of {len(ranges)} ranges"):
                return list(sync(self._filesystem.loop, self._gather, ranges))
        started = time.perf_counter()
        chunks = storage.read_ranges(self.info.url, ranges)
        self._requests.latencies.append(time.perf_counter() - started)
        return list(chunks)

    def _read_plainly(self, start: int, stop: int) -> memoryview | None:
        """None: the driver is to be asked, and explains what is wrong."""
        if self._plain is None:
            return None
        started = time.perf_counter()
        try:
            chunk = self._plain.read(start, stop, self._requests.usual_seconds())
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._requests.hedged += 1
            else:
                self._requests.retries += 1
            return None
        if chunk is not None:
            self._requests.latencies.append(time.perf_counter() - started)
        return chunk

    def _read_file(self, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        assert self._file is not None
        with storage.explained(self.info.url, "read"):
            if self._state(os.stat(self._path)) != self._opened:
                raise self._changed("the file is another one now")
            chunks: list[Octets] = []
            for start, stop in ranges:
                started = time.perf_counter()
                chunks.append(os.pread(self._file, stop - start, start))
                self._requests.latencies.append(time.perf_counter() - started)
        return chunks

    @staticmethod
    def _state(status: os.stat_result) -> tuple[int, ...]:
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _changed(self, what: str) -> StorageError:
        return StorageError(
            f"{storage.redact(self.info.url)}: {what}: it was truncated or replaced since the run opened it; upload "
            ".rec and .idx again together, and start again"
        )

    async def _gather(self, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        return list(await asyncio.gather(*(self._ask(start, stop) for start, stop in ranges)))

    async def _ask(self, start: int, stop: int) -> bytes:
        """One range; see ``app.deadline``."""

        async def size() -> int:
            return stop - start

        return await self._requests.ask(
            f"{storage.redact(self.info.url)}: bytes {start}-{stop}",
            lambda: self._request(start, stop),
            size,
            may_pass=lambda error: storage.may_pass(self.info.url, error),
            enough=lambda chunk: len(chunk) == stop - start,
        )

    async def _request(self, start: int, stop: int) -> bytes:
        filesystem: Any = self._filesystem
        if isinstance(filesystem, HTTPFileSystem):  # few plain servers heed If-Match, but nearly all tell the version
            chunk, tag, size = await get_http_range(filesystem, self._path, start, stop)
            if size not in (-1, self.info.size):
                raise self._changed(f"it has {size} bytes now")
        elif is_s3(filesystem):
            chunk, tag, retries = await get_s3_range(filesystem, self._path, start, stop, self.info.tag)
            self._requests.retries += retries
        else:
            return bytes(await filesystem._cat_file(self._path, start=start, end=stop))
        tag = storage.plain_tag(tag)
        if self.info.tag and tag and tag != self.info.tag:  # some stores pass over If-Match
            raise self._changed("the server has another version now")
        return chunk


def _came_from_the_store(error: AppError) -> bool:
    return getattr(error, "kind", "") != "unreachable"
