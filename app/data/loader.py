"""Micro-batches for the logical workers of one process, decoded ahead by threads.

The state of a loader is the number of the step: everything else follows from the ``SampleOrder``.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.data.augment import AUGMENTATIONS, DRAWN, DRAWS, draw_batch, sample_generator, strong_augmentation
from app.data.buffers import HostBuffers
from app.data.config import DataConfig
from app.data.decode import decode_into, resize
from app.data.order import SampleOrder
from app.data.recordio import RecordError
from app.data.source import Sample, Source
from app.data.window import WindowStream
from app.device import BatchCopies

MIN_SAMPLES_FOR_SHARE = 1000
FETCHES = 8  # blocks that one process asks for at a time


@dataclass(frozen=True)
class Batch:
    """One micro-batch: ``images`` uint8 [B, 3, H, W], ``labels`` int64 [B], ``positions`` int64 [B] in the dataset.

    The images lie in memory as [B, H, W, 3], torch's channels_last, and are as decoded; ``augmented`` transforms them
    by ``draws`` [B, DRAWS] on whatever device they were copied to. ``there``: what the device must wait for where the
    copy was begun ahead of need, see ``BatchCopies``; None: they are in the host's memory. ``bad``: unreadable records
    in whose place good ones stand.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    draws: Tensor | None = None
    augment: str = "none"
    there: Any = None
    bad: int = 0

    def augmented(self, images: Tensor) -> Tensor:
        """Training transforms of ``images``, which are this batch's on some device, in place; uint8 [B, 3, H, W]."""
        return images if self.draws is None else AUGMENTATIONS[self.augment](images, self.draws)


