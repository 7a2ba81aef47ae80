"""Whole runs that go on from a checkpoint while the store has a bad day of every kind."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app import storage
from app.checkpoint.manager import CheckpointManager
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from app.observe.events import read_events
from demo.object_store import ObjectStore
from tests.checkpoint.test_manager import manager
from tests.faults.proxy import Proxy
from tests.forked import run_forked
from tests.jobs import ROOT, SMALL, environment, train, write_faces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OPTIONS = ("--verify.sets", "lfw", "--train.epochs", "1", "--checkpoint.every-steps", "2", "--output.onnx", "false")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a set, and in ``runs`` a run that stopped at step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    write_faces(str(folder / "data"))
    generator = np.random.default_rng(0)
    pictures = [encode_jpeg(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(40)]
    (folder / "data" / "lfw.bin").write_bytes(dump_set(pictures, [i % 2 == 0 for i in range(20)]))
    train(1, str(folder / "data"), str(folder / "runs"), *OPTIONS, "--train.last-step", "4")
    return folder


@pytest.fixture
def runs(stopped: Path, bucket_url: str) -> str:
    """The same run in the store, as if it had been killed after step 4: no end of it is written down."""
    for path in (stopped / "runs").rglob("*"):
        if path.is_file() and path.name != "summary.json":
            storage.write_bytes(storage.join(bucket_url, str(path.relative_to(stopped / "runs"))), path.read_bytes())
    return bucket_url


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[Proxy]:
    with Proxy(object_store.endpoint, stall=0.5) as between:
        yield between


def go_on(data: str, output: str, endpoint: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The run, to step 8; its driver never asks again of itself."""
    options = (*SMALL, *OPTIONS, "--train.last-step", "8", "--data.url", data, "--output.url", output)
    store = {"AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "1", **variables}
    return run_forked("app.train", options, [{**environment(), **store}], ROOT, 600)


def steps_in(output: str) -> list[int]:
    """Steps of the committed checkpoints."""
    checkpoints: CheckpointManager = manager(storage.join(output, "orl", "checkpoints"))
    return [manifest.step for _, manifest in checkpoints.manifests()]


def place_of(path: str) -> str:
    """What a request is for: names that are drawn anew for each attempt are one, and so are queries of one kind."""
    drawn = re.sub(r"(write-check-)\w+|(step-)0*\d+-[\w.-]+|\d{8}T\d{6}-\w+", r"\1\2", path)
    return drawn.partition("?")[0] + ("?list" if "list-type" in path else "")


@pytest.mark.parametrize("kinds", [("502", "reset"), ("429", "cut"), ("stall", "lost")], ids="-".join)
def test_a_run_goes_on_though_everything_fails_twice(
    stopped: Path, runs: str, proxy: Proxy, kinds: tuple[str, str]
) -> None:
    """Start-up, lease, listing, manifest, tensors, recipe, uploads, commit, events, best/, weights, summary."""
    seen = Counter[tuple[str, str]]()

    def decide(method: str, path: str) -> str:
        seen[method, place_of(path)] += 1
        return dict(enumerate(kinds, 1)).get(seen[method, place_of(path)], "")

    proxy.decide = decide
    before = steps_in(runs)
    done = go_on(str(stopped / "data"), runs, proxy.endpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from step 4" in done.stdout
    assert "from the beginning" not in done.stdout
    assert before == [2, 4]
    assert steps_in(runs)[-1] == 8
    touched = " ".join(path for _, path in seen)
    for name in (
        *("lease.json", "?list", "manifest.json", "replicated.safetensors", "rows-", "recipe.toml", "events/"),
        *("best/model.pt", "orl/model.pt", "summary.json"),
    ):
        assert name in touched, name
    assert [e["step"] for e in read_events(storage.join(runs, "orl")) if e["kind"] == "checkpoint"] == [2, 4, 6, 8]


def test_wrong_keys_end_a_start_and_lose_nothing(stopped: Path, runs: str, object_store: ObjectStore) -> None:
    before = steps_in(runs)
    data = str(stopped / "data")
    refused = go_on(data, runs, object_store.endpoint, AWS_SECRET_ACCESS_KEY="wrong")
    assert refused.returncode == 65
    assert "AWS_SECRET_ACCESS_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert steps_in(runs) == before
    done = go_on(data, runs, object_store.endpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from step 4" in done.stdout
