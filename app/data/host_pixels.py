"""Transforms of one image in the host's memory: what a batch does on a device, with few passes over what a cache holds.

For 112 x 112 pixels a pass takes 4 us, and so does one more small tensor: numbers that are known stay Python's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bands = list[tuple[int, int, Tensor]]  # first and last line, and what each result takes of them
LUMA = (0.299, 0.587, 0.114)


def blur(image: NDArray[np.uint8], weights: Sequence[float]) -> NDArray[np.float32]:
    """Convolve [H, W, 3] with a symmetric kernel, from its middle outwards, mirrored about the outermost pixels."""
    radius = len(weights) - 1
    height, width, channels = image.shape
    line, edge = width * channels, channels * radius
    padded = np.empty((height + 2 * radius, line + 2 * edge), dtype=np.float32)
    padded[radius : radius + height, edge : edge + line] = image.reshape(height, line)
    for d in range(1, radius + 1):
        for at, source in ((-d, d), (width - 1 + d, width - 1 - d)):
            to, of = edge + channels * at, edge + channels * source
            padded[:, to : to + channels] = padded[:, of : of + channels]
    for d in range(1, radius + 1):
        padded[radius - d] = padded[radius + d]
        padded[radius + height - 1 + d] = padded[radius + height - 1 - d]
    # The lines lie end to end: with their margins both directions are sums of shifted copies of one long line.
    values = padded.reshape(-1)
    for step in (padded.shape[1], channels):
        size = len(values) - 2 * radius * step
        middle = radius * step
        blurred = values[middle : middle + size] * np.float32(weights[0])
        for d in range(1, radius + 1):
            pair = values[middle - d * step :][:size] + values[middle + d * step :][:size]
            pair *= np.float32(weights[d])
            blurred += pair
        values = blurred
    strides = (4 * padded.shape[1], 4 * channels, 4)
    return np.lib.stride_tricks.as_strided(values, image.shape, strides, writeable=False)


def pick(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Resize [H, H, 3] to a square, each pixel the one that it begins in."""
    chosen, octets = _chosen(len(image), side)
    return image.take(chosen, axis=0).reshape(side, -1).take(octets, axis=1).reshape(side, side, 3)


@lru_cache(maxsize=512)
def _chosen(size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    chosen = (np.arange(side, dtype=np.float32) * np.float32(size / side)).astype(np.int64)  # as torch rounds
    return chosen, (3 * chosen[:, None] + np.arange(3)).ravel()


def resample(lines: Tensor, weights: Bands) -> Tensor:
    """Weighted sums of lines, float [size, n] to [side, n]: a band of results needs only a band of lines."""
    return torch.cat([part @ lines[first:last] for first, last, part in weights])


def bands(weights: Tensor) -> Bands:
    """The parts of a matrix [side, size] that are not zero, for bands of its rows; of a small one, all of it."""
    count = 1 + min(weights.shape) // 32
    found = []
    for part in weights.tensor_split(count):
        used = part.any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        found.append((first, last, part[:, first:last].contiguous()))
    return found


def relight(image: Tensor, steps: Sequence[tuple[int, float]]) -> Tensor:
    """Brightness (0), contrast (1) and saturation (2) times a factor each, in this order; float of [H, W * 3].

    torchvision's definitions; ``image`` is uint8 [H, W * 3].
    """
    values = image.float()
    same, grey = _mixing(4 if image.shape[1] % 12 == 0 else 1)
    values = values.view(-1, len(same))
    for kind, factor in steps:
        if kind == 2:
            values = values @ torch.lerp(grey, same, factor)
        elif kind == 1:
            sums = values.new_ones(len(values)) @ values  # a product is faster than a sum over lines
            mean = float((sums @ grey).sum()) / values.numel()
            values = values.mul_(factor).add_((1 - factor) * mean)
        else:
            values = values.mul_(factor)
        if factor > 1:  # else it stays between what it was, the mean or the luma, and black
            values = values.clamp_(0, 255)
    return values.view_as(image)


@lru_cache
def _mixing(together: int) -> tuple[Tensor, Tensor]:
    """Matrices for so many neighbouring pixels that keep their colours, or make each its luma."""
    grey = torch.tensor(LUMA)[:, None].expand(3, 3).contiguous()
    return torch.eye(3 * together), torch.kron(torch.eye(together), grey)
