"""The images of a ``.rec`` file as a source."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.chunk_cache import ChunkCache
from app.data.dataset import Dataset
from app.data.identities import classes_without_image
from app.data.label_list import open_labels
from app.data.node_arrays import node_folder
from app.data.reader import RecordReader
from app.data.recordio import EXACT, RecordError, unpack_plain_image
from app.data.source import Sample


class RecordSource:
    """Samples of a dataset's ``.rec`` file; see ``Source`` for the methods.

    Args:
        max_request_bytes: longest ranged read.
        cache: folder on the node's disk and cap in bytes, for what was read once.
        labels: URL of a list that replaces the records' labels; see ``label_list.py``.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        max_request_bytes: int = 8 << 20,
        cache: tuple[Path, int] | None = None,
        labels: str = "",
    ) -> None:
        self.dataset = dataset
        self.reader = RecordReader(dataset, max_request_bytes=max_request_bytes)
        self.url, self.num_classes, self.tag = dataset.url, dataset.num_classes, dataset.tag
        self.record_bytes = dataset.record_bytes
        self._cache: ChunkCache | None = None
        if cache is not None and not dataset.object.tag:
            warnings.warn(
                f"data.cache: the server of {storage.redact(self.url)} tells neither ETag nor date: another upload "
                "could not be told from this one, so nothing is kept",
                stacklevel=2,
            )
        elif cache is not None:
            self._cache = ChunkCache(dataset.object, self.reader.fetch, *cache)
            self.reader.fetch = self._cache.fetch
        self.labels_url = labels
        self._labels: NDArray[np.int64] | None = None
        if labels:
            listed = open_labels(labels, dataset.keys, dataset.tag, folder=node_folder())
            self._labels, self.num_classes = listed.labels, listed.num_classes
            self.tag += "-" + listed.hash[:16]
        elif self.num_classes > EXACT:
            raise RecordError(
                f"{storage.redact(self.url)}: {self.num_classes} classes, but the labels in records are float32, which "
                f"holds no odd number above {EXACT}: two people would be one. Name a list of labels in data.labels"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Undecoded records at ``positions``, in that order."""
        return self.reader.read(positions)

    def parse(self, position: int, record: bytes) -> Sample:
        """Label (the first, where there are several) and encoded image."""
        if self._labels is None and (plain := unpack_plain_image(record)):
            return Sample(*plain)
        header, image = self.reader.parse(position, record)
        if self._labels is not None:
            return Sample(float(self._labels[position]), image)
        return Sample(header.labels[0] if header.labels else float("nan"), image)

    def describe(self, position: int) -> str:
        """URL, key and byte range."""
        return self.reader.describe(position)

    def classes_without_image(self) -> list[int]:
        """Classes whose identity record is an empty range; none where the file has no identity records."""
        if self._labels is not None:
            empty = np.ones(self.num_classes, dtype=bool)
            empty[self._labels] = False
            return np.flatnonzero(empty).tolist()
        return classes_without_image(self.dataset)

    def figures(self) -> dict[str, float]:
        """Requests, bytes, what was asked for again, and how long requests took."""
        cached = {"cache_hits": self._cache.hits, "cache_misses": self._cache.misses} if self._cache else {}
        return {**self.reader.fetcher.figures(), **cached}
