"""Softmax over class centres one block at a time, with its gradients and without its logits.

Notation: x_i a unit embedding of N samples, w_j one of K centres, c_ij = x_i . w_j / |w_j|, s the scale. A sample's own
class goes through a margin elsewhere; here its entry is left out of every sum.

**Forward.** With e_ij = exp(s c_ij), the log-sum-exp of sample i and its gradient need only two sums over classes::

    l_i = sum_j e_ij                    lse_i = log l_i
    O_i = sum_j e_ij w_j / |w_j|        d lse_i / d x_i = s O_i / l_i

Both grow block by block, as in FlashAttention (arXiv:2205.14135), so one pass over the centres gives the value and the
gradient, and backward is one multiplication. A cosine is at most 1, hence |s c| <= s: up to s = 64 float32 holds
exp(+-64) and the sum of 1e10 of them as they are; larger scales subtract a running maximum, and l and O shrink when it
rises. The factor 1 / |w_j| of O enters as an addend of the exponent, which costs no pass of its own.

**Update.** With u_i = dL / d lse_i and g_i = dL / d c_i,own, both known after backward, the derivative by cosines is ::

    P_ij = s u_i exp(s c_ij - lse_i)    for other classes; 0 where filtering struck
    P_ij = g_i                          for the own class
    dL / d w_j = (sum_i P_ij x_i - (sum_i P_ij c_ij) w_j / |w_j|) / |w_j|

The second term takes away what points along w_j, which the normalisation does not feel; its sum is one number a class.
So a second pass computes a block of cosines again and hands its gradient to the optimizer at once, as a product that
may accumulate straight into the momentum: no array [K, N], no gradient [K, D]. Exact in the same sense as autograd:
only the order of sums differs.

**Low precision.** Products may run in bfloat16 or float16, sums and exponentials stay float32. bfloat16 has the range
of float32, so its operands are only rounded. float16 must neither overflow nor lose small terms: its form stands in
``app/head/half_softmax.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.head.lanes import in_lanes, join_sums

LARGEST_PLAIN_SCALE = 64.0
WEIGHT_SUM = 2.0**15
SMALLEST_SUM = 1e-30  # of weights that are worth a product; its inverse is still finite
_TINY = 1e-12  # a centre's length is at least that, as in torch.nn.functional.normalize


@dataclass(frozen=True)
class SoftmaxSettings:
    """``filtering``: cosines of other classes above it count as 0; 0 is off. ``dtype``: of the matrix products.

    ``sub_centres``: of each class. ``hardness``: CurricularFace's t of a step, float32 []. Where either
    is more than the default, ``app.head.shaped_softmax`` computes.
    """

    scale: float
    filtering: float = 0.0
    dtype: torch.dtype = torch.float32
    sub_centres: int = 1
    hardness: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether a cosine is one product and nothing more."""
        return self.sub_centres == 1 and self.hardness is None


@dataclass(frozen=True)
class Block:
    """Active classes ``start..stop``; ``rows`` are their rows among the centres."""

    start: int
    stop: int
    rows: slice | Tensor

    def read(self, values: Tensor) -> Tensor:
        """Rows of [C, D] as float32 [k, D]: the storage itself where it is contiguous and float32, else a copy."""
        found = values[self.rows] if isinstance(self.rows, slice) else values.index_select(0, self.rows)
        return found.float()

    def write(self, values: Tensor, changed: Tensor) -> None:
        """Put back what ``read`` returned, where it was a copy."""
        if not isinstance(self.rows, slice):
            values.index_copy_(0, self.rows, changed.to(values.dtype))
        elif values.dtype != torch.float32:
            values[self.rows].copy_(changed)


SumOfBlocks = Callable[[Tensor, Sequence[Block]], tuple[Tensor, Tensor]]


