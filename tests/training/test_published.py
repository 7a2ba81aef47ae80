"""Every published backbone and recipe takes steps on two processes, and parameters without a gradient stop none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.backbones.registry import backbone_names, build_backbone
from app.config.options import load_recipe, recipe_names
from app.config.recipe import DataConfig, ModelConfig, OptimConfig, Recipe, TrainConfig
from app.data.loader import Batch
from app.device import detect_device
from app.head.config import HeadConfig
from app.head.partial_fc import HeadShape, PartialFC
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.ranks import run_ranks

CLASSES, SIZE, DIMENSIONS, STEPS = 24, 18, 16, 3
# The depths are the published ones; only widths and images are small. With 4 channels, torch 2.13's convolution
# writes past its buffers on the CPU when the memory format is channels last.
NARROW: dict[str, dict[str, Any]] = {
    "r": {"widths": (8, 8, 8, 8)},
    "ir_": {"widths": (8, 8, 8, 16)},
    "vit": {"dim": 16},
    "mbf": {"scale": 1},
}


def size_of(name: str) -> int:
    """Pixels of the images: EdgeFace halves the map five times and needs some left."""
    return 36 if name.startswith("edgeface") else SIZE


def narrow(name: str) -> nn.Module:
    family = next((options for prefix, options in NARROW.items() if name.startswith(prefix)), {})
    return build_backbone(name, embedding_size=DIMENSIONS, image_size=size_of(name), **family)


def batch(worker: int, rows: int, step: int, size: int = SIZE) -> Batch:
    generator = torch.Generator().manual_seed(worker + 1000 * step)
    images = torch.randint(0, 256, (rows, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return Batch(images, labels, torch.arange(rows))


def train(rank: int, world: int, recipe: Recipe, backbone: nn.Module) -> list[float]:
    """Losses of three steps; the backbones of all ranks are equal afterwards."""
    workers = 2 * recipe.train.gradient_accumulation
    rows = 2
    recipe = replace(
        recipe,
        model=replace(recipe.model, embedding_size=DIMENSIONS),
        train=replace(recipe.train, batch_size=rows),
    )
    head = PartialFC(recipe.head, HeadShape(DIMENSIONS, CLASSES, workers))
    plan = ElasticPlan(workers, world)
    trainer = Trainer(recipe, World(rank, world, 0, detect_device()), plan, backbone.train(), head)
    losses = []
    for step in range(STEPS):
        size = size_of(recipe.model.backbone)
        batches = [batch(worker, rows, step, size) for worker in plan.share(rank)]
        losses.append(trainer.step(step, batches, 0.01).loss)
    return losses


def train_all(rank: int, world: int, cases: list[tuple[str, Recipe]]) -> list[tuple[str, list[float]]]:
    results = []
    for name, recipe in cases:
        torch.manual_seed(0)
        results.append((name, train(rank, world, recipe, narrow(recipe.model.backbone))))
    return results


def distinct_recipes() -> list[tuple[str, Recipe]]:
    """The published recipes, those that differ in nothing that a step sees named together."""
    cases: dict[object, tuple[str, Recipe]] = {}
    for name in recipe_names():
        recipe = load_recipe(name)
        # fp32: some CPUs emulate half precision, slowly. Two micro-batches stand for the published six and twelve.
        accumulation = min(2, recipe.train.gradient_accumulation)
        recipe = replace(recipe, train=replace(recipe.train, precision="fp32", gradient_accumulation=accumulation))
        key = (recipe.model.backbone, recipe.head, recipe.optim.name, recipe.train.gradient_accumulation)
        cases[key] = (f"{cases[key][0]} {name}" if key in cases else name, recipe)
    return list(cases.values())


@pytest.mark.slow
def test_every_published_recipe_takes_three_steps_on_two_processes() -> None:
    cases = distinct_recipes()
    assert len(cases) > 15
    first, second = run_ranks(train_all, 2, cases)
    assert first == second
    for name, losses in first:
        assert len(losses) == STEPS, name
        assert all(math.isfinite(loss) for loss in losses), name


@pytest.mark.slow
def test_every_backbone_takes_three_steps_on_two_processes() -> None:
    recipe = Recipe(optim=OptimConfig(lr=0.01))
    cases = [(name, replace(recipe, model=ModelConfig(backbone=name))) for name in backbone_names() if name != "r2060"]
    first, second = run_ranks(train_all, 2, cases)
    assert first == second
    assert all(math.isfinite(loss) for _, losses in first for loss in losses)


class PartlyUsed(nn.Module):
    """One parameter nothing depends on, one that only every other step uses, one that all use."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(3 * SIZE * SIZE, DIMENSIONS)
        self.sometimes = nn.Linear(DIMENSIONS, DIMENSIONS)
        self.never = nn.Parameter(torch.full((5,), 2.0))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.always(images.flatten(1))
        self.calls += 1
        return self.sometimes(out) if self.calls > 2 else out


def unused(rank: int, world: int, workers: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe = Recipe(
        model=ModelConfig(embedding_size=DIMENSIONS),
        data=DataConfig(image_size=SIZE),
        optim=OptimConfig(lr=0.01, weight_decay=0.1),
        train=TrainConfig(batch_size=2),
    )
    backbone = PartlyUsed()
    backbone.calls = 0 if world == 1 else 1  # one rank alone runs twice as many micro-batches
    head = PartialFC(HeadConfig(margin="none"), HeadShape(DIMENSIONS, CLASSES, workers))
    plan = ElasticPlan(workers, world)
    trainer = Trainer(recipe, World(rank, world, 0, detect_device()), plan, backbone, head)
    for step in range(STEPS):
        trainer.step(step, [batch(worker, 2, step) for worker in plan.share(rank)], 0.01)
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def test_parameters_without_a_gradient_train_alike_on_one_and_two_processes() -> None:
    (alone,) = run_ranks(unused, 1, 2)
    for found in run_ranks(unused, 2, 2):
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert (alone["never"] < 2).all()  # weight decay alone


def uneven(rank: int, world: int) -> list[float]:
    torch.manual_seed(0)
    recipe = Recipe(
        model=ModelConfig(backbone="vit_t_dp005_mask0", embedding_size=DIMENSIONS),
        optim=OptimConfig(name="adamw", lr=0.01),
        train=TrainConfig(batch_size=2),
    )
    head = PartialFC(HeadConfig(margin="none"), HeadShape(DIMENSIONS, CLASSES, 3))
    plan = ElasticPlan(3, world)
    trainer = Trainer(recipe, World(rank, world, 0, detect_device()), plan, narrow("vit_t_dp005_mask0").train(), head)
    return [
        trainer.step(step, [batch(worker, 2, step) for worker in plan.share(rank)], 0.01).loss for step in range(STEPS)
    ]


def test_a_vit_without_masking_trains_on_uneven_shares() -> None:
    first, second = run_ranks(uneven, 2)
    assert first == second
    assert all(math.isfinite(loss) for loss in first)


def test_the_mask_token_of_a_vit_without_masking_is_frozen() -> None:
    assert not narrow("vit_s_dp005_mask_0").get_parameter("mask_token").requires_grad
    assert narrow("vit_s").get_parameter("mask_token").requires_grad
