"""Where the records of a ``.rec`` file lie: its ``.idx`` read once a node, or made again by scanning the records.

The first process of a node parses the index in pieces and leaves two int64 arrays in a folder of local files; all
others map them. A file is told by URL, size and version tag, so that a new upload is parsed anew. Where no folder can
be written, each process holds the arrays itself.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import MAGIC, MAX_PART_BYTES, PART, RecordError
from app.data.scan import scan_records
from app.storage import ObjectInfo, StorageError

_PIECE = 8 << 20  # bytes of text that are parsed at a time
_STEP = 1 << 20  # entries that are looked at together
_KEEP = 8  # indexes left in the folder


@dataclass(frozen=True)
class RecordIndex:
    """Where each record of a file lies, in file order.

    ``keys`` int64 [R]; record i takes the bytes ``bounds[i]..bounds[i + 1]`` of ``bounds`` int64 [R + 1]. ``hash`` is
    the SHA-256 of both. ``ascending``: keys grow with the bytes.
    """

    keys: NDArray[np.int64]
    bounds: NDArray[np.int64]
    hash: str
    ascending: bool


def index_folder() -> Path | None:
    """A folder on the node's disk that only this user can write, or None where there is none."""
    folder = Path(tempfile.gettempdir()) / f"arcface-index-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        safe = status.st_uid == os.getuid() and not status.st_mode & 0o022 and not folder.is_symlink()
        return folder if safe and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def open_index(record: ObjectInfo, url: str, *, folder: Path | None = None) -> RecordIndex:
    """The index at ``url`` of the records in ``record``.

    Args:
        folder: where parsed indexes of this node lie; None: nowhere.

    Raises:
        RecordError: it does not belong to the file, or is no index; without one, the file is no RecordIO.
        StorageError: neither can be read.
    """
    try:
        text = storage.info(url)
    except StorageError as error:
        if error.kind != "absent":
            raise
        text = None
    if folder is None:
        return _make(record, url, text, None)
    name = hashlib.sha256("\0".join([repr(record), repr(text)]).encode()).hexdigest()[:32]
    path = folder / name
    try:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others of this node wait for the first
            # It may be gone, taken for an old one, or incomplete after a crash: then it is made anew.
            with contextlib.suppress(OSError, ValueError, KeyError):
                return _load(path)
            return _publish(path, record, url, text)
    except OSError as error:
        warnings.warn(f"{folder}: no shared index ({error}): every process holds its own", stacklevel=2)
        return _make(record, url, text, None)


def _publish(path: Path, record: ObjectInfo, url: str, text: ObjectInfo | None) -> RecordIndex:
    shutil.rmtree(path, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix="new-", dir=path.parent))
    try:
        index = _make(record, url, text, temporary)
        details = {"hash": index.hash, "ascending": index.ascending}
        (temporary / "index.json").write_text(json.dumps(details))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    loaded = _load(path)
    _forget_old(path.parent)
    return loaded


