"""The lease of a run's folder: one job writes there at a time, and a second one is told.

``lease.json`` names the owner and is written anew every ten seconds. Who finds another's lease watches it: if it
changes, the other is alive and the start is refused; if not, the other is dead and its lease is taken over. Clocks are
not compared. The restarts of an elastic job have one owner; a dead process of this machine is not waited for.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from pathlib import Path

from app import storage
from app.checkpoint.manifest import CheckpointError
from app.patience import persist
from app.storage import StorageError

RENEW_SECONDS = 10.0


class Lease:
    """Held by rank 0 of a run.

    Args:
        url: of the lease's object.
        owner: see ``app.checkpoint.names.run_owner``.
        interval: seconds between renewals, the same for all runs that share a folder.
    """

    def __init__(self, url: str, owner: str, *, interval: float = RENEW_SECONDS) -> None:
        self.url, self.owner, self.interval = url, owner, interval
        self._count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.problem = ""  # another run took the folder

    def take(self, until: float) -> None:
        """Take the lease, and renew it from now on.

        Raises:
            CheckpointError: another run holds it.
            StorageError: the store did not answer until ``until`` (``time.monotonic()``).
        """
        found = persist(self._read, until)
        if found and found.get("owner") != self.owner and not _is_dead(found):
            self._watch(found, until)
        persist(self._write, until)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Look whether the folder is still this run's: a process that was suspended may have lost it meanwhile.

        Raises:
            CheckpointError: another run took it.
            StorageError: the store did not answer.
        """
        if not self.problem:
            self._look()
        if self.problem:
            raise CheckpointError(self.problem)

    def release(self) -> None:
        """Give it back, so that the next start need not wait."""
        if self._thread is None or self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(2 * self.interval)
        try:
            if (self._read() or {}).get("owner") == self.owner:
                storage.delete_tree(self.url)
        except StorageError as error:
            warnings.warn(f"the lease could not be given back: {error}", stacklevel=2)

    def _watch(self, found: dict[str, object], until: float) -> None:
        """Return once the holder of ``found`` was silent for 2.5 intervals; raise CheckpointError if it renews twice.

        Twice, because the last request of a process that was killed may reach the store after its death.
        """
        changes, deadline = 0, time.monotonic() + 2.5 * self.interval
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.interval / 4))
            now = persist(self._read, until)
            if not now or now.get("owner") == self.owner:
                return
            if now != found:
                changes, found, deadline = changes + 1, now, time.monotonic() + 2.5 * self.interval
            if changes == 2:
                raise CheckpointError(
                    f"{self.url}: another run writes here: {now.get('owner')!r} on {now.get('host')!r}; stop it, "
                    "or take another --name or --output.url"
                )

    def _renew(self) -> None:
        while not self._ended.wait(self.interval):
            try:
                self._look()
                if self.problem:
                    return
                self._write()
            except StorageError:
                continue  # the next time; checkpoints tell of a store that is out of order

    def _look(self) -> None:
        found = self._read()
        if found and found.get("owner") != self.owner:
            self.problem = f"{self.url}: another run took this folder: {found.get('owner')!r} on {found.get('host')!r}"

    def _read(self) -> dict[str, object] | None:
        try:
            data = storage.read_bytes(self.url)
        except StorageError as error:
            if error.kind == "absent":
                return None
            raise
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return {"unreadable": data[:100].hex()}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        self._count += 1
        about = {"owner": self.owner, "host": socket.gethostname(), "process": os.getpid(), "numbers": _numbers_of()}
        about["count"] = self._count
        storage.write_bytes(self.url, json.dumps(about).encode())


def _numbers_of() -> str:
    """Where this process's number means a process: in this boot of this kernel, and in this container.

    Containers on the host's network have its name, and those of different clusters may have the same.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(found: dict[str, object]) -> bool:
    """The holder was a process of this machine that is gone."""
    process = found.get("process")
    if (
        found.get("host") != socket.gethostname()
        or found.get("numbers") != _numbers_of()
        or not isinstance(process, int)
        or process <= 0
    ):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
