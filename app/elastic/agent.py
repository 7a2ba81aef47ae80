"""torchrun as this project runs it: ``python -m app.elastic.agent TORCHRUN ARGUMENTS``, started by the launcher.

Four things differ from ``python -m torch.distributed.run``. The rendezvous backend ``arcface`` believes only signed
values (``app.elastic.signed_store``). It notices at once who is gone (``app.elastic.membership``). Workers get the same
grace whenever they are stopped. And the exit code tells a lost rendezvous process, which the launcher answers by coming
back to a fresh one, from failed workers.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

from app.elastic.membership import BACKEND, LOST, Handler, make_handler, until_whole
from app.observe.last_words import speak_for, speak_for_all

EXIT_LOST = 69  # EX_UNAVAILABLE: the rendezvous process is gone
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_rendezvous, _exit_barrier = LocalElasticAgent._rendezvous, LocalElasticAgent._exit_barrier


def _stop_workers(agent: LocalElasticAgent, worker_group: Any) -> None:  # noqa: ARG001
    """Between two rounds torch gives workers 30 s, whatever ``--shutdown-timeout`` says; a slow upload needs more.

    A worker that is suspended cannot hear that it should end, and would hold a new round up for all of that time.
    """
    for process in agent._pcontext.pids().values() if agent._pcontext else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    agent._shutdown(timeout=agent._shutdown_timeout)


def _join_whole_round(agent: LocalElasticAgent, worker_group: Any) -> None:
    until_whole(lambda: _rendezvous(agent, worker_group))


def _leave_together(agent: LocalElasticAgent) -> None:
    handler = agent._worker_group.spec.rdzv_handler
    if isinstance(handler, Handler):  # not where torchrun is asked for another backend
        handler.finish_round()
    _exit_barrier(agent)  # type: ignore[no-untyped-call]


def main(arguments: list[str]) -> int:
    """Run torchrun; returns its exit code."""
    rendezvous_handler_registry.register(BACKEND, make_handler)
    LocalElasticAgent._stop_workers = _stop_workers  # type: ignore[method-assign]
    LocalElasticAgent._rendezvous = _join_whole_round  # type: ignore[method-assign]
    LocalElasticAgent._exit_barrier = _leave_together  # type: ignore[method-assign, assignment]
    if sys.platform == "linux":
        # A launcher that is killed takes the agent along, which stops its workers in good order.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        run.main(arguments)
    except SignalException as stopped:
        speak_for_all(f"stopped by {signal.Signals(stopped.sigval).name}, and killed since it did not end by itself")
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            speak_for(rank, failure.exitcode)
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1
    except LOST as error:
        print(f"the rendezvous process is lost: {error}", file=sys.stderr, flush=True)
        return EXIT_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
