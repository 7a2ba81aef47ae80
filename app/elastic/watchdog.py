"""Finds the rank that hangs. Every rank tells where it is, and all that still can say who is silent or behind.

A hang on one rank stops all of them in a collective; the stacks of the waiting ones lead nowhere. So each process puts
its step and section into a store every few seconds, from a thread of its own, and when nothing moved for
``timeout`` seconds reads what the others put there. A process that is stopped or dead does not renew its entry: it is
named. Where all are alive, those are named that are behind: at the lowest step, in its earliest section; of several
there, who is not in a collective. Who waits for one that still moves, though it be for a store that is away, waits on.

It begins before the ranks have met: a start hangs as a step does, in a mount, a driver, the first collective.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import Store, TCPStore

from app import patience
from app.elastic.signed_store import connect
from app.errors import printable

SECTIONS = (
    *("join", "dataset", "resume", "model", "sets", "begin"),  # of the start, in order,
    *("data", "forward", "head", "backward", "update", "log", "checkpoint", "verification"),  # of a step,
    *("results", "close"),  # and of the end
)
EXIT_HANG = 70  # EX_SOFTWARE
_INTERVAL = 5.0  # seconds between two signs of life
_LEAVE = 30.0  # seconds that a thread at the store is waited for; its connection and each request take 10 at most
_ARM_SECONDS = 10.0  # the alarm of the C library is put off so often
_MOST_CHARACTERS = 500  # of what a rank says
_OURS, _TORCH = Path(__file__).parents[1], Path(torch.__file__).parent
_COLLECTIVES = (_TORCH / "distributed", _TORCH / "nn" / "parallel")
_MARGIN = 60.0  # seconds after which the C library acts, where no Python thread can


@dataclass(frozen=True)
class Place:
    """Where a rank is: ``beat`` counts its signs of life, ``moves`` what it did; step and section say at what.

    ``line``: the innermost of ours that its main thread is at. ``waits``: in a collective, for others.
    """

    beat: int
    step: int
    section: str
    moves: int = 0
    waits: bool = False
    line: str = "?"

    @property
    def order(self) -> tuple[int, int]:
        """The further, the greater."""
        return (self.step, SECTIONS.index(self.section) if self.section in SECTIONS else 0)


def name_culprits(before: dict[int, Place], after: dict[int, Place], size: int) -> str:
    """The sentence that names who hangs, from two looks at all ranks, a few signs of life apart."""
    missing = [rank for rank in range(size) if rank not in after]
    silent = [rank for rank in after if rank in before and after[rank].beat == before[rank].beat]
    if missing or silent:
        words = [f"rank {rank} never said where it is" for rank in missing]
        words += [
            f"rank {rank} is silent, last seen at step {after[rank].step} in {after[rank].section}" for rank in silent
        ]
        return f"{'; '.join(words)}: stopped, dead or out of memory"
    first = min(place.order for place in after.values())
    behind = [rank for rank, place in after.items() if place.order == first]
    working = [rank for rank in behind if not after[rank].waits]
    where = f"at step {after[behind[0]].step} in {after[behind[0]].section}"
    if len(behind) == len(after) and not working:
        return f"all {size} ranks are alive and {where}: a collective does not come back; look at the network"
    if len(working) == len(after):
        lines = ", ".join(sorted({place.line for place in after.values()}))
        return f"all {size} ranks are alive and {where}, {lines}: if it is a collective, look at the network"
    named = working or behind
    return f"rank {', '.join(map(str, named))} is behind, {where}, {after[named[0]].line}; the others wait for it"


class Watchdog:
    """Watches this process, and its peers through a store.

    Args:
        rank, size: of the world.
        timeout: seconds without ``enter`` that are a hang.
        connect_store: opens the store that all ranks share; None where there is one rank.
        interval: seconds between two signs of life.
        give_up: called at the end, with the exit code.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        timeout: float,
        connect_store: Callable[[], Store | None],
        *,
        interval: float = _INTERVAL,
        give_up: Callable[[int], None] = os._exit,
    ) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.interval = min(interval, timeout / 4)
        self._connect, self._give_up = connect_store, give_up
        self._store: Store | None = None
        self._step, self._section, self._beat, self._moves = 0, SECTIONS[0], 0, 0
        self.alone = size == 1  # no other rank waits for this one, or is waited for
        self._moved, self._armed = time.monotonic(), -math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def enter(self, section: str, step: int | None = None) -> None:
        """This process goes on: it enters a section, of this step."""
        self._section, self._step = section, self._step if step is None else step
        self._moves += 1
        self._moved = time.monotonic()
        # Whatever goes on, a long verification too; not for every batch, since it starts a thread.
        if self._moved - self._armed > min(_ARM_SECONDS, self.timeout / 4):
            self._armed = self._moved
            self._put_alarm_off()

    def _put_alarm_off(self) -> None:
        faulthandler.dump_traceback_later(self.timeout + _MARGIN, exit=True, file=2)

    def go_on(self) -> None:
        """This process goes on with what it is at."""
        self.enter(self._section)

    def start(self) -> None:
        """Watch from now on."""
        self.enter(SECTIONS[0])
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; waits for the thread to be out of the store.

        A thread that is in C++ when Python ends is unwound there, which aborts the process: a finished run would fail.
        """
        self._ended.set()
        if process_ends:
            faulthandler.dump_traceback_later(self.timeout + _MARGIN, exit=True, file=2)
        else:
            faulthandler.cancel_dump_traceback_later()
        if self._thread.is_alive():
            self._thread.join(_LEAVE)

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self._tell()
            if time.monotonic() - self._moved > self.timeout and self._report():
                return

    def _report(self) -> bool:
        """Name who hangs and give up; False if this process went on meanwhile."""
        before = self._look()
        for _ in range(3):
            time.sleep(self.interval)
            self._tell()
        after = self._look()
        moving = any(rank in before and place.moves != before[rank].moves for rank, place in after.items())
        if self._ended.is_set() or time.monotonic() - self._moved < self.timeout:
            return False
        if moving:  # this rank waits for one that does not hang
            self._put_alarm_off()
            return False
        culprits = name_culprits(before, after, self.size) if after else f"it is in {self._section}"
        print(
            f"error: rank {self.rank}: nothing moved for {self.timeout:.0f} s at step {self._step} in {self._section}: "
            f"{culprits}. Where a step may take longer, raise train.step_timeout. The stacks of rank {self.rank}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(file=2)
        self._give_up(EXIT_HANG)
        return True

    def _tell(self) -> None:
        self._beat += 1
        try:
            if self._store is None:
                self._store = self._connect()
            if self._store is not None:
                waits, line = _main_thread()
                place = f"{self._beat} {self._step} {self._section} {self._moves} {int(waits)} {line}"
                self._store.set(_key(self.rank), place)
        except RuntimeError:
            self._store = None  # the next time; a lost store is another's business

    def _look(self) -> dict[int, Place]:
        """Where all ranks said they are; empty without a store, or where that does not matter."""
        places: dict[int, Place] = {}
        try:
            for rank in range(self.size if self._store is not None and not self.alone else 0):
                assert self._store is not None
                if self._store.check([_key(rank)]):
                    text = printable(self._store.get(_key(rank)).decode()[:_MOST_CHARACTERS])
                    beat, step, section, moves, waits, line = text.split(maxsplit=5)
                    places[rank] = Place(int(beat), int(step), section, int(moves), waits == "1", line)
        except (RuntimeError, ValueError):
            self._store = None
        return places


def _main_thread() -> tuple[bool, str]:
    """Whether the main thread is in a collective, and the innermost line of ours that it is at."""
    waits, line = False, "?"
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        waits = waits or path.parent in _COLLECTIVES
        if path.is_relative_to(_OURS):
            line = f"{path.relative_to(_OURS.parent)}:{frame.f_lineno} {frame.f_code.co_name}"
            break
        frame = frame.f_back
    return waits, line


def _key(rank: int) -> str:
    # A new round of workers meets at another port.
    return f"arcface/where/{os.environ.get('MASTER_PORT', '0')}/{rank}"


def shared_store() -> Store | None:
    """The store that the ranks share: that of the rendezvous process, else the one that rank 0 holds."""
    host, _, port = os.environ.get("ARCFACE_RDZV_ENDPOINT", "").rpartition(":")
    if host:
        return connect(host, int(port), os.environ.get("TORCHELASTIC_RUN_ID", ""), 10.0)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    address, port = os.environ.get("MASTER_ADDR", "localhost"), os.environ.get("MASTER_PORT", "0")
    return TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))


_active: Watchdog | None = None
process_ends = False  # with what is watched: where it does not within the timeout, it is ended


def enter(section: str, step: int | None = None) -> None:
    """Tell the watchdog of this process, where there is one, what it goes on with."""
    if _active is not None:
        _active.enter(section, step)


def leave(section: str) -> None:
    """Go on with a section in which no other rank waits for this one, or is waited for."""
    if _active is not None:
        _active.alone = True
        _active.enter(section)


def start(rank: int, size: int, timeout: float) -> None:
    """Watch this process until ``stop``; answers of stores, and pauses before asking again, are progress too."""
    global _active
    _active = Watchdog(rank, size, timeout, shared_store)
    patience.listeners.append(_active.go_on)
    _active.start()


def stop() -> None:
    """Watch no more."""
    global _active
    if _active is not None:
        patience.listeners.remove(_active.go_on)
        _active.stop()
    _active = None


@contextmanager
def watched(rank: int, size: int, timeout: float) -> Iterator[None]:
    """Watch this process within the block."""
    start(rank, size, timeout)
    try:
        yield
    finally:
        stop()
