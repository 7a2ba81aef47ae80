"""The folder of a run, ``<output.url>/<recipe name>/``: what is where, for every program that reads or writes it.

recipe.toml            the recipe, as it runs
checkpoints/           see app.checkpoint.manager
events/*.jsonl         the event log; tensorboard/ beside it
model.pt, model.json   the final backbone (a state dict) and what it is, with its SHA-256
best/                  the same for the backbone with the highest mean accuracy so far
summary.json, .md      figures of the run
verification/          reports of the verification job
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import torch
from torch import Tensor, nn

from app import storage
from app.backbones.registry import build_backbone
from app.errors import AppError
from app.recipe import ModelConfig, Recipe


class ModelError(AppError):
    """Weights that are missing, damaged or of another architecture."""


def run_url(recipe: Recipe) -> str:
    """The folder of a recipe's run."""
    return storage.join(recipe.output.url, recipe.name)


def build_model(config: ModelConfig, image_size: int) -> nn.Module:
    """The backbone of a recipe, newly initialised."""
    options: dict[str, Any] = {"embedding_size": config.embedding_size, "image_size": image_size}
    if config.gradient_checkpointing:
        options["gradient_checkpointing"] = True
    if config.dropout:
        options["dropout"] = config.dropout
    if config.mask_ratio >= 0:
        options["mask_ratio"] = config.mask_ratio
    if config.drop_path >= 0:
        options["drop_path"] = config.drop_path
    return build_backbone(config.backbone, **options)


def save_model(url: str, backbone: nn.Module, recipe: Recipe, step: int) -> None:
    """Write ``model.pt`` (a plain state dict, as the reference writes it) and then ``model.json``."""
    buffer = io.BytesIO()
    state = {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}
    torch.save(state, buffer)
    data = buffer.getvalue()
    storage.write_bytes(storage.join(url, "model.pt"), data)
    about = {
        "backbone": recipe.model.backbone,
        "embedding_size": recipe.model.embedding_size,
        "image_size": recipe.data.image_size,
        "recipe": recipe.name,
        "step": step,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    storage.write_bytes(storage.join(url, "model.json"), json.dumps(about, indent=1).encode())


def load_model(url: str) -> tuple[nn.Module, dict[str, Any]]:
    """The final backbone of a run folder, and its ``model.json``.

    Raises:
        ModelError: ``model.pt`` is not the one that ``model.json`` describes, or does not fit its architecture.
    """
    about_url, weights_url = storage.join(url, "model.json"), storage.join(url, "model.pt")
    try:
        about = json.loads(storage.read_bytes(about_url))
        name, size, image = str(about["backbone"]), int(about["embedding_size"]), int(about["image_size"])
        expected = str(about["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{about_url}: not a model description ({type(error).__name__}: {error})") from error
    data = storage.read_bytes(weights_url)
    if hashlib.sha256(data).hexdigest() != expected:
        raise ModelError(f"{weights_url}: its SHA-256 is not the one in model.json: damaged or replaced")
    model = build_backbone(name, embedding_size=size, image_size=image)
    load_weights(model, parse_weights(weights_url, data), weights_url)
    return model.eval(), about


def parse_weights(url: str, data: bytes) -> dict[str, Tensor]:
    """A state dict from the bytes of a ``.pt``/``.pth`` file, without running any code in it.

    Raises:
        ModelError: it is not one, or holds more than tensors.
    """
    state = _load_safely(url, data)
    if isinstance(state, dict) and isinstance(state.get("state_dict_backbone"), dict):
        state = state["state_dict_backbone"]  # a checkpoint of the reference
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{url}: not a state dict of a backbone")
    return {name.removeprefix("module."): value for name, value in state.items()}


def read_centres(pattern: str, num_classes: int, embedding_size: int, start: int, stop: int) -> Tensor:
    """Class centres ``start..stop``, float32 [stop - start, D], of a checkpoint of the reference.

    It wrote a file a rank, ``checkpoint_gpu_{rank}.pt``, each with the centres of a class range, in the order of ranks.

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
        weight = head.get("weight") if isinstance(head, dict) else None
        if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != embedding_size:
            shape = f" of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
            raise ModelError(f"{url}: centres{shape} in state_dict_softmax_fc are not [classes, {embedding_size}]")
        parts.append(weight[max(0, start - found) : max(0, stop - found)].float())
        found += len(weight)
    if found != num_classes:
        raise ModelError(f"{pattern}: {found} class centres in {len(urls)} files, the run has {num_classes} classes")
    return torch.cat(parts)


def _load_safely(url: str, data: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        text = str(error).splitlines()[0]
        raise ModelError(
            f"{url}: not a state dict that can be loaded safely ({type(error).__name__}: {text})"
        ) from None


def load_weights(model: nn.Module, state: dict[str, Tensor], url: str) -> None:
    """Load a state dict strictly.

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
    model.load_state_dict(state)
