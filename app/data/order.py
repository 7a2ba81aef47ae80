"""Which sample is trained when: a pure function of seed, epoch and the number of logical workers.

The processes that happen to run do not enter it, so the order is the same after a restart and on any number of nodes.

A file is cut into blocks of neighbouring records, the unit of a ranged read. An epoch permutes the blocks and deals
their records, as one long line, to the logical workers: an equal stretch for each. A worker shuffles its stretch in
windows. So a process reads only its own workers' blocks, holds one window of them, and two samples of one identity,
which lie side by side in the file, end up far apart. State is O(blocks), and any position is found without replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.seeds import numpy_stream


@dataclass(frozen=True)
class SampleOrder:
    """The order of a dataset's samples.

    Args:
        num_samples: N, images of the dataset.
        logical_workers: L, streams that are read side by side.
        block_records: neighbouring records that are fetched together; 1 gives a uniform permutation.
        window_records: records that one worker shuffles together.
        shuffle: False leaves the file's order.
    """

    num_samples: int
    logical_workers: int
    block_records: int
    window_records: int
    seed: int = 0
    shuffle: bool = True

    @property
    def samples_per_worker(self) -> int:
        """Samples of one logical worker in an epoch; N mod L samples, other ones each epoch, are left out."""
        return self.num_samples // self.logical_workers

    def window_count(self) -> int:
        """Windows of one logical worker in an epoch."""
        return -(-self.samples_per_worker // self.window_records)

    def window(self, epoch: int, worker: int, number: int) -> NDArray[np.int64]:
        """Sample positions of one window in training order, int64 [window_records] (the last one may be shorter)."""
        stretch = self.samples_per_worker
        start = worker * stretch + number * self.window_records
        stop = min(start + self.window_records, (worker + 1) * stretch)
        samples = self._line(epoch, start, stop)
        if self.shuffle:
            numpy_stream(self.seed, "order.window", epoch, worker, number).shuffle(samples)
        return samples

    def slice(self, epoch: int, worker: int, start: int, stop: int) -> NDArray[np.int64]:
        """Sample positions ``start..stop`` of one worker's stretch in training order, int64 [stop - start]."""
        numbers = range(start // self.window_records, -(-stop // self.window_records))
        windows = [self.window(epoch, worker, number) for number in numbers]
        if not windows:
            return np.empty(0, dtype=np.int64)
        first = start - numbers[0] * self.window_records
        return np.concatenate(windows)[first : first + stop - start]

    def _line(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Samples ``start..stop`` of the line of permuted blocks."""
        blocks, ends = _permuted_blocks(self, epoch)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        pieces = [self._block(int(block)) for block in blocks[first : last + 1]]
        begin = start - (int(ends[first - 1]) if first else 0)
        return np.concatenate(pieces)[begin : begin + stop - start]

    def _block(self, block: int) -> NDArray[np.int64]:
        start = block * self.block_records
        return np.arange(start, min(start + self.block_records, self.num_samples), dtype=np.int64)


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
    block_bytes: int = 8 << 20,
) -> SampleOrder:
    """Choose block and window for a dataset.

    Args:
        record_bytes: mean size of a record in bytes.
        shuffle: ``full`` (uniform permutation, one record a block), ``window`` or ``none``.
        window: records in the shuffle windows of all workers together; 0 means 4 million.
        block_bytes: size of one ranged read. A small dataset gets smaller blocks, at least 64 for each worker:
            otherwise a worker would see few identities an epoch.
    """
    per_worker = max(1, num_samples // logical_workers)
    block = max(1, min(int(block_bytes / max(1.0, record_bytes)), per_worker // 64))
    if shuffle == "full":
        block, window_records = 1, per_worker
    else:
        window_records = min(per_worker, max(1, (window or 4_000_000) // logical_workers))
    return SampleOrder(num_samples, logical_workers, block, window_records, seed, shuffle != "none")
