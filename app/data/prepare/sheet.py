"""Contact sheets: samples of a dataset, and photographs before and after they were prepared."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app import storage
from app.data.dataset import open_dataset
from app.data.decode import decode_image, resize
from app.data.prepare.errors import PrepareError
from app.data.prepare.photograph import fit_square, open_photograph
from app.data.reader import RecordReader
from app.data.recordio import RecordError

SIDE, STRIP = 112, 14  # pixels of a picture and of the line of text above it


def contact_sheet(url: str, output: str, *, count: int, start: int = 0, columns: int = 10) -> str:
    """Write a PNG of ``count`` images from position ``start``, each with its position and label; black: unreadable."""
    if count < 1 or start < 0:
        raise PrepareError(f"--count must be 1 or more and --start 0 or more, got {count} and {start}")
    dataset = open_dataset(url)
    positions = range(start, min(start + count, len(dataset)))
    if not positions:
        raise PrepareError(f"{dataset.url}: no image at position {start}: it has {len(dataset)}")
    rows = -(-len(positions) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * (SIDE + STRIP)), "white")
    draw = ImageDraw.Draw(sheet)
    reader, bad = RecordReader(dataset), list[int]()
    for i, (position, record) in enumerate(zip(positions, reader.read(positions), strict=True)):
        try:
            header, encoded = reader.parse(position, record)
            image: NDArray[np.uint8] = resize(decode_image(encoded), SIDE, SIDE)
            label = f"{header.labels[0]:.0f}"
        except RecordError:
            bad.append(position)
            image, label = np.zeros((SIDE, SIDE, 3), np.uint8), "unreadable"
        x, y = i % columns * SIDE, i // columns * (SIDE + STRIP)
        sheet.paste(Image.fromarray(image), (x, y + STRIP))
        draw.text((x + 2, y + 1), f"{position}: {label}", fill="black")
    _write_png(output, sheet)
    unreadable = f"; {len(bad)} of them unreadable, such as {reader.describe(bad[0])}" if bad else ""
    return f"{len(positions)} images, {rows} rows{unreadable}"


def draw_before_and_after(
    output: str, pictures: Iterable[tuple[str, bytes, bytes]], *, columns: int = 8, rows: int = 64
) -> None:
    """Write a PNG: each photograph as it was found above what became of it.

    Args:
        output: URL of the PNG.
        pictures: name, file and training image of each.
        columns, rows: as many as that at most.
    """
    cells = []
    for name, before, after in pictures:
        cell = Image.new("RGB", (SIDE, STRIP + 2 * SIDE), "white")
        text = "/".join(name.rsplit("/", 2)[-2:]).encode("ascii", "replace").decode()[-18:]
        ImageDraw.Draw(cell).text((2, 1), text, fill="black")
        cell.paste(fit_square(open_photograph(before, least=2 * SIDE), SIDE), (0, STRIP))
        cell.paste(Image.fromarray(resize(decode_image(after), SIDE, SIDE)), (0, STRIP + SIDE))
        cells.append(cell)
        if len(cells) == columns * rows:
            break
    height = STRIP + 2 * SIDE + 6
    sheet = Image.new("RGB", (min(columns, len(cells)) * SIDE, -(-len(cells) // columns) * height), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * SIDE, i // columns * height))
    _write_png(output, sheet)


def _write_png(url: str, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    storage.write_bytes(url, buffer.getvalue())
