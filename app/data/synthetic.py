"""A source that needs no storage: noise images with random labels, for speed runs (``data.url = "synthetic"``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.data.source import Sample
from app.seeds import numpy_stream

SYNTHETIC = "synthetic"
_IMAGES = 64  # different ones; memory for more would only measure the host's caches


class NoiseSource:
    """The same few noise images again and again, with a label that follows from seed and position.

    Args:
        num_images: N, length of an epoch.
        image_size: height and width, pixels.
    """

    url = tag = SYNTHETIC

    def __init__(self, num_images: int, num_classes: int, image_size: int, seed: int) -> None:
        self.num_classes, self._num_images, self._side = num_classes, num_images, image_size
        self.record_bytes = float(3 * image_size**2)
        noise = numpy_stream(seed, "synthetic.pixels").integers(
            0, 256, (_IMAGES, image_size, image_size, 3), dtype=np.uint8
        )
        self._records = [image.tobytes() for image in noise]
        self._key = int(numpy_stream(seed, "synthetic.labels").integers(0, 2**63))

    def __len__(self) -> int:
        return self._num_images

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Raw pixels of each position."""
        return [self._records[position % _IMAGES] for position in positions.tolist()]

    def parse(self, position: int, record: bytes) -> Sample:
        """Pixels, and one of the classes by splitmix64's finalizer of the position."""
        mixed = (position * 0x9E3779B97F4A7C15 + self._key) & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        label = (mixed ^ mixed >> 31) % self.num_classes
        return Sample(float(label), np.frombuffer(record, dtype=np.uint8).reshape(self._side, self._side, 3))

    def describe(self, position: int) -> str:
        """The position."""
        return f"{SYNTHETIC}: image {position}"

    def classes_without_image(self) -> list[int]:
        """None: labels are drawn."""
        return []

    def figures(self) -> dict[str, float]:
        """Nothing is read."""
        return {}
