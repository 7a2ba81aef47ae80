"""SIGTERM means: the node is about to go. The step in progress ends, a checkpoint is committed, the process leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = True


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Within the block SIGTERM only sets ``received``."""
    request = StopRequest()
    before = signal.signal(signal.SIGTERM, request._handle)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
