"""Look at existing ``.rec`` files: check and count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_leniently
from app.data.reader import RecordReader
from app.data.recordio import ImageHeader, RecordError, class_of

_UNREAD = np.iinfo(np.int64).min  # the label of a record that has none


def read_all(dataset: Dataset) -> Iterator[tuple[int, ImageHeader | None, bytes, str]]:
    """Every record in file order: position, header, image bytes, and what is wrong with it (then no header)."""
    reader = RecordReader(dataset)
    for position, record in reader.stream(range(len(dataset))):
        try:
            header, image = reader.parse(position, record)
        except RecordError as error:
            yield position, None, b"", str(error)
            continue
        yield position, header, image, ""


def check_dataset(url: str, *, decode: bool = True) -> tuple[str, list[str]]:
    """Statistics of a dataset, and all that is wrong with it.

    Damaged records, unreadable images, labels out of range, people without an image, images of different sizes.
    """
    dataset = open_dataset(url)
    labels = np.full(len(dataset), _UNREAD, dtype=np.int64)
    faulty = 0
    sizes: dict[tuple[int, int], int] = {}
    problems: list[str] = []
    digest = hashlib.sha256()
    reader = RecordReader(dataset)
    for position, header, image, problem in read_all(dataset):
        if header is None:
            problems.append(problem)
            continue
        digest.update(image)
        try:
            labels[position] = class_of(header)
        except RecordError as error:
            problems.append(f"{reader.describe(position)}: {error}")
        if decode:
            try:
                decoded, has_faults = decode_leniently(image)
                height, width = decoded.shape[:2]
                faulty += has_faults
                sizes[width, height] = sizes.get((width, height), 0) + 1
            except RecordError as error:
                problems.append(f"{reader.describe(position)}: {error}")
    classes = dataset.num_classes or max(int(labels.max()) + 1, 1)
    counts = np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
    problems += [
        f"{reader.describe(int(position))}: label {labels[position]} is outside 0..{classes - 1}"
        for position in np.flatnonzero((labels >= classes) | ((labels < 0) & (labels != _UNREAD)))[:20]
    ]
    if empty := np.flatnonzero(counts == 0).tolist():
        problems.append(f"{dataset.url}: {len(empty)} classes have no image, the first: {empty[:5]}")
    if len(sizes) > 1:
        problems.append(f"{dataset.url}: images of {len(sizes)} sizes: " + _sizes(sizes))
    lines = [
        f"images       {len(dataset)}",
        f"people       {classes}",
        f"per person   {counts.min()} to {counts.max()}, median {int(np.median(counts))}",
        f"file         {dataset.object.size} bytes, {dataset.record_bytes:.0f} a record",
        f"sizes        {_sizes(sizes) if sizes else 'not decoded'}",
        f"sha256       {digest.hexdigest()} (of all images in file order)",
    ]
    if faulty:
        lines.append(f"faulty       {faulty} JPEGs have stray bytes; they are decoded all the same")
    return "\n".join(lines), problems


def _sizes(sizes: dict[tuple[int, int], int]) -> str:
    return ", ".join(f"{width}x{height}: {count}" for (width, height), count in sorted(sizes.items()))
