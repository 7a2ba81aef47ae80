"""When a checkpoint is due."""

from __future__ import annotations

import time

from app.checkpoint.config import CheckpointConfig


class CheckpointClock:
    """Steps or minutes since the last checkpoint was begun."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.config = config
        self.restart()

    def restart(self) -> None:
        """A checkpoint was begun now."""
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the last checkpoint was begun, or training."""
        return time.monotonic() - self._last

    @property
    def late(self) -> bool:
        """Whether one is due by this process's clock; that of rank 0 decides for all."""
        config = self.config
        return not config.every_steps and 0 < 60 * config.every_minutes < self.seconds

    def due(self, step: int, late: bool) -> bool:
        """Whether to begin one after ``step`` steps; ``late`` is what rank 0 said of its clock."""
        every = self.config.every_steps
        return late or (every > 0 and step % every == 0)
