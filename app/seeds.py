"""Named streams of random numbers: the draws of a run come from (seed, name, numbers), and no two streams coincide.

The name is part of the key, so two purposes that count alike (epoch 3 of the blocks, step 3 of the class sampling)
still draw independently. SHA-256 keeps streams apart whatever the numbers are; a sum or product of them would not.
Only the backbone's first weights are drawn from the seed itself, by torch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream_key(seed: int, name: str, *numbers: int) -> bytes:
    """The 256-bit key of a stream; changing it changes the results of every run.

    Args:
        seed: of the run.
        name: purpose of the stream, such as ``order.blocks``; no two purposes share one.
        numbers: what the stream is for: epoch, worker, step...
    """
    text = "\0".join([name, str(seed), *map(str, numbers)])
    return hashlib.sha256(text.encode()).digest()


def numpy_stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A stream as numpy's generator."""
    return np.random.default_rng(int.from_bytes(stream_key(seed, name, *numbers), "little"))


def torch_seed(seed: int, name: str, *numbers: int) -> int:
    """A stream as a seed below 2**63 for ``torch.manual_seed`` and ``Generator.manual_seed``."""
    return int.from_bytes(stream_key(seed, name, *numbers)[:8], "little") >> 1


def torch_stream(seed: int, name: str, *numbers: int) -> torch.Generator:
    """A stream as torch's generator on the CPU: the same draws on every device, whatever else used random numbers."""
    return torch.Generator().manual_seed(torch_seed(seed, name, *numbers))
