"""The real TorchX CLI and kubernetes client against an API server over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import jobs
from tests.components.api_server import ApiServer

pytestmark = pytest.mark.slow  # a TorchX process or two each

DIST = ["-s", "kubernetes", "components.py:arcface_dist"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        yield running


def torchx(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return jobs.torchx(
        *arguments, variables={"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.kubeconfig.parent)}
    )


def submit(server: ApiServer, *options: str) -> str:
    done = torchx(server, "run", *DIST, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_short_command_submits_a_job_that_the_server_takes(server: ApiServer) -> None:
    handle = submit(server, "--nnodes", "4")
    assert handle.startswith("kubernetes://torchx/default:glint360k-r100-")
    (job,) = server.jobs()
    assert [task["name"] for task in job["spec"]["tasks"]] == ["rdzv-0", *(f"trainer-{n}" for n in range(4))]
    assert job["spec"]["minAvailable"] == 5


def test_an_elastic_job_waits_for_its_least_number_only(server: ApiServer) -> None:
    submit(server, "--nnodes", "2:4", "--preemptible", "True")
    (job,) = server.jobs()
    assert job["spec"]["minAvailable"] == 3
    assert [task.get("minAvailable") for task in job["spec"]["tasks"]] == [None, 0, 0, 0, 0]
    assert job["spec"]["maxRetry"] == 1000
    trainer = job["spec"]["tasks"][1]["template"]
    assert trainer["metadata"]["annotations"]["volcano.sh/preemptable"] == "true"
    assert job["spec"]["tasks"][0]["template"]["metadata"]["annotations"]["volcano.sh/preemptable"] == "false"
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    assert address in trainer["spec"]["containers"][0]["env"]
    command = trainer["spec"]["containers"][0]["command"]
    assert command[command.index("--train.max-processes") + 1] == "32"


def test_a_file_that_torchxconfig_names_is_read_alone_and_a_changed_copy_of_ours_does(
    server: ApiServer, tmp_path: Path
) -> None:
    text = (jobs.ROOT / ".torchxconfig").read_text()
    (tmp_path / "copy").write_text(text.replace("queue = default", "queue = fast"))
    server.put("/apis/scheduling.volcano.sh/v1beta1/queues/fast", {"status": {"state": "Open"}})
    variables = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(tmp_path)}
    command = ["run", *DIST, "--nnodes", "1"]
    done = jobs.torchx(*command, variables={**variables, "TORCHXCONFIG": str(tmp_path / "copy")})
    assert done.returncode == 0, done.stderr
    (job,) = server.jobs()
    assert job["spec"]["queue"] == "fast"
    for task in job["spec"]["tasks"]:
        resources = task["template"]["spec"]["containers"][0]["resources"]
        assert all(resources["limits"][name] == value for name, value in resources["requests"].items())
    (tmp_path / "alone").write_text("[cli:run]\nworkspace =\n")
    done = jobs.torchx(*command, variables={**variables, "TORCHXCONFIG": str(tmp_path / "alone")})
    assert plain_lines(done)[-1].startswith("error: no image: pass --image")  # ours was not read beside it


def test_a_dry_run_asks_the_server_and_creates_nothing(server: ApiServer) -> None:
    done = torchx(server, "run", "--dryrun", *DIST, "--nnodes", "4")
    assert done.returncode == 0, done.stderr
    assert "kind: Job" in done.stdout
    assert server.jobs() == []
    assert any(method == "POST" and "dryRun=All" in path for method, path in server.requests)


def test_status_log_list_cancel_and_delete_work_with_our_jobs(server: ApiServer) -> None:
    handle = submit(server, "--nnodes", "1")
    (job,) = server.jobs()
    name = job["metadata"]["name"]
    job["status"] = {
        "state": {"phase": "Running"},
        "taskStatusCount": {"rdzv-0": {"phase": {"Running": 1}}, "trainer-0": {"phase": {"Running": 1}}},
    }
    pod = f"{name}-trainer-0-0"
    spec = {"containers": [{"name": "trainer-0"}]}
    server.put(f"/api/v1/namespaces/default/pods/{pod}", {"metadata": {"name": pod}, "spec": spec, "status": {}})
    server.logs[pod] = "2026-01-01T00:00:00Z ███ 10% 100 img/s\n"
    status = torchx(server, "status", handle)
    assert "RUNNING" in status.stdout
    assert "trainer" in status.stdout
    assert "100 img/s" in torchx(server, "log", f"{handle}/trainer/0").stdout
    listed = torchx(server, "list", "-s", "kubernetes")
    assert name in listed.stdout
    assert torchx(server, "cancel", handle).returncode == 0
    assert server.jobs()[0]["status"]["state"]["phase"] == "Aborted"
    assert torchx(server, "delete", handle).returncode == 0
    assert server.jobs() == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((401, "Unauthorized"), "it does not know you: your kubeconfig's credentials have run out"),
        ((403, 'jobs is forbidden: User "x" cannot create'), "you may not do this in namespace 'default': jobs is"),
        ((404, "the server could not find the requested resource"), "is Volcano installed?"),
        ((409, "jobs already exists"), "there is such a job already"),
        ((422, "spec.tasks[0].template: Invalid value"), "it refuses the job: spec.tasks[0].template: Invalid value"),
        ((500, "etcdserver: leader changed"), "it failed with 500 Internal Server Error: etcdserver: leader changed"),
    ],
)
def test_what_the_api_server_refuses_is_said_in_words(
    server: ApiServer, failure: tuple[int, str], message: str
) -> None:
    server.failures["POST", "/jobs"] = failure
    done = torchx(server, "run", *DIST, "--nnodes", "4")
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert server.jobs() == []


def test_an_unreachable_server_is_told(server: ApiServer) -> None:
    text = server.kubeconfig.read_text().replace(server.url, "http://127.0.0.1:9")
    server.kubeconfig.write_text(text)
    done = torchx(server, "run", *DIST, "--nnodes", "4")
    assert done.returncode != 0
    assert "the API server http://127.0.0.1:9 does not answer" in done.stderr + done.stdout


def plain_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What is said but for TorchX's own log lines; no traceback is among it."""
    assert "Traceback" not in done.stderr + done.stdout
    return [line for line in done.stderr.splitlines() if line.strip() and not re.match(r"\S*torchx\S* ", line)]


