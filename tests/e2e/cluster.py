"""Runs the commands of ``arcface_dist`` as TorchX emits them: one rendezvous process, one agent a node."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil
from torchx.specs import AppDef, Role, macros
from torchx.specs.finder import get_component

from app.observe.events import read_events
from demo.object_store import free_port
from tests.jobs import ROOT, SMALL, environment


def make_app(nnodes: str, data: str, output: str, *options: str, max_restarts: int = 20) -> AppDef:
    """The component's AppDef for the cpu profile."""
    component = get_component(f"{ROOT / 'components.py'}:arcface_dist")
    arguments = [option for option in SMALL if option not in ("--recipe", "orl")]
    app: AppDef = component.fn(
        *arguments,
        *options,
        nnodes=nnodes,
        recipe="orl",
        data=data,
        output=output,
        hardware="cpu",
        image="arcface:here",  # no image is used by processes
        rdzv_port=free_port(),
        max_restarts=max_restarts,
    )
    return app


class Cluster:
    """The processes of one job; all are gone when the block is left."""

    def __init__(self, app: AppDef, folder: Path, output: str, variables: dict[str, str] | None = None) -> None:
        self.folder, self.output, self.variables = folder, output, variables or {}
        self.rendezvous_role, self.trainer_role = app.roles
        self.rendezvous: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self.start_rendezvous()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for process in (*self.nodes, *([self.rendezvous] if self.rendezvous else [])):
            kill_tree(process.pid)
            process.wait(10)

    def start_rendezvous(self) -> None:
        """Start the rendezvous process, also in place of one that died."""
        self.rendezvous = self._start(self.rendezvous_role, f"rdzv{self.rendezvous.pid if self.rendezvous else ''}")

    def add_node(self) -> subprocess.Popen[bytes]:
        """Start one more agent."""
        node = self._start(self.trainer_role, f"node{len(self.nodes)}")
        self.nodes.append(node)
        return node

    def hurry(self) -> None:
        """Let agents wait only briefly for nodes above the least number, as a test has no scheduler to wait for."""
        self.trainer_role.args.insert(self.trainer_role.args.index("--"), "--last-call-timeout=3")

    def _start(self, role: Role, name: str) -> subprocess.Popen[bytes]:
        applied = macros.Values("", "job-1", "0", "RDZV_HOST").apply(role)
        env = {key: value for key, value in applied.env.items() if not value.startswith("[FIELD_PATH]")}
        log = (self.folder / f"{name}.log").open("wb")
        python = str(ROOT / ".venv" / "bin" / "python") if (ROOT / ".venv").exists() else "python"
        return subprocess.Popen(
            [python, *applied.args],
            env={**environment(), **env, **self.variables, "RDZV_HOST": "localhost"},
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def step(self) -> int:
        """The highest step that was logged."""
        events = read_events(f"{self.output}/orl")
        return max((e["step"] for e in events if e["kind"] == "train"), default=0)

    def starts(self) -> list[tuple[int, int]]:
        """(step, world size) of each start."""
        return [(e["step"], e["world_size"]) for e in read_events(f"{self.output}/orl") if e["kind"] == "start"]

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 300.0) -> None:
        """Poll until ``condition``; fails with the logs after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout} s: {what}\n{self.logs()}")
            time.sleep(0.2)

    def finish(self, timeout: float = 500.0) -> list[int]:
        """Wait for all nodes and the rendezvous to end; exit codes, the rendezvous's last."""
        processes = [*self.nodes, *([self.rendezvous] if self.rendezvous else [])]
        self.wait_for(lambda: all(p.poll() is not None for p in processes), "the end of the job", timeout)
        return [int(process.returncode) for process in processes]

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(
            f"--- {p.name}\n{p.read_text(errors='replace')[-2500:]}" for p in sorted(self.folder.glob("*.log"))
        )


def workers_of(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes that an agent started."""
    children = psutil.Process(node.pid).children(recursive=True)
    # The agent's command line ends with the app's options too.
    return [child for child in children if child.cmdline()[1:4] == ["-u", "-m", "app.train"]]


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, as a lost node would."""
    try:
        parent = psutil.Process(pid)
        victims = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for victim in victims:
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
