"""Train, wait, verify as one command, on the local scheduler over a real store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app import storage
from app.data.bin_sets import dump_set
from app.data.dataset import open_dataset
from app.data.reader import RecordReader
from demo.object_store import ObjectStore, free_port
from tests.jobs import ROOT, SMALL, environment, with_scripts, write_faces

pytestmark = [pytest.mark.slow]


def pipeline(store: ObjectStore, folder: Path, data: str, *options: str) -> subprocess.CompletedProcess[str]:
    small = [word for word in SMALL if word not in ("--recipe", "orl")]
    return subprocess.run(
        [
            *(sys.executable, "-m", "components.pipeline", "-s", "local_cwd"),
            *("-cfg", f"log_dir={folder},prepend_cwd=False", "--poll-seconds", "1", "--nnodes", "2"),
            *("--hardware", "cpu", "--recipe", "orl", "--data", data, "--output", f"{data}/runs"),
            *("--rdzv_port", str(free_port()), *options, "--", *small, "--train.epochs", "6"),
        ],
        env=with_scripts({**environment(), **store.environment}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture
def data(bucket_url: str) -> str:
    """Ten classes to train on, and pairs of the same images as a set."""
    write_faces(bucket_url)
    dataset = open_dataset(bucket_url)
    reader = RecordReader(dataset)
    images = [reader.parse(p, record)[1] for p, record in enumerate(reader.read(range(len(dataset))))]
    pairs, issame = [], []
    for number in range(0, 100, 2):
        pairs += [images[number], images[number + 1], images[number], images[(number + 60) % 120]]
        issame += [number // 12 == (number + 1) // 12, False]
    storage.write_bytes(storage.join(bucket_url, "small.bin"), dump_set(pairs, issame))
    return bucket_url


def assert_no_key(store: ObjectStore, logs: Path, runs: str, printed: str) -> None:
    """The store's keys stand neither in what was printed, nor in a log, nor in anything that the jobs wrote."""
    filesystem, path = storage.open_filesystem(runs)
    written = {name: filesystem.cat_file(name) for name in filesystem.find(path)}
    written |= {str(file): file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    assert any(name.endswith("model.pt") for name in written)
    assert any(name.endswith(("stderr.log", "combined.log")) for name in written), sorted(written)
    for name, content in {**written, "printed": printed.encode()}.items():
        for key in (store.access_key, store.secret_key):
            assert key.encode() not in content, f"{name} holds a key"


def test_both_jobs_run_and_the_floor_decides(object_store: ObjectStore, data: str, tmp_path: Path) -> None:
    done = pipeline(object_store, tmp_path, data, "--floor", "0.6")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Accuracy-Flip" in done.stdout
    report = json.loads(storage.read_bytes(f"{data}/runs/orl/verification/report.json"))
    assert report["sets"]["small"]["accuracy"] > 0.6
    assert_no_key(object_store, tmp_path, f"{data}/runs", done.stdout + done.stderr)
    # Training is finished already: the second run only verifies, against a floor that nothing reaches.
    failed = pipeline(object_store, tmp_path, data, "--floor", "1")
    assert failed.returncode == 3, failed.stdout[-3000:] + failed.stderr[-3000:]
    assert "is below 1.0" in failed.stdout


def test_a_failed_training_ends_it(object_store: ObjectStore, tmp_path: Path) -> None:
    # In a bucket that is there: this store makes one that is written to, and other tests need one that is missing.
    done = pipeline(object_store, tmp_path, "s3://test/no-faces")
    assert done.returncode == 1
    assert "error: training ended FAILED" in done.stderr


def test_what_a_component_refuses_is_one_line(object_store: ObjectStore, tmp_path: Path) -> None:
    done = pipeline(object_store, tmp_path, "s3://test/x", "--nnodes", "four")
    assert done.returncode == 1
    assert "error: --nnodes must be N or MIN:MAX" in done.stderr
    assert "Traceback" not in done.stderr
