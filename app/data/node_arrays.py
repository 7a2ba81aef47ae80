"""Arrays that the processes of a node share: the first makes them and leaves files, all others map these.

What is shared is named by a hash of all it was made from, so that a new upload is parsed anew. A set of arrays appears
by a rename. One that is incomplete, or was left by another boot of the machine (a crash may have lost what stood in its
files), is made anew; where no folder can be written, each process holds its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 1 << 20  # entries that are looked at together
_KEEP = 8  # sets left in the folder
_IN_USE = 3600.0  # seconds; a start that opens more than so many would else delete what its other processes want next
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Arrays:
    """int64 arrays by their names, and what else is known of them, as JSON has it."""

    arrays: dict[str, NDArray[np.int64]]
    about: dict[str, Any] = field(default_factory=dict)


class Column:
    """An int64 array that grows, in a file of ``folder`` or, without one, in memory."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self._path = folder / name if folder else None
        self._file: Any = self._path.open("wb") if self._path else None
        self._parts: list[NDArray[np.int64]] = []
        self.length = 0
        self.array: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def append(self, values: NDArray[np.int64]) -> None:
        """Put values behind those that are there."""
        self.length += len(values)
        if self._file is None:
            self._parts.append(values.copy())
        else:
            self._file.write(np.ascontiguousarray(values).data)

    def reorder(self, order: NDArray[np.int64], *behind: int) -> None:
        """The values at ``order``, and some behind them."""
        if self._path is None:
            self.array = np.append(self.array[order], behind).astype(np.int64)
            return
        new = self._path.with_suffix(".new")
        with new.open("wb") as file:
            for start in range(0, len(order), STEP):
                file.write(self.array[order[start : start + STEP]].data)
            file.write(np.array(behind, dtype=np.int64).data)
        new.replace(self._path)
        self.array = np.memmap(self._path, np.int64, "r")

    def __enter__(self) -> Column:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            self.array = np.memmap(self._path, np.int64, "r") if self._path else np.concatenate(self._parts)


def node_folder() -> Path | None:
    """A folder on the node's disk that only this user can write, or None where there is none."""
    folder = Path(tempfile.gettempdir()) / f"arcface-index-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
        safe = status.st_uid == os.getuid() and not status.st_mode & 0o022 and not folder.is_symlink()
        return folder if safe and os.access(folder, os.W_OK) else None
    except OSError:
        return None


def share(folder: Path | None, made_from: str, make: Callable[[Path | None], Arrays]) -> Arrays:
    """What ``make`` makes, mapped from files that the first process of the node left in ``folder``.

    Args:
        folder: of this node; None: nothing is shared.
        made_from: text that differs where the result may.
        make: with a folder it writes there, by ``Column``, each array under its name.
    """
    if folder is None:
        return make(None)
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    name = hashlib.sha256("\0".join([made_from, boot]).encode()).hexdigest()[:32]
    path = folder / name
    try:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others of this node wait for the first
            # It may be gone, taken for an old one, or incomplete after a crash: then it is made anew.
            with contextlib.suppress(OSError, ValueError, KeyError):
                return _load(path)
            return _publish(path, make)
    except OSError as error:
        warnings.warn(f"{folder}: no shared index ({error}): every process holds its own", stacklevel=2)
        return make(None)


def _publish(path: Path, make: Callable[[Path | None], Arrays]) -> Arrays:
    shutil.rmtree(path, ignore_errors=True)
    _clear_half_made(path)
    temporary = Path(tempfile.mkdtemp(prefix=f"new-{path.name}-", dir=path.parent))
    try:
        made = make(temporary)
        lengths = {name: len(array) for name, array in made.arrays.items()}
        (temporary / "index.json").write_text(json.dumps({"lengths": lengths, "about": made.about}))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    loaded = _load(path)
    _forget_old(path.parent)
    return loaded


def _clear_half_made(path: Path) -> None:
    """Delete what killed processes left half made: who makes a set holds its lock, this process that of ``path``."""
    for left in path.parent.glob("new-*"):
        name = left.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError, BlockingIOError), contextlib.ExitStack() as held:
            if name != path.name:
                lock = held.enter_context((path.parent / f"{name}.lock").open())
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _forget_old(folder: Path) -> None:
    """Delete all but what was used last: who has mapped it keeps it."""
    found = []
    for details in folder.glob("*/index.json"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            found.append((details.stat().st_mtime, details.parent))
    for used, old in sorted(found)[:-_KEEP]:
        if not old.name.startswith("new-") and time.time() - used > _IN_USE:
            shutil.rmtree(old, ignore_errors=True)


def _load(path: Path) -> Arrays:
    os.utime(path / "index.json")  # used now: not among the first to go
    details = json.loads((path / "index.json").read_text())
    arrays: dict[str, NDArray[np.int64]] = {}
    for name, length in details["lengths"].items():
        arrays[name] = np.memmap(path / name, dtype=np.int64, mode="r")
        if len(arrays[name]) != length:
            raise ValueError(f"{path / name}: {len(arrays[name])} entries instead of {length}")
    return Arrays(arrays, details["about"])
