"""Verification sets in insightface's ``.bin`` format, read without executing anything.

The file is a pickle of ``(images, issame)``: ``images`` holds two encoded images a pair, ``issame`` one bool a pair;
both may be lists, tuples or arrays, and an image may be bytes, a bytearray or the uint8 array that cv2.imencode makes.
A pickle may call any function it names; ``app.plain_pickle`` builds plain data and refuses every other name.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.decode import decode_image, resize
from app.data.recordio import RecordError
from app.plain_pickle import PickleError, RefusedName, load_plain
from app.plain_values import Array


@dataclass(frozen=True)
class VerificationSet:
    """Pairs of faces: ``images`` 2P encoded images (pair p is 2p and 2p+1), ``issame`` bool [P]."""

    name: str
    images: list[bytes]
    issame: NDArray[np.bool_]

    def decode(self, start: int, stop: int, image_size: int) -> NDArray[np.uint8]:
        """Images ``start..stop`` as RGB ``uint8 [B, 3, S, S]``.

        Raises:
            RecordError: an image is unreadable; names its number and pair.
        """
        decoded = np.empty((stop - start, 3, image_size, image_size), dtype=np.uint8)
        for i in range(start, stop):
            try:
                image = decode_image(self.images[i])
            except RecordError as error:
                raise RecordError(f"{self.name}.bin: image {i} (pair {i // 2}): {error}") from error
            decoded[i - start] = resize(image, image_size, image_size).transpose(2, 0, 1)
        return decoded


def load_set(url: str) -> VerificationSet:
    """Read a ``.bin`` file.

    Raises:
        StorageError: it cannot be read.
        RecordError: it is not such a file, is truncated, or asks for more than plain data.
    """
    name = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".bin")
    return parse_set(url, name, storage.read_bytes(url))


def parse_set(url: str, name: str, data: bytes) -> VerificationSet:
    """Parse the bytes of a ``.bin`` file; see ``load_set``."""
    try:
        content, _ = load_plain(data)
    except RefusedName as error:
        raise RecordError(
            f"{url}: refused: the file asks to call {error}, which is not plain data: it was damaged or made to run "
            "code; do not open it with other tools"
        ) from None
    except PickleError as error:
        raise RecordError(f"{url}: not a verification set, or truncated ({error})") from None
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise RecordError(f"{url}: not a verification set: expected (images, issame), found {type(content).__name__}")
    encoded, same = _items(url, "images", content[0]), _items(url, "issame", content[1])
    if len(encoded) and isinstance(encoded, np.ndarray):
        raise RecordError(f"{url}: not a verification set: its images are an array of {encoded.dtype}, not a list")
    if len(encoded) != 2 * len(same) or not len(same):
        raise RecordError(f"{url}: {len(encoded)} images do not make {len(same)} pairs")
    images = _all_encoded(url, encoded, len(data))
    listed = same.tolist() if isinstance(same, np.ndarray) else same
    flags = [_flag(url, number, flag) for number, flag in enumerate(listed)]
    return VerificationSet(name, images, np.array(flags, dtype=np.bool_))


def _items(url: str, what: str, value: object) -> Sequence[object] | NDArray[Any]:
    """The entries of a list, a tuple or an array; a column counts as a list."""
    if isinstance(value, Array):
        values = value.values
        if isinstance(values, np.ndarray) and sum(size != 1 for size in values.shape) > 1:
            raise RecordError(f"{url}: not a verification set: {what} is an array of shape {values.shape}, not a list")
        return values.ravel() if isinstance(values, np.ndarray) else values
    if isinstance(value, list | tuple):
        return value
    raise RecordError(f"{url}: not a verification set: {what} is a {type(value).__name__}, not a list")


def _all_encoded(url: str, images: Sequence[object] | NDArray[Any], size: int) -> list[bytes]:
    """All images; arrays are copied, each once, as a pickle may say one again and again in two bytes."""
    copies: dict[int, bytes] = {}
    found, taken = [], 0
    for number, image in enumerate(images):
        encoded = copies.get(id(image))
        if encoded is None:
            encoded = _encoded(url, number, image)
            if encoded is not image:
                copies[id(image)] = encoded
                taken += len(encoded)
            if taken > size:
                raise RecordError(f"{url}: its images take more memory than a file of its size needs")
        found.append(encoded)
    return found


def _encoded(url: str, number: int, value: object) -> bytes:
    """One encoded image: bytes, or what cv2.imencode returns, uint8 [N] or [N, 1]."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, Array) and isinstance(value.values, np.ndarray) and value.values.dtype == np.uint8:
        if value.values.size == max(value.values.shape, default=0):
            return value.values.tobytes()
        raise RecordError(
            f"{url}: image {number} is an array of shape {value.values.shape}, so it is decoded already: its images "
            "must be a list of encoded images (JPEG or PNG bytes)"
        )
    raise RecordError(
        f"{url}: not a verification set: its images must be a list of encoded images, image {number} is not one"
    )


def _flag(url: str, number: int, value: object) -> bool:
    """Are the two images of a pair of one person? As a bool, or a number that is 0 or 1."""
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    shown = repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
    raise RecordError(
        f"{url}: not a verification set: issame must be a list of bools, or of numbers 0 and 1; entry {number} is "
        f"{shown}"
    )


def dump_set(images: list[bytes], issame: list[bool]) -> bytes:
    """The bytes of a ``.bin`` file that this reader and the reference's accept."""
    if len(images) != 2 * len(issame):
        raise ValueError(f"{len(images)} images do not make {len(issame)} pairs")
    return pickle.dumps((images, issame), protocol=4)
