"""Finds the records of a ``.rec`` file by reading it from its first byte to its last: what a lost index costs."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from app import storage
from app.data.recordio import MAGIC, MAX_PART_BYTES, RecordError
from app.patience import tell_progress
from app.storage import ObjectInfo

_CHUNK = 16 << 20
_AHEAD = 4  # chunks in memory
_HEADS = struct.Struct("<IIIfQ")  # a part's magic and length; an image header's flag, label and id


def scan_records(record: ObjectInfo) -> NDArray[np.int64]:
    """Key and start of every record, int64 [R, 2].

    The key is the id in the record's header where these differ from each other, as insightface's and MXNet's tools
    write them, else the record's number.

    Raises:
        RecordError: the file is damaged; names the byte.
    """
    starts, ids = array("q"), array("Q")
    # Where the next record starts and whether the parts before it belong together.
    position, inside = 0, False
    bar = Progress(
        *("reading records", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("", total=record.size)
        held, base = b"", 0
        for chunk in _chunks(record):
            held, base = held[max(0, position - base) :], max(base, min(position, base + len(held)))
            held += chunk
            while position + _HEADS.size <= base + len(held):
                magic, word, _, _, identity = _HEADS.unpack_from(held, position - base)
                kind, length = word >> 29, word & MAX_PART_BYTES
                stop = position + 8 + length + -length % 4
                if magic != MAGIC or kind not in ((2, 3) if inside else (0, 1)) or stop > record.size:
                    raise RecordError(
                        f"{storage.redact(record.url)}: no whole record at byte {position}: the file is damaged or "
                        "truncated there, and without an .idx file what follows cannot be found"
                    )
                if not inside:
                    starts.append(position)
                    ids.append(identity)
                inside = kind in (1, 2)
                position = stop
                if position >= base + len(held):
                    break
            bar.update(task, completed=base + len(held))
    if position != record.size or inside:
        raise RecordError(f"{storage.redact(record.url)}: the record at byte {position} is cut off: upload it again")
    return _with_keys(starts, ids)


def _with_keys(starts: array[int], ids: array[int]) -> NDArray[np.int64]:
    keys = np.frombuffer(ids, dtype=np.uint64)
    if len(np.unique(keys)) != len(keys) or (len(keys) and keys.max() >= 2**62):
        keys = np.arange(len(starts), dtype=np.uint64)
    return np.stack([keys.astype(np.int64), np.frombuffer(starts, dtype=np.int64)], axis=1)


def _chunks(record: ObjectInfo) -> Iterator[bytes]:
    ranges = [(start, min(start + _CHUNK, record.size)) for start in range(0, record.size, _CHUNK)]
    with ThreadPoolExecutor(_AHEAD) as pool:
        ahead = [pool.submit(storage.read_range, record.url, *bounds) for bounds in ranges[:_AHEAD]]
        for number in range(len(ranges)):
            chunk = ahead.pop(0).result()
            tell_progress()
            if number + _AHEAD < len(ranges):
                ahead.append(pool.submit(storage.read_range, record.url, *ranges[number + _AHEAD]))
            yield chunk
