"""What a process said last, for the run's folder: when a job ends badly its pods go, and their logs with them.

``<run>/failures/rank-<r>.txt``: the reason in the first line, then when and where, then the last lines that were
printed. Each rank has one file, of its last failure or of the signal that stopped it: when a job is ended because one
rank failed, the others are stopped, and their lines count as well. A rank that is killed, by the kernel for want of
memory or by the watchdog, cannot write: what it printed also goes into a small file of its node, from which its agent
tells.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from app import storage
from app.errors import AppError
from app.storage import StorageError

KEPT_LINES = 50
ENV_FOLDER = "ARCFACE_WORDS_FOLDER"  # on the node; the launcher makes it
_RING_BYTES = 64 << 10
_HEAD_BYTES = 8  # how much was ever written, little-endian


class _Ring:
    """The last bytes that a process printed, in a file that outlives it however it ends."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_HEAD_BYTES + _RING_BYTES))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._written = 0

    def write(self, data: bytes) -> None:
        """Append; what is older than ``_RING_BYTES`` goes."""
        data = data[-_RING_BYTES:]
        at = self._written % _RING_BYTES
        first = data[: _RING_BYTES - at]
        self._map[_HEAD_BYTES + at : _HEAD_BYTES + at + len(first)] = first
        self._map[_HEAD_BYTES : _HEAD_BYTES + len(data) - len(first)] = data[len(first) :]
        self._written += len(data)
        self._map[:_HEAD_BYTES] = self._written.to_bytes(_HEAD_BYTES, "little")

    @staticmethod
    def read(path: Path) -> bytes:
        """What is left of what was written, oldest first."""
        content = path.read_bytes()
        written, ring = int.from_bytes(content[:_HEAD_BYTES], "little"), content[_HEAD_BYTES:]
        at = written % _RING_BYTES
        return ring[:at] if written < _RING_BYTES else ring[at:] + ring[:at]


class _Tee:
    """A stream that also keeps its last lines."""

    def __init__(self, stream: Any, lines: deque[str], ring: _Ring | None) -> None:
        self._stream, self._lines, self._part, self._ring = stream, lines, "", ring

    def write(self, text: str) -> int:
        *whole, self._part = (self._part + text).split("\n")
        self._lines.extend(whole)
        self._part = self._part[-4096:]  # a progress bar need never end its line
        if self._ring is not None:
            self._ring.write(text.encode(errors="replace"))
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def keep_last_words(run_url: str) -> Iterator[Callable[[str], None]]:
    """Within the block an exception leaves the reason and the last lines in the run's folder, and goes on its way.

    What it gives leaves a reason and the last lines without an exception, for a process that was asked to stop.

    Only in a job that has a rendezvous process: elsewhere the lines are on somebody's screen. A store that fails is
    warned about.
    """
    if not os.environ.get("ARCFACE_RDZV_ENDPOINT"):
        yield lambda reason: None  # noqa: ARG005
        return
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    before = sys.stdout, sys.stderr
    ring = _open_ring(run_url)
    sys.stdout, sys.stderr = _Tee(sys.stdout, lines, ring), _Tee(sys.stderr, lines, ring)
    rank = os.environ.get("RANK", "0")
    try:
        yield lambda reason: _put(run_url, rank, reason, list(lines))
    except Exception as error:
        _write(run_url, error, list(lines))
        raise
    finally:
        sys.stdout, sys.stderr = before
        if (place := _place(rank)) is not None:
            place.with_suffix(".url").unlink(missing_ok=True)  # this rank needs nobody to speak for it


def _place(rank: str) -> Path | None:
    """Where the ring of a rank is on this node; its file ``.url`` names the run's folder until the rank has spoken."""
    folder = os.environ.get(ENV_FOLDER, "")
    return Path(folder) / f"rank-{rank}.ring" if folder else None


def _open_ring(run_url: str) -> _Ring | None:
    if (place := _place(os.environ.get("RANK", "0"))) is None:
        return None
    try:
        ring = _Ring(place)
        place.with_suffix(".url").write_text(run_url)
    except OSError as error:
        warnings.warn(f"a killed process would leave no last lines: {error}", stacklevel=2)
        return None
    return ring


def speak_for_all(reason: str) -> None:
    """Write the last words of all processes of this node that ended without any, with the same reason."""
    folder = os.environ.get(ENV_FOLDER, "")
    for path in sorted(Path(folder).glob("rank-*.url")) if folder else []:
        _speak(path.stem.removeprefix("rank-"), reason)


def speak_for(rank: int, exit_code: int) -> None:
    """Write the last words of a process of this node that ended without any; nothing when it has spoken itself.

    Args:
        exit_code: negative for a signal, as ``subprocess`` has it.
    """
    _speak(str(rank), f"error: {_why(exit_code)}")


def _speak(rank: str, reason: str) -> None:
    place = _place(rank)
    if place is None or not place.with_suffix(".url").exists():
        return
    url = place.with_suffix(".url").read_text()
    lines = _Ring.read(place).decode(errors="replace").splitlines()[-KEPT_LINES:]
    _put(url, rank, reason, lines)
    place.with_suffix(".url").unlink()


def _why(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}, without a word"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
    hint = ": was there memory enough? python -m app.plan tells" if -exit_code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


def _write(run_url: str, error: Exception, lines: list[str]) -> None:
    if isinstance(error, StorageError) and error.transient:
        return  # the store is what failed
    rank = os.environ.get("RANK", "0")
    reason = f"error: {error}" if isinstance(error, AppError) else f"{type(error).__name__}: {error}"
    trace = [] if isinstance(error, AppError) else traceback.format_exception(error)
    _put(run_url, rank, " ".join(reason.split()), [*lines, *(part.rstrip("\n") for part in trace)])


def _put(run_url: str, rank: str, reason: str, lines: list[str]) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = "\n".join([reason, f"{when}, rank {rank} on {platform.node()}", "", *lines]) + "\n"
    try:
        storage.write_bytes(storage.join(run_url, "failures", f"rank-{rank}.txt"), text.encode(errors="replace"))
    except StorageError as failure:
        warnings.warn(f"the last lines could not be kept: {failure}", stacklevel=2)
