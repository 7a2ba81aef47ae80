"""Two columns of whole numbers as text, many lines at a time, where all lines are equally long.

An index is such a text nearly everywhere: its keys and offsets grow, so that their lengths change only at powers of
ten. Eight digits are one 64-bit word; three multiplications bring the word to its value (pairs of digits, then fours,
then eights), for all lines together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ZEROS, _BEYOND_NINE, _HIGH_BITS = 0x3030303030303030, 0x7676767676767676, np.uint64(0x8080808080808080)
_BLOCK = 1 << 14  # lines whose words stay in the cache
_MOST = 18  # digits of a number below 2^62


def parse_columns(text: bytes) -> NDArray[np.int64] | None:
    """Lines ``number<TAB>number<LF>`` as int64 [lines, 2]; None where they differ in length, or are anything else."""
    width, tab = text.find(b"\n") + 1, text.find(b"\t")
    if not (width >= 9 and 1 <= tab <= _MOST and tab + 2 < width <= tab + 2 + _MOST) or len(text) % width:
        return None
    lines = np.frombuffer(text, dtype=np.uint8).reshape(-1, width)
    if (lines[:, tab] != ord("\t")).any() or (lines[:, -1] != ord("\n")).any():
        return None
    numbers = np.empty((len(lines), 2), dtype=np.int64)
    for start in range(0, len(lines), _BLOCK):
        block = lines[start : start + _BLOCK]
        for column, (first, stop) in enumerate([(0, tab), (tab + 1, width - 1)]):
            values = _numbers(block, first, stop)
            if values is None:
                return None
            numbers[start : start + _BLOCK, column] = values
    return numbers


def _numbers(lines: NDArray[np.uint8], first: int, stop: int) -> NDArray[np.uint64] | None:
    """The decimal numbers in the bytes first..stop of each line; None where one is not a digit."""
    total: NDArray[np.uint64] | None = None
    while first < stop:
        count = (stop - first) % 8 or 8
        values = _up_to_eight(lines, first, count)
        if values is None:
            return None
        total = values if total is None else total * np.uint64(10**count) + values
        first += count
    return total


def _up_to_eight(lines: NDArray[np.uint8], first: int, count: int) -> NDArray[np.uint64] | None:
    """The numbers of ``count`` digits from byte ``first`` on."""
    begin = min(first, lines.shape[1] - 8)
    words: NDArray[np.uint64] = np.ndarray(len(lines), "<u8", lines, begin, (lines.shape[1],))  # the first digit lowest
    words = (words >> np.uint64(8 * (first - begin))) << np.uint64(8 * (8 - count)) if count < 8 else words.copy()
    words |= np.uint64(_ZEROS & (1 << 8 * (8 - count)) - 1)  # leading zeros
    words -= np.uint64(_ZEROS)
    if ((words | (words + np.uint64(_BEYOND_NINE))) & _HIGH_BITS).any():
        return None
    words = words * np.uint64(10) + (words >> np.uint64(8))
    even = np.uint64(0x000000FF000000FF)
    high = (words & even) * np.uint64(100 + (1000000 << 32))
    low = ((words >> np.uint64(16)) & even) * np.uint64(1 + (10000 << 32))
    return (high + low) >> np.uint64(32)
