"""A dataset folder: ``train.rec``, ``train.idx`` and, optionally, ``property``, at any fsspec URL.

Only the index and a few records are read to open it; see ``reader.py`` for the images.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.index import RecordIndex, open_index
from app.data.node_arrays import node_folder
from app.data.record_writer import index_url
from app.data.recordio import EXACT, MAX_CLASSES, ImageHeader, RecordError, unpack_image, unpack_record
from app.storage import ObjectInfo

_Slots = slice | NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """The images of a ``.rec`` file, as positions 0..N-1 in file order.

    ``num_classes`` is 0 when neither identity records nor a ``property`` file tell it. ``identity_starts`` and
    ``identity_stops`` are where the identity records lie, in class order; empty where there is not one for every class.
    The arrays are int64 and may be mapped from a file that all processes of the node share.
    """

    url: str
    object: ObjectInfo
    keys: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    num_classes: int
    tag: str = ""  # identity of the content: size and a hash of the index, and the store's ETag where it has one
    identity_starts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    identity_stops: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def record_bytes(self) -> float:
        """Mean size of an image record in bytes, without touching the whole index."""
        return float(self.stops[-1] - self.starts[0]) / len(self)


def open_dataset(folder: str) -> Dataset:
    """Open the dataset at a folder URL. An index that is missing is made again from the records, and kept.

    Raises:
        StorageError: ``train.rec`` or ``train.idx`` cannot be read.
        RecordError: they do not fit each other, or hold no image.
    """
    url = storage.join(folder, "train.rec")
    identity = storage.info(url)
    if not identity.size:
        raise RecordError(f"{storage.redact(url)}: it is empty, or its server does not tell its size: upload it again")
    index = open_index(identity, index_url(url), folder=node_folder())
    images, identities, num_classes = _find_images(url, index)
    starts, stops = index.bounds[:-1], index.bounds[1:]
    keys = index.keys[images]
    if not len(keys):
        raise RecordError(f"{url}: the dataset holds no image: prepare it again")
    num_classes = num_classes or _classes_of_property(storage.join(folder, "property"))
    return Dataset(
        *(url, identity, keys, starts[images], stops[images], num_classes),
        *(content_tag(identity, index.hash), starts[identities], stops[identities]),
    )


def _find_images(url: str, index: RecordIndex) -> tuple[_Slots, _Slots, int]:
    """Which records are images, which are identities in class order, and how many classes these tell of (0: unknown).

    insightface's layout: record 0 holds (N+1, N+1+C), keys 1..N are images, keys N+1..N+C one record an identity. Other
    tools write images only, with or without a key 0.
    """
    first_key = int(index.keys[0]) if index.ascending else int(index.keys.min())
    header, image = _read_record(url, index, first_key)
    none = slice(0, 0)
    if header.is_array and first_key == 0 and len(header.labels) == 2 and not image:
        begin, end = _layout_bounds(url, index, header)
        images, identities = _with_keys(index, 1, begin), _with_keys(index, begin, end)
        count, people = len(index.keys[images]), len(index.keys[identities])
        # face2rec2 leaves out pictures that it cannot read, and its header counts them all the same.
        if count != begin - 1:
            problem = f"{url}: the header announces {begin - 1} images, the index has {count}"
            if people != end - begin or not count:
                raise RecordError(f"{problem}: the index is incomplete; delete it, and it is made again")
            warnings.warn(f"{problem}: the others were left out when the file was written", stacklevel=2)
        _say_what_is_behind(url, index, begin, end)
        return images, identities if people == end - begin else none, end - begin
    begin, end = _bare_identities(url, index, first_key)
    if end > begin:
        return _with_keys(index, first_key, begin), _with_keys(index, begin, end), end - begin
    return slice(0, len(index.keys)), none, 0


def _say_what_is_behind(url: str, index: RecordIndex, begin: int, end: int) -> None:
    """Warn of images that nobody trains: behind those that the header announces, as after records were appended."""
    behind = index.keys[_with_keys(index, begin, 2**62)]
    if not len(behind):
        return
    foreign = behind[behind >= end] if _is_identity(url, index, int(behind[0])) else behind
    if len(foreign):
        warnings.warn(
            f"{url}: {len(foreign)} records from key {foreign[0]} on lie behind the {begin - 1} images that the header "
            "announces, and are not trained: if they are images, write the file again with a header that counts them",
            stacklevel=3,
        )


def _layout_bounds(url: str, index: RecordIndex, header: ImageHeader) -> tuple[int, int]:
    """N+1 and N+1+C of record 0. Labels are float32, which holds no odd number above 2^24: there the records decide.

    Raises:
        RecordError: they are no such numbers.
    """
    first, second = header.labels
    if not 1 <= first <= second < 2**62 or first != int(first) or second != int(second):
        raise RecordError(f"{url}: record 0 says that images end at {first} and identities at {second}: it is damaged")
    begin, end, last = int(first), int(second), int(index.keys[-1] if index.ascending else index.keys.max())
    if begin >= EXACT:
        step = int(np.spacing(np.float32(first)))
        low, high = max(begin - step, 0), min(begin + step, last + 1)  # low: an image; high: an identity
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _is_identity(url, index, middle) else (middle, high)
        begin = high
    if end >= EXACT and abs(last + 1 - end) <= np.spacing(np.float32(second)):
        end = last + 1
    return begin, max(begin, end)


def _is_identity(url: str, index: RecordIndex, key: int) -> bool:
    header, image = _read_record(url, index, key)
    return header.is_array and len(header.labels) == 2 and not image


def _bare_identities(url: str, index: RecordIndex, first_key: int) -> tuple[int, int]:
    """Keys of identity records behind the images of a file that lost its header; empty where there are none."""
    last = int(index.keys[-1]) if index.ascending else int(index.keys.max())

    # Only keys without gaps can be halved; the first record is an image, or there is nothing to train.
    if (
        not index.ascending
        or last - first_key + 1 != len(index.keys)
        or first_key == last
        or not _is_identity(url, index, last)
    ):
        return 0, 0
    low, high = first_key, last  # low: an image; high: an identity
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_identity(url, index, middle) else (middle, high)
    return high, last + 1


def _with_keys(index: RecordIndex, first: int, stop: int) -> _Slots:
    """The records with keys ``first..stop``, in the order of the file where keys ascend with it, else of the keys."""
    if index.ascending:
        low, high = np.searchsorted(index.keys, [first, stop])
        return slice(int(low), int(high))
    chosen = np.flatnonzero((index.keys >= first) & (index.keys < stop))
    return chosen[np.argsort(index.keys[chosen], kind="stable")]


def content_tag(identity: ObjectInfo, index_hash: str) -> str:
    """What a resumed run must find unchanged: the same on every node, and after a copy that keeps the bytes.

    A file's time is not part of it, since copies of one dataset on the disks of several nodes have different ones.
    """
    dated = identity.tag.endswith(" GMT")  # of an HTTP server that has no ETags
    etag = "" if dated or storage.is_local(storage.open_filesystem(identity.url)[0]) else identity.tag
    return "-".join(filter(None, [str(identity.size), index_hash[:32], etag]))


def _read_record(url: str, index: RecordIndex, key: int) -> tuple[ImageHeader, bytes]:
    found = int(np.searchsorted(index.keys, key)) if index.ascending else int(np.argmax(index.keys == key))
    start, stop = int(index.bounds[found]), int(index.bounds[found + 1])
    try:
        return unpack_image(unpack_record(storage.read_range(url, start, stop))[0])
    except RecordError as error:
        raise RecordError(f"{url}: bytes {start}-{stop}: {error}") from error


def _classes_of_property(url: str) -> int:
    """The class count of a ``property`` file (``classes,height,width``), or 0 without one."""
    if not storage.exists(url):
        return 0
    text = storage.read_bytes(url).decode("utf-8-sig", "replace")
    try:
        classes = int(text.split(",")[0])
    except ValueError:
        classes = 0
    if not 1 <= classes <= MAX_CLASSES:
        raise RecordError(
            f"{url}: expected 'classes,height,width' with 1 to {MAX_CLASSES} classes, found {text[:40]!r}"
        )
    return classes
