"""What ``torchx`` says when something is refused: one line instead of a traceback, and a code that is not 0.

TorchX has no hook for it, so the scheduler extension, which every subcommand loads, installs these; in any other
program it does nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from types import TracebackType


def subcommand() -> str:
    """The subcommand of a ``torchx`` command line in this process; empty in another program."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.stem != "torchx" and program.parts[-3:] != ("torchx", "cli", "main.py"):
        return ""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    return words[0] if words else ""


def speak_plainly() -> None:
    """Let refusals end the command with one line; ``LOGLEVEL=DEBUG`` keeps the traceback."""
    if not subcommand() or os.environ.get("LOGLEVEL", "").upper() == "DEBUG" or sys.excepthook is _say:
        return
    sys.excepthook = _say
    # torchx log reads each replica's lines in a thread of its own, and raises what that raised once more at the end.
    threading.excepthook = _say_nothing_of_refusals
    # It would tell of each of its attempts to reach a dead server.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _say_nothing_of_refusals(failure: threading.ExceptHookArgs) -> None:
    if not issubclass(failure.exc_type, ValueError):
        threading.__excepthook__(failure)


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif issubclass(kind, ValueError | FileNotFoundError):
        # What components, schedulers and TorchX's own parsers refuse.
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
