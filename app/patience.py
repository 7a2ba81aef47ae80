"""Waiting for a store that is away: the same request again, with growing and jittered pauses, for a bounded time.

Whoever knows how long the work can do without says so: ``persist`` waits until a deadline, and what is asked within it
does not wait on its own account. Everything else has ``patiently``:

A store that this process has heard from before gets ``ARCFACE_STORE_PATIENCE`` seconds (60 unless set) to come back;
one that never answered gets none, so a mistyped address is told at once. What the store refuses is not asked twice.
Drivers retry too, a few times within seconds; this is for outages that last longer.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from app.errors import AppError

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds


@dataclass
class Counters:
    """What slow and absent stores cost this process so far: requests sent again, and seconds waited before them."""

    retries: int = 0
    seconds: float = 0.0


counters = Counters()
listeners: list[Callable[[], None]] = []  # told when the main thread waits for a store: it does not hang
_answered: set[str] = set()  # stores this process has heard from
_lock = threading.Lock()
_outer = threading.local()  # ``persists``: somebody further out waits already


def patience() -> float:
    """Seconds that a known store may be away."""
    try:
        return float(os.environ.get("ARCFACE_STORE_PATIENCE", "60"))
    except ValueError:
        return 60.0


def patiently(url: str, request: Callable[[], T], *, answers: Callable[[AppError], bool]) -> T:
    """The result of ``request()``, asked again while it fails with a transient error and patience lasts.

    Args:
        url: of the object; its scheme and host name the store.
        answers: whether an error came from the store itself, rather than from a connection that was never made.

    Raises:
        AppError: the last error of the request.
    """
    store = _store_of(url)

    def ask() -> T:
        try:
            result = request()
        except AppError as error:
            if answers(error):
                _answered.add(store)
            raise
        _answered.add(store)
        tell_progress()
        return result

    if getattr(_outer, "persists", False):
        return ask()
    return _repeat(ask, time.monotonic() + patience(), lambda error: error.transient and store in _answered)


def persist(action: Callable[[], T], until: float, *, whatever: bool = False) -> T:
    """The result of ``action()``, tried again after errors of the store that may pass.

    Args:
        action: what to do; called at least once.
        until: ``time.monotonic()`` after which the last error is raised.
        whatever: try again after every error of the store: where work goes on meanwhile, there is time for somebody
            to mend a policy or a key.

    Raises:
        AppError: the last one.
    """

    def attempt() -> T:
        before, _outer.persists = getattr(_outer, "persists", False), True
        try:
            return action()
        finally:
            _outer.persists = before

    return _repeat(attempt, until, lambda error: hasattr(error, "kind") and (whatever or error.transient))


def _repeat(ask: Callable[[], T], until: float, may_pass: Callable[[AppError], bool]) -> T:
    pause, said = FIRST_PAUSE, False
    while True:
        try:
            return ask()
        except AppError as error:
            wait = pause * random.uniform(0.5, 1.0)  # jitter: many processes must not come back at once
            left = until - time.monotonic()
            if not may_pass(error) or wait > left:
                raise
            if not said:
                print(f"warning: {error}; trying again for {left:.0f} s", file=sys.stderr, flush=True)
                said = True
            tell_progress()
            time.sleep(wait)
            count_retry(wait)
            pause = min(2 * pause, LONGEST_PAUSE)


def tell_progress() -> None:
    """Say that the main thread goes on with something long, such as a part of a file that other threads read."""
    if threading.current_thread() is threading.main_thread():  # what is done beside training moves no step
        for tell in listeners:
            tell()


def count_retry(seconds: float) -> None:
    """Count a request that is sent again after a pause."""
    with _lock:
        counters.retries += 1
        counters.seconds += seconds


def _store_of(url: str) -> str:
    parts = urlsplit(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return f"{parts.scheme}://{endpoint if parts.scheme in ('s3', 's3a') else parts.netloc}"
