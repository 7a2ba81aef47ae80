"""A process that leaves its group ends: what held the group, and when it is freed, must not matter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from app.device import detect_device
from app.world import LostPeerError, World, join_world
from tests.forked import CONTEXT
from tests.jobs import ROOT, environment

_ROUNDS = 20  # without ``leave_group`` one of the first few never ended


def _join_and_leave(rank: int, size: int, ports: list[int]) -> None:
    _be(rank, size)
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        _one_run()


def _be(rank: int, size: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_USE_AGENT_STORE="True")


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


_FAILS = """
import atexit, weakref
atexit.register(lambda: print("gone" if model() is None else "it is there"))  # runs after that of app.world
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from app import world

def main():
    global model
    learner = DistributedDataParallel(nn.Linear(4, 4))
    learner.itself, model = [learner], weakref.ref(learner)
    world.leave_group()
    raise ValueError("nobody catches it")

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
main()
"""


@pytest.mark.slow
def test_a_model_is_freed_before_its_group_though_nobody_caught_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAILS],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "nobody catches it" in done.stderr
    assert done.stdout == "gone\n"


def _lose_a_peer(rank: int, size: int, port: int) -> None:
    _be(rank, size)
    os.environ["MASTER_PORT"] = str(port)
    with pytest.raises(LostPeerError, match=rf"rank {rank} lost another process of the run, .*: [A-Z]") as found:  # noqa: PT012, SIM117
        with join_world(detect_device()) as world:
            model = DistributedDataParallel(nn.Linear(4, 4))
            loss = model(torch.randn(2, 4)).sum()
            if rank == 1:
                os._exit(0)
            loss.backward()
            _talk(world)
    assert found.value.transient
    assert "GLHF" not in str(found.value)


def test_who_loses_another_process_says_so_in_a_line_and_may_come_back() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(_lose_a_peer, (3, store.port), nprocs=3, start_method=CONTEXT.get_start_method())
