"""The training step under fp16 with gradients that really overflow, with compressed gradients, and its NaN error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from app.config.recipe import DataConfig, ModelConfig, OptimConfig, Recipe, TrainConfig
from app.data.loader import Batch
from app.device import Device, detect_device
from app.errors import AppError
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.trainer import Notes, NotFiniteError, Trainer
from app.world import World
from tests.ranks import run_ranks

CLASSES, ROWS = 6, 4
RECIPE = Recipe(
    model=ModelConfig(backbone="r10_small", embedding_size=16),
    data=DataConfig(image_size=32),
    optim=OptimConfig(lr=0.01),
    train=TrainConfig(batch_size=ROWS, precision="fp16", logical_workers=2),
)


def make(rank: int, world: int, **train: Any) -> Trainer:
    torch.manual_seed(0)
    recipe = replace(RECIPE, train=replace(RECIPE.train, **train))
    return make_trainer(recipe, World(rank, world, 0, detect_device()), ElasticPlan(2, world), CLASSES)


def batches(trainer: Trainer) -> list[Batch]:
    """One for each logical worker of the rank, always the same."""
    made = []
    for worker in trainer.plan.share(trainer.world.rank):
        generator = torch.Generator().manual_seed(worker)
        images = torch.randint(0, 256, (ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8)
        positions = torch.arange(worker * ROWS, (worker + 1) * ROWS)
        made.append(Batch(images, positions % CLASSES, positions))
    return made


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.state(0, {})
    return {name: value.clone() for name, value in {**state.replicated, **state.sharded}.items()}


def overflow(rank: int, world: int, scale: float, steps: int) -> list[tuple[bool, float, bool]]:
    """Of each step: was it skipped, the loss scale after it, did any weight, statistic or optimizer state change."""
    trainer = make(rank, world)
    trainer.loss_scale.scale = scale
    history = []
    for number in range(steps):
        before = everything(trainer)
        result = trainer.step(number, batches(trainer), 0.01)
        after = everything(trainer)
        changed = after.keys() != before.keys() or any(not torch.equal(after[name], before[name]) for name in before)
        history.append((result.skipped, trainer.loss_scale.scale, changed))
    return history


def noted(rank: int, world: int) -> Notes:
    trainer = make(rank, world)
    return trainer.step(0, batches(trainer), 0.01, Notes(stop=rank, uploading=1, bad_records=3 * rank)).notes


def test_ranks_tell_each_other_what_they_note_by_name() -> None:
    assert run_ranks(noted, 2) == [Notes(stop=1, uploading=2, bad_records=3)] * 2
    assert noted(0, 1) == Notes(uploading=1)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_fp16_gradients_that_overflow_halve_the_scale_and_change_nothing(world: int) -> None:
    histories = run_ranks(overflow, world, 8192.0, 6)
    history = histories[0]
    assert all(found == history for found in histories)
    assert history[0] == (True, 4096.0, False)  # this network's gradients do not fit fp16 at such scales
    assert any(not skipped for skipped, _, _ in history)
    scale = 8192.0
    for skipped, scale_after, changed in history:
        scale = scale / 2 if skipped else scale
        assert (scale_after, changed) == (scale, not skipped)


def one_bad_rank(rank: int, world: int) -> list[tuple[bool, bool]]:
    """Whether the step is called finite, and whether it changed anything, when one rank's factors are bad."""
    trainer = make(rank, world)
    finite = trainer.head.finite
    trainer.loss_scale.scale = 1.0
    results = []
    for bad in (False, True):
        before = everything(trainer)
        if bad and rank == 1:
            trainer.head.finite = lambda: torch.zeros((), dtype=torch.bool)  # type: ignore[method-assign]
        result = trainer.step(0, batches(trainer), 0.01)
        trainer.head.finite = finite  # type: ignore[method-assign]
        after = everything(trainer)
        changed = any(not torch.equal(after[name], before[name]) for name in before)
        results.append((not result.skipped, changed))
    return results


