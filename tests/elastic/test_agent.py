"""The agent as a process: what holds a new round up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, environment

_WORKER = """
import os, signal, sys, time
again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
line = "attempt {TORCHELASTIC_RESTART_COUNT} rank {RANK}\\n".format(**os.environ)
os.write(1, line.encode())  # whole: both write into one pipe
if again:
    sys.exit(0)
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(2)
sys.exit(7)
"""


@pytest.mark.timeout(400)
def test_a_suspended_worker_does_not_hold_the_next_round_up(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    began = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "app.elastic.agent", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "1", "--shutdown-timeout", "300", str(script)),
        ],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "attempt 1 rank 1" in done.stdout
    assert time.monotonic() - began < 200
