"""Reads a file of safetensors (https://github.com/huggingface/safetensors) that others wrote, in memory of its size.

Eight bytes with the header's length, the header as JSON, the tensors end to end. Checkpoints of this program are such
files too, but are read by ranges, with a hash for each: ``app.checkpoint.tensor_file``.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from torch import Tensor

from app.parsing import ParseError, parse_json_object
from app.plain_values import PickleError

DTYPES = {  # by safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(data: bytes) -> bool:
    """Whether the first bytes are those of such a file."""
    return data[8:9] == b"{" and 1 < struct.unpack("<Q", data[:8])[0] <= len(data) - 8


def load_safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        PickleError: the header is none, or tensors lie outside of the file or on each other.
    """
    start = 8 + struct.unpack("<Q", data[:8])[0]
    try:
        header = parse_json_object(data[8:start], "its header")
    except ParseError as error:
        raise PickleError(f"a safetensors file without a header: {error}") from error
    room, found = len(data) - start, {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        kind, shape, first, last = _described(name, about)
        room -= last - first
        if room < 0 or start + last > len(data):
            raise PickleError(f"truncated, or its tensors lie on each other: {name[:80]!r} is not all there")
        content = bytearray(data[start + first : start + last])  # torch needs memory that it may write to
        values = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        found[name] = values.reshape(shape)
    return found


def _described(name: str, about: Any) -> tuple[torch.dtype, list[int], int, int]:
    """Type, shape, first byte and the byte behind the last of a tensor."""
    try:
        kind, shape, (first, last) = DTYPES[about["dtype"]], about["shape"], about["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise PickleError(f"a safetensors file whose tensor {name[:80]!r} has no known type, shape or place") from error
    counts = [*shape, first, last] if isinstance(shape, list) else [None]
    if not all(type(count) is int and 0 <= count < 1 << 48 for count in counts) or len(counts) > 18:
        raise PickleError(f"a safetensors file whose tensor {name[:80]!r} has a shape that none can have")
    if last - first != math.prod(shape) * kind.itemsize:
        raise PickleError(f"a safetensors file whose tensor {name[:80]!r} of shape {shape} is {last - first} bytes")
    return kind, shape, first, last
