"""The object store as this shell sees it, for questions before and after a job; never the pods' credentials."""

from __future__ import annotations

import os

import fsspec


class Skipped(Exception):
    """A question that cannot be asked from here."""


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a URL.

    Raises:
        Skipped: this shell has no keys for it.
    """
    if url.startswith("s3://") and not (os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_PROFILE")):
        raise Skipped("no AWS_ACCESS_KEY_ID or AWS_PROFILE in this shell; the pods' Secret cannot be tried from here")
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") if url.startswith("s3://") else ""
    filesystem, path = fsspec.core.url_to_fs(url, **({"endpoint_url": endpoint} if endpoint else {}))
    return filesystem, str(path)
