"""Single requests to a store, each with the deadline of ``app.deadline`` where its driver is asynchronous."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.http import HTTPFileSystem

from app.deadline import Requests, is_late
from app.errors import redact
from app.store_errors import is_broken

_LARGE = 64 << 20  # bytes above which the driver may read an object in several requests
_SIDE_BY_SIDE = 32  # requests of one call
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-\d+/(\d+|\*)$", re.IGNORECASE)
_requests = Requests(hedges=False)  # objects may be large: two answers at once would be slower than one


class ShortError(ConnectionError):
    """An answer ended before the object did, or after."""


class StrangeAnswerError(ConnectionError):
    """An answer that no S3 store gives: something before it answered in its place, and called that a success."""


class NoRangesError(OSError):
    """The answer to a request for a range is the whole object."""


class EncodedError(OSError):
    """The answer holds no bytes of the object as they are."""


class WrongRangeError(ConnectionError):
    """The answer to a request for a range is another range."""


def is_s3(filesystem: Any) -> bool:
    """True for S3's driver, whose requests are known one by one."""
    return isinstance(filesystem, AsyncFileSystem) and hasattr(filesystem, "_call_s3")


def in_time(
    filesystem: Any, url: str, method: str, *arguments: Any, size: int = 0, part: str = "", **options: Any
) -> Any:
    """``filesystem.method(*arguments, **options)``.

    Args:
        url: of the object, for the line that is printed when it is late; ``part`` of it.
        size: bytes that are sent.
    """
    if not isinstance(filesystem, AsyncFileSystem):
        return getattr(filesystem, method)(*arguments, **options)
    action = getattr(filesystem, f"_{method.lstrip('_')}")

    async def bytes_sent() -> int:
        return size

    async def ask() -> Any:
        return await _requests.ask(
            redact(url) + part, lambda: action(*arguments, **options), bytes_sent, may_pass=is_late
        )

    return sync(filesystem.loop, ask)


def look_up(filesystem: Any, path: str, url: str) -> dict[str, Any]:
    """What fsspec's ``info`` says of an object or a folder."""
    if not is_s3(filesystem):
        return cast(dict[str, Any], in_time(filesystem, url, "info", path))

    async def size() -> int:
        return 0

    async def ask() -> dict[str, Any]:
        return await _requests.ask(redact(url), lambda: _look_up(filesystem, path), size, may_pass=is_late)

    return cast(dict[str, Any], sync(filesystem.loop, ask))


async def _look_up(filesystem: Any, path: str) -> dict[str, Any]:
    try:
        about = cast(dict[str, Any], await filesystem._info(path))
    except PermissionError:
        # The answer to a HEAD has no body: why it is refused (a clock, a token, a policy) tells that to a GET.
        bucket, key, _ = filesystem.split_path(path)
        if key:
            answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, **filesystem.req_kw)
            answer["Body"].close()
        raise
    if about.get("type") == "file":
        _check_tag(about)
    return about


def _check_tag(answer: Mapping[str, Any]) -> None:
    """Some stores know no ETag; what has none and is a page or an error, whatever its status says, is no object."""
    kind = str(answer.get("ContentType") or "").lower()
    if not answer.get("ETag") and ("xml" in kind or "html" in kind):
        raise StrangeAnswerError("an answer without ETag came")


def list_page(filesystem: Any, path: str, url: str, after: str) -> tuple[list[tuple[str, int]], str]:
    """Keys under S3's folder ``path``, from there on, with their bytes; some thousand, and what the next page is after.

    Args:
        after: empty for the first page. An empty one comes back with the last.
    """
    bucket, prefix, _ = filesystem.split_path(path.rstrip("/"))
    prefix = f"{prefix}/" if prefix else ""
    more = {"ContinuationToken": after} if after else {}
    wanted = {"Bucket": bucket, "Prefix": prefix, **more, **filesystem.req_kw}
    page = in_time(filesystem, url, "call_s3", "list_objects_v2", **wanted)
    names = [(found["Key"].removeprefix(prefix), int(found["Size"])) for found in page.get("Contents", [])]
    return names, page["NextContinuationToken"] if page.get("IsTruncated") else ""


def read_whole(filesystem: Any, path: str, url: str) -> bytes:
    """The whole object."""
    if not isinstance(filesystem, AsyncFileSystem):
        return cast(bytes, filesystem.cat_file(path))

    async def size() -> int:
        about = await (_look_up(filesystem, path) if is_s3(filesystem) else filesystem._info(path))
        return int(about["size"] or 0)

    async def read() -> bytes:
        if not is_s3(filesystem):
            return cast(bytes, await filesystem._cat_file(path))
        expected = await size()  # the driver would ask too; and an answer that was cut off cleanly does not tell
        alone = {"max_concurrency": 1} if expected < _LARGE else {}
        data = cast(bytes, await filesystem._cat_file(path, **alone))
        if len(data) != expected:  # more: it was replaced just now, or what came is the page of a gateway
            raise ShortError(f"{len(data)} of {expected} bytes came")
        return data

    async def ask() -> bytes:
        return await _requests.ask(redact(url), read, size, may_pass=_is_late_or_short)

    return cast(bytes, sync(filesystem.loop, ask))


