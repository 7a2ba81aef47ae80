"""Checkpoints over a real S3 store: commit, resharding, damage, interruption."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app import storage
from app.checkpoint.lease import Lease
from app.checkpoint.manager import CheckpointManager, TrainingState
from app.checkpoint.manifest import CheckpointError, DamagedError, Manifest
from app.checkpoint.names import run_owner
from app.device import Device
from app.head.class_shards import class_range
from app.world import World
from tests.ranks import run_ranks

CLASSES, D = 11, 3


def whole(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(CLASSES, D, generator=generator) for name in ("centres", "momentum")}


def state(step: int, rank: int = 0, world: int = 1) -> TrainingState:
    start, stop = class_range(CLASSES, world, rank)
    sharded = {name: value[start:stop] for name, value in whole(step).items()}
    return TrainingState(step, {"backbone.w": torch.full((2,), float(step))}, sharded, (start, stop), {"seed": step})


def manager(url: str, rank: int = 0, world: int = 1, **options: Any) -> CheckpointManager:
    options = {"owner": "job"} | options
    return CheckpointManager(url, World(rank, world, 0, Device("cpu", torch.device("cpu"), "gloo")), **options)


def save_on(rank: int, world: int, url: str, steps: list[int]) -> None:
    checkpoints = manager(url, rank, world)
    for step in steps:
        checkpoints.save(state(step, rank, world))


def load_on(rank: int, world: int, url: str) -> tuple[int, Tensor, dict[str, Tensor]] | None:
    loaded = manager(url, rank, world).load_latest(class_range(CLASSES, world, rank))
    return None if loaded is None else (loaded.step, loaded.replicated["backbone.w"], dict(loaded.sharded))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 4)])
def test_any_number_of_ranks_loads_what_any_other_saved(bucket_url: str, before: int, after: int) -> None:
    run_ranks(save_on, before, bucket_url, [7])
    loaded = run_ranks(load_on, after, bucket_url)
    for name, value in whole(7).items():
        assert torch.equal(torch.cat([tensors[name] for _, _, tensors in loaded]), value)
    assert all(step == 7 and weight.tolist() == [7.0, 7.0] for step, weight, _ in loaded)


def test_the_newest_is_loaded_and_only_the_last_are_kept(bucket_url: str) -> None:
    save_on(0, 1, bucket_url, [1, 2, 3])
    loaded = load_on(0, 1, bucket_url)
    assert loaded is not None
    assert loaded[0] == 3
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [2, 3]


@pytest.mark.parametrize("damage", ["bit flip", "missing", "truncated", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_replaced(bucket_url: str, damage: str) -> None:
    save_on(0, 1, bucket_url, [1, 2])
    folder, manifest = manager(bucket_url).manifests()[-1]
    url = storage.join(bucket_url, folder, manifest.objects[-1].name)
    data = storage.read_bytes(url)
    if damage == "bit flip":
        storage.write_bytes(url, data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        storage.write_bytes(url, data[:-4])
    elif damage == "missing":
        storage.delete_tree(url)
    else:
        storage.write_bytes(storage.join(bucket_url, folder, "manifest.json"), b"{")
    checkpoints = manager(bucket_url, keep_last=5)
    with pytest.warns(UserWarning, match="passed over a damaged checkpoint"):
        loaded = checkpoints.load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 1
    # The step is trained again: its new checkpoint is the one that counts, and the damaged one is gone.
    checkpoints.save(state(2))
    again = load_on(0, 1, bucket_url)
    assert again is not None
    assert again[0] == 2
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [1, 2]
    assert folder not in [name for name, _ in manager(bucket_url).manifests()]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(bucket_url: str) -> None:
    save_on(0, 1, bucket_url, [1, 2])
    for folder, manifest in manager(bucket_url).manifests():
        storage.delete_tree(storage.join(bucket_url, folder, manifest.objects[0].name))
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CheckpointError, match="resume never"):
        load_on(0, 1, bucket_url)


def test_resume_never_begins_anew_and_goes_on_from_its_own(bucket_url: str) -> None:
    save_on(0, 1, bucket_url, [7, 8])
    anew = manager(bucket_url, resume="never", owner="another job")
    assert anew.load_latest((0, CLASSES)) is None
    anew.save(state(3))
    # A restart of that job, with the same options, and later a start without them.
    starts: list[dict[str, Any]] = [{"resume": "never", "owner": "another job"}, {"owner": "third"}]
    for options in starts:
        loaded = manager(bucket_url, **options).load_latest((0, CLASSES))
        assert loaded is not None
        assert loaded.step == 3


def test_what_another_run_began_less_than_an_hour_ago_is_left_alone(bucket_url: str) -> None:
    other = manager(bucket_url, owner="another job")
    other.start_save(state(5))
    while other.uploading:
        time.sleep(0.01)
    mine = manager(bucket_url, keep_last=1)
    for step in (6, 7):
        mine.save(state(step))
    other.finish_save()
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [5, 7]
    loaded = manager(bucket_url).load_latest((0, CLASSES))
    assert loaded is not None
    assert loaded.step == 7


@pytest.mark.parametrize(("written", "stays"), [(60.0, True), (7200.0, False)])
def test_the_stores_clock_says_how_old_another_runs_upload_is(tmp_path: Path, written: float, stays: bool) -> None:
    """Its name tells the clock of its writer, which may be hours off, either way."""
    stamp = "20200101T000000.000000000" if stays else "20990101T000000.000000000"
    name = f"step-000000005-{stamp}-g0-aaaaaaaa-bbbbbbbb"
    (tmp_path / name).mkdir()
    shard = tmp_path / name / "rows-0000000000-0000000003.safetensors"
    shard.write_bytes(b"on its way")
    at = time.time() - written
    os.utime(shard, (at, at))
    manager(str(tmp_path)).save(state(6))
    assert shard.exists() == stays


def test_who_was_suspended_and_lost_the_folder_commits_nothing(bucket_url: str) -> None:
    """Before its own renewal could tell: the commit looks first."""
    checkpoints = manager(bucket_url, owner="first", patience=5)
    checkpoints.hold()
    checkpoints.save(state(1))
    thief = {"owner": "second", "host": "elsewhere", "process": 1, "count": 1}
    storage.write_bytes(storage.join(bucket_url, "lease.json"), json.dumps(thief).encode())
    with pytest.raises(CheckpointError, match="another run took this folder: 'second'") as caught:
        checkpoints.save(state(2))
    assert not caught.value.transient
    assert [manifest.step for _, manifest in manager(bucket_url).manifests()] == [1]
    checkpoints.close()
    assert json.loads(storage.read_bytes(storage.join(bucket_url, "lease.json")))["owner"] == "second"


def test_two_jobs_of_one_name_have_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "demo")
    owners = set()
    for place in ("a-0.a:29500", "b-0.b:29500", "localhost:29500", "localhost:29501"):
        monkeypatch.setenv("ARCFACE_RDZV_ENDPOINT", place)
        owners.add(run_owner())
        assert run_owner() in owners  # a restart is the same one
    assert len(owners) == 4


def test_an_upload_that_never_ends_does_not_outlast_patience(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr("app.checkpoint.manager._OVERTIME_SECONDS", 1.0)
    monkeypatch.setattr("app.checkpoint.manager.write_tensors", lambda *_: free.wait(60))
    checkpoints = manager(bucket_url, patience=1.0)
    checkpoints.start_save(state(5))
    assert checkpoints.uploading
    while checkpoints.uploading:
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=r"step 5 not written: .*too slow") as caught:
        checkpoints.advance()
    assert caught.value.transient
    assert not checkpoints.busy  # the next one may begin
    free.set()


def test_milestones_and_the_best_are_kept(bucket_url: str) -> None:
    checkpoints = manager(bucket_url, keep_last=1, keep_every=4)
    for step, best in enumerate([0.0, 0.7, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 1):
        checkpoints.save(dataclasses.replace(state(step), meta={"best_mean": best}))
    assert [manifest.step for _, manifest in checkpoints.manifests()] == [4, 8, 10]
    for step, best in ((11, 0.95), (13, 0.95)):
        checkpoints.save(dataclasses.replace(state(step), meta={"best_mean": best}))
    assert [manifest.step for _, manifest in checkpoints.manifests()] == [4, 8, 11, 13]


def test_a_second_run_in_the_same_folder_is_told(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(bucket_url, "lease.json")
    first = Lease(url, "first", interval=0.2)
    first.take(time.monotonic())
    monkeypatch.setattr("app.checkpoint.lease._is_dead", lambda _: False)
    with pytest.raises(CheckpointError, match="another run writes here: 'first'"):
        Lease(url, "second", interval=2).take(time.monotonic())
    first._ended.set()  # as if it were killed: the lease stays and is not renewed any more
    assert first._thread is not None
    first._thread.join()
    second = Lease(url, "second", interval=0.2)
    second.take(time.monotonic())
    # The first was only asleep: it finds that it lost the folder, and commits nothing.
    first._ended.clear()
    first._renew()
    assert "another run took this folder: 'second'" in first.problem
    second.release()
    assert not storage.exists(url)


def test_a_number_of_a_dead_process_means_nothing_in_another_container(bucket_url: str) -> None:
    """Two containers on the host's network have one name; a process of the one is none of the other."""
    url = storage.join(bucket_url, "lease.json")
    dead = subprocess.Popen(["true"])
    dead.wait()
    about = {"owner": "first", "host": socket.gethostname(), "process": dead.pid, "numbers": "of another container"}
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.3):
            storage.write_bytes(url, json.dumps({**about, "count": time.monotonic()}).encode())

    storage.write_bytes(url, json.dumps(about).encode())
    first = threading.Thread(target=renew)
    first.start()
    try:
        with pytest.raises(CheckpointError, match="another run writes here: 'first'"):
            Lease(url, "second", interval=2).take(time.monotonic())
    finally:
        ended.set()
        first.join()


