"""Runs torchrun on one node of an elastic job: finds the rendezvous, checks the node, starts the agent, watches it.

Schedulers say in an environment variable where the first replica of the first role is; its name comes as an argument,
so no shell is needed and nothing has to be quoted. When the rendezvous process dies, the agent stops its workers, which
commit the step they are at; the launcher then looks the name up again, waits for a fresh process, and starts anew.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from app.config.options import option_value
from app.errors import EXIT_BAD_INPUT, AppError, run_main
from app.selfcheck import quick_checks


class LaunchError(AppError):
    """The node cannot take part; says what is missing."""


_LOCAL_PATIENCE = 30  # seconds
_EXIT_LOST = 69  # app.elastic.agent.EXIT_LOST; importing it here would load torch twice a node


def main(arguments: list[str]) -> int:
    """Command line of ``python -m app.elastic.launch OPTIONS -- APP ARGUMENTS``; returns the agent's exit code."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, app_arguments = parse(arguments[:cut]), arguments[cut + 1 :]
    host = os.environ.get(options.rdzv_host_env, "").split(",")[0] or "localhost"
    wait_for_name(host, options.dns_timeout)
    check_node(options.nproc_per_node, app_arguments)
    endpoint = f"{host}:{options.rdzv_port}"
    # Processes that torchrun starts find the meeting point here, to say when training is done.
    os.environ["ARCFACE_RDZV_ENDPOINT"] = endpoint
    # torch would share its rendezvous store with the workers, and a node that joins late would hang the job.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_of(options.nproc_per_node)))
    return Launcher(options, endpoint, app_arguments).run()


def threads_of(processes: int) -> int:
    """Threads of a process among as many on this node: its share of the cores, as torch takes when it is alone."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


class Launcher:
    """The agent of this node, started as often as the rendezvous process is."""

    def __init__(self, options: argparse.Namespace, endpoint: str, app_arguments: list[str]) -> None:
        self.options, self.endpoint = options, endpoint
        self.command = torchrun_command(options, endpoint, app_arguments)
        self.agent: subprocess.Popen[bytes] | None = None
        self.stop_signal = 0

    def run(self) -> int:
        """Until training is done, has failed, or a signal comes; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        with tempfile.TemporaryDirectory(prefix="arcface-") as folder:
            done, failed = Path(folder) / "done", Path(folder) / "failed"
            os.environ["ARCFACE_DONE_FILE"] = str(done)
            os.environ["ARCFACE_WORDS_FOLDER"] = folder
            while True:
                self._wait_for_rendezvous()
                if self.stop_signal:
                    return 128 + self.stop_signal
                # A session of its own: Ctrl-C reaches the agent through this process only, once.
                self.agent = subprocess.Popen(self.command, start_new_session=True)
                if self.stop_signal:  # it came while the agent was being started
                    self.agent.send_signal(signal.SIGTERM)
                code = self.agent.wait()
                if done.exists():
                    return 0  # whatever became of the rendezvous after that
                if self.stop_signal:
                    return 128 + self.stop_signal
                if failed.exists():
                    return EXIT_BAD_INPUT
                if code != _EXIT_LOST:
                    return code if code >= 0 else 128 - code
                print(f"the rendezvous process is lost: waiting for a fresh one at {self.endpoint}", flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.stop_signal:
            if self.agent is not None:
                for process in [*descendants(self.agent.pid), self.agent.pid]:
                    kill(process)
            os._exit(128 + number)
        self.stop_signal = number
        os.write(2, b"\nstopping after this step; a second time ends at once\n")
        if self.agent is not None:
            self.agent.send_signal(signal.SIGTERM)

    def _wait_for_rendezvous(self) -> None:
        """Wait until somebody listens there; the name is looked up each time, a fresh pod has another address."""
        host, _, port = self.endpoint.rpartition(":")
        # Where the whole job is on one machine, nobody starts a rendezvous that died again.
        alone = self.agent is not None and host in ("localhost", "127.0.0.1")
        patience = min(_LOCAL_PATIENCE, self.options.join_timeout) if alone else self.options.join_timeout
        deadline = time.monotonic() + patience
        while not self.stop_signal:
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"no rendezvous process answers at {self.endpoint} for {patience} s "
                        f"({error}): is its pod running, and may this pod reach it?",
                        transient=True,
                    ) from error
            time.sleep(0.5)


