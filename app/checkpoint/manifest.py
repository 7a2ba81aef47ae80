"""The manifest: one small JSON object whose appearance makes a checkpoint exist."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from app.errors import AppError

FORMAT = 1


class CheckpointError(AppError):
    """A checkpoint that cannot be written, or that is damaged; names the object and what is left to use."""


@dataclass(frozen=True)
class StoredObject:
    """One object of a checkpoint.

    ``rows`` is the half-open class range of its row-sharded tensors, or None for the tensors that every rank has.
    """

    name: str
    size: int  # bytes
    sha256: str
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
        """The bytes of ``manifest.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_json(cls, url: str, data: bytes) -> Manifest:
        """Parse ``manifest.json``.

        Raises:
            CheckpointError: it is not one, or of a newer format.
        """
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise CheckpointError(
                    f"{url}: format {fields['format']} is not {FORMAT}: use the version that wrote it"
                )
            objects = tuple(
                StoredObject(str(o["name"]), int(o["size"]), str(o["sha256"]), tuple(o["rows"]) if o["rows"] else None)
                for o in fields["objects"]
            )
            if any("/" in o.name or o.name.startswith(".") for o in objects):
                raise CheckpointError(f"{url}: an object of the manifest lies outside the checkpoint")
            return cls(int(fields["step"]), int(fields["world_size"]), objects, dict(fields["meta"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{url}: not a manifest ({type(error).__name__}: {error})") from error
