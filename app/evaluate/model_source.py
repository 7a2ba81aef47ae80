"""Opens whatever holds a trained backbone: a run folder, its newest checkpoint, a state dict, an ONNX model."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app import storage
from app.backbones.registry import backbone_names, build_backbone
from app.checkpoint.manager import CheckpointManager
from app.checkpoint.names import parse_name
from app.config.options import parse_recipe
from app.device import Device
from app.errors import AppError
from app.evaluate.onnx_model import open_onnx
from app.evaluate.verification import Embed, embed_with
from app.file_kinds import describe_kind
from app.parsing import parse_json_object, parse_text
from app.run_folder import build_model, load_model
from app.weights import (
    STATE_DICTS,
    ModelError,
    adapt_weights,
    check_weights,
    load_foreign,
    load_weights,
    parse_weights,
    read_names,
)
from app.world import World


class ModelSourceError(AppError):
    """The URL holds no model that can be opened; says what is missing."""


_STEP_DIGITS = 19  # what int64 holds
WHAT = "URL of a run folder, its /checkpoints, a .onnx, or weights: .pt, .pth, .ckpt, .tar, .bin, .npz, .safetensors"


@dataclass(frozen=True)
class Foreign:
    """How a model of another program is read: order of colours; names of a bare state dict (URL, ``read_names``)."""

    colours: str = "RGB"
    names: str = ""


def add_model_options(parser: argparse.ArgumentParser, *, what: str = WHAT) -> None:
    """The options that say which model: ``--model``, and what a bare state dict does not tell."""
    parser.add_argument("--model", required=True, help=what)
    parser.add_argument("--backbone", default="", help="of a bare state dict")
    parser.add_argument("--embedding-size", type=int, default=512, help="of a bare state dict")
    parser.add_argument(
        "--weights-colours",
        choices=("RGB", "BGR"),
        default="RGB",
        help="of a bare state dict or an .onnx that does not say: order of colours it was trained on (AdaFace: BGR)",
    )
    parser.add_argument("--weights-names", default="", help="of a bare state dict: as model.init_names")


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """What those options say, for ``open_model`` and ``open_backbone``."""
    foreign = Foreign(options.weights_colours, options.weights_names)
    return {"backbone": options.backbone, "embedding_size": options.embedding_size, "foreign": foreign}


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to embed ``uint8 [B, 3, S, S]``, and what is known of it."""

    embed: Embed
    image_size: int
    about: dict[str, Any]


def open_model(
    url: str,
    device: Device,
    *,
    precision: str = "fp32",
    backbone: str = "",
    embedding_size: int = 512,
    image_size: int = 112,
    foreign: Foreign = Foreign(),
) -> OpenedModel:
    """Open a model by what its URL ends with.

    - ``.onnx``: run by ONNX Runtime, on the accelerator it knows or the CPU; see ``onnx_model``
    - anything else: see ``open_backbone``

    Raises:
        ModelSourceError, ModelError, StorageError: there is no such model, or it is damaged.
    """
    if not url.strip():
        raise ModelSourceError(f"no model is named: give a {WHAT.removeprefix('URL of a ')}")
    if without_query(url).endswith(".onnx"):
        return _open_onnx(url, foreign.colours)
    model, about = open_backbone(
        url, device, backbone=backbone, embedding_size=embedding_size, image_size=image_size, foreign=foreign
    )
    model.to(device.torch_device).eval()
    return OpenedModel(embed_with(model, device, precision), int(about["image_size"]), about)


