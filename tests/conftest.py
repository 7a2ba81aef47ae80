"""Shared fixtures: a real S3 store (SeaweedFS) on loopback, one for the whole test session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-0123456789"
os.environ.setdefault("OMP_NUM_THREADS", "1")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ObjectStore:
    """A SeaweedFS process with an S3 gateway; ``kill`` and ``start`` again for fault tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("s3", "master", "volume", "filer", "admin")}
        self.endpoint = f"http://127.0.0.1:{self.ports['s3']}"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        weed = Path(sys.executable).with_name("weed")
        ports = [f"-s3.port={self.ports['s3']}", f"-master.port={self.ports['master']}"]
        ports += [f"-volume.port={self.ports['volume']}", f"-filer.port={self.ports['filer']}"]
        ports += [f"-admin.port={self.ports['admin']}"]
        command = [weed, "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=test"]
        log = (self.folder.parent / "weed.log").open("ab")
        self.process = subprocess.Popen(
            [*map(str, command), "-webdav=false", *ports],
            env={**os.environ, **self.environment},
            stdout=log,
            stderr=log,
            cwd=self.folder.parent,
        )
        self.wait_ready()

    def wait_ready(self, timeout: float = 60) -> None:
        import s3fs

        deadline = time.monotonic() + timeout
        while True:
            try:
                client = s3fs.S3FileSystem(
                    key=ACCESS_KEY, secret=SECRET_KEY, endpoint_url=self.endpoint, skip_instance_cache=True
                )
                client.pipe_file("test/.ready", b"1")
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def object_store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path_factory.mktemp("weed") / "data")
    store.start()
    yield store
    store.kill()


@pytest.fixture
def object_store(object_store_process: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store, with its endpoint and keys in the environment of the test."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in object_store_process.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_process


@pytest.fixture
def bucket_url(object_store: ObjectStore) -> str:
    """A fresh folder URL in the store's bucket."""
    assert object_store.process is not None
    return f"s3://test/{uuid.uuid4().hex[:12]}"
