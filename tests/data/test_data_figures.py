"""The figures of reading, against what a proxy between the app and the store saw."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import s3fs

from app import deadline, storage
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.decode import encode_jpeg
from app.data.folder_source import FolderSource
from app.data.mixture import Mixture
from app.data.records import RecordSource
from app.data.source import Sample
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy, well
from tests.jobs import write_faces


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(object_store.endpoint, stall=3.0) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield between
        between.decide = well
    s3fs.S3FileSystem.clear_instance_cache()


def opened(bucket_url: str, proxy: Proxy) -> RecordSource:
    """A dataset whose opening the proxy has forgotten; a record is a request."""
    write_faces(bucket_url, classes=4, per_class=5)
    source = open_source(DataConfig(url=bucket_url, block_mb=0.001), 0)
    assert isinstance(source, RecordSource)
    proxy.requests.clear()
    return source


def asked(proxy: Proxy) -> int:
    return len([1 for method, path, _ in proxy.requests if method == "GET" and ".rec" in path])


def test_requests_and_bytes_are_those_of_the_store(bucket_url: str, proxy: Proxy) -> None:
    source = opened(bucket_url, proxy)
    records = source.read(np.arange(20))
    figures = source.figures()
    assert figures["requests"] == asked(proxy) == 20
    assert figures["bytes_read"] == sum(map(len, records)) > 0
    assert figures["retries"] == figures["hedged"] == 0
    assert 0 < figures["latency_p50"] <= figures["latency_p99"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["503", "reset", "truncate", "cut"])
def test_what_fails_is_counted_once_for_each_time_that_it_is_sent_again(
    bucket_url: str, proxy: Proxy, kind: str, together: bool
) -> None:
    def read() -> list[bytes]:
        parts = [np.arange(20)] if together else np.arange(20)[:, None]
        return [record for part in parts for record in source.read(part)]

    source = opened(bucket_url, proxy)
    expected = read()
    before = source.figures()
    proxy.requests.clear()
    left = [kind] * 3
    proxy.decide = lambda method, path: left.pop() if method == "GET" and ".rec" in path and left else ""
    assert read() == expected
    after = source.figures()
    assert [fault for *_, fault in proxy.requests].count(kind) == 3
    assert after["requests"] - before["requests"] == 20
    sent_again = after["retries"] - before["retries"]
    # On a kept connection that the store resets, the driver's HTTP library itself sends once more and tells nobody.
    assert sent_again <= 3 if kind == "reset" else sent_again == 3
    assert asked(proxy) == 23


def test_a_request_that_stalls_is_counted_as_sent_twice(
    bucket_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "HEDGE", 0.2)
    source = opened(bucket_url, proxy)
    left = ["stall"]
    proxy.decide = lambda method, path: left.pop() if method == "GET" and ".rec" in path and left else ""
    source.read(np.arange(3))
    assert source.figures()["hedged"] >= 1
    assert asked(proxy) == 3 + source.figures()["hedged"]


def test_latencies_are_quantiles_of_the_last_thousand(bucket_url: str, proxy: Proxy) -> None:
    source = opened(bucket_url, proxy)
    source.reader.fetcher._requests.latencies.extend(np.arange(5000) / 1000)
    figures = source.figures()
    assert figures["latency_p50"] == pytest.approx(4.4995)
    assert figures["latency_p99"] == pytest.approx(4.98901)


class Slow:
    """Pixels that take a while to come; ``Source`` otherwise."""

    url = tag = "slow"
    num_classes, record_bytes = 2, 4.0

    def __init__(self, reading: float = 0.0, parsing: float = 0.0, latency: float = 0.0) -> None:
        self.reading, self.parsing, self.latency = reading, parsing, latency

    def __len__(self) -> int:
        return 40

    def read(self, positions: np.ndarray) -> list[bytes]:
        time.sleep(self.reading)
        return [b""] * len(positions)

    def parse(self, position: int, record: bytes) -> Sample:  # noqa: ARG002
        time.sleep(self.parsing)
        return Sample(float(position % 2), np.zeros((1, 1, 3), dtype=np.uint8))

    def describe(self, position: int) -> str:
        return str(position)

    def classes_without_image(self) -> list[int]:
        return []

    def figures(self) -> dict[str, float]:
        return {"requests": 3.0, "latency_p99": self.latency}


def test_the_decoders_speed_is_that_of_the_decoders_alone() -> None:
    source = Slow(reading=0.05, parsing=0.01)
    config = DataConfig(image_size=1, augment="none", workers=3)
    loader = make_loader(source, config, num_classes=2, batch_size=10, logical_workers=1, seed=0)
    assert len(list(loader.steps(0, 0, [0]))) == 4
    loader.close()
    # 10 ms each in three threads: at most a hundred a second in one of them, however long the records took to come.
    assert 10 < loader.figures()["decoded_per_thread_second"] <= 100


def test_several_sources_sum_up_and_tell_the_slowest() -> None:
    mixture = Mixture([Slow(latency=0.5), Slow(latency=2.0), Slow(latency=1.0)])
    assert mixture.figures() == {"requests": 9.0, "latency_p99": 2.0}


def test_a_folder_in_a_bucket_counts_all_that_it_asks_for(bucket_url: str, proxy: Proxy) -> None:
    for name in ("ann/1.jpg", "bob/1.jpg"):
        storage.write_bytes(f"{bucket_url}/{name}", b"not decoded here")
    source = open_source(DataConfig(url=bucket_url), 0)
    proxy.requests.clear()
    source.read(np.array([1, 0, 1]))
    assert source.figures() == {"requests": len(proxy.requests), "bytes_read": 48}
    assert len([1 for method, *_ in proxy.requests if method == "GET"]) == 3


def test_no_read_of_several_threads_is_lost_from_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder" / "somebody").mkdir(parents=True)
    (tmp_path / "folder" / "somebody" / "1.jpg").write_bytes(encode_jpeg(np.zeros((8, 8, 3), dtype=np.uint8)))
    source = FolderSource(str(tmp_path / "folder"))
    monkeypatch.setattr(source, "_readers", SimpleNamespace(map=lambda _, positions: [b"0123456789"] * len(positions)))

    def read_on() -> None:
        for _ in range(5000):
            source.read(np.arange(1))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=read_on) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert source.figures() == {"requests": 40_000, "bytes_read": 400_000}
