"""The update of the centres may run beside what follows it: nothing reads them before it is joined."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from app.training.trainer import Trainer
from tests.training.test_trainer import batches, everything, make


class Late:
    """As an accelerator's side stream at its slowest: what the work wrote shows only when it is joined."""

    def __init__(self, trainer: Trainer) -> None:
        self.tensors = [trainer.head.centres.data, *trainer.centre_optimizer.state.values()]
        self.written: list[torch.Tensor] | None = None
        self.runs = 0

    def run(self, work: Callable[[], None], *_: object) -> None:
        self.join()
        before = [tensor.clone() for tensor in self.tensors]
        work()
        self.written = [tensor.clone() for tensor in self.tensors]
        self._put(before)
        self.runs += 1

    def join(self) -> None:
        if self.written is not None:
            self._put(self.written)
            self.written = None

    def _put(self, values: list[torch.Tensor]) -> None:
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.copy_(value)


@pytest.mark.parametrize("reproducible", [False, True])
def test_an_update_that_is_late_changes_nothing(reproducible: bool) -> None:
    results = []
    for late in (False, True):
        trainer = make(0, 1, precision="fp32", reproducible=reproducible)
        start = trainer.head.centres.clone()
        if late:
            trainer.head_update = Late(trainer)  # type: ignore[assignment]
        losses = [trainer.step(number, batches(trainer), 0.01).loss for number in range(3)]
        results.append((losses, everything(trainer)))
        assert not torch.equal(trainer.head.centres, start)
        if late:
            assert trainer.head_update.runs == 3  # type: ignore[attr-defined]
    (losses, found), (late_losses, late_found) = results
    assert losses == late_losses
    assert found.keys() == late_found.keys()
    assert all(torch.equal(found[name], late_found[name]) for name in found)


@pytest.mark.parametrize("reproducible", [False, True])
def test_what_a_late_update_reads_outlives_the_next_step(reproducible: bool) -> None:
    trainer = make(0, 1, precision="fp32", reproducible=reproducible)
    kept: list[tuple[Any, ...]] = []

    class Keeping:
        """Holds what it is given, as the side stream does until it is joined."""

        def run(self, work: Callable[[], None], *held: object) -> None:
            kept.append(held)
            work()

        def join(self) -> None:
            """Nothing to wait for."""

    trainer.head_update = Keeping()  # type: ignore[assignment]
    read: list[weakref.ref[torch.Tensor]] = []
    take = trainer.head.take_parts

    def noted(scale: float) -> Any:
        batches = list(trainer.head._batches)
        shards = [part for parts in getattr(trainer.head, "_kept", {}).values() for part in parts]
        read.extend(weakref.ref(batch.unit) for batch in [*batches, *shards])
        return take(scale)

    trainer.head.take_parts = noted  # type: ignore[assignment, method-assign]
    trainer.step(0, batches(trainer), 0.01)
    trainer.head.begin_step(1)
    gc.collect()
    assert read
    assert all(tensor() is not None for tensor in read)
    kept.clear()
    gc.collect()
    assert all(tensor() is None for tensor in read)
