"""Noise as a source: it goes the way of real records, and its labels are uniform and the same in every process."""

from __future__ import annotations

import numpy as np

from app.data.build import make_loader, open_source
from app.data.config import DataConfig


def test_noise_is_a_source_like_any_other() -> None:
    config = DataConfig(url="synthetic", num_classes=10, num_images=4000, image_size=16)
    source = open_source(config, seed=3)
    loader = make_loader(source, config, num_classes=10, batch_size=20, logical_workers=2, seed=3)
    assert loader.steps_per_epoch == 100
    steps = list(loader.steps(0, 0, [0, 1]))
    assert steps[0][0].images.shape == (20, 3, 16, 16)
    positions = np.concatenate([batch.positions for step in steps for batch in step])
    labels = np.concatenate([batch.labels for step in steps for batch in step])
    assert sorted(positions) == list(range(4000))
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert ((counts - 400) ** 2 / 400).sum() < 33  # chi-square of 9 degrees, p = 0.0001
    again = [source.parse(int(p), b"\0" * 768).label for p in positions[:50]]
    assert again == labels[:50].tolist()
    loader.close()