class ActiveCentres:
    """The centres that take part in a step: all of [C, D], or some rows.

    Args:
        rows: int64 [K], ascending, in the host's memory.
    """

    def __init__(self, centres: Tensor, rows: Tensor | None) -> None:
        self.centres, self.host_rows, self.rows = centres, rows, rows
        if rows is not None and centres.device.type != "cpu":
            # From page-locked memory: else the copy, and the host with it, would wait for what is queued before.
            self.rows = rows.pin_memory().to(centres.device, non_blocking=True)
        self._lengths = torch.empty(len(self), device=centres.device)
        self.measured = False  # whether all lengths are known; they hold until the update

    def __len__(self) -> int:
        return len(self.centres) if self.rows is None else len(self.rows)

    def blocks(self, size: int) -> list[Block]:
        """All active classes, ``size`` at a time."""
        ends = [(start, min(start + size, len(self))) for start in range(0, len(self), size)]
        return [Block(*end, slice(*end) if self.rows is None else self.rows[slice(*end)]) for end in ends]

    def lengths(self, block: Block, weight: Tensor) -> Tensor:
        """|w| of a block's centres ``float32 [k, D]``, float32 [k]; measured once a step."""
        lengths = self._lengths[block.start : block.stop]
        if not self.measured:
            torch.linalg.vector_norm(weight, dim=1, out=lengths)
            lengths.clamp_min_(_TINY)
        return lengths


class Buffers:
    """Two arrays [samples, classes] that all blocks share: fresh ones for every block would cost page faults."""

    def __init__(self, samples: int, blocks: Sequence[Block], device: torch.device) -> None:
        self.samples = samples
        classes = max((block.stop - block.start for block in blocks), default=0)
        self._flat = torch.empty((2, samples * classes), device=device)

    def views(self, classes: int) -> tuple[Tensor, Tensor]:
        """Both as contiguous float32 [samples, classes], whatever they held."""
        first, second = self._flat[:, : self.samples * classes].view(2, self.samples, classes)
        return first, second


class RunningMaximum:
    """Of the logits so far, float32 [N]; what is subtracted from them before exponentials that float32 may not hold."""

    def __init__(self, unit: Tensor) -> None:
        self._highest = unit.new_full((len(unit),), -torch.inf)
        self.shift = unit.new_zeros(len(unit))

    def subtract(self, logits: Tensor, terms: Tensor, total: Tensor, towards: Tensor) -> None:
        """Raise it to ``logits`` [N, k], subtract it from ``terms`` [N, k] and shrink the sums [N], [N, D] so far."""
        higher = torch.maximum(self._highest, logits.amax(1))
        self.shift = torch.where(torch.isinf(higher), 0, higher)
        shrink = torch.exp(self._highest - self.shift)
        total.mul_(shrink)
        towards.mul_(shrink[:, None])
        terms.sub_(self.shift[:, None])
        self._highest = higher


def log_sum_exp(
    unit: Tensor, active: ActiveCentres, own: Tensor, settings: SoftmaxSettings, blocks: Sequence[Block]
) -> tuple[Tensor, Tensor]:
    """lse float32 [N], -inf where no other class is in the blocks, and its gradient by ``unit``, float32 [N, D].

    Args:
        unit: float32 [N, D], embeddings of length 1.
        own: int64 [N], active row of the sample's own class, or -1 where it is not here.
    """
    operand = unit.to(settings.dtype)
    total = unit.new_zeros(len(unit))
    towards = torch.zeros_like(unit)
    running = settings.scale > LARGEST_PLAIN_SCALE
    maximum = RunningMaximum(unit)
    buffers = Buffers(len(unit), blocks, unit.device)
    for block in blocks:
        weight = block.read(active.centres)
        lengths = active.lengths(block, weight)
        factor, inverse = weight.to(settings.dtype), lengths.reciprocal()
        raw, terms = buffers.views(block.stop - block.start)
        _multiply(operand, factor.T, raw)
        put_in_column(raw, own - block.start, raw.new_full((1,), -torch.inf))
        struck = raw > settings.filtering * lengths if settings.filtering > 0 else None
        torch.addcmul(inverse.log(), raw, settings.scale * inverse, out=terms)
        if struck is not None:
            terms.masked_fill_(struck, -torch.inf)
        if running:
            logits = raw.mul_(settings.scale * inverse)
            logits = logits if struck is None else logits.masked_fill_(struck, 0.0)
            maximum.subtract(logits, terms, total, towards)
        terms.exp_()
        total.add_(torch.mv(terms, lengths))
        add_weighted(towards, terms, factor)
        if struck is not None:  # a cosine that counts as 0 still is a term exp(0)
            # Where there is one, the shift is at least 0; elsewhere exp(-shift) may be inf, and 0 * inf is NaN.
            total.add_(struck.sum(1) * torch.exp(-maximum.shift.clamp_min(0)))
    found = total != 0  # true of NaN, which must show
    lse = torch.where(found, torch.log(total) + maximum.shift, -torch.inf)
    return lse, towards.mul_(torch.where(found, settings.scale / total, 0)[:, None])


