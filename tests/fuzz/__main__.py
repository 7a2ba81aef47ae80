"""Runs the readers on mutated inputs: no crash but an AppError, no hang, no memory beyond twice the input and 64 MiB.

Memory is the peak that one input reaches above what the process held before it.
Each target runs in a process of its own, which stops at the first fault and leaves the input in the current folder.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType

import numpy as np

from app.command_line import CommandLine
from app.errors import AppError
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import Target, make_targets

NAMES = ("rec", "idx", "bin", "image", "photograph", "manifest", "model.json", "toml", "py", "pt")
_SECONDS = 20  # of one input; sound ones take milliseconds
_ALLOWANCE = 64 << 20


class Hang(BaseException):
    """One input takes too long; not an Exception, so that no reader can catch it."""


def main() -> int:
    """All targets, or one; returns 1 after a fault."""
    parser = CommandLine("tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", default="", choices=("", *NAMES))
    options = parser.parse_args()
    if options.target:
        return run_target(options.target, options.count, options.seed)
    failed = 0
    for name in NAMES:
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--count", str(options.count)]
        failed |= subprocess.run([*command, "--seed", str(options.seed)], check=False).returncode != 0
    return int(failed)


def run_target(name: str, count: int, seed: int) -> int:
    """One target in this process."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _stop)
    # A process that outgrows this dies of MemoryError instead of taking the machine along.
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        tempfile.tempdir = folder  # indexes that a node keeps go there too
        target = make_targets(Path(folder))[name]
        for sound in target.seeds:
            target.read(sound)
        return _loop(name, target, count, seed)


def _loop(name: str, target: Target, count: int, seed: int) -> int:
    generator = np.random.default_rng([seed, *name.encode()])
    started, errors, longest, largest = time.monotonic(), 0, 0.0, 0
    for number in range(count):
        first, second = (target.seeds[int(i)] for i in generator.integers(0, len(target.seeds), 2))
        data = mutate(first, second, generator, text=target.text)
        problem, before, began = "", _reset_peak(), time.monotonic()
        signal.alarm(_SECONDS)
        faulthandler.dump_traceback_later(3 * _SECONDS, exit=True)  # a library that hangs hears no signal of Python's
        try:
            target.read(data)
        except AppError as error:
            errors += 1
            problem = "" if str(error).strip() else "an error without a word"
        except BaseException:
            problem = traceback.format_exc()
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        longest = max(longest, time.monotonic() - began)
        largest = max(largest, grown := _peak() - before)
        if grown > 2 * len(data) + _ALLOWANCE:
            problem = problem or f"memory grew by {grown >> 20} MiB"
        if problem:
            path = Path(f"fuzz-{name}-{seed}-{number}.input")
            path.write_bytes(data)
            print(f"{name}: input {number} of seed {seed} ({path}, {len(data)} bytes): {problem}", flush=True)
            return 1
    took = time.monotonic() - started
    print(
        f"{name}: {count} inputs, {errors} refused, {took:.0f} s, longest {longest:.2f} s, at most "
        f"{largest >> 20} MiB for one",
        flush=True,
    )
    return 0


def _reset_peak() -> int:
    """Let the peak count from here; returns where it stands, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def _stop(_: int, __: FrameType | None) -> None:
    raise Hang(f"more than {_SECONDS} s")


if __name__ == "__main__":
    sys.exit(main())
