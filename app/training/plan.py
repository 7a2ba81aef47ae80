"""Who runs which logical worker.

A run has a fixed number of logical workers, chosen when it first starts. Each brings one micro-batch to every step,
from a sample stream of its own. Processes share them out; when nodes come or go the shares change, the steps do not.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import AppError


class PlanError(AppError):
    """More processes than logical workers, or none."""


@dataclass(frozen=True)
class ElasticPlan:
    """The shares of ``logical_workers`` among ``world_size`` processes.

    Raises:
        PlanError: some process would have nothing to do.
    """

    logical_workers: int
    world_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.world_size <= self.logical_workers:
            raise PlanError(
                f"{self.world_size} processes cannot share {self.logical_workers} logical workers: start at most "
                "that many, or set train.logical_workers before the first start"
            )

    def share(self, rank: int) -> list[int]:
        """Logical workers of a rank: contiguous, and equal up to one."""
        start = rank * self.logical_workers // self.world_size
        stop = (rank + 1) * self.logical_workers // self.world_size
        return list(range(start, stop))

    @property
    def rounds(self) -> int:
        """Micro-batches that the busiest rank runs in a step; the others join some rounds with nothing."""
        return max(len(self.share(rank)) for rank in range(self.world_size))
