"""How far training is: a live bar on a terminal, bar-like lines where the output goes to a log."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO

_WIDTH = 24


@dataclass
class Speed:
    """Samples a second and where the time went, since the last report."""

    samples: int = 0
    data_wait: float = 0.0  # seconds spent waiting for batches
    started: float = 0.0

    def restart(self) -> None:
        """Begin a new interval."""
        self.samples, self.data_wait, self.started = 0, 0.0, time.perf_counter()

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


class Progress:
    """Prints reports of rank 0."""

    def __init__(self, total_steps: int, *, enabled: bool, out: TextIO | None = None) -> None:
        self.total_steps, self.enabled = total_steps, enabled
        self.out = out or sys.stdout
        self.live = self.out.isatty()

    def report(self, step: int, text: str) -> None:
        """Show that ``step`` steps are done."""
        if not self.enabled:
            return
        done = round(_WIDTH * step / max(1, self.total_steps))
        bar = "█" * done + "░" * (_WIDTH - done)
        percent = 100 * step / max(1, self.total_steps)
        line = f"{bar} {percent:3.0f}%  {text}"
        self.out.write(f"\r\x1b[K{line}" if self.live else f"{line}\n")
        self.out.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.enabled:
            self.out.write(f"\r\x1b[K{text}\n" if self.live else f"{text}\n")
            self.out.flush()


def format_duration(seconds: float) -> str:
    """3725 -> ``1h02m``; short spans in minutes and seconds."""
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s"
