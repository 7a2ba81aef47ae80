"""The demo's promise besides accuracy: whatever ends it, nothing of it is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs import ROOT

pytestmark = [pytest.mark.slow]


def marked(folder: Path) -> list[psutil.Process]:
    """Processes that carry the demo's mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ARCFACE_DEMO") == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def start(folder: Path) -> tuple[subprocess.Popen[str], list[str]]:
    demo = subprocess.Popen(
        [sys.executable, "-m", "demo"],
        env={**os.environ, "ARCFACE_DEMO": str(folder)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    assert demo.stdout is not None
    threading.Thread(target=lambda: lines.extend(iter(demo.stdout.readline, "")), daemon=True).start()  # type: ignore[union-attr]
    return demo, lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_store_and_both_nodes(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    demo, lines = start(folder)
    deadline = time.monotonic() + 300
    while not any("from the beginning" in line for line in lines):
        assert time.monotonic() < deadline, lines
        assert demo.poll() is None, lines
        time.sleep(0.2)
    assert len(marked(folder)) > 4  # store, torchx, rendezvous, agents, workers
    demo.send_signal(number)
    assert demo.wait(300) == 130
    time.sleep(0.5)
    assert marked(folder) == []
    assert "Traceback" not in "".join(lines)


def test_a_job_that_fails_ends_it_with_a_code_and_nothing_left(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo, lines = start(folder)
    deadline = time.monotonic() + 300
    while not any("from the beginning" in line for line in lines):
        assert time.monotonic() < deadline, lines
        time.sleep(0.2)
    (rendezvous,) = [p for p in marked(folder) if "app.elastic.rendezvous" in p.cmdline()]
    rendezvous.kill()
    assert demo.wait(300) == 1, lines
    time.sleep(0.5)
    assert marked(folder) == []
    assert "demo failed" in "".join(lines)


STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
node = "import time; print('node', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", node], start_new_session=True)
time.sleep(600)
"""


def test_nodes_in_sessions_of_their_own_end_although_their_scheduler_does_not_stop_them(tmp_path: Path) -> None:
    program = "import os, sys; from demo.stages import run_stage; run_stage(sys.argv[1:], dict(os.environ))"
    stage = subprocess.Popen(
        [sys.executable, "-c", program, sys.executable, "-c", STUBBORN],
        env={**os.environ, "ARCFACE_DEMO": str(tmp_path)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert stage.stdout is not None
    assert stage.stdout.readline() == "node\n"
    assert len(marked(tmp_path)) == 3
    stage.send_signal(signal.SIGINT)
    stage.wait(60)
    time.sleep(0.5)
    assert marked(tmp_path) == []
