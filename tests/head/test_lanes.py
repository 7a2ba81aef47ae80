"""Blocks on several threads: the same figures as the plain formula, whatever their number."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.head.lanes import in_lanes, join_sums
from tests.head.oracle import Case
from tests.head.test_partial_fc import compare, train

CPU = torch.device("cpu")
CASES = [
    Case(classes=700),
    Case(classes=700, filtering=0.2),
    Case(classes=700, rate=0.6),
    Case(classes=700, rate=0.6, update="dense"),
    Case(classes=700, optimizer="adamw", rate=0.6, update="dense"),
    Case(classes=700, scale=200.0),  # each thread has a running maximum of its own
    Case(classes=700, sub_centres=2),
    Case(classes=700, margin=("curricular", 1.0, 0.5, 0.0)),
]


@pytest.fixture(params=[1, 2, 3, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_number_of_threads_gives_the_plain_formula(case: Case, threads: int) -> None:
    compare(case, [train(case, 0, 1, 2, block_bytes=1)], 2, 1e-5)  # blocks of 128 classes
    assert torch.get_num_threads() == threads


def test_every_block_is_in_one_lane_and_lanes_run_beside_each_other(threads: int) -> None:
    together = threading.Barrier(threads)

    def work(blocks: Sequence[int]) -> tuple[list[int], int, bool]:
        together.wait(60)  # passes only when all lanes are here
        return list(blocks), torch.get_num_threads(), torch.is_grad_enabled()

    found = in_lanes(work, list(range(11)), CPU)
    assert [blocks for blocks, _, _ in found] == [list(range(lane, 11, threads)) for lane in range(threads)]
    assert all(each == 1 and not grad for _, each, grad in found)
    assert in_lanes(list, [7], CPU) == [[7]]
    assert in_lanes(list, [], CPU) == [[]]


def test_an_error_in_a_lane_is_raised_and_threads_are_as_before(threads: int) -> None:
    def work(blocks: Sequence[int]) -> None:
        if 3 in blocks:
            raise ValueError("block 3")

    with pytest.raises(ValueError, match="block 3"):
        in_lanes(work, list(range(5)), CPU)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@given(
    logits=st.lists(st.lists(st.floats(-80, 80), min_size=2, max_size=2), min_size=1, max_size=9),
    lanes=st.integers(1, 4),
)
def test_sums_of_parts_join_to_the_sum_of_all(logits: list[list[float]], lanes: int) -> None:
    values = torch.tensor(logits, dtype=torch.float64)  # [K, N]
    vectors = torch.linspace(-1, 1, 3 * len(values), dtype=torch.float64).view(-1, 3)

    def summed(some: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lse = some.logsumexp(0) if len(some) else torch.full((2,), -torch.inf, dtype=torch.float64)
        return lse, some.softmax(0).T @ towards

    parts = [summed(values[lane::lanes], vectors[lane::lanes]) for lane in range(lanes)]
    for found, expected in zip(join_sums(parts), summed(values, vectors), strict=True):
        torch.testing.assert_close(found, expected)


def test_where_no_class_is_active_the_sum_is_nothing_and_nan_shows() -> None:
    nothing = (torch.tensor([-torch.inf]), torch.zeros(1, 2))
    lse, gradient = join_sums([nothing, nothing])
    assert lse.item() == -torch.inf
    assert gradient.tolist() == [[0.0, 0.0]]
    bad = (torch.tensor([torch.nan]), torch.full((1, 2), torch.nan))
    assert join_sums([nothing, bad])[0].isnan().all()
