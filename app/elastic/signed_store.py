"""A c10d store whose values are signed: who does not know the run's key can neither say a thing nor be believed.

Anyone who reaches torch's store may read and write it, and torch unpickles the rendezvous' state. Here every value
carries an HMAC-SHA256 over its key and itself; one that does not prove itself is replaced by the last that did, or
removed, before anybody looks into it.

Counters (``add``) stay plain numbers, and nothing is encrypted: see THREATS.md. torch takes no value beyond 8 MiB; the
rendezvous process sweeps what strangers leave.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import DistStoreError, Store, TCPStore

from app.errors import AppError

_TOKEN, _TOKEN_FILE = "ARCFACE_RDZV_TOKEN", "ARCFACE_RDZV_TOKEN_FILE"
_MAC_BYTES = 32
_POLL_SECONDS = 0.1
_NOTHING = "arcface: nothing"  # no member's value: those are signed, or counters
_COUNTER = re.compile(rb"-?\d{1,20}")
_LONGEST_KEY = 1000  # characters


class RunKeyError(AppError):
    """The key of the run cannot be read."""


def read_token() -> bytes:
    """The secret that the processes of a job share, from the environment or a file; empty where there is none.

    Raises:
        RunKeyError: there is a file that cannot be read, or is empty.
    """
    if token := os.environ.get(_TOKEN, ""):
        return token.encode()
    if not (path := os.environ.get(_TOKEN_FILE, "")):
        return b""
    try:
        token_bytes = Path(path).read_bytes().strip()
    except OSError as error:
        raise RunKeyError(f"{_TOKEN_FILE}: {path}: {error.strerror}: mount the run's secret there") from error
    if not token_bytes:
        raise RunKeyError(f"{_TOKEN_FILE}: {path} is empty: put a random text there, as `openssl rand -hex 32` makes")
    return token_bytes


def run_key(run_id: str) -> bytes:
    """The key of one job: of the shared secret and the job's name, so that jobs cannot speak for each other."""
    return hmac.digest(read_token(), b"arcface rendezvous\0" + run_id.encode(), "sha256")


def connect(host: str, port: int, run_id: str, timeout: float = 30.0) -> SignedStore:
    """A client of a rendezvous process.

    Raises:
        RuntimeError: nobody answers there (torch's ``DistNetworkError``).
    """
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    return SignedStore(store, run_key(run_id))


class SignedStore(Store):
    """Signs what goes into ``inner`` and checks what comes out of it.

    It waits by asking again and again: torch's client waits under a lock, which heartbeats on the same connection need.
    ``on_wait``: called meanwhile; what it raises ends the wait.
    """

    def __init__(self, inner: Store, key: bytes) -> None:
        super().__init__()
        self.inner, self._key = inner, key
        self.on_wait: Callable[[], None] = lambda: None
        self._timeout: timedelta = inner.timeout  # type: ignore[attr-defined]  # torch's stubs lack it
        self._last: dict[str, str] = {}  # the last proven value of each key, as it is stored
        self._warned = False

    def beside(self) -> SignedStore:
        """Another view of the same store, with an ``on_wait`` of its own."""
        return SignedStore(self.inner, self._key)

    def sign(self, key: str, value: bytes | str) -> str:
        """How a value is stored."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        return base64.b64encode(self._mac(key, data) + data).decode()

    def _mac(self, key: str, data: bytes) -> bytes:
        return hmac.digest(self._key, hashlib.sha256(key.encode()).digest() + data, "sha256")

    def _open(self, key: str, raw: bytes) -> bytes | None:
        """The value, or None where it does not prove itself."""
        try:
            signed = base64.b64decode(raw, validate=True)
        except (binascii.Error, ValueError):
            signed = b""
        if len(signed) >= _MAC_BYTES and hmac.compare_digest(signed[:_MAC_BYTES], self._mac(key, signed[_MAC_BYTES:])):
            self._last[key] = raw.decode()
            return signed[_MAC_BYTES:]
        if not self._warned:
            self._warned = True
            print(
                f"warning: rendezvous: a value of {key!r} is not from this job and was thrown away: somebody without "
                f"the run's key writes here, or the nodes do not have the same {_TOKEN}",
                file=sys.stderr,
                flush=True,
            )
        return None

    def look(self, key: str) -> bytes | None:
        """The proven value of a key, None where there is none; does not wait."""
        if (raw := self._peek(key)) is None:
            return None
        value = self._open(key, raw)
        if value is None:
            self._mend(key, raw)
            if key in self._last:
                return self._open(key, self._last[key].encode())
        return value

    def _peek(self, key: str) -> bytes | None:
        """What is stored, in one request: between two, a stranger may delete it, and torch's ``get`` would wait."""
        raw = self.inner.compare_set(key, _NOTHING, _NOTHING)
        return None if raw == _NOTHING.encode() else raw

    def sweep(self, suspects: set[str]) -> set[str]:
        """Throw away values that no member wrote: those that ``suspects`` names and that still do not prove themselves.

        Returns the suspects for the next time. A member may be about to replace what a stranger wrote: nothing is
        thrown away at first sight. Counters, which are not signed, stay.
        """
        found = set()
        for key in self.inner.list_keys():
            raw = b"" if len(key) > _LONGEST_KEY else self._peek(key)
            if raw is None or _COUNTER.fullmatch(raw) or (raw and self._open(key, raw) is not None):
                continue
            if key in suspects:
                self.inner.delete_key(key)
            else:
                found.add(key)
        return found

    def _mend(self, key: str, raw: bytes) -> None:
        if key in self._last:
            self.inner.compare_set(key, raw.decode(errors="replace"), self._last[key])
        else:
            self.inner.delete_key(key)

    # --- torch.distributed.Store ---

    def set(self, key: str, value: Any) -> None:
        self._last[key] = self.sign(key, value)
        self.inner.set(key, self._last[key])

    def get(self, key: str) -> bytes:
        while True:
            self.wait([key])
            if (raw := self._peek(key)) is None:
                continue
            if (value := self._open(key, raw)) is not None:
                return value
            self._mend(key, raw)

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        wanted = self.sign(key, expected) if expected else ""
        while True:
            raw = self.inner.compare_set(key, wanted, self.sign(key, desired))
            if not raw:
                return raw
            if (value := self._open(key, raw)) is not None:
                return value
            self._mend(key, raw)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def multi_set(self, keys: list[str], values: list[Any]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def add(self, key: str, amount: int) -> int:
        return self.inner.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        return self.inner.check(keys)

    def delete_key(self, key: str) -> bool:
        self._last.pop(key, None)
        return self.inner.delete_key(key)

    def num_keys(self) -> int:
        return self.inner.num_keys()

    def wait(self, keys: list[str], *timeout: timedelta) -> None:
        deadline = time.monotonic() + (timeout[0] if timeout else self._timeout).total_seconds()
        while not self.inner.check(keys):
            if time.monotonic() > deadline:
                raise DistStoreError(f"not in the store within the timeout: {', '.join(keys)}")
            self.on_wait()
            time.sleep(_POLL_SECONDS)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout
