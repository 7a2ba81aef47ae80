"""An API server that accepts connections and stays silent holds nobody up: a real socket, and every request we make."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torchx.schedulers.kubernetes_scheduler import Opts
from torchx.specs import AppState

from components import status
from components.preflight import build
from tests.components.api_server import ApiServer
from torchx_plugins.schedulers import _deadlines, elastic_kubernetes
from torchx_plugins.schedulers._cluster import ClusterError, NoClusterError
from torchx_plugins.schedulers.elastic_kubernetes import ElasticKubernetesScheduler, create_scheduler

JOB = "/apis/batch.volcano.sh/v1alpha1/namespaces/default/jobs/x"
POD = "/api/v1/namespaces/default/pods/x-trainer-0-0"


class Gate:
    """A TCP relay to the API server that can fall silent: it goes on accepting, and passes no byte on."""

    def __init__(self, port: int) -> None:
        self.silent: Callable[[bytes], bool] = lambda _: False  # asked for each request's first bytes
        self.requests: list[bytes] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._held: list[socket.socket] = []

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [self._listener, *self._held]:
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._held.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=_copy, args=(server, connection), daemon=True).start()
            while data := connection.recv(1 << 16):
                self.requests.append(data)
                if self.silent(data):
                    return  # the connection stays open: _held has it
                server.sendall(data)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig))
        monkeypatch.setattr(elastic_kubernetes, "PAUSE_SECONDS", 0.05)
        monkeypatch.setattr(_deadlines, "ANSWER_SECONDS", 1.5)
        monkeypatch.setattr(_deadlines, "SILENCE_SECONDS", 1.5)
        running.put(JOB, {"metadata": {"name": "x"}, "spec": {"tasks": []}, "status": {"state": {"phase": "Running"}}})
        pod = {"metadata": {"name": "x-trainer-0-0"}, "spec": {"containers": [{"name": "trainer-0"}]}, "status": {}}
        running.put(POD, pod)
        yield running


@pytest.fixture
def gate(server: ApiServer) -> Iterator[Gate]:
    with Gate(int(server.url.rpartition(":")[2])) as relay:
        server.kubeconfig.write_text(server.kubeconfig.read_text().replace(server.url, relay.url))
        yield relay


def silence(what: bytes) -> Callable[[bytes], bool]:
    return lambda request: what in request


def submit(scheduler: ElasticKubernetesScheduler) -> str:
    app = build(["--nnodes", "1", "--recipe", "orl", "--image", "r/a:1", "--data", "s3://f/o", "--output", "s3://r"])
    options: dict[str, Any] = {"queue": "default", "namespace": "default", "validate_spec": False}
    return scheduler.schedule(scheduler.submit_dryrun(app, Opts(**options)))


QUESTIONS: dict[str, Callable[[ElasticKubernetesScheduler], object]] = {
    "submit": submit,
    "list": lambda scheduler: scheduler.list({"namespace": "default"}),
    "status": lambda scheduler: scheduler.describe("default:x"),
    "log": lambda scheduler: list(scheduler.log_iter("default:x", "trainer", 0)),
    "follow": lambda scheduler: list(scheduler.log_iter("default:x", "trainer", 0, None, None, None, True)),
    "cancel": lambda scheduler: scheduler._cancel_existing("default:x"),
    "delete": lambda scheduler: scheduler._delete_existing("default:x"),
    "components.status": lambda scheduler: status.ask_cluster(scheduler, "default", "x"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_command_ends_and_says_who_was_silent(gate: Gate, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(elastic_kubernetes, "subcommand", lambda: "status")
    gate.silent = silence(b"")
    with pytest.raises(NoClusterError) as refused:
        QUESTIONS[name](create_scheduler("torchx"))
    assert f"the API server {gate.url} does not answer: it took the request and stays silent" in str(refused.value)
    # Who has let the deadline pass is not asked once more; a log is, whether its pod is there.
    assert len(gate.requests) == (2 if name == "follow" else 1)


def test_who_waits_asks_a_silent_server_again(gate: Gate, capsys: pytest.CaptureFixture[str]) -> None:
    gate.silent = lambda _: len(gate.requests) < 3
    found = create_scheduler("torchx").describe("default:x")
    assert found is not None
    assert found.state == AppState.RUNNING
    assert capsys.readouterr().err.count("stays silent") == 1


def test_a_submission_without_an_answer_says_that_the_job_may_be_there(server: ApiServer, gate: Gate) -> None:
    gate.silent = silence(b"/jobs")
    with pytest.raises(NoClusterError, match=r"may be there all the same: torchx delete kubernetes://torchx/default:"):
        submit(create_scheduler("torchx"))
    # The key of its rendezvous is asked for last: where that is silent, the job goes again, or is named.
    made = len(server.jobs())
    gate.silent = silence(b"/secrets HTTP")  # a dry run asks for /secrets?dryRun=All
    with pytest.raises(NoClusterError, match="stays silent") as refused:
        submit(create_scheduler("torchx"))
    assert "may be there" not in str(refused.value)
    assert len(server.jobs()) == made
    gate.silent = lambda request: b"/secrets HTTP" in request or b"DELETE" in request
    with pytest.raises(ClusterError, match="may be there all the same: torchx delete"):
        submit(create_scheduler("torchx"))
    assert len(server.jobs()) == made + 1


def test_a_log_that_is_silent_for_long_is_opened_anew_behind_its_last_line(server: ApiServer, gate: Gate) -> None:
    """The first follow gets two lines and then nothing; the second gets all of it, and ends."""
    lines = [f"2026-01-01T00:00:0{n}.000000000Z line {n}\n" for n in range(4)]
    server.logs["x-trainer-0-0"] = "".join(lines)
    held: list[socket.socket] = []

    def half(request: bytes) -> bool:
        if b"follow=" not in request or held:
            return False
        connection = gate._held[-1]
        held.append(connection)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        body = "".join(lines[:2]).encode()
        connection.sendall(head + f"{len(body):x}\r\n".encode() + body + b"\r\n")
        return True

    gate.silent = half
    read = create_scheduler("torchx").log_iter("default:x", "trainer", 0, None, None, None, True)
    assert [line.rstrip("\n") for line in read] == [line.rstrip("\n") for line in lines]
    assert len(held) == 1


def test_a_tls_handshake_that_gets_no_answer_ends_too(
    server: ApiServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_deadlines, "CONNECT_SECONDS", 0.2)
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace("http://", "https://"))
    gate.silent = silence(b"")
    with pytest.raises(NoClusterError, match="does not answer"):
        create_scheduler("torchx").list({"namespace": "default"})
