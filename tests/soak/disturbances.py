"""What happens to a job during a soak, drawn from a seed: the same seed, the same sequence."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# How often each comes up, relative to the others.
KINDS = {
    "worker killed": 4,  # SIGKILL to a training process
    "worker hangs": 1,  # SIGSTOP, for ever
    "worker pauses": 2,  # SIGSTOP, then SIGCONT
    "node lost": 2,  # SIGKILL to an agent and its workers; another one joins later
    "node leaves": 2,  # SIGTERM to an agent; another one joins later
    "rendezvous killed": 1,  # a fresh one takes its place later
    "store away": 2,  # 503 to everything
    "store resets": 1,  # every connection breaks
    "store flaky": 2,  # one request in five is refused, broken off, cut or answered to nobody
    "store slow": 1,  # 1 kB/s
}
FLAKY = ("503", "reset", "cut", "lost", "truncate")


@dataclass(frozen=True)
class Disturbance:
    """One of them.

    ``pause``: seconds of quiet training before it; with ``at_once`` it comes so long after the last one began, whatever
    that one broke. ``who``: in [0, 1), which worker or node. ``seconds``: how long it lasts.
    """

    kind: str
    pause: float
    at_once: bool
    who: float
    seconds: float


def draw(seed: int) -> Iterator[Disturbance]:
    """Without end."""
    generator = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        kind = generator.choices(kinds, weights)[0]
        at_once = generator.random() < 0.2
        pause = generator.uniform(1, 8) if at_once else generator.uniform(3, 20)
        yield Disturbance(kind, pause, at_once, generator.random(), generator.uniform(3, 25))


def decide_flaky(seed: int) -> str:
    """What happens to the request of this number while the store is flaky; empty: nothing."""
    generator = random.Random(seed)
    return generator.choice(FLAKY) if generator.random() < 0.2 else ""
