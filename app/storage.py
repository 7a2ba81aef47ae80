"""Any fsspec URL: ``s3://``, ``gs://``, ``oss://``, ``https://``, ``memory://``, ``file://`` or a plain path.

Credentials and endpoints come from the environment only, never from arguments: S3 from the standard ``AWS_*``
variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_CA_BUNDLE``...), every other protocol from fsspec's own
``FSSPEC_<PROTOCOL>_<OPTION>`` variables (a public bucket: ``FSSPEC_S3_ANON=true``). ``AWS_S3_ADDRESSING_STYLE=virtual``
is for stores that refuse path-style requests. Paths are literal: no character of a name is a pattern, and ``::`` chains
nothing.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import fsspec
from fsspec.spec import AbstractBufferedFile

from app import errors, store_errors
from app.errors import AppError
from app.patience import patiently
from app.store_requests import hurry_parts, in_time, is_s3, list_page, look_up, read_side_by_side, read_whole

F = TypeVar("F", bound=Callable[..., Any])

redact = errors.redact  # for whoever prints URLs


class StorageError(AppError):
    """An object could not be read or written; the message names its URL and what to do.

    ``transient``: the store did not answer, or not in time; trying again later may help. ``kind``: ``absent`` or
    ``denied`` where the store said so, else empty.
    """

    def __init__(self, message: str = "", *, transient: bool = False, kind: str = "") -> None:
        super().__init__(message, transient=transient)
        self.kind = kind


def _patient(operation: F) -> F:
    """Ask again while the store is away; see ``app.patience``. The operation may be done twice."""

    @functools.wraps(operation)
    def asked(url: str, *args: Any, **kwargs: Any) -> Any:
        return patiently(url, lambda: operation(url, *args, **kwargs), answers=_is_answer)

    return cast(F, asked)


def _is_answer(error: AppError) -> bool:
    return isinstance(error, StorageError) and error.kind != "unreachable"


@dataclass(frozen=True)
class ObjectInfo:
    """Identity of one stored object: its size in bytes and the store's version tag (ETag, else when it was changed)."""

    url: str
    size: int
    tag: str


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the filesystem of ``url`` and the path inside it.

    Raises:
        StorageError: the protocol is unknown or its driver is not installed.
    """
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint_url"] = endpoint
        # Object stores are asked for what changes (checkpoints, run folders): a cached listing would lie.
        options["use_listings_cache"] = False
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 64}
        options["config_kwargs"]["signature_version"] = "s3v4"  # of signed URLs too, which botocore signs as of old
        if style := os.environ.get("AWS_S3_ADDRESSING_STYLE"):  # OSS and OBS refuse botocore's choice, "path"
            options["config_kwargs"]["s3"] = {"addressing_style": style}
        if "?versionId=" in url:
            raise StorageError(f"{redact(url)}: no name may hold '?versionId='; rename it")
    try:
        # Not fsspec's url_to_fs: it takes "::" in a path for a chain of URLs, and reads, writes and deletes elsewhere.
        scheme = re.match(r"[A-Za-z0-9][\w+.-]*(?=://)", url)
        kind: Any = fsspec.get_filesystem_class(scheme[0] if scheme else "file")
        filesystem, path = kind(**{**kind._get_kwargs_from_urls(url), **options}), kind._strip_protocol(url)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{redact(url)}: cannot open this kind of URL ({error})") from error
    except OSError as error:  # some drivers call their server at once
        raise StorageError(f"{redact(url)}: its server cannot be reached ({error})", transient=True) from error
    return cast(fsspec.AbstractFileSystem, filesystem), cast(str, path)


def join(url: str, *names: str) -> str:
    """Join URL parts with single slashes."""
    return "/".join([url.rstrip("/"), *(name.strip("/") for name in names)])


@_patient
def read_bytes(url: str) -> bytes:
    """Return the whole object."""
    filesystem, path = open_filesystem(url)
    with explained(url, "read"):
        return read_whole(filesystem, path, url)


def read_optional(url: str) -> bytes | None:
    """The whole object, or None where there is none.

    Keys that may not list a bucket get "denied" for what is absent; so that answer counts as absent too, with a
    warning.
    """
    try:
        return read_bytes(url)
    except StorageError as error:
        if error.kind == "denied":
            warnings.warn(f"{error}; going on as if it did not exist", stacklevel=2)
        elif error.kind != "absent":
            raise
    return None


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return bytes ``[start, stop)`` of the object; see ``read_ranges``."""
    return read_ranges(url, [(start, stop)])[0]


