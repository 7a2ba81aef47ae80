"""Backbones with parameters that no output depends on, and parts at rest: one process and two train them alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.config.recipe import OptimConfig, Recipe
from app.device import detect_device
from app.run_folder import build_model
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.ranks import run_ranks
from tests.training.test_trainer import CLASSES, RECIPE, batches

STEPS = 2


def recipe_of(**train: Any) -> Recipe:
    section = replace(RECIPE.train, precision="fp32", logical_workers=3, **train)
    return replace(RECIPE, train=section, optim=OptimConfig(lr=0.01, momentum=0.0, weight_decay=0.5))


def with_an_idle_parameter(rank: int, world: int, frozen: str, train: dict[str, Any]) -> Trainer:
    """Of three logical workers: on two processes one runs a micro-batch more than the other."""
    recipe, own, plan = recipe_of(**train), World(rank, world, 0, detect_device()), ElasticPlan(3, world)
    torch.manual_seed(0)
    backbone = build_model(recipe.model, recipe.data.image_size)
    backbone.register_parameter("idle", nn.Parameter(torch.ones(7)))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(frozen)))
    torch.manual_seed(0)
    return Trainer(recipe, own, plan, backbone, make_trainer(recipe, own, plan, CLASSES).head)


def trained(rank: int, world: int, frozen: str, train: dict[str, Any]) -> tuple[dict[str, Tensor], list[float]]:
    trainer = with_an_idle_parameter(rank, world, frozen, train)
    losses = [trainer.step(number, batches(trainer), 0.01).loss for number in range(STEPS)]
    return {name: value.clone() for name, value in trainer.backbone.state_dict().items()}, losses


CASES: list[tuple[str, dict[str, Any]]] = [("layer1", {}), ("conv1", {"reproducible": True})]


def all_trained(rank: int, world: int) -> list[tuple[dict[str, Tensor], list[float]]]:
    return [trained(rank, world, *case) for case in CASES]


@pytest.mark.slow
def test_one_process_and_two_train_a_backbone_with_an_idle_parameter_alike() -> None:
    alone, (first, second) = all_trained(0, 1), run_ranks(all_trained, 2)
    for (frozen, train), one, two, other in zip(CASES, alone, first, second, strict=True):
        backbone = with_an_idle_parameter(0, 1, frozen, train).backbone
        start = backbone.state_dict()
        resting = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        for name, value in one[0].items():
            assert torch.equal(two[0][name], other[0][name]), name
            if train:
                assert torch.equal(value, two[0][name]), name
            else:
                torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-3)
            assert torch.equal(value, start[name]) == (name in resting), name
        # Its gradient is 0 everywhere: weight decay alone moves it.
        torch.testing.assert_close(one[0]["idle"], torch.ones(7) * (1 - 0.01 * 0.5) ** STEPS)
        assert two[1] == (one[1] if train else pytest.approx(one[1], rel=1e-3))
