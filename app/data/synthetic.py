"""A dataset that needs no storage: noise images with random labels, for speed runs (``data.url = "synthetic"``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from app.data.loader import Batch

SYNTHETIC = "synthetic"


class SyntheticLoader:
    """Yields batches as ``Loader`` does: the same few images again and again, with new labels each step.

    Args:
        num_images: length of an epoch, in samples of all logical workers.
    """

    bad_records = 0

    def __init__(
        self, num_images: int, num_classes: int, logical_workers: int, batch_size: int, image_size: int, seed: int
    ) -> None:
        self.num_classes, self.batch_size, self.seed = num_classes, batch_size, seed
        self.steps_per_epoch = num_images // (logical_workers * batch_size)
        pixels = np.random.default_rng(seed).integers(0, 256, (batch_size, 3, image_size, image_size), dtype=np.uint8)
        self._images = torch.from_numpy(pixels)

    def steps(self, epoch: int, first: int, workers: Sequence[int]) -> Iterator[list[Batch]]:
        """The steps ``first``.. of an epoch, one batch for each of ``workers``."""
        for step in range(first, self.steps_per_epoch):
            yield [self._batch(epoch, step, worker) for worker in workers]

    def _batch(self, epoch: int, step: int, worker: int) -> Batch:
        generator = np.random.default_rng((self.seed, epoch, step, worker))
        labels = generator.integers(0, self.num_classes, self.batch_size)
        return Batch(self._images, torch.from_numpy(labels), torch.full((self.batch_size,), -1))

    def close(self) -> None:
        """Nothing to stop."""
