"""Waiting for a store that is away: the same request again, with growing and jittered pauses, for a bounded time.

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
    """What outages cost this process so far: requests sent again, and seconds waited before them."""

    retries: int = 0
    seconds: float = 0.0


counters = Counters()
_answered: set[str] = set()  # stores this process has heard from
_lock = threading.Lock()


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
    deadline, pause = time.monotonic() + patience(), FIRST_PAUSE
    said = False
    while True:
        try:
            result = request()
            _answered.add(store)
            return result
        except AppError as error:
            if answers(error):
                _answered.add(store)
            wait = pause * random.uniform(0.5, 1.0)  # jitter: many processes must not come back at once
            if not error.transient or store not in _answered or time.monotonic() + wait > deadline:
                raise
            if not said:
                print(f"warning: {error}; trying again for {patience():.0f} s", file=sys.stderr, flush=True)
                said = True
            time.sleep(wait)
            with _lock:
                counters.retries += 1
                counters.seconds += wait
            pause = min(2 * pause, LONGEST_PAUSE)


def _store_of(url: str) -> str:
    parts = urlsplit(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return f"{parts.scheme}://{endpoint if parts.scheme in ('s3', 's3a') else parts.netloc}"
