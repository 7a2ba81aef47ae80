"""A dataset folder: ``train.rec``, ``train.idx`` and, optionally, ``property``, at any fsspec URL.

Only the index and the header record are read to open it; see ``reader.py`` for the images.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.record_writer import index_url
from app.data.recordio import RecordError, unpack_image, unpack_record
from app.storage import ObjectInfo


@dataclass(frozen=True)
class RecordIndex:
    """Where each record of a file lies, in file order: ``keys``, ``starts``, ``stops`` are int64 [R], bytes."""

    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """The images of a ``.rec`` file, as positions 0..N-1 in file order.

    ``num_classes`` is 0 when neither identity records nor a ``property`` file tell it. ``identity_starts`` and
    ``identity_stops`` are where the identity records lie, in class order; empty where there is not one for every class.
    """

    url: str
    object: ObjectInfo
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    num_classes: int
    tag: str = ""  # identity of the content: sizes and a hash of the index, the store's ETag where it has one
    identity_starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    identity_stops: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def record_bytes(self) -> float:
        """Mean size of an image record in bytes."""
        return float((self.stops - self.starts).mean())


def parse_index(url: str, text: bytes, file_size: int) -> RecordIndex:
    """Read the lines ``key\\toffset`` of an ``.idx`` file.

    Args:
        url: for messages.
        text: the file's content.
        file_size: bytes of the ``.rec`` file, where the last record ends.

    Raises:
        RecordError: a line is not two whole numbers, or an offset repeats or lies outside the ``.rec`` file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise RecordError(f"{url}: not an index of lines 'key<TAB>offset': make it again from the .rec file") from error
    if len(numbers) == 0 or len(numbers) % 2:
        what = "is empty" if len(numbers) == 0 else "ends inside a line"
        raise RecordError(f"{url}: the index {what}: upload it again")
    keys, starts = numbers[0::2], numbers[1::2]
    order = np.argsort(starts, kind="stable")
    keys, starts = keys[order], starts[order]
    stops = np.append(starts[1:], file_size)
    if starts[0] < 0 or np.any(stops - starts < 8):
        bad = int(np.argmax((stops - starts < 8) | (starts < 0)))
        raise RecordError(
            f"{url}: key {keys[bad]} at byte {starts[bad]} leaves no room for a record before byte {stops[bad]}: the "
            f"index does not belong to this .rec file of {file_size} bytes, or the .rec file is truncated"
        )
    return RecordIndex(keys, starts, stops)


def open_dataset(folder: str) -> Dataset:
    """Open the dataset at a folder URL.

    Raises:
        StorageError: ``train.rec`` or ``train.idx`` cannot be read.
        RecordError: they do not fit each other, or hold no image.
    """
    url = storage.join(folder, "train.rec")
    identity = storage.info(url)
    text = storage.read_bytes(index_url(url))
    index = parse_index(index_url(url), text, identity.size)
    first = int(np.argmin(index.keys))
    data, _ = _read_record(url, int(index.starts[first]), int(index.stops[first]))
    header, _ = unpack_image(data)
    if header.is_array and index.keys[first] == 0 and len(header.labels) == 2:
        # insightface's layout: image keys are 1..N, behind them one record an identity.
        stop_image, stop_identity = (int(value) for value in header.labels)
        chosen = (index.keys >= 1) & (index.keys < stop_image)
        num_classes = stop_identity - stop_image
        if int(chosen.sum()) != stop_image - 1:
            raise RecordError(f"{url}: the header announces {stop_image - 1} images, the index has {int(chosen.sum())}")
    else:
        chosen, num_classes, stop_image = np.ones(len(index.keys), dtype=bool), 0, 0
    if not chosen.any():
        raise RecordError(f"{url}: the dataset holds no image: prepare it again")
    num_classes = num_classes or _classes_of_property(storage.join(folder, "property"))
    images = (index.keys[chosen], index.starts[chosen], index.stops[chosen])
    tag = content_tag(identity, hashlib.sha256(text).hexdigest())
    return Dataset(url, identity, *images, num_classes, tag, *_identity_records(index, stop_image, num_classes))


def content_tag(identity: ObjectInfo, index_hash: str) -> str:
    """What a resumed run must find unchanged: the same on every node, and after a copy that keeps the bytes.

    A file's time is not part of it, since copies of one dataset on the disks of several nodes have different ones.
    """
    etag = "" if storage.is_local(storage.open_filesystem(identity.url)[0]) else identity.tag
    return "-".join(filter(None, [str(identity.size), index_hash[:32], etag]))


def _identity_records(index: RecordIndex, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and stops of the records with keys ``first .. first + count - 1``; nothing where one is missing."""
    chosen = np.flatnonzero((index.keys >= first) & (index.keys < first + count))
    in_order = chosen[np.argsort(index.keys[chosen], kind="stable")]
    if first == 0 or not np.array_equal(index.keys[in_order], np.arange(first, first + count)):
        in_order = in_order[:0]
    return index.starts[in_order], index.stops[in_order]


def _read_record(url: str, start: int, stop: int) -> tuple[bytes, int]:
    try:
        return unpack_record(storage.read_range(url, start, stop))
    except RecordError as error:
        raise RecordError(f"{url}: bytes {start}-{stop}: {error}") from error


def _classes_of_property(url: str) -> int:
    """The class count of a ``property`` file (``classes,height,width``), or 0 without one."""
    if not storage.exists(url, optional=True):
        return 0
    text = storage.read_bytes(url).decode("ascii", "replace")
    try:
        return int(text.split(",")[0])
    except ValueError as error:
        raise RecordError(f"{url}: expected 'classes,height,width', found {text[:40]!r}") from error
