"""Where the records of a ``.rec`` file lie: its ``.idx`` read once a node, or made again by scanning the records.

The first process of a node parses the index in pieces and leaves two int64 arrays; all others map them. A file is told
by URL, size and version tag, so that a new upload is parsed anew.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.decimal_columns import parse_columns
from app.data.node_arrays import STEP, Arrays, Column, share
from app.data.recordio import MAGIC, MAX_PART_BYTES, PART, RecordError
from app.data.scan import scan_records
from app.data.text_lines import whole_lines
from app.storage import ObjectInfo, StorageError

_MOST_LINES = 1 << 20  # that a file of any size may have
_NUMBERS = b"0123456789 \t\n\v\f\r"
_HEADER = 64  # bytes before the first record that may be a header which the index leaves out


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
    if not (record.tag and (text is None or text.tag)):
        folder = None  # of two uploads of one size nobody could tell which was parsed
    made = share(folder, f"{record!r} {text!r}", lambda place: _make(record, url, text, place))
    arrays, about = made.arrays, made.about
    return RecordIndex(arrays["keys"], arrays["bounds"], str(about["hash"]), bool(about["ascending"]))


def _make(record: ObjectInfo, url: str, text: ObjectInfo | None, folder: Path | None) -> Arrays:
    """Parse or scan; with a folder the arrays are written there piece by piece, and no process ever holds them."""
    if text is None:
        warnings.warn(f"{storage.redact(url)} does not exist: it is made again by reading {record.url}", stacklevel=2)
        pairs = iter([scan_records(record)])
        made = _collect(pairs, record, url, folder)
        _keep_index(url, made.arrays["keys"], made.arrays["bounds"])
        return made
    return _collect((parse_lines(url, lines) for lines in whole_lines(text, b"\n\r")), record, url, folder)


def _collect(pieces: Iterator[NDArray[np.int64]], record: ObjectInfo, url: str, folder: Path | None) -> Arrays:
    """Check the pairs (key, start), sort them where they are not, and hash them."""
    with Column(folder, "keys") as keys, Column(folder, "bounds") as bounds:
        for pairs in pieces:
            keys.append(pairs[:, 0])
            bounds.append(pairs[:, 1])
            if keys.length > _MOST_LINES + record.size // PART.size * 2:  # a line may stand there twice
                raise RecordError(
                    f"{storage.redact(url)}: holds more lines than {record.url} of {record.size} bytes has room for "
                    "records: it belongs to another file, or is damaged"
                )
        if not keys.length:
            raise RecordError(
                f"{storage.redact(url)}: the index is empty, or its server does not tell its size: upload it again"
            )
        bounds.append(np.array([record.size]))
    if not _is_ascending(bounds.array):
        order = _file_order(keys.array, bounds.array[:-1])
        keys.reorder(order)
        bounds.reorder(order, record.size)
    all_keys, all_bounds = keys.array, bounds.array
    _check(all_keys, all_bounds, record, url)
    if all_bounds[0] > _HEADER:
        warnings.warn(
            f"{storage.redact(url)}: its first record begins at byte {all_bounds[0]}: what {record.url} holds before "
            "is not trained. If the index lost lines, delete it, and it is made again",
            stacklevel=2,
        )
    _check_end(int(all_bounds[-2]), record, url)
    digest = hashlib.sha256()
    for array in (all_keys, all_bounds):
        for start in range(0, len(array), STEP):
            digest.update(np.ascontiguousarray(array[start : start + STEP]).data)
    about = {"hash": digest.hexdigest(), "ascending": _is_ascending(all_keys)}
    return Arrays({"keys": all_keys, "bounds": all_bounds}, about)


def _pairwise(test: Callable[[NDArray[np.int64]], bool], array: NDArray[np.int64]) -> bool:
    """Whether a test of neighbours holds everywhere, without an array as long as the index."""
    return all(test(array[start : start + STEP + 1]) for start in range(0, max(1, len(array) - 1), STEP))


def _is_ascending(array: NDArray[np.int64]) -> bool:
    return _pairwise(lambda part: bool((part[1:] > part[:-1]).all()), array)


def _file_order(keys: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the pairs by their starts; a pair that stands there twice counts once."""
    order = np.argsort(starts, kind="stable")
    first = np.ones(len(order), dtype=bool)
    for base in range(1, len(order), STEP):
        part = order[base - 1 : base + STEP]
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


def parse_lines(url: str, text: bytes) -> NDArray[np.int64]:
    """Lines ``key\\toffset``, whatever ends them, as int64 [lines, 2].

    Raises:
        RecordError: a line is not two whole numbers.
    """
    if not text or text.isspace():
        return np.empty((0, 2), dtype=np.int64)
    if (columns := parse_columns(text)) is not None:  # within bounds: they have at most 18 digits
        return columns
    # Numpy only warns of other bytes; to make an error of that would change the warnings of the threads that read, too.
    if text.translate(None, _NUMBERS):
        raise RecordError(
            f"{url}: not an index of lines 'key<TAB>offset': delete it, and it is made again from the .rec file"
        )
    numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
    if len(numbers) and numbers.max() >= 2**62:  # larger ones are cut to int64's largest
        raise RecordError(
            f"{url}: holds numbers of {numbers.max()} and more, which are no keys and offsets: it is damaged"
        )
    if len(numbers) % 2:
        raise RecordError(f"{url}: the index ends inside a line: upload it again")
    return numbers.reshape(-1, 2)


def _keep_index(url: str, keys: NDArray[np.int64], bounds: NDArray[np.int64]) -> None:
    """Leave a scanned index beside its records, where that is allowed."""
    lines = (
        f"{key}\t{start}\n"
        for base in range(0, len(keys), 1 << 16)
        for key, start in zip(
            keys[base : base + (1 << 16)].tolist(), bounds[base : base + (1 << 16)].tolist(), strict=False
        )
    )
    try:
        storage.write_bytes(url, "".join(lines).encode(), if_absent=True)
    except StorageError as error:
        warnings.warn(f"{error}: the index is not kept; the next start reads all records again", stacklevel=2)