@pytest.mark.parametrize("command", ["list", "status", "describe", "cancel", "delete", "log"])
def test_a_dead_server_is_one_plain_line(server: ApiServer, command: str) -> None:
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace(server.url, "http://127.0.0.1:9"))
    handle = "kubernetes://torchx/default:x" + ("/trainer/0" if command == "log" else "")
    done = torchx(server, command, *(("-s", "kubernetes") if command == "list" else (handle,)))
    assert done.returncode == 1
    assert plain_lines(done)[-1].startswith("error: the API server http://127.0.0.1:9 does not answer:")
    assert len(plain_lines(done)) == 1


@pytest.mark.parametrize("command", ["status", "describe", "cancel", "delete", "log", "log one replica"])
def test_what_is_not_there_is_told(server: ApiServer, command: str) -> None:
    replica = "/trainer/0" if command == "log one replica" else ""
    done = torchx(server, command.split(maxsplit=1)[0], f"kubernetes://torchx/default:gone{replica}")
    assert done.returncode == 1
    (line,) = plain_lines(done)
    assert line.startswith("error: there is no job 'gone' in namespace 'default'")


@pytest.mark.parametrize("level", [["--log_level", "INFO"], ["--log_level=INFO"]])
def test_an_option_in_front_of_the_subcommand_changes_no_answer(server: ApiServer, level: list[str]) -> None:
    done = torchx(server, *level, "cancel", "kubernetes://torchx/default:gone")
    assert done.returncode == 1
    assert "error: there is no job 'gone'" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("current-context: test", "current-context: nope"), "Expected object with name nope in "),
        (("apiVersion: v1", "apiVersion: [v1"), "ParserError: while parsing a flow sequence"),
        (("clusters:", "clusters: 3\nothers:"), "TypeError: "),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_one_line_with_its_reason(
    server: ApiServer, change: tuple[str, str], message: str
) -> None:
    server.kubeconfig.write_text(server.kubeconfig.read_text().replace(*change))
    done = torchx(server, "list", "-s", "kubernetes")
    assert done.returncode == 1
    (line,) = plain_lines(done)
    assert line.startswith("error: no Kubernetes cluster is configured: set KUBECONFIG or ~/.kube/config (")
    assert message in line


