"""One name for all programs: ``python -m app PROGRAM ...``, or ``arcface PROGRAM ...``; ``--help`` lists them.

The console scripts ``arcface-train`` and so on start some of them. They find this package wherever they are called,
while ``python -m app.train`` in a folder with an ``app.py`` of its own would find that.
"""

from __future__ import annotations

import importlib
import sys

from app import __version__
from app.errors import run_main

PROGRAMS = {
    "train": "train a model from a recipe",
    "verify": "verify a model on pairs of faces, with a report",
    "prepare": "make datasets of photographs, and look after them",
    "evaluate": "embed, compare, IJB-B/C, FLOPs",
    "export": "a trained backbone as .onnx, .pt2 or .pt",
    "plan": "what a run needs of devices, hosts and the store",
    "selfcheck": "look whether this machine can do the work",
}


def main(arguments: list[str]) -> int:
    """Start the program that the first argument names."""
    if arguments and arguments[0] in PROGRAMS:
        return int(importlib.import_module(f"app.{_module(arguments[0])}").main(arguments[1:]))
    if arguments[:1] == ["--version"]:
        print(f"arcface-torchx {__version__}")
        return 0
    lines = [f"  {name:10} {text}" for name, text in PROGRAMS.items()]
    asked = arguments[:1] in (["--help"], ["-h"])
    text = "\n".join(["usage: arcface PROGRAM ..., each with --help", "", *lines])
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _module(program: str) -> str:
    return "evaluate.__main__" if program == "evaluate" else program


def start() -> None:
    """The console script ``arcface``."""
    run_main(main)


def train() -> None:
    """The console script ``arcface-train``."""
    run_main(main, ["train", *sys.argv[1:]])


def verify() -> None:
    """The console script ``arcface-verify``."""
    run_main(main, ["verify", *sys.argv[1:]])


def prepare() -> None:
    """The console script ``arcface-prepare``."""
    run_main(main, ["prepare", *sys.argv[1:]])


def evaluate() -> None:
    """The console script ``arcface-evaluate``."""
    run_main(main, ["evaluate", *sys.argv[1:]])


def selfcheck() -> None:
    """The console script ``arcface-selfcheck``."""
    run_main(main, ["selfcheck", *sys.argv[1:]])


def export() -> None:
    """The console script ``arcface-export``."""
    run_main(main, ["export", *sys.argv[1:]])


def plan() -> None:
    """The console script ``arcface-plan``."""
    run_main(main, ["plan", *sys.argv[1:]])


if __name__ == "__main__":
    start()
