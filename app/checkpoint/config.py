"""What a recipe says of checkpoints: its section ``[checkpoint]``."""

from __future__ import annotations

from dataclasses import dataclass

from app.settings import setting


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = setting(0, "steps between checkpoints; 0: by the clock only", minimum=0)
    every_minutes: float = setting(10.0, "minutes between checkpoints; 0: by steps only", minimum=0)
    keep_last: int = setting(2, "checkpoints kept; older ones are deleted", minimum=1)
