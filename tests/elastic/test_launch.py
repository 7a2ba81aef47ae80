"""The launcher's decisions, without starting anything."""

from __future__ import annotations

import pytest

from app.elastic.launch import LaunchError, local_address, parse, torchrun_command, wait_for_name
from tests.jobs import torchx

OPTIONS = ["--nnodes", "2:4", "--nproc-per-node", "8", "--rdzv-id", "job", "--rdzv-host-env", "HOST"]


def test_the_address_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    assert local_address("job-rdzv-0-0.job:29500") == "10.1.2.3"
    assert local_address("localhost:29500") == "localhost"
    monkeypatch.setenv("POD_IP", "[FIELD_PATH]status.podIP")  # as TorchX leaves it outside Kubernetes
    assert local_address("rdzv:29500") == ""


def test_the_command_hands_the_apps_arguments_on_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POD_IP", raising=False)
    command = torchrun_command(parse(OPTIONS), "rdzv:29500", ["--recipe", "a b", "--x", "$HOME"])
    assert command[-4:] == ["--recipe", "a b", "--x", "$HOME"]
    assert command[command.index("--nnodes") + 1] == "2:4"
    assert command[command.index("--rdzv-backend") + 1] == "arcface"
    assert "--local-addr" not in command


def test_a_rendezvous_host_without_address_is_told() -> None:
    with pytest.raises(LaunchError, match=r"no-such-host\.invalid has no address after 0 s"):
        wait_for_name("no-such-host.invalid", 0)


def test_the_component_is_accepted_by_the_docker_scheduler() -> None:
    where = ["--hardware", "cpu", "--recipe", "orl", "--data", "s3://a/b", "--output", "s3://c"]
    done = torchx("run", "-s", "local_docker", "--dryrun", "components.py:arcface_dist", "--nnodes", "2", *where)
    assert done.returncode == 0, done.stderr
    request = done.stdout.partition("=== SCHEDULER REQUEST ===")[2]
    assert request.count("app.elastic.launch") == 2  # a container each
    assert request.count("app.elastic.rendezvous") == 1
