"""From the command line to a ``Recipe``: ``--recipe NAME`` is where it starts, ``--section.field VALUE`` overrides."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import typing
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from app import storage
from app.config.nearest import hint
from app.config.recipe import Recipe, RecipeError, all_settings, sections, validate
from app.config.reference_config import read_reference_config
from app.errors import redact
from app.parsing import ParseError, parse_text, parse_toml
from app.settings import settings_of

# Parameters of the trainers people come from, and the fields that took their place.
REFERENCE_OPTIONS = {
    "perf_steps": "train.perf_steps",
    "profiling": "train.profiling",
    "start_step": "train.profile_start",  # the window of the profiler, as in the Ascend port
    "stop_step": "train.profile_stop",
    "local_rank": "",  # torchrun says it in the environment
}
# What app.train answers without training (app.config.help).
QUESTIONS = {
    "help [SECTION]": "this text, or one section of it; also -h",
    "version": "of this program",
    "list-recipes": "names of the published recipes",
    "print-config": "the recipe as it would run, as TOML: start a file of your own from it",
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
        return parse_recipe(_read_text(name), name.rsplit("/", 1)[-1].removesuffix(".toml"), name)
    if name.endswith(".py"):
        recipe = _named(name.rsplit("/", 1)[-1].removesuffix(".py"))
        for path, value in read_reference_config(_read_text(name), name, sibling=_beside(name)).items():
            recipe = override(recipe, path, value, name)
        return recipe
    names = recipe_names()
    if name not in names and ("/" in name or "." in name):
        raise RecipeError(f"recipe {redact(name)!r}: the name of a recipe's file ends with .toml or .py")
    if name not in names:
        raise RecipeError(f"unknown recipe {name!r}{hint(name, names)} --list-recipes shows all {len(names)}")
    return parse_recipe((resources.files("app.config") / "recipes" / f"{name}.toml").read_text(), name, name)


def _beside(url: str) -> Callable[[str], tuple[str, str] | None]:
    """Text and URL of another file in a configuration's folder; None where there is none, or none may be read."""
    folder, _, own = url.rpartition("/")

    def read(name: str) -> tuple[str, str] | None:
        other = storage.join(folder, name) if folder else name
        if name == own or "?" in url:
            return None
        try:
            return _read_text(other), other
        except storage.StorageError as error:
            if error.kind in ("absent", "denied"):
                return None
            raise

    return read


def _named(name: str) -> Recipe:
    """The defaults; a run is called as its recipe unless ``--name`` says otherwise."""
    return Recipe(name=name, origin=name)


def _read_text(url: str) -> str:
    try:
        return parse_text(storage.read_bytes(url), url)
    except ParseError as error:
        raise RecipeError(str(error)) from error


def parse_recipe(text: str, name: str, where: str) -> Recipe:
    """A recipe from TOML: tables named as the sections, keys as the fields."""
    try:
        tables = parse_toml(text, where)
    except ParseError as error:
        raise RecipeError(str(error)) from error
    recipe = _named(name)
    for section, fields in tables.items():
        if not isinstance(fields, dict):
            raise RecipeError(f"{where}: {section!r} stands outside a table{hint(section, sections())}")
        if not fields and section not in sections():
            raise RecipeError(f"{where}: there is no section {section!r}{hint(section, sections())}")
        for key, value in fields.items():
            recipe = override(recipe, f"{section}.{key}", value, where)
    return recipe


def parse_arguments(arguments: Sequence[str]) -> Recipe:
    """The recipe that the arguments ask for, validated.

    Raises:
        RecipeError: an option or value does not exist or does not fit.
    """
    pairs = list(_pairs(arguments))
    _say_lists_given_twice(pairs)
    names = [_text(key, value) for key, value in pairs if key == "recipe"]
    recipe = load_recipe(names[-1]) if names else Recipe()
    for key, value in pairs:
        if key == "name":
            recipe = dataclasses.replace(recipe, name=_text(key, value))
        elif key != "recipe" and (path := REFERENCE_OPTIONS.get(key.replace("-", "_"), key)):
            recipe = _override_by_option(recipe, path, key, value)
    return validate(recipe)


