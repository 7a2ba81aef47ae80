"""S3 stores, and what stands before them, that pass over a condition, change a header or answer with another length:
the real store behind a proxy that does so. Right records, or one error that names the object."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import s3fs

from app import patience, storage
from app.data.build import open_source
from app.data.config import DataConfig
from app.storage import StorageError
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy
from tests.jobs import write_faces

Headers = list[tuple[str, str]]
Change = Callable[[int, Headers, bytes], tuple[int, Headers, bytes]]


def without(*names: str) -> Change:
    def change(status: int, headers: Headers, data: bytes) -> tuple[int, Headers, bytes]:
        return status, [(name, value) for name, value in headers if name.lower() not in names], data

    return change


class OddProxy(Proxy):
    """Passes over headers of requests for ``.rec``, and changes the answers to them."""

    passes_over: tuple[str, ...] = ()
    change: Change = staticmethod(without())

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Headers, bytes]:
        if ".rec" not in request.path:
            return super()._pass_on(request, body)
        if request.command != "GET" or not self.passes_over:
            return self.change(*super()._pass_on(request, body))
        # The driver signs these headers, so the proxy asks for the object in its own name.
        path, store = unquote(urlsplit(request.path).path).strip("/"), self.store
        data, tag = store.cat_file(path), store.info(path)["ETag"]
        asked = re.match(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if "Range" in self.passes_over or not asked:
            return self.change(200, [("ETag", tag)], data)
        start, stop = int(asked[1]), int(asked[2]) + 1
        told = f"bytes {start}-{stop - 1}/{len(data)}"
        return self.change(206, [("ETag", tag), ("Content-Range", told)], data[start:stop])

    def __enter__(self) -> OddProxy:
        super().__enter__()
        self.store = s3fs.S3FileSystem(
            endpoint_url=self.upstream.geturl(), skip_instance_cache=True, use_listings_cache=False
        )
        return self


@pytest.fixture
def odd(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddProxy]:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0.1")
    with OddProxy(object_store.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield between
    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def by_the_driver_alone(use: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if use:
        monkeypatch.setattr("app.plain_get.PlainGet.read", lambda *_: None)
    yield


@pytest.mark.parametrize("driver", [False, True])
def test_a_store_that_passes_over_if_match_serves_no_other_version(
    odd: OddProxy, bucket_url: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(bucket_url, classes=4, per_class=5)
    odd.passes_over = ("If-Match",)
    with by_the_driver_alone(driver, monkeypatch):
        source = open_source(DataConfig(url=bucket_url), 0)
        assert len(source.read(np.arange(3))) == 3
        url = storage.join(bucket_url, "train.rec")
        data = storage.read_bytes(url)
        storage.write_bytes(url, data[:100] + bytes(len(data) - 100))
        with pytest.raises(StorageError, match=r"train\.rec: the server has another version now.*replaced"):
            source.read(np.arange(3))


def weak(status: int, headers: Headers, data: bytes) -> tuple[int, Headers, bytes]:
    return status, [(name, f"W/{value}" if name.lower() == "etag" else value) for name, value in headers], data


@pytest.mark.parametrize(
    "change", [without("etag"), without("last-modified"), without("content-range"), without("accept-ranges"), weak]
)
@pytest.mark.parametrize("driver", [False, True])
def test_headers_that_are_not_there_or_weak_cost_no_record(
    odd: OddProxy, bucket_url: str, change: Change, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(bucket_url, classes=4, per_class=5)
    expected = open_source(DataConfig(url=bucket_url), 0).read(np.arange(20))
    odd.change = change
    with by_the_driver_alone(driver, monkeypatch):
        assert open_source(DataConfig(url=bucket_url), 0).read(np.arange(20)) == expected


@pytest.mark.parametrize("driver", [False, True])
def test_a_store_that_does_not_know_ranges_is_told(
    odd: OddProxy, bucket_url: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(bucket_url, classes=4, per_class=5)
    with by_the_driver_alone(driver, monkeypatch):
        source = open_source(DataConfig(url=bucket_url), 0)
        odd.passes_over = ("Range",)
        with pytest.raises(StorageError, match=r"train\.rec.*does not know ranges"):
            source.read(np.arange(3))
        with pytest.raises(StorageError, match=r"train\.rec.*does not know ranges"):
            open_source(DataConfig(url=bucket_url), 0)


def shifted(status: int, headers: Headers, data: bytes) -> tuple[int, Headers, bytes]:
    """A cache that sends what was asked for before."""
    if status != 206:
        return status, headers, data
    headers = [(name, "bytes 0-99/1000" if name.lower() == "content-range" else value) for name, value in headers]
    return status, headers, data[::-1]


@pytest.mark.parametrize("driver", [False, True])
def test_another_range_is_not_taken_for_the_one_that_was_asked_for(
    odd: OddProxy, bucket_url: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(bucket_url, classes=4, per_class=5)
    with by_the_driver_alone(driver, monkeypatch):
        source = open_source(DataConfig(url=bucket_url), 0)
        odd.change = shifted
        with pytest.raises(StorageError, match=r"train\.rec.*sent another range"):
            source.read(np.arange(3, 6))
