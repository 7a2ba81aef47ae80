"""The watchdog names the rank that hangs, and lets a long verification live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.elastic.watchdog import Place, Watchdog, name_culprits
from tests.jobs import ROOT, environment


def test_the_silent_one_is_named_before_the_one_behind() -> None:
    before = {0: Place(5, 7, "backward"), 1: Place(5, 7, "data"), 2: Place(5, 7, "backward")}
    alive = {rank: Place(9, place.step, place.section) for rank, place in before.items()}
    assert name_culprits(before, alive, 3) == "rank 1 is behind, at step 7 in data, ?; the others wait for it"
    assert "rank 2 is silent, last seen at step 7 in backward" in name_culprits(before, alive | {2: before[2]}, 3)
    assert "rank 3 never said where it is" in name_culprits(before, alive, 4)
    same = {rank: Place(9, 7, "backward") for rank in range(3)}
    assert "all 3 ranks are alive" in name_culprits(before, same, 3)
    waiting = same | {rank: Place(9, 7, "backward", waits=True) for rank in (0, 2)}
    waiting[1] = Place(9, 7, "backward", line="app/x.py:3 f")
    assert name_culprits(before, waiting, 3).startswith("rank 1 is behind, at step 7 in backward, app/x.py:3 f; the")


def test_progress_of_any_kind_keeps_a_process_alive(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    watched = Watchdog(0, 1, 2.0, lambda: None, interval=0.1, give_up=codes.append)
    watched.start()
    for _ in range(12):  # a verification of many batches, longer than the timeout
        watched.enter("verification")
        time.sleep(0.25)
    assert not codes
    watched._thread.join(60)
    watched.stop()
    assert codes == [70]
    error = capfd.readouterr().err
    assert "nothing moved for 2 s at step 0 in verification" in error
    assert "test_watchdog.py" in error  # the stacks


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


LONG = """
import sys, time
from app.elastic import watchdog
watchdog._MARGIN = 1.0
watchdog.start(0, 1, 2.0)
watchdog.enter("data", 1)
for _ in range(int(sys.argv[1])):  # batches
    watchdog.enter("verification")
    time.sleep(0.25)
if len(sys.argv) > 2:
    watchdog._active._watch = None
    watchdog._active._give_up = lambda code: time.sleep(60)  # no Python thread acts any more
    time.sleep(60)
watchdog.stop()
"""


@pytest.mark.parametrize(("hangs", "code"), [((), 0), (("hangs",), 1)])
def test_the_alarm_of_the_c_library_too_lets_a_long_verification_live(hangs: tuple[str, ...], code: int) -> None:
    done = run_program(LONG, "4" if hangs else "24", *hangs)
    assert done.returncode == code, done.stderr
    assert ("Timeout" in done.stderr) == bool(hangs)


WAITS = """
import threading, time
from torch.distributed import HashStore
from app.elastic import watchdog
watchdog._MARGIN = 3.0
store = HashStore()
def move():
    for number in range(1000):
        store.set(watchdog._key(0), f"{number} 0 dataset {number} 0 here")
        time.sleep(0.05)
threading.Thread(target=move, daemon=True).start()
waits = watchdog.Watchdog(1, 2, 1.0, lambda: store, interval=0.2)
waits.start()
time.sleep(5.5)  # while rank 0 reads the records of which the index was lost
waits.stop()
"""


def test_the_alarm_of_the_c_library_lets_a_rank_wait_for_one_that_goes_on() -> None:
    done = run_program(WAITS)
    assert done.returncode == 0, done.stderr


AFTER = """
import time
from app.elastic import watchdog
watchdog._MARGIN, watchdog.process_ends = 1.0, True
with watchdog.watched(0, 1, 1.0):
    pass
time.sleep(40)  # such as a library that waits while Python ends
"""


def test_a_process_that_does_not_end_after_its_run_is_ended_and_says_where() -> None:
    done = run_program(AFTER)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "line 7 in <module>" in done.stderr


def test_a_false_alarm_does_not_end_the_watch() -> None:
    codes: list[int] = []
    watched = Watchdog(0, 1, 2.0, lambda: None, interval=0.1, give_up=codes.append)
    watched._moved -= 10
    looked = watched._look

    def wake_up() -> dict[int, Place]:
        if not codes and watched._section != "update":
            watched.enter("update")  # it goes on while the report is made
        return looked()

    watched._look = wake_up  # type: ignore[method-assign]
    watched._thread.start()
    watched._thread.join(60)
    watched.stop()
    assert codes == [70]
    assert watched._section == "update"


def test_who_stops_the_watch_waits_until_its_thread_has_left_the_store() -> None:
    entered, left = threading.Event(), threading.Event()

    class SlowStore:
        """Takes a second for a request, as TCPStore does it: in C++, where the end of Python would abort."""

        def set(self, _key: str, _value: str) -> None:
            entered.set()
            time.sleep(1)
            left.set()

    watched = Watchdog(0, 2, 600.0, SlowStore, interval=0.01)  # type: ignore[arg-type]
    watched.start()
    assert entered.wait(60)
    watched.stop()
    assert left.is_set()
    assert not watched._thread.is_alive()


RANK = """
import os, sys, time
from datetime import timedelta
from torch.distributed import TCPStore
from app.elastic import watchdog
rank = int(os.environ["RANK"])
port = int(os.environ["MASTER_PORT"])
dog = watchdog.Watchdog(rank, 3, 2.0, watchdog.shared_store, interval=0.2)
print("ready", flush=True)
input()  # all at once, however long each took to begin
dog.start()
dog.enter("backward" if rank else "data", 41)
print("watching", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_stopped_process_is_named_by_all_others(tmp_path: Path) -> None:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={
                **environment(),
                **{"RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
            },
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / str(rank)).open("w"),
            text=True,
        )
        for rank in range(3)
    ]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            rank.stdout.readline()
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        assert [rank.stdout.readline() for rank in ranks if rank.stdout] == ["watching\n"] * 3
        time.sleep(0.5)
        os.kill(ranks[2].pid, signal.SIGSTOP)
        assert [rank.wait(30) for rank in ranks[:2]] == [70, 70]
        for name in "01":
            text = (tmp_path / name).read_text()
            assert "rank 2 is silent, last seen at step 41 in backward" in text
            assert "most recent call first" in text
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
