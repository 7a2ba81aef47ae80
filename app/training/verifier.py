"""Verification inside the loop, and the best backbone so far."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app import storage
from app.config.recipe import Recipe
from app.data.bin_sets import VerificationSet
from app.elastic import watchdog
from app.elastic.signals import StopRequest
from app.evaluate.hardest import draw_hardest
from app.evaluate.verification import embed_with, verify_set
from app.observe.events import EventLog
from app.observe.figures import Reporter
from app.run_folder import run_url, save_model
from app.storage import StorageError
from app.world import World


@dataclass
class Verifier:
    """Measures a backbone on the verification sets, shared out over the ranks, and keeps the best one in ``best/``.

    ``highest`` is each set's Accuracy-Highest, ``accuracies`` those of the last verification, ``best_mean`` the mean
    over the sets of the backbone that lies in ``best/``.
    """

    recipe: Recipe
    world: World
    backbone: nn.Module
    sets: list[VerificationSet]
    stop: StopRequest
    highest: dict[str, float] = field(default_factory=dict)
    accuracies: dict[str, float] = field(default_factory=dict)
    best_mean: float = 0.0

    def __post_init__(self) -> None:
        self._waiting: tuple[float, int, nn.Module] | None = None  # a best backbone that the store did not take yet

    def know(self, summary: Mapping[str, Any]) -> None:
        """Take over what an earlier ending of the run wrote down; numbers that are none count for nothing."""
        highest = summary.get("accuracy_highest")
        for name, accuracy in highest.items() if isinstance(highest, dict) else ():
            if isinstance(accuracy, int | float):
                self.highest[name] = max(self.highest.get(name, 0.0), accuracy)
        mean = summary.get("best_mean_accuracy")
        if isinstance(mean, int | float):
            self.best_mean = max(self.best_mean, mean)

    def verify(self, step: int, reporter: Reporter) -> bool:
        """Accuracy on every set; a collective. False if a node was asked to go meanwhile: then a set may be missing."""
        if not self.sets:
            return True
        self.backbone.eval()
        try:
            return self._verify(step, reporter)
        finally:
            self.backbone.train()

    def _verify(self, step: int, reporter: Reporter) -> bool:
        plain = embed_with(self.backbone, self.world.device, self.recipe.train.precision)
        like: list[NDArray[np.float32]] = []

        def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            # Of a verification every batch counts as progress: it may take longer than a step.
            watchdog.enter("verification")
            if self.stop.received and like:  # the rest need not be right, only soon
                return np.zeros((len(images), like[0].shape[1]), np.float32)
            like[:] = [plain(images)]
            return like[0]

        for pairs in self.sets:
            result = verify_set(
                pairs,
                embed,
                image_size=self.recipe.data.image_size,
                batch_size=self.recipe.verify.batch_size,
                world=self.world,
            )
            if self.world.all_reduce([float(self.stop.received)], "max")[0]:
                return False
            accuracy = result.metrics.accuracy
            self.accuracies[pairs.name] = accuracy
            self.highest[pairs.name] = max(self.highest.get(pairs.name, 0.0), accuracy)
            reporter.verified(pairs.name, step, result.summary(), self.highest[pairs.name])
            if reporter.events.shows_pictures:
                reporter.events.add_picture(f"hardest pairs/{pairs.name}", step, draw_hardest(pairs, result))
        self._keep_best(step, reporter.events)
        return True

    def _keep_best(self, step: int, events: EventLog) -> None:
        """Keep the backbone with the highest mean accuracy in best/, to be opened like a run folder."""
        mean = sum(self.accuracies.values()) / len(self.accuracies)
        waiting = self._waiting[0] if self._waiting is not None else 0.0
        if mean > max(self.best_mean, waiting):
            # Only rank 0 writes, and says what it wrote in its checkpoints.
            self._waiting = (mean, step, self.backbone) if self.world.rank == 0 else None
        self.write_best(events)

    def write_best(self, events: EventLog, *, must: bool = False) -> None:
        """Write what is to be in best/, where anything waits. A store that refuses is asked again the next time.

        Raises:
            StorageError: it refuses and ``must`` says that there is no next time.
        """
        if self._waiting is None:
            return
        mean, step, backbone = self._waiting
        try:
            save_model(storage.join(run_url(self.recipe), "best"), backbone, self.recipe, step)
        except StorageError as error:
            if must:
                raise
            if backbone is self.backbone:  # training goes on and would change it
                self._waiting = (mean, step, copy.deepcopy(backbone).cpu())
            warnings.warn(f"best/ of step {step} could not be written, and is tried again: {error}", stacklevel=2)
            return
        self.best_mean, self._waiting = mean, None
        events.add("best", step, mean_accuracy=mean)
