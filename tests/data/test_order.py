"""The sample order: every sample once, the same from any position, far apart what lies together."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.order import SampleOrder, expected_pairs, make_order
from app.data.source import Source
from app.data.window import WindowStream
from app.training.plan import ElasticPlan

_unhurried = settings(deadline=None, max_examples=60)  # other tests share the processor
_orders = st.builds(
    SampleOrder,
    num_samples=st.integers(8, 300),
    logical_workers=st.integers(1, 8),
    block_records=st.integers(1, 40),
    window_records=st.integers(1, 50),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
    first_window=st.integers(0, 60),
)


def _epoch(order: SampleOrder, epoch: int) -> list[np.ndarray]:
    return [order.slice(epoch, w, 0, order.samples_per_worker) for w in range(order.logical_workers)]


@_unhurried
@given(_orders, st.integers(0, 3))
def test_an_epoch_trains_each_sample_at_most_once_and_leaves_out_fewer_than_the_workers(
    order: SampleOrder, epoch: int
) -> None:
    seen = np.concatenate(_epoch(order, epoch))
    assert len(np.unique(seen)) == len(seen)
    assert 0 <= order.num_samples - len(seen) < order.logical_workers
    assert seen.min() >= 0
    assert seen.max() < order.num_samples


@_unhurried
@given(_orders, st.data())
def test_any_slice_is_found_without_replay(order: SampleOrder, data: st.DataObject) -> None:
    worker = data.draw(st.integers(0, order.logical_workers - 1))
    whole = _epoch(order, 1)[worker]
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert order.slice(1, worker, start, stop).tolist() == whole[start:stop].tolist()


def test_epochs_and_seeds_differ_and_no_shuffle_is_the_files_order() -> None:
    orders = [SampleOrder(100, 1, 4, 50, seed) for seed in (0, 1)]
    epochs = [tuple(o.slice(e, 0, 0, 100)) for o in orders for e in (0, 1)]
    assert len(set(epochs)) == 4
    assert SampleOrder(100, 2, 4, 50, 0, shuffle=False).slice(3, 1, 0, 50).tolist() == list(range(50, 100))


def test_a_worker_touches_only_its_own_blocks() -> None:
    order = make_order(100_000, 8_000.0, 4, seed=0)
    for worker in range(4):
        blocks = np.unique(order.slice(0, worker, 0, order.samples_per_worker) // order.block_records)
        assert len(blocks) <= order.samples_per_worker // order.block_records + 3


def test_neighbours_in_the_file_are_spread() -> None:
    # 1,000 identities of 50 neighbouring images; the expected pairs of one identity in a uniform batch of 1,024:
    uniform = 1024 * 1023 / 2 * 49 / 49_999
    order = make_order(50_000, 8_000.0, 8, seed=0)
    streams = np.stack(_epoch(order, 0))
    pairs = []
    for step in range(streams.shape[1] // 128):
        _, counts = np.unique(streams[:, step * 128 : (step + 1) * 128] // 50, return_counts=True)
        pairs.append((counts * (counts - 1) // 2).sum())
    assert 0.9 * uniform < np.mean(pairs) < 1.2 * uniform


@_unhurried
@given(_orders)
def test_windows_tile_the_stretch_and_grow_to_their_size(order: SampleOrder) -> None:
    starts = [order.window_start(number) for number in range(order.window_count() + 1)]
    assert starts[0] == 0
    assert starts[-1] == order.samples_per_worker
    sizes = np.diff(starts)
    assert (sizes > 0).all()
    assert sizes.max() <= order.window_records
    for number, (start, stop) in enumerate(pairwise(starts)):
        assert {order.window_at(offset) for offset in range(start, stop)} == {number}
    if 0 < order.first_window < order.window_records:
        grown = [min(order.first_window << k, order.window_records) for k in range(len(sizes))]
        assert sizes[:-1].tolist() == grown[:-1]


@_unhurried
@given(_orders, st.integers(1, 9), st.data())
def test_processes_and_stops_do_not_enter_the_order(order: SampleOrder, batch: int, data: st.DataObject) -> None:
    """Any number of processes, started at any step and stopped at any other, trains the sequence of one."""
    steps = order.samples_per_worker // batch
    whole = [
        [order.slice(0, w, s * batch, (s + 1) * batch) for w in range(order.logical_workers)] for s in range(steps)
    ]
    step = 0
    while step < steps:
        stop = data.draw(st.integers(step + 1, steps))
        world = data.draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8) if n <= order.logical_workers]))
        shares = [ElasticPlan(order.logical_workers, world).share(rank) for rank in range(world)]
        with ThreadPoolExecutor(2) as pool:
            streams = [
                WindowStream(cast(Source, _Numbers()), order, 0, w, pool, step * batch)
                for share in shares
                for w in share
            ]
            for now in range(step, stop):
                read = [stream.read(now * batch, (now + 1) * batch) for stream in streams]
                assert [positions.tolist() for positions, _ in read] == [part.tolist() for part in whole[now]]
                assert [list(map(int, records)) for _, records in read] == [part.tolist() for part in whole[now]]
        step = stop


class _Numbers:
    """A source whose records are their positions."""

    def read(self, positions: np.ndarray) -> list[bytes]:
        return [str(position).encode() for position in positions.tolist()]


def test_memory_stays_below_one_and_a_half_windows_and_every_record_is_fetched_once() -> None:
    order = SampleOrder(40_000, 1, 20, 4000, first_window=100)
    held = most = fetched = 0

    class Counting(_Numbers):
        def read(self, positions: np.ndarray) -> list[bytes]:
            nonlocal held, most, fetched
            held, fetched = held + len(positions), fetched + len(positions)
            most = max(most, held)
            return super().read(positions)

    class Now:
        """A pool that does all it may at once: the worst case for memory."""

        def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(function(*arguments))
            return future

    stream = WindowStream(Counting(), order, 0, 0, Now())  # type: ignore[arg-type]
    stream.read(0, 50)
    assert fetched <= 100 + 200
    held -= 50
    for start in range(50, 40_000, 50):
        trained = len(stream.read(start, start + 50)[1])
        held -= trained
    assert (held, fetched) == (0, 40_000)
    assert most <= 1.5 * order.window_records


@pytest.mark.parametrize(("block", "window"), [(100, 2000), (10, 2000), (100, 25_000)])
def test_the_expected_pairs_are_those_of_the_order(block: int, window: int) -> None:
    order = SampleOrder(50_000, 2, block, window, seed=3)
    streams = np.stack(_epoch(order, 0)) // 48  # identities do not end where blocks do
    counted = []
    for step in range(streams.shape[1] // 64):
        _, counts = np.unique(streams[:, step * 64 : (step + 1) * 64], return_counts=True)
        counted.append((counts * (counts - 1) // 2).sum())
    pairs, uniform = expected_pairs(order, 64, 50_000 // 48)
    assert abs(np.mean(counted) - pairs) < 0.1 * pairs
    assert pairs > uniform * 0.95


def test_full_shuffle_is_uniform_in_blocks_of_one() -> None:
    order = make_order(1000, 8_000.0, 2, seed=0, shuffle="full")
    assert (order.block_records, order.window_records) == (1, 500)


def test_a_full_shuffle_of_one_worker_fixes_as_many_positions_as_a_uniform_one() -> None:
    # A uniform permutation of any length fixes one position on average, with variance 1. Were blocks and windows drawn
    # from one stream, the order would be a permutation applied twice, which fixes two.
    fixed = [
        int((make_order(200, 8_000.0, 1, seed=seed, shuffle="full").window(0, 0, 0) == np.arange(200)).sum())
        for seed in range(2000)
    ]
    assert abs(np.mean(fixed) - 1.0) < 5 / np.sqrt(2000)


def test_windows_shorter_than_a_batch_are_fetched_once_however_late_a_thread_is() -> None:
    order = SampleOrder(60, 1, 5, 5)
    asked = 0
    turns: list[Callable[[], Any]] = []

    class Later(Future[Any]):
        """Fetches when it is waited for; the first wait lasts while another thread reads the windows behind."""

        def __init__(self, fetch: Callable[[], Any]) -> None:
            super().__init__()
            self.fetch = fetch

        def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002
            if turns:
                turns.pop()()
            return self.fetch()

    class Pool:
        def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
            nonlocal asked
            asked += 1
            return Later(lambda: function(*arguments))

    stream = WindowStream(cast(Source, _Numbers()), order, 0, 0, Pool())  # type: ignore[arg-type]
    turns.append(lambda: stream.read(10, 30))
    for start, stop in ((0, 10), (30, 45), (45, 60)):
        positions, records = stream.read(start, stop)
        assert list(map(int, records)) == positions.tolist()
    assert asked == 12
