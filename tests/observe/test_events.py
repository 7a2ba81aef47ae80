"""The event log: what is written is read back over S3; Weights & Biases against a stub of its API."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app import storage
from app.observe.events import EventError, EventLog, read_events


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
    log.close()
    (name,) = storage.list_names(f"{bucket_url}/tensorboard")
    (tmp_path / name).write_bytes(storage.read_bytes(f"{bucket_url}/tensorboard/{name}"))
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in accumulator.Scalars("train/loss")] == [0.0, 1.0, 2.0]


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
        log.flush()


def test_wandb_gets_the_events_or_is_told_to_be_missing(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EventError, match=r"needs the extra \[wandb\]"):
        EventLog(bucket_url, enabled=True, tensorboard=False, wandb="run")
    calls: list[Any] = []
    stub = types.ModuleType("wandb")
    stub.init = lambda **kwargs: calls.append(kwargs)  # type: ignore[attr-defined]
    stub.log = lambda values, step: calls.append((values, step))  # type: ignore[attr-defined]
    stub.finish = lambda: calls.append("finish")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stub)
    log = EventLog(bucket_url, enabled=True, tensorboard=False, wandb="run")
    log.add("train", 3, loss=0.5)
    log.close()
    assert calls == [{"name": "run", "id": "run", "resume": "allow"}, ({"train/loss": 0.5}, 3), "finish"]
