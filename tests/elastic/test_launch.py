"""The launcher's decisions, without starting anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.elastic.launch import (
    LaunchError,
    check_node,
    local_address,
    parse,
    threads_of,
    torchrun_command,
    wait_for_name,
)
from app.storage import StorageError
from tests.jobs import environment, torchx

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


@pytest.mark.parametrize(
    "spelling", [["--output.url", "{}"], ["--output.url={}"], ["--output.url", "s3://other", "--output.url={}"]]
)
def test_the_node_check_finds_the_output_in_every_spelling(spelling: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = [word.format(tmp_path / "file" / "runs") for word in spelling]
    with pytest.raises(StorageError, match="file/runs"):
        check_node(1, ["--recipe", "orl", *words])


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


@pytest.mark.parametrize("cores", [1, 1024])
def test_a_process_alone_has_as_many_threads_as_plain_python_takes(cores: int) -> None:
    """Their number changes how sums are rounded, so a run must not see who started it."""
    variables = environment()
    del variables["OMP_NUM_THREADS"]
    few = f"import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}]); "
    ask = {
        "launcher": few + "from app.elastic.launch import threads_of; print(threads_of(1))",
        "plain": few + "import torch; print(torch.get_num_threads())",
    }
    said = [
        subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True).stdout
        for code in ask.values()
    ]
    assert said[0] == said[1] == f"{min(cores, len(os.sched_getaffinity(0)))}\n"


def test_processes_of_a_node_share_its_cores_out() -> None:
    cores = len(os.sched_getaffinity(0))
    assert threads_of(1) == cores
    assert threads_of(cores) == threads_of(10 * cores) == 1
