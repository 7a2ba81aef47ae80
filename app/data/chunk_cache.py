"""A cache on the node's disk, shared by its processes: fixed chunks of objects, each a file of its own.

A chunk is named by URL, version tag and place, so another dataset or a new upload in the same folder is never taken for
it. It appears by a rename and ends in a checksum: a crash leaves nothing that is believed. When all chunks together
exceed the cap, those used longest ago go. A disk that is full or fails ends the caching, not the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from app.storage import ObjectInfo

CHUNK = 1 << 20
_CHECK_EVERY = 64  # chunks that a process writes between two looks at the folder's size

Fetch = Callable[[Sequence[tuple[int, int]]], list[bytes]]


class ChunkCache:
    """Serves ranges of one object from local chunks, and fetches whole chunks that are missing.

    Args:
        fetch: reads ranges of the object from its store.
        max_bytes: cap on the folder, over all objects and processes.
    """

    def __init__(self, info: ObjectInfo, fetch: Fetch, folder: Path, max_bytes: int) -> None:
        self.hits = self.misses = 0
        self._info, self._store, self._folder, self._max_bytes = info, fetch, folder, max_bytes
        self._name = hashlib.sha256(repr(info).encode()).hexdigest()[:24]
        self._lock = threading.Lock()
        self._written = 0
        self._working = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop(error)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of half-open ranges, in their order."""
        wanted = sorted({n for start, stop in ranges for n in range(start // CHUNK, -(-stop // CHUNK))})
        chunks = {number: self._load(number) for number in wanted}
        missing = [number for number in wanted if chunks[number] is None]
        bounds = [(number * CHUNK, min((number + 1) * CHUNK, self._info.size)) for number in missing]
        with self._lock:
            self.hits += len(wanted) - len(missing)
            self.misses += len(missing)
        if missing:
            for number, data in zip(missing, self._store(bounds), strict=True):
                chunks[number] = data
                self._keep(number, data)
        return [self._cut(chunks, start, stop) for start, stop in ranges]

    @staticmethod
    def _cut(chunks: dict[int, bytes | None], start: int, stop: int) -> bytes:
        parts = [chunks[number] or b"" for number in range(start // CHUNK, -(-stop // CHUNK))]
        first = start - start // CHUNK * CHUNK
        return b"".join(parts)[first : first + stop - start]

    def _path(self, number: int) -> Path:
        return self._folder / self._name / f"{number >> 8:05x}" / f"{number & 255:02x}.chunk"

    def _load(self, number: int) -> bytes | None:
        path = self._path(number)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):  # the folder may be read-only, and serves all the same
            os.utime(path)
        body, check = data[:-4], data[-4:]
        whole = len(body) == min(CHUNK, self._info.size - number * CHUNK)
        return body if whole and zlib.crc32(body).to_bytes(4, "little") == check else None

    def _keep(self, number: int, data: bytes) -> None:
        if not self._working:
            return
        path = self._path(number)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
            temporary.replace(path)
            with self._lock:
                self._written += 1
                look = self._written % _CHECK_EVERY == 1
            if look:
                self._trim()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        if self._working:
            self._working = False
            warnings.warn(f"data.cache: {self._folder} keeps nothing more ({error}); the run goes on", stacklevel=2)

    def _trim(self) -> None:
        """Delete what was used longest ago until a tenth of the cap is free; one process at a time."""
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            found = []
            for path in self._folder.glob("*/*/*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found.append((status.st_mtime_ns, status.st_size, path))
            total = sum(size for _, size, _ in found)
            if total <= self._max_bytes:
                return
            for _, size, path in sorted(found):
                path.unlink(missing_ok=True)
                total -= size
                if total <= 0.9 * self._max_bytes:
                    break
