"""Names of checkpoint folders: ``step-<step>-<time>-g<generation>-<origin>-<random>``.

The time is that of the attempt. A generation begins where a run was told not to go on from what is there
(``checkpoint.resume = never``): its checkpoints count before all older ones, whatever their steps. The origin tells one
start of a run from another; the restarts inside an elastic job share it.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from dataclasses import dataclass

_PATTERN = re.compile(r"step-(\d+)-(\d{8}T\d{6}\.\d{9})(?:-g(\d+)-([0-9a-f]{8}))?-[0-9a-f]{8}")


@dataclass(frozen=True)
class Name:
    """What a folder's name says; ``order`` is by generation, step, time."""

    text: str
    generation: int
    step: int
    stamp: str
    origin: str

    @property
    def order(self) -> tuple[int, int, str]:
        """The later of two checkpoints has the greater one."""
        return (self.generation, self.step, self.stamp)


def make_name(step: int, generation: int, origin: str) -> str:
    """A name for an attempt that begins now."""
    now = time.time_ns()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}"
    return f"step-{step:09d}-{stamp}-g{generation}-{origin}-{os.urandom(4).hex()}"


def parse_name(text: str) -> Name | None:
    """None for what is no checkpoint's folder."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    return Name(text, int(match[3] or 0), int(match[1]), match[2], match[4] or "")


def run_owner() -> str:
    """Who this process trains for: the elastic job, or this process alone where there is none."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job == "none":  # torchrun's own default: every static job has it
        return f"{socket.gethostname()}/{os.getpid()}/{os.urandom(4).hex()}"
    # Two jobs may have been given one name; they do not meet at one place.
    place = os.environ.get("ARCFACE_RDZV_ENDPOINT", "")
    return f"{job}@{socket.gethostname()}:{place}" if place.startswith(("localhost:", "127.")) else f"{job}@{place}"


def origin_of(owner: str) -> str:
    """The mark of an owner in names."""
    return hashlib.sha256(owner.encode()).hexdigest()[:8]
