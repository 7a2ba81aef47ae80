"""What Volcano makes of our jobs: they start with any trainers, lose none for good, and end with the verdict only."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml

from tests.components.test_appdefs import GOLDEN
from tests.components.volcano import VolcanoJob


def golden(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())
    return loaded


def running(name: str = "dist-ascend-910b-elastic") -> VolcanoJob:
    job = VolcanoJob(golden(name))
    job.offer(list(job.tasks))
    assert job.phase == "Running"
    return job


@pytest.mark.parametrize("pair", list(itertools.combinations(range(4), 2)))
def test_an_elastic_job_starts_with_any_two_trainers_and_grows(pair: tuple[int, int]) -> None:
    job = VolcanoJob(golden("dist-ascend-910b-elastic"))
    job.offer(["rdzv-0", f"trainer-{pair[0]}"])
    assert job.phase == "Pending"
    job.offer([f"trainer-{n}" for n in pair])
    assert job.phase == "Pending" or "rdzv-0" in job.pods
    job.offer(["rdzv-0", *(f"trainer-{n}" for n in pair)])
    assert job.phase == "Running"
    before = dict(job.pods)
    job.offer([f"trainer-{n}" for n in range(4)])
    survivors = {"rdzv-0", *(f"trainer-{n}" for n in pair)}
    assert {name: job.pods[name] for name in survivors} == {name: before[name] for name in survivors}
    assert all(phase == "Running" for _, phase in job.pods.values())


def test_the_model_knows_why_the_tasks_own_numbers_had_to_go() -> None:
    manifest = golden("dist-ascend-910b-elastic")
    for task, number in zip(manifest["spec"]["tasks"][1:], (1, 1, 0, 0), strict=True):
        task["minAvailable"] = number
    job = VolcanoJob(manifest)
    job.offer(["rdzv-0", "trainer-1", "trainer-2"])
    assert job.phase == "Pending"


@pytest.mark.parametrize("name", ["dist-ascend-910b-elastic", "dist-ascend-910b-4", "dist-cpu-4"])
def test_failed_trainers_come_back_alone_again_and_again(name: str) -> None:
    job = running(name)
    for _ in range(3):
        for lost in ("trainer-0", "trainer-3"):
            before = dict(job.pods)
            job.end(lost, 137)
            assert job.phase == "Running"
            assert [task for task in job.pods if job.pods[task] != before[task]] == [lost]
            assert job.pods[lost][1] == "Running"


@pytest.mark.parametrize("code", [1, 2, 64, 75, 137, 143])
def test_a_rendezvous_that_is_lost_is_made_again_and_trainers_stay(code: int) -> None:
    job = running()
    before = dict(job.pods)
    job.end("rdzv-0", code)
    job.evict("rdzv-0")
    assert job.phase == "Running"
    assert [task for task in job.pods if job.pods[task] != before[task]] == ["rdzv-0"]


def test_only_the_rendezvous_verdicts_end_the_job() -> None:
    job = running()
    job.end("rdzv-0", 65)
    assert job.phase == "Terminated"
    job = VolcanoJob(golden("dist-ascend-910b-elastic"))
    job.offer(["rdzv-0", "trainer-2", "trainer-3"])
    job.end("rdzv-0", 0)
    assert job.phase == "Completed"  # though two trainers never ran


def test_only_preemptible_trainers_can_be_taken() -> None:
    assert running("dist-ascend-910b-elastic").reclaimable() == [f"trainer-{n}" for n in range(4)]
    for name in ("dist-ascend-910b-4", "verify-ascend-910b", "prepare-cpu"):
        assert running(name).reclaimable() == []


@pytest.mark.parametrize("name", ["verify-ascend-910b", "prepare-cpu"])
def test_a_job_of_one_pod_ends_as_the_pod_does(name: str) -> None:
    (only,) = golden(name)["spec"]["tasks"]
    for code, phase in ((0, "Completed"), (3, "Terminated")):
        job = running(name)
        job.end(only["name"], code)
        assert job.phase == phase
