"""torchrun as this project runs it: ``python -m app.elastic.agent TORCHRUN ARGUMENTS``, started by the launcher.

Three things differ from ``python -m torch.distributed.run``. The rendezvous backend ``arcface`` believes only signed
values (``app.elastic.signed_store``). Workers get the same grace whenever they are stopped. And the exit code tells a
lost rendezvous process, which the launcher answers by coming back to a fresh one, from failed workers.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError, run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from app.elastic.signed_store import connect
from app.observe.last_words import speak_for

BACKEND = "arcface"
EXIT_LOST = 69  # EX_UNAVAILABLE: the rendezvous process is gone
_LOST = (RendezvousConnectionError, DistNetworkError, DistStoreError)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SignedBackend(C10dRendezvousBackend):
    """torch's backend under the name that torchrun is asked for."""

    @property
    def name(self) -> str:
        """See base class."""
        return BACKEND


def make_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """The rendezvous of torchrun over a signed store; registered as the backend ``arcface``.

    Raises:
        RendezvousConnectionError: nobody answers at the endpoint.
    """
    host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=29500)
    try:
        store = connect(host, port, parameters.run_id, float(parameters.get_as_int("read_timeout", 60) or 60))
    except RuntimeError as error:
        raise RendezvousConnectionError(f"no rendezvous process at {parameters.endpoint}: {error}") from error
    handler = create_handler(store, SignedBackend(store, parameters.run_id), parameters)
    close = handler.shutdown

    def shutdown() -> bool:
        # torch closes the rendezvous, for all nodes and for ever, also when this one only lost its connection.
        return False if isinstance(sys.exc_info()[1], _LOST) else close()

    handler.shutdown = shutdown  # type: ignore[method-assign]
    return handler


def _stop_workers(agent: LocalElasticAgent, worker_group: Any) -> None:  # noqa: ARG001
    """Between two rounds torch gives workers 30 s, whatever ``--shutdown-timeout`` says; a slow upload needs more."""
    agent._shutdown(timeout=agent._shutdown_timeout)


def main(arguments: list[str]) -> int:
    """Run torchrun; returns its exit code."""
    rendezvous_handler_registry.register(BACKEND, make_handler)
    LocalElasticAgent._stop_workers = _stop_workers  # type: ignore[method-assign]
    if sys.platform == "linux":
        # A launcher that is killed takes the agent along, which stops its workers in good order.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        run.main(arguments)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            speak_for(rank, failure.exitcode)
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1
    except _LOST as error:
        print(f"the rendezvous process is lost: {error}", file=sys.stderr, flush=True)
        return EXIT_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
