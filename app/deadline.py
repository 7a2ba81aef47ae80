"""Requests that must not take for ever: each has a deadline, is sent again, and is counted.

A store that sends or takes a kilobyte a second does answer, so no driver gives it up; a run that waits for it makes no
step. Every request of an asynchronous driver goes through here: reads of ranges and of whole objects, look-ups, writes
and the parts of uploads, listings and deletions.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app import patience

T = TypeVar("T")

ATTEMPTS = 4
DEADLINE = 20.0  # seconds for a request, and
SLOWEST = 256 << 10  # bytes a second that must pass besides; each further attempt gets twice the time
HEDGE = 2.0  # seconds after which a request is sent a second time, at least
_SILENCE = 10.0  # seconds between two lines about slow requests


class LateError(TimeoutError):
    """The answer of a request did not come, or not whole, in its time."""


def is_late(error: Exception) -> bool:
    """Whether a request was late: for readers whose other failures somebody else waits for."""
    return isinstance(error, LateError)


class Requests:
    """The requests of one reader, sent within its driver's event loop.

    Args:
        hedges: send a request that takes much longer than others a second time; the first answer counts.
    """

    def __init__(self, *, hedges: bool) -> None:
        self.hedges = hedges
        self.retries = self.hedged = 0
        self.latencies: deque[float] = deque(maxlen=1000)  # seconds
        self._said = 0.0

    def usual_seconds(self) -> float:
        """After which an answer is overdue, by what others took: it is time to ask a second time."""
        return max(HEDGE, 4 * max(self.latencies, default=HEDGE) if len(self.latencies) > 20 else 4 * HEDGE)

    async def ask(
        self,
        what: str,
        request: Callable[[], Awaitable[T]],
        size_of: Callable[[], Awaitable[int]],
        *,
        may_pass: Callable[[Exception], bool],
        enough: Callable[[T], bool] = lambda _: True,
    ) -> T:
        """The answer of ``request()``, which is sent again when it is late, short, or fails in a way that may pass.

        Args:
            what: the object, for the line that is printed when it is late.
            size_of: bytes that are on their way, either way; asked only when the answer is late.
            enough: whether an answer is whole; the last attempt's is returned as it is.

        Raises:
            LateError: the last attempt was late.
        """
        for attempt in range(ATTEMPTS):
            last = attempt + 1 == ATTEMPTS
            try:
                answer = await self._in_time(what, request, size_of, 2**attempt)
            except Exception as error:
                if last or not may_pass(error):
                    raise
            else:
                if last or enough(answer):
                    return answer
            self.retries += 1
            pause = 0.2 * 2**attempt * random.uniform(0.5, 1.0)
            patience.count_retry(pause)
            await asyncio.sleep(pause)
        raise AssertionError

    async def _in_time(
        self, what: str, request: Callable[[], Awaitable[T]], size_of: Callable[[], Awaitable[int]], times: int
    ) -> T:
        started, limit = time.perf_counter(), DEADLINE * times
        tasks = [asyncio.ensure_future(request())]
        try:
            first = min(limit / 2, self.usual_seconds()) if self.hedges else limit
            done, _ = await asyncio.wait(tasks, timeout=first)
            if not done and self.hedges:
                self.hedged += 1
                tasks.append(asyncio.ensure_future(request()))
                done, _ = await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                more = times * await asyncio.wait_for(size_of(), DEADLINE) / SLOWEST
                done, _ = await asyncio.wait(tasks, timeout=more, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                seconds = time.perf_counter() - started
                self._say(f"{what}: no whole answer in {seconds:.0f} s: the request is given up and sent again")
                raise LateError(f"no whole answer in {seconds:.0f} s")
            answer = done.pop().result()
            self.latencies.append(time.perf_counter() - started)
            return answer
        finally:
            for task in tasks:
                task.cancel()

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if not self._said or now - self._said > _SILENCE:
            self._said = now
            print(f"warning: {text}", file=sys.stderr, flush=True)
