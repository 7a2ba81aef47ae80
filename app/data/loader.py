"""Micro-batches for the logical workers of one process, decoded ahead by threads.

The state of a loader is the number of the step: everything else follows from the ``SampleOrder``.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.augment import AUGMENTATIONS, sample_generator
from app.data.decode import decode_image, resize
from app.data.order import SampleOrder
from app.data.recordio import RecordError
from app.data.source import Source

MIN_SAMPLES_FOR_SHARE = 1000


@dataclass(frozen=True)
class Batch:
    """One micro-batch: ``images`` uint8 [B, 3, H, W], ``labels`` int64 [B], ``positions`` int64 [B] in the dataset."""

    images: Tensor
    labels: Tensor
    positions: Tensor


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made; see ``DataConfig`` for the fields."""

    batch_size: int
    image_size: int
    num_classes: int
    seed: int
    augment: str = "flip"
    resize: str = "warn"
    threads: int = 4
    prefetch: int = 4
    max_bad_share: float = 0.001


class Loader:
    """Yields, step by step, one ``Batch`` for each of this process's logical workers."""

    def __init__(self, source: Source, order: SampleOrder, config: LoaderConfig) -> None:
        self._source = source
        self._order = order
        self._config = config
        self._augment = AUGMENTATIONS[config.augment]
        self._decoders = ThreadPoolExecutor(max(1, config.threads), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(2, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self.bad_records = 0
        self.samples_read = 0
        self._resized = False

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self._order.samples_per_worker // self._config.batch_size

    def steps(self, epoch: int, first: int, workers: Sequence[int]) -> Iterator[list[Batch]]:
        """The steps ``first``.. of an epoch: a list of one batch for each of ``workers``.

        Raises:
            RecordError: too many records are unreadable, or a label is out of range.
        """
        streams = {worker: _Stream(self._source, self._order, epoch, worker, self._fetchers) for worker in workers}
        specs = ((step, worker) for step in range(first, self.steps_per_epoch) for worker in workers)
        pending: deque[Future[Batch]] = deque()
        batches: list[Batch] = []
        ahead = max(1, self._config.prefetch, len(workers))
        try:
            for step, worker in specs:
                pending.append(self._decoders.submit(self._make_batch, streams[worker], epoch, step))
                if len(pending) < ahead:
                    continue
                batches.append(pending.popleft().result())
                if len(batches) == len(workers):
                    yield batches
                    batches = []
            while pending:
                batches.append(pending.popleft().result())
                if len(batches) == len(workers):
                    yield batches
                    batches = []
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _make_batch(self, stream: _Stream, epoch: int, step: int) -> Batch:
        config = self._config
        start = step * config.batch_size
        positions, records = stream.read(start, start + config.batch_size)
        size = config.image_size
        images = np.zeros((config.batch_size, 3, size, size), dtype=np.uint8)
        labels = np.zeros(config.batch_size, dtype=np.int64)
        good: list[int] = []
        for i, (position, record) in enumerate(zip(positions.tolist(), records, strict=True)):
            try:
                labels[i], image = self._decode(position, record)
            except RecordError as error:
                self._count_bad(error)
                continue
            image = self._augment(image, sample_generator(config.seed, epoch, position))
            images[i] = image.transpose(2, 0, 1)
            good.append(i)
        if not good:
            raise RecordError(f"{self._source.describe(int(positions[0]))} and all others of its batch are unreadable")
        for i in sorted(set(range(config.batch_size)) - set(good)):
            # A copy of a good sample keeps the batch's size, and so the order of all later ones.
            images[i], labels[i], positions[i] = images[good[0]], labels[good[0]], positions[good[0]]
        with self._lock:
            self.samples_read += config.batch_size
        return Batch(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(positions))

    def _decode(self, position: int, record: bytes) -> tuple[int, NDArray[np.uint8]]:
        config = self._config
        label, encoded = self._source.parse(position, record)
        try:
            image = decode_image(encoded) if isinstance(encoded, bytes) else encoded
        except RecordError as error:
            raise RecordError(f"{self._source.describe(position)}: {error}") from error
        if not (0 <= label < config.num_classes and label == int(label)):
            raise MisfitError(
                f"{self._source.describe(position)}: label {label:g} is outside 0..{config.num_classes - 1} or no "
                "whole number: correct data.num_classes or the dataset"
            )
        if image.shape[:2] != (config.image_size, config.image_size):
            self._report_size(position, image)
            image = resize(image, config.image_size, config.image_size)
        return int(label), image

    def _report_size(self, position: int, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        text = f"{self._source.describe(position)}: the image is {width}x{height}, not {self._config.image_size} square"
        if self._config.resize == "refuse":
            raise MisfitError(f"{text}; prepare the dataset at that size or set data.resize = warn")
        if not self._resized:
            self._resized = True
            warnings.warn(f"{text}; it and all like it are resized", stacklevel=2)

    def _count_bad(self, error: RecordError) -> None:
        if isinstance(error, MisfitError):
            raise error
        with self._lock:
            self.bad_records += 1
            bad, read = self.bad_records, max(self.samples_read, MIN_SAMPLES_FOR_SHARE)
        warnings.warn(f"skipped: {error}", stacklevel=2)
        if bad > self._config.max_bad_share * read:
            raise RecordError(
                f"{bad} unreadable records among the first {read}: more than data.max_bad_share = "
                f"{self._config.max_bad_share}; the last one: {error}"
            ) from error


class MisfitError(RecordError):
    """A record that is sound, but does not fit the run: never skipped."""


class _Stream:
    """The undecoded records of one logical worker in one epoch; holds the windows that are being read."""

    def __init__(self, source: Source, order: SampleOrder, epoch: int, worker: int, pool: ThreadPoolExecutor) -> None:
        self._source, self._order, self._epoch, self._worker, self._pool = source, order, epoch, worker, pool
        self._windows: dict[int, Future[tuple[NDArray[np.int64], list[bytes]]]] = {}
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> tuple[NDArray[np.int64], list[bytes]]:
        """Positions and records of the samples ``start..stop`` of the stretch."""
        size = self._order.window_records
        positions: list[NDArray[np.int64]] = []
        records: list[bytes] = []
        for number in range(start // size, -(-stop // size)):
            window_positions, window_records = self._window(number).result()
            first, last = max(0, start - number * size), min(len(window_records), stop - number * size)
            positions.append(window_positions[first:last])
            records += window_records[first:last]
            if last > size // 2:
                self._window(number + 1)  # fetched while the second half is trained
        return np.concatenate(positions), records

    def _window(self, number: int) -> Future[tuple[NDArray[np.int64], list[bytes]]]:
        with self._lock:
            if number not in self._windows and number < self._order.window_count():
                self._windows[number] = self._pool.submit(self._fetch, number)
                for old in [n for n in self._windows if n < number - 1]:
                    del self._windows[old]
            return self._windows.get(number) or Future()

    def _fetch(self, number: int) -> tuple[NDArray[np.int64], list[bytes]]:
        positions = self._order.window(self._epoch, self._worker, number)
        return positions, self._source.read(positions)
