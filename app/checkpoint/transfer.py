"""Objects of a checkpoint on their way to the store and back, in pieces, with patience."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from torch import Tensor

from app import storage
from app.checkpoint.manifest import CHUNK_BYTES, MOST_BYTES, DamagedError, Manifest, StoredObject
from app.checkpoint.tensor_file import TensorFile, cut, digest, serialize
from app.patience import persist
from app.storage import StorageError
from app.store_requests import hurry_parts

_ONE_REQUEST_BYTES = 8 << 20  # smaller objects go in one request
_MOST_PARTS = 9000  # S3 takes 10,000 parts an upload


def write_tensors(url: str, tensors: Mapping[str, Tensor], rows: tuple[int, int] | None) -> StoredObject:
    """Stream contiguous host tensors to an object; beside them it takes a few parts of memory, however large it is.

    Raises:
        StorageError: the store did not take all of it; then there is no object.
    """
    size = sum(len(part) for part in serialize(tensors))
    hashes: list[str] = []

    def chunks() -> Iterator[memoryview]:
        for chunk in cut(serialize(tensors), CHUNK_BYTES):
            hashes.append(digest(chunk))
            yield chunk

    _upload(url, chunks(), size)
    return StoredObject(url.rsplit("/", 1)[-1], size, tuple(hashes), rows)


def _upload(url: str, chunks: Iterator[memoryview], size: int) -> None:
    filesystem, path = storage.open_filesystem(url)
    if size <= _ONE_REQUEST_BYTES:
        storage.write_bytes(url, b"".join(chunks))
        return
    with storage.explained(url, "write"):
        if storage.is_local(filesystem):
            _write_local(path, chunks)
            return
        block = max(_ONE_REQUEST_BYTES, -(-size // _MOST_PARTS))
        file = filesystem.open(path, "wb", block_size=block)
        hurry_parts(file, url)
        try:
            for chunk in chunks:
                file.write(chunk)
            file.close()
        except BaseException:
            # Closing would commit what is there, and so would the collector of garbage.
            file.closed = True
            with suppress(Exception):
                file.discard()
            raise


def _write_local(path: str, chunks: Iterator[memoryview]) -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def put_manifest(url: str, data: bytes, *, conditional: bool) -> bool:
    """Commit: write the manifest where there is none; False when another one is there.

    A store may do what it was asked and lose the answer: one that holds these very bytes has taken them.
    """
    if not conditional:
        if storage.exists(url):
            return storage.read_bytes(url) == data
        storage.write_bytes(url, data)
        return True
    return storage.write_bytes(url, data, if_absent=True) or storage.read_bytes(url) == data


def read_manifest(url: str, until: float) -> Manifest:
    """A committed manifest.

    Raises:
        DamagedError: it is gone, or none, also when read again.
        StorageError: the store did not answer until ``until`` (``time.monotonic()``).
    """
    for last in (False, True):
        try:
            if persist(lambda: storage.info(url), until).size > MOST_BYTES:
                raise DamagedError(f"{url}: not a manifest: larger than {MOST_BYTES >> 20} MiB")
            return Manifest.from_json(url, persist(lambda: storage.read_bytes(url), until))
        except DamagedError:
            if last:
                raise
            time.sleep(0.2)
        except StorageError as error:
            if error.kind == "absent":
                raise DamagedError(f"{url}: it is gone") from error
            raise
    raise AssertionError


def open_tensors(url: str, item: StoredObject, until: float) -> TensorFile:
    """A stored object, its size and header checked.

    Raises:
        DamagedError: it is gone or not what the manifest says.
        StorageError: the store did not answer until ``until`` (``time.monotonic()``).
    """
    try:
        size = persist(lambda: storage.info(url), until).size
    except StorageError as error:
        if error.kind == "absent":
            raise DamagedError(f"{url}: it is missing") from error
        raise
    if size != item.size:
        raise DamagedError(f"{url}: {size} bytes that should be {item.size}: damaged or replaced")
    return TensorFile(url, item, lambda start, stop: persist(lambda: storage.read_range(url, start, stop), until))
