"""The forms of the blockwise softmax, and which of them a head computes: plain, in float16, or shaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.head.half_softmax import HalfGradient, HalfUpdate, half_log_sum_exp
from app.head.shaped_softmax import ShapedGradient, shaped_block_gradient, shaped_log_sum_exp
from app.head.softmax import (
    ActiveCentres,
    Block,
    BlockGradient,
    Buffers,
    Samples,
    SoftmaxSettings,
    block_gradient,
    log_sum_exp,
)

Gradient = BlockGradient | HalfGradient | ShapedGradient


def others_log_sum_exp(
    unit: Tensor,
    active: ActiveCentres,
    own: Tensor,
    settings: SoftmaxSettings,
    blocks: Sequence[Block],
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``app.head.softmax.log_sum_exp``; ``threshold`` as in ``app.head.shaped_softmax``."""
    if not settings.plain:
        return shaped_log_sum_exp(unit, active, own, settings, blocks, threshold)
    form = half_log_sum_exp if settings.dtype == torch.float16 else log_sum_exp
    return form(unit, active, own, settings, blocks)


def gradients(
    samples: Samples, active: ActiveCentres, settings: SoftmaxSettings, blocks: Sequence[Block]
) -> Callable[[Block, Tensor], Gradient]:
    """What gives the gradient of each of the blocks, from its centres float32 [k, D]; one lives at a time."""
    if settings.plain and settings.dtype == torch.float16:
        return HalfUpdate(samples, active, settings, blocks).gradient
    unit = samples.unit.to(settings.dtype)
    if not settings.plain:
        return lambda block, weight: shaped_block_gradient(samples, unit, block, weight, settings)
    buffers = Buffers(len(samples), blocks, unit.device)
    return lambda block, weight: block_gradient(samples, unit, active, block, weight, settings, buffers)