def _is_late_or_short(error: Exception) -> bool:
    return is_late(error) or isinstance(error, ShortError)


async def get_http_range(filesystem: Any, path: str, start: int, stop: int) -> tuple[bytes, str, int]:
    """Bytes [start, stop) from a web server, the version that the answer names, and the object's size (-1: untold).

    What is not the range is refused before it is read: it may be hundreds of gigabytes.
    """
    session, options = await filesystem.set_session(), dict(filesystem.kwargs)
    headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    async with session.get(filesystem.encode_url(path), headers=headers, **options) as answer:
        filesystem._raise_not_found_for_status(answer, path)
        if answer.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            raise EncodedError(f"it came as {answer.headers['Content-Encoding']}")
        told = answer.headers.get("Content-Range", "") if answer.status == 206 else None
        size = _check_range(told, answer.content_length, start, stop)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        return bytes(await answer.read()), tag, size


async def get_s3_range(filesystem: Any, path: str, start: int, stop: int, tag: str = "") -> tuple[bytes, str, int]:
    """The same from S3, and how often the driver asked again in the place of the size; ``tag``: what it must have."""
    bucket, key, _ = filesystem.split_path(path)
    pinned = {"IfMatch": f'"{tag}"'} if tag else {}
    answer = await filesystem._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **pinned, **filesystem.req_kw
    )
    try:
        _check_tag(answer)
        about = answer.get("ResponseMetadata", {})
        told = answer.get("ContentRange", "") if about.get("HTTPStatusCode", 206) == 206 else None
        _check_range(told, answer.get("ContentLength"), start, stop)
        return bytes(await answer["Body"].read()), answer.get("ETag") or "", about.get("RetryAttempts", 0)
    finally:
        answer["Body"].close()


def _check_range(told: str | None, length: int | None, start: int, stop: int) -> int:
    """The object's size by the Content-Range of an answer (-1: untold); ``told`` is None for what is no part.

    Raises:
        NoRangesError, WrongRangeError: its body is not to be read.
    """
    if told is None and (start or length is None or length > stop):
        raise NoRangesError(f"{length or 'many'} bytes came")
    found = _CONTENT_RANGE.match(told or "")
    if found and int(found[1]) != start:
        raise WrongRangeError(f"bytes from {found[1]} came")
    return int(found[2]) if found and found[2].isdecimal() else -1


def read_side_by_side(filesystem: Any, path: str, url: str, starts: Sequence[int], stops: Sequence[int]) -> list[bytes]:
    """Byte ranges of an object, fetched at the same time; an answer may be short."""
    if not isinstance(filesystem, AsyncFileSystem):
        return cast(list[bytes], filesystem.cat_ranges([path] * len(starts), starts, stops, on_error="raise"))

    async def ask() -> list[bytes]:
        places = asyncio.Semaphore(_SIDE_BY_SIDE)  # a request's time does not run while it waits for a connection

        async def read(start: int, stop: int) -> bytes:
            async def size() -> int:
                return stop - start

            async with places:
                return await _requests.ask(
                    f"{redact(url)}: bytes {start}-{stop}",
                    lambda: _read_range(filesystem, path, start, stop),
                    size,
                    may_pass=lambda error: is_late(error) or is_broken(error),
                )

        tasks = [asyncio.ensure_future(read(start, stop)) for start, stop in zip(starts, stops, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # of those that are still on their way, after the failure of another
                task.cancel()

    return cast(list[bytes], sync(filesystem.loop, ask))


async def _read_range(filesystem: Any, path: str, start: int, stop: int) -> bytes:
    if isinstance(filesystem, HTTPFileSystem) and start < stop:
        return (await get_http_range(filesystem, path, start, stop))[0]
    if is_s3(filesystem) and start < stop:
        return (await get_s3_range(filesystem, path, start, stop))[0]
    return cast(bytes, await filesystem._cat_file(path, start=start, end=stop))


def hurry_parts(file: Any, url: str) -> None:
    """Give each part of an upload in progress a deadline; S3's driver has none but for silence."""
    filesystem = getattr(file, "fs", None)
    if not is_s3(filesystem):
        return

    def call(method: str, *more: Any, **options: Any) -> Any:
        part = f": part {options['PartNumber']}" if "PartNumber" in options else ""
        settings = (file.s3_additional_kwargs, file._request_payer_kw)
        size = len(options.get("Body") or b"")
        return in_time(filesystem, url, "call_s3", method, *settings, *more, size=size, part=part, **options)

    file._call_s3 = call
