"""Checkpoints and a store's bad days: what is there is found again, what is written counts, and nobody begins anew."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch

from app import storage
from app.checkpoint.conditional import require_conditional_writes
from app.checkpoint.manifest import CheckpointError
from app.checkpoint.transfer import open_tensors, write_tensors
from app.errors import AppError
from app.observe.events import read_events
from app.patience import persist
from demo.object_store import ObjectStore
from tests.checkpoint.test_manager import CLASSES, manager, save_on, state
from tests.faults.proxy import Decision, Proxy, well
from tests.jobs import train, write_faces
from tests.ranks import run_ranks

# In all a minute or two: drivers try again for some seconds each time.
pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The store behind a proxy, to which alone the app speaks; no patience below the one that is tested."""
    with Proxy(object_store.endpoint, stall=1.0) as between:
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "0")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield between
        between.decide = well
    s3fs.S3FileSystem.clear_instance_cache()


def fails(kind: str, what: str, verbs: str = "GET HEAD") -> Decision:
    """``kind`` happens to requests whose path holds ``what``."""
    return lambda method, path: kind if method in verbs and what in path else ""


def for_a_while(proxy: Proxy, fault: Decision, seconds: float) -> None:
    """The store is out of order for ``seconds`` from the first request on that it happens to."""
    since: list[float] = []

    def decide(method: str, path: str) -> str:
        if kind := fault(method, path):
            since.append(time.monotonic())
        return kind if kind and since[-1] - since[0] < seconds else ""

    proxy.decide = decide


PLACES = {"listing": "list-type", "manifest": "manifest.json", "tensors": ".safetensors"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["503", "reset", "cut"])
def test_an_outage_while_loading_is_waited_for(proxy: Proxy, bucket_url: str, place: str, kind: str) -> None:
    manager(bucket_url).save(state(3))
    for_a_while(proxy, fails(kind, PLACES[place]), 2.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="passed over")
        loaded = manager(bucket_url, patience=60).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 3


@pytest.mark.filterwarnings("error:passed over")
@pytest.mark.parametrize("place", ["manifest", "tensors"])
@pytest.mark.parametrize("kind", ["403:RequestTimeTooSkewed", "200:InternalError"])
def test_a_clock_that_is_off_and_errors_that_are_called_successes_pass(
    proxy: Proxy, bucket_url: str, place: str, kind: str
) -> None:
    manager(bucket_url).save(state(3))
    for_a_while(proxy, fails(kind, PLACES[place]), 1.0)
    loaded = manager(bucket_url, patience=60).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 3


def test_why_a_look_up_is_refused_is_asked(proxy: Proxy, bucket_url: str) -> None:
    """The answer to a HEAD says 403 and nothing else; an object is not absent because a clock is off."""
    place = storage.join(bucket_url, "a")
    storage.write_bytes(place, b"x")
    proxy.decide = fails("403:RequestTimeTooSkewed", "/a")
    for ask in (storage.info, storage.read_optional, lambda url: storage.exists(url, optional=True)):
        with pytest.raises(storage.StorageError, match="clock differs") as told:
            ask(place)
        assert told.value.transient
    proxy.decide = fails("403", "/a")
    with pytest.warns(UserWarning, match="as if it did not exist"):
        assert storage.read_optional(place) is None


@pytest.mark.parametrize("verb", ["PUT", "POST"])
def test_a_large_object_whose_parts_or_end_fail_with_status_200_is_sent_again(
    proxy: Proxy, bucket_url: str, verb: str
) -> None:
    place, tensors = storage.join(bucket_url, "large"), {"a": torch.arange(3 << 20, dtype=torch.float32)}
    for_a_while(proxy, fails("200:InternalError", "large", verb), 1.0)
    item = persist(lambda: write_tensors(place, tensors, None), time.monotonic() + 60)
    assert any(fault for *_, fault in proxy.requests)
    assert torch.equal(open_tensors(place, item, time.monotonic()).load()["a"], tensors["a"])


@pytest.mark.parametrize(("verbs", "what"), [("HEAD", "/"), ("GET", "list-type"), ("GET", "rows-0000000006")])
def test_an_outage_of_one_verb_or_one_shard_is_waited_for(proxy: Proxy, bucket_url: str, verbs: str, what: str) -> None:
    run_ranks(save_on, 2, bucket_url, [3])
    for_a_while(proxy, fails("503", what, verbs), 2.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="passed over")
        loaded = manager(bucket_url, patience=60).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 3
    assert any(fault == "503" for *_, fault in proxy.requests)


