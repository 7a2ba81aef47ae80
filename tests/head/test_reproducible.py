"""The reproducible head: the plain formula's figures, and the same bits from 1, 2 and 3 real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import ABSENT, HeadShape
from app.head.reproducible import ReproduciblePartialFC
from app.training.plan import ElasticPlan
from tests.head.oracle import SEED, Case, Oracle, start
from tests.head.test_partial_fc import CASES
from tests.ranks import run_ranks

STEPS, WORKERS = 3, 4


def train(case: Case, rank: int, world: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor, dict[str, Tensor]]:
    """Loss and gradient of the embeddings of each step (of this rank's workers), then centres and state."""
    plan = ElasticPlan(WORKERS, world)
    shares = [plan.share(other) for other in range(world)]
    head = ReproduciblePartialFC(case.config(), HeadShape(case.size, case.classes, WORKERS, SEED), "cpu", shares)
    start(head, case)
    optimizer = CentreOptimizer(head, case.optimizer, weight_decay=0.01, update=case.update)
    results, size = [], case.batch // WORKERS
    for step in range(STEPS):
        embeddings, labels = case.inputs(step)
        head.begin_step(step, labels)
        losses, gradient = torch.zeros(WORKERS), torch.zeros_like(embeddings)
        for turn in range(plan.rounds):
            worker = shares[rank][turn] if turn < len(shares[rank]) else None
            rows = slice(0, size) if worker is None else slice(worker * size, (worker + 1) * size)
            part = embeddings[rows].clone().requires_grad_()
            loss = head(part, torch.full((size,), ABSENT) if worker is None else labels[rows], len(labels))
            (loss * 4).backward()
            if worker is not None:
                assert part.grad is not None
                losses[worker], gradient[rows] = loss.detach(), part.grad / 4
        assert head.finite()
        optimizer.step(case.lr, 1 / 4)
        head.end_step()
        results.append((losses, gradient))
    return results, head.centres, optimizer.state


def all_cases(rank: int, world: int) -> list[Any]:
    return [train(case, rank, world) for case in CASES]


def joined(ranks: list[Any]) -> list[Tensor]:
    """Everything that all ranks know together, in an order that does not depend on how many there are."""
    steps = [sum(rank[0][step][part] for rank in ranks) for step in range(STEPS) for part in (0, 1)]
    states = [torch.cat([rank[2][key] for rank in ranks]) for key in sorted(ranks[0][2])]
    return [*steps, torch.cat([rank[1] for rank in ranks]), *states]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    torch.set_num_threads(1)
    return all_cases(0, 1)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_computes_the_same_bits(alone: list[Any], world: int) -> None:
    ranks = run_ranks(all_cases, world)
    for number, case in enumerate(CASES):
        for one, many in zip(joined([alone[number]]), joined([rank[number] for rank in ranks]), strict=True):
            assert torch.equal(one, many), case


@pytest.mark.parametrize("number", range(len(CASES)))
def test_it_computes_the_plain_formula(alone: list[Any], number: int) -> None:
    case, (steps, centres, state) = CASES[number], alone[number]
    oracle = Oracle(case, WORKERS, STEPS)
    pairs = [(centres, oracle.centres)]
    for (losses, gradient), (loss, expected) in zip(steps, oracle.steps, strict=True):
        pairs += [(losses.sum(), loss), (gradient, expected)]
    pairs += [(state["momentum" if key == "momentum_buffer" else key], value) for key, value in oracle.state.items()]
    for found, expected in pairs:
        error = float((found.double() - expected).abs().max()) / max(1e-30, float(expected.abs().max()))
        assert error <= 1e-5 * max(1.0, case.steepness / 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_embeddings_that_are_not_finite_or_have_no_finite_length_are_never_a_loss(value: float) -> None:
    head = ReproduciblePartialFC(Case().config(), HeadShape(8, 13, 1, SEED), "cpu", [[0]])
    embeddings, labels = Case().inputs(0)
    embeddings[2, 3] = value
    head.begin_step(0, labels)
    loss = head(embeddings, labels, len(labels))
    loss.backward()
    assert torch.isnan(loss)
    assert not head.finite() or value == 1e20  # its gradient is 0
