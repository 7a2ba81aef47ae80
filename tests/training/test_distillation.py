"""Distillation: the loss and its gradients are the formula's, on any number of processes, and go on after a restart."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from app.checkpoint.manager import CheckpointManager
from app.config.recipe import DistillConfig, OptimConfig, Recipe, RecipeError
from app.data.pixels import normalise_
from app.device import detect_device
from app.evaluate.export_onnx import export_onnx
from app.run_folder import build_model, save_model
from app.training.build import make_trainer
from app.training.distillation import open_teacher
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.world import World
from tests.ranks import run_ranks
from tests.training.test_trainer import CLASSES, RECIPE, ROWS, batches


def recipe_of(url: str, weight: float, loss: str = "cosine", *, reproducible: bool = False) -> Recipe:
    return replace(
        RECIPE,
        distill=DistillConfig(teacher=url, weight=weight, loss=loss),
        optim=OptimConfig(lr=0.05, clip_norm=0.0),
        train=replace(RECIPE.train, precision="fp32", reproducible=reproducible),
    )


def make(rank: int, world: int, recipe: Recipe) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(recipe, World(rank, world, 0, detect_device()), ElasticPlan(2, world), CLASSES)


def write_teacher(folder: Path, embedding_size: int, image_size: int = 32) -> str:
    """A run folder whose model has statistics of its own."""
    torch.manual_seed(5)
    config = replace(RECIPE.model, embedding_size=embedding_size)
    recipe = replace(RECIPE, model=config, data=replace(RECIPE.data, image_size=image_size))
    model = build_model(config, image_size).train()
    model(torch.rand(8, 3, image_size, image_size) * 2 - 1)
    save_model(str(folder), model, recipe, 7)
    return str(folder)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_teacher(tmp_path_factory.mktemp("wide"), 24)


@pytest.fixture(scope="module")
def equal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_teacher(tmp_path_factory.mktemp("equal"), RECIPE.model.embedding_size)


def by_hand(trainer: Trainer, weight: float, loss: str) -> tuple[float, dict[str, Tensor]]:
    """What distillation adds to the first step's loss and to its gradients, from the papers' formulas."""
    backbone, distillation = deepcopy(trainer.backbone), trainer.distillation
    assert distillation is not None
    projection = deepcopy(distillation.projection)
    total = torch.zeros(())
    for batch in batches(trainer):
        images = normalise_(batch.images.float())
        student, wanted = backbone(images), distillation.teacher.embed(batch.images)
        student = student if projection is None else student @ projection.weight.T
        if loss == "cosine":
            norms = student.norm(dim=1) * wanted.norm(dim=1)
            total = total + (1 - (student * wanted).sum(1) / norms).sum() * weight / (2 * ROWS)
        else:
            total = total + ((student - wanted) ** 2).sum() / student.shape[1] * weight / (2 * ROWS)
    total.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
    if projection is not None:
        gradients |= {f"distill.{name}": p.grad for name, p in projection.named_parameters() if p.grad is not None}
    return float(total.detach()), gradients


def first_step(rank: int, world: int, recipe: Recipe) -> tuple[float, dict[str, Tensor]]:
    """The first step's loss, and all its gradients with weight decay: what SGD's momentum starts as."""
    trainer = make(rank, world, recipe)
    loss = trainer.step(0, batches(trainer), 0.05).loss
    state = trainer.state(1, {}).replicated
    ends = ("optimizer.", ".momentum_buffer")
    return loss, {k[len(ends[0]) : -len(ends[1])]: v.clone() for k, v in state.items() if k.endswith(ends[1])}


@pytest.mark.parametrize(
    ("world", "teacher", "loss"),
    [
        *((1, teacher, loss) for teacher in ("wide", "equal") for loss in ("cosine", "distance")),
        (2, "wide", "cosine"),
        pytest.param(2, "equal", "distance", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_are_the_formulas(
    teacher: str, loss: str, world: int, request: pytest.FixtureRequest
) -> None:
    url, weight = request.getfixturevalue(teacher), 3.0
    expected_loss, expected = by_hand(make(0, 1, recipe_of(url, weight, loss)), weight, loss)
    assert ("distill.weight" in expected) == (teacher == "wide")
    recipes = [recipe_of(url, each, loss) for each in (weight, 0.0)]
    runs = [[first_step(0, 1, each)] if world == 1 else run_ranks(first_step, world, each) for each in recipes]
    for (with_it, gradients), (without, others) in zip(*runs, strict=True):
        assert with_it - without == pytest.approx(expected_loss, rel=1e-4)
        whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():
            error = gradients[name] - others[name] - gradient
            # What is 0 but for rounding, a bias before a BatchNorm, is compared with all gradients together.
            assert float(error.norm()) <= 1e-3 * float(gradient.norm()) + 1e-4 * float(whole), name


def go_on(
    rank: int, world: int, recipe: Recipe, folder: str, start: int, stop: int
) -> tuple[list[float], list[Tensor]]:
    """Load what is there, train steps, save; losses, and weights of backbone and projection."""
    trainer = make(rank, world, recipe)
    checkpoints = CheckpointManager(folder, trainer.world, owner="job")
    if start:
        loaded = checkpoints.load_latest((trainer.head.start, trainer.head.stop))
        assert loaded is not None
        trainer.load(loaded)
    losses = [trainer.step(number, batches(trainer), 0.05).loss for number in range(start, stop)]
    state = trainer.state(stop, {})
    checkpoints.save(state)
    return losses, [value.clone() for name, value in sorted(state.replicated.items()) if value.is_floating_point()]


@pytest.mark.slow
def test_a_restart_on_another_number_of_processes_changes_no_bit(wide: str, tmp_path: Path) -> None:
    recipe = recipe_of(wide, 2.0, reproducible=True)
    losses, weights = go_on(0, 1, recipe, str(tmp_path / "whole"), 0, 4)
    first = run_ranks(go_on, 2, recipe, str(tmp_path / "parts"), 0, 2)
    second = go_on(0, 1, recipe, str(tmp_path / "parts"), 2, 4)
    assert first[0][0] + second[0] == losses
    assert all(torch.equal(one, other) for one, other in zip(second[1], weights, strict=True))


def test_a_run_that_goes_on_may_begin_and_end_distillation(wide: str, tmp_path: Path) -> None:
    plain = replace(recipe_of("", 1.0), distill=DistillConfig())
    for part, recipe in enumerate([plain, recipe_of(wide, 1.0), plain]):
        losses, _ = go_on(0, 1, recipe, str(tmp_path / "run"), part, part + 1)
        assert np.isfinite(losses).all()


def test_the_teacher_stays_as_it_is_and_the_student_comes_closer(equal: str) -> None:
    trainer = make(0, 1, recipe_of(equal, 20.0))
    assert trainer.distillation is not None
    embed, images = trainer.distillation.teacher.embed, batches(trainer)[0].images
    before, kept = by_hand(trainer, 1.0, "cosine")[0], embed(images)
    for number in range(8):
        trainer.step(number, batches(trainer), 0.02)
    assert torch.equal(embed(images), kept)
    assert by_hand(trainer, 1.0, "cosine")[0] < 0.9 * before


def test_a_teacher_may_be_a_state_dict_or_onnx(wide: str, tmp_path: Path) -> None:
    device, images = detect_device(), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = open_teacher(DistillConfig(wide), 32, device, "fp32").embed(images)
    assert not expected.requires_grad
    bare = tmp_path / "backbone.pth"
    bare.write_bytes((Path(wide) / "model.pt").read_bytes())
    config = DistillConfig(str(bare), teacher_backbone="r10_small", teacher_embedding_size=24)
    torch.testing.assert_close(open_teacher(config, 32, device, "fp32").embed(images), expected)
    onnx = tmp_path / "model.onnx"
    model = build_model(replace(RECIPE.model, embedding_size=24), 32).eval()
    model.load_state_dict(torch.load(bare, weights_only=True))
    export_onnx(str(onnx), model, 32)
    teacher = open_teacher(DistillConfig(str(onnx)), 32, device, "fp32")
    assert teacher.size == 24
    torch.testing.assert_close(teacher.embed(images), expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_that_was_trained_on_bgr_under_other_names_sees_what_it_knows(wide: str, tmp_path: Path) -> None:
    device, images = detect_device(), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = open_teacher(DistillConfig(wide), 32, device, "fp32").embed(images.flip(1))
    state = torch.load(Path(wide) / "model.pt", weights_only=True)
    bare, names = tmp_path / "theirs.ckpt", tmp_path / "names.json"
    torch.save({f"net_{name}": value for name, value in state.items()}, bare)
    names.write_text('{"^net_": ""}')
    bare_one = DistillConfig(str(bare), teacher_backbone="r10_small", teacher_embedding_size=24)
    theirs = replace(bare_one, teacher_colours="BGR", teacher_names=str(names))
    torch.testing.assert_close(open_teacher(theirs, 32, device, "fp32").embed(images), expected, rtol=1e-4, atol=1e-4)
    model = build_model(replace(RECIPE.model, embedding_size=24), 32).eval()
    model.load_state_dict(state)
    onnx = tmp_path / "theirs.onnx"
    torch.onnx.export(model, (torch.zeros(2, 3, 32, 32),), onnx, verbose=False)  # which says nothing of colours
    theirs = DistillConfig(str(onnx), teacher_colours="BGR")
    torch.testing.assert_close(open_teacher(theirs, 32, device, "fp32").embed(images), expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_of_another_image_size_is_refused(tmp_path: Path) -> None:
    url = write_teacher(tmp_path, 8, image_size=48)
    with pytest.raises(RecipeError, match=r"sees 48 pixels, the student 32: set --data\.image-size 48"):
        make(0, 1, recipe_of(url, 1.0))
