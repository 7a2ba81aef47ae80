"""Trains a face-recognition model: ``python -m app.train --recipe NAME --data.url URL``, alone or under torchrun.

Run again with the same output, it goes on from the last checkpoint, on any number of processes.
"""

from __future__ import annotations

import sys
import warnings

import torch

from app import storage
from app.checkpoint.manager import CheckpointManager, TrainingState
from app.config.help import answer
from app.config.options import parse_arguments, to_toml
from app.config.recipe import Recipe, RecipeError
from app.data.bin_sets import VerificationSet, load_set
from app.data.build import make_loader, open_source
from app.data.source import Source
from app.device import detect_device
from app.elastic.rendezvous import count_start, report_done, report_failure
from app.elastic.signals import catch_stop
from app.errors import EXIT_INTERRUPTED, AppError, run_main
from app.head.class_shards import class_range
from app.head.margins import build_margin
from app.head.partial_fc import PartialFC, PartialFCConfig
from app.observe.events import EventLog
from app.run_folder import build_model, run_url
from app.training.finish import finish_run
from app.training.loop import Loop, Outcome
from app.training.plan import ElasticPlan
from app.training.trainer import Trainer
from app.weights import load_weights, parse_weights, read_centres
from app.world import World, join_world


def main(arguments: list[str]) -> int:
    """Read the recipe and train it; returns the exit code."""
    try:
        return run(arguments)
    except AppError as error:
        # torchrun would start again. Where that cannot help, the rendezvous process ends the job.
        if not error.transient:
            report_failure(str(error))
        raise


def run(arguments: list[str]) -> int:
    """Answer questions about recipes, or train."""
    if text := answer(arguments):
        print(text, end="")
        return 0
    return train(parse_arguments(arguments))


def train(recipe: Recipe) -> int:
    """Devices, data, model, loop, results."""
    with join_world(detect_device(), timeout=recipe.train.step_timeout + 60) as world, catch_stop() as stop:
        torch.manual_seed(recipe.train.seed)
        source = open_source(recipe.data, recipe.train.seed)
        num_classes = count_classes(recipe, source)
        checkpoints = CheckpointManager(
            storage.join(run_url(recipe), "checkpoints"), world, keep_last=recipe.checkpoint.keep_last
        )
        resumed = checkpoints.load_latest(class_range(num_classes, world.size, world.rank))
        if resumed is None:
            look_for_empty_classes(recipe, source, num_classes, world)
        plan = make_plan(recipe, world, source, num_classes, resumed)
        events = EventLog(
            run_url(recipe),
            enabled=world.rank == 0,
            tensorboard=recipe.output.tensorboard,
            wandb=recipe.name if recipe.output.wandb else "",
        )
        loader = make_loader(
            source,
            recipe.data,
            num_classes=num_classes,
            batch_size=recipe.train.batch_size,
            logical_workers=plan.logical_workers,
            seed=recipe.train.seed,
        )
        trainer = make_trainer(recipe, world, plan, num_classes)
        loop = Loop(recipe, world, trainer, loader, checkpoints, events, stop, load_sets(recipe), source.tag)
        resume(loop, resumed)
        outcome = loop.run()
        loader.close()
        if outcome is Outcome.STOPPED:
            events.close()
            return EXIT_INTERRUPTED
        finish_run(loop)
        events.close()
    if world.rank == 0:
        report_done()
    return 0


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


def make_plan(
    recipe: Recipe, world: World, source: Source, num_classes: int, resumed: TrainingState | None
) -> ElasticPlan:
    """Shares of the logical workers: as many as the first start had, for ever."""
    if resumed is None:
        train = recipe.train
        workers = train.logical_workers or max(train.max_processes, world.size) * train.gradient_accumulation
        return ElasticPlan(workers, world.size)
    meta = resumed.meta
    for field, now in [
        ("batch_size", recipe.train.batch_size),
        ("backbone", recipe.model.backbone),
        ("num_classes", num_classes),
        ("data_tag", source.tag),
    ]:
        if meta[field] != now:
            raise RecipeError(
                f"{run_url(recipe)} holds a run with {field} {meta[field]!r}, this one has {now!r}: "
                "take another --name or --output.url, or the same settings and dataset as before"
            )
    if recipe.train.logical_workers not in (0, meta["logical_workers"]):
        warnings.warn(f"the run goes on with its {meta['logical_workers']} logical workers", stacklevel=2)
    return ElasticPlan(int(meta["logical_workers"]), world.size)


