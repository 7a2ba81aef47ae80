"""Look at existing ``.rec`` files: check, count, see samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app import storage
from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_image, decode_leniently, resize
from app.data.prepare.orl import PrepareError
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


def contact_sheet(url: str, output: str, *, count: int, start: int = 0, columns: int = 10) -> str:
    """Write a PNG of ``count`` images from position ``start``, each with its position and label."""
    dataset = open_dataset(url)
    positions = range(start, min(start + count, len(dataset)))
    if not positions:
        raise PrepareError(f"{dataset.url}: no image at position {start}: it has {len(dataset)}")
    side, strip = 112, 14
    rows = -(-len(positions) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + strip)), "white")
    draw = ImageDraw.Draw(sheet)
    reader = RecordReader(dataset)
    for i, (position, record) in enumerate(zip(positions, reader.read(positions), strict=True)):
        header, encoded = reader.parse(position, record)
        image: NDArray[np.uint8] = resize(decode_image(encoded), side, side)
        x, y = i % columns * side, i // columns * (side + strip)
        sheet.paste(Image.fromarray(image), (x, y + strip))
        draw.text((x + 2, y + 1), f"{position}: {header.labels[0]:.0f}", fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(output, buffer.getvalue())
    return f"{len(positions)} images, {rows} rows"
