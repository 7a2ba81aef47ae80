"""A loader that reads over the ends of epochs: ends anywhere, errors in a later epoch, and what both leave behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data import loader as loader_module
from app.data.loader import Batch, Loader
from app.data.order import SampleOrder
from app.data.recordio import RecordError
from app.data.source import Source
from app.data.window import WindowStream
from app.storage import StorageError
from tests.data.test_loading import flat, make_loader, write_dataset

EPOCHS = 4


class Watched:
    """Which streams are open and which batches were begun, ``(epoch, step)``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[WindowStream] = []
        self.closed: list[WindowStream] = []
        self.made: list[tuple[int, int]] = []
        self.bad: tuple[int, int] | None = None  # the batch that cannot be made
        create, close, make = loader_module.WindowStream, WindowStream.close, Loader._make_batch

        def opening(source: Source, order: SampleOrder, *arguments: Any) -> WindowStream:
            self.opened.append(create(source, order, *arguments))
            return self.opened[-1]

        def closing(stream: WindowStream) -> None:
            self.closed.append(stream)
            close(stream)

        def making(loader: Loader, stream: WindowStream, epoch: int, step: int) -> Batch:
            self.made.append((epoch, step))
            if (epoch, step) == self.bad:
                raise RecordError("unreadable")
            return make(loader, stream, epoch, step)

        monkeypatch.setattr(loader_module, "WindowStream", opening)
        monkeypatch.setattr(WindowStream, "close", closing)
        monkeypatch.setattr(Loader, "_make_batch", making)

    def all_closed_once(self) -> bool:
        return sorted(map(id, self.opened)) == sorted(map(id, self.closed))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("over") / "set")
    write_dataset(url)
    return url


@pytest.fixture(scope="module")
def whole(folder: str) -> list[tuple[list[int], int]]:
    """Batches of both workers of all epochs, each read alone."""
    loader = make_loader(folder, augment="small")
    found = [batch for epoch in range(EPOCHS) for batch in flat(loader.steps(epoch, 0, [0, 1]))]
    loader.close()
    return found


def threads_end() -> bool:
    """Whether no thread of a loader is left, in ten seconds at the most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(thread.name.startswith(("decode", "fetch")) for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_stretch_of_steps_is_the_same_and_leaves_nothing_open(
    folder: str, whole: list[tuple[list[int], int]], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        workers, prefetch = data.draw(st.sampled_from([[0], [1], [0, 1]])), data.draw(st.integers(1, 20))
        loader = make_loader(folder, augment="small", workers=data.draw(st.integers(1, 3)), prefetch=prefetch)
        each = loader.steps_per_epoch
        begin = data.draw(st.integers(0, EPOCHS * each - 1))
        count = data.draw(st.integers(0, EPOCHS * each - begin))
        taken = data.draw(st.integers(0, count))
        steps = loader.steps(*divmod(begin, each), workers, count)
        found = [next(steps) for _ in range(taken)]
        if taken == count:
            assert next(steps, None) is None
        steps.close()  # type: ignore[attr-defined]
        loader.close()
        expected = [whole[2 * step + worker] for step in range(begin, begin + taken) for worker in workers]
        assert flat(iter(found)) == expected
        assert watched.all_closed_once()
        wanted = {divmod(step, each) for step in range(begin, begin + count)}
        assert set(watched.made) <= wanted  # nothing behind the last step
    assert threads_end()


@pytest.mark.parametrize("prefetch", [1, 5, 40])
def test_an_error_in_a_later_epoch_comes_at_its_step_and_leaves_nothing_open(
    folder: str, watched: Watched, prefetch: int
) -> None:
    loader = make_loader(folder, workers=2, prefetch=prefetch)
    each = loader.steps_per_epoch
    watched.bad = (1, 2)
    steps = loader.steps(0, 0, [0, 1], 3 * each)
    for _ in range(each + 2):  # the steps before it are trained, however early the error was known
        next(steps)
    with pytest.raises(RecordError, match="unreadable"):
        next(steps)
    assert next(steps, None) is None
    assert watched.all_closed_once()
    loader.close()
    assert threads_end()


def test_a_store_that_fails_in_the_second_epoch_is_told_and_what_waits_is_cancelled(
    folder: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(folder, workers=2, prefetch=40)
    each, read, begun = loader.steps_per_epoch, type(loader._source).read, threading.Event()

    def reading(source: Any, positions: np.ndarray[Any, Any]) -> list[bytes]:
        if begun.is_set():
            raise StorageError("gone")
        return read(source, positions)

    monkeypatch.setattr(type(loader._source), "read", reading)
    steps: Iterator[list[Batch]] = loader.steps(0, each - 1, [0, 1], 2 * each)
    next(steps)
    for stream in watched.opened:  # those of the second epoch are read anew
        stream._windows.clear()
    begun.set()
    with pytest.raises(StorageError, match="gone"):
        list(steps)
    assert watched.all_closed_once()
    loader.close()
    assert threads_end()


def test_a_loop_that_is_left_by_an_error_closes_its_steps(folder: str, watched: Watched) -> None:
    loader = make_loader(folder)

    def train() -> None:
        for number, _ in enumerate(loader.steps(0, 0, [0, 1], 2 * loader.steps_per_epoch)):
            if number == loader.steps_per_epoch + 1:
                raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        train()
    gc.collect()
    assert watched.all_closed_once()
    loader.close()
    assert threads_end()


def test_batches_that_were_not_begun_are_never_made(
    folder: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(folder, workers=1, prefetch=40)
    go_on, make, third = threading.Event(), Loader._make_batch, threading.Event()

    def waiting(loader: Loader, *arguments: Any) -> Batch:
        if len(watched.made) == 2:
            third.set()
            go_on.wait(10)
        return make(loader, *arguments)

    monkeypatch.setattr(Loader, "_make_batch", waiting)
    steps = loader.steps(0, 0, [0, 1], 3 * loader.steps_per_epoch)
    next(steps)
    assert third.wait(10)
    steps.close()  # type: ignore[attr-defined]
    assert watched.all_closed_once()
    go_on.set()
    loader._decoders.shutdown()  # once all that it holds is done
    assert len(watched.made) == 3
    loader.close()
    assert threads_end()
