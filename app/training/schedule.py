"""Learning rate by step: warm-up, then polynomial or cosine decay, or falls at milestones."""

from __future__ import annotations

import math

from app.config.recipe import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The rate used in step ``step`` (the first is 0).

    Warm-up is linear and reaches the base rate at its last step. ``poly`` then falls as (1 - t) ** power: power 1 as
    insightface, 2 as the Ascend port. ``steps`` multiplies by ``gamma`` after each of the epochs ``milestones``. The
    reference trains its very first step at the full rate; this does not.

    Args:
        total_steps: steps of the whole run, in which the rate reaches 0.
        steps_per_epoch: unit of ``warmup_epochs``.
    """
    warmup = int(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * max(step, 1) / warmup
    if config.schedule == "steps":
        return config.lr * config.gamma ** sum(
            int(float(epoch) * steps_per_epoch) <= step for epoch in config.milestones
        )
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (1 - progress) ** config.power
