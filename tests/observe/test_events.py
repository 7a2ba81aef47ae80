"""The event log: what is written is read back over S3."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app import storage
from app.data.decode import encode_jpeg
from app.observe import events
from app.observe.events import EventLog, read_events
from app.observe.figures import Reporter
from app.train import main as train
from tests.jobs import ROOT, SMALL, losses, write_faces


def test_events_of_all_attempts_are_read_in_order(bucket_url: str) -> None:
    for attempt in range(2):
        log = EventLog(bucket_url, enabled=True, tensorboard=False)
        log.add("train", attempt, loss=1.5 - attempt)
        log.close()
    storage.write_bytes(f"{bucket_url}/events/torn.jsonl", b'{"time": 1, "ki')
    assert [(e["step"], e["loss"]) for e in read_events(bucket_url)] == [(0, 1.5), (1, 0.5)]


def test_tensorboard_reads_what_was_uploaded(bucket_url: str, tmp_path: Any) -> None:
    log = EventLog(bucket_url, enabled=True, tensorboard=True)
    for step in range(3):
        log.add("train", step, loss=float(step), note="text is left out")
    log.add("verification/lfw", 3, accuracy=0.5, tar_at_far={"1e-4": 0.25}, flag=True)
    log.add_text("recipe", "[train]\nepochs = 2\n")
    log.close()
    (name,) = storage.list_names(f"{bucket_url}/tensorboard")
    (tmp_path / name).write_bytes(storage.read_bytes(f"{bucket_url}/tensorboard/{name}"))
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in accumulator.Scalars("train/loss")] == [0.0, 1.0, 2.0]
    assert sorted(accumulator.Tags()["scalars"])[0] == "0 loss/train"
    assert [event.value for event in accumulator.Scalars("verification/lfw/tar_at_far/1e-4")] == [0.25]
    assert "verification/lfw/flag" not in accumulator.Tags()["scalars"]
    assert b"    epochs = 2" in accumulator.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]


def test_tensorboard_shows_pictures_as_they_are(tmp_path: Any) -> None:
    picture = encode_jpeg(np.zeros((30, 70, 3), dtype=np.uint8))
    log = EventLog(str(tmp_path), enabled=True, tensorboard=True)
    log.add_picture("hardest pairs/lfw", 7, picture)
    log.close()
    (shown,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("hardest pairs/lfw")
    assert (shown.step, shown.width, shown.height) == (7, 70, 30)
    assert shown.encoded_image_string == picture


def test_other_ranks_write_nothing(bucket_url: str) -> None:
    log = EventLog(bucket_url, enabled=False, tensorboard=True)
    log.add("train", 1, loss=1.0)
    log.close()
    assert storage.list_names(bucket_url) == []


def test_a_store_that_fails_does_not_stop_training(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    log = EventLog(str(tmp_path / "file"), enabled=True, tensorboard=False)
    log.add("train", 1, loss=1.0)
    with pytest.warns(UserWarning, match="could not be written"):
        log.flush(wait=True)


def test_training_does_not_wait_for_the_log_while_a_store_hangs(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(bucket_url, enabled=True, tensorboard=False)
    write, comes_back, asked = storage.write_bytes, threading.Event(), []

    def hang(url: str, data: bytes) -> None:
        asked.append(url)
        assert comes_back.wait(60)
        write(url, data)

    monkeypatch.setattr(storage, "write_bytes", hang)
    log.add("train", 1, loss=1.5)
    log.flush()
    log.add("train", 2, loss=1.25)
    log.flush()  # one at a time
    assert log.uploading
    assert len(asked) <= 1
    comes_back.set()
    log.flush(wait=True)
    assert not log.uploading
    assert [event["loss"] for event in read_events(bucket_url)] == [1.5, 1.25]


def test_a_commit_finds_the_curve_of_all_steps_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed right after a commit, which the next start goes on from, leaves no hole in the curve."""

    def die(*_: object) -> None:
        raise RuntimeError("killed")

    write_faces(str(tmp_path / "faces"))
    monkeypatch.setattr(Reporter, "committed", die)
    where = ["--data.url", str(tmp_path / "faces"), "--output.url", str(tmp_path), "--checkpoint.every-steps", "4"]
    with pytest.raises(RuntimeError, match="killed"):
        train([*SMALL, *where])
    (committed,) = (tmp_path / "orl" / "checkpoints").glob("*/manifest.json")
    assert committed.parent.name.startswith("step-000000004-")
    assert set(losses(str(tmp_path))) >= {1, 2, 3, 4}


def test_insightfaces_tensorboard_tags_stand_beside_ours(tmp_path: Any) -> None:
    log = EventLog(str(tmp_path), enabled=True, tensorboard=True, reference_tags=True)
    log.add("train", 10, loss=2.0, lr=0.1, hours_left=3.0, epoch=0)
    log.add("verification/lfw", 10, accuracy=0.9, auc=0.8)
    log.close()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {tag: accumulator.Scalars(tag)[0].value for tag in accumulator.Tags()["scalars"]}
    assert tags["loss"] == tags["train/loss"] == 2.0
    assert tags["time_for_end"] == 3.0
    assert tags["learning_rate"] == pytest.approx(0.1)
    assert tags["lfw"] == pytest.approx(0.9)
    assert "auc" not in tags


FULL_DISK = """
import resource, signal
from app.observe import events
from app.observe.events import EventLog, read_events
from app.observe.figures import Reporter
from app.train import main as train
from tests.jobs import ROOT, SMALL, losses, write_faces
log = EventLog("memory://run", enabled=True, tensorboard=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # files here may not grow further: as on a full disk
for step in range(400):
    log.add("train", step, loss=1.0, rate=0.1)
    if step % 50 == 0:
        log.flush()
log.close()
assert len(read_events("memory://run")) == 400
"""


def test_a_full_disk_under_tensorboard_does_not_end_training() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no more TensorBoard files from this start" in done.stderr


def test_a_log_whose_upload_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, whole = threading.Event(), storage.write_bytes

    def held(url: str, data: bytes) -> bool:
        go_on.wait(60)
        return whole(url, data)

    monkeypatch.setattr(storage, "write_bytes", held)
    monkeypatch.setattr(events, "_LATE_SECONDS", 2.0)
    log = EventLog(str(tmp_path), enabled=True, tensorboard=False)
    log.add("train", 1, loss=2.0)
    log.flush()
    assert log.uploading
    time.sleep(2.1)
    assert not log.uploading  # a commit goes on without it
    with pytest.warns(UserWarning, match="the event log is not written"):
        log.close()
    go_on.set()