class BlockwiseLogSumExp(torch.autograd.Function):
    """A log-sum-exp for autograd: the gradient by the embeddings is there when the value is."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, blocks: Sequence[Block], of_blocks: SumOfBlocks) -> Tensor:
        """float32 [N, D] -> float32 [N]; ``of_blocks`` as ``log_sum_exp``, of some blocks."""
        lse, gradient = join_sums(in_lanes(lambda some: of_blocks(unit, some), blocks, unit.device))
        ctx.save_for_backward(gradient)
        return lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """One multiplication; the centres have no gradient."""
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None], None, None


@dataclass(frozen=True)
class Samples:
    """What the update needs to know of all samples of a step.

    ``unit``: float32 [M, D]. ``offset``: float32 [M], log(s u) - lse, -inf where u is 0. ``own``: int64 [M], active row
    of the own class or -1. ``to_target``: float32 [M], dL / d cosine of the own class. ``threshold``: see
    ``app.head.shaped_softmax``.
    """

    unit: Tensor
    offset: Tensor
    own: Tensor
    to_target: Tensor
    threshold: Tensor | None = None

    def __len__(self) -> int:
        return len(self.unit)


@dataclass(frozen=True)
class BlockGradient:
    """dL / d w of a block: ``weights.T @ unit + along * w``, never formed unless asked for.

    ``weights``: float32 [M, k]. ``unit``: [M, D] in the products' type. ``along``: float32 [k].
    """

    weights: Tensor
    unit: Tensor
    along: Tensor

    def add_to(self, values: Tensor, beta: float, centres: Tensor, decay: float) -> None:
        """``values = beta * values + gradient + decay * centres``, all float32 [k, D], in place."""
        if self.unit.dtype == torch.float32:
            values.addmm_(self.weights.T, self.unit, beta=beta)
        elif self.unit.dtype == torch.bfloat16 and beta != 0:
            torch.add(self.weights.to(torch.bfloat16).T @ self.unit, values, alpha=beta, out=values)  # in one pass
        else:
            values.zero_() if beta == 0 else values.mul_(beta)
            add_weighted(values, self.weights.T, self.unit)
        values.addcmul_(centres, (self.along + decay)[:, None])


def block_gradient(
    samples: Samples,
    unit: Tensor,
    active: ActiveCentres,
    block: Block,
    weight: Tensor,
    settings: SoftmaxSettings,
    buffers: Buffers,
) -> BlockGradient:
    """The gradient of one block of centres, from cosines computed again; it lives in ``buffers``.

    Args:
        unit: ``samples.unit`` in the type of the products.
        weight: float32 [k, D], the block's centres.
    """
    lengths = active.lengths(block, weight)
    inverse = lengths.reciprocal()
    raw, terms = buffers.views(block.stop - block.start)
    _multiply(unit, weight.to(settings.dtype).T, raw)
    torch.addcmul(samples.offset[:, None], raw, settings.scale * inverse, out=terms)
    if settings.filtering > 0:
        terms.masked_fill_(raw > settings.filtering * lengths, -torch.inf)
    terms.exp_()
    put_in_column(terms, samples.own - block.start, samples.to_target)
    terms.mul_(inverse)
    along = raw.mul_(terms).sum(0).mul_(inverse).mul_(inverse).neg_()
    return BlockGradient(terms, unit, along)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.dtype == torch.float32:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def add_weighted(total: Tensor, weights: Tensor, vectors: Tensor) -> None:
    """``total += weights @ vectors`` in the vectors' precision."""
    if vectors.dtype == torch.float32:
        total.addmm_(weights, vectors)
        return
    if vectors.dtype == torch.bfloat16:
        total.add_(weights.to(vectors.dtype) @ vectors)
        return
    sums = weights.abs().sum(1)
    some = sums > SMALLEST_SUM
    scaled = weights * torch.where(some, WEIGHT_SUM / sums, 0)[:, None]
    total.addcmul_((scaled.to(vectors.dtype) @ vectors).float(), torch.where(some, sums / WEIGHT_SUM, 0)[:, None])


def put_in_column(array: Tensor, column: Tensor, values: Tensor) -> None:
    """``array[i, column[i]] = values[i]`` where that column exists; no transfer to the host decides which."""
    here = (column >= 0) & (column < array.shape[1])
    column = torch.where(here, column, 0)[:, None]
    kept = array.gather(1, column)[:, 0]
    array.scatter_(1, column, torch.where(here, values, kept)[:, None])
