"""Training data and a store's bad days: a crawling answer and a store that is killed cost time and no sample."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import s3fs

from app import deadline
from app.data.dataset import open_dataset
from app.data.order import make_order
from app.data.records import RecordSource
from app.data.window import WindowStream
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy
from tests.jobs import write_faces

pytestmark = pytest.mark.slow


def read_epoch(source: RecordSource) -> list[tuple[int, bytes]]:
    """Positions and records of an epoch."""
    order = make_order(len(source), source.record_bytes, 1, seed=1)
    found: list[tuple[int, bytes]] = []
    with ThreadPoolExecutor(2) as pool:
        stream = WindowStream(source, order, 0, 0, pool)
        for start in range(0, len(source), 10):
            positions, records = stream.read(start, start + 10)
            found += zip(positions.tolist(), records, strict=True)
    return found


def test_a_request_at_a_kilobyte_a_second_is_sent_again(
    object_store: ObjectStore, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(bucket_url, classes=6, per_class=10)
    expected = read_epoch(RecordSource(open_dataset(bucket_url)))
    monkeypatch.setattr(deadline, "HEDGE", 0.2)
    slow = [True, True]
    with Proxy(object_store.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        source = RecordSource(open_dataset(bucket_url))
        between.decide = lambda _, path: "slow" if ".rec" in path and slow and slow.pop() else ""
        assert read_epoch(source) == expected
        assert [fault for *_, fault in between.requests].count("slow") == 2
        assert source.figures()["hedged"] >= 1
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_is_killed_and_comes_back_costs_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "240")
    with ObjectStore(tmp_path / "weed" / "data", "faces") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        url = "s3://faces/set"
        write_faces(url, classes=6, per_class=10)
        source = RecordSource(open_dataset(url), max_request_bytes=1 << 12)
        expected = dict(enumerate(source.read(np.arange(len(source)))))
        assert store.process is not None
        store.process.kill()
        store.process.wait()
        store.process = None
        again = threading.Timer(3.0, lambda: store.start(timeout=200))
        again.start()
        found = read_epoch(source)
        again.join()
        assert len(found) == len(source)
        assert dict(found) == expected
    s3fs.S3FileSystem.clear_instance_cache()
