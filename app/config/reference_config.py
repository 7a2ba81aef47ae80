"""Reads a configuration file of insightface's arcface_torch, or of its Ascend port, as data: nothing in it is run.

Such a file is a module of assignments, ``config.batch_size = 128``; ``assignments.py`` says what of Python it may hold.
What the file does not set has the reference's default, which is this project's too.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable
from typing import Any

from app.config.assignments import Assignment, Sibling, StepSchedule, Unreadable, no_sibling, read_assignments
from app.config.recipe import RecipeError

# Settings that go over one to one.
_FIELDS = {
    "embedding_size": "model.embedding_size",
    "sample_rate": "head.sample_rate",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "lr": "optim.lr",
    "momentum": "optim.momentum",
    "weight_decay": "optim.weight_decay",
    "verbose": "train.verify_every",
    "frequent": "train.log_every",
    "num_classes": "data.num_classes",
    "num_epoch": "train.epochs",
    "rec": "data.url",
    "using_wandb": "output.wandb",
}


def _steps(epochs: Any, gamma: float = 0.1) -> dict[str, Any]:
    """The rate falls to ``gamma`` of itself after each of ``epochs``."""
    if not isinstance(epochs, list | tuple) or not all(isinstance(epoch, int | float) for epoch in epochs):
        raise TypeError
    kept = [f"{epoch:g}" for epoch in epochs if epoch > 0]
    return {"optim.schedule": "steps", "optim.milestones": kept, "optim.gamma": gamma}


def _lr_func(value: Any) -> dict[str, Any]:
    if not isinstance(value, StepSchedule):
        raise TypeError
    return _steps(value.epochs, value.gamma)


def _accumulation(value: Any) -> dict[str, Any]:
    return {"train.gradient_accumulation": value, "train.accumulate": "sum"} if value > 1 else {}


_LOSSES = {"arcface": {"head.m2": 0.5, "head.m3": 0.0}, "cosface": {"head.m2": 0.0, "head.m3": 0.4}}
# Settings that become several fields, or another kind of value.
_TURNED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "network": lambda value: {"model.backbone": re.sub(r"^iresnet(?=\d)", "r", value)},
    "margin_list": lambda value: {f"head.m{number}": float(m) for number, m in enumerate(value, start=1)},
    "loss": lambda value: _LOSSES[value],
    "optimizer": lambda value: {"optim.name": value.lower()},
    "num_image": lambda value: {"data.num_images": 0 if value == "forget" else value},  # of synthetic data, in 2021
    "val_targets": lambda value: {"verify.sets": [] if value is None else value},
    "interclass_filtering_threshold": lambda value: {"head.interclass_filtering": value or 0.0},
    "fp16": lambda value: {"train.precision": "fp16" if value else "fp32"},
    "warmup_epoch": lambda value: {"optim.warmup_epochs": float(max(value, 0))},
    "decay_epoch": _steps,
    "gradient_acc": _accumulation,
    "lr_func": _lr_func,
    "dali_aug": lambda value: {"data.augment": "reference" if value else "flip"},
}
# Settings that mean nothing here, and why.
_DROPPED = {
    "dataset": "config.rec says where the images are",
    "output": "the run goes to --output.url",
    "resume": "a second start always goes on",
    "save_all_states": "checkpoints always hold everything",
    "dali": "one reader serves all devices",
    "num_workers": "data.workers are decoding threads, not processes",
    "wandb_key": "keys come from the environment (WANDB_API_KEY); take this one out of the file",
    "wandb_entity": "the environment says it (WANDB_ENTITY)",
    "wandb_project": "the environment says it (WANDB_PROJECT)",
    "wandb_log_all": "one rank logs",
    "wandb_resume": "a resumed run goes on in its chart",
    "suffix_run_name": "--name gives the run's name",
    "save_artifacts": "the run folder holds the weights",
    "notes": "",
}


def read_reference_config(text: str, where: str, *, sibling: Sibling = no_sibling) -> dict[str, Any]:
    """Return the fields of a recipe, ``{"train.batch_size": 128, ...}``; warns of settings that have no meaning here.

    Args:
        sibling: text and place of a file beside this one by its name, or None. As in the reference, the settings of a
            ``base.py`` there hold where this file has none.

    Raises:
        RecipeError: the file is no such module, or sets what is not known; names the line.
    """
    found = sibling("base.py")
    base = {} if found is None else read_assignments(*found)
    fields: dict[str, Any] = {}
    for name, assignment in read_assignments(text, where, sibling=sibling, before=base).items():
        fields |= _fields(name, assignment, told=not assignment.place.startswith(f"{found[1]}," if found else " "))
    micro = fields.get("train.gradient_accumulation", 1)
    if isinstance(micro, int) and micro > 1:
        # There verbose and frequent count micro-batches, here steps.
        for path, default in (("train.verify_every", 2000), ("train.log_every", 10)):
            there = fields.get(path, default)
            fields[path] = max(1, there // micro) if isinstance(there, int) and there > 0 else there
    return fields


def _fields(name: str, assignment: Assignment, *, told: bool) -> dict[str, Any]:
    value, where = assignment
    if name in _DROPPED:
        if _DROPPED[name] and told:
            warnings.warn(f"{where}: config.{name} has no effect: {_DROPPED[name]}", stacklevel=4)
        return {}
    if isinstance(value, Unreadable):
        raise RecipeError(value.reason)
    if name in _FIELDS:
        return {_FIELDS[name]: value}
    if name not in _TURNED and value is None:  # what a fork added and this file leaves out
        if told:
            warnings.warn(f"{where}: config.{name} is not known here, and None says nothing", stacklevel=4)
        return {}
    if name not in _TURNED:
        near = difflib.get_close_matches(name, [*_FIELDS, *_TURNED, *_DROPPED], 1)
        hint = f": did you mean {near[0]!r}?" if near else ": remove it, and give its counterpart as an option"
        raise RecipeError(f"{where}: unknown setting config.{name}{hint}")
    try:
        return _TURNED[name](value)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecipeError(f"{where}: config.{name} cannot be {value!r}") from error
