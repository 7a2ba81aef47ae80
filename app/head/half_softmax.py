"""The blockwise softmax with products in float16, as accelerators have it: few passes over memory and few operations.

``app/head/softmax.py`` tells the method and its notation. An accelerator multiplies so fast that the passes between the
products decide, and a block is so quickly done that the host's time for each operation does. So centres are read once
a pass, into unit vectors w_j / |w_j| of float16; a product's result stays float16 until the exponential, which is
float32; and what float16 must not lose is scaled by what is known anyway:

- the weights of a row's sum in the forward pass by their own sum l_i, which the log-sum-exp needs;
- the weights of a column's sum in the update by the sum of their sizes q_j = sum_i |P_ij|;

either way to a sum of 2^15, so that the product with unit vectors is at most that, and the largest of N or K weights is
far above what float16 rounds to 0. The projection needs no second array [N, k]: with G_j = sum_i P_ij x_i ::

    dL / d w_j = (G_j - (G_j . w_j / |w_j|) w_j / |w_j|) / |w_j|

since sum_i P_ij c_ij is G_j . w_j / |w_j|. The scale s goes into the embeddings before the product, which then gives
the logits. Types change by ``copy_``, not in operations whose result has another type: not every device has those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.head.softmax import (
    LARGEST_PLAIN_SCALE,
    SMALLEST_SUM,
    WEIGHT_SUM,
    ActiveCentres,
    Block,
    RunningMaximum,
    Samples,
    SoftmaxSettings,
)


class OwnColumns:
    """Where each sample's own class stands in each block, found for all blocks at once.

    Args:
        own: int64 [N], active row of the own class, or -1.
        blocks: all of one size but the last, at equal distances.
    """

    def __init__(self, own: Tensor, blocks: Sequence[Block]) -> None:
        if not blocks:
            return
        size = blocks[0].stop - blocks[0].start
        distance = blocks[1].start - blocks[0].start if len(blocks) > 1 else 1
        starts = torch.arange(blocks[0].start, blocks[-1].start + 1, distance, device=own.device)
        columns = own - starts[:, None]
        here = (columns >= 0) & (columns < size)
        self._columns, self._here = (columns * here)[:, :, None].unbind(), here[:, :, None].unbind()

    def strike(self, number: int, array: Tensor) -> None:
        """``array[i, own]`` of block ``number`` becomes -inf."""
        kept = array.gather(1, self._columns[number])
        array.scatter_(1, self._columns[number], kept.masked_fill_(self._here[number], -torch.inf))

    def put(self, number: int, array: Tensor, values: Tensor) -> None:
        """``array[i, own] = values[i, 0]`` in block ``number``."""
        kept = array.gather(1, self._columns[number])
        array.scatter_(1, self._columns[number], torch.where(self._here[number], values, kept))


class HalfBuffers:
    """What all blocks share: unit centres and another array [k, D], [N, k] of float16; and [N, k] of float32."""

    def __init__(self, samples: int, width: int, blocks: Sequence[Block], device: torch.device) -> None:
        classes = max((block.stop - block.start for block in blocks), default=0)
        self.samples, self.width = samples, width
        self._centres = torch.empty((2, classes * width), dtype=torch.float16, device=device)
        self._half = torch.empty(samples * classes, dtype=torch.float16, device=device)
        self._terms = torch.empty(samples * classes, device=device)

    def centres(self, classes: int) -> tuple[Tensor, Tensor]:
        """Two of float16 [k, D], whatever they held."""
        first, second = self._centres[:, : classes * self.width].view(2, classes, self.width)
        return first, second

    def terms(self, classes: int) -> tuple[Tensor, Tensor]:
        """float16 and float32 [N, k], whatever they held."""
        shape, count = (self.samples, classes), self.samples * classes
        return self._half[:count].view(shape), self._terms[:count].view(shape)


def half_log_sum_exp(
    unit: Tensor, active: ActiveCentres, own: Tensor, settings: SoftmaxSettings, blocks: Sequence[Block]
) -> tuple[Tensor, Tensor]:
    """See ``app.head.softmax.log_sum_exp``."""
    factor, columns = (unit * settings.scale).half(), OwnColumns(own, blocks)
    buffers = HalfBuffers(len(unit), unit.shape[1], blocks, unit.device)
    total, towards = unit.new_zeros(len(unit)), torch.zeros_like(unit)
    running = settings.scale > LARGEST_PLAIN_SCALE
    maximum = RunningMaximum(unit)
    for number, block in enumerate(blocks):
        directions, _ = buffers.centres(block.stop - block.start)
        logits, terms = buffers.terms(block.stop - block.start)
        weight = block.read(active.centres)
        directions.copy_(weight / active.lengths(block, weight)[:, None])
        torch.mm(factor, directions.T, out=logits)
        columns.strike(number, logits)
        struck = logits > settings.filtering * settings.scale if settings.filtering > 0 else None
        if struck is not None:
            logits.masked_fill_(struck, 0)  # as it counts
        terms.copy_(logits)
        if running:
            maximum.subtract(terms, terms, total, towards)
        terms.exp_()
        if struck is not None:  # it counts in the sum, and moves nothing
            total.add_(struck.sum(1) * torch.exp(-maximum.shift.clamp_min(0)))
            terms.masked_fill_(struck, 0)
        sums = terms.sum(1)
        total.add_(sums)
        weights = logits.copy_(terms.mul_((WEIGHT_SUM / sums.clamp_min(SMALLEST_SUM))[:, None]))
        towards.addcmul_((weights @ directions).float(), (sums / WEIGHT_SUM)[:, None])
    found = total != 0  # true of NaN, which must show
    lse = torch.where(found, torch.log(total) + maximum.shift, -torch.inf)
    return lse, towards.mul_(torch.where(found, settings.scale / total, 0)[:, None])


@dataclass(frozen=True)
class HalfGradient:
    """dL / d w of a block: ``factor * (product - along * directions)``.

    ``product``: float16 [k, D], the sums of samples, each scaled so that float16 holds it. ``factor``: float32 [k],
    its scale's inverse by |w|. ``along``: float32 [k]. ``inverse``: float32 [k], 1 / |w|.
    """

    product: Tensor
    factor: Tensor
    along: Tensor
    inverse: Tensor

    def add_to(self, values: Tensor, beta: float, centres: Tensor, decay: float) -> None:
        """``values = beta * values + gradient + decay * centres``, all float32 [k, D], in place."""
        values.zero_() if beta == 0 else values.mul_(beta)
        values.addcmul_(self.product, self.factor[:, None])
        values.addcmul_(centres, (decay - self.factor * self.along * self.inverse)[:, None])


class HalfUpdate:
    """Gradients of blocks, one after another, from cosines computed again; each lives in buffers that they share.

    Args:
        blocks: those that it will be asked for; others cost more, and are no larger.
    """

    def __init__(
        self, samples: Samples, active: ActiveCentres, settings: SoftmaxSettings, blocks: Sequence[Block]
    ) -> None:
        unit = samples.unit
        self._samples, self._active, self._settings = samples, active, settings
        self._unit, self._columns = unit.half(), OwnColumns(samples.own, blocks)
        self._factor = (unit * settings.scale).half()
        self._numbers = {(block.start, block.stop): number for number, block in enumerate(blocks)}
        self._buffers = HalfBuffers(len(unit), unit.shape[1], blocks, unit.device)

    def gradient(self, block: Block, weight: Tensor) -> HalfGradient:
        """Of one block of centres, ``weight`` float32 [k, D]."""
        samples, settings = self._samples, self._settings
        directions, other = self._buffers.centres(len(weight))
        logits, terms = self._buffers.terms(len(weight))
        inverse = self._active.lengths(block, weight).reciprocal()
        directions.copy_(weight * inverse[:, None])
        torch.mm(self._factor, directions.T, out=logits)
        terms.copy_(logits).add_(samples.offset[:, None]).exp_()
        if settings.filtering > 0:
            terms.masked_fill_(logits > settings.filtering * settings.scale, 0)
        number, columns = self._numbers.get((block.start, block.stop)), self._columns
        if number is None:
            number, columns = 0, OwnColumns(samples.own, [block])
        columns.put(number, terms, samples.to_target[:, None])
        sums = torch.linalg.vector_norm(terms, ord=1, dim=0).clamp_min_(SMALLEST_SUM)
        weights = logits.copy_(terms.mul_(WEIGHT_SUM / sums))
        product = weights.T @ self._unit
        along = torch.mul(product, directions, out=other).sum(1, dtype=torch.float32)
        return HalfGradient(product, sums.mul_(inverse).div_(WEIGHT_SUM), along, inverse)
