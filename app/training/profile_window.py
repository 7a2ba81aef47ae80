"""Which steps the profiler traces, and where the trace goes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app import storage
from app.config.recipe import Recipe, TrainConfig
from app.observe.progress import Progress
from app.run_folder import run_url
from app.world import World


def profile_window(config: TrainConfig, step: int, last_step: int) -> tuple[int, int]:
    """Steps to let pass, and steps to trace, of a run that goes on from ``step`` to ``last_step``.

    The window is ``profile_start`` up to ``profile_stop``; a run that ends before it, or begins after it, traces as
    many of its last or first steps instead: whoever asked for a trace gets one.
    """
    count = max(1, min(config.profile_stop - config.profile_start, last_step - step))
    return max(0, min(config.profile_start - step, last_step - step - count)), count


@contextlib.contextmanager
def profiled_steps(recipe: Recipe, world: World, progress: Progress, step: int, last_step: int) -> Iterator[Any]:
    """With ``train.profiling``, a trace of rank 0 in the run folder's profile/, for TensorBoard and Perfetto."""
    if not recipe.train.profiling or world.rank != 0:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        first, count = profile_window(recipe.train, step, last_step)
        progress.say(f"profiling steps {step + first} to {step + first + count}")
        with world.device.profiler(folder, skip=first, steps=count) as profiler:
            yield profiler
        for path in Path(folder).rglob("*"):
            if path.is_file():
                url = storage.join(run_url(recipe), "profile", str(path.relative_to(folder)))
                storage.write_bytes(url, path.read_bytes())
