"""What a run is put together from, each part made from the sections of the recipe that it needs."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from app import storage
from app.checkpoint.manager import CheckpointManager
from app.config.recipe import Recipe, RecipeError
from app.data.bin_sets import VerificationSet, load_set
from app.data.source import Source
from app.evaluate.metrics import check_pairs
from app.head.class_shards import class_range
from app.head.partial_fc import HeadShape, PartialFC, product_dtype
from app.head.reproducible import ReproduciblePartialFC, shard_rows
from app.run_folder import build_model, run_url
from app.training.distillation import make_distillation
from app.training.plan import ElasticPlan
from app.training.state import RunState
from app.training.trainer import Trainer
from app.world import World


def count_classes(recipe: Recipe, source: Source) -> int:
    """Classes of the run: the recipe's number where it gives one, else the dataset's."""
    if recipe.data.num_images and recipe.data.num_images != len(source):
        warnings.warn(f"{source.url} has {len(source)} images, the recipe says {recipe.data.num_images}", stacklevel=2)
    known, wanted = source.num_classes, recipe.data.num_classes
    if not (known or wanted):
        raise RecipeError(f"{source.url} does not tell how many classes it has: set --data.num-classes")
    if wanted and known and wanted < known:
        raise RecipeError(f"data.num_classes is {wanted}, but {source.url} has {known}: leave it at 0")
    return wanted or known


def look_for_empty_classes(recipe: Recipe, source: Source, num_classes: int, world: World) -> None:
    """Refuse classes without an image, or warn of them: their centres would only ever be pushed away.

    One rank reads the identity records and all follow its answer. A file without such records cannot be asked;
    ``app.prepare check`` reads every record and tells.
    """
    empty: list[int] = []
    if world.rank == 0:
        empty = [*source.classes_without_image(), *range(source.num_classes or num_classes, num_classes)]
    first, count = map(int, world.all_reduce([empty[0] if empty else -1, len(empty)], "max"))
    if not count:
        return
    text = f"{source.url}: {count} of {num_classes} classes have no image, the first is {first}"
    if recipe.data.empty_classes == "refuse":
        raise RecipeError(f"{text}: correct data.num_classes or the dataset, or set --data.empty-classes warn")
    if world.rank == 0:
        warnings.warn(text, stacklevel=2)


def make_plan(recipe: Recipe, world: World, before: RunState | None) -> ElasticPlan:
    """Shares of the logical workers: as many as the first start had, for ever."""
    if before is not None:
        return ElasticPlan(before.logical_workers, world.size)
    train = recipe.train
    return ElasticPlan(
        train.logical_workers or max(train.max_processes, world.size) * train.gradient_accumulation, world.size
    )


def open_checkpoints(recipe: Recipe, world: World) -> CheckpointManager:
    """The checkpoints of the run, whose folder this job holds from now on."""
    config = recipe.checkpoint
    checkpoints = CheckpointManager(
        storage.join(run_url(recipe), "checkpoints"),
        world,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        # Ranks wait for each other in a collective, which must not give up before.
        patience=min(config.patience, recipe.train.step_timeout),
        resume=config.resume,
        conditional=config.commit == "conditional",
    )
    if not recipe.train.perf_steps:
        checkpoints.hold()
    return checkpoints


def make_trainer(recipe: Recipe, world: World, plan: ElasticPlan, num_classes: int) -> Trainer:
    """Backbone, head, teacher and optimizers on this rank's device."""
    backbone, head = make_backbone(recipe, world, plan), make_head(recipe, world, plan, num_classes)
    return Trainer(recipe, world, plan, backbone, head, make_distillation(recipe, world))


def make_backbone(recipe: Recipe, world: World, plan: ElasticPlan) -> nn.Module:
    """The backbone as it is trained: on its device, in its memory format, compiled where asked for."""
    backbone = build_model(recipe.model, recipe.data.image_size).to(world.device.torch_device)
    _look_for_lone_images(recipe, backbone)
    if recipe.train.sync_bn and world.size > 1:
        if not world.device.has_sync_bn:
            raise RecipeError("train.sync_bn needs an accelerator: torch has no synchronised BatchNorm on the CPU")
        if plan.logical_workers % world.size:
            # A rank without a micro-batch would be missing in the layers' collectives.
            raise RecipeError(
                f"train.sync_bn needs equal shares: {plan.logical_workers} logical workers on {world.size} processes; "
                "start a number of processes that divides them, or leave it off"
            )
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    if recipe.model.channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.model.compile:
        backbone.compile()
    return backbone.train()


def _look_for_lone_images(recipe: Recipe, backbone: nn.Module) -> None:
    """Refuse micro-batches of one image where a BatchNorm of embeddings would have to learn from it."""
    rests = recipe.model.freeze in ("backbone", "batchnorm") and not recipe.model.freeze_epochs
    norms = any(isinstance(module, nn.BatchNorm1d) for module in backbone.modules())
    if recipe.train.batch_size == 1 and norms and not rests and not recipe.train.sync_bn:
        raise RecipeError(
            f"train.batch_size 1: {recipe.model.backbone} normalises over the images of a micro-batch, and one has no "
            "spread: take 2 or more, or --model.freeze batchnorm with weights that are trained"
        )


def make_head(recipe: Recipe, world: World, plan: ElasticPlan, num_classes: int) -> PartialFC:
    """This rank's class centres and the margin softmax over all of them."""
    head = recipe.head
    shape = HeadShape(
        recipe.model.embedding_size,
        num_classes,
        logical_shards=plan.logical_workers,
        seed=recipe.train.seed,
        matmul_dtype=product_dtype(head.precision, recipe.train.precision, world.device.kind),
        block_bytes=head.block_memory_mb << 20 or world.device.block_bytes,
    )
    if recipe.train.reproducible:
        shares = [plan.share(rank) for rank in range(plan.world_size)]
        return ReproduciblePartialFC(head, shape, world.device.torch_device, shares)
    return PartialFC(head, shape, world.device.torch_device)


def own_classes(recipe: Recipe, plan: ElasticPlan, num_classes: int, rank: int) -> tuple[int, int]:
    """Half-open range of the classes whose centres a rank holds."""
    if recipe.train.reproducible:
        return shard_rows(num_classes, [plan.share(other) for other in range(plan.world_size)], rank)
    return class_range(num_classes, plan.world_size, rank)


def load_sets(recipe: Recipe) -> list[VerificationSet]:
    """The verification sets that are there; one that is configured and missing is warned about."""
    folder = recipe.verify.url or recipe.data.url.split(",")[0]
    urls = [storage.join(folder, f"{name}.bin") for name in recipe.verify.sets]
    found = [url for url in urls if storage.exists(url, optional=True)]
    for url in sorted(set(urls) - set(found)):
        warnings.warn(f"no verification set {url}: it is left out", stacklevel=2)
    sets = [load_set(url) for url in found]
    for pairs in sets:
        check_pairs(pairs.issame, f"{pairs.name}.bin")  # now rather than hours later
    return sets
