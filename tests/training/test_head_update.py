"""The update of the centres may run beside what follows it: nothing reads them before it is joined."""

from __future__ import annotations

from collections.abc import Callable

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


def test_an_update_that_is_late_changes_nothing() -> None:
    results = []
    for late in (False, True):
        trainer = make(0, 1, precision="fp32")
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
