"""An elastic job of real processes under disturbances, and the scheduler that brings lost nodes back."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.cluster import Cluster, kill_tree, make_app, workers_of
from tests.faults.proxy import Proxy, well
from tests.soak.disturbances import Disturbance, decide_flaky
from tests.soak.watch import Watch

LEAST_NODES, MOST_NODES = 2, 4
RECOVERY_LIMIT = 300.0  # seconds
ABSENCE = (
    3.0  # a node stays away that many times a disturbance's length: long enough for the others to go on without it
)
_CALM = {65: "the job was called hopeless", 0: "training was called done"}


class SoakError(Exception):
    """The job did not survive; holds the ends of its logs."""


@dataclass
class Incident:
    """A disturbance as it happened: ``began`` in seconds, ``recovered`` when the first step after it was done."""

    kind: str
    began: float
    step: int
    at_once: bool
    recovered: float = 0.0
    lost_steps: int = 0
    restarted: bool = False


@dataclass
class Job:
    """The processes; ``incidents`` is what happened to them."""

    cluster: Cluster
    watch: Watch
    proxy: Proxy
    seed: int
    incidents: list[Incident] = field(default_factory=list)
    agents_restarted: int = 0
    _due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _absences: list[float] = field(default_factory=list)  # until when each lost node has no successor
    _requests: Iterator[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def live(self) -> list[subprocess.Popen[bytes]]:
        """Agents that run."""
        return [node for node in self.cluster.nodes if node.poll() is None]

    def disturb(self, what: Disturbance) -> bool:
        """Let it happen now; returns whether it did: it needs somebody it can happen to."""
        nodes = self.live()
        node = nodes[int(what.who * len(nodes))]
        workers = workers_of(node)
        if what.kind.startswith("node") and len(nodes) <= LEAST_NODES:
            return False
        if what.kind.startswith("worker") and not workers:
            return False
        if what.kind == "rendezvous killed" and not self._rendezvous_lives():
            return False
        steps = self.watch.steps_since(0)
        self.incidents.append(Incident(what.kind, self.watch.now, steps[-1].step if steps else 0, what.at_once))
        match what.kind:
            case "worker killed":
                for worker in workers:
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
            case "worker hangs" | "worker pauses":
                for worker in workers:
                    with suppress(psutil.NoSuchProcess):
                        worker.suspend()
                if what.kind == "worker pauses":
                    self._later(what.seconds, lambda: _wake(workers))
            case "node lost":
                kill_tree(node.pid)
                self._absences.append(self.watch.now + ABSENCE * what.seconds)
            case "node leaves":
                node.send_signal(signal.SIGTERM)
                self._absences.append(self.watch.now + ABSENCE * what.seconds)
            case "rendezvous killed":
                assert self.cluster.rendezvous is not None
                self.cluster.rendezvous.kill()
                self.cluster.rendezvous.wait()
                self._later(what.seconds / 3, self.cluster.start_rendezvous)
            case "store away" | "store resets" | "store slow" | "store flaky":
                self._break_store(what)
        return True

    def _rendezvous_lives(self) -> bool:
        return self.cluster.rendezvous is not None and self.cluster.rendezvous.poll() is None

    def _break_store(self, what: Disturbance) -> None:
        kind = {"store away": "503", "store resets": "reset", "store slow": "slow"}.get(what.kind, "")
        seed = self.seed * 1_000_003

        def decide(method: str, path: str) -> str:  # noqa: ARG001
            if kind:
                return "" if kind == "slow" and method != "GET" else kind
            with self._lock:
                fault = decide_flaky(seed + next(self._requests))
            return "" if fault in ("cut", "truncate") and method != "GET" else fault

        self.proxy.decide = decide
        self._later(what.seconds, lambda: setattr(self.proxy, "decide", well))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._due.append((self.watch.now + seconds, action))

    def tend(self) -> None:
        """What a scheduler does: bring back who is gone, end what has lasted long enough.

        Raises:
            SoakError: the job ended, or an incident was not recovered from in time.
        """
        for moment, action in list(self._due):
            if self.watch.now >= moment:
                self._due.remove((moment, action))
                action()
        rendezvous = self.cluster.rendezvous
        if rendezvous is not None and rendezvous.poll() in _CALM:
            raise SoakError(f"the rendezvous ended: {_CALM[rendezvous.returncode]}\n{self.cluster.logs()}")
        self._absences = [until for until in self._absences if until > self.watch.now]
        missing = MOST_NODES - len(self.live()) - len(self._absences)
        waiting = sum(1 for incident in self.incidents if self.watch.now - incident.began < 5)
        for _ in range(missing if not waiting else 0):
            self.agents_restarted += 1
            self.cluster.add_node()
        self._judge()

    def _judge(self) -> None:
        for incident in self.incidents:
            if incident.recovered:
                continue
            after = [seen for seen in self.watch.seen if seen.time > incident.began]
            start = next((seen for seen in after if seen.loss is None), None)
            steps = [s for s in after if s.loss is not None and (start is None or s.time > start.time)]
            calm = not any(moment > self.watch.now for moment, _ in self._due)
            # Without a restart it is over when the disturbance is and steps come again.
            if steps and (start is not None or (calm and steps[-1].time > self.watch.now - 1 and len(steps) > 3)):
                incident.recovered = steps[0].time if start is not None else steps[-1].time
                # A start is laid to the last disturbance before it, once.
                last = start and max((i for i in self.incidents if i.began < start.time), key=lambda i: i.began)
                incident.restarted = last is incident
                if start is not None:
                    before = [s.step for s in self.watch.seen if s.loss is not None and s.time < start.time]
                    incident.lost_steps = max(0, max(before, default=0) - start.step)
            elif self.watch.now - incident.began > RECOVERY_LIMIT:
                raise SoakError(f"no step in {RECOVERY_LIMIT:.0f} s after: {incident.kind}\n{self.cluster.logs()}")

    def wait(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        """Tend the job until ``condition``.

        Raises:
            SoakError: not within ``limit`` seconds.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise SoakError(f"not within {limit:.0f} s: {what}\n{self.cluster.logs()}")
            self.tend()
            time.sleep(0.1)

    def calm(self) -> bool:
        """Everything that happened is over and recovered from."""
        return not self._due and all(incident.recovered for incident in self.incidents)

    def stop(self) -> int:
        """End the job as a scheduler does, by SIGTERM; returns the last step that was done."""
        for node in self.live():
            node.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + RECOVERY_LIMIT
        while self.live():
            if time.monotonic() > deadline:
                raise SoakError(f"agents do not end\n{self.cluster.logs()}")
            time.sleep(0.2)
        self.watch.read()
        return self.watch.steps_since(0)[-1].step


