"""Does a store have conditional writes? Asked before anything is paid, not at the first commit."""

from __future__ import annotations

import os

from app import storage
from app.checkpoint.manifest import CheckpointError
from app.storage import StorageError


def require_conditional_writes(url: str) -> None:
    """Write an object twice under a folder, only where there is none; the second time must be refused.

    Raises:
        CheckpointError: the store cannot do that, or does not heed it.
        StorageError: the folder cannot be written.
    """
    probe = storage.join(url, f".write-check-{os.urandom(6).hex()}")
    advice = (
        "checkpoints are committed that way; if you see to it that one job writes to a folder, pass "
        "--checkpoint.commit single-writer"
    )
    try:
        first = storage.write_bytes(probe, b"1", if_absent=True)
        again = storage.write_bytes(probe, b"2", if_absent=True)
    except StorageError as error:
        if error.kind != "unsupported":
            raise
        raise CheckpointError(
            f"{storage.redact(url)}: the store has no conditional writes (If-None-Match): {advice}"
        ) from error
    storage.delete_tree(probe)
    if not first or again:
        raise CheckpointError(f"{storage.redact(url)}: the store overwrites what must not be overwritten: {advice}")
