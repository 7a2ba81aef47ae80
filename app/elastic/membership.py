"""Who belongs to the round that trains: the rendezvous of torchrun, which also notices that its own round fell apart.

torch's handler looks only at nodes that wait to come in. A node that dies between joining and telling the others what
they wait for (its address, its ranks) holds them up until a timeout of minutes; their heartbeats wait with them, so the
rest takes them for dead too and trains on without them; and a node that was left out so never learns of it. Here
heartbeats go on while an agent waits, a round that lost a member while it forms is joined anew at once, and one that
lost a member while it trains is restarted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import DistNetworkError, DistStoreError, Store
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from app.elastic.signed_store import SignedStore, connect

BACKEND = "arcface"
LOST = (RendezvousConnectionError, DistNetworkError, DistStoreError)  # errors that mean: the rendezvous is gone

T = TypeVar("T")


class RoundBrokenError(RendezvousError):
    """A member of the round was lost before it was whole; join the next one."""


class SignedBackend(C10dRendezvousBackend):
    """torch's backend under the name that torchrun is asked for."""

    @property
    def name(self) -> str:
        """See base class."""
        return BACKEND


class Handler(DynamicRendezvousHandler):
    """torch's handler; ``store`` is shared by the members of a round, and waits in it ask whether they all live."""

    _store: SignedStore
    _joined: tuple[int, frozenset[Any]] | None = None  # number of the round, its members

    def _get_world(self) -> tuple[int, int]:
        """See base class; called once, right after a round is complete."""
        world = super()._get_world()
        self._joined = self._round()
        return world

    def _round(self) -> tuple[int, frozenset[Any]]:
        state = self._state_holder.state
        return state.round, frozenset(state.participants)

    def next_rendezvous(self) -> Any:
        """See base class.

        Raises:
            RoundBrokenError: a member was lost before this node had heard from it; see ``until_whole``.
        """
        self._joined = None
        return super().next_rendezvous()

    def lost_members(self) -> list[str]:
        """Members of the round that joined with this node and are gone, this one if it was left out; asks the store."""
        with self._heartbeat_lock:
            self._state_holder.sync()
            if self._joined is None:
                return []
            number, members = self._joined
            now, present = self._round()
            # A later round goes on without whoever still thinks of the former one.
            return sorted(str(m) for m in (members - present if now == number else members))

    def raise_if_broken(self) -> None:
        """Raises RoundBrokenError when the round that was joined has lost a member."""
        if lost := self.lost_members():
            raise RoundBrokenError(f"lost while the round formed: {', '.join(lost)}")

    def num_nodes_waiting(self) -> int:
        """Nodes for whom the workers should be restarted: that wait to come in, or are gone."""
        if waiting := super().num_nodes_waiting():
            return waiting
        if (lost := self.lost_members()) and self._store.look(self._ended()) is None:
            print(f"no sign of life: {', '.join(lost)}; starting again without", file=sys.stderr, flush=True)
            return len(lost)
        return 0

    def _ended(self) -> str:
        return f"arcface/ended/{self._joined[0] if self._joined else ''}"

    def finish_round(self) -> None:
        """Tell that work is done: whoever still has something to finish is left to it, though others leave."""
        self._store.set(self._ended(), "")
        self._joined = None

    def shutdown(self) -> bool:
        """Close the rendezvous for all nodes and for ever; not when this one only lost its connection."""
        return False if isinstance(sys.exc_info()[1], LOST) else super().shutdown()


def make_handler(parameters: RendezvousParameters) -> Handler:
    """The rendezvous of torchrun over a signed store; registered as the backend ``arcface``.

    Raises:
        RendezvousConnectionError: nobody answers at the endpoint.
    """
    host, port = parse_rendezvous_endpoint(parameters.endpoint, default_port=29500)
    try:
        store = connect(host, port, parameters.run_id, float(parameters.get_as_int("read_timeout", 60) or 60))
    except RuntimeError as error:
        raise RendezvousConnectionError(f"no rendezvous process at {parameters.endpoint}: {error}") from error
    return build_handler(store.beside(), store, parameters)


def build_handler(state_store: Store, round_store: SignedStore, parameters: RendezvousParameters) -> Handler:
    """A handler over two views of one store: the rendezvous' state, and what the members of a round tell each other."""

    def seconds(name: str, default: int) -> Any:
        return timedelta(seconds=parameters.get_as_int(name, default) or default)

    handler = Handler.from_backend(
        parameters.run_id,
        round_store,
        SignedBackend(state_store, parameters.run_id),
        parameters.min_nodes,
        parameters.max_nodes,
        parameters.local_addr,
        RendezvousTimeout(join=seconds("join_timeout", 600), last_call=seconds("last_call_timeout", 30)),
        keep_alive_interval=parameters.get_as_int("keep_alive_interval", 5) or 5,
        keep_alive_max_attempt=parameters.get_as_int("keep_alive_max_attempt", 3) or 3,
    )
    round_store.on_wait = handler.raise_if_broken
    return handler


def until_whole(join: Callable[[], T]) -> T:
    """The result of ``join()``, again for each round that broke before it was whole."""
    while True:
        try:
            return join()
        except RoundBrokenError as error:
            print(f"rendezvous: {error}; joining the next round", file=sys.stderr, flush=True)