def _wake(workers: list[psutil.Process]) -> None:
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            worker.resume()


def run_disturbed(
    disturbances: Iterator[Disturbance],
    seconds: float,
    folder: Path,
    proxy: Proxy,
    urls: tuple[str, str],
    options: tuple[str, ...],
    seed: int,
    variables: dict[str, str],
) -> tuple[Job, int]:
    """Disturb a job for a time, let it recover with all its nodes, stop it; returns it and the step it stopped at.

    Args:
        urls: of the data and of the output.
        variables: environment of the job's processes.

    Raises:
        SoakError: the job did not survive.
    """
    data, output = urls
    app = make_app(f"{LEAST_NODES}:{MOST_NODES}", data, output, *options, max_restarts=1000)
    with Cluster(app, folder, output, variables) as cluster, Watch(folder) as watch:
        cluster.hurry()
        job = Job(cluster, watch, proxy, seed)
        for _ in range(MOST_NODES):
            cluster.add_node()
        job.wait(lambda: bool(watch.steps_since(0)), RECOVERY_LIMIT, "the first step")
        began = watch.now
        for disturbance in disturbances:
            if not disturbance.at_once:
                job.wait(job.calm, RECOVERY_LIMIT, "recovery")
            quiet = watch.now + disturbance.pause
            job.wait(lambda until=quiet: watch.now > until, RECOVERY_LIMIT, "a pause")  # type: ignore[misc]
            if watch.now - began > seconds:
                break
            if job.live() and job.disturb(disturbance):
                print(f"{watch.now:6.0f} s  step {job.incidents[-1].step:5d}  {disturbance.kind}", flush=True)
        job.wait(job.calm, RECOVERY_LIMIT, "recovery")
        job.wait(
            lambda: (
                bool(watch.starts)
                and watch.starts[-1].world == MOST_NODES
                and len(job.live()) == MOST_NODES
                and len(watch.steps_since(watch.starts[-1].time)) > 5
            ),
            RECOVERY_LIMIT,
            "steps with all nodes",
        )
        return job, job.stop()
