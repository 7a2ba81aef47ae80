"""Weights in files that others may have made: state dicts and class centres, read without running anything in them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from app import storage
from app.errors import AppError
from app.file_kinds import describe_kind
from app.npz_file import is_npz, load_npz
from app.parsing import ParseError, parse_json_object
from app.plain_pickle import PickleError, RefusedName
from app.safetensors_file import is_safetensors, load_safetensors
from app.torch_file import ALLOWANCE, bytes_of, load_torch, tensor_of

# Where trainers keep the backbone's state dict within their checkpoints: insightface and the Ascend port, Lightning
# (AdaFace), MagFace and others.
_CONTAINERS = (
    "state_dict_backbone",
    "state_dict",
    "model_state_dict",
    "backbone_state_dict",
    "backbone",
    "model",
    "net",
    "weights",
    "params",
    "network",
    "generator",
)
# Names that files of weights have: torch.save's, Lightning's, those of old examples, of the Hugging Face hub, numpy's.
STATE_DICTS = (".pt", ".pth", ".ckpt", ".tar", ".safetensors", ".bin", ".npz")
# Centres of classes within a checkpoint: insightface, face.evoLVe and TFace say weight, AdaFace and CurricularFace
# kernel, MagFace fc.weight, FaceX-Zoo and Lightning put head. before it.
_CENTRES = re.compile(r"(module\.)*((head|fc|classifier|loss|margin|softmax_fc)\.)?(module\.)*(weight|kernel)")


class ModelError(AppError):
    """Weights that are missing, damaged or of another architecture."""


def parse_weights(url: str, data: bytes) -> dict[str, Tensor]:
    """A state dict from the bytes of a file (``STATE_DICTS``), without running any code in it.

    It may lie within a checkpoint, and be of tensors or of numpy's arrays.

    Raises:
        ModelError: it is not one, or holds more than tensors.
    """
    state = _load_safely(url, data)
    for _ in range(4):  # not for ever: a file can put a dict into itself
        state = next((state[name] for name in _CONTAINERS if _holds_dict(state, name)), state)
    if isinstance(state, dict):
        state = _with_tensors(state, url, len(data))
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{url}: not a state dict of a backbone: {_describe_content(state)}")
    if set(state) == {"weight"}:
        raise ModelError(f"{url}: {_describe_content({'state_dict_softmax_fc': state})}")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def read_names(url: str) -> dict[str, str]:
    """A JSON object of regular expressions and what replaces them in key names, in their order.

    Raises:
        ModelError: it is not one.
    """
    try:
        names = parse_json_object(storage.read_bytes(url), url)
        for pattern in names:
            re.compile(pattern)
    except (ParseError, re.error) as error:
        raise ModelError(f"{url}: not an object of regular expressions and replacements: {error}") from error
    return {pattern: str(replacement) for pattern, replacement in names.items()}


def load_foreign(
    model: nn.Module,
    state: dict[str, Tensor],
    url: str,
    *,
    colours: str = "RGB",
    names: Mapping[str, str] | None = None,
) -> None:
    """Load weights that another program wrote, under names of its own; see ``adapt_weights``.

    Raises:
        ModelError: they are not those of the architecture.
    """
    load_weights(model, adapt_weights(model, state, url, colours=colours, names=names), url)


def adapt_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    url: str,
    *,
    colours: str = "RGB",
    names: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """A foreign state dict under the names of ``model``, for images in RGB.

    First ``names`` are replaced. Then, where all names of the model stand there behind one prefix (``module.``,
    ``model.``, MagFace's ``features.module.``), it is taken off, and what does not begin with it, such as a head, is
    left out and told. Counts of batches that old files lack are 0. Weights for BGR get the input channels of their
    first convolution in the other order, and compute the same from RGB from then on.

    Args:
        colours: order that the weights were trained on, RGB or BGR.
        names: regular expressions and replacements, applied in their order to each name.
    """
    for pattern, replacement in (names or {}).items():
        state = {re.sub(pattern, replacement, name): value for name, value in state.items()}
    own = model.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    if not all(name in state for name in needed):
        prefixes = {name.removesuffix(needed[0]) for name in state if name.endswith(needed[0])}
        fitting = [prefix for prefix in prefixes if all(prefix + name in state for name in needed)]
        if len(fitting) == 1:
            others = [name for name in state if not name.startswith(fitting[0])]
            if others:
                warnings.warn(f"{url}: left out, as no part of the backbone: {', '.join(others[:4])}", stacklevel=3)
            state = {name.removeprefix(fitting[0]): v for name, v in state.items() if name.startswith(fitting[0])}
    counts = [name for name in own if name.endswith("num_batches_tracked") and name not in state]
    state = {**state, **{name: torch.zeros_like(own[name]) for name in counts}}
    if colours == "BGR":
        first = next(name for name in own if own[name].dim() == 4 and own[name].shape[1] == 3)
        if first in state:
            state[first] = state[first].flip(1)
    return state


def _holds_dict(state: Any, name: str) -> bool:
    return isinstance(state, dict) and isinstance(state.get(name), dict)


def _describe_content(state: Any) -> str:
    if isinstance(state, Tensor):
        return f"it holds one tensor of shape {tuple(state.shape)}"
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    if "state_dict_softmax_fc" in state:
        return "it holds class centres (a head) and no backbone: name the file of the backbone"
    keys = ", ".join(str(name)[:40] for name in list(state)[:6])
    return f"its keys are {keys}: save the state dict of the backbone alone" if keys else "it is empty"


def read_centres(
    pattern: str, num_classes: int, embedding_size: int, start: int, stop: int, sub_centres: int = 1
) -> Tensor:
    """Class centres ``start..stop``, float32 [stop - start, K * D], of a checkpoint of the reference.

    It wrote a file a rank, each with the centres of a class range, in the order of ranks: ``checkpoint_gpu_{rank}.pt``
    (``checkpoint_npu_{rank}.pt``), or in 2021 ``rank_{rank}_softmax_weight.pt``, which holds the centres alone. Others
    (AdaFace, MagFace, face.evoLVe, TFace, FaceX-Zoo) name them as ``_CENTRES`` says, mostly one column a class.

    Args:
        pattern: URL with ``{rank}`` in it, or of the only file.
        sub_centres: K; with more than one, a file holds them class by class: [classes * K, D].

    Raises:
        ModelError: a file holds no centres, or together they are not those of ``num_classes`` classes.
    """
    urls = [pattern.replace("{rank}", "0")]
    while "{rank}" in pattern and storage.exists(after := pattern.replace("{rank}", str(len(urls)))):
        urls.append(after)
    found, parts = 0, []
    for url in urls:
        data = storage.read_bytes(url)
        weight = _find_centres(_load_safely(url, data), embedding_size, url, len(data))
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != embedding_size:
            held = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else " are not there"
            if isinstance(weight, dict):
                held += f", among {', '.join(str(name)[:40] for name in list(weight)[:6])}"
            raise ModelError(f"{url}: centres{held}; they are to be [classes, {embedding_size}]")
        if len(weight) % sub_centres:
            raise ModelError(f"{url}: {len(weight)} centres are not {sub_centres} a class, as head.sub_centres says")
        weight = weight.reshape(-1, sub_centres * embedding_size)
        parts.append(weight[max(0, start - found) : max(0, stop - found)].float())
        found += len(weight)
    if found != num_classes:
        each = f" of {sub_centres} each" if sub_centres > 1 else ""
        raise ModelError(
            f"{pattern}: {found} class centres{each} in {len(urls)} files, the run has {num_classes} classes"
        )
    return torch.cat(parts)


def _with_tensors(state: dict[Any, Any], url: str, size: int) -> dict[Any, Any]:
    """The same with tensors for arrays, of a file of ``size`` bytes, which may give one array many names."""
    tensors = [value.untyped_storage() for value in state.values() if isinstance(value, Tensor)]
    taken = sum({storage.data_ptr(): storage.nbytes() for storage in tensors}.values())
    if taken + sum(map(bytes_of, state.values())) > size + ALLOWANCE:
        raise ModelError(f"{url}: its arrays take more memory than a file of its size needs")
    return {name: tensor_of(value) for name, value in state.items()}


def _find_centres(state: Any, embedding_size: int, url: str, size: int) -> Any:
    """The matrix of centres, a row each, in what a file holds; something else where there is none."""
    for container in ("state_dict_softmax_fc", "head", "state_dict", "model"):
        state = state[container] if _holds_dict(state, container) else state
    if not isinstance(state, dict):
        return tensor_of(state)
    tensors = _with_tensors(state, url, size)
    found = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and value.dim() == 2 and _CENTRES.fullmatch(str(name))
        if f"{str(name).removesuffix('fc.weight')}conv1.weight" not in tensors  # fc is of a backbone then
    }
    if len(found) > 1:
        raise ModelError(f"{url}: which of {', '.join(found)} are the centres? Save those alone")
    for name, value in found.items():
        in_columns = value.shape[0] == embedding_size and (name.endswith("kernel") or value.shape[1] != embedding_size)
        return value.T if in_columns else value
    return state


def _load_safely(url: str, data: bytes) -> Any:
    try:
        if is_safetensors(data):
            return load_safetensors(data)
        if is_npz(data):
            return load_npz(data)
        return load_torch(data)
    except RefusedName as error:
        raise ModelError(
            f"{url}: not a state dict that can be loaded safely: it holds {error}, which is not weights, and nothing "
            "in it is run: save model.state_dict() instead"
        ) from None
    except PickleError as error:
        kind = "" if is_safetensors(data) or is_npz(data) else describe_kind(data)
        why = f"but {kind}" if kind else f"that can be loaded safely ({error})"
        raise ModelError(f"{url}: not a state dict {why}") from None


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
