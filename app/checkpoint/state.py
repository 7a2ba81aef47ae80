"""What a checkpoint holds of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """All that a run is at one step.

    ``replicated`` tensors are alike on all ranks; the rows of ``sharded`` ones are the classes ``rows`` of this rank.
    ``meta`` is plain JSON; of it ``best_mean``, the highest accuracy so far, tells which checkpoint is the best.
    """

    step: int
    replicated: Mapping[str, Tensor]
    sharded: Mapping[str, Tensor]
    rows: tuple[int, int]
    meta: Mapping[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The replicated tensors whose names start with ``prefix``, named without it."""
        return {name[len(prefix) :]: value for name, value in self.replicated.items() if name.startswith(prefix)}

    def to_host(self) -> TrainingState:
        """A copy in host memory, also of what lies there already: training goes on and would change it."""
        return TrainingState(
            self.step,
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.replicated.items()},
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.sharded.items()},
            self.rows,
            dict(self.meta),
        )
