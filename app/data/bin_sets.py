"""Verification sets in insightface's ``.bin`` format, read without executing anything.

The file is a pickle of ``(images, issame)``: ``images`` holds two encoded images a pair, ``issame`` one bool a pair. A
pickle may call any function it names; this reader builds lists, tuples, bytes, bools and arrays of bools, and refuses
every other name before anything is called.
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.decode import decode_image, resize
from app.data.recordio import RecordError


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
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedName as error:
        raise RecordError(
            f"{url}: refused: the file asks to call {error}, which is not plain data: it was damaged or made to run "
            "code; do not open it with other tools"
        ) from None
    except Exception as error:
        raise RecordError(f"{url}: not a verification set, or truncated ({type(error).__name__}: {error})") from None
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise RecordError(f"{url}: not a verification set: expected (images, issame), found {type(content).__name__}")
    images, issame = content
    if not (isinstance(images, list | tuple) and all(isinstance(image, bytes) for image in images)):
        raise RecordError(f"{url}: not a verification set: its images must be a list of encoded images")
    flags = issame.tolist() if isinstance(issame, np.ndarray) else issame
    if not (isinstance(flags, list | tuple) and all(isinstance(flag, bool | np.bool_ | int) for flag in flags)):
        raise RecordError(f"{url}: not a verification set: issame must be a list of bools")
    if len(images) != 2 * len(flags) or not flags:
        raise RecordError(f"{url}: {len(images)} images do not make {len(flags)} pairs")
    return VerificationSet(name, list(images), np.array([bool(flag) for flag in flags]))


def dump_set(images: list[bytes], issame: list[bool]) -> bytes:
    """The bytes of a ``.bin`` file that this reader and the reference's accept."""
    if len(images) != 2 * len(issame):
        raise ValueError(f"{len(images)} images do not make {len(issame)} pairs")
    return pickle.dumps((images, issame), protocol=4)


class _RefusedName(Exception):
    pass


def _array_shell(*_: object) -> NDArray[np.bool_]:
    """Stands for numpy's ``_reconstruct``: an empty array whose content the pickle sets next."""
    return np.empty(0, dtype=np.bool_)


def _bool_dtype(spec: object, *_: object) -> np.dtype[np.bool_]:
    if spec not in ("b1", b"b1", "?", b"?", "bool", b"bool"):
        raise _RefusedName(f"numpy.dtype({spec!r})")
    return np.dtype(np.bool_)


def _bool_scalar(_: object, value: bytes) -> bool:
    return bool(value != b"\0")


def _bool_array_of_buffer(buffer: bytes, _dtype: object, shape: tuple[int, ...], _order: object) -> NDArray[np.bool_]:
    return np.frombuffer(bytes(buffer), dtype=np.bool_).reshape(shape)


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """Python 3 writes bytes this way in old pickle protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedName(f"codecs.encode(..., {encoding!r})")
    return codecs.encode(text, "latin1")


# What a set written by Python 2 or 3, numpy 1 or 2, may name, and the harmless function that answers for it.
_ADMITTED: dict[tuple[str, str], Callable[..., Any] | type] = {
    ("_codecs", "encode"): _latin1_bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _bool_dtype,
    ("numpy.dtypes", "BoolDType"): lambda: np.dtype(np.bool_),
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _array_shell
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _bool_scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _bool_array_of_buffer


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Answer a name in the pickle; anything that is not plain data is refused."""
        if (module, name) not in _ADMITTED:
            raise _RefusedName(f"{module}.{name}")
        return _ADMITTED[module, name]
