"""The processes of one run, as torchrun hands them over in the environment."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from app.device import Device
from app.errors import AppError


class LostPeerError(AppError):
    """Another process of the run went, or never came; its own last words say why."""


@dataclass(frozen=True)
class World:
    """Who this process is. ``attempt`` counts the restarts of the worker group."""

    rank: int
    size: int
    attempt: int
    device: Device

    def all_reduce(self, values: Sequence[float], operation: str = "max") -> list[float]:
        """Combine a few numbers over all ranks (``max``, ``sum`` or ``min``); all ranks get the same result."""
        tensor = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation.upper()))
        result: list[float] = tensor.tolist()
        return result

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack equally shaped CPU tensors of all ranks: ``[...]`` -> ``[size, ...]``."""
        if self.size == 1:
            return tensor[None]
        # Gloo wants the output as the inputs end to end.
        gathered = tensor.new_empty((self.size * len(tensor), *tensor.shape[1:]))
        dist.all_gather_single(gathered, tensor.contiguous())
        return gathered.view(self.size, *tensor.shape)


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun says them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_world(device: Device, *, timeout: float = 1800.0) -> Iterator[World]:
    """Join the process group that torchrun describes; without torchrun a world of one.

    Args:
        device: its backend includes gloo for CPU tensors, so that small agreements never touch the accelerator.
        timeout: seconds after which a collective gives up; longer than the watchdog's, which names the culprit.

    Raises:
        LostPeerError: from the block too, where a collective of it failed.
    """
    rank, size = rank_and_size()
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    try:
        if size > 1:
            dist.init_process_group(device.backend, timeout=timedelta(seconds=timeout))
        yield World(rank, size, attempt, device)
    except RuntimeError as error:
        if size == 1 or not _is_of_a_collective(error):
            raise
        what = _GLOO.sub("", str(error)).split(". This is typically")[0]
        raise LostPeerError(
            f"rank {rank} lost another process of the run, whose own last words say why: {what}; the same command goes "
            "on from the last checkpoint",
            transient=True,
        ) from error
    finally:
        if dist.is_initialized():
            leave_group()


_GLOO = re.compile(r"^\[[^\]]*/gloo/[^\]]*\] ")  # the line of C++ that it puts before its errors


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Gloo's errors are told by their text alone: autograd passes them on as plain ones."""
    return isinstance(error, dist.DistError) or bool(_GLOO.match(str(error)))


_left: dist.ProcessGroup | None = None


def leave_group() -> None:
    """Leave the process group. What it holds is freed when the next one is left, or before Python ends.

    The reducer of DistributedDataParallel holds the group as well, and is freed with Python's lock held. Were it the
    last to hold it, Gloo's destructor would wait with that lock for a thread that may be freeing a tensor of the last
    collective, which wants the lock: the process would never end. Freed from Python, the group waits without the lock.
    """
    global _left
    _left = dist.group.WORLD
    dist.destroy_process_group()


@atexit.register
def _free_left() -> None:
    """Wait for the group's threads while Python still runs: one that frees a tensor later would abort the process.

    Reducers go first, which are in cycles; where nobody caught an error Python keeps it, and with it whoever ran.
    """
    global _left
    if _left is None:
        return
    for name in ("last_exc", "last_value", "last_traceback"):
        setattr(sys, name, None)
    gc.collect()
    _left = None
