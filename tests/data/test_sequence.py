"""Which sample is trained at which step: one sequence, whatever processes run it and wherever it stops.

Whole loaders, with their threads, windows and batches; sources of pixels, so that nothing is decoded.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.build import make_loader
from app.data.config import DataConfig
from app.data.loader import Batch, Loader
from app.data.mixture import Mixture
from app.data.source import Sample, Source
from app.training.plan import ElasticPlan

WORLDS = (1, 2, 3, 4, 6)
Told = tuple[list[int], list[int], list[list[int]]]  # positions, labels, pixels


class Pixels:
    """Sample p of source ``number`` is one pixel that tells both; every seventh record cannot be read."""

    def __init__(self, number: int, length: int, num_classes: int, *, bad: bool = False) -> None:
        self.url = self.tag = f"s{number}"
        self.number, self.length, self.num_classes, self.bad = number, length, num_classes, bad
        self.record_bytes = 20_000.0 + 10_000 * number

    def __len__(self) -> int:
        return self.length

    def read(self, positions: np.ndarray) -> list[bytes]:
        return [bytes([self.number, position // 256, position % 256]) for position in positions.tolist()]

    def parse(self, position: int, record: bytes) -> Sample:
        assert record == bytes([self.number, position // 256, position % 256])
        return Sample(float(position % self.num_classes), np.frombuffer(record, dtype=np.uint8).reshape(1, 1, 3))

    def describe(self, position: int) -> str:
        return f"{self.url} {position}"

    def classes_without_image(self) -> list[int]:
        return []

    def figures(self) -> dict[str, float]:
        return {}


def loader_of(source: Source, workers: int, batch: int, seed: int, config: DataConfig) -> Loader:
    return make_loader(
        source, config, num_classes=source.num_classes, batch_size=batch, logical_workers=workers, seed=seed
    )


def told(batch: Batch) -> Told:
    return batch.positions.tolist(), batch.labels.tolist(), batch.images.reshape(-1, 3).tolist()


_parts = st.lists(
    st.tuples(st.integers(6, 40), st.integers(1, 5), st.sampled_from([1.0, 0.5, 1.25, 2.0])), min_size=1, max_size=3
)
_configs = st.builds(
    DataConfig,
    image_size=st.just(1),
    augment=st.just("none"),
    window_mb=st.sampled_from([0.05, 0.2, 256.0]),
    block_mb=st.sampled_from([0.02, 0.1, 0.5]),
    shuffle=st.sampled_from(["window", "full", "none"]),
    workers=st.sampled_from([1, 3]),
    prefetch=st.sampled_from([0, 1, 4]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(_parts, _configs, st.sampled_from(WORLDS), st.integers(1, 3), st.integers(0, 3), st.data())
def test_any_world_and_any_stop_train_the_sequence_of_one_process(
    parts: list[tuple[int, int, float]], config: DataConfig, workers: int, batch: int, seed: int, data: st.DataObject
) -> None:
    sources: list[Source] = [Pixels(i, length, classes) for i, (length, classes, _) in enumerate(parts)]
    source = Mixture(sources, [weight for *_, weight in parts]) if len(parts) > 1 else sources[0]
    if len(source) < workers * batch:
        return
    loaders = [loader_of(source, workers, batch, seed, config) for _ in range(1 + max(WORLDS))]
    steps = loaders[0].steps_per_epoch
    whole = [[told(part) for part in step] for e in (0, 1) for step in loaders[0].steps(e, 0, range(workers))]
    for epoch in (0, 1):
        seen = [p for step in whole[epoch * steps : (epoch + 1) * steps] for positions, *_ in step for p in positions]
        assert len(set(seen)) == len(seen) == steps * workers * batch
    step = 0
    while step < 2 * steps:  # a stretch of a run: some processes, from one step to another
        world = data.draw(st.sampled_from([n for n in WORLDS if n <= workers]))
        stop = data.draw(st.integers(step + 1, 2 * steps))
        for rank in range(world):
            share = ElasticPlan(workers, world).share(rank)
            now = step
            while now < stop:
                epoch, first = divmod(now, steps)
                for found in loaders[1 + rank].steps(epoch, first, share):
                    assert [told(part) for part in found] == [whole[now][worker] for worker in share]
                    now += 1
                    if now == stop:
                        break
        step = stop
    for loader in loaders:
        loader.close()


@settings(deadline=None, max_examples=20)
@given(_parts.filter(lambda parts: len(parts) > 1), st.integers(0, 3))
def test_weights_are_how_often_an_epoch_trains_each_sample(parts: list[tuple[int, int, float]], epoch: int) -> None:
    mixture = Mixture([Pixels(i, n, c) for i, (n, c, _) in enumerate(parts)], [weight for *_, weight in parts])
    loader = loader_of(mixture, 1, 1, 0, DataConfig(image_size=1, augment="none"))
    seen = [tuple(pixel) for step in loader.steps(epoch, 0, [0]) for pixel in told(step[0])[2]]
    loader.close()
    least = min(weight for *_, weight in parts)
    for number, (length, _, weight) in enumerate(parts):
        times = [seen.count((number, position // 256, position % 256)) for position in range(length)]
        assert sum(times) == round(length * weight / least)
        assert max(times) - min(times) <= 1
