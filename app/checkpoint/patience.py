"""Waiting for a store that is out of order: try again, ever less often, until it answers or patience ends."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

from app.storage import StorageError

T = TypeVar("T")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds


def persist(action: Callable[[], T], until: float, *, whatever: bool = False) -> T:
    """Return ``action()``, tried again after errors that may pass.

    Args:
        action: what to do; called at least once.
        until: ``time.monotonic()`` after which the last error is raised.
        whatever: try again after every ``StorageError``: where work goes on meanwhile, there is time for somebody to
            mend a policy or a key.

    Raises:
        StorageError: the last one.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return action()
        except StorageError as error:
            left = until - time.monotonic()
            if left <= 0 or not (whatever or error.transient):
                raise
            if pause == _FIRST_PAUSE:
                warnings.warn(f"{error}; trying again for up to {left:.0f} s", stacklevel=2)
        # Ranks that failed together do not come back together.
        time.sleep(min(left, pause * random.uniform(0.75, 1.25)))
        pause = min(2 * pause, _LONGEST_PAUSE)
