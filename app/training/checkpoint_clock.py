"""When a checkpoint is due."""

from __future__ import annotations

import time

from app.checkpoint.config import CheckpointConfig
from app.world import World


class CheckpointClock:
    """Steps or minutes since the last checkpoint was begun; the answer is the same on every rank."""

    def __init__(self, config: CheckpointConfig, world: World) -> None:
        self.config, self.world = config, world
        self.restart()

    def restart(self) -> None:
        """A checkpoint was begun now."""
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to begin one after ``step`` steps; a collective when minutes count."""
        config = self.config
        if config.every_steps:
            return step % config.every_steps == 0
        # Rank 0's clock decides for all: the answer must be the same everywhere.
        late = time.monotonic() - self._last > 60 * config.every_minutes
        if not config.every_minutes or step % 10:
            return False
        return self.world.all_reduce([float(late and self.world.rank == 0)], "max")[0] > 0
