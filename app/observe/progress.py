"""How far training is: a live bar on a terminal, bar-like lines where the output goes to a log."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from app.observe.training_log import stamp

_WIDTH, _NARROW = 24, 8  # characters of the bar


@dataclass
class Speed:
    """Samples a second and where the time went, since the last report."""

    samples: int = 0
    data_wait: float = 0.0  # seconds spent waiting for batches
    started: float = 0.0
    steps: int = 0
    losses: list[float] = field(default_factory=list)

    def restart(self) -> None:
        """Begin a new interval."""
        self.losses = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to measure anew after something that was no training; what was learned since the last report stays."""
        self.samples, self.steps, self.data_wait, self.started = 0, 0, 0.0, time.perf_counter()

    def add_step(self, samples: int, loss: float) -> None:
        """Count one step."""
        self.samples += samples
        self.steps += 1
        self.losses.append(loss)

    @property
    def mean_loss(self) -> float:
        """Mean over the steps since the last report."""
        return sum(self.losses) / max(1, len(self.losses))

    @property
    def seconds(self) -> float:
        """Length of the interval so far."""
        return max(1e-9, time.perf_counter() - self.started)

    @property
    def images_per_second(self) -> float:
        """Of all ranks together."""
        return self.samples / self.seconds

    @property
    def data_wait_share(self) -> float:
        """Share of the time in which the step waited for data."""
        return min(1.0, self.data_wait / self.seconds)


@dataclass
class Remaining:
    """The time that is left, from the steps of the last intervals together: one slow interval does not double it."""

    intervals: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=32))

    def after(self, steps: int, seconds: float, steps_left: int) -> float:
        """Seconds left, after an interval of ``steps`` steps that took ``seconds``."""
        self.intervals.append((steps, seconds))
        done = sum(count for count, _ in self.intervals)
        return steps_left * sum(span for _, span in self.intervals) / max(1, done)


class Progress:
    """Prints reports of rank 0.

    On a terminal the report is one line that is written over, never wider than the terminal: the bar becomes narrow
    first, then the last of the fields, which are parted by `` | ``, go. Elsewhere a report is a line, all of it.

    Args:
        log: is given every report and message, without bar or stamp.
        stamped: print plain lines with insightface's stamp instead, on a terminal too.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        enabled: bool,
        out: TextIO | None = None,
        log: Callable[[str], None] | None = None,
        stamped: bool = False,
    ) -> None:
        self.total_steps, self.enabled, self.stamped = total_steps, enabled, stamped
        self.out = out or sys.stdout
        self.live = self.out.isatty() and os.environ.get("TERM") != "dumb" and not stamped
        self._log = log
        self._open = False  # the cursor stands behind a live line
        self._blocks = "█░" if self._can_write("█░") else "#-"

    def report(self, step: int, text: str) -> None:
        """Show that ``step`` steps are done."""
        if not self.enabled:
            return
        if self._log is not None:
            self._log(text)
        if self.stamped:
            self._write(f"{stamp(text)}\n")
            return
        share = step / max(1, self.total_steps)
        percent = f"{100 * share:3.0f}%"
        if not self.live:
            self._write(f"{self._bar(share, _WIDTH)} {percent}  {text}\n")
            return
        fields, room = text.split(" | "), self._columns() - 1
        width = _WIDTH if _WIDTH + len(percent) + 3 + len(text) <= room else _NARROW if room >= 40 else 1
        while len(fields) > 1 and width + len(percent) + 3 + len(" | ".join(fields)) > room:
            fields.pop()
        line = f"{self._bar(share, width)} {percent}  {' | '.join(fields)}"
        self._write(f"\r\x1b[K{line[: max(1, room)]}")
        self._open = True

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if not self.enabled:
            return
        if self._log is not None:
            self._log(text)
        if self.stamped:
            text = "\n".join(stamp(line) if line else line for line in text.split("\n"))
        self._write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")
        self._open = False

    def close(self) -> None:
        """End the live line, so that what comes next begins on a line of its own."""
        if self._open:
            self._write("\n")
            self._open = False

    def _bar(self, share: float, width: int) -> str:
        done = min(width, round(width * share))
        return self._blocks[0] * done + self._blocks[1] * (width - done)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.out.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _can_write(self, text: str) -> bool:
        try:
            text.encode(self.out.encoding or "utf-8")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    def _write(self, text: str) -> None:
        if not self._can_write(text):
            encoding = self.out.encoding
            text = text.encode(encoding, "replace").decode(encoding)
        self.out.write(text)
        self.out.flush()


def format_duration(seconds: float) -> str:
    """3725 -> ``1h02m``; short spans in minutes and seconds."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s"
