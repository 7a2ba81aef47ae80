"""Single requests to a store, each with the deadline of ``app.deadline`` where its driver is asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from fsspec.asyn import AsyncFileSystem, sync

from app.deadline import Requests, is_late
from app.errors import redact

_LARGE = 64 << 20  # bytes above which the driver may read an object in several requests
_SIDE_BY_SIDE = 32  # requests of one call
_requests = Requests(hedges=False)  # objects may be large: two answers at once would be slower than one


class ShortError(ConnectionError):
    """An answer ended before the object did."""


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
        return int((await filesystem._info(path))["size"] or 0)

    async def read() -> bytes:
        if not is_s3(filesystem):
            return cast(bytes, await filesystem._cat_file(path))
        expected = await size()  # the driver would ask too; and an answer that was cut off cleanly does not tell
        alone = {"max_concurrency": 1} if expected < _LARGE else {}
        data = cast(bytes, await filesystem._cat_file(path, **alone))
        if len(data) < expected:
            raise ShortError(f"{len(data)} of {expected} bytes came")
        return data

    async def ask() -> bytes:
        return await _requests.ask(redact(url), read, size, may_pass=_is_late_or_short)

    return cast(bytes, sync(filesystem.loop, ask))


def _is_late_or_short(error: Exception) -> bool:
    return is_late(error) or isinstance(error, ShortError)


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
                    lambda: filesystem._cat_file(path, start=start, end=stop),
                    size,
                    may_pass=is_late,
                )

        tasks = [asyncio.ensure_future(read(start, stop)) for start, stop in zip(starts, stops, strict=True)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # of those that are still on their way, after the failure of another
                task.cancel()

    return cast(list[bytes], sync(filesystem.loop, ask))


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
