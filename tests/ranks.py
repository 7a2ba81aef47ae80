"""Runs a function on several real processes joined by gloo."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from app.world import leave_group
from tests.forked import CONTEXT


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """``[function(rank, world, *arguments) for each rank]``; a failure on any rank is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        given = (function, world, folder, arguments, dict(os.environ))
        mp.start_processes(_entry, given, nprocs=world, start_method=CONTEXT.get_start_method())
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world)]


def _entry(
    rank: int,
    function: Callable[..., Any],
    world: int,
    folder: str,
    arguments: tuple[Any, ...],
    environment: dict[str, str],
) -> None:
    torch.set_num_threads(1)
    os.environ.clear()  # that of the server is as old as the server
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), f"{folder}/{rank}.pt")
    finally:
        leave_group()
