"""Deadlines of reads: a store at a kilobyte a second is named, asked again and counted, whatever is read from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
import s3fs
import torch

from app import deadline, patience, storage, store_requests
from app.checkpoint.transfer import open_tensors, write_tensors
from app.storage import StorageError
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy

DATA = bytes(range(256)) * 800  # 200 s at a kilobyte a second


@pytest.fixture
def between(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(object_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr(deadline, "DEADLINE", 1.0)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


READS: dict[str, Callable[[str], bytes]] = {
    "whole": storage.read_bytes,
    "range": lambda url: storage.read_range(url, 0, len(DATA)),
    "ranges": lambda url: b"".join(storage.read_ranges(url, [(0, 5000), (5000, 90_000), (90_000, len(DATA))])),
}


@pytest.mark.parametrize("read", READS.values(), ids=list(READS))
def test_a_read_at_a_kilobyte_a_second_is_named_sent_again_and_counted(
    read: Callable[[str], bytes], bucket_url: str, between: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    url = storage.join(bucket_url, "object")
    storage.write_bytes(url, DATA)
    slow, before = [True, True, True], patience.counters.retries
    between.decide = lambda method, _: "slow" if method == "GET" and slow and slow.pop() else ""
    store_requests._requests._said = 0.0
    assert read(url) == DATA
    assert patience.counters.retries > before
    assert f"warning: {url}" in capsys.readouterr().err


def test_a_store_that_stays_slow_is_a_passing_error_that_names_the_object(
    bucket_url: str, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "DEADLINE", 0.2)
    monkeypatch.setattr(deadline, "SLOWEST", 1 << 30)
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0")
    url = storage.join(bucket_url, "object")
    storage.write_bytes(url, DATA)
    between.decide = lambda method, _: "slow" if method == "GET" else ""
    for read in READS.values():
        with pytest.raises(StorageError, match=r"object: read .*failed") as caught:
            read(url)
        assert caught.value.transient
    assert len([fault for *_, fault in between.requests if fault == "slow"]) >= 3 * deadline.ATTEMPTS


def upload_in_parts(url: str) -> None:
    tensors = {"weight": torch.arange(9 << 18, dtype=torch.float32)}  # 9 MiB: two parts
    item = write_tensors(url, tensors, None)
    assert torch.equal(open_tensors(url, item, time.monotonic()).load()["weight"], tensors["weight"])


def write_once(url: str) -> None:
    assert storage.write_bytes(url, b"1", if_absent=True)  # also where the late request was done
    assert storage.read_bytes(url) == b"1"


VERBS: dict[str, tuple[Callable[[str], object], str, str, str]] = {
    "write": (lambda url: storage.write_bytes(url, DATA), "PUT", "/object", "late"),
    "conditional write": (write_once, "PUT", "/object", "late"),
    "begin of an upload": (upload_in_parts, "POST", "uploads", "stall"),
    "part of an upload": (upload_in_parts, "PUT", "partNumber=2", "late"),
    "look-up": (storage.exists, "HEAD", "/object", "stall"),
    "list": (lambda url: storage.list_names(url.rpartition("/")[0]), "GET", "list-type", "stall"),
    "delete": (storage.delete_tree, "GET POST", "delete", "late"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_request_has_a_deadline_names_its_object_and_is_sent_again(
    verb: str,
    bucket_url: str,
    between: Proxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    action, methods, what, kind = VERBS[verb]
    url = storage.join(bucket_url, "object")
    if verb in ("look-up", "list", "delete"):
        storage.write_bytes(url, DATA)
    between.stall = 60.0
    left, before = [kind], patience.counters.retries
    between.decide = lambda method, path: left.pop() if method in methods and what in path and left else ""
    store_requests._requests._said = 0.0
    action(url)
    assert not left
    assert patience.counters.retries > before
    assert f"warning: {bucket_url}" in capsys.readouterr().err


def ask(requests: deadline.Requests, answers: list[Callable[[], bytes]]) -> bytes:
    """What comes of a request with these answers, one an attempt."""

    async def request() -> bytes:
        return answers.pop(0)()

    async def size() -> int:
        return 2

    return asyncio.run(
        requests.ask(
            "x", request, size, may_pass=lambda error: isinstance(error, OSError), enough=lambda data: len(data) == 2
        )
    )


def fail(error: Exception) -> Callable[[], bytes]:
    def raise_it() -> bytes:
        raise error

    return raise_it


def test_what_may_pass_is_asked_again_and_the_rest_is_not() -> None:
    requests = deadline.Requests(hedges=False)
    assert ask(requests, [fail(OSError("reset")), lambda: b"1", lambda: b"12"]) == b"12"
    assert requests.retries == 2
    with pytest.raises(ValueError, match="denied"):
        ask(requests, [fail(ValueError("denied")), lambda: b"12"])
    assert ask(requests, [lambda: b"1"] * deadline.ATTEMPTS) == b"1"  # it is as short as that
