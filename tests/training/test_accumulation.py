"""Accumulated micro-batches as insightface's loop adds them up, against that loop written out plainly."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from app.data.pixels import normalise_
from app.device import detect_device
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.head.oracle import Case, loss_of
from tests.ranks import run_ranks
from tests.training.test_trainer import CLASSES, RECIPE, batches


def make(rank: int, world: int, accumulate: str, clip: float) -> Trainer:
    torch.manual_seed(0)
    train = replace(RECIPE.train, precision="fp32", gradient_accumulation=2 // world, accumulate=accumulate)
    recipe = replace(RECIPE, train=train, optim=replace(RECIPE.optim, clip_norm=clip))
    return make_trainer(recipe, World(rank, world, 0, detect_device()), ElasticPlan(2, world), CLASSES)


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_sum_is_what_insightfaces_loop_computes(clip: float) -> None:
    """backward() of each micro-batch's mean loss, clip_grad_norm_(5), one optimizer.step()."""
    trainer = make(0, 1, "sum", clip)
    backbone = copy.deepcopy(trainer.backbone)
    centres = trainer.head.centres.clone().requires_grad_()
    case = Case(classes=CLASSES)
    optim = trainer.recipe.optim
    learning = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([*learning, centres], lr=0.05, momentum=0.9, weight_decay=optim.weight_decay)
    losses = []
    for batch in batches(trainer):
        images = normalise_(batch.images.float())
        loss = loss_of(case, backbone(images), batch.labels, centres, torch.arange(CLASSES))
        loss.backward()
        losses.append(float(loss.detach()))
    if clip:
        torch.nn.utils.clip_grad_norm_(learning, clip)
    optimizer.step()
    result = trainer.step(0, batches(trainer), 0.05)
    assert result.loss == pytest.approx(sum(losses) / 2, rel=1e-5)  # the loss that is shown is a mean all the same
    torch.testing.assert_close(trainer.head.centres, centres.detach(), rtol=1e-4, atol=1e-6)
    # A gradient of half the size, as the mean has, would be off by more than a thousand times this.
    for found, expected in zip(trainer.backbone.parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def gradient_norm(rank: int, world: int, accumulate: str) -> float:
    trainer = make(rank, world, accumulate, 0.0)
    return trainer.step(0, batches(trainer), 0.05).gradient_norm


def test_the_mean_is_the_default_and_half_of_the_sum() -> None:
    mean_norm = gradient_norm(0, 1, "mean")
    assert gradient_norm(0, 1, "sum") == pytest.approx(2 * mean_norm, rel=1e-5)
    # Two processes with a micro-batch each accumulate nothing: the mean, whatever the setting.
    for norm in run_ranks(gradient_norm, 2, "sum"):
        assert norm == pytest.approx(mean_norm, rel=1e-4)