def _say_lists_given_twice(pairs: Sequence[tuple[str, str | None]]) -> None:
    """The last of an option counts, so that scripts can override it; of a list somebody may have meant all."""
    lists = {path for path, about in all_settings() if typing.get_origin(about.kind) is tuple} | {"data.url"}
    given: dict[str, list[str | None]] = {}
    for key, value in pairs:
        given.setdefault(key.replace("-", "_"), []).append(value)
    for path in sorted(lists & given.keys()):
        if len(set(given[path])) > 1:
            warnings.warn(
                f"--{path.replace('_', '-')} is given {len(given[path])} times, and the last counts: several values of "
                "it are parted by commas",
                stacklevel=3,
            )


def _override_by_option(recipe: Recipe, path: str, key: str, value: str | None) -> Recipe:
    known = dict(all_settings())
    path = path.replace("-", "_")
    if path not in known:
        others = ["recipe", "name", "debug", *REFERENCE_OPTIONS, *(name.split()[0] for name in QUESTIONS)]
        spellings = {name.replace("_", "-"): name for name in [*known, *others]}
        near = hint(key.replace("_", "-"), spellings, "--")
        raise RecipeError(f"unknown option --{key}{near or ':'} --help lists all")
    if value is None and known[path].kind is not bool:
        raise RecipeError(f"--{key} needs a value, {known[path].kind_name}: {known[path].meaning}")
    return override(recipe, path, "true" if value is None else value, f"--{key}")


def option_value(arguments: Sequence[str], path: str) -> str | None:
    """The last value that the arguments give a field, in any spelling; None where they give none."""
    given = [value for key, value in _pairs(arguments) if key.replace("-", "_") == path]
    return given[-1] if given else None


def _text(key: str, value: str | None) -> str:
    if not value:
        raise RecipeError(f"--{key} needs a value: a name")
    return value


def _pairs(arguments: Sequence[str]) -> typing.Iterator[tuple[str, str | None]]:
    """Options and their values, None where there is none: ``--key value``, ``--key=value`` or ``--key``."""
    position = 0
    while position < len(arguments):
        word = arguments[position]
        if word.endswith((".py", ".toml")) and not word.startswith("--"):
            # The reference's trainers take their configuration so: train.py configs/ms1mv3_r50.py
            yield "recipe", word
            position += 1
            continue
        if not word.startswith("--"):
            raise RecipeError(f"unexpected argument {word!r}: options are --section.field VALUE; --help lists them")
        key, equals, text = word[2:].partition("=")
        value = text if equals else None
        position += 1
        if not equals and position < len(arguments) and not arguments[position].startswith("--"):
            value, position = arguments[position], position + 1
        yield key, value


def override(recipe: Recipe, path: str, value: Any, where: str) -> Recipe:
    """Replace one field, given as text or as a TOML value of its type.

    Raises:
        RecipeError: there is no such field (the nearest is suggested), or it does not take this value.
    """
    known = dict(all_settings())
    path = path.replace("-", "_")
    if path not in known:
        raise RecipeError(f"{where}: there is no field {path!r}{hint(path, known)}")
    about = known[path]
    if path == "data.url" and isinstance(value, list) and all(isinstance(url, str) for url in value):
        value = ",".join(value)
    try:
        typed = _convert(about.kind, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise RecipeError(f"{where}: {path} must be {about.kind_name}, got {_shown(value)}: {about.meaning}") from error
    if problem := about.problem(typed):
        raise RecipeError(f"{where}: {path} {problem}: {about.meaning}")
    section, name = path.split(".")
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{name: typed})})


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return "a number that is too long"


def to_toml(recipe: Recipe) -> str:
    """A recipe as the TOML that makes it again; what ``--print-config`` prints."""
    lines = [f"# {recipe.name}"]
    for section, kind in sections().items():
        lines.append(f"\n[{section}]")
        for name in settings_of(kind):
            lines.append(f"{name} = {_to_toml_value(getattr(getattr(recipe, section), name))}")
    return "\n".join(lines) + "\n"


def _to_toml_value(value: Any) -> str:
    # JSON's spelling is TOML's but for characters beyond 16 bits, which JSON splits, and DEL, which TOML escapes.
    # A URL's credentials stay out of it: they belong in the environment, and recipes are kept with the results.
    value = [redact(part) for part in value] if isinstance(value, tuple) else value
    value = redact(value) if isinstance(value, str) else value
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


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
