"""BatchNorm's running statistics and counters, which live in arrays of all layers, as models and files have them."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from app.run_folder import save_model
from app.training.batch_statistics import BatchStatistics
from tests.checkpoint.test_manager import manager
from tests.ranks import run_ranks
from tests.training.test_freeze import make as make_frozen
from tests.training.test_freeze import train as train_frozen
from tests.training.test_freeze import weights
from tests.training.test_trainer import CLASSES, batches, make

COUNTER = "num_batches_tracked"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=0.3), nn.Flatten(), nn.BatchNorm1d(64)]
    return nn.Sequential(*parts)


def run(model: nn.Module, statistics: BatchStatistics, steps: int, micro: int, *, keep: Sequence[bool] = ()) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        statistics.begin_step()
        for _ in range(micro):
            with statistics.micro_batch():
                model(torch.randn(5, 3, 6, 6, generator=generator))
        statistics.end_step(keep=keep[step] if keep else True)


def counters(model: nn.Module) -> list[int]:
    return [int(value) for name, value in model.state_dict().items() if name.endswith(COUNTER)]


@pytest.mark.parametrize("micro", [1, 3])
def test_a_step_counts_once_and_one_that_is_skipped_not_at_all(micro: int) -> None:
    model = network()
    statistics = BatchStatistics(model, micro)
    run(model, statistics, 4, micro)
    assert counters(model) == [4, 4, 4]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, statistics, 1, micro, keep=[False])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[2].eval()
    run(model, statistics, 2, micro)
    assert counters(model) == [6, 4, 6]
    model[2].train()
    model[1].eval()
    run(model, statistics, 3, micro, keep=[True, False, True])
    assert counters(model) == [6, 6, 8]


def test_one_micro_batch_a_step_is_plain_batch_norm() -> None:
    model, plain = network(), network()
    run(model, BatchStatistics(model, 1), 3, 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        plain(torch.randn(5, 3, 6, 6, generator=generator))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_copy_is_on_its_own_and_a_state_that_is_loaded_lands_in_the_arrays() -> None:
    model = network()
    statistics = BatchStatistics(model, 1)
    run(model, statistics, 3, 1)
    other = copy.deepcopy(model)
    run(model, statistics, 2, 1)
    assert counters(other) == [3, 3, 3]
    assert counters(model) == [5, 5, 5]
    other(torch.randn(5, 3, 6, 6))
    assert counters(other) == [4, 4, 4]
    assert counters(model) == [5, 5, 5]
    model.load_state_dict(other.state_dict())
    run(model, statistics, 1, 1)
    assert counters(model) == [5, 5, 5]


def test_a_state_of_before_there_were_counters_leaves_them() -> None:
    model = network()
    statistics = BatchStatistics(model, 1)
    run(model, statistics, 2, 1)
    old = {name: value for name, value in network().state_dict().items() if not name.endswith(COUNTER)}
    model.load_state_dict(old)
    assert counters(model) == [2, 2, 2]
    run(model, statistics, 1, 1)
    assert counters(model) == [3, 3, 3]


def test_layers_that_keep_no_counter_do_not_stop_the_others_from_counting() -> None:
    model = network()
    model[2].register_buffer(COUNTER, None)
    run(model, BatchStatistics(model, 3), 2, 3)
    assert counters(model) == [2, 2]


def test_model_pt_and_a_checkpoint_hold_counters_as_torch_writes_them_and_a_resume_counts_on(tmp_path: Path) -> None:
    trainer = make(0, 1, precision="fp32")
    for number in range(3):
        trainer.step(number, batches(trainer), 0.01)
    checkpoints = manager(str(tmp_path / "checkpoints"))
    checkpoints.save(trainer.state(3, {}))
    resumed = make(0, 1, precision="fp32")
    loaded = checkpoints.load_latest((0, CLASSES))
    assert loaded is not None
    resumed.load(loaded)
    save_model(str(tmp_path), trainer.backbone, trainer.recipe, 3)
    data = (tmp_path / "model.pt").read_bytes()
    written = torch.load(io.BytesIO(data), weights_only=True)
    plain = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    assert len(data) <= len(buffer.getvalue()) + 4096  # and not the whole array with each view of it
    for name, value in plain.items():
        assert (written[name].dtype, written[name].shape) == (value.dtype, value.shape)
        assert torch.equal(written[name], value)
        assert not name.endswith(COUNTER) or value.item() == 3
        assert torch.equal(resumed.backbone.state_dict()[name], value)
    for each in (trainer, resumed):
        each.step(3, batches(each), 0.01)
    assert set(counters(resumed.backbone)) == {4}
    expected, found = weights(trainer), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def counted_while_thawed(rank: int, world: int) -> list[dict[str, int]]:
    """Counters of a backbone whose first stages rest for two steps of four; the third step overflows."""
    trainer, history = make_frozen(rank, world, freeze="stages", freeze_stages=1, freeze_epochs=1.0), []
    finite = trainer.head.finite
    for number in range(4):
        trainer.loss_scale.enabled = number == 2  # which is skipped then, and is no error
        if number == 2 and rank == 0:
            trainer.head.finite = lambda: torch.zeros((), dtype=torch.bool)  # type: ignore[method-assign]
        train_frozen(trainer, range(number, number + 1))
        trainer.head.finite = finite  # type: ignore[method-assign]
        trainer.loss_scale.enabled, trainer.loss_scale.scale = False, 1.0
        history.append({name: int(v) for name, v in weights(trainer).items() if name.endswith(COUNTER)})
    return history


@pytest.mark.parametrize("world", [1, 2])
def test_counters_rest_with_their_layers_and_in_a_step_that_is_skipped(world: int) -> None:
    for history in run_ranks(counted_while_thawed, world):
        for name in history[0]:
            frozen = name.startswith(("bn1.", "layer1."))
            assert [step[name] for step in history] == ([0, 0, 0, 1] if frozen else [1, 2, 2, 3]), name
