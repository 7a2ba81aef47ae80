"""Training steps on an accelerator: against the CPU, in half precision, beside the head's update, bit for bit again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from app.device import BatchCopies, Device, detect_device
from app.training.trainer import Trainer
from tests.training import test_trainer as on_cpu

DEVICE = detect_device()
pytestmark = pytest.mark.skipif(DEVICE.kind == "cpu", reason="needs an accelerator")
STEPS = 6


def make(device: Device, **train: Any) -> Trainer:
    """The trainer of the CPU's tests, whose device is asked for by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_cpu, "detect_device", lambda: device)
        return on_cpu.make(0, 1, **train)


def run(trainer: Trainer, steps: int = STEPS) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses, and everything that a checkpoint holds, on the CPU."""
    losses = [trainer.step(number, on_cpu.batches(trainer), 0.01).loss for number in range(steps)]
    trainer.head_update.join()
    return losses, {name: value.cpu() for name, value in on_cpu.everything(trainer).items()}


@pytest.fixture
def exact_products() -> Iterator[None]:
    """float32 convolutions in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Leaves the process as it was after a reproducible run."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("exact_products")
def test_the_first_steps_are_those_of_a_cpu() -> None:
    expected, _ = run(make(detect_device("cpu"), precision="fp32"), 3)
    found, _ = run(make(DEVICE, precision="fp32"), 3)
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_learns_as_float32_does(precision: str) -> None:
    exact, _ = run(make(DEVICE, precision="fp32"))
    half = make(DEVICE, precision=precision)
    half.loss_scale.scale = 16.0
    found, state = run(half)
    assert found[0] == pytest.approx(exact[0], rel=0.05)
    assert found[-1] < 0.95 * found[0]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def test_an_overflow_halves_the_scale_and_changes_nothing() -> None:
    trainer = make(DEVICE)
    trainer.loss_scale.scale = 2.0**40
    before = on_cpu.everything(trainer)
    assert trainer.step(0, on_cpu.batches(trainer), 0.01).skipped
    after = on_cpu.everything(trainer)
    assert trainer.loss_scale.scale == 2.0**39
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.usefixtures("deterministic")
def test_a_reproducible_run_gives_its_bits_again_and_the_head_beside_it_changes_none() -> None:
    DEVICE.make_reproducible()
    runs = []
    for aside in (True, True, False):
        trainer = make(DEVICE, precision="fp16", reproducible=True)
        trainer.loss_scale.scale = 16.0
        if not aside:
            trainer.head_update = Inline()  # type: ignore[assignment]
        runs.append(run(trainer))
    (losses, state), *others = runs
    assert len(set(losses)) == STEPS
    for other_losses, other_state in others:
        assert other_losses == losses
        assert all(torch.equal(other_state[name], state[name]) for name in state)


class Inline:
    """The head's update in the stream of everything else."""

    def run(self, work: Callable[[], None], *_: object) -> None:
        work()

    def join(self) -> None:
        """Nothing is under way."""


def test_batches_that_are_copied_ahead_arrive_whole() -> None:
    copies = DEVICE.copies()
    assert isinstance(copies, BatchCopies)
    shape, seen = (64, 112, 112, 3), set()
    work = torch.randn(2048, 2048, device=DEVICE.torch_device)
    for number in range(200):
        buffer = copies.buffer(shape)
        assert buffer.is_pinned()
        seen.add(buffer.data_ptr())
        buffer.fill_(number % 251)
        sent, event = copies.send(buffer)
        work = torch.tanh(work @ work)  # what the copy goes beside
        arrived = DEVICE.arrived(sent, event)
        assert int(arrived.min()) == int(arrived.max()) == number % 251
    assert len(seen) <= 4
