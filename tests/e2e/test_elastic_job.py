"""Whole elastic jobs as real processes: a killed worker, a lost node, a node that joins late, a stop by SIGTERM."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from app import storage
from tests.e2e.cluster import Cluster, kill_tree, make_app, workers_of
from tests.jobs import losses, weights, write_faces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
JOB = ("--train.logical-workers", "4", "--train.epochs", "12", "--checkpoint.every-steps", "5")
LAST = 60


@pytest.fixture
def data(bucket_url: str) -> str:
    write_faces(bucket_url)
    return bucket_url


def test_a_killed_worker_comes_back_and_changes_no_bit(data: str, tmp_path: Path) -> None:
    whole, disturbed = f"{data}/whole", f"{data}/disturbed"
    (tmp_path / "whole").mkdir()
    with Cluster(make_app("2", data, whole, *JOB), tmp_path / "whole", whole) as job:
        for _ in range(2):
            job.add_node()
        assert job.finish() == [0, 0, 0]
    with Cluster(make_app("2", data, disturbed, *JOB), tmp_path, disturbed) as job:
        nodes = [job.add_node() for _ in range(2)]
        job.wait_for(lambda: committed(disturbed) > 0, "a checkpoint")
        workers_of(nodes[1])[0].kill()
        assert job.finish() == [0, 0, 0]
        assert len(job.starts()) >= 2
        assert job.starts()[-1][0] > 0
    assert losses(disturbed)[LAST] == losses(whole)[LAST]
    for name, value in weights(whole).items():
        assert torch.equal(weights(disturbed)[name], value), name


def test_of_four_nodes_one_is_lost_and_one_joins_late(data: str, tmp_path: Path) -> None:
    output = f"{data}/runs"
    job_options = (*JOB, "--train.epochs", "120")
    with Cluster(make_app("2:4", data, output, *job_options), tmp_path, output) as job:
        job.hurry()
        nodes = [job.add_node() for _ in range(4)]
        job.wait_for(lambda: (job.starts() or [(0, 0)])[-1][1] == 4, "a start with four nodes")
        job.wait_for(lambda: committed(output) > 0, "a checkpoint")
        kill_tree(nodes[3].pid)
        job.wait_for(lambda: job.starts()[-1][1] == 3, "a start with three nodes")
        at_loss = job.starts()[-1][0]
        assert at_loss > 0
        late = job.add_node()
        job.wait_for(lambda: job.starts()[-1][1] == 4, "a start with the new node")
        assert job.starts()[-1][0] >= at_loss
        assert [node.poll() for node in (*nodes[:3], late)] == [None] * 4  # nobody else was lost


def test_two_nodes_lost_within_a_second_are_replaced(data: str, tmp_path: Path) -> None:
    """The second one is killed while the others meet again without the first."""
    output = f"{data}/runs"
    with Cluster(make_app("2:4", data, output, *JOB, "--train.epochs", "400"), tmp_path, output) as job:
        job.hurry()
        for _ in range(4):
            job.add_node()
        job.wait_for(lambda: (job.starts() or [(0, 0)])[-1][1] == 4, "a start with four nodes")
        job.wait_for(lambda: committed(output) > 0, "a checkpoint")
        for pause in (0.2, 3.0):
            starts = len(job.starts())
            first, second = [node for node in job.nodes if node.poll() is None][-2:]
            kill_tree(first.pid)
            time.sleep(pause)
            kill_tree(second.pid)
            for _ in range(2):
                job.add_node()
            job.wait_for(
                lambda before=starts: len(job.starts()) > before and job.starts()[-1][1] == 4,  # type: ignore[misc]
                "a start with four nodes again",
                120,
            )


def test_sigterm_to_all_commits_a_checkpoint_of_the_last_step(data: str, tmp_path: Path) -> None:
    output = f"{data}/runs"
    options = (*JOB, "--train.epochs", "200", "--checkpoint.every-steps", "100000")
    with Cluster(make_app("2", data, output, *options), tmp_path, output) as job:
        nodes = [job.add_node() for _ in range(2)]
        job.wait_for(lambda: bool(job.starts()), "the start")
        time.sleep(5)
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        job.wait_for(lambda: all(node.poll() is not None for node in nodes), "the end of both agents", 60)
        assert committed(output) > 0, job.logs()
        assert committed(output) == job.step()
    # The pods go, and their logs with them; as when a job is ended because another rank failed.
    for rank in range(2):
        reason, *_, last = storage.read_bytes(f"{output}/orl/failures/rank-{rank}.txt").decode().splitlines()
        assert reason == "stopped by SIGTERM"
        assert (
            last
            == f"stopped; the checkpoint of step {committed(output)} is committed: the same command goes on from there"
            or rank > 0
        )


def test_a_fresh_rendezvous_process_takes_a_dead_ones_place(data: str, tmp_path: Path) -> None:
    output = f"{data}/runs"
    options = (*JOB, "--train.epochs", "30", "--checkpoint.every-steps", "100000")
    with Cluster(make_app("2", data, output, *options), tmp_path, output) as job:
        for _ in range(2):
            job.add_node()
        job.wait_for(lambda: job.step() > 0 or len(job.starts()) > 0, "the start")
        time.sleep(4)
        assert job.rendezvous is not None
        job.rendezvous.kill()
        job.rendezvous.wait()
        # Meanwhile the workers commit the step that they are at.
        job.wait_for(lambda: committed(output) > 0, "the commit", 60)
        at_loss = committed(output)
        job.start_rendezvous()
        assert job.finish() == [0, 0, 0]
        assert job.starts()[-1][0] == at_loss


def test_the_rendezvous_process_gives_up_when_no_trainer_ever_comes(tmp_path: Path) -> None:
    app = make_app("2", "x", "y")
    app.roles[0].args += ["--idle-timeout", "2"]
    with Cluster(app, tmp_path, str(tmp_path)) as job:
        assert job.finish(60) == [65]
        assert "no sign of life" in job.logs()


def committed(output: str) -> int:
    """The step of the newest committed checkpoint."""
    folder = storage.join(output, "orl", "checkpoints")
    steps = [
        int(name.split("-")[1])
        for name in storage.list_names(folder)
        if storage.exists(storage.join(folder, name, "manifest.json"))
    ]
    return max(steps, default=0)
