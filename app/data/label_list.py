"""Labels that stand in a list beside the records: MXNet's ``.lst`` (key, label, path) or a table (key, path, label)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import RecordError


def read_labels(url: str, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label of each record, int64 [R], by its key.

    Columns are parted by tabs (or commas); the first is the key, and the label is the second where that is a number,
    else the last.

    Raises:
        RecordError: a line is not so, or a key has no line.
    """
    found: dict[int, int] = {}
    for number, line in enumerate(storage.read_bytes(url).decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        columns = line.split("\t" if "\t" in line else ",")
        try:
            found[int(columns[0])] = _whole(columns[1]) if _is_number(columns[1]) else _whole(columns[-1])
        except (ValueError, IndexError) as error:
            if number == 1:  # names of the columns
                continue
            raise RecordError(f"{url}: line {number}: expected key, label and path, found {line[:60]!r}") from error
    labels = np.array([found.get(key, -1) for key in keys.tolist()], dtype=np.int64)
    if len(labels) and labels.min() < 0:
        key = int(keys[int(np.argmin(labels))])
        raise RecordError(f"{url}: no label for the record with key {key}: the list does not belong to this .rec file")
    return labels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(text: str) -> int:
    value = float(text)
    if value != int(value) or value < 0:
        raise ValueError(text)
    return int(value)
