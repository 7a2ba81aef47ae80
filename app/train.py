"""Trains a face-recognition model: ``python -m app.train --recipe NAME --data.url URL``, alone or under torchrun.

Run again with the same output, it goes on from the last checkpoint, on any number of processes.
"""

from __future__ import annotations

import signal
from contextlib import closing

import torch

from app.config.help import answer
from app.config.options import parse_arguments
from app.config.recipe import Recipe
from app.device import detect_device
from app.elastic import signals, watchdog
from app.elastic.rendezvous import report_done, report_failure
from app.elastic.signals import catch_stop
from app.errors import AppError, run_main
from app.observe.events import EventLog
from app.observe.last_words import keep_last_words
from app.run_folder import run_url
from app.training.finish import finish_run
from app.training.loop import Outcome
from app.training.start import is_complete, prepare, say_complete
from app.world import join_world, rank_and_size

_SIGNALLED = 128  # exit codes above it name the signal that this process was sent; the others stop with it


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
    recipe = parse_arguments(arguments)
    with keep_last_words(run_url(recipe)) as say_last:
        code = train(recipe)
        if code > _SIGNALLED:
            say_last(f"stopped by {signal.Signals(code - _SIGNALLED).name}")
        return code


def train(recipe: Recipe) -> int:
    """One start of a run: join the others, train until the end or until a node must go, say that it is done."""
    timeout = recipe.train.step_timeout
    with (
        watchdog.watched(*rank_and_size(), timeout),
        join_world(detect_device(), timeout=timeout + 60) as world,
        catch_stop() as stop,
    ):
        torch.manual_seed(recipe.train.seed)
        if recipe.train.reproducible:
            world.device.make_reproducible()
        events = EventLog(
            run_url(recipe),
            enabled=world.rank == 0,
            tensorboard=recipe.output.tensorboard,
            reference_tags=recipe.output.log_style == "insightface",
        )
        loop = prepare(recipe, world, stop, events)
        with closing(loop.loader):  # after an error too: Python would end only when all that was asked for has come
            outcome = Outcome.COMPLETE if is_complete(loop) else loop.run()
        if outcome is Outcome.COMPLETE:
            say_complete(loop)
        elif outcome is Outcome.FINISHED:
            outcome = finish_run(loop)
        watchdog.leave("close")
        events.close()
        loop.checkpoints.close()
        if outcome is Outcome.STOPPED:
            loop.progress.say(
                f"stopped; the checkpoint of step {loop.step} is committed: the same command goes on from there"
            )
            return stop.exit_code
    report_done(tell=world.rank == 0)
    return 0


if __name__ == "__main__":
    watchdog.process_ends = signals.process_ends = True
    signals.end_by_interrupt()
    run_main(main)
