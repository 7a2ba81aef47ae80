"""The pairs on which a model is most wrong, as a picture: people held for two, and two held for one.

They tell at a glance what a figure does not: wrong labels, faces that were cut off, an age or a pose it never saw.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.data.bin_sets import VerificationSet
from app.evaluate.verification import SetResult

SIDE, STRIP, GAP = 112, 14, 6  # pixels of a face, of a line of text, and between rows
_QUALITY = 80  # of the JPEG: some tens of kilobytes, so that a set of every verification can be kept


def hardest_pairs(result: SetResult, count: int, *, same: bool) -> NDArray[np.int64]:
    """Numbers of the pairs of one kind on which the model is most wrong, the worst first.

    Args:
        result: of the set; its threshold parts one person from two.
        count: at most so many.
        same: of one person, at the largest distances; otherwise of two people, at the smallest.
    """
    own = np.flatnonzero(result.issame == same)
    distances = result.distances[own]
    return own[np.argsort(-distances if same else distances, kind="stable")[:count]]


def draw_hardest(pairs: VerificationSet, result: SetResult, count: int = 8) -> bytes:
    """A JPEG: in a row the hardest pairs of one person, below it those of two, each pair one above the other.

    Over each pair stand its number and distance; ``wrong`` where the threshold of the whole set takes it for the other
    kind.
    """
    rows = [(hardest_pairs(result, count, same=same), same) for same in (True, False)]
    height = 2 * STRIP + 2 * SIDE + GAP
    width = max(3, *(len(numbers) for numbers, _ in rows)) * SIDE
    sheet = Image.new("RGB", (width, len(rows) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (numbers, same) in enumerate(rows):
        top = row * height
        kind = "one person, furthest apart" if same else "two people, nearest"
        draw.text((2, top + 1), f"{kind}; threshold {result.metrics.threshold:.2f}", fill="black")
        for column, number in enumerate(map(int, numbers)):
            distance = result.distances[number]
            wrong = (distance < result.metrics.threshold) != same
            text = f"{number}: {distance:.2f}{' wrong' if wrong else ''}"
            draw.text((column * SIDE + 2, top + STRIP + 1), text, fill="#b00020" if wrong else "black")
            for i, face in enumerate(pairs.decode(2 * number, 2 * number + 2, SIDE)):
                sheet.paste(Image.fromarray(face.transpose(1, 2, 0)), (column * SIDE, top + 2 * STRIP + i * SIDE))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
