"""What the processes of a job print, read as it comes: starts, steps, losses, and when they were seen."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_START = re.compile(r": from (?:step (\d+)|the beginning) of \d+, (\d+) processes? on ")
_STEP = re.compile(r"loss +([0-9.e+-]+|nan) .*\| step (\d+) \|")


@dataclass(frozen=True)
class Seen:
    """A start (``loss`` is None) or a step that was done, at ``time`` seconds since the watch began."""

    time: float
    step: int
    world: int
    loss: float | None = None


class Watch:
    """Reads all ``*.log`` files of a folder, also those that come later, in a thread of its own."""

    def __init__(self, folder: Path, *, interval: float = 0.1) -> None:
        self.folder, self.interval = folder, interval
        self.began = time.monotonic()
        self.seen: list[Seen] = []
        self._offsets: dict[Path, int] = {}
        self._rests: dict[Path, bytes] = {}
        self._world = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def now(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self.began

    @property
    def starts(self) -> list[Seen]:
        """Starts so far."""
        return [seen for seen in self.seen if seen.loss is None]

    def steps_since(self, moment: float) -> list[Seen]:
        """Steps done after ``moment``."""
        return [seen for seen in self.seen if seen.loss is not None and seen.time > moment]

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            self.read()

    def read(self) -> None:
        """Take in what was written since the last time."""
        for path in sorted(self.folder.glob("*.log")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            self._offsets[path] = self._offsets.get(path, 0) + len(data)
            *lines, self._rests[path] = (self._rests.get(path, b"") + data).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        if match := _START.search(line):
            self._world = int(match[2])
            self.seen.append(Seen(self.now, int(match[1] or 0), self._world))
        elif match := _STEP.search(line):
            self.seen.append(Seen(self.now, int(match[2]), self._world, float(match[1])))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
