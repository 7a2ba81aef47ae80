"""What backbones are fed: pixels 0..255 become -1..1, in one place, since weights are worthless under another scale."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

HALF_RANGE = 127.5

_Pixels = TypeVar("_Pixels", Tensor, NDArray[np.float32])


def normalise_(pixels: _Pixels) -> _Pixels:
    """Bring float pixels of any shape from [0, 255] to [-1, 1], in place; the same rounding for torch and numpy."""
    pixels -= HALF_RANGE
    pixels /= HALF_RANGE
    return pixels
