"""Starts torchrun on one node of an elastic job: finds the rendezvous, checks the node, then becomes torchrun.

Schedulers say in an environment variable where the first replica of the first role is; its name comes as an argument,
so no shell is needed and nothing has to be quoted.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

from app.errors import AppError, run_main
from app.selfcheck import quick_checks


class LaunchError(AppError):
    """The node cannot take part; says what is missing."""


def main(arguments: list[str]) -> int:
    """Command line of ``python -m app.elastic.launch OPTIONS -- APP ARGUMENTS``; does not return when all is well."""
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
    command = torchrun_command(options, endpoint, app_arguments)
    os.execv(command[0], command)


def check_node(processes: int, app_arguments: list[str]) -> None:
    """Ask the quick questions of ``app.selfcheck`` before processes start.

    Raises:
        AppError: the node lacks something; the first that was found.
    """
    output = ""
    if "--output.url" in app_arguments[:-1]:
        output = app_arguments[app_arguments.index("--output.url") + 1]
    for name, check in quick_checks(processes, output).items():
        print(f"node check: {name}: {check()}", flush=True)


def torchrun_command(options: argparse.Namespace, endpoint: str, app_arguments: list[str]) -> list[str]:
    """The command that this process becomes."""
    conf = {
        "is_host": "false",
        "join_timeout": options.join_timeout,
        "last_call_timeout": options.last_call_timeout,
        "read_timeout": 300,
        "keep_alive_interval": 2,
        "keep_alive_max_attempt": 3,
    }
    local = ["--local-addr", address] if (address := local_address(endpoint)) else []
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *("--nnodes", options.nnodes, "--nproc-per-node", str(options.nproc_per_node)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", options.rdzv_id),
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
    parser.add_argument("--last-call-timeout", type=int, default=30, help="seconds to wait for more nodes than that")
    # Long enough to commit a checkpoint; a worker that hangs in a collective holds a new round up for as long.
    parser.add_argument("--shutdown-timeout", type=int, default=60, help="seconds from SIGTERM to SIGKILL of a worker")
    parser.add_argument("--dns-timeout", type=float, default=300.0, help="seconds")
    parser.add_argument("--module", default="app.train")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
