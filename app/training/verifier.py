"""Verification inside the loop, and the best backbone so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from app import storage
from app.config.recipe import Recipe
from app.data.bin_sets import VerificationSet
from app.elastic import watchdog
from app.evaluate.verification import embed_with, verify_set
from app.observe.events import EventLog
from app.observe.figures import Reporter
from app.run_folder import run_url, save_model
from app.world import World


@dataclass
class Verifier:
    """Measures a backbone on the verification sets, shared out over the ranks, and keeps the best one in ``best/``.

    ``highest`` is each set's Accuracy-Highest, ``accuracies`` those of the last verification, ``best_mean`` the highest
    mean over the sets of one verification.
    """

    recipe: Recipe
    world: World
    backbone: nn.Module
    sets: list[VerificationSet]
    highest: dict[str, float] = field(default_factory=dict)
    accuracies: dict[str, float] = field(default_factory=dict)
    best_mean: float = 0.0

    def verify(self, step: int, reporter: Reporter) -> None:
        """Accuracy on every set; a collective."""
        if not self.sets:
            return
        self.backbone.eval()
        plain = embed_with(self.backbone, self.world.device, self.recipe.train.precision)

        def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
            # Of a verification every batch counts as progress: it may take longer than a step.
            watchdog.enter("verification")
            return plain(images)

        for pairs in self.sets:
            result = verify_set(
                pairs,
                embed,
                image_size=self.recipe.data.image_size,
                batch_size=self.recipe.verify.batch_size,
                world=self.world,
            )
            accuracy = result.metrics.accuracy
            self.accuracies[pairs.name] = accuracy
            self.highest[pairs.name] = max(self.highest.get(pairs.name, 0.0), accuracy)
            reporter.verified(pairs.name, step, result.summary(), self.highest[pairs.name])
        self.backbone.train()
        self._keep_best(step, reporter.events)

    def _keep_best(self, step: int, events: EventLog) -> None:
        """Keep the backbone with the highest mean accuracy in best/, to be opened like a run folder."""
        mean = sum(self.accuracies.values()) / len(self.accuracies)
        if mean <= self.best_mean:
            return
        self.best_mean = mean
        if self.world.rank == 0:
            url = storage.join(run_url(self.recipe), "best")
            save_model(url, self.backbone, self.recipe, step)
            events.add("best", step, mean_accuracy=mean)
