"""What a process said last, for the run's folder: when a job ends badly its pods go, and their logs with them.

``<run>/failures/rank-<r>.txt``: the reason in the first line, then when and where, then the last lines that were
printed. Each rank has one file, of its last failure.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

from app import storage
from app.errors import AppError
from app.storage import StorageError

KEPT_LINES = 50


class _Tee:
    """A stream that also keeps its last lines."""

    def __init__(self, stream: Any, lines: deque[str]) -> None:
        self._stream, self._lines, self._part = stream, lines, ""

    def write(self, text: str) -> int:
        *whole, self._part = (self._part + text).split("\n")
        self._lines.extend(whole)
        self._part = self._part[-4096:]  # a progress bar need never end its line
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def keep_last_words(run_url: str) -> Iterator[None]:
    """Within the block an exception leaves the reason and the last lines in the run's folder, and goes on its way.

    Only in a job that has a rendezvous process: elsewhere the lines are on somebody's screen. A store that fails is
    warned about.
    """
    if not os.environ.get("ARCFACE_RDZV_ENDPOINT"):
        yield
        return
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(sys.stdout, lines), _Tee(sys.stderr, lines)
    try:
        yield
    except Exception as error:
        _write(run_url, error, list(lines))
        raise
    finally:
        sys.stdout, sys.stderr = before


def _write(run_url: str, error: Exception, lines: list[str]) -> None:
    if isinstance(error, StorageError) and error.transient:
        return  # the store is what failed
    rank = os.environ.get("RANK", "0")
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    reason = f"error: {error}" if isinstance(error, AppError) else f"{type(error).__name__}: {error}"
    trace = [] if isinstance(error, AppError) else traceback.format_exception(error)
    head = [" ".join(reason.split()), f"{when}, rank {rank} on {platform.node()}", ""]
    text = "\n".join([*head, *lines, *(part.rstrip("\n") for part in trace)]) + "\n"
    try:
        storage.write_bytes(storage.join(run_url, "failures", f"rank-{rank}.txt"), text.encode(errors="replace"))
    except StorageError as failure:
        warnings.warn(f"the last lines could not be kept: {failure}", stacklevel=2)
