"""Sums over logical workers in their order, whatever processes they ran on: the same bits from any number of these.

Floating-point addition is not associative. Where every process first adds up what it has and a collective adds the
rest, the order of additions follows the processes. Here each process keeps the parts of its logical workers apart; each
then gets a slice of all parts (one all-to-all), adds it in the order 0, 1, 2, ..., and hands the sum to all. Additions
are element by element, so how elements are cut into slices changes nothing.

With one logical worker a process that moves as many bytes as an all-reduce; with k, (k + 1) / 2 times as many, and
k copies of the gradients are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.training.plan import ElasticPlan

_SLICE = 1 << 22  # elements that are exchanged at once, a part


def sum_in_order(parts: Tensor, plan: ElasticPlan) -> Tensor:
    """The sum over all logical workers, the same on every rank; a collective.

    Args:
        parts: float [k, P], of this rank's logical workers in their order; k as ``plan.share`` says.

    Returns:
        [P].
    """
    if plan.world_size == 1:
        return _add_up(parts)
    total = parts.new_empty(parts.shape[1])
    for start in range(0, parts.shape[1], _SLICE):
        total[start : start + _SLICE] = _exchange(parts[:, start : start + _SLICE], plan)
    return total


def _exchange(parts: Tensor, plan: ElasticPlan) -> Tensor:
    world, (own, size) = plan.world_size, parts.shape
    width = -(-size // world)
    counts = [len(plan.share(rank)) for rank in range(world)]
    padded = parts.new_zeros((own, world * width))
    padded[:, :size] = parts
    outgoing = padded.view(own, world, width).transpose(0, 1).contiguous()  # the slice of each rank, one after another
    incoming = parts.new_empty((plan.logical_workers, width))  # ranks hold logical workers in order
    dist.all_to_all_single(
        incoming.view(-1), outgoing.view(-1), [count * width for count in counts], [own * width] * world
    )
    total = parts.new_empty(world * width)
    dist.all_gather_single(total, _add_up(incoming))
    return total[:size]


def _add_up(parts: Tensor) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class OrderedGradients:
    """What each logical worker of this rank contributes to a step, kept apart until all are there."""

    def __init__(self, plan: ElasticPlan) -> None:
        self.plan = plan
        self._parts: list[Tensor] = []

    def take(self, parameters: Sequence[nn.Parameter], loss: Tensor, *, counts: bool) -> None:
        """Take a micro-batch's gradients off the parameters, with its loss.

        Args:
            counts: False where this rank had no micro-batch in this turn.
        """
        if counts:
            grads = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in parameters]
            self._parts.append(torch.cat([*grads, loss.detach().view(1)]))
        for parameter in parameters:
            parameter.grad = None

    def put(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Give every parameter the sum over all logical workers; returns that of the losses, []. A collective."""
        total = sum_in_order(torch.stack(self._parts), self.plan)
        self._parts, at = [], 0
        for parameter in parameters:
            # In the parameter's memory format, as autograd would have it.
            grad = total[at : at + parameter.numel()].view(parameter.shape)
            parameter.grad = torch.empty_like(parameter).copy_(grad)
            at += parameter.numel()
        return total[-1]