def test_the_last_request_of_a_killed_run_is_no_sign_of_life(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.join(bucket_url, "lease.json")
    killed = Lease(url, "killed", interval=60)
    killed.take(time.monotonic())
    monkeypatch.setattr("app.checkpoint.lease._is_dead", lambda _: False)
    # Its last renewal lands while the next run already watches.
    renewed = threading.Timer(0.3, killed._write)
    renewed.start()
    second = Lease(url, "second", interval=0.4)
    second.take(time.monotonic())
    renewed.join()
    assert json.loads(storage.read_bytes(url))["owner"] == "second"
    second.release()


def test_what_was_not_committed_does_not_exist_and_is_collected(bucket_url: str) -> None:
    checkpoints = manager(bucket_url)
    checkpoints.start_save(state(5))
    while checkpoints.uploading:
        time.sleep(0.01)  # the process dies here, before finish_save
    assert load_on(0, 1, bucket_url) is None
    orphan = storage.list_names(bucket_url)
    assert len(orphan) == 1
    save_on(0, 1, bucket_url, [5])
    left = [name for name in storage.list_names(bucket_url) if storage.list_names(storage.join(bucket_url, name))]
    assert orphan[0] not in left
    assert len(left) == 1


def test_training_may_change_tensors_while_they_are_uploaded(bucket_url: str) -> None:
    live = state(4)
    checkpoints = manager(bucket_url)
    checkpoints.start_save(live)
    for tensor in (*live.replicated.values(), *live.sharded.values()):
        tensor.zero_()
    checkpoints.finish_save()
    loaded = load_on(0, 1, bucket_url)
    assert loaded is not None
    assert torch.equal(loaded[2]["centres"], whole(4)["centres"])


def test_a_store_that_fails_leaves_nothing_committed(tmp_path: Path) -> None:
    blocked = tmp_path / "runs"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"step 1 not written: .*write failed"):
        save_on(0, 1, str(blocked), [1])


