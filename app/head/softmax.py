"""Softmax over class centres that are spread over ranks, one block of classes at a time.

The logits of a batch against millions of classes are never whole: the forward pass keeps a running maximum and sum per
sample, the backward pass computes each block again. Memory beside centres and gradient is one block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class BlockwiseLogSumExp(torch.autograd.Function):
    """log sum_j exp(scale * cos(x_i, w_j)) over the classes j of one rank, without the sample's own class."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        centres: Tensor,
        own: Tensor,
        scale: float,
        filtering: float,
        block: int,
        matmul_dtype: torch.dtype,
    ) -> Tensor:
        """Return float32 [N]; -inf where no other class is on this rank.

        Args:
            embeddings: float32 [N, D], normalised.
            centres: float32 or bfloat16 [K, D], as stored.
            own: int64 [N], row of the sample's own class, or -1 when another rank holds it.
            filtering: cosines above it count as 0 (inter-class filtering); 0 is off.
            block: classes at a time.
            matmul_dtype: of the products; sums and exponentials are float32 in any case.
        """
        maximum = embeddings.new_full((len(embeddings),), -torch.inf)
        total = torch.zeros_like(maximum)
        for start in range(0, len(centres), block):
            weight, _ = _normalised_block(centres, start, block)
            logits, _ = _logits(embeddings, weight, own - start, scale, filtering, matmul_dtype)
            higher = torch.maximum(maximum, logits.amax(1))
            # A row whose only class is its own has no finite logit yet: exp(-inf - 0) = 0 keeps it out of the sum.
            base = torch.where(torch.isinf(higher), 0, higher)
            total = total * torch.exp(maximum - base) + torch.exp(logits - base[:, None]).sum(1)
            maximum = higher
        result = torch.where(torch.isinf(maximum), maximum, maximum + torch.log(total))
        ctx.save_for_backward(embeddings, centres, own, result)
        ctx.settings = scale, filtering, block, matmul_dtype
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of embeddings and centres, both as dense float tensors."""
        (upstream,) = gradients
        embeddings, centres, own, result = ctx.saved_tensors
        scale, filtering, block, matmul_dtype = ctx.settings
        to_embeddings = torch.zeros_like(embeddings)
        to_centres = torch.empty_like(centres)
        offset = torch.where(torch.isinf(result), 0, result)
        factor = torch.where(torch.isinf(result), 0, upstream) * scale
        for start in range(0, len(centres), block):
            weight, length = _normalised_block(centres, start, block)
            logits, filtered = _logits(embeddings, weight, own - start, scale, filtering, matmul_dtype)
            to_cosine = torch.exp(logits - offset[:, None]) * factor[:, None]
            if filtered is not None:
                to_cosine = to_cosine.masked_fill(filtered, 0)
            low = to_cosine.to(matmul_dtype)
            to_embeddings += (low @ weight.to(matmul_dtype)).float()
            to_weight = (low.T @ embeddings.to(matmul_dtype)).float()
            # Through w / |w|: only the part across w remains.
            along = (to_weight * weight).sum(1, keepdim=True)
            to_centres[start : start + block] = ((to_weight - along * weight) / length).to(centres.dtype)
        return to_embeddings, to_centres, None, None, None, None, None


def _normalised_block(centres: Tensor, start: int, block: int) -> tuple[Tensor, Tensor]:
    """Rows ``start..start+block`` as unit vectors float32 [k, D], and their lengths [k, 1]."""
    rows = centres[start : start + block].float()
    length = rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return rows / length, length


def _logits(
    embeddings: Tensor, weight: Tensor, own: Tensor, scale: float, filtering: float, matmul_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Scaled cosines float32 [N, k] with -inf in the own class's place, and where filtering struck."""
    cosine = (embeddings.to(matmul_dtype) @ weight.to(matmul_dtype).T).float().clamp_(-1, 1)
    filtered = None
    if filtering > 0:
        filtered = cosine > filtering
        cosine = cosine.masked_fill(filtered, 0)
    logits = cosine.mul_(scale)
    here = (own >= 0) & (own < len(weight))
    column = torch.where(here, own, 0)
    kept = logits.gather(1, column[:, None])[:, 0]
    logits.scatter_(1, column[:, None], torch.where(here, -torch.inf, kept)[:, None])
    return logits, filtered


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