@pytest.mark.filterwarnings("error:passed over")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "passes"), [("503", True), ("403", False)])
def test_an_outage_that_lasts_ends_the_start_and_deletes_nothing(
    proxy: Proxy, bucket_url: str, place: str, kind: str, passes: bool
) -> None:
    checkpoints = manager(bucket_url)
    for step in (3, 4):
        checkpoints.save(state(step))
    proxy.decide = fails(kind, PLACES[place])
    with pytest.raises(AppError) as told:
        manager(bucket_url, patience=1).load_latest((0, CLASSES))
    assert told.value.transient == passes
    proxy.decide = well  # the credentials come right again
    loaded = manager(bucket_url).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 4


def test_one_short_answer_is_no_damage(proxy: Proxy, bucket_url: str) -> None:
    manager(bucket_url).save(state(3))
    faults = {"manifest.json": 1, ".safetensors": 1}

    def once_each(method: str, path: str) -> str:
        for name, left in faults.items():
            if method == "GET" and name in path and left:
                faults[name] = left - 1
                return "truncate"
        return ""

    proxy.decide = once_each
    loaded = manager(bucket_url, patience=30).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 3
    assert not any(faults.values())


def test_a_commit_whose_answer_is_lost_counts(proxy: Proxy, bucket_url: str) -> None:
    lost = [1]

    def lose_one(method: str, path: str) -> str:
        if method == "PUT" and "manifest.json" in path and lost:
            lost.pop()
            return "lost"
        return ""

    checkpoints = manager(bucket_url, patience=30)
    proxy.decide = lose_one
    assert checkpoints.save(state(5)).step == 5
    assert not lost
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [5]


@pytest.mark.parametrize("kind", ["503", "reset", "403", "lost", "200:SlowDown"])
def test_a_save_is_tried_again_while_training_goes_on(proxy: Proxy, bucket_url: str, kind: str) -> None:
    checkpoints = manager(bucket_url, patience=60)
    checkpoints.load_latest((0, CLASSES))
    for_a_while(proxy, fails(kind, "step-", "PUT POST"), 2.5)
    checkpoints.start_save(state(5))
    time.sleep(0.5)
    steps = 0
    while True:
        while checkpoints.uploading:
            steps += 1  # this process has time for something else
            time.sleep(0.01)
        if checkpoints.advance() is not None:
            break
    assert steps > 5  # of 200 that fit into the outage on a machine without other work
    assert checkpoints.committed_step == 5
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [5]


@pytest.mark.parametrize("kind", ["503", "403", "403:QuotaExceeded"])
def test_only_a_run_without_a_commit_for_too_long_ends_and_may_come_back(
    proxy: Proxy, bucket_url: str, kind: str
) -> None:
    checkpoints = manager(bucket_url, patience=2)
    checkpoints.save(state(5))
    proxy.decide = fails(kind, "step-", "PUT POST")
    with pytest.raises(CheckpointError, match="step 6 not written") as told:
        checkpoints.save(state(6))
    assert told.value.transient
    proxy.decide = well
    checkpoints.save(state(7))
    assert checkpoints.committed_step == 7


def test_a_store_without_conditional_writes_is_found_before_the_start(proxy: Proxy, bucket_url: str) -> None:
    proxy.decide = fails("501", ".write-check", "PUT")
    with pytest.raises(CheckpointError, match=r"no conditional writes.*--checkpoint.commit single-writer"):
        require_conditional_writes(bucket_url)
    proxy.decide = fails("501", "manifest.json", "PUT")
    with pytest.raises(CheckpointError):
        manager(bucket_url).save(state(1))
    proxy.decide = well
    manager(bucket_url, conditional=False).save(state(2))
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [2]


@pytest.mark.parametrize("kind", ["502", "429", "reset", "cut", "truncate"])
def test_a_fault_while_a_refused_write_is_looked_at_is_not_the_refusal(
    proxy: Proxy, bucket_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store says that the object is there; reading it, to compare, meets another fault, which may pass."""
    monkeypatch.setenv("ARCFACE_STORE_PATIENCE", "60")
    left = [kind]
    proxy.decide = lambda method, path: left.pop() if method == "GET" and ".write-check" in path and left else ""
    require_conditional_writes(bucket_url)
    assert not left


def test_a_run_resumes_where_it_was_though_the_store_fails_at_the_start(
    proxy: Proxy, bucket_url: str, tmp_path: Path
) -> None:
    data = str(tmp_path / "data")
    write_faces(data)
    train(1, data, bucket_url, "--train.epochs", "1")
    for_a_while(proxy, fails("503", ".safetensors"), 15.0)
    done = train(1, data, bucket_url, "--train.epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "from the beginning" not in done.stdout
    assert "from step 20" in done.stdout
    assert any(fault == "503" for *_, fault in proxy.requests)
    assert storage.exists(storage.join(bucket_url, "orl", "model.pt"))
    commits = [event for event in read_events(storage.join(bucket_url, "orl")) if event["kind"] == "checkpoint"]
    assert {event["step"] for event in commits} >= {20, 40}
    assert all(0 < event["stall_seconds"] < 200 for event in commits)
