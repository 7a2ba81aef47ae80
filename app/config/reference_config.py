"""Reads a configuration file of insightface's arcface_torch, or of its Ascend port, as data: nothing in it is run.

Such a file is a module of assignments, ``config.batch_size = 128``. Values may be literals, and arithmetic with
literals and earlier settings; anything else is refused with its line. What the file does not set has the reference's
default, which is this project's too.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable
from typing import Any

from app.config.recipe import RecipeError

# Settings that go over one to one.
_FIELDS = {
    "network": "model.backbone",
    "embedding_size": "model.embedding_size",
    "sample_rate": "head.sample_rate",
    "interclass_filtering_threshold": "head.interclass_filtering",
    "batch_size": "train.batch_size",
    "gradient_acc": "train.gradient_accumulation",
    "seed": "train.seed",
    "optimizer": "optim.name",
    "lr": "optim.lr",
    "momentum": "optim.momentum",
    "weight_decay": "optim.weight_decay",
    "verbose": "train.verify_every",
    "frequent": "train.log_every",
    "num_classes": "data.num_classes",
    "num_image": "data.num_images",
    "num_epoch": "train.epochs",
    "val_targets": "verify.sets",
    "rec": "data.url",
    "using_wandb": "output.wandb",
}
_LOSSES = {"arcface": {"head.m2": 0.5, "head.m3": 0.0}, "cosface": {"head.m2": 0.0, "head.m3": 0.4}}
# Settings that become several fields, or another kind of value.
_TURNED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "margin_list": lambda value: {f"head.m{number}": float(m) for number, m in enumerate(value, start=1)},
    "loss": lambda value: _LOSSES[value],
    "fp16": lambda value: {"train.precision": "fp16" if value else "fp32"},
    "warmup_epoch": lambda value: {"optim.warmup_epochs": float(max(value, 0))},
    "dali_aug": lambda value: {"data.augment": "reference" if value else "flip"},
}
# Settings that mean nothing here, and why.
_DROPPED = {
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
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def read_reference_config(text: str, where: str) -> dict[str, Any]:
    """Return the fields of a recipe, ``{"train.batch_size": 128, ...}``; warns of settings that have no meaning here.

    Raises:
        RecipeError: the file is no such module, or sets what is not known; names the line.
    """
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise RecipeError(f"{where}: not a configuration module: {error}") from error
    settings: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for statement in module.body:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_docstring(statement) or _is_start(statement):
            continue
        name = _assigned(statement)
        if name is None:
            raise RecipeError(
                f"{where}, line {statement.lineno}: only config.NAME = VALUE is read; nothing is executed"
            )
        settings[name] = _value(statement.value, settings, where)  # type: ignore[attr-defined]
        lines[name] = statement.lineno
    if not settings:
        raise RecipeError(f"{where}: sets nothing: a configuration has lines config.NAME = VALUE")
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        fields |= _fields(name, value, f"{where}, line {lines[name]}")
    return fields


def _fields(name: str, value: Any, where: str) -> dict[str, Any]:
    if name in _DROPPED:
        if _DROPPED[name]:
            warnings.warn(f"{where}: config.{name} has no effect: {_DROPPED[name]}", stacklevel=4)
        return {}
    if name in _FIELDS:
        return {_FIELDS[name]: value}
    if name not in _TURNED:
        near = difflib.get_close_matches(name, [*_FIELDS, *_TURNED, *_DROPPED], 1)
        hint = f": did you mean {near[0]!r}?" if near else ": remove it, and give its counterpart as an option"
        raise RecipeError(f"{where}: unknown setting config.{name}{hint}")
    try:
        return _TURNED[name](value)
    except (TypeError, ValueError, KeyError) as error:
        raise RecipeError(f"{where}: config.{name} cannot be {value!r}") from error


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_start(statement: ast.stmt) -> bool:
    """``config = edict()``, whatever the class is called here."""
    match statement:
        case ast.Assign(targets=[ast.Name(id="config")], value=ast.Call(func=ast.Name(), args=[], keywords=[])):
            return True
    return False


def _assigned(statement: ast.stmt) -> str | None:
    match statement:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="config"), attr=name)]):
            return name
    return None


def _value(node: ast.expr, settings: dict[str, Any], where: str) -> Any:
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            numbers = _value(left, settings, where), _value(right, settings, where)
            if all(isinstance(number, int | float) for number in numbers):
                try:
                    return _ARITHMETIC[type(op)](*numbers)
                except ZeroDivisionError as error:
                    raise RecipeError(f"{where}, line {node.lineno}: division by zero") from error
        case ast.Attribute(value=ast.Name(id="config"), attr=name) if name in settings:
            return settings[name]
        case _:
            try:
                return ast.literal_eval(node)
            except (ValueError, TypeError):
                pass
    raise RecipeError(
        f"{where}, line {node.lineno}: {ast.unparse(node)!r} is neither a literal nor arithmetic with literals and "
        "settings above it; write its value"
    )
