"""Objects of a checkpoint with any header, and hashes that match it: whoever may write one may write the other."""

from __future__ import annotations

import json
import struct
from typing import Any

from app.checkpoint.manifest import CHUNK_BYTES, StoredObject
from app.checkpoint.tensor_file import TensorFile, digest


def tensor_file(header: dict[str, Any] | bytes, body: int = 64) -> bytes:
    """A safetensors file with ``body`` zeros behind its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def read_tensor_file(data: bytes) -> object:
    """All tensors of the file, as a resume reads them."""
    chunks = tuple(digest(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
    item = StoredObject("x", len(data), chunks)
    return TensorFile("x.safetensors", item, lambda start, stop: data[start:stop]).load()