def test_gradients_of_class_centres_that_overflow_on_one_rank_count_on_all() -> None:
    assert run_ranks(one_bad_rank, 2) == [[(True, True), (False, False)]] * 2


def test_a_label_outside_the_classes_names_its_sample_and_changes_nothing() -> None:
    trainer = make(0, 1, precision="fp32")
    made = batches(trainer)
    made[1].labels[2] = CLASSES
    before = everything(trainer)
    with pytest.raises(
        AppError, match=r"rank 0: label 6 of the sample at position 6 of the dataset is outside .* 0..5"
    ):
        trainer.step(0, made, 0.01)
    after = everything(trainer)
    assert all(torch.equal(after[name], before[name]) for name in before)


def gradients(rank: int, world: int, compression: str) -> torch.Tensor:
    """All gradients of the backbone after one step: momentum starts as the gradient."""
    trainer = make(rank, world, precision="fp32", gradient_compression=compression)
    trainer.step(0, batches(trainer), 0.01)
    state = trainer.optimizer.state
    return torch.cat([state[p]["momentum_buffer"].flatten() for p in trainer.parameters])


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "unit"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_compressed_gradients_differ_by_rounding_only_and_are_equal_on_all_ranks(compression: str, unit: float) -> None:
    exact, (found, other) = run_ranks(gradients, 2, "none")[0], run_ranks(gradients, 2, compression)
    assert torch.equal(found, other)
    assert 0 < (found - exact).norm() < 2 * unit * exact.norm()


def test_synchronised_batch_norm_needs_an_accelerator_and_equal_shares() -> None:
    recipe = replace(RECIPE, train=replace(RECIPE.train, sync_bn=True))
    with pytest.raises(AppError, match=r"sync_bn needs an accelerator"):
        make_trainer(recipe, World(0, 2, 0, detect_device()), ElasticPlan(4, 2), CLASSES)
    npu = Device("npu", torch.device("cpu"), "gloo")
    with pytest.raises(AppError, match=r"sync_bn needs equal shares: 4 logical workers on 3 processes"):
        make_trainer(recipe, World(0, 3, 0, npu), ElasticPlan(4, 3), CLASSES)


def test_one_image_a_micro_batch_is_refused_unless_its_statistics_rest() -> None:
    with pytest.raises(AppError, match=r"train\.batch_size 1: r10_small normalises over the images of a micro-batch"):
        make(0, 1, batch_size=1, precision="fp32")
    recipe = replace(RECIPE, train=replace(RECIPE.train, batch_size=1, precision="fp32"))
    recipe = replace(recipe, model=replace(RECIPE.model, freeze="batchnorm"))
    trainer = make_trainer(recipe, World(0, 1, 0, detect_device()), ElasticPlan(2, 1), CLASSES)
    made = [replace(b, images=b.images[:1], labels=b.labels[:1], positions=b.positions[:1]) for b in batches(trainer)]
    assert trainer.step(0, made, 0.01).loss > 0


def not_finite(rank: int, world: int) -> tuple[str, list[list[int]], bool]:
    trainer = make(rank, world, precision="fp32")
    with torch.no_grad():
        next(trainer.backbone.parameters()).fill_(float("nan"))
    before = everything(trainer)
    with pytest.raises(NotFiniteError) as caught:
        trainer.step(7, batches(trainer), 0.01)
    after = everything(trainer)
    same = all(torch.equal(after[name].nan_to_num(9), before[name].nan_to_num(9)) for name in before)
    return str(caught.value), caught.value.positions, same


def test_a_nan_loss_names_the_step_and_the_samples_of_every_rank() -> None:
    for message, positions, same in run_ranks(not_finite, 2):
        assert message.startswith("step 7: loss nan")
        assert "rank 0 [0, 1, 2, 3, ...], rank 1 [4, 5, 6, 7, ...]" in message
        assert positions == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert same
