"""Who waits for a job is not put off by a server that is away or a job without a state; who is stopped cancels it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torchx.specs import AppState

from tests import jobs
from tests.components.api_server import ApiServer
from torchx_plugins.schedulers import elastic_kubernetes
from torchx_plugins.schedulers._cluster import ClusterError
from torchx_plugins.schedulers.elastic_kubernetes import ElasticKubernetesScheduler, create_scheduler

JOB = "/apis/batch.volcano.sh/v1alpha1/namespaces/default/jobs/x"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig))
        monkeypatch.setattr(elastic_kubernetes, "PAUSE_SECONDS", 0.05)
        yield running


def scheduler() -> ElasticKubernetesScheduler:
    return create_scheduler("torchx")


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_server_that_is_away_for_a_while_is_asked_again(
    server: ApiServer, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    server.put(JOB, {"metadata": {"name": "x"}, "status": {"state": {"phase": "Running"}}})
    server.failures[("GET", "/jobs/x")] = (code, "overloaded")

    def recover() -> None:
        while sum("/jobs/x" in path for _, path in server.requests) < 3:
            waited.wait(0.01)
        with server.lock:
            server.failures.clear()

    waited = threading.Event()
    thread = threading.Thread(target=recover)
    thread.start()
    found = scheduler().describe("default:x")
    thread.join()
    assert found is not None
    assert found.state == AppState.RUNNING
    assert capsys.readouterr().err.count("overloaded; try again later; asking again for 30 min") == 1


@pytest.mark.parametrize(("code", "requests"), [(403, 1), (401, 1), (503, 2)])
def test_what_time_does_not_mend_is_said(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, code: int, requests: int
) -> None:
    monkeypatch.setattr(elastic_kubernetes, "PATIENCE_SECONDS", 0.01)
    server.failures[("GET", "/jobs/x")] = (code, "no")
    with pytest.raises(ClusterError):
        scheduler().describe("default:x")
    assert len(server.requests) >= requests
    assert (len(server.requests) == 1) == (requests == 1)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (None, AppState.UNKNOWN),
        ({}, AppState.UNKNOWN),
        ({"state": {}}, AppState.UNKNOWN),  # made a moment ago
        ({"state": {"phase": "Hibernating"}}, AppState.UNKNOWN),  # of a Volcano to come
        ({"state": {"phase": "Running"}, "taskStatusCount": {"trainer-0": {"phase": {}}}}, AppState.UNKNOWN),
        (
            {"state": {"phase": "Running"}, "taskStatusCount": {"trainer-0": {"phase": {"Unknown": 1}}}},
            AppState.RUNNING,
        ),
        ({"state": {"phase": "Failed"}}, AppState.FAILED),
    ],
)
def test_a_job_without_a_state_that_is_known_is_no_error(
    server: ApiServer, status: dict[str, Any] | None, state: AppState
) -> None:
    server.put(JOB, {"metadata": {"name": "x"}, **({} if status is None else {"status": status})})
    found = scheduler().describe("default:x")
    assert found is not None
    assert found.state == state


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_pipeline_that_is_stopped_cancels_its_job(server: ApiServer, sent: signal.Signals) -> None:
    variables = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.kubeconfig.parent)}
    with subprocess.Popen(
        [sys.executable, "-m", "components.pipeline", "--nnodes", "1", "--poll-seconds", "0.2"],
        env=jobs.environment() | variables,
        cwd=jobs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        handle = running.stdout.readline().split()[-1]
        running.send_signal(sent)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.splitlines()[-1] == f"stopped: {handle} is cancelled"
    assert "Traceback" not in err
    assert server.jobs()[0]["status"]["state"]["phase"] == "Aborted"


@pytest.mark.slow
def test_a_reader_that_has_read_enough_is_no_error(server: ApiServer) -> None:
    words = [
        str(Path(sys.executable).with_name("torchx")),
        "run",
        "--dryrun",
        "-s",
        "kubernetes",
        "components.py:arcface_dist",
        "--nnodes",
        "64",
    ]
    variables = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.kubeconfig.parent)}
    with subprocess.Popen(
        words,
        env=jobs.environment() | variables,
        cwd=jobs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        err = running.stderr.read()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
