"""Labels that stand in a list beside the records: MXNet's ``.lst`` (key, label, path) or a table (key, path, label)."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import MAX_CLASSES, RecordError

_PIECE = 8 << 20  # bytes that are read at a time


def read_labels(url: str, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The label of each record, int64 [R], by its key.

    Columns are parted by tabs (or commas); the first is the key, and the label is the second where that is a number,
    else the last. Blank lines and a first line with names of columns are passed over; keys of no record too.

    Raises:
        RecordError: a line is not so, a key has no line, or two lines with different labels.
    """
    listed, labels = _read_pairs(url)
    if (listed[1:] < listed[:-1]).any():
        order = np.argsort(listed, kind="stable")
        listed, labels = listed[order], labels[order]
    if len(twice := np.flatnonzero((listed[1:] == listed[:-1]) & (labels[1:] != labels[:-1]))):
        at = int(twice[0])
        raise RecordError(f"{url}: key {listed[at]} has the labels {labels[at]} and {labels[at + 1]}: correct the list")
    places = np.searchsorted(listed, keys)
    np.minimum(places, max(0, len(listed) - 1), out=places)
    found = listed[places] == keys if len(listed) else np.zeros(len(keys), dtype=bool)
    if not found.all():
        key = int(keys[int(np.argmin(found))])
        raise RecordError(f"{url}: no label for the record with key {key}: the list does not belong to this .rec file")
    return labels[places]


def _read_pairs(url: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keys and labels in the list's order."""
    keys, labels = array("q"), array("q")
    for number, line in enumerate(_lines(url), start=1):
        if not line.strip():
            continue
        try:
            columns = line.split("\t") if "\t" in line else next(csv.reader([line]))
            key, label = int(columns[0]), _label(columns)
            keys.append(key)
            labels.append(label)
        except (ValueError, IndexError, OverflowError, csv.Error) as error:
            if number == 1 and not _is_number(line.split("\t")[0].split(",")[0]):  # names of the columns
                continue
            raise RecordError(
                f"{url}: line {number}: expected key, label and path, parted by tabs, found {line[:60]!r}; a label is "
                f"a whole number from 0 to {MAX_CLASSES - 1}"
            ) from error
    return np.frombuffer(keys, dtype=np.int64), np.frombuffer(labels, dtype=np.int64)


def _lines(url: str) -> Iterator[str]:
    """Lines without their ends, in memory one piece of the list at a time."""
    size, rest = storage.info(url).size, b""
    for start in range(0, size, _PIECE):
        piece = storage.read_range(url, start, min(start + _PIECE, size))
        if not start:
            piece = piece.removeprefix(b"\xef\xbb\xbf")
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    yield rest.decode("utf-8", "replace")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _label(columns: list[str]) -> int:
    text = columns[1] if _is_number(columns[1]) else columns[-1]
    value = int(text) if text.isdecimal() else float(text)
    if value != int(value) or not 0 <= value < MAX_CLASSES:
        raise ValueError(text)
    return int(value)
