"""CurricularFace and sub-centres in training: their state is in checkpoints, which any number of processes loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.checkpoint.manager import CheckpointManager
from app.config.recipe import HeadConfig
from app.device import detect_device
from app.training.build import make_trainer
from app.training.plan import ElasticPlan
from app.training.start import start_from_weights
from app.training.trainer import Trainer
from app.world import World
from tests.ranks import run_ranks
from tests.training.test_trainer import CLASSES, RECIPE, batches

HEAD = HeadConfig(margin="curricular", curricular_t_alpha=0.5, sub_centres=3, scale=16.0)


def make(rank: int, world: int, head: HeadConfig = HEAD, *, reproducible: bool = False) -> Trainer:
    torch.manual_seed(0)
    train = replace(RECIPE.train, precision="fp32", reproducible=reproducible)
    recipe = replace(RECIPE, head=head, train=train)
    return make_trainer(recipe, World(rank, world, 0, detect_device()), ElasticPlan(2, world), CLASSES)


def go_on(rank: int, world: int, url: str, steps: range, reproducible: bool) -> tuple[list[float], Tensor, float]:
    """Load what is there, train ``steps``, save; losses, this rank's centres and CurricularFace's t."""
    trainer = make(rank, world, reproducible=reproducible)
    checkpoints = CheckpointManager(url, trainer.world, owner="job")
    if steps.start:
        loaded = checkpoints.load_latest((trainer.head.start, trainer.head.stop))
        assert loaded is not None
        trainer.load(loaded)
    losses = [trainer.step(number, batches(trainer), 0.05).loss for number in steps]
    checkpoints.save(trainer.state(steps.stop, {}))
    return losses, trainer.head.centres.detach().clone(), float(trainer.head.margin.t)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"), [(1, 2), (2, 1), pytest.param(2, 2, marks=pytest.mark.slow)], ids=["1-2", "2-1", "2-2"]
)
@pytest.mark.parametrize("reproducible", [False, True], ids=["", "reproducible"])
def test_a_resharded_checkpoint_goes_on_as_if_nothing_had_been(
    tmp_path: Path, before: int, after: int, reproducible: bool
) -> None:
    losses, centres, t = go_on(0, 1, str(tmp_path / "whole"), range(4), reproducible)
    assert centres.shape == (CLASSES, 3 * RECIPE.model.embedding_size)
    assert t != 0.0
    first = run_ranks(go_on, before, str(tmp_path / "parts"), range(2), reproducible)
    second = run_ranks(go_on, after, str(tmp_path / "parts"), range(2, 4), reproducible)
    found = [*first[0][0], *second[0][0]]
    joined = torch.cat([part for _, part, _ in second])
    if reproducible:
        assert (found, second[0][2]) == (losses, t)
        assert torch.equal(joined, centres)
    else:
        assert found == pytest.approx(losses, rel=1e-4)
        assert second[0][2] == pytest.approx(t, rel=1e-3)
        torch.testing.assert_close(joined, centres, rtol=1e-3, atol=1e-5)


def test_a_reference_head_with_sub_centres_starts_a_run(tmp_path: Path) -> None:
    size = RECIPE.model.embedding_size
    weight = torch.randn(CLASSES * 3, size)
    torch.save({"state_dict_softmax_fc": {"weight": weight}}, tmp_path / "checkpoint_gpu_0.pt")
    head = replace(HEAD, init=str(tmp_path / "checkpoint_gpu_{rank}.pt"))
    trainer = make(0, 1, head)
    start_from_weights(trainer.recipe, trainer)
    assert torch.equal(trainer.head.centres[2], weight[6:9].flatten())