def make_trainer(recipe: Recipe, world: World, plan: ElasticPlan, num_classes: int) -> Trainer:
    """Backbone and head on this rank's device."""
    device, head = world.device.torch_device, recipe.head
    backbone = build_model(recipe.model, recipe.data.image_size).to(device)
    if recipe.train.sync_bn and world.size > 1:
        if world.device.kind == "cpu":
            raise RecipeError("train.sync_bn needs an accelerator: torch has no synchronised BatchNorm on the CPU")
        if plan.logical_workers % world.size:
            # A rank without a micro-batch would be missing in the layers' collectives.
            raise RecipeError(
                f"train.sync_bn needs equal shares: {plan.logical_workers} logical workers on {world.size} processes; "
                "start a number of processes that divides them, or leave it off"
            )
        backbone = torch.nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    if recipe.model.channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.model.compile:
        backbone.compile()
    margin = build_margin(head.margin, head.m1, head.m2, head.m3, easy_margin=head.easy_margin, gradient=head.gradient)
    config = PartialFCConfig(
        recipe.model.embedding_size,
        num_classes,
        head.scale,
        head.sample_rate,
        head.interclass_filtering,
        logical_shards=plan.logical_workers,
        seed=recipe.train.seed,
        centre_dtype=getattr(torch, head.centre_dtype),
        matmul_dtype={"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.train.precision],
        block_bytes=head.block_memory_mb << 20,
    )
    return Trainer(recipe, world, plan, backbone.train(), PartialFC(config, margin).to_device(device))


def start_from_weights(recipe: Recipe, trainer: Trainer) -> None:
    """Take over the weights that the recipe names; a run that goes on has its own."""
    if url := recipe.model.init:
        load_weights(trainer.backbone, parse_weights(url, storage.read_bytes(url)), url)
    if recipe.head.init:
        head = trainer.head
        shape = (head.config.num_classes, head.config.embedding_size)
        head.centres.data.copy_(read_centres(recipe.head.init, *shape, head.start, head.stop))


def load_sets(recipe: Recipe) -> list[VerificationSet]:
    """The verification sets that are there; one that is configured and missing is warned about."""
    folder = recipe.verify.url or recipe.data.url
    urls = [storage.join(folder, f"{name}.bin") for name in recipe.verify.sets]
    found = [url for url in urls if storage.exists(url, optional=True)]
    for url in sorted(set(urls) - set(found)):
        warnings.warn(f"no verification set {url}: it is left out", stacklevel=2)
    return [load_set(url) for url in found]


def resume(loop: Loop, resumed: TrainingState | None) -> None:
    """Say how the run starts, from the last checkpoint where there is one."""
    recipe, world = loop.recipe, loop.world
    if resumed is None:
        start_from_weights(recipe, loop.trainer)
    else:
        loop.trainer.load(resumed)
        loop.start_at(resumed.step)
        loop.highest.update(resumed.meta["highest"])
        loop.best_mean = float(resumed.meta["best_mean"])
    if world.rank == 0:
        count_start(loop.step, recipe.train.max_starts)
    if resumed is None and world.rank == 0:
        storage.write_bytes(storage.join(run_url(recipe), "recipe.toml"), to_toml(recipe).encode())
    plan, start = loop.trainer.plan, f"from step {loop.step}" if resumed else "from the beginning"
    loop.progress.say(
        f"{recipe.name}: {start} of {loop.total_steps}, {world.size} processes on {world.device.kind} for "
        f"{plan.logical_workers} logical workers x {recipe.train.batch_size}, attempt {world.attempt}"
    )
    loop.events.add(
        "start", loop.step, world_size=world.size, logical_workers=plan.logical_workers, attempt=world.attempt
    )
    loop.events.flush()


if __name__ == "__main__":
    # Messages of warnings without file and line: they are meant for the user.
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {message}", file=sys.stderr, flush=True)
    run_main(main)
