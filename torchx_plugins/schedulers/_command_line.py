"""What ``torchx`` says when something is refused: one line instead of a traceback, and a code that is not 0.

TorchX has no hook for it, so the scheduler extension, which every subcommand loads, installs these; in any other
program it does nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from torchx.specs import (
    InvalidRunConfigException,
    MalformedAppHandleException,
    UnknownAppException,
    UnknownSchedulerException,
)

# What components, schedulers and TorchX itself refuse; anything else is a mistake of the program.
REFUSALS = (
    ValueError,
    FileNotFoundError,
    InvalidRunConfigException,
    MalformedAppHandleException,
    UnknownAppException,
    UnknownSchedulerException,
)
_NO_TRACKER = "no tracker is configured: see [torchx:tracker] and [tracker:arcface] in docs/kubernetes.md"


def subcommand() -> str:
    """The subcommand of a ``torchx`` command line in this process; empty in another program."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.stem != "torchx" and program.parts[-3:] != ("torchx", "cli", "main.py"):
        return ""
    words = iter(sys.argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if word.startswith("--l") and "=" not in word:
            next(words, "")  # --log_level, or short for it: the only one of TorchX's own options that takes a value
    return ""


def speak_plainly() -> None:
    """Let refusals end the command with one line; ``LOGLEVEL=DEBUG`` keeps the traceback."""
    if not subcommand() or os.environ.get("LOGLEVEL", "").upper() == "DEBUG" or sys.excepthook is _say:
        return
    sys.excepthook = _say
    leave_usage_out()
    # torchx log reads each replica's lines in a thread of its own, and raises what that raised once more at the end.
    threading.excepthook = _say_nothing_of_refusals
    # It would tell of each of its attempts to reach a dead server.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def leave_usage_out() -> None:
    """Let a command line that does not fit be told in one line, by TorchX's parsers too."""
    argparse.ArgumentParser.error = _refuse  # type: ignore[assignment, method-assign]


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:  # noqa: ARG001
    """Without the usage, which is a dozen lines of options."""
    print(f"error: {message}; --help lists what there is", file=sys.stderr)
    sys.exit(2)


def _say_nothing_of_refusals(failure: threading.ExceptHookArgs) -> None:
    if not issubclass(failure.exc_type, REFUSALS):
        threading.__excepthook__(failure)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError):
        # Who reads what is printed has read enough (| head); what is still buffered is for nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif issubclass(kind, REFUSALS):
        text = " ".join(str(error).split())
        if "key=value" in text or "val<delim>key" in text:
            text = f"--env and -cfg take KEY=VALUE,KEY=VALUE, in quotes where a value has a = or is empty: {text}"
        print(f"error: {text}", file=sys.stderr)
    elif subcommand() == "tracker" and str(error).startswith("No trackers configured"):
        print(f"error: {_NO_TRACKER}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
