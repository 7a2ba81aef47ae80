"""Reads the files of ``numpy.savez`` as plain data: arrays of numbers, no pickles, no memory beyond the file's size."""

from __future__ import annotations

import io
import math
import struct

import numpy as np

from app.plain_pickle import PickleError
from app.plain_values import Array
from app.torch_file import list_entries

_LONGEST_HEADER = 10_000  # bytes, as numpy has it
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def is_npz(data: bytes) -> bool:
    """Whether it is a zip archive whose first entry is an array of numpy's."""
    if data[:4] != b"PK\x03\x04" or len(data) < 30:
        return False
    return data[30 : 30 + struct.unpack_from("<H", data, 26)[0]].endswith(b".npy")


def load_npz(data: bytes) -> dict[str, Array]:
    """Arrays by name, views of ``data``.

    Raises:
        PickleError: it is damaged, packed (``savez_compressed``), or holds other than numbers.
    """
    return {name.removesuffix(".npy"): _read_array(name, data[place]) for name, place in list_entries(data).items()}


def _read_array(name: str, content: bytes) -> Array:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, kind = _READERS[version](stream, max_header_size=_LONGEST_HEADER)
    except Exception as error:  # numpy's reader raises many kinds
        raise PickleError(f"{name[:80]!r} is no array of numpy's: {str(error)[:80]}") from error
    if kind.kind not in "fiub" or kind.hasobject:
        raise PickleError(f"{name[:80]!r} holds {str(kind)[:40]}, not numbers")
    start = stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(content) - start:
        raise PickleError(f"{name[:80]!r} has {len(content) - start} bytes, not those of its shape {str(shape)[:40]}")
    found = Array()
    found.values = np.frombuffer(content, kind, math.prod(shape), start).reshape(shape, order="F" if fortran else "C")
    return found
