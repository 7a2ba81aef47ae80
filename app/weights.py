"""Weights in files that others may have made: state dicts and class centres, read without running anything in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from app import storage
from app.errors import AppError
from app.plain_pickle import PickleError, RefusedName
from app.torch_file import load_torch


class ModelError(AppError):
    """Weights that are missing, damaged or of another architecture."""


def parse_weights(url: str, data: bytes) -> dict[str, Tensor]:
    """A state dict from the bytes of a ``.pt``/``.pth`` file, without running any code in it.

    Raises:
        ModelError: it is not one, or holds more than tensors.
    """
    state = _load_safely(url, data)
    if isinstance(state, dict) and isinstance(state.get("state_dict_backbone"), dict):
        state = state["state_dict_backbone"]  # a checkpoint of the reference
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{url}: not a state dict of a backbone")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def read_centres(pattern: str, num_classes: int, embedding_size: int, start: int, stop: int) -> Tensor:
    """Class centres ``start..stop``, float32 [stop - start, D], of a checkpoint of the reference.

    It wrote a file a rank, each with the centres of a class range, in the order of ranks: ``checkpoint_gpu_{rank}.pt``
    (``checkpoint_npu_{rank}.pt``), or in 2021 ``rank_{rank}_softmax_weight.pt``, which holds the centres alone.

    Args:
        pattern: URL with ``{rank}`` in it, or of the only file.

    Raises:
        ModelError: a file holds no centres, or together they are not those of ``num_classes`` classes.
    """
    urls = [pattern.replace("{rank}", "0")]
    while "{rank}" in pattern and storage.exists(after := pattern.replace("{rank}", str(len(urls)))):
        urls.append(after)
    found, parts = 0, []
    for url in urls:
        state = _load_safely(url, storage.read_bytes(url))
        head = state.get("state_dict_softmax_fc") if isinstance(state, dict) else None
        weight = head.get("weight") if isinstance(head, dict) else state
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != embedding_size:
            shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
            raise ModelError(
                f"{url}: centres{shape}, here or in state_dict_softmax_fc, are not [classes, {embedding_size}]"
            )
        parts.append(weight[max(0, start - found) : max(0, stop - found)].float())
        found += len(weight)
    if found != num_classes:
        raise ModelError(f"{pattern}: {found} class centres in {len(urls)} files, the run has {num_classes} classes")
    return torch.cat(parts)


def _load_safely(url: str, data: bytes) -> Any:
    try:
        return load_torch(data)
    except RefusedName as error:
        raise ModelError(
            f"{url}: not a state dict that can be loaded safely: it holds {error}, which is not weights, and nothing "
            "in it is run: save model.state_dict() instead"
        ) from None
    except PickleError as error:
        raise ModelError(f"{url}: not a state dict that can be loaded safely ({error})") from None


def load_weights(model: nn.Module, state: dict[str, Tensor], url: str) -> None:
    """Load a state dict strictly.

    Raises:
        ModelError: keys or shapes are not those of the architecture; names the first that differs.
    """
    check_weights(model, state, url)
    model.load_state_dict(state)


def check_weights(model: nn.Module, state: dict[str, Tensor], url: str) -> None:
    """See whether a state dict fits a model, which may be one without memory (of the device ``meta``).

    Raises:
        ModelError: keys or shapes are not those of the architecture; names the first that differs.
    """
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or foreign or other:
        what = (
            f"{other[0]} has shape {tuple(state[other[0]].shape)} instead of {tuple(own[other[0]].shape)}"
            if other
            else f"{len(missing)} keys are missing (first: {missing[:1]}), {len(foreign)} are foreign ({foreign[:1]})"
        )
        raise ModelError(f"{url}: weights of another architecture: {what}; set model.backbone and embedding_size")