class Loader:
    """Yields, step by step, one ``Batch`` for each of this process's logical workers.

    Args:
        config: the section ``[data]`` of the recipe.
        batch_size: B, samples of one logical worker in a step.
        num_classes: of the run; labels must be below it.
        copies: sends batches to the device as soon as they are decoded.
    """

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        config: DataConfig,
        *,
        batch_size: int,
        num_classes: int,
        copies: BatchCopies | None = None,
    ) -> None:
        self._source = source
        self._copies = copies
        self._buffers = HostBuffers()
        self.order = order
        self.batch_size, self.num_classes = batch_size, num_classes
        self._config = config
        self._decoders = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self.bad_records = 0  # of this process since its start, in batches that are not yet trained too
        self.bad_before = 0  # all others of the run: of earlier starts and of other processes; whoever trains tells
        self.samples_read = 0
        self.decode_seconds = 0.0  # of all threads together
        self._resized = False
        self._named: set[int] = set()  # positions of bad records that were warned about

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.order.samples_per_worker // self.batch_size

    def steps(self, epoch: int, first: int, workers: Sequence[int], count: int | None = None) -> Iterator[list[Batch]]:
        """The steps ``first``.. of an epoch: a list of one batch for each of ``workers``.

        Args:
            count: how many, over the ends of epochs, where the next one is read ahead as any other batch is. None: to
                the end of this epoch.

        Raises:
            RecordError: too many records are unreadable, or a label is out of range.
        """
        begin = epoch * self.steps_per_epoch + first
        numbers = range(begin, begin + (self.steps_per_epoch - first if count is None else count))
        specs = ((number, worker) for number in numbers for worker in workers)
        streams: dict[tuple[int, int], WindowStream] = {}
        pending: deque[Future[Batch]] = deque()
        ahead = max(1, self._config.prefetch, len(workers))

        def submit() -> None:
            for number, worker in islice(specs, ahead - len(pending)):
                place, step = (number // self.steps_per_epoch, worker), number % self.steps_per_epoch
                if place not in streams:
                    start = first * self.batch_size if place[0] == epoch else 0
                    streams[place] = WindowStream(self._source, self.order, *place, self._fetchers, start)
                pending.append(self._decoders.submit(self._make_batch, streams[place], place[0], step))

        try:
            submit()
            for number in numbers:
                batches = [pending.popleft().result() for _ in workers]
                for place in [place for place in streams if place[0] < number // self.steps_per_epoch]:
                    streams.pop(place).close()
                submit()
                yield batches
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
        config, batch_size, size = self._config, self.batch_size, self._config.image_size
        start = step * batch_size
        positions, records = stream.read(start, start + batch_size)
        started = time.perf_counter()
        pixels = self._new_buffer((batch_size, size, size, 3))
        images, places = pixels.numpy(), positions.tolist()
        samples = self._parse(places, records, epoch, step)
        good = self._decode(samples, images, places, epoch, step)
        if not good:
            raise RecordError(f"{self._source.describe(places[0])} and all others of its batch are unreadable")
        labels = self._classes(samples, good, places)
        if config.augment == "strong":
            for i in good:
                images[i] = strong_augmentation(images[i], sample_generator(self.order.seed, epoch, places[i]))
        for i in sorted(set(range(batch_size)) - set(good)):
            # A copy of a good sample keeps the batch's size, and so the order of all later ones.
            images[i], labels[i], positions[i] = images[good[0]], labels[good[0]], positions[good[0]]
        with self._lock:
            self.samples_read += batch_size
            self.decode_seconds += time.perf_counter() - started
        there = None
        if self._copies is not None:
            pixels, there = self._copies.send(pixels)
        return Batch(
            pixels.permute(0, 3, 1, 2),
            torch.from_numpy(labels),
            torch.from_numpy(positions),
            draw_batch(self.order.seed, epoch, positions, DRAWN.get(config.augment, DRAWS)),
            config.augment,
            there,
            batch_size - len(good),
        )

    def _new_buffer(self, shape: tuple[int, ...]) -> Tensor:
        return self._buffers.take(shape) if self._copies is None else self._copies.buffer(shape)

    def figures(self) -> dict[str, float]:
        """What reading and decoding cost this process so far."""
        rate = self.samples_read / max(1e-9, self.decode_seconds)
        return {"decoded_per_thread_second": rate, **self._source.figures()}

    def _parse(self, positions: list[int], records: list[bytes], epoch: int, step: int) -> list[Sample | None]:
        """The samples of a batch; None for a record that is damaged."""
        samples: list[Sample | None] = []
        for position, record in zip(positions, records, strict=True):
            try:
                samples.append(self._source.parse(position, record))
            except RecordError as error:
                samples.append(None)
                self._count_bad(position, error, epoch, step)
        return samples

    def _decode(
        self, samples: list[Sample | None], images: NDArray[np.uint8], positions: list[int], epoch: int, step: int
    ) -> list[int]:
        """Decode samples into their places of ``images``, [B, H, W, 3]; which of them are good.

        A loop of its own with little in it: the decoder's code stays in the processor's cache.
        """
        good: list[int] = []
        for i, (sample, out) in enumerate(zip(samples, images, strict=True)):
            if sample is None:
                continue
            try:
                image = decode_into(sample.image, out) if isinstance(sample.image, bytes) else sample.image
            except RecordError as error:
                located = RecordError(f"{self._source.describe(positions[i])}: {error}")
                located.__cause__ = error
                self._count_bad(positions[i], located, epoch, step)
                continue
            if image is not None:
                if image.shape != out.shape:
                    self._report_size(positions[i], image)
                    image = resize(image, *out.shape[:2])
                out[:] = image
            good.append(i)
        return good

    def _classes(self, samples: list[Sample | None], good: list[int], positions: list[int]) -> NDArray[np.int64]:
        """Labels int64 [B]; 0 for what is no good sample."""
        classes = np.zeros(len(samples), dtype=np.int64)
        labels = np.array([sample.label for sample in (samples[i] for i in good) if sample is not None])
        sound = (labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels))
        if not sound.all():
            wrong = int(np.argmin(sound))
            raise MisfitError(
                f"{self._source.describe(positions[good[wrong]])}: label {labels[wrong]:g} is outside "
                f"0..{self.num_classes - 1} or no whole number: correct data.num_classes or the dataset"
            )
        classes[good] = labels
        return classes

    def _report_size(self, position: int, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        text = f"{self._source.describe(position)}: the image is {width}x{height}, not {self._config.image_size} square"
        if self._config.resize == "refuse":
            raise MisfitError(f"{text}; prepare the dataset at that size or set data.resize = warn")
        if not self._resized:
            self._resized = True
            warnings.warn(f"{text}; it and all like it are resized", stacklevel=2)

    def _count_bad(self, position: int, error: RecordError, epoch: int, step: int) -> None:
        """The share is one of the whole run's samples, of all processes and starts, not of what this one read."""
        if isinstance(error, MisfitError):
            raise error
        with self._lock:
            self.bad_records += 1
            bad = self.bad_before + self.bad_records
            known = position in self._named
            self._named.add(position)
        steps = epoch * self.steps_per_epoch + step + 1
        read = max(MIN_SAMPLES_FOR_SHARE, steps * self.batch_size * self.order.logical_workers)
        if not known:
            warnings.warn(f"skipped: {error}", stacklevel=2)
        if bad > self._config.max_bad_share * read:
            raise RecordError(
                f"{bad} unreadable records among {read}: more than data.max_bad_share = "
                f"{self._config.max_bad_share}; the last one: {error}"
            ) from error


class MisfitError(RecordError):
    """A record that is sound, but does not fit the run: never skipped."""
