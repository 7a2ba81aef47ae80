"""Sums in the order of logical workers: the left-to-right sum, bit for bit, from any number of real processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.training import ordered_sum
from app.training.ordered_sum import sum_in_order
from app.training.plan import ElasticPlan
from tests.ranks import run_ranks

WORKERS, SIZE = 5, 1003


def parts(workers: int = WORKERS, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    # Of very different sizes: another order of additions shows.
    return torch.randn(workers, size, generator=generator) * 10.0 ** torch.arange(workers)[:, None]


def expected(values: Tensor) -> Tensor:
    total = values[0].clone()
    for part in values[1:]:
        total = total + part
    return total


def on_a_rank(rank: int, world: int) -> Tensor:
    ordered_sum._SLICE = 100  # several exchanges, the last one short
    plan = ElasticPlan(WORKERS, world)
    return sum_in_order(parts()[plan.share(rank)], plan)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_all_ranks_get_the_sum_in_order(world: int) -> None:
    found = run_ranks(on_a_rank, world)
    assert not torch.equal(parts().flip(0).sum(0), expected(parts()))
    for total in found:
        assert torch.equal(total, expected(parts()))


@given(st.integers(1, 6), st.integers(1, 50))
def test_one_process_adds_from_the_left(workers: int, size: int) -> None:
    assert torch.equal(sum_in_order(parts(workers, size), ElasticPlan(workers, 1)), expected(parts(workers, size)))
