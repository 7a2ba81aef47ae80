"""The object store as this shell sees it, for questions before and after a job; never the pods' credentials.

What is asked of a store, and what its refusals mean, is the business of ``app.storage`` alone, which loads no torch
(nor does the try of a commit); beside the words for errors this is all that is imported of the app here.
"""

from __future__ import annotations

import os

from app import storage
from app.checkpoint.conditional import require_conditional_writes
from app.errors import AppError

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "FSSPEC_S3_ANON")


class Skipped(Exception):
    """A question that cannot be asked from here."""


class StoreError(ValueError):
    """What the store says of an object; ``absent`` when that is that there is none."""

    def __init__(self, url: str, error: AppError, verb: str = "read") -> None:
        super().__init__(f"{url} cannot be {verb}: {str(error).removeprefix(f'{url}: ')}")
        self.absent = isinstance(error, storage.StorageError) and error.kind == "absent"


def size_of(url: str) -> int:
    """Bytes of an object; 0 of a folder or bucket that is there.

    Raises:
        Skipped: this shell has no keys for it.
        StoreError: it is not there, or cannot be read.
    """
    _require_keys(url)
    try:
        return storage.info(url).size
    except AppError as error:
        raise StoreError(url, error) from error


def try_commit(url: str) -> None:
    """Write and delete an object below a folder, as a checkpoint is committed.

    Raises:
        Skipped: this shell has no keys for it, or they may not write; the pods' may.
        StoreError: the store cannot do it.
    """
    _require_keys(url)
    try:
        require_conditional_writes(url)
    except AppError as error:
        if isinstance(error, storage.StorageError) and error.kind == "denied":
            raise Skipped(f"{url}: this shell's keys may not write there: commits could not be tried") from error
        raise StoreError(url, error, "written") from error


def names_in(url: str) -> list[str]:
    """Names directly under a folder, sorted; none where there is no folder.

    Raises:
        Skipped, StoreError: as ``size_of``.
    """
    _require_keys(url)
    try:
        return storage.list_names(url)
    except AppError as error:
        raise StoreError(url, error) from error


def read_ends(url: str, count: int) -> tuple[bytes, bytes]:
    """The first ``count`` bytes of an object and up to as many of its last, none of them twice.

    Raises:
        Skipped, StoreError: as ``size_of``.
    """
    size = size_of(url)
    first = (0, min(size, count))
    last = (max(first[1], size - count), size)
    try:
        found = storage.read_ranges(url, [first, last] if last[0] < size else [first])
    except AppError as error:
        raise StoreError(url, error) from error
    return found[0], found[1] if len(found) > 1 else b""


def _require_keys(url: str) -> None:
    if url.startswith(("s3://", "s3a://")) and not any(os.environ.get(name) for name in _KEYS):
        raise Skipped("no AWS_ACCESS_KEY_ID or AWS_PROFILE in this shell; the pods' Secret cannot be tried from here")
