"""Bytes of a backbone and its passes, without making them: it runs on the meta device under a count of storages."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app.backbones.config import ModelConfig
from app.run_folder import build_model


@functools.lru_cache(maxsize=8)
def parameter_count(model: ModelConfig, size: int) -> int:
    """Of a backbone for pictures of ``size`` pixels."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(model, size).parameters())


@functools.lru_cache(maxsize=64)
def bytes_of_training(model: ModelConfig, size: int, batch: int) -> tuple[int, int]:
    """What is alive when a batch's forward pass ends, and the most until its backward pass ends; as float32."""
    with torch.device("meta"):
        backbone = build_model(dataclasses.replace(model, compile=False), size).train()
        images = torch.zeros(batch, 3, size, size)
        with LiveBytes() as live:
            live.note(images)
            embeddings = backbone(images)
            forward = live.now
            embeddings.float().sum().backward()
    return forward, live.peak


@functools.lru_cache(maxsize=64)
def bytes_of_embedding(model: ModelConfig, size: int, batch: int) -> int:
    """The most that is alive while a batch is embedded, without gradients and without the parameters."""
    with torch.device("meta"), torch.no_grad():
        backbone = build_model(model, size).eval()
        images = torch.zeros(batch, 3, size, size)
        with LiveBytes() as live:
            live.note(images)
            backbone(images)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and that are not yet freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += self._known[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.note(value)
        return result
