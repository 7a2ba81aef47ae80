"""Ctrl-C and SIGTERM, to real processes: a sentence, a commit, the conventional exit code; the second ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import storage
from app.observe.events import read_events
from tests.jobs import ROOT, SMALL, environment, write_faces

WAITING = """
import time
from app.elastic.signals import catch_stop
with catch_stop() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(2):  # the same press, from the terminal and from an agent
        process.send_signal(number)
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert error.count("stopping after this step; a second time ends at once") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_commits_the_step(tmp_path: Path, number: signal.Signals) -> None:
    data, output = str(tmp_path / "data"), str(tmp_path / "runs")
    write_faces(data)
    options = ("--data.url", data, "--output.url", output, "--train.epochs", "10000", "--checkpoint.every-steps", "0")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "app.train", *SMALL, *options],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "| step 3" in line:
            break
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert "stopping after this step" in error
    assert "Traceback" not in error
    assert "the same command goes on from there" in out
    last = max(event["step"] for event in read_events(f"{output}/orl") if event["kind"] == "train")
    names = [name for name in storage.list_names(f"{output}/orl/checkpoints") if name.startswith("step-")]
    assert [int(name.split("-")[1]) for name in names] == [last]
