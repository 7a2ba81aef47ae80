"""The values that plain pickles hold beside Python's own: texts, names, numpy's arrays and scalars.

``app.plain_pickle`` builds them; nothing here runs anything that a file says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError

_LONGEST_NAME = 256
# Letters beyond those of latin1, by the encoding of a text.
_WIDE = {"utf-8": re.compile(rb"[\xc4-\xff]"), "raw-unicode-escape": re.compile(rb"\\u(?!00)|\\U(?!000000)")}


class PickleError(AppError):
    """The bytes are not a pickle of plain data, or end too early; says at which byte."""


class RefusedName(PickleError):
    """The pickle names something that is not plain data."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the pickle, as the bytes that it stands in; decoded only where it is needed."""

    data: bytes
    start: int
    stop: int
    encoding: str

    def decode(self) -> str:
        """The text itself."""
        return str(memoryview(self.data)[self.start : self.stop], self.encoding, "surrogatepass")

    @property
    def is_wide(self) -> bool:
        """Whether it holds letters that latin1 has not; one of them makes all take four bytes of memory."""
        return _WIDE[self.encoding].search(self.data, self.start, self.stop) is not None


@dataclass(frozen=True, slots=True)
class Name:
    """An admitted name; ``make`` answers for it and gets the arguments that the file calls it with."""

    text: str
    make: Callable[..., Any]


class Settable:
    """A value that the pickle makes first and sets with ``BUILD`` afterwards."""

    def set_state(self, state: Any) -> None:
        """Take over what the pickle says the value is."""
        raise PickleError(f"a {type(state).__name__} for a {type(self).__name__}, which has no state")


def name_of(value: Any) -> str:
    """A short text: a name, a code, an encoding; Python 2 wrote them as bytes.

    Raises:
        PickleError: the value is none.
    """
    if isinstance(value, Text) and value.stop - value.start <= _LONGEST_NAME:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise PickleError(f"a name that is not text, at byte {value.start}") from error
    if isinstance(value, bytes) and len(value) <= _LONGEST_NAME:
        return value.decode("latin1")
    if isinstance(value, str):
        return value
    raise PickleError(f"a {type(value).__name__} where a name belongs")


class ArrayType(Settable):
    """numpy's dtype: one of the plain ones."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def set_state(self, state: Any) -> None:
        """The state is ``(version, byte order, ...)``."""
        order = name_of(state[1])
        if order not in ("<", ">", "|", "="):
            raise PickleError(f"an array's byte order cannot be {order!r}")
        self.order = ">" if order == ">" else "<"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The type as numpy's; not for arrays of objects."""
        return np.dtype(self.order + self.code)


class Array(Settable):
    """numpy's ndarray: ``values`` is an array, or the list of items of an array of objects."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | list[Any] = []

    def set_state(self, state: Any) -> None:
        """The state is ``(version, shape, dtype, is it in Fortran's order, content)``; the oldest have no version."""
        shape, kind, fortran, content = state[-4:]
        self.fill(shape, kind, "F" if fortran else "C", content)

    def fill(self, shape: Any, kind: Any, order: str, content: Any) -> None:
        """Set the content: bytes of exactly the shape, or a list of objects."""
        if not isinstance(kind, ArrayType) or not isinstance(shape, tuple) or len(shape) > 8:
            raise PickleError("an array without a plain type and shape")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise PickleError("an array whose shape is not of whole numbers")
        count = math.prod(shape)
        if kind.code == "O":
            if not isinstance(content, list) or len(content) != count:
                raise PickleError(f"an array of {count} objects without them")
            self.values = content
            return
        if not isinstance(content, bytes) or len(content) != count * kind.numpy.itemsize:
            raise PickleError(f"an array of {count} values whose bytes are not there")
        self.values = np.frombuffer(content, dtype=kind.numpy).reshape(shape, order="F" if order == "F" else "C")


def encode_text(text: Any, encoding: Any = b"latin1") -> bytes:
    """Python 3 writes bytes as a call of this in the old protocols."""
    if name_of(encoding) not in ("latin1", "latin-1"):
        raise RefusedName(f"codecs.encode(..., {name_of(encoding)!r})")
    if isinstance(text, bytes):
        return text
    if not isinstance(text, Text) or text.is_wide:
        raise PickleError("bytes that are not written as text")
    return text.decode().encode("latin1")


def make_bytes(content: Any = b"", encoding: Any = b"latin1") -> bytes:
    """``bytes`` and ``bytearray``; never with a number, which would be a length."""
    return encode_text(content, encoding)


def _array_type(code: Any, *_: Any) -> ArrayType:
    codes = {"?": "b1", "bool": "b1", "O8": "O", "O4": "O"}
    plain = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
    text = name_of(code)
    if text not in (*plain, *codes):
        raise RefusedName(f"numpy.dtype({text!r})")
    return ArrayType(codes.get(text, text))


def _scalar(kind: Any, content: Any = None) -> Any:
    if not isinstance(kind, ArrayType) or kind.code == "O" or not isinstance(content, bytes):
        raise PickleError("a number without type and bytes")
    if len(content) != kind.numpy.itemsize:
        raise PickleError(f"a number of {len(content)} bytes")
    (value,) = np.frombuffer(content, dtype=kind.numpy).tolist()
    return value


def _array_of_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
    array = Array()
    array.fill(shape, kind, name_of(order), content)
    return array


def _not_callable(*_: Any) -> Any:
    raise PickleError("a call of a class that is only named in sound files")


# What files by Python 2 or 3, numpy 1 or 2 name, and the harmless function that answers for it.
PLAIN_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): encode_text,
    ("numpy", "ndarray"): _not_callable,
    ("numpy", "dtype"): _array_type,
    ("numpy.dtypes", "BoolDType"): lambda *_: ArrayType("b1"),
}
for _module in ("builtins", "__builtin__"):
    PLAIN_NAMES |= {(_module, "bytes"): make_bytes, (_module, "bytearray"): make_bytes}
for _core in ("numpy.core", "numpy._core"):
    PLAIN_NAMES[f"{_core}.multiarray", "_reconstruct"] = lambda *_: Array()
    PLAIN_NAMES[f"{_core}.multiarray", "scalar"] = _scalar
    PLAIN_NAMES[f"{_core}.numeric", "_frombuffer"] = _array_of_buffer