def _forget_old(folder: Path) -> None:
    """Delete all but the indexes that were used last: who has mapped one keeps it."""
    found = []
    for details in folder.glob("*/index.json"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            found.append((details.stat().st_mtime_ns, details.parent))
    for _, old in sorted(found)[:-_KEEP]:
        if not old.name.startswith("new-"):
            shutil.rmtree(old, ignore_errors=True)


def _load(path: Path) -> RecordIndex:
    os.utime(path / "index.json")  # used now: not among the first to go
    details = json.loads((path / "index.json").read_text())
    keys, bounds = (np.memmap(path / name, dtype=np.int64, mode="r") for name in ("keys", "bounds"))
    if len(bounds) != len(keys) + 1:
        raise ValueError(f"{path}: {len(keys)} keys and {len(bounds)} bounds")
    return RecordIndex(keys, bounds, str(details["hash"]), bool(details["ascending"]))


def _make(record: ObjectInfo, url: str, text: ObjectInfo | None, folder: Path | None) -> RecordIndex:
    """Parse or scan; with a folder the arrays are written there piece by piece, and no process ever holds them."""
    if text is None:
        warnings.warn(f"{storage.redact(url)} does not exist: it is made again by reading {record.url}", stacklevel=2)
        pairs = iter([scan_records(record)])
        index = _collect(pairs, record, url, folder)
        _keep_index(url, index)
        return index
    return _collect(_parse_pieces(text), record, url, folder)


def _collect(pieces: Iterator[NDArray[np.int64]], record: ObjectInfo, url: str, folder: Path | None) -> RecordIndex:
    """Check the pairs (key, start), sort them where they are not, and hash them."""
    with _Column(folder, "keys") as keys, _Column(folder, "bounds") as bounds:
        for pairs in pieces:
            keys.append(pairs[:, 0])
            bounds.append(pairs[:, 1])
        if not keys.length:
            raise RecordError(f"{url}: the index is empty: upload it again")
        bounds.append(np.array([record.size]))
    if not _is_ascending(bounds.array):
        order = _file_order(keys.array, bounds.array[:-1])
        keys.reorder(order)
        bounds.reorder(order, record.size)
    all_keys, all_bounds = keys.array, bounds.array
    _check(all_keys, all_bounds, record, url)
    _check_end(int(all_bounds[-2]), record, url)
    digest = hashlib.sha256()
    for array in (all_keys, all_bounds):
        for start in range(0, len(array), _STEP):
            digest.update(np.ascontiguousarray(array[start : start + _STEP]).data)
    return RecordIndex(all_keys, all_bounds, digest.hexdigest(), _is_ascending(all_keys))


class _Column:
    """An int64 array that grows, in a file or in memory."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = folder / name if folder else None
        self._file: Any = self._path.open("wb") if self._path else None
        self._parts: list[NDArray[np.int64]] = []
        self.length = 0
        self.array: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def append(self, values: NDArray[np.int64]) -> None:
        self.length += len(values)
        if self._file is None:
            self._parts.append(values.copy())
        else:
            self._file.write(np.ascontiguousarray(values).data)

    def reorder(self, order: NDArray[np.int64], *behind: int) -> None:
        """The values at ``order``, and some behind them."""
        if self._path is None:
            self.array = np.append(self.array[order], behind).astype(np.int64)
            return
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            for start in range(0, len(order), _STEP):
                file.write(self.array[order[start : start + _STEP]].data)
            file.write(np.array(behind, dtype=np.int64).data)
        new.replace(self._path)
        self.array = np.memmap(self._path, np.int64, "r")

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self.array = np.memmap(self._path, np.int64, "r") if self._path else np.concatenate(self._parts)


def _pairwise(test: Callable[[NDArray[np.int64]], bool], array: NDArray[np.int64]) -> bool:
    """Whether a test of neighbours holds everywhere, without an array as long as the index."""
    return all(test(array[start : start + _STEP + 1]) for start in range(0, max(1, len(array) - 1), _STEP))


def _is_ascending(array: NDArray[np.int64]) -> bool:
    return _pairwise(lambda part: bool((part[1:] > part[:-1]).all()), array)


def _file_order(keys: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the pairs by their starts; a pair that stands there twice counts once."""
    order = np.argsort(starts, kind="stable")
    first = np.ones(len(order), dtype=bool)
    for base in range(1, len(order), _STEP):
        part = order[base - 1 : base + _STEP]
        first[base : base + len(part) - 1] = (np.diff(keys[part]) != 0) | (np.diff(starts[part]) != 0)
    return order if first.all() else order[first]


def _check(keys: NDArray[np.int64], bounds: NDArray[np.int64], record: ObjectInfo, url: str) -> None:
    if bounds[0] >= 0 and _pairwise(lambda part: bool((part[1:] - part[:-1] >= 8).all()), bounds):
        return
    bad = 0 if bounds[0] < 0 else int(np.argmax(np.diff(bounds) < 8))
    raise RecordError(
        f"{url}: key {keys[bad]} at byte {bounds[bad]} leaves no room for a record before byte {bounds[bad + 1]}: the "
        f"index does not belong to this .rec file of {record.size} bytes, or the .rec file is truncated"
    )


def _check_end(start: int, record: ObjectInfo, url: str) -> None:
    """Whether the last record is whole, and the file's last: a file cut in its last record is told before step 1."""
    position, inside = start, False
    while True:
        head = storage.read_range(record.url, position, min(position + PART.size, record.size))
        magic, word = PART.unpack(head) if len(head) == PART.size else (0, 0)
        kind, length = word >> 29, word & MAX_PART_BYTES
        if magic != MAGIC or kind not in ((2, 3) if inside else (0, 1)):
            return  # damaged there, which the reader names and counts
        if position + PART.size + length > record.size:
            raise RecordError(
                f"{storage.redact(record.url)}: the record at byte {start} needs byte {position + PART.size + length} "
                f"of {record.size}: the file is truncated, upload it again"
            )
        position, inside = position + PART.size + length + -length % 4, kind in (1, 2)
        if not inside:
            break
    if position + PART.size <= record.size:
        warnings.warn(
            f"{url}: its last record ends at byte {position} of the {record.size} in {record.url}: what follows is not "
            "trained. If the index was cut off, delete it, and it is made again",
            stacklevel=2,
        )


def _parse_pieces(text: ObjectInfo) -> Iterator[NDArray[np.int64]]:
    """Pairs (key, start), int64 [n, 2], of whole lines; the next piece is fetched while one is parsed."""
    rest = b""
    with ThreadPoolExecutor(2) as pool:
        starts = range(0, text.size, _PIECE)
        read = [pool.submit(_read_piece, text, start) for start in starts[:2]]
        for number in range(len(starts)):
            piece = read.pop(0).result()
            if not number:
                piece = piece.removeprefix(codecs.BOM_UTF8)  # Windows' editors put it there
            if number + 2 < len(starts):
                read.append(pool.submit(_read_piece, text, starts[number + 2]))
            end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
            if end:
                yield parse_lines(text.url, rest + piece[:end])
            rest = piece[end:] if end else rest + piece
    if rest.strip():
        yield parse_lines(text.url, rest)


def _read_piece(text: ObjectInfo, start: int) -> bytes:
    return storage.read_range(text.url, start, min(start + _PIECE, text.size))


def parse_lines(url: str, text: bytes) -> NDArray[np.int64]:
    """Lines ``key\\toffset``, whatever ends them, as int64 [lines, 2].

    Raises:
        RecordError: a line is not two whole numbers.
    """
    if not text.strip():
        return np.empty((0, 2), dtype=np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise RecordError(
            f"{url}: not an index of lines 'key<TAB>offset': delete it, and it is made again from the .rec file"
        ) from error
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < 2**62:  # larger ones are cut to int64's largest
        raise RecordError(
            f"{url}: holds {numbers.min()} and {numbers.max()}, which are no keys and offsets: it is damaged"
        )
    if len(numbers) % 2:
        raise RecordError(f"{url}: the index ends inside a line: upload it again")
    return numbers.reshape(-1, 2)


def _keep_index(url: str, index: RecordIndex) -> None:
    """Leave a scanned index beside its records, where that is allowed."""
    lines = (
        f"{key}\t{start}\n"
        for base in range(0, len(index.keys), 1 << 16)
        for key, start in zip(
            index.keys[base : base + (1 << 16)].tolist(), index.bounds[base : base + (1 << 16)].tolist(), strict=False
        )
    )
    try:
        storage.write_bytes(url, "".join(lines).encode(), if_absent=True)
    except StorageError as error:
        warnings.warn(f"{error}: the index is not kept; the next start reads all records again", stacklevel=2)
