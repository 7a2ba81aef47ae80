"""Several sources as one: positions end to end, classes end to end or shared by people's names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.data.source import Sample, Source, SourceError

MAX_RATIO = 1000  # of two weights
_MAX_WEIGHT = 1e9


class Mixture:
    """Sources laid end to end; see ``Source`` for the methods. Blocks of all are permuted together.

    Args:
        sources: each tells how many classes it has.
        weights: how often an epoch trains each source; 1.5 trains all of it once and its first half again. The
            smallest counts as 1.
        people: names of each source's classes, in class order: classes of one name become one. Without it classes are
            laid end to end.

    Raises:
        SourceError: a source does not tell its classes, or weights or names are not one for each.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] = (),
        people: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.sources = list(sources)
        self.url = ",".join(source.url for source in sources)
        for source in sources:
            if not source.num_classes:
                raise SourceError(
                    f"{source.url} does not tell how many classes it has, so it cannot be joined with others: give it "
                    "a property file ('classes,height,width')"
                )
        self._class_maps, self.num_classes = _map_classes(self.sources, people)
        check_weights(weights, len(sources))
        weights = weights or [1.0] * len(sources)
        self._shares = [round(len(s) * w / min(weights)) for s, w in zip(sources, weights, strict=True)]
        self._ends = np.cumsum(self._shares)
        parts = [f"{source.tag}x{share}" for source, share in zip(sources, self._shares, strict=True)]
        if people:  # which label means which class is part of what a run must find unchanged
            maps = b"".join(np.asarray([len(classes), *classes]).tobytes() for classes in self._class_maps)
            parts.append("shared-" + hashlib.sha256(maps).hexdigest()[:16])
        self.tag = "+".join(parts)
        sizes = [source.record_bytes * share for source, share in zip(sources, self._shares, strict=True)]
        self.record_bytes = sum(sizes) / len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and the position there."""
        number = int(np.searchsorted(self._ends, position, side="right"))
        start = int(self._ends[number]) - self._shares[number]
        return number, (position - start) % len(self.sources[number])

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Undecoded records at ``positions``, in that order."""
        records = [b""] * len(positions)
        owners = np.searchsorted(self._ends, positions, side="right")
        for number in np.unique(owners).tolist():
            places = np.flatnonzero(owners == number)
            start = int(self._ends[number]) - self._shares[number]
            local = (np.asarray(positions)[places] - start) % len(self.sources[number])
            for place, record in zip(places.tolist(), self.sources[number].read(local), strict=True):
                records[place] = record
        return records

    def parse(self, position: int, record: bytes) -> Sample:
        """Class in the mixture and image; a label that is none of its source stays out of range."""
        number, local = self._locate(position)
        label, image = self.sources[number].parse(local, record)
        classes = self._class_maps[number]
        if not (0 <= label < len(classes) and label == int(label)):
            return Sample(float("nan"), image)
        return Sample(float(classes[int(label)]), image)

    def describe(self, position: int) -> str:
        """Where its source has it."""
        number, local = self._locate(position)
        return self.sources[number].describe(local)

    def classes_without_image(self) -> list[int]:
        """Classes that are empty in every source that has them."""
        empty: set[int] = set()
        filled: set[int] = set()
        for source, classes in zip(self.sources, self._class_maps, strict=True):
            without = {int(classes[label]) for label in source.classes_without_image()}
            empty |= without
            filled |= set(classes.tolist()) - without
        return sorted(empty - filled)

    def figures(self) -> dict[str, float]:
        """Sums of counters; of latencies the largest."""
        totals: dict[str, float] = {}
        for source in self.sources:
            for name, value in source.figures().items():
                before = totals.get(name, 0.0)
                totals[name] = max(before, value) if name.startswith("latency") else before + value
        return totals


def check_weights(weights: Sequence[float], datasets: int) -> None:
    """Refuse weights that are not one for each dataset, or too far apart; no weights are fine.

    Raises:
        SourceError: says what they must be.
    """
    if not weights:
        return
    if len(weights) != datasets or not all(0 < weight < _MAX_WEIGHT for weight in weights):
        numbers = f"{datasets} numbers" if datasets > 1 else "a number"
        raise SourceError(f"data.weights must be {numbers} above 0, one for each dataset")
    if max(weights) > MAX_RATIO * min(weights):
        raise SourceError(f"data.weights: the largest may be {MAX_RATIO} times the smallest, which counts as 1")


def _map_classes(
    sources: Sequence[Source], people: Sequence[Sequence[str]] | None
) -> tuple[list[NDArray[np.int64]], int]:
    """For each source the class of each of its labels, and the number of classes."""
    if people is None:
        starts = np.cumsum([0, *(source.num_classes for source in sources)])
        maps = [start + np.arange(source.num_classes) for start, source in zip(starts[:-1], sources, strict=True)]
        return maps, int(starts[-1])
    numbers: dict[str, int] = {}
    maps = []
    for source, names in zip(sources, people, strict=True):
        if len(names) != source.num_classes:
            raise SourceError(f"{source.url} has {source.num_classes} classes, its people.json {len(names)} names")
        maps.append(np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64))
    return maps, len(numbers)
