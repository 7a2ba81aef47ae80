"""What the start of a run says of its data, against the orders themselves: each figure is counted, none computed."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

from app.data.build import describe_order, make_loader
from app.data.config import DataConfig
from app.data.loader import Loader
from app.data.source import Sample, Source
from app.data.window import WindowStream

LINE = re.compile(
    r"data: (\d+) images of (\d+) classes, shuffled in windows of (\d+) records, blocks of (\d+): up to (\d+) MiB a "
    r"process; about ([\d.]+) same-identity pairs in a global batch, a uniform shuffle has ([\d.]+)$"
)


class Runs:
    """Identities of ``run`` neighbouring records of 7.6 kB, as insightface's files hold them; counts what it gave."""

    def __init__(self, length: int, run: int) -> None:
        self.url = self.tag = "runs"
        self.length, self.run, self.record_bytes = length, run, 7600.0
        self.num_classes = -(-length // run)
        self.given = 0

    def __len__(self) -> int:
        return self.length

    def read(self, positions: np.ndarray) -> list[bytes]:
        self.given += len(positions)
        return [b""] * len(positions)

    def parse(self, position: int, record: bytes) -> Sample:
        raise NotImplementedError

    def describe(self, position: int) -> str:
        return f"{self.url} {position}"

    def classes_without_image(self) -> list[int]:
        return []

    def figures(self) -> dict[str, float]:
        return {}


def pairs_of(steps: np.ndarray) -> float:
    """Mean over the rows of how many pairs of equal numbers a row has."""
    ordered = np.sort(steps, axis=1)
    ends = np.ones((len(ordered), 1), dtype=bool)
    changes = np.concatenate([ends, ordered[:, 1:] != ordered[:, :-1]], axis=1)
    counts = np.diff(np.append(np.flatnonzero(changes), ordered.size))
    return float((counts * (counts - 1) // 2).sum() / len(ordered))


def batches_of(loader: Loader, run: int) -> np.ndarray:
    """Identities in each global batch of two epochs, [steps, G]."""
    order, batch = loader.order, loader.batch_size
    length = loader.steps_per_epoch * batch
    epochs = [
        [order.slice(epoch, w, 0, length).reshape(-1, batch) // run for w in range(order.logical_workers)]
        for epoch in (0, 1)
    ]
    return np.concatenate([np.concatenate(streams, axis=1) for streams in epochs])


@pytest.mark.parametrize(
    ("length", "run", "workers", "batch", "options"),
    [
        (100_000, 45, 8, 128, {}),  # windows grow and never reach their size
        (150_000, 45, 2, 128, {}),
        (100_000, 20, 4, 64, {"window_mb": 64, "block_mb": 2}),
        (100_000, 45, 4, 128, {"window_mb": 16}),
        (50_000, 45, 4, 128, {"window_mb": 1}),  # hardly longer than a batch
        (50_000, 45, 4, 128, {"window_mb": 0.1}),  # shorter than one
        (50_000, 300, 4, 128, {"window": 40_000}),  # identities longer than a block
        (60_000, 3, 4, 64, {"window_mb": 2}),
        (9_000, 11, 2, 64, {}),
        (30_000, 45, 3, 64, {"shuffle": "full"}),
    ],
)
def test_the_pairs_and_the_uniform_ones_are_those_that_are_counted(
    length: int, run: int, workers: int, batch: int, options: dict[str, Any]
) -> None:
    source = Runs(length, run)
    loader = make_loader(
        source,
        DataConfig(**options),
        num_classes=source.num_classes,
        batch_size=batch,
        logical_workers=workers,
        seed=1,
    )
    said = LINE.match(describe_order(loader, source, source.num_classes, workers))
    loader.close()
    assert said is not None
    images, classes, window, block = map(int, said.groups()[:4])
    assert (images, classes) == (length, source.num_classes)
    assert (window, block) == (loader.order.window_records, loader.order.block_records)
    counted = batches_of(loader, run)
    shuffled = np.random.default_rng(0).permutation(counted.ravel()).reshape(counted.shape)
    for told, true in ((said[6], pairs_of(counted)), (said[7], pairs_of(shuffled))):
        assert abs(float(told) - true) < max(0.06 * true, 0.25)


class AtOnce:
    """A pool that does all it may at once: the worst case for memory."""

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


@pytest.mark.parametrize("workers", [1, 2])
def test_the_memory_is_what_windows_hold_at_most(workers: int) -> None:
    source = Runs(40_000, 48)
    config = DataConfig(window_mb=32)
    loader = make_loader(source, config, num_classes=source.num_classes, batch_size=64, logical_workers=workers, seed=0)
    said = LINE.match(describe_order(loader, source, source.num_classes, workers))
    loader.close()
    assert said is not None
    streams = [
        WindowStream(cast(Source, source), loader.order, 0, worker, cast(Any, AtOnce())) for worker in range(workers)
    ]
    trained = most = 0
    for step in range(loader.steps_per_epoch):
        for stream in streams:
            stream.read(64 * step, 64 * step + 64)
            most = max(most, source.given - trained)
            trained += 64
    assert 0.7 * int(said[5]) < most * source.record_bytes / 2**20 <= int(said[5]) + 1


def test_a_process_of_several_workers_holds_a_window_of_each() -> None:
    source = Runs(400_000, 48)
    loader = make_loader(source, DataConfig(), num_classes=source.num_classes, batch_size=64, logical_workers=6, seed=0)
    texts = [describe_order(loader, source, source.num_classes, own) for own in (1, 6)]
    loader.close()
    one, six = (int(cast(re.Match[str], LINE.match(text))[5]) for text in texts)
    assert (one, six) == (384, 2304)  # 1.5 times data.window_mb for each
