"""Rounds that lose a member: while they form, while they train, and when one is taken for dead that is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousParameters

from app.elastic.membership import Handler, make_handler, until_whole

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Handler]]:
    """A function that makes one more node of a job of two to four, each with a connection of its own."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    made: list[Handler] = []

    def make() -> Handler:
        conf = {"join_timeout": 120, "last_call_timeout": 2, "read_timeout": 120}
        alive = {"keep_alive_interval": 1, "keep_alive_max_attempt": 5}
        parameters = RendezvousParameters(
            "arcface", f"127.0.0.1:{server.port}", "job", 2, 4, "localhost", **conf, **alive
        )
        made.append(make_handler(parameters))
        return made[-1]

    yield make
    for handler in made:
        handler._stop_heartbeats()


def start(pool: ThreadPoolExecutor, handler: Handler) -> Future[Any]:
    return pool.submit(until_whole, handler.next_rendezvous)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_a_member_that_dies_before_its_word_holds_nobody_up(join: Callable[[], Handler]) -> None:
    """Its round has a first rank that never says its address; torch waits for that until a timeout of minutes."""

    class DeadError(Exception):
        pass

    dead, alive = join(), join()

    def die() -> tuple[int, int]:
        dead._stop_heartbeats()
        raise DeadError

    dead._get_world = die  # type: ignore[method-assign]  # it joined, and is killed in this moment
    with ThreadPoolExecutor() as pool:
        gone, left = start(pool, dead), start(pool, alive)
        assert isinstance(gone.exception(60), DeadError)
        began = time.monotonic()
        fresh = start(pool, join())
        both = [left.result(60), fresh.result(60)]
        assert {info.rank for info in both} == {0, 1}
        assert [info.world_size for info in both] == [2, 2]
        assert time.monotonic() - began < 60  # the timeout of a read is 120 s


def test_one_that_was_left_out_finds_out_and_comes_back(join: Callable[[], Handler]) -> None:
    """Silent for longer than heartbeats may miss, as on an overloaded machine; the others went on without it."""
    silent, other = join(), join()
    with ThreadPoolExecutor() as pool:
        for info in [start(pool, silent), start(pool, other)]:
            assert info.result(60).world_size == 2
        assert silent.num_nodes_waiting() == other.num_nodes_waiting() == 0
        silent._stop_heartbeats()
        wait_for(lambda: other.num_nodes_waiting() > 0, "the loss is noticed")
        third = join()
        for info in [start(pool, other), start(pool, third)]:
            assert info.result(60).world_size == 2
        assert other.num_nodes_waiting() == 0
        wait_for(lambda: silent.num_nodes_waiting() > 0, "it notices that the round is not its own")
        back = start(pool, silent)
        wait_for(lambda: other.num_nodes_waiting() > 0 and third.num_nodes_waiting() > 0, "it is waited for")
        infos = [back, start(pool, other), start(pool, third)]
        assert sorted(info.result(60).rank for info in infos) == [0, 1, 2]


def test_after_the_end_others_may_leave(join: Callable[[], Handler]) -> None:
    first, second = join(), join()
    with ThreadPoolExecutor() as pool:
        for info in [start(pool, first), start(pool, second)]:
            info.result(60)
        second.finish_round()
        second._stop_heartbeats()
        wait_for(lambda: len(first.lost_members()) == 1, "it is gone")
        assert first.num_nodes_waiting() == 0  # and still nothing is started again
