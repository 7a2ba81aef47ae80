"""The one family of errors that a user is meant to read.

Every layer has one subclass. Its message says what is wrong, where (URL, key, byte range, rank, field) and what to
do; entry points print it as a single line and keep the traceback for ``--debug``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from app import __version__

# Exit codes of the entry points, after sysexits.h where it has a word for them.
EXIT_BAD_INPUT = 65
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal after a committed checkpoint; run again to go on.
EXIT_TRANSIENT = EXIT_INTERRUPTED  # a failure that may pass: the same command, given again, may succeed


class AppError(Exception):
    """Base of all errors with a message made for the user.

    Args:
        message: what is wrong, where, and what to do.
        transient: whether the same command, given again, may succeed: a store that did not answer, a node that went.
            An error that is raised from another one (``raise X(...) from error``) is transient where that one is, so
            whoever adds words to an error need not know.
    """

    def __init__(self, message: str = "", *, transient: bool = False) -> None:
        super().__init__(message)
        self._transient = transient

    @property
    def transient(self) -> bool:
        """Whether trying again may help."""
        cause = self.__cause__
        return self._transient or (isinstance(cause, AppError) and cause.transient)


def run_main(main: Callable[[list[str]], int], argv: list[str] | None = None) -> None:
    """Run ``main(argv)`` and exit with its code; an ``AppError`` becomes one line on stderr.

    The exit code is then 65, or 75 where trying again may help. ``--debug`` anywhere among the arguments keeps the
    traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    if arguments == ["--version"]:
        print(f"arcface-torchx {__version__}")
        sys.exit(0)
    try:
        code = main(arguments)
    except AppError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = EXIT_TRANSIENT if error.transient else EXIT_BAD_INPUT
    sys.exit(code)
