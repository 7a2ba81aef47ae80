"""Mutations of files: what bit rot, cut-off uploads and attackers do to them."""

from __future__ import annotations

import re
import struct

import numpy as np

_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_WORDS = (
    *(b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'""', b"9" * 5000, b"0.5", b"\xff\xfe"),
    *(b"[" * 3000, b"(" * 3000, b"a." * 3000, b"-" * 3000, b"\0", b"\n", b"../x", b"1e18", b"99999999999999999999"),
)


def mutate(data: bytes, other: bytes, generator: np.random.Generator, *, text: bool) -> bytes:
    """``data`` with one to four changes; ``other`` is a file to take pieces from."""
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 5))):
        kind = int(generator.integers(0, 9 if text else 7))
        at = int(generator.integers(0, len(changed) + 1))
        length = int(generator.integers(0, min(64, len(changed) - at) + 1))
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1 and at < len(changed):
            changed[at] = int(generator.integers(0, 256))
        elif kind == 2:  # a number of some width, in either order
            width, order = "BHIQ"[int(generator.integers(0, 4))], "<>"[int(generator.integers(0, 2))]
            number = _NUMBERS[int(generator.integers(0, len(_NUMBERS)))]
            packed = struct.pack(order + width, number & (1 << 8 * struct.calcsize(order + width)) - 1)
            changed[at : at + len(packed)] = packed
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * int(generator.integers(1, 40))
        elif kind == 5:
            del changed[at:]
        elif kind == 6:
            start = int(generator.integers(0, len(other) + 1))
            changed[at : at + length] = other[start : start + 64]
        elif kind == 7:
            changed[at:at] = _WORDS[int(generator.integers(0, len(_WORDS)))]
        elif numbers := list(re.finditer(rb'[0-9.]+|"[^"]*"', changed)):
            span = numbers[int(generator.integers(0, len(numbers)))].span()
            changed[span[0] : span[1]] = _WORDS[int(generator.integers(0, len(_WORDS)))]
    return bytes(changed[: 1 << 20])
