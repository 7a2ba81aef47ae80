"""A process that leaves its group ends: what held the group, and when it is freed, must not matter."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from app.device import detect_device
from app.world import World, join_world
from tests.forked import CONTEXT

_ROUNDS = 20  # without ``leave_group`` one of the first few never ended


def _join_and_leave(rank: int, size: int, ports: list[int]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        _one_run()


def _one_run() -> None:
    with join_world(detect_device()) as world:
        model = DistributedDataParallel(nn.Linear(4, 4))
        model(torch.randn(2, 4)).sum().backward()
        _talk(world)


def _talk(world: World) -> None:
    """A last collective, of tensors that Python knows: a thread of the group frees them."""
    each = [torch.empty(1) for _ in range(world.size)]
    dist.all_gather(each, torch.ones(1))
    assert [float(value) for value in each] == [1.0] * world.size
    assert world.all_gather(torch.ones(1)).flatten().tolist() == [1.0] * world.size


@pytest.mark.slow
def test_a_model_that_outlives_its_group_does_not_keep_the_process() -> None:
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(_ROUNDS)]
    given = (3, [store.port for store in stores])
    ranks = mp.start_processes(_join_and_leave, given, nprocs=3, join=False, start_method=CONTEXT.get_start_method())
    ended = False
    try:
        for _ in range(24):
            if ended := ranks.join(5):
                break
    finally:
        for process in ranks.processes:
            process.kill()
    assert ended, "a process did not end"
