"""Which sample is trained when: a pure function of seed, epoch and the number of logical workers.

The processes that happen to run do not enter it, so the order is the same after a restart and on any number of nodes.

A file is cut into blocks of neighbouring records, the unit of a ranged read. An epoch permutes the blocks and deals
their records, as one long line, to the logical workers: an equal stretch for each. A worker shuffles its stretch in
windows. So a process reads only its own workers' blocks, holds about one window of them, and two samples of one
identity, which lie side by side in the file, end up far apart. The first windows of a stretch are small and each twice
as long as the one before, so that the first batch needs a few MB and not a whole window. State is O(blocks), and any
position is found without replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.seeds import numpy_stream

FIRST_WINDOW_BYTES = 16 << 20
SMALL_WINDOW_BYTES = 64 << 20  # a window that is read in a moment need not grow to its size


@dataclass(frozen=True)
class SampleOrder:
    """The order of a dataset's samples.

    Args:
        num_samples: N, images of the dataset.
        logical_workers: L, streams that are read side by side.
        block_records: neighbouring records that are fetched together; 1 gives a uniform permutation.
        window_records: records that one worker shuffles together.
        first_window: records of a stretch's first window; 0: windows do not grow.
        shuffle: False leaves the file's order.
    """

    num_samples: int
    logical_workers: int
    block_records: int
    window_records: int
    seed: int = 0
    shuffle: bool = True
    first_window: int = 0

    @property
    def samples_per_worker(self) -> int:
        """Samples of one logical worker in an epoch; N mod L samples, other ones each epoch, are left out."""
        return self.num_samples // self.logical_workers

    @property
    def _growing(self) -> tuple[int, int]:
        """How many windows are shorter than the rest, and the records in all of them."""
        first = self.first_window
        if not 0 < first < self.window_records:
            return 0, 0
        count = (-(-self.window_records // first) - 1).bit_length()  # the least k with first * 2**k >= window_records
        return count, first * ((1 << count) - 1)

    def window_start(self, number: int) -> int:
        """Where a window begins in its worker's stretch; for the number behind the last one, where the stretch ends."""
        count, records = self._growing
        start = self.first_window * ((1 << number) - 1) if number < count else records
        start += max(0, number - count) * self.window_records
        return min(start, self.samples_per_worker)

    def window_at(self, offset: int) -> int:
        """Number of the window that holds a sample of the stretch."""
        count, records = self._growing
        if offset < records:
            return (offset // self.first_window + 1).bit_length() - 1
        return count + (offset - records) // self.window_records

    def window_count(self) -> int:
        """Windows of one logical worker in an epoch."""
        return self.window_at(self.samples_per_worker - 1) + 1 if self.samples_per_worker else 0

    def window(self, epoch: int, worker: int, number: int) -> NDArray[np.int64]:
        """Sample positions of one window in training order, int64 [up to window_records]."""
        samples = _join(self.pieces(epoch, worker, number))
        if self.shuffle:
            numpy_stream(self.seed, "order.window", epoch, worker, number).shuffle(samples)
        return samples

    def pieces(self, epoch: int, worker: int, number: int) -> NDArray[np.int64]:
        """The blocks of a window, cut where they reach beyond it: half-open ranges of positions, int64 [pieces, 2]."""
        base = worker * self.samples_per_worker
        start, stop = base + self.window_start(number), base + self.window_start(number + 1)
        blocks, ends = _permuted_blocks(self, epoch)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        begins = blocks[first : last + 1] * self.block_records
        pieces = np.stack([begins, np.minimum(begins + self.block_records, self.num_samples)], axis=1)
        if len(pieces):
            # The line's place of the last piece's end, before the first piece is cut.
            pieces[-1, 1] -= int(ends[min(last, len(ends) - 1)]) - stop
            pieces[0, 0] += start - (int(ends[first - 1]) if first else 0)
        return pieces[pieces[:, 1] > pieces[:, 0]]

    def slice(self, epoch: int, worker: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample positions ``start..stop`` of one worker's stretch in training order, int64 [stop - start]."""
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        numbers = range(self.window_at(start), self.window_at(stop - 1) + 1)
        windows = [self.window(epoch, worker, number) for number in numbers]
        first = start - self.window_start(numbers[0])
        return np.concatenate(windows)[first : first + stop - start]


def _join(pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """All positions of half-open ranges, one range after the other."""
    lengths = pieces[:, 1] - pieces[:, 0]
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(pieces[:, 0] - (ends - lengths), lengths)


@lru_cache(maxsize=2)
def _permuted_blocks(order: SampleOrder, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The epoch's permutation of the blocks, and where each ends in the line, both int64 [blocks]."""
    count = -(-order.num_samples // order.block_records)
    blocks = np.arange(count, dtype=np.int64)
    if order.shuffle:
        numpy_stream(order.seed, "order.blocks", epoch).shuffle(blocks)
    sizes = np.full(count, order.block_records, dtype=np.int64)
    sizes[blocks == count - 1] = order.num_samples - (count - 1) * order.block_records
    return blocks, np.cumsum(sizes)


def make_order(
    num_samples: int,
    record_bytes: float,
    logical_workers: int,
    *,
    seed: int,
    shuffle: str = "window",
    window: int = 0,
    window_bytes: int = 256 << 20,
    block_bytes: int = 512 << 10,
) -> SampleOrder:
    """Choose block and window for a dataset.

    Args:
        record_bytes: mean size of a record in bytes.
        shuffle: ``full`` (uniform permutation, one record a block), ``window`` or ``none``.
        window: records in the shuffle windows of all workers together; 0 means ``window_bytes`` for each worker.
        block_bytes: size of one ranged read. A small dataset gets smaller blocks, at least 256 for each worker:
            otherwise a worker would see few identities an epoch.
    """
    per_worker = max(1, num_samples // logical_workers)
    record_bytes = max(1.0, record_bytes)
    block = max(1, min(int(block_bytes / record_bytes), per_worker // 256))
    if shuffle == "full":
        return SampleOrder(num_samples, logical_workers, 1, per_worker, seed)
    wanted = window // logical_workers if window else int(window_bytes / record_bytes)
    window_records = min(per_worker, max(1, wanted))
    first = min(window_records, max(8 * block, int(FIRST_WINDOW_BYTES / record_bytes)))
    if window_records * record_bytes <= SMALL_WINDOW_BYTES:
        first = 0
    return SampleOrder(num_samples, logical_workers, block, window_records, seed, shuffle != "none", first)


def expected_pairs(order: SampleOrder, batch_size: int, num_classes: int) -> tuple[float, float]:
    """Same-identity pairs to expect in a global batch, by this order and by a uniform shuffle; means over an epoch.

    Identities are taken as runs of m = N / C neighbouring records. Two records at distance d < m lie in one block with
    probability max(0, 1 - d / block), and are then trained together as ``_meeting`` says. Else they meet as any two
    records do, with probability G / N. There are C (m - d) such pairs and N / G steps.

    Args:
        batch_size: B, samples of one logical worker in a step; G = B times the workers.
        num_classes: C.
    """
    total, run = order.num_samples, order.num_samples / max(1, num_classes)
    batch = batch_size * order.logical_workers
    uniform = batch * (batch - 1) / 2 * max(0.0, run - 1) / max(1, total - 1)
    if not order.shuffle or run <= 1:
        return uniform, uniform
    distance = np.arange(1, max(2, int(np.ceil(min(run, order.block_records)))))
    pairs = num_classes * np.maximum(0.0, run - distance) * np.maximum(0.0, 1 - distance / order.block_records)
    meet = np.zeros(len(distance))
    for size, share in _window_shares(order):
        meet += share * _meeting(distance, size, batch_size)
    return uniform + float((pairs * np.maximum(0.0, meet - batch / total)).sum() * batch / total), uniform


def _window_shares(order: SampleOrder) -> list[tuple[int, float]]:
    """Sizes of the windows of a stretch, and the share of its samples that lie in windows of that size."""
    stretch, (count, records) = order.samples_per_worker, order._growing
    sizes = [order.window_start(number + 1) - order.window_start(number) for number in range(count)]
    full, rest = divmod(max(0, stretch - records), order.window_records)
    held = [(size, size) for size in (*sizes, rest)] + [(order.window_records, full * order.window_records)]
    return [(size, samples / stretch) for size, samples in held if samples]


def _meeting(distance: NDArray[np.int64], window: int, batch: int) -> NDArray[np.float64]:
    """Probability that two records, ``distance`` apart in one block, are trained in one step of their worker.

    A window of W records is shuffled and cut into batches of B wherever they happen to begin: two places at distance x
    are in one batch with probability max(0, 1 - x / B), and x of two in one window has the density 2 (1 - x / W) / W.
    That gives (B / W) (1 - B / 3 W) for W >= B; the two lie in one window with probability 1 - d / W. Windows shorter
    than a batch leave them about as far apart as they were, or W / 3.
    """
    if window < batch:
        return np.maximum(0.0, 1 - np.maximum(distance, window / 3) / batch)
    return np.maximum(0.0, 1 - distance / window) * batch / window * (1 - batch / window / 3)
