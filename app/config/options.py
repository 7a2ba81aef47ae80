"""From the command line to a ``Recipe``: ``--recipe NAME`` is where it starts, ``--section.field VALUE`` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Sequence
from importlib import resources
from typing import Any

from app import storage
from app.config.recipe import Recipe, RecipeError, validate
from app.config.reference_config import read_reference_config

# Parameters of the trainers people come from, and the fields that took their place.
SEED_OPTIONS = {
    "perf_steps": "train.perf_steps",
    "profiling": "train.profiling",
    "start_step": "train.start_step",
    "stop_step": "train.stop_step",
    "local_rank": "",  # torchrun says it in the environment
}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the app, sorted."""
    folder = resources.files("app.config") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, from the URL of a TOML file, or from that of a configuration of arcface_torch (``.py``).

    Raises:
        RecipeError: there is none of that name; the nearest is suggested.
    """
    if name.endswith(".toml"):
        return parse_recipe(storage.read_bytes(name).decode(), name.rsplit("/", 1)[-1].removesuffix(".toml"), name)
    if name.endswith(".py"):
        recipe = Recipe(name=name.rsplit("/", 1)[-1].removesuffix(".py"))
        for path, value in read_reference_config(storage.read_bytes(name).decode(), name).items():
            recipe = override(recipe, path, value, name)
        return recipe
    names = recipe_names()
    if name not in names:
        raise RecipeError(f"unknown recipe {name!r}{_nearest(name, names)}; --list-recipes shows all {len(names)}")
    return parse_recipe((resources.files("app.config") / "recipes" / f"{name}.toml").read_text(), name, name)


def parse_recipe(text: str, name: str, where: str) -> Recipe:
    """A recipe from TOML: tables named as the sections, keys as the fields."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not TOML: {error}") from error
    recipe = Recipe(name=name)
    for section, fields in tables.items():
        if not isinstance(fields, dict):
            raise RecipeError(f"{where}: {section!r} stands outside a table{_nearest(section, _sections())}")
        for key, value in fields.items():
            recipe = override(recipe, f"{section}.{key}", value, where)
    return recipe


def parse_arguments(arguments: Sequence[str]) -> Recipe:
    """The recipe that the arguments ask for, validated.

    Raises:
        RecipeError: an option or value does not exist or does not fit.
    """
    pairs = list(_pairs(arguments))
    names = [value for key, value in pairs if key == "recipe"]
    recipe = load_recipe(str(names[-1])) if names else Recipe()
    for key, value in pairs:
        if key == "recipe":
            continue
        if key == "name":
            recipe = dataclasses.replace(recipe, name=str(value))
            continue
        path = SEED_OPTIONS.get(key.replace("-", "_"), key)
        if path:
            recipe = override(recipe, path, value, f"--{key}")
    return validate(recipe)


def _pairs(arguments: Sequence[str]) -> typing.Iterator[tuple[str, str]]:
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if not word.startswith("--"):
            raise RecipeError(f"unexpected argument {word!r}: options are --section.field VALUE")
        key, equals, value = word[2:].partition("=")
        position += 1
        if not equals:
            if position < len(arguments) and not arguments[position].startswith("--"):
                value, position = arguments[position], position + 1
            else:
                value = "true"
        yield key, value


def override(recipe: Recipe, path: str, value: Any, where: str) -> Recipe:
    """Replace one field, given as text or as a TOML value of its type."""
    section_name, _, field_name = path.replace("-", "_").partition(".")
    if section_name not in _sections() or not field_name:
        known = [f"{s}.{f.name}" for s in _sections() for f in dataclasses.fields(getattr(recipe, s))]
        raise RecipeError(f"{where}: unknown option {path!r}{_nearest(path.replace('-', '_'), known)}")
    section = getattr(recipe, section_name)
    names = [field.name for field in dataclasses.fields(section)]
    if field_name not in names:
        raise RecipeError(f"{where}: {section_name} has no field {field_name!r}{_nearest(field_name, names)}")
    kind = typing.get_type_hints(type(section))[field_name]
    try:
        typed = _convert(kind, value)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {path} must be {_kind_name(kind)}, got {value!r}") from error
    return dataclasses.replace(recipe, **{section_name: dataclasses.replace(section, **{field_name: typed})})


def to_toml(recipe: Recipe) -> str:
    """A recipe as the TOML that makes it again; what ``--print-config`` prints."""
    lines = [f"# {recipe.name}"]
    for section in _sections():
        lines.append(f"\n[{section}]")
        for field in dataclasses.fields(getattr(recipe, section)):
            value = getattr(getattr(recipe, section), field.name)
            lines.append(f"{field.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return "\n".join(lines) + "\n"


def _sections() -> list[str]:
    return [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[_lower(value)]
    if kind is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise TypeError
        return int(value)
    if kind is float:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    if kind is str:
        if not isinstance(value, str):
            raise TypeError
        return value
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _lower(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError
    return value.lower()


def _kind_name(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, "a list of names")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f": did you mean {near[0]!r}?" if near else ""
