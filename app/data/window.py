"""The undecoded records of one logical worker, block by block: fetched ahead of need, freed behind it.

While one window is trained, the blocks of the next arrive at the pace at which samples leave the present one. So a
worker holds about one and a quarter windows, whatever the dataset's size, and never waits for a whole window at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from app.data.order import SampleOrder
from app.data.source import Source

_LEAD = 0.25  # share of the next window that is fetched before a sample of the present one was read


class _Window:
    """The blocks of one window: which were asked for, and the records that came and are not yet trained."""

    def __init__(self, source: Source, order: SampleOrder, epoch: int, worker: int, number: int, first: int) -> None:
        self.positions = order.window(epoch, worker, number)
        self.left = len(self.positions) - first
        self._source = source
        self._records: list[bytes] = [b""] * len(self.positions)
        pieces = order.pieces(epoch, worker, number)
        by_position = np.argsort(self.positions, kind="stable")
        ordered = self.positions[by_position]
        # The slots (places in training order) of each piece; a resumed run asks only for blocks that it still needs.
        slots = [by_position[slice(*np.searchsorted(ordered, piece))] for piece in pieces]
        slots = [wanted for part in slots if len(wanted := part[part >= first])]
        slots.sort(key=lambda part: int(part.min()))
        self._slots = slots
        self._piece_of = np.full(len(self.positions), -1, dtype=np.int64)
        for i, part in enumerate(slots):
            self._piece_of[part] = i
        self._futures: list[Future[None]] = []
        self._there = np.zeros(len(slots), dtype=bool)  # those that need not be waited for

    def ask(self, share: float, pool: ThreadPoolExecutor) -> None:
        """Have the first ``share`` of the blocks fetched, those needed first before the others."""
        count = min(len(self._slots), int(np.ceil(share * len(self._slots))))
        while len(self._futures) < count:
            self._futures.append(pool.submit(self._fetch, self._slots[len(self._futures)]))

    def _fetch(self, slots: NDArray[np.int64]) -> None:
        records = self._source.read(self.positions[slots])
        for slot, record in zip(slots.tolist(), records, strict=True):
            self._records[slot] = record

    def wait(self, first: int, last: int) -> None:
        """Until the records of these slots are there.

        Raises:
            StorageError: one of them cannot be read.
        """
        pieces = self._piece_of[first:last]
        for piece in sorted(set(pieces[~self._there[pieces]].tolist())):
            self._futures[piece].result()
            self._there[piece] = True

    def take(self, first: int, last: int) -> list[bytes]:
        """Hand over records; the window keeps none of them."""
        taken = self._records[first:last]
        self._records[first:last] = [b""] * len(taken)
        return taken

    def cancel(self) -> None:
        """Forget what was asked for and has not begun."""
        for future in self._futures:
            future.cancel()


class WindowStream:
    """One logical worker's records in one epoch, from an offset on; each sample is read once.

    Args:
        pool: threads that fetch; a block is one task.
        first: offset in the stretch of the first sample that will be read.
    """

    def __init__(
        self, source: Source, order: SampleOrder, epoch: int, worker: int, pool: ThreadPoolExecutor, first: int = 0
    ) -> None:
        self._source, self._order, self._epoch, self._worker, self._pool = source, order, epoch, worker, pool
        self._first = first
        self._windows: dict[int, _Window] = {}
        self._opened = -1  # the last window that any thread opened
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> tuple[NDArray[np.int64], list[bytes]]:
        """Positions, int64 [stop - start], and records of these samples of the stretch; several threads may read."""
        order = self._order
        positions: list[NDArray[np.int64]] = []
        records: list[bytes] = []
        for number in range(order.window_at(start), order.window_at(stop - 1) + 1):
            base, end = order.window_start(number), order.window_start(number + 1)
            first, last = max(0, start - base), min(stop, end) - base
            with self._lock:
                window = self._open(number)
                window.ask(1.0, self._pool)
                if (ahead := self._window_ahead(number + 1)) is not None:
                    ahead.ask(_LEAD + last / (end - base), self._pool)
            window.wait(first, last)
            positions.append(window.positions[first:last])
            records += window.take(first, last)
            with self._lock:
                window.left -= last - first
                if window.left <= 0:
                    self._windows.pop(number, None)
        return np.concatenate(positions), records

    def _open(self, number: int) -> _Window:
        if number not in self._windows:
            first = max(0, self._first - self._order.window_start(number))
            self._windows[number] = _Window(self._source, self._order, self._epoch, self._worker, number, first)
            self._opened = max(self._opened, number)
        return self._windows[number]

    def _window_ahead(self, number: int) -> _Window | None:
        """One to fetch from before it is read; None where faster threads have read it already, or will open it."""
        if number > self._opened and number < self._order.window_count():
            return self._open(number)
        return self._windows.get(number)

    def close(self) -> None:
        """Drop what is held."""
        with self._lock:
            for window in self._windows.values():
                window.cancel()
            self._windows.clear()