def test_a_configuration_of_arcface_torch_runs_on_data_that_the_pods_have(server: ApiServer, tmp_path: Path) -> None:
    ours = tmp_path / "ours.py"
    ours.write_text("from easydict import EasyDict as edict\nconfig = edict()\nconfig.rec = '/train_tmp/ms1m'\n")
    options = ["--nnodes", "1", "--recipe", str(ours), "--data", "s3://faces/ms1m"]
    done = torchx(server, "run", *DIST, *options)
    assert done.returncode == 0, done.stderr
    assert "note: --data s3://faces/ms1m takes the place of the recipe's own, /train_tmp/ms1m" in done.stderr
    command = server.jobs()[0]["spec"]["tasks"][1]["template"]["spec"]["containers"][0]["command"]
    assert "/train_tmp" not in " ".join(command)
    assert "no pod has this folder" in torchx(server, "run", *DIST, *options[:-1], "").stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", *DIST, "--nnodes", "four"], 1, "--nnodes must be N or MIN:MAX, as in 4 or 2:4; got 'four'"),
        (["run", *DIST, "--bogus", "1"], 2, "unrecognized arguments: --bogus; --help lists"),
        (["run", *DIST, "--memMB", "4 000"], 2, "argument --memMB: invalid int value: '4 000'"),
        (["run", *DIST, "--output", ""], 1, "no --output: a pod's own folder goes with the pod"),
        (["run", *DIST, "--env", "A=x=1"], 1, "--env and -cfg take KEY=VALUE,KEY=VALUE, in quotes where"),
        (["run", *DIST, "--", "--name", "x"], 1, "--name behind the -- would contradict the component"),
        (["run", "-cfg", "queu=x", *DIST], 1, "Unknown run option `queu`. Valid options are:"),
        (["run", "-s", "nowhere", *DIST[2:]], 2, "argument -s/--scheduler: invalid choice: 'nowhere'"),
        (["status", "default:gone"], 1, "default:gone is not of the form"),
        (["tracker", "list", "jobs"], 1, "no tracker is configured: see [torchx:tracker]"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
    ],
)
def test_what_is_refused_is_one_plain_line(server: ApiServer, words: list[str], code: int, message: str) -> None:
    done = torchx(server, *words)
    assert done.returncode == code
    (line,) = plain_lines(done)
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["preflight", "--bogus"], 2, "error: unrecognized arguments: --bogus"),
        (["preflight", "--", "--bogus"], 2, "error: unrecognized arguments: --bogus"),
        (["preflight", "-s", "nowhere", "--", "--recipe", "orl"], 1, "failed  cluster: Scheduler backend: nowhere"),
        (["pipeline", "--nnodes", "x"], 1, "error: --nnodes must be N or MIN:MAX"),
        (["pipeline", "-cfg", "queu=x"], 1, "error: Unknown run option `queu`"),
        (["status", "gone"], 1, "error: gone is not of the form"),
        (["status"], 2, "error: the following arguments are required: handle"),
    ],
)
def test_our_own_commands_refuse_in_one_line_too(words: list[str], code: int, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"components.{words[0]}", *words[1:]],
        env=jobs.environment(),
        cwd=jobs.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code
    assert len(plain_lines(done)) <= 1
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(message)]


def test_odd_values_of_the_environment_reach_the_pods_as_they_are(server: ApiServer) -> None:
    odd = 'A="x=1, y",B=two\nlines,C=it\'s ü,D="",E=a"b'
    submit(server, "--nnodes", "1", "--env", odd)
    container = server.jobs()[0]["spec"]["tasks"][1]["template"]["spec"]["containers"][0]
    found = {item["name"]: item.get("value") for item in container["env"]}
    assert [found[name] for name in "ABCDE"] == ["x=1, y", "two\nlines", "it's ü", "", 'a"b']


def test_a_dry_run_without_a_cluster_prints_the_manifest(server: ApiServer) -> None:
    server.kubeconfig.unlink()
    done = torchx(server, "run", "--dryrun", *DIST, "--nnodes", "4")
    assert done.returncode == 0, done.stderr
    assert "kind: Job" in done.stdout
    assert "warning: nobody looked at the job: no Kubernetes cluster is configured" in done.stderr


