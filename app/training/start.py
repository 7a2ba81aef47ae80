"""How a run starts: what the last one left, what may differ from it, and whether anything is left to do."""

from __future__ import annotations

import platform
import warnings
from typing import Any

from app import storage
from app.checkpoint.agreement import agree, gather
from app.checkpoint.manager import CheckpointManager, TrainingState
from app.checkpoint.manifest import CheckpointError
from app.config.options import to_toml
from app.config.recipe import Recipe
from app.data.build import describe_order, make_loader, open_source
from app.data.source import Source, SourceError
from app.elastic import watchdog
from app.elastic.rendezvous import count_start
from app.elastic.signals import StopRequest
from app.observe.events import EventLog, read_events
from app.observe.trackers import TRACKERS, Trackers
from app.parsing import ParseError, parse_json_object
from app.run_folder import run_url
from app.training.build import (
    count_classes,
    load_sets,
    look_for_empty_classes,
    make_plan,
    make_trainer,
    open_checkpoints,
    own_classes,
)
from app.training.loop import Loop
from app.training.provenance import running_commit
from app.training.state import RunState, compare, recipe_fields
from app.training.trainer import Trainer
from app.training.verifier import Verifier
from app.weights import load_foreign, parse_weights, read_centres, read_names
from app.world import World


def prepare(recipe: Recipe, world: World, stop: StopRequest, events: EventLog) -> Loop:
    """Data, checkpoint, model: everything the loop works with, where the last start left it."""
    watchdog.enter("dataset")
    source = open_source(recipe.data, recipe.train.seed)
    num_classes = count_classes(recipe, source)
    refuse_different_data(source, num_classes, world)
    watchdog.enter("resume")
    checkpoints = open_checkpoints(recipe, world)
    before = previous_state(recipe, checkpoints, num_classes, source.tag, world)
    events.trackers = open_trackers(recipe, before, world)
    plan = make_plan(recipe, world, before)
    resumed = checkpoints.load_latest(own_classes(recipe, plan, num_classes, world.rank))
    if resumed is None:
        look_for_lost_commits(recipe, world)
        look_for_empty_classes(recipe, source, num_classes, world)
    loader = make_loader(
        source,
        recipe.data,
        num_classes=num_classes,
        batch_size=recipe.train.batch_size,
        logical_workers=plan.logical_workers,
        seed=recipe.train.seed,
        copies=world.device.copies(),
    )
    watchdog.enter("model")
    trainer = make_trainer(recipe, world, plan, num_classes)
    watchdog.enter("sets")
    verifier = Verifier(recipe, world, trainer.backbone, load_sets(recipe), stop)
    trainer.freeze.steps_per_epoch = loader.steps_per_epoch
    watchdog.enter("begin")
    loop = Loop(recipe, world, trainer, loader, checkpoints, events, stop, verifier, source.tag)
    resume(loop, resumed)
    if not is_complete(loop):
        say_start(loop, before)
        loop.progress.say(describe_order(loader, source, num_classes, plan.rounds))
    return loop


def refuse_different_data(source: Source, num_classes: int, world: World) -> None:
    """Refuse to train where ranks have opened different datasets under one URL; a collective.

    Each would draw its samples from an order of its own, and nothing else would tell: copies on the nodes' disks of
    which one is old or cut, a ``.rec`` that grew while the ranks started.

    Raises:
        SourceError: says who has what.
    """
    seen = gather(world, (source.tag, len(source), num_classes, platform.node()))
    for rank, (tag, images, classes, node) in enumerate(seen):
        if (tag, images, classes) != seen[0][:3]:
            _, images_of_0, classes_of_0, node_of_0 = seen[0]
            raise SourceError(
                f"{storage.redact(source.url)} is not the same dataset for all processes: rank 0 on {node_of_0} has "
                f"{images_of_0} images of {classes_of_0} classes, rank {rank} on {node} {images} of {classes}, by size "
                "and index: put the same files on every node, and start when nothing writes them any more"
            )


def previous_state(
    recipe: Recipe, checkpoints: CheckpointManager, num_classes: int, data_tag: str, world: World
) -> RunState | None:
    """What the run was when its newest checkpoint was written; refuses a recipe that makes it another run.

    Asked before any tensor is read: another number of classes must not look like a damaged checkpoint.
    """
    if (meta := checkpoints.newest_meta()) is None:
        return None
    before = RunState.from_meta(meta, checkpoints.url)
    _, applied = compare(before, recipe, num_classes, data_tag, run_url(recipe))
    if applied and world.rank == 0:
        warnings.warn(f"settings that differ from the last start, from here on: {'; '.join(applied)}", stacklevel=2)
    return before


def look_for_lost_commits(recipe: Recipe, world: World) -> None:
    """Refuse to begin anew where the run's log tells of a commit: its checkpoints are lost, not unmade; a collective.

    Raises:
        CheckpointError: it does.
    """
    url = run_url(recipe)
    wanted = recipe.checkpoint.resume == "auto" and not recipe.train.perf_steps

    def look() -> None:
        commits = [e.get("step") for e in read_events(url) if e.get("kind") == "checkpoint"] if wanted else []
        if commits:
            raise CheckpointError(
                f"{url}: its log tells of a checkpoint of step {commits[-1]}, and none is there: restore them, take "
                "another --name, or pass --checkpoint.resume never to begin from step 0 knowingly"
            )

    agree(world, lambda: look() if world.rank == 0 else None)


