"""What a component needs to know of the app's recipes, read as data: it never imports the app."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "app" / "config" / "recipes"


class UnknownRecipeError(ValueError):
    """No recipe of that name; suggests the nearest."""


def recipe_names() -> list[str]:
    """Names of the published recipes, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def known_recipe(recipe: str) -> None:
    """Refuse a recipe that the app will not know; the URL of a file is for the app to judge.

    Raises:
        UnknownRecipeError: there is none of that name.
    """
    names = recipe_names()
    if not names or recipe.endswith((".toml", ".py")) or recipe in names:
        return
    if "/" in recipe or "." in recipe:
        raise UnknownRecipeError(f"recipe {recipe!r}: the name of a recipe's file ends with .toml or .py")
    near = difflib.get_close_matches(recipe, names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownRecipeError(f"unknown recipe {recipe!r}: {hint}python -m app.train --list-recipes shows all")


def data_of(recipe: str, arguments: list[str]) -> str | None:
    """Where a recipe says its data is, as a few do; ``arguments`` are how it reaches the pods.

    Empty where it says nothing; None for that of a URL, which nobody reads here.
    """
    if "--recipe" not in arguments:
        return next((word.partition("=")[2] for word in arguments if word.startswith("--data.url=")), "")
    path = _FOLDER / f"{recipe}.toml"
    return str(tomllib.loads(path.read_text()).get("data", {}).get("url", "")) if path.exists() else None


def default_run_name(recipe: str) -> str:
    """The run's name where the user gives none: the recipe's, or the file's without folder and ending."""
    return recipe.rsplit("/", 1)[-1].removesuffix(".toml").removesuffix(".py")
