"""Distillation: a frozen teacher says where the student's embedding of each image should lie.

The loss of a sample is that of the head plus ``distill.weight`` times one of ::

    cosine      1 - cos(f(x), t(x))         directions, which is all that verification looks at
    distance    |f(x) - t(x)|^2 / T         embeddings as they are, norms included (FitNets, arXiv:1412.6550)

with t(x) the teacher's embedding [T] of the same pixels, augmented as the student sees them, and f(x) the student's
[D], or, where D is not T, P f(x): P is a linear map that learns beside the backbone, is in the run's checkpoints and
not in its model. The teacher is in eval mode, has no gradient, and no dropout or masking of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.config.recipe import DistillConfig, Recipe, RecipeError
from app.data.pixels import normalise_
from app.device import Device
from app.evaluate.model_source import Foreign, open_backbone, open_model
from app.seeds import torch_stream
from app.world import World


@dataclass(frozen=True)
class Teacher:
    """``embed``: uint8 [B, 3, S, S] on the device -> float32 [B, ``size``] there, without gradient."""

    embed: Callable[[Tensor], Tensor]
    size: int


def open_teacher(config: DistillConfig, image_size: int, device: Device, precision: str) -> Teacher:
    """The teacher of a recipe: a run folder, its checkpoints, a ``.pt``, ``.pth`` or ``.onnx``.

    Raises:
        RecipeError: it sees pictures of another size than the student.
        AppError: there is no such model, or it is damaged; see ``app.evaluate.model_source``.
    """
    url = config.teacher.rstrip("/")
    teacher, seen = (_open_onnx if url.endswith(".onnx") else _open_backbone)(config, image_size, device, precision)
    if seen != image_size:
        raise RecipeError(f"{url} sees {seen} pixels, the student {image_size}: set --data.image-size {seen}")
    return teacher


def _open_onnx(config: DistillConfig, image_size: int, device: Device, precision: str) -> tuple[Teacher, int]:
    opened = open_model(
        config.teacher, device, precision=precision, image_size=image_size, foreign=Foreign(config.teacher_colours)
    )

    def embed(images: Tensor) -> Tensor:
        return torch.from_numpy(opened.embed(images.cpu().numpy())).to(images.device)

    size = embed(torch.zeros((1, 3, opened.image_size, opened.image_size), dtype=torch.uint8)).shape[1]
    return Teacher(embed, size), opened.image_size


def _open_backbone(config: DistillConfig, image_size: int, device: Device, precision: str) -> tuple[Teacher, int]:
    model, about = open_backbone(
        config.teacher,
        device,
        backbone=config.teacher_backbone,
        embedding_size=config.teacher_embedding_size,
        image_size=image_size,
        foreign=Foreign(config.teacher_colours, config.teacher_names),
    )
    model.to(device.torch_device).eval().requires_grad_(False)

    def embed(images: Tensor) -> Tensor:
        with torch.no_grad(), device.autocast(precision):
            embeddings: Tensor = model(normalise_(images.float()))
        return embeddings.float()

    return Teacher(embed, int(about["embedding_size"])), int(about["image_size"])


class Distillation:
    """What a teacher adds to a run: a loss and, where sizes differ, the ``projection`` D -> T.

    Args:
        embedding_size: D, of the student.
        averaged: whether the gradients of the ranks' losses will be averaged, as DistributedDataParallel does.
    """

    def __init__(
        self, config: DistillConfig, teacher: Teacher, embedding_size: int, world: World, seed: int, *, averaged: bool
    ) -> None:
        self.config, self.teacher = config, teacher
        self.ranks = world.size if averaged else 1
        self.projection: nn.Linear | None = None
        if teacher.size != embedding_size:
            self.projection = nn.Linear(embedding_size, teacher.size, bias=False)
            with torch.no_grad():
                generator = torch_stream(seed, "distill.projection")
                self.projection.weight.normal_(0, embedding_size**-0.5, generator=generator)
            self.projection.to(world.device.torch_device)

    def loss(self, student: Tensor, images: Tensor) -> Tensor:
        """Sum over this rank's samples, [].

        Args:
            student: float [B, T], the student's embeddings, projected where they need be.
            images: uint8 [B, 3, S, S], what the student saw.
        """
        student, wanted = student.float(), self.teacher.embed(images)
        if self.config.loss == "distance":
            return (student - wanted).square().mean(1).sum()
        return (1 - nn.functional.cosine_similarity(student, wanted)).sum()

    def share(self, total: Tensor, global_batch: float) -> Tensor:
        """The weighted mean over the global batch, [], the same on every rank where gradients will be averaged.

        Args:
            total: what ``loss`` returned, or 0 where this rank has no micro-batch in this turn.
        """
        own = total * (self.config.weight / global_batch)
        if self.ranks == 1:
            return own
        everyone = own.detach().clone()
        dist.all_reduce(everyone)
        own = own * self.ranks  # averaging divides by as much
        return own + (everyone - own.detach())


def make_distillation(recipe: Recipe, world: World) -> Distillation | None:
    """What the recipe's section ``[distill]`` asks for; None where it names no teacher."""
    if not recipe.distill.teacher:
        return None
    teacher = open_teacher(recipe.distill, recipe.data.image_size, world.device, recipe.train.precision)
    return Distillation(
        recipe.distill,
        teacher,
        recipe.model.embedding_size,
        world,
        recipe.train.seed,
        averaged=not recipe.train.reproducible,
    )
