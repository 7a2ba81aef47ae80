"""Runs a stage in a session of its own, so that a Ctrl-C stops it once, in good order and without its traceback."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path


class StageError(Exception):
    """A stage ended with another code than 0."""


def run_stage(command: Sequence[str], environment: dict[str, str], *, hide: Sequence[str] = ()) -> None:
    """Run a command, its output shown line by line; all processes it started are gone afterwards.

    Args:
        hide: lines in which one of these regular expressions is found are not shown.

    Raises:
        StageError: it failed.
        KeyboardInterrupt: after the stage and its children were stopped.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    sessions = {process.pid}
    quiet = threading.Event()
    printer = threading.Thread(target=_print_lines, args=(process, hide, quiet), daemon=True)
    printer.start()
    try:
        code = process.wait()
        printer.join(5)
    except BaseException:
        quiet.set()
        sessions |= _sessions_below(process.pid)
        _stop(process)
        raise
    finally:
        _kill_sessions(sessions)
    if code:
        raise StageError(f"{' '.join(command[:4])} ... ended with code {code}")


def _print_lines(process: subprocess.Popen[str], hide: Sequence[str], quiet: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if not quiet.is_set() and not any(re.search(pattern, line) for pattern in hide):
            encoding = sys.stdout.encoding or "utf-8"
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
            sys.stdout.write(fit_report(line, columns).encode(encoding, "replace").decode(encoding))
            sys.stdout.flush()


def fit_report(line: str, columns: int) -> str:
    """A report without padding, then without its last fields (`` | ``), where the terminal has no room; 0: no terminal.

    Other lines are broken between words, those of a table stay as they are.
    """
    if columns and len(line.rstrip("\n")) > columns and " | " not in line:
        return break_lines(line, columns) + "\n"
    if re.match(r"(\S+ )?\|", line):
        return line
    fields = line.rstrip("\n").split(" | ")
    if columns and len(fields) > 2 and len(line) > columns:
        fields = [re.sub(" +", " ", field) for field in fields]
    while columns and len(fields) > 2 and len(" | ".join(fields)) >= columns:
        fields.pop()
    return " | ".join(fields) + "\n"


def break_lines(text: str, columns: int) -> str:
    """A sentence in lines that fit a terminal, broken between words; 0: no terminal."""
    if not columns:
        return text
    parts = textwrap.wrap(text, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(parts)


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _sessions_below(root: int) -> set[int]:
    """Sessions of a process and of all it started: a scheduler gives its nodes one each, and may end before them."""
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            _, parent, _, session = entry.read_text().rpartition(")")[2].split()[:4]  # behind the name in brackets
            parents[int(entry.parent.name)], sessions[int(entry.parent.name)] = int(parent), int(session)
    below = {root}
    while more := {process for process, parent in parents.items() if parent in below} - below:
        below |= more
    return {sessions[process] for process in below & sessions.keys()}


def _kill_sessions(sessions: set[int]) -> None:
    """Kill what is left of them, in whatever process group."""
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not entry.isdigit():
            continue
        try:
            if os.getsid(int(entry)) in sessions:
                os.kill(int(entry), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
