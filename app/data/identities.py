"""The identity records of insightface's layout: which images belong to a class, without reading an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from app.data.dataset import Dataset
from app.data.reader import RecordReader
from app.data.recordio import RecordError, unpack_image, unpack_record

_CHUNK = 65536  # records in memory at a time
_EXACT = 2**24  # labels are float32: whole numbers beyond this are rounded, and a range of one image may look empty


def classes_without_image(dataset: Dataset) -> list[int]:
    """Classes whose range of image keys is empty; none where the file has no identity records.

    Raises:
        RecordError: an identity record is damaged or is no range.
    """
    starts, stops = dataset.identity_starts, dataset.identity_stops
    # The reader takes any records of a file; here it sees these instead of the images.
    reader = RecordReader(replace(dataset, keys=np.arange(len(starts)), starts=starts, stops=stops))
    empty: list[int] = []
    for label, record in reader.stream(range(len(starts)), chunk=_CHUNK):
        where = f"{dataset.url}: identity record of class {label} (bytes {starts[label]}-{stops[label]})"
        try:
            header, _ = unpack_image(unpack_record(record)[0])
        except RecordError as error:
            raise RecordError(f"{where}: {error}") from error
        if not header.is_array or len(header.labels) != 2:
            raise RecordError(f"{where}: not a range of image keys: prepare the dataset again")
        begin, end = header.labels
        if end < begin or (end == begin and end < _EXACT):
            empty.append(label)
    return empty
