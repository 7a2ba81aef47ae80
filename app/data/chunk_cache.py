"""A cache on the node's disk, shared by its processes: fixed chunks of objects, each a file of its own.

A chunk is named by URL, version tag and place, so another dataset or a new upload in the same folder is never taken for
it. It appears by a rename and ends in the checksums of its pieces: a crash leaves nothing that is believed, and who
wants a part of it reads and checks that part alone. When all chunks together exceed the cap, those used longest ago go.
A disk that is full or fails ends the caching, not the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from app.data.fetch import Octets
from app.storage import ObjectInfo

CHUNK = 1 << 20
PIECE = 1 << 12  # bytes that have a checksum of their own; so few that zlib keeps the interpreter's lock for them
_CHECK_EVERY = 64  # chunks that a process writes between two looks at the folder's size, or a tenth of a small cap

Fetch = Callable[[Sequence[tuple[int, int]]], list[Octets]]


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
        self._check_every = max(1, min(_CHECK_EVERY, max_bytes // (10 * CHUNK)))
        self._working = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._stop(error)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[Octets]:
        """Bytes of half-open ranges, in their order."""
        spans = [list(_cut_at_chunks(start, stop)) for start, stop in ranges]
        parts = [[self._load(*span) for span in of_range] for of_range in spans]
        wanted = {number for of_range in spans for number, _, _ in of_range}
        missing = sorted({n for group, got in zip(spans, parts, strict=True) for n in _without_data(group, got)})
        with self._lock:
            self.hits += len(wanted) - len(missing)
            self.misses += len(missing)
        fetched: dict[int, memoryview] = {}
        if missing:
            bounds = [(number * CHUNK, min((number + 1) * CHUNK, self._info.size)) for number in missing]
            for number, data in zip(missing, self._store(bounds), strict=True):
                fetched[number] = memoryview(data)
                self._keep(number, data)
        chunks: list[Octets] = []
        for of_range, found in zip(spans, parts, strict=True):
            whole = [
                fetched[number][start:stop] if part is None else part
                for (number, start, stop), part in zip(of_range, found, strict=True)
            ]
            chunks.append(whole[0] if len(whole) == 1 else b"".join(whole))
        return chunks

    def _path(self, number: int) -> Path:
        return self._folder / self._name / f"{number >> 8:05x}" / f"{number & 255:02x}.chunk"

    def _load(self, number: int, start: int, stop: int) -> memoryview | None:
        """These bytes of a chunk; None where it is not there, or not as it was written."""
        size = min(CHUNK, self._info.size - number * CHUNK)
        first, last = start // PIECE, -(-stop // PIECE)
        try:
            file = os.open(self._path(number), os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(file).st_size != size + 4 * -(-size // PIECE):
                return None
            data = memoryview(os.pread(file, min(last * PIECE, size) - first * PIECE, first * PIECE))
            checks = os.pread(file, 4 * (last - first), size + 4 * first)
            with contextlib.suppress(OSError):  # the folder may be read-only, and serves all the same
                os.utime(file)
        except OSError:
            return None
        finally:
            os.close(file)
        return data[start - first * PIECE : stop - first * PIECE] if _checksums(data) == checks else None

    def _keep(self, number: int, data: Octets) -> None:
        if not self._working:
            return
        path = self._path(number)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(b"".join((data, _checksums(memoryview(data)))))
            temporary.replace(path)
            with self._lock:
                self._written += 1
                look = self._written % self._check_every == 0 or self._written == 1
            if look:
                self._trim()
        except OSError as error:
            with contextlib.suppress(OSError):  # of a disk that turned read-only, or a folder that is none any more
                temporary.unlink()
            if not isinstance(error, FileNotFoundError):  # somebody clears the folder: the next chunk makes it anew
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


def _cut_at_chunks(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The chunks that a range touches, and which bytes of each."""
    for number in range(start // CHUNK, -(-stop // CHUNK)):
        base = number * CHUNK
        yield number, max(start - base, 0), min(stop - base, CHUNK)


def _without_data(spans: Sequence[tuple[int, int, int]], parts: Sequence[memoryview | None]) -> Iterator[int]:
    return (number for (number, _, _), part in zip(spans, parts, strict=True) if part is None)


def _checksums(data: memoryview) -> bytes:
    checks = [zlib.crc32(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    return struct.pack(f"<{len(checks)}I", *checks)
