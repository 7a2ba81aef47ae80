"""Work beside training, in a daemon thread: a process that must end does not wait for a store that hangs.

Who takes the result also waits for the thread's last moment, in which it frees the tensors of its work: a thread that
is in torch's C++ while Python ends aborts the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Runs ``action()`` in a thread of its own."""

    def __init__(self, action: Callable[[], T], name: str) -> None:
        self._future: Future[T] = Future()
        self._action = action
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._action())
        except BaseException as error:
            self._future.set_exception(error)

    @property
    def done(self) -> bool:
        """It has returned or failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> T:
        """Wait for what ``action()`` returns, or raise what it raised."""
        try:
            return self._future.result(timeout)
        finally:
            if self._future.done():
                self._thread.join()
