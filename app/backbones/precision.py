"""The last layers of every backbone compute in the precision of their parameters, whatever autocast says."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


def parameter_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast on the device of ``x``."""
    if x.is_meta:  # counting operations, where torch knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)
