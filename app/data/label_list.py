"""Labels that stand in a list beside the records: MXNet's ``.lst`` (key, label, path) or a table (key, path, label).

The first process of a node reads the list and leaves the labels of the records; all others map them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.label_lines import parse_label_lines
from app.data.node_arrays import STEP, Arrays, Column, share
from app.data.recordio import RecordError
from app.data.text_lines import whole_lines
from app.storage import ObjectInfo

_AT_ONCE = 1 << 20  # bytes whose columns stay in a processor's cache


@dataclass(frozen=True)
class Labels:
    """``labels`` int64 [R] of the records, ``hash`` the SHA-256 of them; ``num_classes`` is the largest and one."""

    labels: NDArray[np.int64]
    hash: str
    num_classes: int


def open_labels(url: str, keys: NDArray[np.int64], records: str, *, folder: Path | None = None) -> Labels:
    """The label of each record by its key, as the list at ``url`` has it.

    Columns are parted by tabs, commas, semicolons or spaces; the first is the key, and the label is the second where
    that is a number, else the last. Blank lines and a first line with names of columns are passed over; keys of no
    record too.

    Args:
        keys: int64 [R] of the records.
        records: what tells these records from others, such as the dataset's tag.
        folder: where labels of this node lie; None: nowhere.

    Raises:
        RecordError: a line is not so, a key has no line, or two lines with different labels.
        StorageError: it cannot be read.
    """
    text = storage.info(url)
    if not text.tag:
        folder = None  # of two uploads of one size nobody could tell which was parsed
    made = share(folder, f"{text!r} {records}", lambda place: _make(text, keys, place))
    return Labels(made.arrays["labels"], str(made.about["hash"]), int(made.about["num_classes"]))


def _make(text: ObjectInfo, keys: NDArray[np.int64], folder: Path | None) -> Arrays:
    listed, labels = _sorted_list(text)
    digest, largest = hashlib.sha256(), -1
    with Column(folder, "labels") as column:
        for start in range(0, len(keys), STEP):
            wanted = np.asarray(keys[start : start + STEP])
            places = np.minimum(np.searchsorted(listed, wanted), max(0, len(listed) - 1))
            found = listed[places] == wanted if len(listed) else np.zeros(len(wanted), dtype=bool)
            if not found.all():
                raise RecordError(
                    f"{storage.redact(text.url)}: no label for the record with key {wanted[int(np.argmin(found))]}: "
                    "the list does not belong to this .rec file"
                )
            values = labels[places].astype(np.int64)
            largest = max(largest, int(values.max()))
            digest.update(values.data)
            column.append(values)
    return Arrays({"labels": column.array}, {"hash": digest.hexdigest(), "num_classes": largest + 1})


def _sorted_list(text: ObjectInfo) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keys and labels by ascending keys.

    Raises:
        RecordError: a key has two labels.
    """
    pieces = list(_read_list(text))
    listed = np.concatenate([keys for keys, _ in pieces] or [np.empty(0, dtype=np.int64)])
    labels = np.concatenate([labels for _, labels in pieces] or [np.empty(0, dtype=np.int32)])
    del pieces
    if (listed[1:] < listed[:-1]).any():
        order = np.argsort(listed, kind="stable")
        listed, labels = listed[order], labels[order]
    if len(twice := np.flatnonzero((listed[1:] == listed[:-1]) & (labels[1:] != labels[:-1]))):
        at = int(twice[0])
        raise RecordError(
            f"{storage.redact(text.url)}: key {listed[at]} has the labels {labels[at]} and {labels[at + 1]}: correct "
            "the list"
        )
    return listed, labels


def _read_list(text: ObjectInfo) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    number = 1
    for lines in whole_lines(text):
        begin = 0
        while begin < len(lines):
            end = lines.find(b"\n", min(begin + _AT_ONCE, len(lines) - 1)) + 1 or len(lines)
            yield parse_label_lines(text.url, lines[begin:end], number)
            number += lines.count(b"\n", begin, end)
            begin = end
