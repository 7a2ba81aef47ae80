"""The cache on the node's disk between a real store and real processes: what is asked of the store, and what a crash,
a disk that takes no more and other datasets leave."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs

from app import storage
from app.data.build import make_loader, open_source
from app.data.chunk_cache import CHUNK
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.records import RecordSource
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy, well
from tests.jobs import ROOT, environment, write_faces

# Reads a dataset through a cache: the hash of all records, then the figures.
READ = """
import sys, hashlib, resource, signal, time, numpy as np
from pathlib import Path
from app.data.dataset import open_dataset
from app.data.records import RecordSource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if limit := int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
source = RecordSource(open_dataset(sys.argv[1]), cache=(Path(sys.argv[2]), int(sys.argv[4])))
digest = hashlib.sha256()
for position in range(len(source)):
    digest.update(source.read(np.array([position]))[0])
    print("one", flush=True)
    time.sleep(float(sys.argv[5]))
print(digest.hexdigest(), int(source.figures()["bytes_read"]))
"""


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(object_store.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield between
        between.decide = well
    s3fs.S3FileSystem.clear_instance_cache()


def write_noise(folder: str, *, seed: int = 0, records: int = 12) -> str:
    """Records of some 600 kB, so that chunks of the cache begin and end within them; returns the hash of all."""
    generator = np.random.default_rng(seed)
    images = [generator.bytes(600_000 + 4 * number) for number in range(records)]
    with RecordWriter(storage.join(folder, "train.rec")) as writer:
        write_identity_layout(writer, [2 * number // records for number in range(records)], images)
    source = open_source(DataConfig(url=folder), 0)
    return hashlib.sha256(b"".join(source.read(np.arange(records)))).hexdigest()


def start(folder: str, cache: Path, *, limit: int = 0, cap: int = 1 << 40, pause: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", READ, folder, str(cache), str(limit), str(cap), str(pause)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment(), cwd=ROOT, text=True)


def result(child: subprocess.Popen[str]) -> tuple[str, int, str]:
    """Hash of what it read, bytes that came from the store, and what it said besides."""
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    digest, read = out.split("\n")[-2].split()
    return digest, int(read), err


def read_all(folder: str, cache: Path) -> tuple[str, int]:
    """The same in this process."""
    source = RecordSource(open_dataset(folder), cache=(cache, 1 << 40))
    digest = hashlib.sha256(b"".join(source.read(np.arange(len(source))))).hexdigest()
    return digest, int(source.figures()["bytes_read"])


@pytest.mark.parametrize("shuffle", ["window", "full"])
def test_the_second_epoch_asks_the_store_for_nothing(
    proxy: Proxy, bucket_url: str, tmp_path: Path, shuffle: str
) -> None:
    write_faces(bucket_url, classes=6, per_class=8)
    config = DataConfig(url=bucket_url, image_size=32, cache=str(tmp_path / "cache"), shuffle=shuffle)
    plain = DataConfig(url=bucket_url, image_size=32, shuffle=shuffle)

    def epoch(number: int, config: DataConfig) -> tuple[list[tuple[list[int], int]], dict[str, float]]:
        source = open_source(config, 0)
        loader = make_loader(source, config, num_classes=6, batch_size=4, logical_workers=2, seed=0)
        batches = [batch for step in loader.steps(number, 0, [0, 1]) for batch in step]
        loader.close()
        return [(b.positions.tolist(), int(b.images.long().sum())) for b in batches], loader.figures()

    first, figures = epoch(0, config)
    assert figures["bytes_read"] > 0
    before = len([1 for _, path, _ in proxy.requests if ".rec" in path])
    assert before > 0
    proxy.requests.clear()
    second, figures = epoch(1, config)  # another process would do the same: nothing is kept in memory
    ranged = [path for method, path, _ in proxy.requests if method == "GET" and ".rec" in path]
    assert figures["bytes_read"] == figures["requests"] == figures["cache_misses"] == 0
    assert figures["cache_hits"] > 0
    # What opening asks for is all: the header record and the identities, as without a cache.
    proxy.requests.clear()
    open_source(config, 0)
    assert ranged == [path for method, path, _ in proxy.requests if method == "GET" and ".rec" in path]
    assert second == epoch(1, plain)[0]
    assert first == epoch(0, plain)[0]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    folder, cache = str(tmp_path / "set"), tmp_path / "cache"
    expected = write_noise(folder)
    for records in (1, 3, 6, 9):
        child = start(folder, cache, pause=0.1)
        assert child.stdout is not None
        for _ in range(records):
            child.stdout.readline()
        time.sleep(0.1 + 0.001 * records)  # while the next chunk is written
        child.send_signal(signal.SIGKILL)
        child.communicate()
    digest, read = read_all(folder, cache)
    assert digest == expected
    size = storage.info(storage.join(folder, "train.rec")).size
    assert 0 < read < size  # what was whole is used
    assert read_all(folder, cache) == (expected, 0)


def test_a_disk_that_takes_half_a_chunk_costs_the_cache_and_not_the_run(tmp_path: Path) -> None:
    folder, cache = str(tmp_path / "set"), tmp_path / "cache"
    expected = write_noise(folder, records=4)
    digest, _, said = result(start(folder, cache, limit=CHUNK // 2))
    assert digest == expected
    assert "keeps nothing more" in said
    assert not [path for path in cache.glob("*/*/*") if path.is_file()]
    assert read_all(folder, cache)[0] == expected  # there is room again
    assert read_all(folder, cache) == (expected, 0)


@pytest.mark.slow
def test_several_processes_and_datasets_share_a_folder_that_holds_less_than_they_read(tmp_path: Path) -> None:
    folders, cache = [str(tmp_path / name) for name in "ab"], tmp_path / "cache"
    expected = [write_noise(folder, seed=seed, records=6) for seed, folder in enumerate(folders)]
    for cap in (CHUNK // 4, 1 << 40):
        children = [start(folder, cache, cap=cap) for folder in folders for _ in (1, 2)]
        assert [result(child)[0] for child in children] == [digest for digest in expected for _ in (1, 2)]
    for folder, digest in zip(folders, expected, strict=True):
        assert read_all(folder, cache) == (digest, 0)


@pytest.mark.parametrize("then", ["nothing", "a file", "removed again and again"])
def test_a_folder_that_goes_away_while_it_is_used_costs_the_cache_and_not_the_run(tmp_path: Path, then: str) -> None:
    folder, cache = str(tmp_path / "set"), tmp_path / "cache"
    expected = write_noise(folder, records=8)
    child = start(folder, cache, pause=0.05)
    assert child.stdout is not None
    for record in range(8):
        child.stdout.readline()
        if record == 2 or (record > 2 and then == "removed again and again"):
            shutil.rmtree(cache, ignore_errors=True)
            if then == "a file":
                cache.write_bytes(b"")
    digest, _, said = result(child)
    assert digest == expected
    assert ("keeps nothing more" in said) == (then == "a file")
    if then == "nothing":
        digest, read = read_all(folder, cache)
        assert digest == expected
        assert read < storage.info(storage.join(folder, "train.rec")).size  # what came later was kept


def test_a_disk_that_turns_read_only_costs_the_cache_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel leaves a file system whose disk fails: what is half written cannot be removed either."""
    folder, cache = str(tmp_path / "set"), tmp_path / "cache"
    expected = write_noise(folder, records=4)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.warns(UserWarning, match=r"keeps nothing more.*Read-only"):
        assert read_all(folder, cache)[0] == expected


def test_a_new_upload_is_not_served_from_the_cache_of_the_old(bucket_url: str, tmp_path: Path) -> None:
    folder, cache = bucket_url, tmp_path / "cache"
    old = write_noise(folder, records=2)
    assert read_all(folder, cache)[0] == old
    new = write_noise(folder, records=2, seed=7)
    assert new != old
    digest, read = read_all(folder, cache)
    assert digest == new
    assert read > 0
