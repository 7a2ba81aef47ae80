"""The one family of errors that a user is meant to read.

Every layer has one subclass. Its message says what is wrong, where (URL, key, byte range, rank, field) and what to
do; entry points print it as a single line and keep the traceback for ``--debug``.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import quote

from app import __version__

# Exit codes of the entry points, after sysexits.h where it has a word for them.
EXIT_BAD_INPUT = 65  # EX_DATAERR: something has to be corrected first
EXIT_TRANSIENT = 75  # EX_TEMPFAIL: a failure that may pass: the same command, given again, may succeed


# Names of environment variables that hold secrets, by their last words; a path or URL is none.
_SECRET_VARIABLE = re.compile(
    r"(^|_)(SECRET|SECRET_ACCESS_KEY|ACCESS_KEY_ID|ACCESS_KEY|SECRET_KEY|ACCOUNT_KEY|API_KEY|APIKEY|PRIVATE_KEY|KEY|"
    r"TOKEN|PASSWORD|PASSWD|PASS|CONNECTION_STRING|SAS|SIGNATURE)$",
    re.IGNORECASE,
)
_SECRET_WORD = r"(?:signature|credential|token|secret|password|passwd|pwd|api_?key|access_?key(?:_?id)?|sig|auth)"
# ``user:password@`` and ``token@`` of a URL, up to the last @ before its path; a password may hold a slash.
_USER = re.compile(r"(?<=://)(?:[^/\s'\"]*@|[^/\s:@]+:(?!\d+/)[^\s@'\"]*@)")
# ``?X-Amz-Signature=...`` and its like of other stores.
_PARAMETER = re.compile(rf"([?&;][\w.-]*{_SECRET_WORD}[\w.-]*=)[^&;\s'\"#]+", re.IGNORECASE)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_SHORTEST_SECRET = 8  # a shorter value would blot out common words
_HIDDEN = "***"
# What a terminal obeys, and what turns a line's direction or ends it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MOST_CHARACTERS = 4000  # of a message; names in it come from files and may be of any length


def redact(text: str) -> str:
    """Take credentials out of a text that will be printed or stored.

    ``user:password@`` and ``token@`` of URLs, the parameters that sign a URL and the values of the environment's
    secrets become ``***``.
    """
    for value in _known_secrets():
        if value in text:
            text = text.replace(value, _HIDDEN)
    return redact_urls(text)


def redact_urls(text: str) -> str:
    """The part of ``redact`` that is the same in every environment: credentials of URLs and headers."""
    text = _USER.sub(f"{_HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{_HIDDEN}", text)
    return _BEARER.sub(rf"\1 {_HIDDEN}", text)


def holds_credentials(text: str) -> bool:
    """Whether a text has a URL with user, password, token or signature in it, or is FSSPEC_*'s JSON with a secret."""
    return any(pattern.search(text) for pattern in (_USER, _PARAMETER, _BEARER)) or any(_secrets_in(text))


def printable(text: str) -> str:
    """The text on one line, for a terminal: control characters are escaped.

    Names and messages come from files, stores and other processes; an escape sequence in one could rewrite the screen,
    a line break forge a second message.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _known_secrets() -> Iterator[str]:
    """Values of the environment's secrets, longest first, also as a URL spells them."""
    found: set[str] = set()
    for name, value in os.environ.items():
        shortest = 4 if name.startswith("AWS_") else _SHORTEST_SECRET
        if _SECRET_VARIABLE.search(name) and len(value) >= shortest:
            found |= {value, quote(value, safe="")}
        elif name.upper().startswith("FSSPEC_") and value.lstrip().startswith("{"):
            found |= set(_secrets_in(value))
    return iter(sorted(found, key=len, reverse=True))


def _secrets_in(text: str) -> Iterator[str]:
    """Secrets of ``FSSPEC_S3='{"key": ..., "secret": ...}'``."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        return
    for name, value in options.items() if isinstance(options, dict) else ():
        if isinstance(value, str) and len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(str(name)):
            yield value


class AppError(Exception):
    """Base of all errors with a message made for the user.

    Args:
        message: what is wrong, where, and what to do.
        transient: whether the same command, given again, may succeed: a store that did not answer, a node that went.
            An error that is raised from another one (``raise X(...) from error``) is transient where that one is, so
            whoever adds words to an error need not know.

    Credentials are taken out of the message and what a terminal would obey is spelled out, so that no layer can forget
    to; see ``redact`` and ``printable``.
    """

    def __init__(self, message: str = "", *, transient: bool = False) -> None:
        # Far more is redacted than is shown: no half of a secret can be left over at the cut.
        text = printable(redact(str(message)[: 4 * _MOST_CHARACTERS]))
        super().__init__(text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}...")
        self._transient = transient

    @property
    def transient(self) -> bool:
        """Whether trying again may help."""
        cause = self.__cause__
        return self._transient or (isinstance(cause, AppError) and cause.transient)


def say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """``warnings.showwarning`` for a user: the message alone, without file and line."""
    print(f"warning: {printable(redact(str(message)))}", file=sys.stderr, flush=True)


def _say_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """A mistake of ours, or ``--debug``: errors of drivers repeat the URLs that they were given."""
    text = redact("".join(traceback.format_exception(kind, error, trace)))
    print(printable_lines(text), end="", file=sys.stderr, flush=True)


def run_main(main: Callable[[list[str]], int], argv: list[str] | None = None) -> None:
    """Run ``main(argv)`` and exit with its code; an ``AppError`` becomes one line on stderr.

    The exit code is then 65, or 75 where trying again may help. ``--debug`` anywhere among the arguments keeps the
    traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a name that a terminal's encoding has no letters for ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    warnings.showwarning = say_warning
    sys.excepthook = _say_traceback
    threading.excepthook = lambda failure: _say_traceback(failure.exc_type, failure.exc_value, failure.exc_traceback)
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
