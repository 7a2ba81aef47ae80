"""The centre optimizer against torch.optim."""

from __future__ import annotations

import pytest
import torch

from app.head.margins import build_margin
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import PartialFC, PartialFCConfig


def make(name: str, rate: float, update: str = "sparse") -> tuple[PartialFC, CentreOptimizer]:
    head = PartialFC(PartialFCConfig(8, 30, sample_rate=rate), build_margin("combined", 1, 0.5, 0))
    return head, CentreOptimizer(head, name, momentum=0.9, weight_decay=0.01, update=update)


def train_step(head: PartialFC, step: int) -> torch.Tensor:
    torch.manual_seed(step)
    labels = torch.randint(0, 30, (6,))
    head.begin_step(step, labels)
    head(torch.randn(6, 8), labels, 6).backward()
    assert head.active.grad is not None
    return head.active.grad


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(("rate", "update"), [(1.0, "sparse"), (0.3, "dense")])
def test_all_rows_equal_torch_optim(name: str, rate: float, update: str) -> None:
    head, optimizer = make(name, rate, update)
    twin = head.centres.detach().clone().requires_grad_()
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    other = kind([twin], lr=0.1, weight_decay=0.01, **options)  # type: ignore[arg-type]
    for step in range(5):
        gradient = train_step(head, step)
        whole = torch.zeros_like(twin)
        whole[slice(None) if head.active_rows is None else head.active_rows] = gradient
        twin.grad = whole
        other.step()
        optimizer.step(0.1)
        torch.testing.assert_close(head.centres.detach(), twin.detach())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rows_that_were_not_sampled_keep_weights_and_state(name: str) -> None:
    head, optimizer = make(name, 0.3)
    train_step(head, 0)
    optimizer.step(0.1)
    weights, state = head.centres.detach().clone(), {key: value.clone() for key, value in optimizer.state.items()}
    train_step(head, 1)
    optimizer.step(0.1)
    assert head.active_rows is not None
    idle = torch.ones(30, dtype=torch.bool)
    idle[head.active_rows] = False
    assert idle.any()
    assert torch.equal(head.centres[idle], weights[idle])
    assert not torch.equal(head.centres[~idle], weights[~idle])
    for key, value in optimizer.state.items():
        assert torch.equal(value[idle], state[key][idle])
