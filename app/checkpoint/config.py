"""What a recipe says of checkpoints: its section ``[checkpoint]``."""

from __future__ import annotations

from dataclasses import dataclass

from app.settings import setting


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = setting(0, "steps between checkpoints; 0: by the clock only", minimum=0)
    every_minutes: float = setting(
        1.0, "minutes between checkpoints, more where the last one is still on its way; 0: by steps only", minimum=0
    )
    keep_last: int = setting(2, "checkpoints kept, besides the best one; older ones are deleted", minimum=1)
    keep_every: int = setting(0, "checkpoints whose step is a multiple of it are kept for ever; 0: none", minimum=0)
    resume: str = setting(
        "auto",
        "go on from the checkpoints that are there, or never: begin at step 0 and leave them behind",
        choices=("auto", "never"),
    )
    patience: float = setting(
        1200.0, "seconds without a commit, or without an answer at the start, after which the run ends", minimum=0
    )
    commit: str = setting(
        "conditional",
        "conditional: by a request that fails where somebody was first; single-writer: for stores without such "
        "requests, where you see to it that one job writes",
        choices=("conditional", "single-writer"),
    )
