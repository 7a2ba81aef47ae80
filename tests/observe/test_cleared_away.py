"""Local files of the log that something else deletes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.observe.events import EventLog, read_events


def test_local_charts_that_are_cleared_away_do_not_end_training(tmp_path: Path) -> None:
    """As a service does that clears /tmp, in a run of weeks."""
    log = EventLog(str(tmp_path), enabled=True, tensorboard=True)
    log.add("train", 1, loss=2.0)
    log.flush(wait=True)
    assert log._folder is not None
    shutil.rmtree(log._folder)
    with pytest.warns(UserWarning, match="the event log could not be written"):
        log.flush(wait=True)
    log.close()
    assert [event["loss"] for event in read_events(str(tmp_path))] == [2.0]
