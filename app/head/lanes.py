"""Blocks of classes on several threads of a CPU, each thread at blocks of its own.

Threads that share every operation of one block meet some thirty times a block, and small operations keep all but one
waiting. Blocks need nothing of each other: with blocks of their own, threads meet once a pass, and what a thread reads
again is in its own core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Block = TypeVar("Block")
Found = TypeVar("Found")


def in_lanes(work: Callable[[Sequence[Block]], Found], blocks: Sequence[Block], device: torch.device) -> list[Found]:
    """What ``work`` returns for each lane's blocks, without autograd; every block is in one lane.

    A CPU has as many lanes as torch has threads, an accelerator one: which block is in which depends on that alone.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, len(blocks)) if device.type == "cpu" else 1
    if lanes < 2:
        return [_alone(work, blocks)]
    torch.set_num_threads(1)  # MKL has one number for all threads of a process, OpenMP one for each
    try:
        shares = [blocks[lane::lanes] for lane in range(lanes)]
        return list(_pool(threads).map(lambda share: _alone(work, share, threads=1), shares))
    finally:
        torch.set_num_threads(threads)


def join_sums(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Log-sum-exps [N] of parts of the classes, with their gradients [N, D], as those of all classes."""
    if len(parts) == 1:
        return parts[0]
    lse = torch.stack([part for part, _ in parts]).logsumexp(0)
    some = torch.where(torch.isinf(lse), 0, lse)  # where no class is active all gradients are 0
    gradient = torch.zeros_like(parts[0][1])
    for part, towards in parts:
        gradient.addcmul_(towards, torch.exp(part - some)[:, None])
    return lse, gradient


def _alone(work: Callable[[Sequence[Block]], Found], blocks: Sequence[Block], threads: int = 0) -> Found:
    if threads:
        torch.set_num_threads(threads)
    with torch.no_grad():  # which is a thread's own as well
        return work(blocks)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "head")