def test_no_kubeconfig_is_told(server: ApiServer) -> None:
    server.kubeconfig.unlink()
    done = torchx(server, "run", *DIST, "--nnodes", "4")
    assert done.returncode != 0
    assert "no Kubernetes cluster is configured: set KUBECONFIG" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("/api/v1/namespaces/default", "namespace 'default' does not exist"),
        ("/apis/scheduling.volcano.sh/v1beta1/queues/default", "queue 'default' does not exist, or Volcano is not"),
        (
            "/api/v1/namespaces/default/secrets/arcface-s3",
            "Secret 'arcface-s3' does not exist in namespace 'default': kubectl -n default create secret generic "
            "arcface-s3 --from-literal=AWS_ENDPOINT_URL=",
        ),
    ],
)
def test_what_is_missing_in_the_cluster_shows_before_submission(server: ApiServer, missing: str, message: str) -> None:
    del server.objects[missing]
    done = torchx(server, "run", *DIST, "--nnodes", "4")
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert not any(method == "POST" for method, _ in server.requests)


def test_a_closed_queue_is_told(server: ApiServer) -> None:
    server.put("/apis/scheduling.volcano.sh/v1beta1/queues/default", {"status": {"state": "Closed"}})
    done = torchx(server, "run", *DIST, "--nnodes", "4")
    assert "queue 'default' is closed" in done.stderr + done.stdout


def test_a_submitter_who_may_not_look_may_still_submit(server: ApiServer) -> None:
    for part in ("/queues/", "/secrets/", "/namespaces/default?"):
        server.failures["GET", part] = (403, "forbidden")
    submit(server, "--nnodes", "4")
    assert len(server.jobs()) == 1


def test_no_secret_value_is_in_a_manifest(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "my-very-secret-key")
    submit(server, "--nnodes", "2")
    assert "my-very-secret-key" not in str(server.jobs())
    container: dict[str, Any] = server.jobs()[0]["spec"]["tasks"][1]["template"]["spec"]["containers"][0]
    assert container["envFrom"][:2] == [
        {"secretRef": {"name": "arcface-s3"}},
        {"secretRef": {"name": "arcface-s3-rdzv", "optional": True}},
    ]


def sources(server: ApiServer) -> list[list[str]]:
    """Secrets without which each pod of the only job cannot start, besides that of the store."""
    (job,) = server.jobs()
    containers = [task["template"]["spec"]["containers"][0] for task in job["spec"]["tasks"]]
    asked = [[source["secretRef"] for source in container["envFrom"]] for container in containers]
    return [[s["name"] for s in found if not s.get("optional") and s["name"] != "arcface-s3"] for found in asked]


def test_each_job_has_a_key_for_its_rendezvous_that_nobody_sees(server: ApiServer) -> None:
    name = submit(server, "--nnodes", "2").rpartition(":")[2]
    assert sources(server) == 3 * [[f"{name}-rdzv"]]
    key = server.objects[f"/api/v1/namespaces/default/secrets/{name}-rdzv"]
    (owner,) = key["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", name, server.jobs()[0]["metadata"]["uid"])
    token = key["stringData"]["ARCFACE_RDZV_TOKEN"]
    assert len(token) == 64
    assert token not in str(server.jobs())
    posts = [path for method, path in server.requests if method == "POST"]
    # Asked first, made last: the job's identifier must be known, and its pods wait.
    assert [path.partition("?")[0].rpartition("/")[2] for path in posts if "dryRun" not in path] == ["jobs", "secrets"]


def test_who_may_not_make_secrets_submits_with_a_warning(server: ApiServer) -> None:
    server.failures["POST", "/secrets"] = (403, "secrets is forbidden")
    done = torchx(server, "run", *DIST, "--nnodes", "2")
    assert done.returncode == 0
    assert "has no key of its own: you may not create Secrets in namespace 'default'" in done.stderr
    assert sources(server) == 3 * [[]]


def test_a_job_whose_key_cannot_be_made_does_not_stay(server: ApiServer) -> None:
    server.failures["POST", "/secrets"] = (500, "etcdserver: no space")
    done = torchx(server, "run", *DIST, "--nnodes", "2")
    assert done.returncode == 1
    assert "it failed with 500 Internal Server Error: etcdserver: no space" in plain_lines(done)[-1]
    assert server.jobs() == []
    # The question is answered, the making fails.
    del server.failures["POST", "/secrets"]
    server.refuse_secrets = (500, "etcdserver: no space")
    done = torchx(server, "run", *DIST, "--nnodes", "2")
    assert done.returncode == 1
    assert server.jobs() == []


def test_a_job_without_rendezvous_needs_no_key(server: ApiServer) -> None:
    where = ["--model", "s3://runs/a", "--sets", "s3://faces/a"]
    assert torchx(server, "run", "-s", "kubernetes", "components.py:arcface_verify", *where).returncode == 0
    assert not any(path.endswith("-rdzv") for path in server.objects)
