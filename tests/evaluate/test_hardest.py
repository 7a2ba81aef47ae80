"""The pairs on which a model is most wrong: which they are, and the picture of them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from app.data.bin_sets import VerificationSet
from app.data.decode import encode_jpeg
from app.evaluate.hardest import GAP, SIDE, STRIP, draw_hardest, hardest_pairs
from app.evaluate.metrics import verification_metrics
from app.evaluate.verification import SetResult


def a_result(distances: list[float], issame: list[bool]) -> SetResult:
    values, same = np.array(distances), np.array(issame)
    return SetResult("people", verification_metrics(values, same), 1.0, values, same)


def test_the_worst_of_each_kind_come_first() -> None:
    result = a_result([0.1, 0.2, 2.0, 1.8, 1.9, 0.3, 0.15, 1.7, 1.2, 0.4], [True, False] * 5)
    # Of one person: 0.1, 2.0, 1.9, 0.15, 1.2; of two: 0.2, 1.8, 0.3, 1.7, 0.4.
    assert hardest_pairs(result, 3, same=True).tolist() == [2, 4, 8]
    assert hardest_pairs(result, 3, same=False).tolist() == [1, 5, 9]
    assert hardest_pairs(result, 99, same=False).tolist() == [1, 5, 9, 7, 3]


def test_the_picture_shows_both_faces_of_each_pair_where_they_belong() -> None:
    colours = [(8 * i % 256, (255 - 8 * i) % 256, (40 + 11 * i) % 256) for i in range(20)]
    images = [encode_jpeg(np.full((50, 50, 3), colour, dtype=np.uint8)) for colour in colours]
    result = a_result([0.1, 0.2, 2.0, 1.8, 1.9, 0.3, 0.15, 1.7, 1.2, 0.4], [True, False] * 5)
    pairs = VerificationSet("people", images, result.issame)
    picture = np.asarray(Image.open(io.BytesIO(draw_hardest(pairs, result, count=4))), dtype=np.int64)
    height = 2 * STRIP + 2 * SIDE + GAP
    assert picture.shape == (2 * height, 4 * SIDE, 3)
    for row, numbers in enumerate(([2, 4, 8, 6], [1, 5, 9, 7])):
        for column, number in enumerate(numbers):
            for i in range(2):
                y = row * height + 2 * STRIP + i * SIDE + SIDE // 2
                seen = picture[y, column * SIDE + SIDE // 2]
                assert np.abs(seen - colours[2 * number + i]).max() < 12, (row, number, i)
