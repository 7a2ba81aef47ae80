"""The folder of a run, ``<output.url>/<recipe name>/``: what is where, for every program that reads or writes it.

recipe.toml            the recipe, as it runs
checkpoints/           see app.checkpoint.manager
events/*.jsonl         the event log; tensorboard/ beside it
training.log           what rank 0 said, of all starts
failures/rank-*.txt    what a rank said last, see app.observe.last_words
profile/               the trace, where train.profiling asks for one
model.pt, model.json   the latest backbone (a state dict) and what it is, with its SHA-256; at the end model.onnx too
best/                  the same for the backbone with the highest mean accuracy so far
summary.json, .md      figures of the run
verification/          reports of the verification job
"""

from __future__ import annotations

import hashlib
import io
import time
from typing import Any

import torch
from torch import nn

from app import storage
from app.backbones.registry import build_backbone
from app.config.recipe import ModelConfig, Recipe
from app.parsing import ParseError, dump_json, parse_json_object
from app.weights import ModelError, check_weights, load_weights, parse_weights

_MOST_BEFORE = 4  # descriptions that are kept: so many writers may die between the two writes, one after the other
_PAUSE = 0.2  # seconds before a pair that was being replaced is read again


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
    """Write ``model.pt`` (a plain state dict, as the reference writes it) and ``model.json``, its description.

    Two objects cannot change at once. Where they replace others, the description is written first and holds those
    before as well: at every moment, and for ever if this process dies between, it describes the weights that are there.
    """
    buffer = io.BytesIO()
    state = {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}
    torch.save(state, buffer)
    data = buffer.getvalue()
    about = {
        "backbone": recipe.model.backbone,
        "embedding_size": recipe.model.embedding_size,
        "image_size": recipe.data.image_size,
        "recipe": recipe.name,
        "step": step,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    about_url, weights_url = storage.join(url, "model.json"), storage.join(url, "model.pt")
    if before := _earlier(about_url, weights_url):
        storage.write_bytes(about_url, dump_json({**about, "before": before}, indent=1).encode())
        storage.write_bytes(weights_url, data)
        return
    storage.write_bytes(weights_url, data)
    storage.write_bytes(about_url, dump_json(about, indent=1).encode())


def _earlier(about_url: str, weights_url: str) -> list[dict[str, Any]]:
    """The descriptions of which one may be that of the weights that are there, the newest first."""
    if not storage.exists(about_url, optional=True) or not storage.exists(weights_url, optional=True):
        return []
    try:
        return _descriptions(parse_json_object(storage.read_bytes(about_url), about_url))[:_MOST_BEFORE]
    except ParseError:
        return []


def _descriptions(about: dict[str, Any]) -> list[dict[str, Any]]:
    """What ``model.json`` says of the newest weights, and of those before."""
    before = about.get("before")
    newest = {name: value for name, value in about.items() if name != "before"}
    return [newest, *(said for said in (before if isinstance(before, list) else []) if isinstance(said, dict))]


def _read_pair(about_url: str, weights_url: str) -> tuple[dict[str, Any], bytes]:
    """Weights and their description, read again where a run replaced them in between.

    Raises:
        ModelError: they do not belong together.
    """
    for last in (False, False, True):
        about = parse_json_object(storage.read_bytes(about_url), about_url)
        if not isinstance(about.get("sha256"), str):
            raise ModelError(f"{about_url}: not a model description: it has no sha256")
        data = storage.read_bytes(weights_url)
        found = hashlib.sha256(data).hexdigest()
        for said in _descriptions(about):
            if said.get("sha256") == found:
                return said, data
        if not last:
            time.sleep(_PAUSE)
    raise ModelError(f"{weights_url}: its SHA-256 is not the one in model.json: damaged or replaced")


def load_model(url: str) -> tuple[nn.Module, dict[str, Any]]:
    """The final backbone of a run folder, and its ``model.json``.

    Raises:
        ModelError: ``model.pt`` is not the one that ``model.json`` describes, or does not fit its architecture.
    """
    about_url, weights_url = storage.join(url, "model.json"), storage.join(url, "model.pt")
    try:
        about, data = _read_pair(about_url, weights_url)
        name, size, image = str(about["backbone"]), int(about["embedding_size"]), int(about["image_size"])
        if not all(0 < number < 1 << 31 for number in (size, image)):
            raise ValueError("a size that no model has")
    except ParseError as error:
        raise ModelError(str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{about_url}: not a model description ({type(error).__name__}: {error})") from error
    state = parse_weights(weights_url, data)
    try:
        # Shapes first, without memory: what the description says may be absurd.
        with torch.device("meta"):
            check_weights(build_backbone(name, embedding_size=size, image_size=image), state, weights_url)
    except (RuntimeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(
            f"{about_url}: no backbone {name!r} has {size} outputs for {image} pixels ({error})"
        ) from error
    model = build_backbone(name, embedding_size=size, image_size=image)
    load_weights(model, state, weights_url)
    return model.eval(), about