@_patient
def read_ranges(url: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return several byte ranges ``[start, stop)`` of one object, fetched side by side.

    A short answer is asked for again before it is believed: a proxy or a dying server may cut one off cleanly.

    Raises:
        StorageError: the object ends before a range does, or cannot be read.
    """
    filesystem, path = open_filesystem(url)
    chunks: list[bytes] = [b""] * len(ranges)
    missing = list(range(len(ranges)))
    for pause in (0.0, 0.2, 1.0):
        if not missing:
            return chunks
        time.sleep(pause)
        starts, stops = [ranges[i][0] for i in missing], [ranges[i][1] for i in missing]
        what = f"bytes {starts[0]}-{stops[0]}" if len(missing) == 1 else f"{len(missing)} ranges"
        with explained(url, f"read of {what}"):
            found = read_side_by_side(filesystem, path, url, starts, stops)
        for i, chunk in zip(missing, found, strict=True):
            if len(chunk) > ranges[i][1] - ranges[i][0]:
                raise StorageError(
                    f"{redact(url)}: the server sent {len(chunk)} bytes where {ranges[i][1] - ranges[i][0]} were asked "
                    "for: it does not know ranges; serve the files with one that does (nginx, S3), or copy them"
                )
            chunks[i] = chunk
        missing = [i for i in missing if len(chunks[i]) != ranges[i][1] - ranges[i][0]]
    if not missing:
        return chunks
    (start, stop), size = ranges[missing[0]], len(chunks[missing[0]])
    raise StorageError(
        f"{redact(url)}: bytes {start}-{stop} came back with {size} bytes instead of {stop - start}: "
        "the object is truncated or was replaced; upload it again"
    )


@_patient
def write_bytes(url: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Write the whole object in one request, so that readers see all of it or nothing.

    With ``if_absent`` the write is conditional (``If-None-Match: *`` on S3, ``O_EXCL`` on files): returns False, and
    changes nothing, when the object exists already with another content. With the same content it counts as written:
    the store may have done what was asked and its answer been lost. So what two writers may both write needs a token.
    """
    filesystem, path = open_filesystem(url)
    with explained(url, "write"):
        if is_local(filesystem):
            return _write_local(path, data, if_absent=if_absent)
        mode = "create" if if_absent else "overwrite"
        try:
            in_time(filesystem, url, "pipe_file", path, data, mode=mode, size=len(data))
            return True
        except OSError as error:
            refused = isinstance(error, FileExistsError) or store_errors.explain(error)[0].kind == "precondition"
            if not (if_absent and refused):
                raise
        # Not in the handler: what goes wrong here is not what is handled there.
        return read_whole(filesystem, path, url) == data


def _write_local(path: str, data: bytes, *, if_absent: bool) -> bool:
    """Write beside the target and move into place: a reader never sees half a file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if if_absent:
            try:
                os.link(temporary, path)
            except FileExistsError:
                with open(path, "rb") as file:
                    return file.read() == data
        else:
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return True


def exists(url: str, *, optional: bool = False) -> bool:
    """True when the object (or a folder of that name) is there.

    Args:
        optional: "denied" counts as absent, with a warning; see ``read_optional``.
    """
    try:
        info(url)
    except StorageError as error:
        if error.kind == "absent":
            return False
        if optional and error.kind == "denied":
            warnings.warn(f"{error}; going on as if it did not exist", stacklevel=2)
            return False
        raise
    return True


@_patient
def info(url: str) -> ObjectInfo:
    """Size and version tag of an object.

    Raises:
        StorageError: it is not there, or is not readable with these credentials.
    """
    filesystem, path = open_filesystem(url)
    with explained(url, "look-up"):
        details = look_up(filesystem, path, url)
    names = ("ETag", "etag", "mtime", "Last-Modified", "created")
    return ObjectInfo(url, int(details["size"] or 0), plain_tag(next(filter(None, map(details.get, names)), "")))


def plain_tag(tag: object) -> str:
    """A version tag without HTTP's quotes and its mark of a weak one."""
    return str(tag).removeprefix("W/").strip('"')


@_patient
def list_names(url: str) -> list[str]:
    """Names directly under a folder URL, sorted; a missing folder is an empty list."""
    filesystem, path = open_filesystem(url)
    with explained(url, "list"):
        try:
            entries = in_time(filesystem, url, "ls", path, detail=False)
        except FileNotFoundError:
            return []
    prefix = path.rstrip("/")
    names = (str(entry).rstrip("/") for entry in entries)
    return sorted(name.rsplit("/", 1)[-1] for name in names if name != prefix)


def list_tree(url: str) -> Iterator[tuple[str, int]]:
    """Objects at any depth under a folder URL, by their paths from it on, with their bytes; in no certain order.

    A name that ends in a slash is a folder, which a store tells where somebody made an object of that name. Of S3 no
    more than a page of the list is in memory.
    """
    found, after = _list_tree(url, "")
    yield from found
    while after:
        found, after = _list_tree(url, after)
        yield from found


@_patient
def _list_tree(url: str, after: str) -> tuple[list[tuple[str, int]], str]:
    filesystem, path = open_filesystem(url)
    with explained(url, "list"):
        if is_s3(filesystem):
            return list_page(filesystem, path, url, after)
        found = in_time(filesystem, url, "find", path, detail=True)
    base = path.rstrip("/") + "/"
    return [(name.removeprefix(base), int(about.get("size") or 0)) for name, about in found.items()], ""


@_patient
def newest_change(url: str) -> float:
    """When an object, or the newest one under a folder, was written: seconds by the store's clock; 0 where untold."""
    filesystem, path = open_filesystem(url)
    with explained(url, "list"):
        found = in_time(filesystem, url, "find", path, detail=True)
    stamps = (about.get("LastModified") or about.get("mtime") or about.get("created") for about in found.values())
    return max((float(at.timestamp() if hasattr(at, "timestamp") else at or 0) for at in stamps), default=0.0)


@_patient
def delete_tree(url: str) -> None:
    """Delete an object, or a folder and all under it; what is gone already is no error.

    The path is literal. fsspec's own recursive delete takes ``[ ] ? *`` for patterns: asked for ``a[1]`` it would
    delete ``a1``. So the names are listed by prefix and deleted one by one.
    """
    filesystem, path = open_filesystem(url)
    with explained(url, "delete"):
        try:
            if is_local(filesystem):
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                return
            if not path.strip("/"):
                raise StorageError(f"{redact(url)}: refusing to delete everything; name a folder")
            found = in_time(filesystem, url, "find", path)
            names = [name for name in found if name == path or name.startswith(path.rstrip("/") + "/")]
            _delete_objects(filesystem, names, url)
        except FileNotFoundError:
            return


def _delete_objects(filesystem: fsspec.AbstractFileSystem, names: list[str], url: str) -> None:
    if is_s3(filesystem):
        for start in range(0, len(names), 1000):  # as many as one request may name
            in_time(filesystem, url, "_bulk_delete", names[start : start + 1000])
        return
    for name in names:
        in_time(filesystem, url, "rm_file", name)


@contextmanager
def open_writer(url: str) -> Iterator[ObjectWriter]:
    """A large object to be written in pieces; it appears when the block is left normally, else never."""
    filesystem, path = open_filesystem(url)
    with explained(url, "write"):
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
        file = filesystem.open(path, "wb", autocommit=False)
        hurry_parts(file, url)
    try:
        yield ObjectWriter(file, url)
    except BaseException:
        file.discard()
        if isinstance(file, AbstractBufferedFile):
            file.closed = True  # or its finalizer would try to upload the rest
        raise
    with explained(url, "write"):
        file.close()
        file.commit()


class ObjectWriter:
    """An object being written; its errors name the URL. See ``open_writer``."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def write(self, data: bytes) -> int:
        """Append some bytes."""
        with explained(self._url, "write"):
            return int(self._file.write(data))


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """True for the host's own files."""
    return "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))


def may_pass(url: str, error: Exception) -> bool:
    """Whether a driver's error means that the same request, sent again, may succeed."""
    try:
        with explained(url, "read"):
            raise error
    except StorageError as meant:
        return meant.transient


@contextmanager
def explained(url: str, action: str) -> Iterator[None]:
    """Turn the many exceptions of storage drivers into one ``StorageError`` that says what to do."""
    try:
        yield
    except AppError:
        raise
    except Exception as error:
        meaning, words = store_errors.explain(error)
        bucket = url.split("://", 1)[-1].split("/", 1)[0]
        sentence = meaning.sentence.replace("{bucket!r}", repr(bucket))
        text = f"{sentence} ({words})" if words and words not in sentence else sentence
        raise StorageError(
            f"{redact(url)}: {action} failed: {redact(text)}", transient=meaning.transient, kind=meaning.kind
        ) from error