def descendants(process: int) -> list[int]:
    """Children and their children, as /proc lists them."""
    found: list[int] = []
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return found
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def kill(process: int) -> None:
    """SIGKILL; what is gone already is no error."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def check_node(processes: int, app_arguments: list[str]) -> None:
    """Ask the quick questions of ``app.selfcheck`` before processes start.

    Raises:
        AppError: the node lacks something; the first that was found.
    """
    # The recipe's default is a folder of the node itself; only what was asked for is worth a question.
    output = option_value(app_arguments, "output.url") or ""
    commit = option_value(app_arguments, "checkpoint.commit") or "conditional"
    for name, check in quick_checks(processes, output, commit).items():
        print(f"node check: {name}: {check()}", flush=True)


def torchrun_command(options: argparse.Namespace, endpoint: str, app_arguments: list[str]) -> list[str]:
    """The command that starts the agent."""
    conf = {
        "join_timeout": options.join_timeout,
        "last_call_timeout": options.last_call_timeout,
        "read_timeout": 60,
        # A node is lost after eight silent seconds: longer than a busy machine forgets a process, and a good part of
        # what recovery may take.
        "keep_alive_interval": 2,
        "keep_alive_max_attempt": 4,
    }
    local = ["--local-addr", address] if (address := local_address(endpoint)) else []
    return [
        sys.executable,
        "-m",
        "app.elastic.agent",
        *("--nnodes", options.nnodes, "--nproc-per-node", str(options.nproc_per_node)),
        *("--rdzv-backend", "arcface", "--rdzv-endpoint", endpoint, "--rdzv-id", options.rdzv_id),
        *("--rdzv-conf", ",".join(f"{key}={value}" for key, value in conf.items())),
        *("--max-restarts", str(options.max_restarts), "--monitor-interval", "0.5", "--role", "trainer"),
        *("--shutdown-timeout", str(options.shutdown_timeout)),
        *local,
        *("-m", options.module),
        *app_arguments,
    ]


def local_address(endpoint: str) -> str:
    """The address others reach this node by: the pod's IP, or localhost when the whole job is on one machine."""
    if endpoint.startswith(("localhost:", "127.0.0.1:")):
        return "localhost"
    address = os.environ.get("POD_IP", "")
    # Only Kubernetes fills in the mark of the downward API; elsewhere torchrun finds the address itself.
    return "" if address.startswith("[") else address


def wait_for_name(host: str, timeout: float) -> None:
    """Wait until a host name resolves; a new pod's name takes a while.

    Raises:
        LaunchError: it still does not after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the rendezvous host {host} has no address after {timeout:.0f} s ({error}): is its pod scheduled, "
                    "and may this pod ask the cluster's DNS?"
                ) from error
        time.sleep(1)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("app.elastic.launch", description=__doc__)
    parser.add_argument("--nnodes", required=True, help="N, or MIN:MAX")
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--rdzv-id", required=True)
    parser.add_argument("--rdzv-host-env", required=True, help="environment variable with the rendezvous host")
    parser.add_argument("--rdzv-port", type=int, default=29500)
    parser.add_argument("--max-restarts", type=int, default=100)
    parser.add_argument("--join-timeout", type=int, default=1800, help="seconds to wait for the least number of nodes")
    parser.add_argument("--last-call-timeout", type=int, default=15, help="seconds to wait for more nodes than that")
    # Long enough to commit a checkpoint; a worker that hangs in a collective holds a new round up for as long.
    parser.add_argument("--shutdown-timeout", type=int, default=60, help="seconds from SIGTERM to SIGKILL of a worker")
    parser.add_argument("--dns-timeout", type=float, default=300.0, help="seconds")
    parser.add_argument("--module", default="app.train")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
