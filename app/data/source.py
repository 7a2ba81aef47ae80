"""Where samples come from: one protocol, whatever holds them.

Records in a bucket (``records.py``) and noise (``synthetic.py``) implement it, and so do the other sources of this
package. Positions 0..N-1 follow the source's own order; which position is trained when is the ``SampleOrder``'s.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import AppError


class SourceError(AppError):
    """A source that cannot be trained as it is asked for; says which setting to change."""


class Sample(NamedTuple):
    """One undecoded sample.

    ``label`` is what the source says, which need not be a class: the loader checks it. ``image`` is an encoded image,
    or pixels that need no decoder: RGB uint8 [H, W, 3].
    """

    label: float
    image: bytes | NDArray[np.uint8]


class Source(Protocol):
    """Samples at positions 0..N-1."""

    @property
    def url(self) -> str:
        """Where it lies, for messages."""

    @property
    def num_classes(self) -> int:
        """Classes, or 0 where the source does not tell."""

    @property
    def tag(self) -> str:
        """Identity of the content: a run goes on only with the data that it began with."""

    @property
    def record_bytes(self) -> float:
        """Mean size of an undecoded record in bytes; what windows and blocks are sized by."""

    def __len__(self) -> int:
        """N, the number of samples."""

    def read(self, positions: NDArray[np.int64]) -> list[bytes]:
        """Undecoded records at ``positions``, in that order; neighbours come with few requests.

        Raises:
            StorageError: the store does not give them, or no longer holds what was opened.
        """

    def parse(self, position: int, record: bytes) -> Sample:
        """Split the record of a position into label and image.

        Raises:
            RecordError: it is damaged; names place and reason.
        """

    def describe(self, position: int) -> str:
        """Where a sample lies, for messages."""

    def classes_without_image(self) -> list[int]:
        """Classes that have no image, as far as the source can tell without reading images."""

    def figures(self) -> dict[str, float]:
        """Counters since the source was opened: requests, bytes..."""
