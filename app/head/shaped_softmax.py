"""The blockwise softmax of heads whose cosines are more than products: sub-centres and CurricularFace.

``app/head/softmax.py`` tells the method and its notation; here, between the products and the exponentials, the cosines
of a block take a shape, and the gradient its slope. For a sample i and a class j ::

    c_ij = max over the class's K sub-centres k of x_i . w_jk / |w_jk|          sub-centre ArcFace (ECCV 2020)
    z_ij = 0                 where filtering is on and c_ij above it
    z_ij = c_ij (t + c_ij)   where c_ij > cos(theta_i,own + m)                  CurricularFace (arXiv:2004.00288, eq. 7)
    z_ij = c_ij              else

    e_ij = exp(s z_ij)                        d lse_i / d x_i = s sum_j e_ij f_ij w_jk* / |w_jk*| / l_i
    P_ij = s u_i exp(s z_ij - lse_i) f_ij     f_ij = d z_ij / d c_ij: 0, t + 2 c_ij or 1

with k* the sub-centre that gave the maximum: the others get nothing of that sample. z may exceed 1, so a running
maximum is always subtracted. The plain head pays nothing for any of this, since it does not come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.head.softmax import (
    ActiveCentres,
    Block,
    BlockGradient,
    RunningMaximum,
    Samples,
    SoftmaxSettings,
    add_weighted,
    put_in_column,
)

_TINY = 1e-12  # a centre's length is at least that, as in torch.nn.functional.normalize


@dataclass(frozen=True)
class _Block:
    """One block in its shape: of N samples and k classes with K sub-centres.

    ``directions``: [k * K, D], of length 1, in the products' type. ``cosines``, ``logits`` (not yet scaled) and
    ``slope``: float32 [N, k]. ``winner``: int64 [N, k], or None where K is 1. ``inverse``: float32 [k * K], 1 / |w|.
    """

    directions: Tensor
    cosines: Tensor
    logits: Tensor
    slope: Tensor
    winner: Tensor | None
    inverse: Tensor
    sub_centres: int

    def spread(self, weights: Tensor) -> Tensor:
        """[N, k] by classes -> [N, k * K] by sub-centres, 0 for those that did not win."""
        if self.winner is None:
            return weights
        whole = weights.new_zeros((*weights.shape, self.sub_centres))
        return whole.scatter_(2, self.winner[..., None], weights[..., None]).flatten(1)


def _shape(unit: Tensor, weight: Tensor, settings: SoftmaxSettings, threshold: Tensor | None) -> _Block:
    """Samples ``unit`` [N, D], in the products' type, against the centres of a block, float32 [k, K * D]."""
    weight = weight.reshape(-1, unit.shape[1])
    inverse = torch.linalg.vector_norm(weight, dim=1).clamp_min_(_TINY).reciprocal_()
    directions = (weight * inverse[:, None]).to(unit.dtype)
    cosines, winner = (unit @ directions.T).float(), None
    if settings.sub_centres > 1:
        cosines, winner = cosines.unflatten(1, (-1, settings.sub_centres)).max(2)
    logits, slope = cosines, torch.ones_like(cosines)
    if settings.filtering > 0:
        struck = cosines > settings.filtering
        logits, slope = logits.masked_fill(struck, 0), slope.masked_fill(struck, 0)
    if threshold is not None:
        hard = logits > threshold[:, None]
        slope = torch.where(hard, slope * (settings.hardness + 2 * logits), slope)
        logits = torch.where(hard, logits * (settings.hardness + logits), logits)
    return _Block(directions, cosines, logits, slope, winner, inverse, settings.sub_centres)


def shaped_log_sum_exp(
    unit: Tensor,
    active: ActiveCentres,
    own: Tensor,
    settings: SoftmaxSettings,
    blocks: Sequence[Block],
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``app.head.softmax.log_sum_exp``.

    Args:
        threshold: float32 [N], cosines of other classes above it are hard; None where there is no such thing.
    """
    operand = unit.to(settings.dtype)
    total, towards = unit.new_zeros(len(unit)), torch.zeros_like(unit)
    maximum = RunningMaximum(unit)
    for block in blocks:
        shaped = _shape(operand, block.read(active.centres), settings, threshold)
        terms = shaped.logits * settings.scale
        put_in_column(terms, own - block.start, terms.new_full((1,), -torch.inf))
        maximum.subtract(terms, terms, total, towards)
        total.add_(terms.exp_().sum(1))
        weights = terms.mul_(shaped.slope)
        add_weighted(towards, shaped.spread(weights), shaped.directions)
    found = total != 0  # true of NaN, which must show
    lse = torch.where(found, torch.log(total) + maximum.shift, -torch.inf)
    return lse, towards.mul_(torch.where(found, settings.scale / total, 0)[:, None])


@dataclass(frozen=True)
class ShapedGradient:
    """dL / d w of a block of k classes with K sub-centres each; ``inner`` is that of k * K centres [D]."""

    inner: BlockGradient

    def add_to(self, values: Tensor, beta: float, centres: Tensor, decay: float) -> None:
        """``values = beta * values + gradient + decay * centres``, all float32 [k, K * D], in place."""
        size = self.inner.unit.shape[1]
        self.inner.add_to(values.view(-1, size), beta, centres.view(-1, size), decay)


def shaped_block_gradient(
    samples: Samples, unit: Tensor, block: Block, weight: Tensor, settings: SoftmaxSettings
) -> ShapedGradient:
    """See ``app.head.softmax.block_gradient``; ``weight``: float32 [k, K * D]."""
    shaped = _shape(unit, weight, settings, samples.threshold)
    weights = torch.exp(shaped.logits * settings.scale + samples.offset[:, None]).mul_(shaped.slope)
    put_in_column(weights, samples.own - block.start, samples.to_target)
    along = shaped.spread(weights * shaped.cosines).sum(0).mul_(shaped.inverse).mul_(shaped.inverse).neg_()
    return ShapedGradient(BlockGradient(shaped.spread(weights).mul_(shaped.inverse), unit, along))


def own_direction(centres: Tensor, unit: Tensor) -> Tensor:
    """Each sample's own centre at length 1, float32 [N, D]: of several sub-centres the nearest.

    Args:
        centres: [N, K * D], of each sample's class.
        unit: float32 [N, D].
    """
    parts = torch.nn.functional.normalize(centres.float().unflatten(1, (-1, unit.shape[1])), dim=2, eps=_TINY)
    nearest = torch.bmm(parts, unit.detach()[:, :, None])[:, :, 0].argmax(1)
    return parts[torch.arange(len(unit), device=unit.device), nearest]
