"""Finds photographs that are there twice: the same bytes, or the same picture stored in another size or quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 16  # 256 bits
MAX_DISTANCE = 10  # bits; below the 16 bands, so that two such hashes agree in one band at least
_NEIGHBOURS = 8
_FLAT = 16  # a picture with fewer bits set, or fewer unset, has no structure to compare


@dataclass(frozen=True)
class Duplicate:
    """``number`` shows what ``first`` shows; ``same_bytes``: it is the very file."""

    number: int
    first: int
    same_bytes: bool


def difference_hash(image: Image.Image) -> bytes:
    """256 bits (32 bytes): whether each of 16 x 16 cells is darker than its right neighbour ("dHash").

    Robust against size, quality and brightness; not against crops, turns or mirrors.
    """
    small = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.int16)
    return np.packbits(values[:, 1:] > values[:, :-1]).tobytes()


def find_duplicates(digests: Sequence[str], hashes: Sequence[bytes]) -> list[Duplicate]:
    """Duplicates among photographs, by number.

    Two hashes within ``MAX_DISTANCE`` of 256 bits agree in one of 16 bands; so for each band the photographs are sorted
    by it, and each is compared with the next few of the same value. Memory is 32 bytes a photograph and a few sorts.

    Args:
        digests: of the bytes.
        hashes: of the pictures; see ``difference_hash``.
    """
    first_of: dict[str, int] = {}
    found: dict[int, Duplicate] = {}
    for number, digest in enumerate(digests):
        first = first_of.setdefault(digest, number)
        if first != number:
            found[number] = Duplicate(number, first, same_bytes=True)
    alone = np.array([number for number in range(len(digests)) if number not in found], dtype=np.int64)
    if len(alone):
        bits = np.frombuffer(b"".join(hashes[number] for number in alone), dtype=np.uint8).reshape(len(alone), -1)
        weight = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
        structured = (weight >= _FLAT) & (weight <= 8 * bits.shape[1] - _FLAT)
        for number, first in _near(bits[structured], alone[structured]).items():
            found[number] = Duplicate(number, first, same_bytes=False)
    return [found[number] for number in sorted(found)]


def _near(bits: NDArray[np.uint8], numbers: NDArray[np.int64]) -> dict[int, int]:
    """For each picture that is near an earlier one, the first of its kind."""
    root = np.arange(len(numbers))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    bands = np.ascontiguousarray(bits).view(np.uint16)
    for band in range(bands.shape[1]):
        order = np.argsort(bands[:, band], kind="stable")
        for lag in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            before, after = order[:-lag], order[lag:]
            equal = bands[before, band] == bands[after, band]
            before, after = before[equal], after[equal]
            distance = np.bitwise_count(bits[before] ^ bits[after]).sum(axis=1, dtype=np.int64)
            for one, two in zip(before[distance <= MAX_DISTANCE], after[distance <= MAX_DISTANCE], strict=True):
                low, high = sorted((find(int(one)), find(int(two))))
                root[high] = low
    firsts = [find(i) for i in range(len(numbers))]
    return {int(numbers[i]): int(numbers[first]) for i, first in enumerate(firsts) if first != i}
