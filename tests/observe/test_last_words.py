"""The last words of a rank that failed are in the run's folder, and nowhere when all went well."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import storage
from app.errors import AppError
from app.observe.last_words import KEPT_LINES, keep_last_words, speak_for
from app.storage import StorageError
from tests.jobs import environment


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_RDZV_ENDPOINT", "localhost:1")
    monkeypatch.setenv("RANK", "3")


def fail(url: str, error: Exception) -> None:
    with keep_last_words(url):
        for number in range(200):
            print(f"line {number}")
        print("part of ", end="", file=sys.stderr)
        print("a line", file=sys.stderr)
        raise error


def test_reason_and_last_lines_of_a_rank_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    streams = sys.stdout, sys.stderr
    with pytest.raises(AppError):
        fail(str(tmp_path), AppError("the loss is\nnot finite at step 7"))
    assert (sys.stdout, sys.stderr) == streams
    reason, where, _, *lines = (tmp_path / "failures" / "rank-3.txt").read_text().splitlines()
    assert reason == r"error: the loss is\nnot finite at step 7"
    assert "rank 3 on " in where
    assert len(lines) == KEPT_LINES
    assert lines[-2:] == ["line 199", "part of a line"]
    assert "line 0\n" in capsys.readouterr().out  # all of it is printed as ever


def test_an_unforeseen_error_keeps_its_traceback_and_replaces_the_rank_s_older_file(tmp_path: Path) -> None:
    for error in (AppError("first"), KeyError("second")):
        with pytest.raises(type(error)):
            fail(str(tmp_path), error)
    assert [path.name for path in (tmp_path / "failures").iterdir()] == ["rank-3.txt"]
    text = (tmp_path / "failures" / "rank-3.txt").read_text()
    assert text.startswith("KeyError: 'second'\n")
    assert "Traceback (most recent call last)" in text


def test_nothing_is_written_after_a_good_end_outside_a_job_or_to_a_store_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with keep_last_words(str(tmp_path)):
        print("fine")
    with pytest.raises(StorageError):
        fail(str(tmp_path), StorageError("gone", transient=True))
    monkeypatch.delenv("ARCFACE_RDZV_ENDPOINT")
    with pytest.raises(AppError):
        fail(str(tmp_path), AppError("x"))
    assert not storage.exists(storage.join(str(tmp_path), "failures", "rank-3.txt"))


KILLED = """
import os, signal, sys
from app.observe.last_words import keep_last_words
with keep_last_words(sys.argv[1]):
    for number in range(9000):
        print("line", number)
    print("no end", end="", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_agent_speaks_for_a_rank_that_was_killed(tmp_path: Path) -> None:
    script, rings, runs = tmp_path / "killed.py", tmp_path / "rings", tmp_path / "runs"
    script.write_text(KILLED)
    rings.mkdir()
    variables = {"ARCFACE_RDZV_ENDPOINT": "localhost:1", "ARCFACE_WORDS_FOLDER": str(rings)}
    done = subprocess.run(
        [sys.executable, "-m", "app.elastic.agent", "--standalone", "--nproc-per-node", "1", str(script), str(runs)],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    first, where, empty, *lines = (runs / "failures" / "rank-0.txt").read_text().splitlines()
    assert first == "error: killed by SIGKILL: was there memory enough? python -m app.plan tells"
    assert ", rank 0 on " in where
    assert empty == ""
    assert lines == [*(f"line {number}" for number in range(9000 - KEPT_LINES + 1, 9000)), "no end"]


HANGING = """
import signal, sys, time
from pathlib import Path
from app.observe.last_words import keep_last_words
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with keep_last_words(sys.argv[1]):
    print("waiting for rank 1")
    Path(sys.argv[1] + ".ready").touch()
    time.sleep(600)
"""


def test_the_agent_speaks_for_a_rank_that_hung_when_the_job_was_ended(tmp_path: Path) -> None:
    script, rings, runs = tmp_path / "hanging.py", tmp_path / "rings", tmp_path / "runs"
    script.write_text(HANGING)
    rings.mkdir()
    variables = {"ARCFACE_RDZV_ENDPOINT": "localhost:1", "ARCFACE_WORDS_FOLDER": str(rings)}
    options = ["--standalone", "--nproc-per-node", "1", "--shutdown-timeout", "1"]
    agent = subprocess.Popen(
        [sys.executable, "-m", "app.elastic.agent", *options, str(script), str(runs)],
        env={**environment(), **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "runs.ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    agent.terminate()
    _, error = agent.communicate(timeout=200)
    assert agent.returncode == 128 + signal.SIGTERM, error[-2000:]
    first, _, _, *lines = (runs / "failures" / "rank-0.txt").read_text().splitlines()
    assert first == "stopped by SIGTERM, and killed since it did not end by itself"
    assert lines == ["waiting for rank 1"]


def test_a_process_that_is_asked_to_stop_says_its_last_words_without_an_exception(tmp_path: Path) -> None:
    with keep_last_words(str(tmp_path)) as say_last:
        print("step 7")
        say_last("stopped by SIGTERM")
    reason, _, _, *lines = (tmp_path / "failures" / "rank-3.txt").read_text().splitlines()
    assert (reason, lines) == ("stopped by SIGTERM", ["step 7"])


def test_nobody_speaks_for_a_rank_that_has_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_WORDS_FOLDER", str(tmp_path))
    with pytest.raises(AppError):
        fail(str(tmp_path / "run"), AppError("bad input"))
    words = (tmp_path / "run" / "failures" / "rank-3.txt").read_text()
    speak_for(3, 65)
    assert (tmp_path / "run" / "failures" / "rank-3.txt").read_text() == words
    assert words.startswith("error: bad input\n")
