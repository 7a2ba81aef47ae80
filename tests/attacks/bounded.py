"""Reads an attacker's bytes in a process of its own and says what came of it, and how much memory it took."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from app.checkpoint.manifest import Manifest
from app.config.options import parse_recipe
from app.config.reference_config import read_reference_config
from app.data.bin_sets import parse_set
from app.data.decode import decode_image
from app.data.prepare.photograph import open_photograph
from app.errors import AppError
from app.weights import parse_weights
from tests.attacks.tensor_files import read_tensor_file
from tests.forked import CONTEXT

ALLOWANCE = 64 << 20  # bytes beside twice the input
SECONDS = 60
READERS: dict[str, Callable[[bytes], object]] = {
    "bin": lambda data: parse_set("x.bin", "x", data),
    "image": decode_image,
    "photograph": open_photograph,
    "pt": lambda data: parse_weights("x.pt", data),
    "manifest": lambda data: Manifest.from_json("manifest.json", data),
    "tensors": read_tensor_file,
    "toml": lambda data: parse_recipe(data.decode(), "x", "x.toml"),
    "py": lambda data: read_reference_config(data.decode(), "x.py"),
}


@dataclass(frozen=True)
class Outcome:
    """``error``: the AppError's class and text, empty where the bytes were read; ``peak``: bytes more than before."""

    error: str
    peak: int

    def refused(self, size: int, word: str = "") -> None:
        """One named error, on one line, in bounded memory."""
        assert self.error, "it was read"
        assert word in self.error, self.error
        assert self.error.isprintable(), self.error
        assert len(self.error) < 4200
        self.bounded(size)

    def bounded(self, size: int) -> None:
        """No more than twice the input and 64 MiB."""
        assert self.peak <= 2 * size + ALLOWANCE, f"{self.peak >> 20} MiB for {size} bytes"


def read(kind: str, data: bytes) -> Outcome:
    """What the reader of this kind makes of the bytes; a crash, a hang or an error without a name fails the test."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=(kind, data, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = json.loads(ours.recv())
    except EOFError:
        process.join()
        raise AssertionError(f"the process ended with {process.exitcode}: a crash, or more than {SECONDS} s") from None
    process.join()
    assert not found.get("raw"), found["raw"]
    return Outcome(found["error"], found["peak"])


def _child(kind: str, data: bytes, pipe: Connection) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, error, raw = _peak(), "", ""
    try:
        READERS[kind](data)
    except AppError as refused:
        error = f"{type(refused).__name__}: {refused}"
    except BaseException as fault:
        raw = f"{type(fault).__name__}: {str(fault)[:300]}"
    pipe.send(json.dumps({"error": error, "raw": raw, "peak": _peak() - before}))


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10