def open_backbone(
    url: str,
    device: Device,
    *,
    backbone: str = "",
    embedding_size: int = 512,
    image_size: int = 112,
    step: int = -1,
    foreign: Foreign = Foreign(),
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The backbone at a URL on the CPU, and what is known of it: backbone, embedding_size, image_size, recipe, step.

    - ``.pt``, ``.pth`` and the other ``STATE_DICTS``: a state dict; needs ``backbone``, unless a ``model.json`` lies
      beside it; ``foreign`` says what else is to be known of one that another program wrote
    - ``/checkpoints``: the checkpoint of ``step``, or the newest sound one, of a run folder
    - anything else: a run folder with its final ``model.pt``; its checkpoint of ``step`` where one is asked for

    Raises:
        ModelSourceError, ModelError, CheckpointError, StorageError: there is no such model, or it is damaged.
    """
    url = url.rstrip("/")
    if without_query(url) != url and not without_query(url).endswith(STATE_DICTS):
        raise ModelSourceError(
            f"{url} has a query: it opens a single object, a .pt or .onnx; a run folder's files are asked for by "
            "their names, which would stand behind it"
        )
    if url.endswith("checkpoints"):
        return _open_checkpoint(url, device, step)
    if not without_query(url).endswith(STATE_DICTS):
        if step < 0 and not storage.exists(storage.join(url, "model.json")):
            raise ModelSourceError(explain_missing_model(url))
        return load_model(url) if step < 0 else _open_checkpoint(storage.join(url, "checkpoints"), device, step)
    folder = url.rsplit("/", 1)[0] if "/" in url else "."
    if not backbone and url.endswith("/model.pt") and storage.exists(storage.join(folder, "model.json")):
        return load_model(folder)
    state = parse_weights(url, storage.read_bytes(url))  # first: it may not be there, or be something else
    if not backbone:
        raise ModelSourceError(f"{url}: a state dict does not say what it is: pass --backbone, as in --backbone r50")
    model = build_backbone(backbone, embedding_size=embedding_size, image_size=image_size)
    names = read_names(foreign.names) if foreign.names else None
    try:
        load_foreign(model, state, url, colours=foreign.colours, names=names)
    except ModelError as error:
        fitting = _fitting(state, url, {"embedding_size": embedding_size, "image_size": image_size}, names)
        raise ModelError(f"{error}{f'; they are those of --backbone {fitting}' if fitting else ''}") from None
    sizes = {"embedding_size": embedding_size, "image_size": image_size}
    return model, {"backbone": backbone, **sizes, "recipe": "-", "step": 0}


def _fitting(state: dict[str, Tensor], url: str, sizes: dict[str, int], names: dict[str, str] | None) -> str:
    """Name of a backbone whose weights these are; empty where there is none. No memory is taken."""
    for name in backbone_names():
        with torch.device("meta"), warnings.catch_warnings(), contextlib.suppress(ModelError):
            warnings.simplefilter("ignore")
            model = build_backbone(name, **sizes)
            check_weights(model, adapt_weights(model, state, url, names=names), url)
            return name
    return ""


def without_query(url: str) -> str:
    """``https://host/model.onnx?signature=...`` without what follows its path; other URLs as they are."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def describe_backbone(url: str, backbone: str = "", embedding_size: int = 512) -> tuple[str, int]:
    """Name and embedding size of the backbone that ``open_backbone`` would open; its weights stay where they are.

    Raises:
        ModelSourceError, StorageError, ParseError: nothing there says it.
    """
    url = url.rstrip("/")
    if backbone and url.endswith(STATE_DICTS):
        return backbone, embedding_size
    folder = url.rsplit("/", 1)[0] if url.endswith(("checkpoints", "/model.pt")) else url
    about = storage.join(folder, "model.json")
    if not url.endswith("checkpoints") and storage.exists(about):
        said = parse_json_object(storage.read_bytes(about), about)
        if isinstance(said.get("backbone"), str) and isinstance(said.get("embedding_size"), int):
            return said["backbone"], said["embedding_size"]
        raise ModelSourceError(f"{about}: does not say backbone and embedding_size")
    if not url.endswith("checkpoints"):
        raise ModelSourceError(explain_missing_model(url))
    recipe = parse_recipe(parse_text(storage.read_bytes(storage.join(folder, "recipe.toml")), folder), "run", folder)
    return recipe.model.backbone, recipe.model.embedding_size


def _open_checkpoint(url: str, device: Device, step: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    run = url.rsplit("/", 1)[0]
    recipe = parse_recipe(
        parse_text(storage.read_bytes(storage.join(run, "recipe.toml")), run), run.rsplit("/", 1)[-1], run
    )
    manager = CheckpointManager(url, World(0, 1, 0, device))
    state = manager.load_latest((0, 0)) if step < 0 else manager.load_step(step, (0, 0))
    if state is None:
        raise ModelSourceError(f"{url}: no sound checkpoint there")
    model = build_model(recipe.model, recipe.data.image_size)
    load_weights(model, state.under("backbone."), url)
    sizes = {"embedding_size": recipe.model.embedding_size, "image_size": recipe.data.image_size}
    return model, {"backbone": recipe.model.backbone, **sizes, "recipe": recipe.name, "step": state.step}


def _open_onnx(url: str, colours: str) -> OpenedModel:
    embed, form, said = open_onnx(url, colours=colours)
    about = {"backbone": "onnx", "image_size": form.size, "recipe": url.rsplit("/", 1)[-1], "step": 0}
    step = said.get("step", "")
    if "recipe" in said and step.isascii() and step.isdecimal() and len(step) < _STEP_DIGITS:  # an export of a run
        about |= {"recipe": said["recipe"], "step": int(step)}
    return OpenedModel(embed, form.size, about)


def explain_missing_model(url: str) -> str:
    """What a URL without a ``model.json`` is instead, as far as the names there tell, and what to name."""
    shown, names = storage.redact(url), [] if url.startswith("http") else storage.list_names(url)
    filesystem, path = storage.open_filesystem(url)
    if storage.is_local(filesystem) and os.path.isfile(path):
        kind = describe_kind(storage.read_bytes(url)) or "a file of an unknown kind"
        return f"{shown}: {kind}; a model is a {WHAT.removeprefix('URL of a ')}"
    if any(parse_name(name) for name in names):
        return f"{shown}: a folder of checkpoints by another name: it must be called checkpoints, beside recipe.toml"
    if parse_name(url.rsplit("/", 1)[-1]):
        return f"{shown}: one checkpoint: name the folder that holds it, {storage.redact(url.rsplit('/', 1)[0])}"
    if "checkpoints" in names:
        return f"{shown}: this run is not finished, it has no model.pt yet: name {shown}/checkpoints for its newest"
    if "train.rec" in names:
        return f"{shown}: a dataset, not a model"
    if files := [name for name in names if name.endswith((".onnx", *STATE_DICTS))]:
        places = ", ".join(f"{shown}/{name}" for name in files[:6])
        return f"{shown}: no model.json there, but {places}: name the file, with --backbone if it is a state dict"
    if runs := [name for name in names[:50] if storage.exists(storage.join(url, name, "model.json"))]:
        return f"{shown}: a folder of runs: name one, {', '.join(f'{shown}/{name}' for name in runs[:6])}"
    if names:
        return f"{shown}: no model there: a run folder holds model.json and model.pt"
    return f"{shown}: it does not exist, or holds nothing; check the URL"
