"""The sample order: every sample once, the same from any position, far apart what lies together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.data.order import SampleOrder, make_order

_orders = st.builds(
    SampleOrder,
    num_samples=st.integers(8, 300),
    logical_workers=st.integers(1, 8),
    block_records=st.integers(1, 40),
    window_records=st.integers(1, 50),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
)


def _epoch(order: SampleOrder, epoch: int) -> list[np.ndarray]:
    return [order.slice(epoch, w, 0, order.samples_per_worker) for w in range(order.logical_workers)]


@given(_orders, st.integers(0, 3))
def test_an_epoch_trains_each_sample_at_most_once_and_leaves_out_fewer_than_the_workers(
    order: SampleOrder, epoch: int
) -> None:
    seen = np.concatenate(_epoch(order, epoch))
    assert len(np.unique(seen)) == len(seen)
    assert 0 <= order.num_samples - len(seen) < order.logical_workers
    assert seen.min() >= 0
    assert seen.max() < order.num_samples


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
        assert len(blocks) <= order.samples_per_worker // order.block_records + 2


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
