"""Writes ``NAME.rec`` and ``NAME.idx`` to any fsspec URL; nothing is visible before all of it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import TracebackType

import numpy as np

from app import storage
from app.data.recordio import EXACT, ImageHeader, pack_image, pack_record


class RecordWriter:
    """Appends records and keeps the index (``key\\toffset\\n``).

    Use it as a context manager: leaving it normally publishes the ``.rec`` and then the ``.idx``; leaving it by an
    exception discards both.

    Args:
        url: of the ``.rec`` file; the index goes beside it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._index: list[str] = []
        self._offset = 0
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> RecordWriter:
        self._file = self._opened.enter_context(storage.open_writer(self.url))
        return self

    def write(self, key: int, data: bytes) -> None:
        """Append one record under ``key``."""
        record = pack_record(data)
        self._index.append(f"{key}\t{self._offset}\n")
        self._offset += len(record)
        self._file.write(record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)
        if kind is None:
            storage.write_bytes(index_url(self.url), "".join(self._index).encode())


def index_url(record_url: str) -> str:
    """``…/train.rec`` -> ``…/train.idx``."""
    return record_url.removesuffix(".rec") + ".idx"


def write_identity_layout(writer: RecordWriter, labels: Sequence[int], images: Iterable[bytes]) -> None:
    """Write images in insightface's layout.

    Record 0 holds ``(N+1, N+1+C)``: images are keys 1..N; keys N+1..N+C are one record an identity whose labels are
    the half-open range of its image keys.

    Args:
        labels: class of each image: grouped, and counted from 0 without gaps.
        images: the encoded images in that order; may be made as they are written.

    Raises:
        ValueError: the labels are not so, or there are not as many images.
    """
    count, classes = len(labels), (labels[-1] + 1 if labels else 0)
    if classes and (labels[0] != 0 or not all(after - before in (0, 1) for before, after in pairwise(labels))):
        raise ValueError("images must be grouped by class, and classes numbered from 0 without gaps")
    if classes > EXACT:
        raise ValueError(f"{classes} classes: a label is float32, which holds whole numbers up to {EXACT} only")
    # Above 2^24 float32 rounds. Rounded down, the reference misses an image or two; rounded up, it would take identity
    # records for images. This project counts the records themselves and misses none.
    header = ImageHeader((_rounded_down(count + 1), _rounded_down(count + 1 + classes)), is_array=True)
    writer.write(0, pack_image(header, b""))
    first_key: list[int] = []
    for key, (label, image) in enumerate(zip(labels, images, strict=True), start=1):
        if label == len(first_key):
            first_key.append(key)
        writer.write(key, pack_image(ImageHeader((float(label),), key), image))
    ends = [*first_key[1:], count + 1][: len(first_key)]
    for label, (start, stop) in enumerate(zip(first_key, ends, strict=True)):
        header = ImageHeader((float(start), float(stop)), count + 1 + label, is_array=True)
        writer.write(count + 1 + label, pack_image(header, b""))


def _rounded_down(number: int) -> float:
    """The largest float32 that is not above the number."""
    nearest = np.float32(number)
    return float(nearest if int(nearest) <= number else np.nextafter(nearest, np.float32(0)))
