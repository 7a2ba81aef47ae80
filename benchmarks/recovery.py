"""How long training stands still after a fault: an elastic job of real processes, a killed worker and a lost node.

With the component's defaults, on this machine and a local object store. A recovery is cut into detection (until an
agent acts), rendezvous (until workers start again), import (Python and torch, as timed alone), load (the rest of the
start: process group, checkpoint, data) and the first new step. Bars: a killed worker within 6 s beyond Python's own
start, a lost node in 45 s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.command_line import CommandLine
from benchmarks.machine import describe
from demo.object_store import ObjectStore
from tests.e2e.cluster import Cluster, kill_tree, make_app, workers_of
from tests.jobs import ROOT, environment, write_faces
from tests.soak.watch import Watch

WORKER_BAR, NODE_BAR = 6.0, 45.0  # seconds; the first beyond Python's own start
_OPTIONS = ("--train.logical-workers", "4", "--train.epochs", "100000", "--checkpoint.every-steps", "10")
_LIMIT = 600.0
_MARKS = {"detection": "will restart worker group", "rendezvous": "Starting worker group"}


@dataclass(frozen=True)
class Recovery:
    """Seconds: in all, and of each part; their sum is the whole."""

    total: float
    parts: dict[str, float]


class Marks(Watch):
    """Also notes when agents say what they do."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, interval=0.05)
        self.marks: list[tuple[float, str]] = []

    def _take(self, line: str) -> None:
        self.marks += [(self.now, part) for part, text in _MARKS.items() if text in line]
        super()._take(line)

    def recovery(self, moment: float) -> Recovery | None:
        """What came after the fault of this moment; None while it is not over."""
        start = next((seen for seen in self.starts if seen.time > moment), None)
        first = start and next((seen for seen in self.steps_since(start.time)), None)
        if start is None or first is None:
            return None
        before = [(at, part) for at, part in self.marks if moment < at < start.time]
        noticed = min((at for at, part in before if part == "detection"), default=moment)
        met = max((at for at, part in before if part == "rendezvous"), default=noticed)
        ends = (moment, noticed, met, start.time, first.time)
        names = ("detection", "rendezvous", "start", "first step")
        parts = {name: end - begin for name, begin, end in zip(names, ends, ends[1:], strict=False)}
        return Recovery(first.time - moment, parts)


def own_start(repeats: int = 3) -> float:
    """Median seconds in which Python and the app's imports are there, alone."""
    took = []
    for _ in range(repeats):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", "import app.train"], env=environment(), cwd=ROOT, check=True)
        took.append(time.monotonic() - began)
    return statistics.median(took)


@contextmanager
def job(nnodes: str, number: int, url: str, folder: Path) -> Iterator[tuple[Cluster, Marks]]:
    """An elastic job of ``number`` nodes that trains; ``folder`` gets its logs."""
    folder.mkdir()
    app = make_app(nnodes, url, f"{url}/{folder.name}", *_OPTIONS)
    variables = {"LOGLEVEL": "INFO"}  # torch's agents say then what they do
    with Cluster(app, folder, f"{url}/{folder.name}", variables) as cluster, Marks(folder) as marks:
        for _ in range(number):
            cluster.add_node()
        cluster.wait_for(lambda: _trains(marks, number), "training", _LIMIT)
        yield cluster, marks


def _trains(marks: Marks, number: int) -> bool:
    return bool(
        marks.starts and marks.starts[-1].world == number and len(marks.steps_since(marks.starts[-1].time)) > 15
    )


def measure(cluster: Cluster, marks: Marks) -> Recovery:
    """Wait until the fault of this moment is over."""
    moment = marks.now
    cluster.wait_for(lambda: marks.recovery(moment) is not None, "the first new step", _LIMIT)
    found = marks.recovery(moment)
    assert found is not None
    return found


def killed_workers(url: str, folder: Path, repeats: int) -> list[Recovery]:
    """Workers of a job of two nodes are killed, one after the other."""
    found = []
    with job("2", 2, url, folder / "worker") as (cluster, marks):
        for number in range(repeats):
            workers_of(cluster.nodes[number % 2])[0].kill()
            found.append(measure(cluster, marks))
            cluster.wait_for(lambda: _trains(marks, 2), "training", _LIMIT)
    return found


def lost_nodes(url: str, folder: Path, repeats: int) -> list[Recovery]:
    """Of three nodes, two of which are enough, one is lost; another one takes its place when the rest trains again."""
    found = []
    with job("2:3", 3, url, folder / "node") as (cluster, marks):
        for _ in range(repeats):
            kill_tree(cluster.nodes[-1].pid)
            found.append(measure(cluster, marks))
            cluster.add_node()
            cluster.wait_for(lambda: _trains(marks, 3), "training with three nodes", _LIMIT)
    return found


def split_start(recovery: Recovery, python: float) -> Recovery:
    """The start as import, at most the ``python`` seconds that it takes alone, and load."""
    parts: dict[str, float] = {}
    for name, seconds in recovery.parts.items():
        alone = min(python, seconds)
        parts |= {"import": alone, "load": seconds - alone} if name == "start" else {name: seconds}
    return Recovery(recovery.total, parts)


def table(kinds: dict[str, list[Recovery]]) -> str:
    """Medians, as Markdown."""
    names = list(next(iter(kinds.values()))[0].parts)
    lines = [f"| fault | times | {' | '.join(names)} | in all, median | longest |", "| --- " * (len(names) + 4) + "|"]
    for kind, found in kinds.items():
        cells = [f"{statistics.median(r.parts[name] for r in found):.1f}" for name in names]
        totals = [r.total for r in found]
        lines.append(
            f"| {kind} | {len(found)} | {' | '.join(cells)} | {statistics.median(totals):.1f} | {max(totals):.1f} |"
        )
    return "\n".join(lines)


def verdicts(kinds: dict[str, list[Recovery]], python: float) -> list[str]:
    """Each bar, reached or missed, by the median."""
    worker, node = (statistics.median(r.total for r in found) for found in kinds.values())
    return [
        f"- worker: {worker - python:.1f} s beyond Python's own start of {python:.1f} s, bar {WORKER_BAR:.0f} s: "
        + ("reached" if worker - python <= WORKER_BAR else "MISSED"),
        f"- node: {node:.1f} s, bar {NODE_BAR:.0f} s: " + ("reached" if node <= NODE_BAR else "MISSED"),
    ]


def main() -> int:
    """Measure and print; returns 0, also where a bar is missed."""
    parser = CommandLine("python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="faults of each kind")
    options = parser.parse_args()
    python, load = own_start(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        folder = Path(name)
        with ObjectStore(folder / "store" / "data", "recovery") as store:
            os.environ.update(store.environment)
            url = "s3://recovery/faces"
            write_faces(url)
            kinds = {
                "worker killed, of 2": killed_workers(url, folder, options.repeats),
                "node lost, of 3": lost_nodes(url, folder, options.repeats),
            }
    print(f"# Recovery\n\n{describe()}; load at the beginning {load:.1f}. Seconds.\n")
    split = {kind: [split_start(one, python) for one in found] for kind, found in kinds.items()}
    print(table(split) + "\n\n" + "\n".join(verdicts(kinds, python)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
