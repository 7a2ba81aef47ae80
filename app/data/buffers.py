"""Memory of batches, used again: the pages of a fresh array cost as much as a tenth of the decoding."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray

_KEEP = 8  # arrays that wait for their next use


class HostBuffers:
    """Hands out uint8 tensors; their memory comes back when nothing refers to it any more."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.RLock()  # a finalizer may run while its own thread holds it

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this shape, whatever it held before."""
        with self._lock:
            fitting = [place for place, array in enumerate(self._free) if array.shape == shape]
            array = self._free.pop(fitting[0]) if fitting else np.empty(shape, dtype=np.uint8)
        lent = array[:]  # torch's storage refers to this view: it dies with the last tensor
        weakref.finalize(lent, self._give_back, array)
        return torch.from_numpy(lent)

    def _give_back(self, array: NDArray[np.uint8]) -> None:
        with self._lock:
            if len(self._free) < _KEEP:
                self._free.append(array)
