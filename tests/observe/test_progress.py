"""The face of training: a line that fits, in characters that can be shown, with figures that do not jump."""

from __future__ import annotations

import io
import os
import pty
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from app.observe.progress import Progress, Remaining, Speed, format_duration

FIELDS = " 2345.1 img/s | loss  12.3456 | ETA 1h02m | step 123456 | lr 0.10000 | epoch 12 | wait   3% | scale 65536"


class Terminal:
    """A pseudo-terminal of some width; ``out`` writes to it."""

    def __init__(self, columns: int, encoding: str = "utf-8") -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.out = os.fdopen(slave, "w", encoding=encoding)

    def text(self) -> str:
        self.out.flush()
        os.set_blocking(self.master, False)
        read = b""
        while True:
            try:
                read += os.read(self.master, 65536)
            except BlockingIOError:
                return read.decode()


@pytest.fixture(autouse=True)
def _term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def test_a_log_gets_whole_lines() -> None:
    plain = io.StringIO()
    Progress(10, enabled=True, out=plain).report(5, FIELDS)
    assert plain.getvalue() == "█" * 12 + "░" * 12 + f"  50%  {FIELDS}\n"


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 117, 200])
def test_the_live_line_fits_the_terminal(columns: int) -> None:
    terminal = Terminal(columns)
    progress = Progress(10, enabled=True, out=terminal.out)
    for step in (1, 5, 10):
        progress.report(step, FIELDS)
    text = terminal.text()
    lines = text.split("\r\x1b[K")[1:]
    assert len(lines) == 3
    assert all(0 < len(line) < columns for line in lines)
    assert "\n" not in text
    if columns >= 80:
        assert all("img/s | loss  12.3456 | ETA 1h02m" in line for line in lines)


def test_the_line_ends_with_a_newline_once() -> None:
    terminal = Terminal(80)
    progress = Progress(10, enabled=True, out=terminal.out)
    progress.report(10, FIELDS)
    progress.close()
    progress.close()
    assert terminal.text().count("\n") == 1
    progress.report(10, "x")
    progress.say("done")
    progress.close()
    assert terminal.text().count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_without_blocks_the_bar_is_ascii_and_no_text_ends_training(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding=encoding) as out:
        progress = Progress(4, enabled=True, out=out)
        progress.report(2, "x")
        progress.say("[李娜][2]Accuracy")
    assert path.read_text(encoding) == "#" * 12 + "-" * 12 + "  50%  x\n[??][2]Accuracy\n"


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not Progress(4, enabled=True, out=Terminal(80).out).live


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(4, enabled=False, out=sys.stdout)
    progress.report(1, "x")
    progress.say("x")
    progress.close()
    assert capsys.readouterr().out == ""


def test_the_time_left_follows_many_intervals() -> None:
    remaining = Remaining()
    spans = [1.0, 10.0, 1.0, 10.0] * 8  # seconds for ten steps each
    left = [remaining.after(10, span, 100) for span in spans]
    assert left[0] == pytest.approx(10)
    assert left[-1] == pytest.approx(55)
    assert max(left[12:]) / min(left[12:]) < 1.2
    for _ in range(32):  # what was long ago is forgotten
        last = remaining.after(10, 2.0, 50)
    assert last == pytest.approx(10)


def test_the_loss_is_the_mean_since_the_last_report() -> None:
    speed = Speed()
    speed.restart()
    speed.add_step(8, 1.0)
    speed.restart_clock()  # a verification
    speed.add_step(8, 3.0)
    assert (speed.mean_loss, speed.samples) == (2.0, 8)
    speed.restart()
    assert speed.mean_loss == 0.0


def test_durations() -> None:
    assert (format_duration(3725), format_duration(65)) == ("1h02m", "1m05s")
