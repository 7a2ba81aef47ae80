"""The manifest: one small JSON object whose appearance makes a checkpoint exist."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from app.errors import AppError
from app.parsing import ParseError, parse_json_object

FORMAT = 2
CHUNK_BYTES = 1 << 20  # each so many bytes of an object have a hash of their own
MOST_BYTES = 40 << 20  # of a manifest: 570,000 chunks
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # of an object; no path


class CheckpointError(AppError):
    """A checkpoint that cannot be written or read; names the object and what is left to do."""


class DamagedError(CheckpointError):
    """A checkpoint that was read and found wrong: another one may be used in its place."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a checkpoint.

    ``rows`` is the half-open class range of its row-sharded tensors, or None for the tensors that every rank has.
    ``chunks`` are the SHA-256 of its bytes, ``CHUNK_BYTES`` each, the last one shorter.
    """

    name: str
    size: int  # bytes
    chunks: tuple[str, ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint holds.

    ``meta`` is the run's state outside tensors (step, logical workers, loss scale...), as plain JSON.
    """

    step: int
    world_size: int
    objects: tuple[StoredObject, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The bytes of ``manifest.json``.

        Raises:
            CheckpointError: there are more of them than are ever read.
        """
        data = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False).encode()
        if len(data) > MOST_BYTES:
            raise CheckpointError(f"a checkpoint of {sum(item.size for item in self.objects)} bytes is too large")
        return data

    @classmethod
    def from_json(cls, url: str, data: bytes) -> Manifest:
        """Parse ``manifest.json``.

        Raises:
            DamagedError: it is not one.
            CheckpointError: it is one of another format.
        """
        try:
            fields = parse_json_object(data, "content", limit=MOST_BYTES)
            number = int(fields["format"])
            if number != FORMAT:
                raise CheckpointError(
                    f"{url}: a checkpoint of format {number}, this version reads {FORMAT}: finish the run with the "
                    "version that wrote it, start it anew under another --name, or pass --checkpoint.resume never"
                )
            objects = tuple(_parse_object(about) for about in fields["objects"])
            step, world_size = int(fields["step"]), int(fields["world_size"])
            if step < 0 or world_size < 1 or len({item.name for item in objects}) != len(objects):
                raise ValueError(f"step {step} of {world_size} processes, or an object that stands there twice")
            return cls(step, world_size, objects, dict(fields["meta"]))
        except ParseError as error:
            raise DamagedError(f"{url}: not a manifest ({error})") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedError(f"{url}: not a manifest ({type(error).__name__}: {str(error)[:200]})") from error


def _parse_object(about: dict[str, Any]) -> StoredObject:
    name, size = about["name"], int(about["size"])
    chunks = tuple(map(str, about["chunks"]))
    rows = None
    if about["rows"] is not None:
        first, last = map(int, about["rows"])
        if not 0 <= first <= last:
            raise ValueError(f"rows {first} to {last}")
        rows = (first, last)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("an object of the manifest lies outside the checkpoint, or has an odd name")
    if size < 0 or len(chunks) != math.ceil(size / CHUNK_BYTES):
        raise ValueError(f"{len(chunks)} hashes for {size} bytes")
    return StoredObject(name, size, chunks, rows)
