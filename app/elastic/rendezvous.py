"""The meeting point of an elastic job: a small process of its own that holds torchrun's store and nothing else.

A store inside a training process dies with it and takes the job along. This one lives in a role of one CPU; trainers
join with ``torchrun --rdzv_backend c10d --rdzv_conf is_host=false``. It ends with 0 when training says it is done, and
with 1 when no trainer has given a sign of life for a while.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import timedelta

from torch.distributed import TCPStore

from app.errors import run_main

DONE_KEY = "arcface/done"
_POLL_SECONDS = 1.0


def serve(port: int, rdzv_id: str, *, idle_timeout: float, linger: float) -> int:
    """Hold the store until training is done; returns the exit code.

    Args:
        port: TCP port, on all interfaces.
        rdzv_id: torchrun's ``--rdzv_id``; its agents renew a key of that name, which is their sign of life.
        idle_timeout: seconds without one before giving up.
        linger: seconds to go on after the end, in which the agents leave in good order.
    """
    store = TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    print(f"rendezvous: listening on port {store.port}", flush=True)
    state_key = f"torch.rendezvous.{rdzv_id}"
    last_state, last_change = b"", time.monotonic()
    while True:
        if store.check([DONE_KEY]):
            print("rendezvous: training is done", flush=True)
            time.sleep(linger)
            return 0
        state = store.get(state_key) if store.check([state_key]) else b""
        now = time.monotonic()
        if state != last_state:
            last_state, last_change = state, now
        if now - last_change > idle_timeout:
            print(f"error: rendezvous: no sign of life from a trainer for {idle_timeout:.0f} s", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)


def mark_done(endpoint: str) -> None:
    """Tell the rendezvous process at ``host:port`` that training is done."""
    host, _, port = endpoint.rpartition(":")
    store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
    store.set(DONE_KEY, "1")


def mark_done_if_elastic() -> None:
    """The same, for the endpoint in ``ARCFACE_RDZV_ENDPOINT``; nothing where there is none."""
    if endpoint := os.environ.get("ARCFACE_RDZV_ENDPOINT"):
        mark_done(endpoint)


def main(arguments: list[str]) -> int:
    """Command line of ``python -m app.elastic.rendezvous``."""
    parser = argparse.ArgumentParser("app.elastic.rendezvous", description=__doc__)
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument("--rdzv-id", required=True)
    parser.add_argument("--idle-timeout", type=float, default=1800.0, help="seconds")
    parser.add_argument("--linger", type=float, default=5.0, help="seconds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return serve(options.port, options.rdzv_id, idle_timeout=options.idle_timeout, linger=options.linger)


if __name__ == "__main__":
    run_main(main)
