"""The images of a ``.rec`` file as a source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.data.dataset import Dataset
from app.data.identities import classes_without_image
from app.data.reader import RecordReader
from app.data.source import Sample


class RecordSource:
    """Samples of a dataset's ``.rec`` file; see ``Source`` for the methods.

    Args:
        max_request_bytes: longest ranged read.
    """

    def __init__(self, dataset: Dataset, *, max_request_bytes: int = 8 << 20) -> None:
        self.dataset = dataset
        self.reader = RecordReader(dataset, max_request_bytes=max_request_bytes)
        self.url, self.num_classes, self.tag = dataset.url, dataset.num_classes, dataset.tag
        self.record_bytes = dataset.record_bytes

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Undecoded records at ``positions``, in that order."""
        return self.reader.read(positions)

    def parse(self, position: int, record: bytes) -> Sample:
        """Label (the first, where there are several) and encoded image."""
        header, image = self.reader.parse(position, record)
        return Sample(header.labels[0] if header.labels else float("nan"), image)

    def describe(self, position: int) -> str:
        """URL, key and byte range."""
        return self.reader.describe(position)

    def classes_without_image(self) -> list[int]:
        """Classes whose identity record is an empty range; none where the file has no identity records."""
        return classes_without_image(self.dataset)

    def figures(self) -> dict[str, float]:
        """Requests, bytes, what was asked for again, and how long requests took."""
        return self.reader.fetcher.figures()
