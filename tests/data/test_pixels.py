"""One scale of pixels for training, verification, ONNX and the raw-pixel baseline."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from app.data.pixels import normalise_

ROOT = Path(__file__).parents[2]


def files_with(pattern: str) -> list[str]:
    """Files of the app in which a regular expression is found."""
    files = sorted((ROOT / "app").rglob("*.py"))
    return [str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text())]


def test_torch_and_numpy_agree_to_the_bit() -> None:
    pixels = np.arange(256, dtype=np.float32)
    ours = normalise_(pixels.copy())
    assert np.array_equal(ours, normalise_(torch.from_numpy(pixels.copy())).numpy())
    assert (ours[0], ours[255]) == (-1, 1)


def test_no_second_place_knows_the_scale() -> None:
    assert files_with(r"127\.5") == ["app/data/pixels.py"]


def test_no_second_place_knows_the_types_of_precisions() -> None:
    pattern = r'"(fp16|bf16)": *("|torch\.)'
    assert files_with(pattern) == ["app/device.py"]
