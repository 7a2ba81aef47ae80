"""Questions about options and recipes, which ``app.train`` answers without training."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import app
from app.config.options import QUESTIONS, REFERENCE_OPTIONS, parse_arguments, recipe_names, to_toml
from app.config.recipe import RecipeError, sections
from app.settings import Setting, settings_of

USAGE = "python -m app.train --recipe NAME --data.url URL [--output.url URL] [--section.field VALUE ...]"
_WORDS = {bool: "[true|false]", int: "NUMBER", float: "NUMBER", str: "TEXT"}
_START = [
    (
        "--recipe NAME",
        "where to start: a published recipe, or path or URL of a .toml, or of a .py of arcface_torch",
    ),
    ("--name NAME", "of the run, whose folder is <output.url>/<name>; default: the recipe's"),
    ("--debug", "show the traceback of an error"),
]


def answer(arguments: Sequence[str]) -> str:
    """The answer to ``--help [SECTION]``, ``--version``, ``--list-recipes`` or ``--print-config``; empty for a run.

    Raises:
        RecipeError: nothing was said at all, or the recipe to print has a mistake.
    """
    if not arguments:
        raise RecipeError(f"nothing to train. Type: {USAGE}; --list-recipes names the recipes, --help every option")
    if {"--help", "-h"} & {*arguments}:
        return help_text([word for word in arguments if word in sections()])
    if "--version" in arguments:
        return f"arcface-torchx {app.__version__}\n"
    if "--list-recipes" in arguments:
        return "\n".join(recipe_names()) + "\n"
    if "--print-config" in arguments:
        return to_toml(parse_arguments([word for word in arguments if word != "--print-config"]))
    return ""


def help_text(only: Sequence[str] = (), width: int = 0) -> str:
    """Every option by section, with its meaning, the values it takes and its default.

    Args:
        only: sections to show; all, with what starts a run, when empty.
        width: columns; 0 asks the terminal.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns - 1
    lines: list[str] = []
    if not only:
        lines += [*_wrap(f"usage: {USAGE}", width, indent=7), ""]
        lines += _wrap("Trains a face-recognition model, alone or under torchrun. Run again, it goes on.", width)
        lines += ["", "To start:", *_table(_START, width)]
        lines += ["", "To ask:", *_table([(f"--{name}", meaning) for name, meaning in QUESTIONS.items()], width)]
        same = ", ".join(f"--{name}" for name in REFERENCE_OPTIONS)
        lines += ["", *_wrap(f"Known from the reference's trainers, with the same meaning: {same}.", width)]
    for section, kind in sections().items():
        if not only or section in only:
            title = f"[{section}] {(kind.__doc__ or '').splitlines()[0]}"
            rows = [(_spelling(section, name, about), describe(about)) for name, about in settings_of(kind).items()]
            lines += ["", *_wrap(title, width), *_table(rows, width)]
    return "\n".join(lines).lstrip("\n") + "\n"


def describe(about: Setting) -> str:
    """Meaning, possible values and default of a field in one sentence."""
    return f"{about.meaning}{f' ({about.takes})' if about.takes else ''} [{default_text(about)}]"


def default_text(about: Setting) -> str:
    """A default as one types it."""
    if about.kind is bool:
        return str(about.default).lower()
    if isinstance(about.default, tuple):
        return ",".join(about.default)
    return f"{about.default:g}" if isinstance(about.default, float) else str(about.default) or "empty"


def _spelling(section: str, name: str, about: Setting) -> str:
    word = "CHOICE" if about.choices else _WORDS.get(about.kind, "NAME,NAME")
    return f"--{section}.{name.replace('_', '-')} {word}"


def _table(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Two columns; where the terminal is narrow, or a name long, the text stands below the name."""
    column = 38 if width >= 80 else 8
    lines = []
    for name, text in rows:
        below = _wrap(" " * column + text, width, indent=column)
        if len(name) + 4 <= column:
            lines += [f"  {name:<{column - 2}}{below[0].lstrip()}", *below[1:]]
        else:
            lines += [*_wrap(f"  {name}", width, indent=4), *below]
    return lines


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
