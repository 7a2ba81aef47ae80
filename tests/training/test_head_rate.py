"""Rate and decay of the class centres apart from the backbone's, against SGD and AdamW written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.config.recipe import OptimConfig
from app.device import detect_device
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.training.test_trainer import CLASSES, RECIPE, batches

LR = 0.04


def make(optim: OptimConfig) -> Trainer:
    torch.manual_seed(0)
    recipe = replace(RECIPE, optim=optim, train=replace(RECIPE.train, precision="fp32"))
    return make_trainer(recipe, World(0, 1, 0, detect_device()), ElasticPlan(2, 1), CLASSES)


def step(optim: OptimConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centres before and after a step, and a weight of the backbone after it."""
    trainer = make(optim)
    before = trainer.head.centres.clone()
    trainer.step(0, batches(trainer), LR)
    return before, trainer.head.centres.clone(), next(trainer.backbone.parameters()).detach().clone()


def test_sgd() -> None:
    """After the first step: w - lr f (g + d w); g from a run with factor 1 and without decay."""
    before, plain, backbone = step(OptimConfig(weight_decay=0.0))
    gradient = (before - plain) / LR
    base = OptimConfig(weight_decay=0.01)
    for factor, decay, expected_decay in [(1.0, -1.0, 0.01), (10.0, -1.0, 0.01), (0.5, 0.2, 0.2), (3.0, 0.0, 0.0)]:
        _, after, moved = step(replace(base, head_lr_factor=factor, head_weight_decay=decay))
        expected = before - LR * factor * (gradient + expected_decay * before)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moved, step(base)[2])  # the backbone's rate and decay stay its own
    assert not torch.equal(backbone, step(base)[2])


def test_a_factor_of_0_leaves_the_centres() -> None:
    before, after, _ = step(OptimConfig(head_lr_factor=0.0))
    assert torch.equal(before, after)


def test_adamw() -> None:
    """After the first step: w (1 - lr f d) - lr f sign(g), up to eps."""
    base = OptimConfig(name="adamw", weight_decay=0.01)
    before, plain, _ = step(replace(base, weight_decay=0.0))
    sign = (before - plain) / LR
    _, after, _ = step(replace(base, head_lr_factor=2.0, head_weight_decay=0.3))
    expected = before * (1 - 2 * LR * 0.3) - 2 * LR * sign
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    assert sign.abs().max() == pytest.approx(1, rel=1e-2)
