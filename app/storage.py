"""Any fsspec URL: ``s3://``, ``gs://``, ``oss://``, ``https://``, ``memory://``, ``file://`` or a plain path.

Credentials and endpoints come from the environment only, never from arguments: S3 from the standard ``AWS_*``
variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ``AWS_CA_BUNDLE``...), every other protocol from fsspec's own
``FSSPEC_<PROTOCOL>_<OPTION>`` variables.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import fsspec
from fsspec.core import url_to_fs

from app.errors import AppError

_SECRET_NAMES = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")


class StorageError(AppError):
    """An object could not be read or written; the message names its URL and what to do.

    ``transient``: the store did not answer, or not in time; trying again later may help.
    """

    transient = False


@dataclass(frozen=True)
class ObjectInfo:
    """Identity of one stored object: its size in bytes and the store's version tag (ETag, or mtime for files)."""

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
    try:
        filesystem, path = url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise StorageError(f"{redact(url)}: cannot open this kind of URL ({error})") from error
    return cast(fsspec.AbstractFileSystem, filesystem), cast(str, path)


def join(url: str, *names: str) -> str:
    """Join URL parts with single slashes."""
    return "/".join([url.rstrip("/"), *(name.strip("/") for name in names)])


def read_bytes(url: str) -> bytes:
    """Return the whole object."""
    filesystem, path = open_filesystem(url)
    with explained(url, "read"):
        return cast(bytes, filesystem.cat_file(path))


def read_range(url: str, start: int, stop: int) -> bytes:
    """Return bytes ``[start, stop)`` of the object; fewer bytes than asked for are an error."""
    filesystem, path = open_filesystem(url)
    with explained(url, f"read of bytes {start}-{stop}"):
        data = cast(bytes, filesystem.cat_file(path, start=start, end=stop))
    if len(data) != stop - start:
        raise StorageError(
            f"{redact(url)}: bytes {start}-{stop} came back with {len(data)} bytes instead of {stop - start}: "
            "the object is truncated or was replaced; upload it again"
        )
    return data


def write_bytes(url: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Write the whole object in one request, so that readers see all of it or nothing.

    With ``if_absent`` the write is conditional (``If-None-Match: *`` on S3, ``O_EXCL`` on files): returns False, and
    changes nothing, when the object exists already.
    """
    filesystem, path = open_filesystem(url)
    with explained(url, "write"):
        if is_local(filesystem):
            return _write_local(path, data, if_absent=if_absent)
        if not if_absent:
            filesystem.pipe_file(path, data)
            return True
        try:
            filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _error_code(error) in {"PreconditionFailed", "ConditionalRequestConflict"}:
                return False
            raise
    return True


def _error_code(error: BaseException) -> str:
    """The S3 error code behind an exception of s3fs, which keeps botocore's ClientError as the cause; else empty."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


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
                return False
        else:
            os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return True


def exists(url: str) -> bool:
    """True when the object (or a folder of that name) is there."""
    filesystem, path = open_filesystem(url)
    with explained(url, "look-up"):
        return bool(filesystem.exists(path))


def info(url: str) -> ObjectInfo:
    """Size and version tag of an object.

    Raises:
        StorageError: it is not there, or is not readable with these credentials.
    """
    filesystem, path = open_filesystem(url)
    with explained(url, "look-up"):
        details = filesystem.info(path)
    tag = str(details.get("ETag") or details.get("etag") or details.get("mtime") or details.get("created") or "")
    return ObjectInfo(url, int(details["size"] or 0), tag.strip('"'))


def list_names(url: str) -> list[str]:
    """Names directly under a folder URL, sorted; a missing folder is an empty list."""
    filesystem, path = open_filesystem(url)
    with explained(url, "list"):
        try:
            entries = filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
    prefix = path.rstrip("/")
    names = (str(entry).rstrip("/") for entry in entries)
    return sorted(name.rsplit("/", 1)[-1] for name in names if name != prefix)


def delete_tree(url: str) -> None:
    """Delete an object, or a folder and all under it; what is gone already is no error."""
    filesystem, path = open_filesystem(url)
    with explained(url, "delete"):
        try:
            filesystem.rm(path, recursive=True)
        except FileNotFoundError:
            return


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """True for the host's own files."""
    return "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))


def redact(text: str) -> str:
    """Remove credentials from a text that will be printed: ``user:password@`` of URLs and the known secrets' values."""
    text = re.sub(r"(?<=://)[^/@\s]+:[^/@\s]+@", "***@", text)
    for name in _SECRET_NAMES:
        value = os.environ.get(name, "")
        if len(value) >= 4:
            text = text.replace(value, "***")
    return text


@contextmanager
def explained(url: str, action: str) -> Iterator[None]:
    """Turn the many exceptions of storage drivers into one ``StorageError`` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        explanation = StorageError(f"{redact(url)}: {action} failed: {redact(_reason(url, error))}")
        explanation.transient = _is_transient(error)
        raise explanation from error


def _is_transient(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    signs = ("could not connect", "endpointconnection", "timeout", "timed out", "slowdown", "reduce your request rate")
    return any(sign in text for sign in signs) or _error_code(error) in {"503", "500", "InternalError", "SlowDown"}


def _reason(url: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    lowered = f"{type(error).__name__} {text}".lower()
    if "nosuchbucket" in lowered or "bucket does not exist" in lowered:
        bucket = url.split("://", 1)[-1].split("/", 1)[0]
        return f"the bucket {bucket!r} does not exist; create it or correct the URL"
    if "invalidaccesskeyid" in lowered or "signaturedoesnotmatch" in lowered or "access key id you provided" in lowered:
        return "the store does not know these credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, PermissionError) or "accessdenied" in lowered or "forbidden" in lowered or "403" in lowered:
        return "access denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    if "unable to locate credentials" in lowered or "nocredentials" in lowered:
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, FileNotFoundError) or "nosuchkey" in lowered:
        return "it does not exist; check the URL"
    if "certificate" in lowered or "sslerror" in lowered:
        return f"the store's certificate is not trusted; name its authority's PEM file in AWS_CA_BUNDLE ({text})"
    bundle = os.environ.get("AWS_CA_BUNDLE", "")
    if bundle and not os.path.isfile(bundle):
        return f"AWS_CA_BUNDLE is {bundle}, which is not a file; correct it or unset it"
    if "could not connect" in lowered or "endpointconnection" in lowered or "connection refused" in lowered:
        return f"the store does not answer; check AWS_ENDPOINT_URL ({text})"
    return f"{type(error).__name__}: {text}"