def open_trackers(recipe: Recipe, before: RunState | None, world: World) -> Trackers:
    """The experiment trackers of the recipe, on rank 0: those of the last start, or new ones."""
    known = before.trackers if before is not None else {}
    if world.rank or recipe.train.perf_steps:
        return Trackers(run_ids=known)
    wanted = [name for name in TRACKERS if getattr(recipe.output, name)]
    return Trackers(wanted, recipe.name, recipe_fields(recipe), known)


def start_from_weights(recipe: Recipe, trainer: Trainer) -> None:
    """Take over the weights that the recipe names; a run that goes on has its own."""
    model = recipe.model
    if url := model.init:
        load_foreign(
            trainer.backbone,
            parse_weights(url, storage.read_bytes(url)),
            url,
            colours=model.init_colours,
            names=read_names(model.init_names) if model.init_names else {},
        )
    if recipe.head.init:
        head = trainer.head
        shape = (head.shape.num_classes, head.shape.embedding_size)
        centres = read_centres(recipe.head.init, *shape, head.start, head.stop, head.config.sub_centres)
        head.centres.data.copy_(centres)


def resume(loop: Loop, resumed: TrainingState | None) -> None:
    """Take over the last checkpoint, or the weights that the recipe starts from."""
    if resumed is None:
        start_from_weights(loop.recipe, loop.trainer)
        if loop.world.rank == 0 and not loop.recipe.train.perf_steps and written_summary(loop.recipe):
            # Of a run that begins anew knowingly: what ended there is no end of this one.
            storage.delete_tree(storage.join(run_url(loop.recipe), "summary.json"))
        return
    loop.trainer.load(resumed)
    state = RunState.from_meta(resumed.meta, loop.checkpoints.url)
    loop.verifier.highest.update(state.highest)
    loop.verifier.best_mean = state.best_mean
    if loop.world.rank == 0:
        # The checkpoint of a last step knows nothing of the verification that came after it.
        loop.verifier.know(written_summary(loop.recipe))
    loop.bad_records = loop.loader.bad_before = state.bad_records
    loop.start_at(resumed.step)
    loop.verification_due = loop.verifies_at(loop.step)  # checkpoints come first, and this may be as far as it came


def is_complete(loop: Loop) -> bool:
    """Whether nothing is left to train and the results of this very step are written; rank 0 looks, all follow."""
    written = False
    if loop.world.rank == 0 and loop.step >= loop.last_step and not loop.recipe.train.perf_steps:
        written = written_summary(loop.recipe).get("steps") == loop.step
    return loop.world.all_reduce([float(written)], "max")[0] > 0


def written_summary(recipe: Recipe) -> dict[str, Any]:
    """summary.json of an earlier ending of the run; empty where there is none, or it is none."""
    url = storage.join(run_url(recipe), "summary.json")
    if not storage.exists(url, optional=True):
        return {}
    try:
        return parse_json_object(storage.read_bytes(url), url)
    except ParseError:
        return {}


def say_complete(loop: Loop) -> None:
    """Say that an earlier start finished the run, and what to do."""
    loop.progress.say(
        f"{loop.recipe.name}: this run is complete (step {loop.step} of {loop.total_steps}); nothing was changed. "
        "To train on, raise --train.epochs; to train anew, take another --name or --output.url"
    )


def say_start(loop: Loop, before: RunState | None) -> None:
    """Say how the run starts, and write down the recipe that really runs."""
    recipe, world, plan = loop.recipe, loop.world, loop.trainer.plan
    changed: list[str] = []
    if before is not None:
        changed, _ = compare(before, recipe, before.num_classes, before.data_tag, run_url(recipe))
    if world.rank == 0:
        count_start(loop.step, recipe.train.max_starts)
        storage.write_bytes(storage.join(run_url(recipe), "recipe.toml"), to_toml(recipe).encode())
        loop.events.add_text("recipe", to_toml(recipe))
    start = f"from step {loop.step}" if before else "from the beginning"
    processes = f"{world.size} process{'es' * (world.size > 1)}"
    loop.progress.say(
        f"{recipe.name}: {start} of {loop.total_steps}, {processes} on {world.device.kind} for "
        f"{plan.logical_workers} logical workers x {recipe.train.batch_size}, attempt {world.attempt}"
        + (f"; changed since the last start: {'; '.join(changed)}" if changed else "")
    )
    loop.events.add(
        "start",
        loop.step,
        world_size=world.size,
        logical_workers=plan.logical_workers,
        attempt=world.attempt,
        commit=running_commit() if world.rank == 0 else "",
        # What components.status needs for the time to go and for the node of rank 0.
        total_steps=loop.total_steps,
        global_batch=loop.global_batch,
        host=platform.node(),
    )
    loop.events.flush()
