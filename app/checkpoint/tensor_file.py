"""One object of a checkpoint: a safetensors file, written and read in pieces of bounded size.

The format is https://github.com/huggingface/safetensors: eight bytes with the header's length, the header as JSON, the
tensors end to end. The library writes and reads files whole, which takes several times a shard in memory; here tensors
go out as views, chunk by chunk, each with a SHA-256, and come back by ranges, so that a rank reads only its rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from app.checkpoint.manifest import CHUNK_BYTES, DamagedError, StoredObject
from app.parsing import ParseError, parse_json_object
from app.safetensors_file import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_READ_CHUNKS = 8  # a request asks for at most as many
_REQUESTS = 4  # at once
_MOST_HEADER_BYTES = 4 << 20  # 30,000 tensors


@dataclass(frozen=True)
class Placed:
    """Where a tensor lies: type, shape and its bytes ``[start, stop)`` of the object."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def serialize(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The file's bytes as views of contiguous host tensors: nothing is copied."""
    # Wide types first: every tensor then starts at a multiple of its own element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, at = {}, 0
    for name in names:
        size = tensors[name].numel() * tensors[name].element_size()
        kind = _NAMES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(struct.pack("<Q", len(text)) + text)
    for name in names:
        yield _bytes_of(tensors[name])


def _bytes_of(tensor: Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def cut(parts: Iterable[memoryview], size: int) -> Iterator[memoryview]:
    """The same bytes in pieces of ``size``, the last one shorter; only pieces across a border are copied."""
    rest = bytearray()
    for part in parts:
        at = 0
        if rest:
            at = min(size - len(rest), len(part))
            rest += part[:at]
            if len(rest) == size:
                yield memoryview(bytes(rest))
                rest.clear()
        while len(part) - at >= size:
            yield part[at : at + size]
            at += size
        rest += part[at:]
    if rest:
        yield memoryview(bytes(rest))


def digest(chunk: bytes | memoryview) -> str:
    """SHA-256 of a chunk, in hexadecimal."""
    return hashlib.sha256(chunk).hexdigest()


class TensorFile:
    """A stored object, read by ranges and checked before anything is believed.

    Args:
        url: for messages.
        item: what the manifest says of it.
        fetch: ``fetch(start, stop)`` returns these bytes of the object.

    Raises:
        DamagedError: bytes are not those of the manifest, also when read a second time, or the header is none.
    """

    def __init__(self, url: str, item: StoredObject, fetch: Callable[[int, int], bytes]) -> None:
        self.url, self.item, self._fetch = url, item, fetch
        first = self._checked(0, min(1, len(item.chunks)))
        length = struct.unpack("<Q", first[:8])[0] if len(first) >= 8 else -1
        if not 0 < length <= min(item.size - 8, _MOST_HEADER_BYTES):
            raise DamagedError(f"{url}: not a safetensors file: its header cannot be {length} bytes long")
        covering = math.ceil((8 + length) / CHUNK_BYTES)
        text = first if covering <= 1 else first + self._checked(1, covering)
        self.tensors = self._parse(text[8 : 8 + length], 8 + length)

    def _parse(self, text: bytes, base: int) -> dict[str, Placed]:
        try:
            placed, total = {}, 0
            for name, about in parse_json_object(text, "its header", limit=_MOST_HEADER_BYTES).items():
                if name == "__metadata__":
                    continue
                dtype, shape = DTYPES[about["dtype"]], tuple(map(int, about["shape"]))
                start, stop = (base + int(offset) for offset in about["data_offsets"])
                size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
                if min(shape, default=0) < 0 or stop - start != size or not base <= start <= stop <= self.item.size:
                    raise ValueError(f"{name} lies outside")
                if size == 0 and math.prod(n for n in shape if n) >= 1 << 62:
                    raise ValueError(f"{name} has a shape that none can have")
                total += size
                placed[name] = Placed(dtype, shape, start, stop)
            if total > self.item.size:
                raise ValueError("tensors lie on each other")
            return placed
        except (ParseError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            reason = str(error)[:200]
            raise DamagedError(f"{self.url}: not a safetensors file ({type(error).__name__}: {reason})") from error

    def load(self, rows: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """All tensors, or their rows ``[start, stop)`` only; of the object's other chunks none is read."""
        found: dict[str, Tensor] = {}
        targets: list[tuple[int, int, memoryview]] = []
        for name, placed in self.tensors.items():
            start, stop, shape = placed.start, placed.stop, placed.shape
            if rows is not None:
                if not shape or not 0 <= rows[0] <= rows[1] <= shape[0]:
                    raise DamagedError(f"{self.url}: {name} of shape {shape} has no rows {rows[0]} to {rows[1]}")
                width = (stop - start) // max(1, shape[0])
                start, stop = start + rows[0] * width, start + rows[1] * width
                shape = (rows[1] - rows[0], *shape[1:])
            found[name] = torch.empty(shape, dtype=placed.dtype)
            if start < stop:
                targets.append((start, stop, _bytes_of(found[name])))
        targets.sort(key=lambda target: target[0])
        blocks = _blocks([(start, stop) for start, stop, _ in targets])
        with ThreadPoolExecutor(_REQUESTS) as pool:
            # In small groups: what was fetched and not yet copied is bounded.
            for at in range(0, len(blocks), _REQUESTS):
                group = blocks[at : at + _REQUESTS]
                for (first, _), data in zip(group, pool.map(lambda b: self._checked(*b), group), strict=True):
                    _scatter(data, first * CHUNK_BYTES, targets)
        return found

    def _checked(self, first: int, last: int) -> bytes:
        """The chunks ``[first, last)``, proven by their hashes."""
        start, stop = first * CHUNK_BYTES, min(last * CHUNK_BYTES, self.item.size)
        # A proxy may cut or garble one answer; the object is judged by a second one.
        for _ in range(2):
            data = self._fetch(start, stop)
            pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
            if [digest(piece) for piece in pieces] == list(self.item.chunks[first:last]):
                return data
        raise DamagedError(f"{self.url}: bytes {start}-{stop} are not those of the manifest: damaged or replaced")


def _blocks(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of chunks, as ``[first, last)``, that cover sorted byte ranges; none is longer than a request may be."""
    blocks: list[tuple[int, int]] = []
    done = 0
    for start, stop in ranges:
        first, last = max(done, start // CHUNK_BYTES), math.ceil(stop / CHUNK_BYTES)
        while first < last:
            if blocks and blocks[-1][1] == first and first - blocks[-1][0] < _READ_CHUNKS:
                blocks[-1] = (blocks[-1][0], first + 1)
            else:
                blocks.append((first, first + 1))
            first += 1
        done = max(done, last)
    return blocks


def _scatter(data: bytes, start: int, targets: list[tuple[int, int, memoryview]]) -> None:
    """Copy what ``data``, the object's bytes from ``start``, has of each target."""
    stop = start + len(data)
    for first, last, view in targets:
        low, high = max(first, start), min(last, stop)
        if low < high:
            view[low - first : high - first] = data[low - start : high - start]
