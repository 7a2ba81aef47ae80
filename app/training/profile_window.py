"""Which steps the profiler traces."""

from __future__ import annotations

from app.config.recipe import TrainConfig


def profile_window(config: TrainConfig, step: int, last_step: int) -> tuple[int, int]:
    """Steps to let pass, and steps to trace, of a run that goes on from ``step`` to ``last_step``.

    The window is ``profile_start`` up to ``profile_stop``; a run that ends before it, or begins after it, traces as
    many of its last or first steps instead: whoever asked for a trace gets one.
    """
    count = max(1, min(config.profile_stop - config.profile_start, last_step - step))
    return max(0, min(config.profile_start - step, last_step - step - count)), count
