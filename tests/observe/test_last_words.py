"""The last words of a rank that failed are in the run's folder, and nowhere when all went well."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from app import storage
from app.errors import AppError
from app.observe.last_words import KEPT_LINES, keep_last_words
from app.storage import StorageError


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
    assert reason == "error: the loss is not finite at step 7"
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
