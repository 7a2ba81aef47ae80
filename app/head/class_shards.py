"""Which class centres live where, and which of them take part in a step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.seeds import numpy_stream


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
    """Classes of ``start..stop`` that take part in a step (Partial FC, arXiv:2203.15565): ascending int64 [k].

    Every class among ``labels`` takes part; others, drawn at random, fill up to ``int(sample_rate * size)`` classes of
    each logical shard. Logical shards do not move when processes come or go, so neither does the choice; with as many
    processes as logical shards it is the reference's distribution. Costs a byte a class and time for the classes drawn.

    Args:
        labels: int64 [N], the labels of the whole global batch.
        logical_shards: the class ranges that are sampled one by one.
    """
    chosen: list[NDArray[np.int64]] = []
    positive = labels.cpu().numpy()
    for shard in range(logical_shards):
        first, last = class_range(num_classes, logical_shards, shard)
        if first >= stop or last <= start or first == last:
            continue
        taken = np.zeros(last - first, dtype=np.bool_)
        taken[positive[(positive >= first) & (positive < last)] - first] = True
        missing = int(sample_rate * (last - first)) - int(np.count_nonzero(taken))
        if missing > 0:
            mark_at_random(taken, missing, numpy_stream(seed, "head.classes", step, shard))
        low, high = max(start, first), min(stop, last)
        chosen.append(np.flatnonzero(taken[low - first : high - first]) + low)
    return torch.from_numpy(np.concatenate(chosen).astype(np.int64)) if chosen else torch.empty(0, dtype=torch.int64)


def mark_at_random(marked: NDArray[np.bool_], count: int, generator: np.random.Generator) -> None:
    """Mark ``count`` more places, every choice of unmarked places as likely as any other.

    Places are drawn with replacement, as many as are still missing, until none is: a place already marked changes
    nothing, and by symmetry the places marked last are a uniform choice. No sort, no permutation; since at most half
    of the free places are marked in this way, twice ``count`` draws are enough on average.
    """
    free = len(marked) - int(np.count_nonzero(marked))
    if 2 * count > free:
        kept_free = marked.copy()
        mark_at_random(kept_free, free - count, generator)
        marked |= ~kept_free
        return
    if 2 * free < len(marked):  # few free places would be hit too seldom
        marked[generator.choice(np.flatnonzero(~marked), count, replace=False)] = True
        return
    goal = len(marked) - free + count
    while count > 0:
        marked[generator.integers(len(marked), size=count)] = True
        count = goal - int(np.count_nonzero(marked))
