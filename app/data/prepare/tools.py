"""Work on existing ``.rec`` files: check, count, shuffle, split off people, look at samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app import storage
from app.data.dataset import Dataset, open_dataset
from app.data.decode import decode_image, resize
from app.data.prepare.orl import PrepareError
from app.data.reader import RecordReader
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, RecordError, pack_image

_CHUNK = 2048  # records in memory at a time


def read_all(dataset: Dataset) -> Iterator[tuple[int, ImageHeader | None, bytes, str]]:
    """Every record in file order: position, header, image bytes, and what is wrong with it (then no header)."""
    reader = RecordReader(dataset)
    for start in range(0, len(dataset), _CHUNK):
        positions = range(start, min(start + _CHUNK, len(dataset)))
        for position, record in zip(positions, reader.read(positions), strict=True):
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
    labels = np.full(len(dataset), -1, dtype=np.int64)
    sizes: dict[tuple[int, int], int] = {}
    problems: list[str] = []
    digest = hashlib.sha256()
    reader = RecordReader(dataset)
    for position, header, image, problem in read_all(dataset):
        if header is None:
            problems.append(problem)
            continue
        digest.update(image)
        labels[position] = int(header.labels[0])
        if decode:
            try:
                height, width = decode_image(image).shape[:2]
                sizes[width, height] = sizes.get((width, height), 0) + 1
            except RecordError as error:
                problems.append(f"{reader.describe(position)}: {error}")
    classes = dataset.num_classes or int(labels.max()) + 1
    counts = np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
    problems += [
        f"{reader.describe(int(position))}: label {labels[position]} is outside 0..{classes - 1}"
        for position in np.flatnonzero(labels >= classes)[:20]
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
    return "\n".join(lines), problems


def _sizes(sizes: dict[tuple[int, int], int]) -> str:
    return ", ".join(f"{width}x{height}: {count}" for (width, height), count in sorted(sizes.items()))


def shuffle_dataset(url: str, output: str, seed: int) -> str:
    """Write the same records in a random order, for readers that shuffle in small windows only.

    Identity records go away with the order that they describe; the ``property`` file keeps the class count.
    """
    dataset = open_dataset(url)
    order = np.random.default_rng(seed).permutation(len(dataset))
    reader = RecordReader(dataset)
    with RecordWriter(storage.join(output, "train.rec")) as writer:
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            for key, (position, record) in enumerate(zip(chunk.tolist(), reader.read(chunk), strict=True), start):
                writer.write(key, pack_image(*reader.parse(position, record)))
    if dataset.num_classes:
        storage.write_bytes(storage.join(output, "property"), f"{dataset.num_classes},112,112".encode())
    return f"{len(order)} records in the order of seed {seed}"


def split_dataset(url: str, output: str, *, people: int, seed: int) -> str:
    """Split off some people: they go to ``output/held-out``, the others, renumbered, to ``output/train``."""
    dataset = open_dataset(url)
    groups: dict[int, list[bytes]] = {}
    for _, header, image, problem in read_all(dataset):
        if header is None:
            raise PrepareError(f"{problem}: mend the dataset first (app.prepare check)")
        groups.setdefault(int(header.labels[0]), []).append(image)
    if not 0 < people < len(groups):
        raise PrepareError(f"--people must be 1..{len(groups) - 1}, got {people}")
    chosen = set(np.random.default_rng(seed).permutation(sorted(groups))[:people].tolist())
    for name, members in (("held-out", chosen), ("train", groups.keys() - chosen)):
        images = [(new, image) for new, old in enumerate(sorted(members)) for image in groups[old]]
        with RecordWriter(storage.join(output, name, "train.rec")) as writer:
            write_identity_layout(writer, images)
        storage.write_bytes(storage.join(output, name, "property"), f"{len(members)},112,112".encode())
    return f"{people} people held out, {len(groups) - people} to train on"


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
    with storage.explained(output, "write"):
        filesystem, path = storage.open_filesystem(output)
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        with filesystem.open(path, "wb") as file:
            sheet.save(file, "PNG")
    return f"{len(positions)} images, {rows} rows"
