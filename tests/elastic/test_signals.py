"""Ctrl-C and SIGTERM, to real processes: a sentence, a commit, the conventional exit code; the second ends at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

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


@pytest.mark.slow
def test_ctrl_c_ends_a_process_that_waits_for_the_others_to_come(tmp_path: Path) -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    keys = store.num_keys()
    one_of_two = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.train", *SMALL, "--data.url", str(tmp_path), "--output.url", str(tmp_path)],
        env={**environment(), **one_of_two, "LOCAL_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while store.num_keys() == keys:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=20)[1]
    assert process.returncode == -signal.SIGINT


ENDING = """
import atexit, time
atexit.register(lambda: (print("ending", flush=True), time.sleep(0.5)))
from app.elastic import signals
signals.process_ends = True
with signals.catch_stop():
    pass
print("left", flush=True)
time.sleep(0.5)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_moment_makes_no_failure_of_an_end(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for moment in ("left\n", "ending\n"):
        assert process.stdout.readline() == moment
        process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
