"""Collectives of the head that gradients pass through: small messages between ranks that each hold some classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GatherEmbeddings(torch.autograd.Function):
    """Stack the embeddings of all ranks: [B, D] -> [W * B, D].

    The gradient is summed over ranks, since each computes the part of its own classes, and multiplied by W, because
    DistributedDataParallel will average the backbone's gradients over ranks.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        """Every rank gives equally many rows."""
        ctx.rows = len(embeddings)
        gathered = embeddings.new_empty((dist.get_world_size() * len(embeddings), embeddings.shape[1]))
        dist.all_gather_single(gathered, embeddings.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """[W * B, D] -> [B, D]."""
        (upstream,) = gradients
        own = upstream.new_empty((ctx.rows, upstream.shape[1]))
        dist.reduce_scatter_single(own, upstream.contiguous())
        return own * dist.get_world_size()


class SumOverRanks(torch.autograd.Function):
    """Sum equally shaped tensors of all ranks; each rank's gradient is that of the sum, which all ranks compute."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        """[N] -> [N]."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        """The gradient as it is."""
        return gradients[0]


class LogSumExpOverRanks(torch.autograd.Function):
    """log of the sum over ranks of exp(values), [N] -> [N], the same on every rank."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Two small collectives: the maximum, then the sum."""
        maximum = values.clone()
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
        base = torch.where(torch.isinf(maximum), 0, maximum)
        total = torch.exp(values - base)
        dist.all_reduce(total)
        result = torch.where(torch.isinf(maximum), maximum, base + torch.log(total))
        ctx.save_for_backward(values, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """This rank's share of the gradient."""
        (upstream,) = gradients
        values, result = ctx.saved_tensors
        return torch.where(torch.isinf(values), 0, torch.exp(values - result) * upstream)


def gather_labels(labels: Tensor, world: int) -> Tensor:
    """Numbers [B] of each rank, labels or others -> [W * B]."""
    gathered = labels.new_empty(world * len(labels))
    dist.all_gather_single(gathered, labels.contiguous())
    return gathered
