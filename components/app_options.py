"""What the app makes of its own options, asked of the app itself: one parser, in a process of its own.

A mistyped option, a value out of range or a recipe that no pod can read is found here, before a job exists.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from components.arguments import ComponentError

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_SECONDS = 300
_LARGEST_RECIPE = 64 << 10  # bytes; it travels inside the job, whose manifest may have about a megabyte
_BUILD = """
import sys, torch
from app.config.options import parse_arguments
from app.errors import run_main
from app.run_folder import build_model

def main(words):
    recipe = parse_arguments(words)
    with torch.device("meta"):  # nothing is allocated
        build_model(recipe.model, recipe.data.image_size)
    return 0

run_main(main)
"""
_OF_THE_MODEL = ("--model.", "--data.image")
_PARSE = "import sys; from app.{module} import parse; parse(sys.argv[1:])"


class AppMissing(Exception):
    """The app cannot be asked: it is not beside the components, or its libraries are not installed."""


def settings(arguments: list[str]) -> dict[str, Any]:
    """The recipe that ``app.train`` would run with these arguments, as tables.

    Raises:
        ComponentError: the app refuses an option, a value or the recipe; its words.
        AppMissing: it cannot be asked.
    """
    return tomllib.loads(_ask(("-m", "app.config", *arguments)))


def check_model(arguments: list[str]) -> None:
    """Let the app build the backbone of these arguments, if they say anything of it.

    Raises:
        ComponentError: there is none of that name, or it has no such option.
        AppMissing: it cannot be asked.
    """
    if any(word.startswith(_OF_THE_MODEL) for word in arguments):
        _ask(("-c", _BUILD, *arguments))


def plan(arguments: list[str]) -> str:
    """What ``app.plan`` says of a run that fits.

    Raises:
        ComponentError: it does not fit; names what would.
        AppMissing: it cannot be asked.
    """
    return _ask(("-m", "app.plan", *arguments)).strip().splitlines()[-1].removeprefix("fits: ")


def check_options(module: str, arguments: list[str]) -> None:
    """Let ``app.verify`` or ``app.prepare`` look at its command line.

    Raises:
        ComponentError: it refuses it.
        AppMissing: it cannot be asked.
    """
    _ask(("-c", _PARSE.format(module=module), *arguments))


def recipe_arguments(recipe: str) -> list[str]:
    """How a recipe reaches the pods: by name or URL, or, when it is a file here, as the options it stands for.

    Raises:
        ComponentError: the file is not there, too large, or not a recipe.
    """
    path = Path(recipe.removeprefix("file://")).expanduser()
    if not recipe.endswith((".toml", ".py")) or ("://" in recipe and not recipe.startswith("file://")):
        return ["--recipe", recipe]
    try:
        if path.stat().st_size > _LARGEST_RECIPE:
            raise ComponentError(f"--recipe {recipe}: larger than {_LARGEST_RECIPE >> 10} KiB; is it a recipe?")
        text = path.read_bytes().decode("utf-8-sig")  # Windows' editors put a mark before it, as the app knows
    except (OSError, UnicodeDecodeError) as error:
        raise ComponentError(
            f"--recipe {recipe}: cannot be read here ({type(error).__name__}): correct the path, name a published "
            "recipe, or the URL of a file that the pods can read"
        ) from error
    if recipe.endswith(".py"):
        return _options(_changed(settings(["--recipe", str(path)])))
    try:
        return _options(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ComponentError(f"--recipe {recipe}: not TOML: {error}") from error


def without_replaced(recipe: list[str], later: list[str]) -> list[str]:
    """A recipe's options less those that ``later`` words set: a folder of this machine, say, that no pod has."""
    replaced = {_key(word) for word in later if word.startswith("--")}
    return [word for word in recipe if _key(word) not in replaced]


def _key(word: str) -> str:
    return word.partition("=")[0].replace("-", "_")


def _changed(tables: dict[str, Any]) -> dict[str, Any]:
    """What differs from the app's defaults."""
    defaults = settings([])
    return {
        section: {key: value for key, value in fields.items() if defaults.get(section, {}).get(key) != value}
        for section, fields in tables.items()
    }


def _options(tables: dict[str, Any]) -> list[str]:
    found = []
    for section, fields in tables.items():
        if not isinstance(fields, dict):
            raise ComponentError(f"--recipe: {section!r} stands outside a table; fields stand below [section]")
        for key, value in fields.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            found.append(f"--{section}.{key}={str(text).lower() if isinstance(value, bool) else text}")
    return found


def _ask(command: tuple[str, ...]) -> str:
    code, out, err = _run(command)
    if code == 0:
        return out
    lines = [line for line in err.strip().splitlines() if line.strip()] or [f"exit code {code}"]
    last = lines[-1]
    if last.startswith(("ModuleNotFoundError", "ImportError")) or "No module named" in last:
        raise AppMissing(last)
    if code == 2 and " error: " in last:
        last = last.partition(" error: ")[2]
    raise ComponentError(last.removeprefix("error: "))


@functools.lru_cache(maxsize=64)
def _run(command: tuple[str, ...]) -> tuple[int, str, str]:
    search = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    # An accelerator's plugin without its driver would fail at import, and nothing is computed here.
    environment = {**os.environ, "PYTHONPATH": search, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AppMissing(f"the app gave no answer ({type(error).__name__})") from error
    return done.returncode, done.stdout, done.stderr
