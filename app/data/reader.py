"""Fetches records by position, in few large ranged reads, from any fsspec URL.

Samples of one shuffle window that lie side by side in the file come with one request. What several windows share is
not kept: windows of one worker do not overlap, except in one block at each seam.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.dataset import Dataset
from app.data.fetch import RangeFetcher
from app.data.recordio import ImageHeader, RecordError, unpack_image, unpack_record


class RecordReader:
    """Reads records of a dataset; open one a process, after it was started (s3fs does not survive a fork).

    Args:
        max_request_bytes: longest ranged read.
        max_gap_bytes: bytes between two wanted records that are read along rather than asked for separately.
    """

    def __init__(self, dataset: Dataset, *, max_request_bytes: int = 8 << 20, max_gap_bytes: int = 64 << 10) -> None:
        self.dataset = dataset
        self._max_request = max_request_bytes
        self._max_gap = max_gap_bytes
        self.fetcher = RangeFetcher(dataset.object)
        self.fetch = self.fetcher.fetch  # a cache may stand before it
        self._odd = False  # whether a record with bytes behind it was said

    @property
    def requests(self) -> int:
        """Ranged reads so far."""
        return self.fetcher.requests

    @property
    def bytes_read(self) -> int:
        """Bytes that came with them."""
        return self.fetcher.bytes_read

    def read(self, positions: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """Undecoded records at ``positions``, in that order.

        Raises:
            StorageError: a range cannot be read, or the ``.rec`` file is not the one that was opened.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        order = np.argsort(wanted, kind="stable")
        starts, stops = self.dataset.starts[wanted[order]], self.dataset.stops[wanted[order]]
        groups = self._group(starts, stops)
        ranges = [(int(starts[first]), int(stops[last - 1])) for first, last in groups]
        chunks = self.fetch(ranges)
        records: list[bytes] = [b""] * len(wanted)
        for (first, last), (base, _), chunk in zip(groups, ranges, chunks, strict=True):
            bounds = (starts[first:last] - base).tolist(), (stops[first:last] - base).tolist()
            for place, start, stop in zip(order[first:last].tolist(), *bounds, strict=True):
                records[place] = bytes(chunk[start:stop])  # copied: the rest of the block is freed sooner
        return records

    def stream(self, positions: Sequence[int] | NDArray[np.int64], *, chunk: int = 2048) -> Iterator[tuple[int, bytes]]:
        """Positions and undecoded records, in that order, ``chunk`` of them in memory at a time."""
        for start in range(0, len(positions), chunk):
            part = positions[start : start + chunk]
            yield from zip((int(position) for position in part), self.read(part), strict=True)

    def _group(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Runs of neighbouring records, as slices of the sorted arrays."""
        groups: list[tuple[int, int]] = []
        breaks = np.flatnonzero(starts[1:] - stops[:-1] > self._max_gap) + 1
        for first, last in pairwise([0, *breaks.tolist(), len(starts)]):
            start = first
            while start < last:
                end = int(np.searchsorted(stops[start:last], starts[start] + self._max_request, side="right")) + start
                groups.append((start, max(start + 1, end)))
                start = groups[-1][1]
        return groups

    def parse(self, position: int, record: bytes) -> tuple[ImageHeader, bytes]:
        """Split a record into header and image bytes.

        Raises:
            RecordError: it is damaged; names URL, key and byte range.
        """
        try:
            data, end = unpack_record(record)
            if end < len(record) and not self._odd and self.dataset.stops[position] != self.dataset.object.size:
                self._odd = True
                warnings.warn(
                    f"{self.describe(position)}: {len(record) - end} bytes behind this record belong to none: what "
                    "they hold is not trained. If the index lost lines, delete it, and it is made again",
                    stacklevel=2,
                )
            return unpack_image(data)
        except RecordError as error:
            raise RecordError(f"{self.describe(position)}: {error}") from error

    def describe(self, position: int) -> str:
        """Where a record lies, for messages."""
        dataset = self.dataset
        return (
            f"{storage.redact(dataset.url)}: record key {dataset.keys[position]} "
            f"(bytes {dataset.starts[position]}-{dataset.stops[position]})"
        )
