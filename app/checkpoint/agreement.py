"""Ranks that do something each and must agree on how it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from app.checkpoint.manifest import CheckpointError
from app.errors import AppError
from app.storage import StorageError
from app.world import World

T = TypeVar("T")


def agree(world: World, action: Callable[[], T]) -> list[T]:
    """Do something on every rank; the results of all of them, or an error on all of them; a collective.

    Raises:
        StorageError, CheckpointError: what a rank raised. As long as one failure will not pass by itself, neither do
            all.
    """
    result: Any = None
    problem: AppError | None = None
    try:
        result = action()
    except AppError as error:
        problem = error
    told = None if problem is None else (isinstance(problem, StorageError), str(problem), problem.transient)
    gathered: list[tuple[tuple[bool, str, bool] | None, T]] = gather(world, (told, result))
    failures = [(rank, *told) for rank, (told, _) in enumerate(gathered) if told]
    if not failures:
        return [value for _, value in gathered]
    if problem is not None and len(failures) == 1:
        raise problem
    text = "; ".join(f"rank {rank}: {text}" for rank, _, text, _ in failures)
    kind = StorageError if all(of_store for _, of_store, _, _ in failures) else CheckpointError
    raise kind(text, transient=all(transient for *_, transient in failures))


def broadcast(world: World, value: T) -> T:
    """Rank 0's value on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(world: World, value: Any) -> list[Any]:
    """The values of all ranks, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values
