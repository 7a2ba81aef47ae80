"""The meeting point of an elastic job: a small process of its own that holds torchrun's store and the job's verdict.

A store inside a training process dies with it and takes the job along. This one lives in a role of one CPU; trainers
join with ``torchrun --rdzv_backend c10d --rdzv_conf is_host=false``. It ends with 0 when training says it is done, with
65 when training says that starting again will not help (torchrun itself would start again), and with 1 when no trainer
has given a sign of life for a while.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import timedelta

from torch.distributed import TCPStore

from app.errors import EXIT_BAD_INPUT, AppError, run_main

_VERDICT_KEY = "arcface/verdict"
_STARTS_KEY = "arcface/starts"
_DONE = "done"
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
        if store.check([_VERDICT_KEY]):
            verdict = store.get(_VERDICT_KEY).decode(errors="replace")
            if verdict == _DONE:
                print("rendezvous: training is done", flush=True)
                time.sleep(linger)
                return 0
            print(f"error: training failed: {verdict}", file=sys.stderr, flush=True)
            return EXIT_BAD_INPUT
        state = store.get(state_key) if store.check([state_key]) else b""
        now = time.monotonic()
        if state != last_state:
            last_state, last_change = state, now
        if now - last_change > idle_timeout:
            print(f"error: rendezvous: no sign of life from a trainer for {idle_timeout:.0f} s", file=sys.stderr)
            return 1
        time.sleep(_POLL_SECONDS)


class CrashLoopError(AppError):
    """The run started again and again without getting any further."""


def report_done() -> None:
    """Tell the rendezvous process that training is done; nothing outside an elastic job."""
    if (store := _connect()) is not None:
        store.set(_VERDICT_KEY, _DONE)


def report_failure(message: str) -> None:
    """Tell the rendezvous process that the job cannot succeed; the first message of several counts."""
    if (store := _connect()) is not None:
        store.compare_set(_VERDICT_KEY, "", message)


def count_start(step: int, budget: int) -> None:
    """Note a start from ``step``; call it once a start, on rank 0.

    Raises:
        CrashLoopError: it is the ``budget + 1``-th in a row from the same step.
    """
    if (store := _connect()) is None:
        return
    before = store.get(_STARTS_KEY).decode() if store.check([_STARTS_KEY]) else "-1 0"
    last_step, count = (int(word) for word in before.split())
    count = count + 1 if last_step == step else 1
    store.set(_STARTS_KEY, f"{step} {count}")
    if count > budget:
        raise CrashLoopError(
            f"started {budget} times from step {step} without reaching another checkpoint: look at the first failure "
            "in the trainers' logs; train.max_starts raises the limit"
        )


def _connect() -> TCPStore | None:
    """A client of the store at ``ARCFACE_RDZV_ENDPOINT`` (host:port), or None where that is not set."""
    host, _, port = os.environ.get("ARCFACE_RDZV_ENDPOINT", "").rpartition(":")
    if not host:
        return None
    return TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))


def main(arguments: list[str]) -> int:
    """Command line of ``python -m app.elastic.rendezvous``."""
    parser = argparse.ArgumentParser("app.elastic.rendezvous", description=__doc__)
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument("--rdzv-id", required=True)
    parser.add_argument("--idle-timeout", type=float, default=1800.0, help="seconds")
    # Agents leave through a barrier in the store; on a loaded machine that was seen to take more than five seconds.
    parser.add_argument("--linger", type=float, default=15.0, help="seconds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return serve(options.port, options.rdzv_id, idle_timeout=options.idle_timeout, linger=options.linger)


if __name__ == "__main__":
    run_main(main)
