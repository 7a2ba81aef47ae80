"""Starts programs as processes that are forked from one that has loaded torch, which else takes most of a short run."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "pytest",
    "hypothesis",
    "torch._dynamo",
    "tests.forked",
    "tests.ranks",
    "tests.attacks.bounded",
    "app.train",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def run_forked(
    module: str, arguments: Sequence[str], environments: Sequence[dict[str, str]], folder: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """``python -m module`` in each of these environments, to the end of all; the first to fail ends the others.

    Returns:
        The code of the first that failed, or 0, and what all of them printed.

    Raises:
        TimeoutError: they did not end within ``timeout`` seconds; tells where each thread of them stands.
    """
    with tempfile.TemporaryDirectory() as logs:
        out, err = Path(logs, "out"), Path(logs, "err")
        processes: list[BaseProcess] = []
        for environment in environments:
            processes.append(CONTEXT.Process(target=_main, args=(module, arguments, environment, folder, out, err)))
            processes[-1].start()
        try:
            code = _wait(processes, time.monotonic() + timeout)
            if code is None:
                _ask_where_they_are(processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        if code is None:
            said = f"{out.read_text()[-3000:]}\n{err.read_text()[-30000:]}"
            raise TimeoutError(f"{module} {' '.join(arguments)}: no end within {timeout} s:\n{said}")
        return subprocess.CompletedProcess([module, *arguments], code, out.read_text(), err.read_text())


def _wait(processes: list[BaseProcess], deadline: float) -> int | None:
    while time.monotonic() < deadline:
        codes = [process.exitcode for process in processes]
        if failed := [code for code in codes if code]:
            return failed[0]
        if None not in codes:
            return 0
        time.sleep(0.02)
    return None


def _ask_where_they_are(processes: list[BaseProcess]) -> None:
    """Each writes the stacks of its threads into what it prints."""
    for process in processes:
        if process.exitcode is None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR2)
            time.sleep(1)  # one after the other, or their lines mix


def _main(
    module: str, arguments: Sequence[str], environment: dict[str, str], folder: Path, out: Path, err: Path
) -> None:
    os.environ.clear()  # that of the server is as old as the server
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # the server has loaded it, and it runs anew
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()
