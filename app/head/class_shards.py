"""Which class centres live where, and which of them take part in a step."""

from __future__ import annotations

import torch
from torch import Tensor


def class_range(num_classes: int, shards: int, shard: int) -> tuple[int, int]:
    """Half-open range of classes of one shard: all alike, the first ``num_classes % shards`` one longer."""
    quotient, remainder = divmod(num_classes, shards)
    start = shard * quotient + min(shard, remainder)
    return start, start + quotient + (shard < remainder)


def sample_classes(
    labels: Tensor,
    num_classes: int,
    sample_rate: float,
    logical_shards: int,
    seed: int,
    step: int,
    start: int,
    stop: int,
) -> Tensor:
    """Classes of ``start..stop`` that take part in a step (Partial FC, arXiv:2203.15565): sorted int64 [k].

    Every class among ``labels`` takes part; others, drawn at random, fill up to ``int(sample_rate * size)`` classes of
    each logical shard. Logical shards do not move when processes come or go, so neither does the choice; with as many
    processes as logical shards it is the choice of the reference.

    Args:
        labels: int64 [N], the labels of the whole global batch.
        logical_shards: the class ranges that are sampled one by one.
    """
    chosen: list[Tensor] = []
    for shard in range(logical_shards):
        first, last = class_range(num_classes, logical_shards, shard)
        if first >= stop or last <= start or first == last:
            continue
        positive = torch.unique(labels[(labels >= first) & (labels < last)]).cpu() - first
        count = int(sample_rate * (last - first))
        if len(positive) >= count:
            picked = positive
        else:
            # A CPU generator of its own: the same draw on every device, whatever else used random numbers.
            generator = torch.Generator().manual_seed(mix_seed(seed, step, shard))
            score = torch.rand(last - first, generator=generator)
            score[positive] = 2.0
            picked = torch.topk(score, count).indices.sort().values
        picked = picked + first
        chosen.append(picked[(picked >= start) & (picked < stop)])
    return torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.int64)


def mix_seed(seed: int, step: int, shard: int) -> int:
    """One 63-bit seed of three numbers (odd multipliers of splitmix64)."""
    mixed = (seed + 1) * 0x9E3779B97F4A7C15 ^ (step + 1) * 0xBF58476D1CE4E5B9 ^ (shard + 1) * 0x94D049BB133111EB
    return mixed & (1 << 63) - 1