def test_a_manifest_cannot_point_outside_its_folder() -> None:
    evil = (
        Manifest(1, 1, ())
        .to_json()
        .replace(b'"objects": []', b'"objects": [{"name": "../x", "size": 1, "chunks": [""], "rows": null}]')
    )
    with pytest.raises(CheckpointError, match="outside"):
        Manifest.from_json("url", evil)


def test_a_checkpoint_of_fewer_classes_is_refused(bucket_url: str) -> None:
    save_on(0, 1, bucket_url, [1])
    with (
        pytest.warns(UserWarning, match="does not hold all classes"),
        pytest.raises(CheckpointError, match="does not hold all classes"),
    ):
        manager(bucket_url).load_latest((0, CLASSES + 1))


def test_an_older_format_is_said_in_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="a checkpoint of format 1, this version reads 2: finish the run") as told:
        Manifest.from_json("url", Manifest(1, 1, ()).to_json().replace(b'"format": 2', b'"format": 1'))
    assert not isinstance(told.value, DamagedError)  # nothing is passed over, nothing begins anew


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"format": 1e999}', "[" * 100_000, '{"format": "x"}', "\xff"])
def test_what_is_no_manifest_is_damage(text: str) -> None:
    with pytest.raises(DamagedError, match="not a manifest"):
        Manifest.from_json("url", text.encode("latin-1"))
