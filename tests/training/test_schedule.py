"""Learning rates against the reference's recurrence, and the loss scale's rules."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from app.config.options import parse_arguments
from app.config.recipe import OptimConfig, RecipeError
from app.training.loss_scale import LossScale
from app.training.schedule import learning_rate


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_poly_is_the_references_chained_form(power: float) -> None:
    config = OptimConfig(lr=0.4, power=power, warmup_epochs=2)
    total, per_epoch, warmup = 100, 10, 20
    rate = config.lr
    for step in range(1, total):
        if step <= warmup:
            rate = config.lr * step / warmup
        else:
            rate *= ((1 - (step - warmup) / (total - warmup)) / (1 - (step - 1 - warmup) / (total - warmup))) ** power
        assert learning_rate(config, step, total, per_epoch) == pytest.approx(rate)


def test_the_first_step_of_a_warm_up_is_small_and_without_one_full() -> None:
    assert learning_rate(OptimConfig(lr=0.4, warmup_epochs=2), 0, 100, 10) == pytest.approx(0.02)
    assert learning_rate(OptimConfig(lr=0.4), 0, 100, 10) == 0.4


def test_cosine_halves_in_the_middle_and_ends_at_zero() -> None:
    config = OptimConfig(lr=1.0, schedule="cosine")
    assert learning_rate(config, 50, 100, 10) == pytest.approx(0.5)
    assert learning_rate(config, 100, 100, 10) == pytest.approx(0.0)
    assert learning_rate(dataclasses.replace(config, warmup_epochs=1), 55, 100, 10) == pytest.approx(
        (1 + math.cos(math.pi / 2)) / 2
    )


def test_the_loss_scale_grows_after_a_hundred_good_steps_and_halves_after_a_bad_one() -> None:
    scale = LossScale(enabled=True)
    for _ in range(99):
        scale.update(finite=True)
    assert scale.scale == 65536
    scale.update(finite=True)
    assert scale.scale == 131072
    scale.update(finite=False)
    assert scale.scale == 65536
    other = LossScale(enabled=True)
    other.load_state_dict(scale.state_dict())
    assert (other.scale, other.good_steps) == (65536, 0)
    off = LossScale(enabled=False)
    off.update(finite=False)
    assert off.scale == 1


def test_multistep_is_torchs_after_a_warm_up() -> None:
    config = OptimConfig(lr=0.4, schedule="steps", milestones=("3", "5.5"), gamma=0.2, warmup_epochs=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 55], 0.2)
    for step in range(80):
        expected = 0.4 * max(step, 1) / 10 if step < 10 else oracle.get_last_lr()[0]
        assert learning_rate(config, step, 80, 10) == pytest.approx(expected)
        optimizer.step()
        oracle.step()


@pytest.mark.parametrize("milestones", ["5,3", "a,b", "-1,4", "nan"])
def test_milestones_are_rising_epochs(milestones: str) -> None:
    with pytest.raises(RecipeError, match=r"optim\.milestones must be rising numbers"):
        parse_arguments(["--recipe", "orl", "--optim.milestones", milestones])


def test_a_fixed_loss_scale_stays() -> None:
    scale = LossScale(enabled=True, fixed=256.0, growth_interval=1)
    scale.update(finite=False)
    scale.update(finite=True)
    assert scale.scale == 256
    scale.load_state_dict({"scale": 65536.0, "good_steps": 3})
    assert scale.scale == 256
