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
from app.data.window import WindowStream

MIN_SAMPLES_FOR_SHARE = 1000
FETCHES = 8  # blocks that one process asks for at a time


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
        self.order = order
        self._config = config
        self._augment = AUGMENTATIONS[config.augment]
        self._decoders = ThreadPoolExecutor(max(1, config.threads), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self.bad_records = 0
        self.samples_read = 0
        self._resized = False

    @property
    def batch_size(self) -> int:
        """B, samples of one logical worker in a step."""
        return self._config.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.order.samples_per_worker // self._config.batch_size

    def steps(self, epoch: int, first: int, workers: Sequence[int]) -> Iterator[list[Batch]]:
        """The steps ``first``.. of an epoch: a list of one batch for each of ``workers``.

        Raises:
            RecordError: too many records are unreadable, or a label is out of range.
        """
        start = first * self._config.batch_size
        streams = {w: WindowStream(self._source, self.order, epoch, w, self._fetchers, start) for w in workers}
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
            for stream in streams.values():
                stream.close()

    def close(self) -> None:
        """Stop the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    def _make_batch(self, stream: WindowStream, epoch: int, step: int) -> Batch:
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
