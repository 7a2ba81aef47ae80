"""SIGTERM and Ctrl-C mean: stop, and lose nothing. The step in progress ends, a checkpoint is committed, the process
leaves with 128 + the signal's number (143, 130), as shells and schedulers expect. A second signal ends it at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# One press of Ctrl-C may arrive twice: from the terminal, and from an agent that passes it on.
_SAME_SECONDS = 1.0

process_ends = False  # with the block of ``catch_stop``, after which nothing is left to stop


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._over = False  # there is no step any more

    @property
    def received(self) -> bool:
        """It was."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """What the process ends with: 128 + the signal."""
        return 128 + self.number

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.received and time.monotonic() - self._since > _SAME_SECONDS:
            os._exit(128 + number)
        if not self.received:
            self.number, self._since = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0" and not self._over:
                # Not print: the signal may have come in the middle of one.
                os.write(2, b"\nstopping after this step; a second time ends at once\n")


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Within the block SIGTERM and SIGINT only set ``received``; the second one ends the process.

    Where ``process_ends`` with it, they stay as harmless to its end, whose exit code is settled: a finished run that is
    told to go in its last moment is no failed one.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        if process_ends:
            request._over = True
            atexit.register(_ignore)  # Python takes handlers of its own back before it is gone
        else:
            for number, handler in before.items():
                signal.signal(number, handler)


def end_by_interrupt() -> None:
    """Until the next ``catch_stop`` Ctrl-C ends this process at once, as SIGTERM does, also where C++ waits for others.

    Nothing is to be saved by then. Who started it deaf to Ctrl-C, as a shell does in the background, is obeyed.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
