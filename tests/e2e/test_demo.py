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
