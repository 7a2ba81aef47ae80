"""`python -m components.status`: one line for every way a job can wait, run or end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import storage
from components.job_reason import JobFacts, reason
from components.status import main, run_folder
from tests.components.api_server import ApiServer
from tests.components.test_appdefs import GOLDEN, build, manifest

NAME = "orl-abc"
HANDLE = f"kubernetes://torchx/default:{NAME}"
JOBS, PODS = "/apis/batch.volcano.sh/v1alpha1/namespaces/default/jobs", "/api/v1/namespaces/default/pods"
GROUPS = "/apis/scheduling.volcano.sh/v1beta1/namespaces/default/podgroups"
EVENTS = "/api/v1/namespaces/default/events"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig))
        yield running


def put_job(server: ApiServer, phase: str, output: str = "s3://runs", **state: str) -> None:
    text = (GOLDEN / "dist-cpu-4.yaml").read_text().replace("s3://runs", output)
    job = yaml.safe_load(text)
    job["metadata"]["name"] = NAME
    server.put(f"{JOBS}/{NAME}", job | {"status": {"state": {"phase": phase, **state}}})


def put_event(server: ApiServer, kind: str, name: str, why: str, message: str) -> None:
    about = {"kind": kind, "name": name, "namespace": "default"}
    number = len(server.objects)
    metadata = {"name": f"event-{number}", "namespace": "default"}
    server.put(f"{EVENTS}/{number}", {"metadata": metadata, "involvedObject": about, "reason": why, "message": message})


def put_pod(server: ApiServer, role: str, **status: Any) -> None:
    name = f"{NAME}-{role}-0"
    server.put(f"{PODS}/{name}", {"metadata": {"name": name}, "spec": {"containers": []}, "status": status})


def container(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "image": "a:1", "imageID": "", "ready": False, "restartCount": 0, **fields}]


def say(capsys: pytest.CaptureFixture[str]) -> str:
    main([HANDLE])
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1, out
    return out


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ('pods "x" is forbidden: exceeded quota: gpus', "wait until others have ended"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "take a hardware profile without -host"),
        ('pods "x" is forbidden: no PriorityClass with name y was found', "-cfg priority_class="),
        ('pods "x" is forbidden: error looking up service account f/y', "--service_account"),
    ],
)
def test_a_job_whose_pods_are_refused_says_why(
    server: ApiServer, capsys: pytest.CaptureFixture[str], message: str, hint: str
) -> None:
    put_job(server, "Pending")
    put_event(server, "Job", NAME, "FailedCreate", f"Error creating pods: [{message}]")
    put_event(server, "Job", "another", "FailedCreate", "not ours")
    out = say(capsys)
    assert out.startswith(f"PENDING: Error creating pods: [{message}]")
    assert hint in out
    assert "not ours" not in out


def test_a_gang_that_does_not_fit_and_an_image_that_is_not_there(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server, "Pending")
    text = "3/3 tasks in gang unschedulable: pod group is not ready, 3 Pending, 3 minAvailable"
    group = {"metadata": {"name": f"{NAME}-1234"}, "spec": {"queue": "faces"}}
    status = {"phase": "Inqueue", "conditions": [{"type": "Unschedulable", "status": "True", "message": text}]}
    server.put(f"{GROUPS}/{NAME}-1234", group | {"status": status})
    assert text in say(capsys)
    server.put(f"{GROUPS}/{NAME}-1234", group | {"status": {"phase": "Pending"}})
    assert "the queue 'faces' has no room for its least number of pods yet" in say(capsys)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "a:1"'}}
    put_pod(server, "trainer-1", phase="Pending", containerStatuses=container(state=waiting))
    assert 'trainer/1: ImagePullBackOff: Back-off pulling image "a:1"' in say(capsys)


def test_a_running_job_tells_step_speed_and_time_to_go(
    server: ApiServer, bucket_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server, "Running", output=bucket_url)
    assert "no step yet" in say(capsys)
    start = {"kind": "start", "step": 0, "total_steps": 1000, "global_batch": 64, "host": f"{NAME}-trainer-2-0"}
    lines = [start, *({"kind": "train", "step": step, "images_per_second": 8.0} for step in range(1, 3001))]
    lines[-1] = {"kind": "train", "step": 550, "images_per_second": 8.0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert len(text) > 2 * (64 << 10)  # only its beginning and its end are read
    storage.write_bytes(f"{bucket_url}/glint360k_r100/events/20261125T000000-aa.jsonl", text.encode())
    assert say(capsys) == "RUNNING: step 550 of 1000, 8.0 img/s, ETA 1 h 0 min, rank 0 is trainer/2\n"
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    put_pod(server, "trainer-0", phase="Running", containerStatuses=container(lastState=killed, restartCount=2))
    assert "trainer/0: OOMKilled, exit code 137, 2 restarts" in say(capsys)
    foreign = {"exitCode": 128, "reason": "StartError", "message": 'exec: "python": exec format error'}
    put_pod(server, "trainer-0", phase="Running", containerStatuses=container(lastState={"terminated": foreign}))
    assert 'trainer/0: StartError, exit code 128: exec: "python": exec format error' in say(capsys)


def test_a_failed_job_tells_the_ranks_last_words(
    server: ApiServer, bucket_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server, "Terminated", output=bucket_url)
    words = b"error: loss is not finite at step 7\nlast lines\n"
    storage.write_bytes(f"{bucket_url}/glint360k_r100/failures/rank-3.txt", words)
    for rank in (0, 1, 2, 4, 5):  # these ended since that one failed: it is told all the same
        storage.write_bytes(f"{bucket_url}/glint360k_r100/failures/rank-{rank}.txt", b"stopped by SIGTERM\nlines\n")
    assert main([HANDLE]) == 1
    out = capsys.readouterr().out
    assert "rank-3: error: loss is not finite at step 7" in out
    assert f"{bucket_url}/glint360k_r100/failures has the last lines of 6 ranks" in out


def test_without_keys_the_state_is_told_all_the_same(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    put_job(server, "Running")
    assert "was not looked at: no AWS_ACCESS_KEY_ID" in say(capsys)


def test_what_is_not_there_and_a_dead_server_are_one_line(
    server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([HANDLE]) == 1
    assert capsys.readouterr().err == f"error: there is no job '{NAME}' in namespace 'default'\n"
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace(server.url, "http://127.0.0.1:9"))
    assert main([HANDLE]) == 1
    assert "error: the API server http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert main(["nonsense"]) == 1


def test_a_node_that_failed_a_pod_is_named() -> None:
    pod = {
        "metadata": {"name": f"{NAME}-trainer-3-0"},
        "status": {"phase": "Failed", "reason": "UnexpectedAdmissionError"},
    }
    job = {"metadata": {"name": NAME}, "status": {"state": {"phase": "Running"}}}
    assert reason(JobFacts(job, pods=[pod])).startswith("trainer/3: UnexpectedAdmissionError")


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "x": hostPath type check failed'),
        ("FailedCreatePodSandBox", "failed to setup network for sandbox"),
        ("Pulling", 'Pulling image "a:1"'),
    ],
)
@pytest.mark.parametrize("phase", ["Pending", "Running"])
def test_what_the_kubelet_is_at_is_told_rather_than_what_has_passed(
    server: ApiServer, capsys: pytest.CaptureFixture[str], phase: str, why: str, message: str
) -> None:
    put_job(server, phase)
    tasks = server.objects[f"{JOBS}/{NAME}"]["spec"]["tasks"]
    for task in tasks:
        state = {"waiting": {"reason": "ContainerCreating"}} if task["name"] == "trainer-1" else {"running": {}}
        scheduled = [{"type": "PodScheduled", "status": "True"}]
        put_pod(server, task["name"], conditions=scheduled, containerStatuses=container(state=state))
    # As Volcano leaves them: the older condition stays, and stays true.
    old = {"type": "Unschedulable", "status": "True", "lastTransitionTime": "2026-11-25T10:00:00Z", "message": "full"}
    new = {"type": "Scheduled", "status": "True", "lastTransitionTime": "2026-11-25T10:05:00Z"}
    group = {"metadata": {"name": f"{NAME}-1234"}, "status": {"phase": "Running", "conditions": [old, new]}}
    server.put(f"{GROUPS}/{NAME}-1234", group)
    put_event(server, "Job", NAME, "FailedCreate", "Error creating pods: [exceeded quota]")
    for number, event in enumerate([("Scheduled", "Successfully assigned"), (why, message)]):
        put_event(server, "Pod", f"{NAME}-trainer-1-0", *event)
        [*server.objects.values()][-1]["lastTimestamp"] = f"2026-11-25T10:06:0{number}Z"
    assert say(capsys).startswith(f"{phase.upper()}: trainer/1: {why}: {message}")
    put_event(server, "Pod", f"{NAME}-trainer-1-0", "Pulled", "Successfully pulled image")
    [*server.objects.values()][-1]["lastTimestamp"] = "2026-11-25T10:07:00Z"
    assert message not in say(capsys)
    new["lastTransitionTime"] = "2026-11-25T09:00:00Z"  # placed once, and now no more
    assert ("full" in say(capsys)) == (phase == "Pending")


def test_words_of_events_and_files_reach_no_terminal_as_orders(
    server: ApiServer, bucket_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_job(server, "Failed", output=bucket_url)
    run = f"{bucket_url}/glint360k_r100"
    words = b"error: http://me:hunter22@host \x1b]0;x\x07\n"
    storage.write_bytes(f"{run}/failures/rank-\x1b[2J.txt", words)
    events = [{"kind": "start", "step": "\x1b[2J"}, {"kind": "train", "images_per_second": "x"}]
    for number, event in enumerate(events):
        storage.write_bytes(f"{run}/events/{number}.jsonl", json.dumps(event).encode())
        out = say(capsys)
        assert "\x1b" not in out
        assert "hunter22" not in out
        assert ("http://***@host" in out, "not an event log of this program" in out) == (number == 0, number == 1)


def test_dollars_of_a_runs_folder_are_read_as_the_pods_read_them() -> None:
    app = build("arcface_dist", nnodes="1", hardware="cpu", recipe="orl", name="cost$$x", output="s3://runs/$(A)")
    assert run_folder(yaml.safe_load(manifest(app))) == "s3://runs/$(A)/cost$$x"
