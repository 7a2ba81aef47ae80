"""Frozen parts keep every bit, weights and statistics; a resumed run is where it would have been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config.recipe import Recipe, RecipeError
from app.device import detect_device
from app.training.build import make_trainer
from app.training.freeze import Freeze
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.ranks import run_ranks
from tests.training.test_trainer import CLASSES, RECIPE, batches

STEPS_PER_EPOCH = 2
PARTS = {
    ("r10_small", "stages"): ("conv1.", "bn1.", "prelu.", "layer1.", "layer2."),
    ("mbf", "stages"): ("layers.0.", "layers.1.", "layers.2.", "layers.3."),
    ("vit_t", "stages"): ("patch_embed.", "pos_embed", *(f"blocks.{number}." for number in range(6))),
    ("r10_small", "backbone"): ("",),
}


def make(rank: int, world: int, **model: Any) -> Trainer:
    torch.manual_seed(0)
    fields = {"model": replace(RECIPE.model, **model), "train": replace(RECIPE.train, precision="fp32")}
    recipe = replace(RECIPE, **fields, optim=Recipe().optim)  # type: ignore[arg-type]
    trainer = make_trainer(recipe, World(rank, world, 0, detect_device()), ElasticPlan(2, world), CLASSES)
    trainer.freeze.steps_per_epoch = STEPS_PER_EPOCH
    return trainer


def train(trainer: Trainer, steps: range) -> None:
    for number in steps:
        trainer.backbone.train()  # as a verification leaves it
        trainer.step(number, batches(trainer), 0.05)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.backbone.state_dict().items()}


def moved(rank: int, world: int, backbone: str, kind: str) -> tuple[set[str], set[str], bool]:
    """Names that three steps changed, all names, and whether the centres changed."""
    trainer = make(rank, world, backbone=backbone, freeze=kind)
    before, centres = weights(trainer), trainer.head.centres.clone()
    train(trainer, range(3))
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return changed, set(before), not torch.equal(centres, trainer.head.centres)


def is_frozen(backbone: str, kind: str, name: str) -> bool:
    if kind == "batchnorm":
        return ".bn" in f".{name}" or "downsample.1." in name or name.startswith("features.")
    return name.startswith(PARTS[backbone, kind])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("backbone", "kind"), [("r10_small", "batchnorm"), *PARTS])
def test_frozen_weights_and_statistics_keep_every_bit(world: int, backbone: str, kind: str) -> None:
    for changed, names, centres in run_ranks(moved, world, backbone, kind):
        frozen = {name for name in names if is_frozen(backbone, kind, name)}
        assert frozen
        assert not changed & frozen
        rest = names - frozen - {"features.weight", "mask_token"}
        assert (changed >= rest) if kind != "backbone" else not rest
        assert centres


def thaw(rank: int, world: int) -> list[dict[str, Tensor]]:
    """The weights at the start and after each of four steps; the freeze holds for the first two."""
    trainer = make(rank, world, freeze="backbone", freeze_epochs=1.0)
    history = [weights(trainer)]
    for number in range(4):
        train(trainer, range(number, number + 1))
        history.append(weights(trainer))
    return history


def test_after_the_freeze_everything_learns_and_two_processes_do_what_one_does() -> None:
    alone = run_ranks(thaw, 1)[0]
    first, second = run_ranks(thaw, 2)
    for name, start in alone[0].items():
        for step in (1, 2):
            assert torch.equal(alone[step][name], start), name
        if name not in ("features.weight",):
            assert not torch.equal(alone[3][name], start), name
        for step in range(5):
            assert torch.equal(first[step][name], second[step][name]), (name, step)
            torch.testing.assert_close(first[step][name], alone[step][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_goes_on_from_a_checkpoint_is_where_it_would_have_been(stop: int) -> None:
    options: dict[str, Any] = {"freeze": "stages", "freeze_epochs": 1.0, "freeze_stages": 1}
    whole = make(0, 1, **options)
    train(whole, range(5))
    first = make(0, 1, **options)
    train(first, range(stop))
    state = first.state(stop, {})
    second = make(0, 1, **options)
    with torch.no_grad():
        for parameter in second.backbone.parameters():
            parameter.add_(1.0)
    second.load(state)
    train(second, range(stop, 5))
    expected, found = weights(whole), weights(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(second.head.centres, whole.head.centres)


def test_a_backbone_without_stages_is_told() -> None:
    config = replace(RECIPE.model, freeze="stages")
    with pytest.raises(RecipeError, match="does not name its stages: take backbone or batchnorm"):
        Freeze(config, torch.nn.Linear(2, 2))
