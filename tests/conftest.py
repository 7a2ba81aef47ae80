"""Shared fixtures: a real S3 store (SeaweedFS) on loopback, one for the whole test session."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
import s3fs

from demo.object_store import ObjectStore

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def object_store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("weed") / "data", "test") as store:
        yield store


@pytest.fixture
def object_store(object_store_process: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store, with its endpoint and keys in the environment of the test."""
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in object_store_process.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_process


@pytest.fixture
def bucket_url(object_store: ObjectStore) -> str:
    """A fresh folder URL in the store's bucket."""
    return f"s3://{object_store.bucket}/{uuid.uuid4().hex[:12]}"
