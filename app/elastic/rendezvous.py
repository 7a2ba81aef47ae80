"""The meeting point of an elastic job: a small process of its own that holds torchrun's store and the job's verdict.

A store inside a training process dies with it and takes the job along. This one lives in a role of one CPU; trainers
join through ``app.elastic.launch``. When it dies a fresh one takes its place, and the trainers come back to it. Its
exit code says whether one should: 0, training is done; 65, it cannot succeed (training says that starting again will
not help, or no trainer gave a sign of life for a while); with any other code, start it again.

With a key of the run (``ARCFACE_RDZV_TOKEN``, or the file that ``ARCFACE_RDZV_TOKEN_FILE`` names) only who knows it
is believed. Without one it listens on loopback, unless ``--listen all`` says that the network is trusted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from app.elastic.signed_store import SignedStore, connect, read_token, run_key
from app.errors import EXIT_BAD_INPUT, AppError, printable, run_main

_VERDICT_KEY = "arcface/verdict"
_STARTS_KEY = "arcface/starts"
_DONE = "done"
_POLL_SECONDS = 1.0
_SWEEP_SECONDS = 5.0
_REPORT_SECONDS = 120.0  # so long a finished job waits for a fresh rendezvous process to tell
_MOST_MESSAGE = 4000  # bytes, or characters


class RendezvousError(AppError):
    """The rendezvous process cannot serve."""


def serve(port: int, rdzv_id: str, *, idle_timeout: float, linger: float, listen: str = "auto") -> int:
    """Hold the store until training is done; returns the exit code.

    Args:
        port: TCP port.
        rdzv_id: torchrun's ``--rdzv_id``; its agents renew a key of that name, which is their sign of life.
        idle_timeout: seconds without one before giving up.
        linger: seconds to go on after the end, in which the agents leave in good order.
        listen: "all" interfaces, "loopback", or "auto": all with a key of the run, else loopback.

    Raises:
        RendezvousError: the port is taken.
    """
    everywhere = listen == "all" or (listen == "auto" and bool(read_token()))
    listener = _listen(port, everywhere=everywhere)
    port = int(listener.getsockname()[1])
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )
    signed = SignedStore(store, run_key(rdzv_id))
    where = "all interfaces" if everywhere else "loopback only: no ARCFACE_RDZV_TOKEN"
    print(f"rendezvous: listening on port {port}, {where}", flush=True)
    if everywhere and not read_token():
        print("warning: rendezvous: no ARCFACE_RDZV_TOKEN: whoever reaches the port can end this job", file=sys.stderr)
    state_key = f"torch.rendezvous.{rdzv_id}"
    last_state, last_change = b"", time.monotonic()
    suspects, swept = set[str](), time.monotonic()
    while True:
        if (verdict := signed.look(_VERDICT_KEY)) is not None:
            text = printable(verdict[:_MOST_MESSAGE].decode(errors="replace"))
            if text == _DONE:
                print("rendezvous: training is done", flush=True)
                time.sleep(linger)
                return 0
            print(f"error: training failed: {text}", file=sys.stderr, flush=True)
            time.sleep(min(linger, 1.0))
            return EXIT_BAD_INPUT
        state = signed.look(state_key) or b""
        now = time.monotonic()
        if now - swept > _SWEEP_SECONDS:
            suspects, swept = signed.sweep(suspects), now
        if state != last_state:
            last_state, last_change = state, now
        if now - last_change > idle_timeout:
            # Who restarts this process would wait as long again, and again: there is nobody to wait for.
            print(f"error: rendezvous: no sign of life from a trainer for {idle_timeout:.0f} s", file=sys.stderr)
            return EXIT_BAD_INPUT
        time.sleep(_POLL_SECONDS)


def _listen(port: int, *, everywhere: bool) -> socket.socket:
    """A listening socket: both families where there are two."""
    try:
        if everywhere and socket.has_dualstack_ipv6():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
        return socket.create_server(("0.0.0.0" if everywhere else "127.0.0.1", port), backlog=4096)
    except OSError as error:
        raise RendezvousError(f"port {port}: {error.strerror}: take another --port", transient=True) from error


class CrashLoopError(AppError):
    """The run started again and again without getting any further."""


def report_done(*, tell: bool = True, patience: float = _REPORT_SECONDS) -> None:
    """Say that training is done; nothing outside an elastic job.

    First to the launcher of this node, by a file: from then on nothing makes this node's work undone. Then, where
    ``tell``, to the rendezvous process; one that just died is waited for.
    """
    if path := os.environ.get("ARCFACE_DONE_FILE", ""):
        with contextlib.suppress(OSError):  # a launcher that is gone needs to know nothing
            Path(path).touch()
    deadline = time.monotonic() + patience
    while tell:
        try:
            if (store := _connect()) is not None:
                store.set(_VERDICT_KEY, _DONE)
            return
        except RuntimeError as error:
            if time.monotonic() > deadline:
                print(f"warning: the rendezvous does not hear that training is done: {error}", file=sys.stderr)
                return
        time.sleep(2)


def report_failure(message: str) -> None:
    """Tell the rendezvous process that the job cannot succeed; the first message of several counts.

    First to the launcher of this node, by a file: it need not wait for another rendezvous then. One that cannot
    be reached is not waited for: this process ends with the same message.
    """
    if path := os.environ.get("ARCFACE_DONE_FILE", ""):
        with contextlib.suppress(OSError):
            Path(path).with_name("failed").touch()
    try:
        if (store := _connect()) is not None:
            store.compare_set(_VERDICT_KEY, "", message[:_MOST_MESSAGE])
    except RuntimeError as error:
        print(f"warning: the rendezvous does not hear of the failure: {error}", file=sys.stderr)


def count_start(step: int, budget: int) -> None:
    """Note a start from ``step``; call it once a start, on rank 0.

    Raises:
        CrashLoopError: it is the ``budget + 1``-th in a row from the same step.
    """
    try:
        if (store := _connect()) is None:
            return
        before = (store.look(_STARTS_KEY) or b"-1 0").decode()
        last_step, count = (int(word) for word in before.split())
        count = count + 1 if last_step == step else 1
        store.set(_STARTS_KEY, f"{step} {count}")
    except RuntimeError as error:
        print(f"warning: the rendezvous does not count this start: {error}", file=sys.stderr)
        return
    if count > budget:
        raise CrashLoopError(
            f"started {budget} times from step {step} without reaching another checkpoint: look at the first failure "
            "in the trainers' logs; train.max_starts raises the limit"
        )


def _connect() -> SignedStore | None:
    """A client of the store at ``ARCFACE_RDZV_ENDPOINT`` (host:port), or None where that is not set."""
    host, _, port = os.environ.get("ARCFACE_RDZV_ENDPOINT", "").rpartition(":")
    if not host:
        return None
    return connect(host, int(port), os.environ.get("TORCHELASTIC_RUN_ID", ""))


def main(arguments: list[str]) -> int:
    """Command line of ``python -m app.elastic.rendezvous``."""
    parser = argparse.ArgumentParser("app.elastic.rendezvous", description=__doc__)
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument("--rdzv-id", required=True)
    parser.add_argument("--listen", choices=("auto", "loopback", "all"), default="auto", help="interfaces")
    parser.add_argument("--idle-timeout", type=float, default=1800.0, help="seconds")
    # Agents leave through a barrier in the store; on a loaded machine that was seen to take more than five seconds.
    parser.add_argument("--linger", type=float, default=15.0, help="seconds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    return serve(
        options.port, options.rdzv_id, idle_timeout=options.idle_timeout, linger=options.linger, listen=options.listen
    )


if __name__ == "__main__":
    run_main(main)
