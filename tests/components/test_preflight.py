"""Preflight: every question with a good and a bad answer, over a real store and an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from app import storage
from components.preflight import main
from demo.object_store import ObjectStore
from tests.components.api_server import ApiServer
from tests.components.registry_server import serve_registry
from tests.faults.proxy import Proxy
from tests.jobs import ROOT, write_faces


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(tmp_path) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        # The client reads the variable when it is imported; earlier tests may have done so.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig))
        monkeypatch.chdir(ROOT)
        yield running


@pytest.fixture
def data(bucket_url: str) -> str:
    write_faces(bucket_url, classes=2, per_class=2)
    return bucket_url


def ask(data: str, *options: str) -> int:
    where = ["--recipe", "orl", "--hardware", "cpu", "--data", data, "--output", "s3://test/runs"]
    if "--image" not in options:
        where += ["--image", "127.0.0.1:9/arcface:1"]
    return main(["--", "--nnodes", "2", *where, *options])


@pytest.mark.usefixtures("server")
def test_a_good_job_passes_and_nothing_is_created(
    data: str, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(data) == 0
    out = capsys.readouterr().out
    assert out.count("ok      ") == 5, out
    assert "skipped image: 127.0.0.1:9/arcface:1: 127.0.0.1:9 cannot be reached from here" in out
    assert "1 x rdzv + 2 x trainer" in out
    assert server.jobs() == []


@pytest.mark.usefixtures("server")
def test_what_is_missing_is_named(data: str, server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    storage.delete_tree(storage.join(data, "train.idx"))
    del server.objects["/apis/scheduling.volcano.sh/v1beta1/queues/default"]
    assert ask(data) == 1
    out = capsys.readouterr().out
    assert "failed  dataset:" in out
    assert "train.idx cannot be read" in out
    assert "failed  cluster: queue 'default' does not exist" in out


@pytest.mark.usefixtures("server")
def test_an_image_that_was_never_pushed_is_told_before_any_pod_waits_for_it(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_registry() as registry:
        assert ask(data, "--image", f"{registry}/team/arcface:0.1.0") == 0
        assert f"ok      image: {registry}/team/arcface:0.1.0 is sha256:" in capsys.readouterr().out
        assert ask(data, "--image", f"{registry}/team/arcface:9") == 1
    assert "has no image team/arcface:9: push it" in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_arguments_are_refused_as_the_component_does(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(data, "--image", "x:latest") == 1
    assert "failed  arguments: image 'x:latest': a tag that moves" in capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_a_bucket_that_cannot_be_tried_from_here_is_skipped_not_passed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert ask("s3://faces/x") == 0
    assert "skipped dataset: no AWS_ACCESS_KEY_ID" in capsys.readouterr().out


def test_a_store_without_conditional_writes_is_found_before_there_is_a_job(
    data: str,
    server: ApiServer,
    object_store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Proxy(object_store.endpoint, lambda _, path: "501" if "write-check" in path else "") as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        assert ask(data) != 0
        assert "pass --checkpoint.commit single-writer" in capsys.readouterr().out
        assert ask(data, "--", "--checkpoint.commit", "single-writer") == 0
        between.decide = lambda method, _: "403" if method == "PUT" else ""
        assert ask(data) == 0
        assert "this shell's keys may not write there" in capsys.readouterr().out
    s3fs.S3FileSystem.clear_instance_cache()
    assert server.jobs() == []


REFUSALS = {
    'violates PodSecurity "restricted:latest": hostPath volumes': "take a hardware profile without -host",
    "exceeded quota: gpus, requested: cpu=2, used: cpu=8, limited: cpu=8": "wait until others have ended",
    "failed quota: disk: must specify limits.ephemeral-storage": "a quota counts what our pods leave out",
    "insufficient quota to match these scopes: [{PriorityClass In [high]}]": "the quota is for other priority classes",
    "minimum memory usage per Container is 8Gi, but request is 4096M": "ask for more with --cpu and --memMB",
    "maximum cpu usage per Container is 1, but limit is 2": "ask for less with --cpu and --memMB",
    "no PriorityClass with name arcface-train was found": "create it, or name another with -cfg priority_class=",
    'error looking up service account default/x: serviceaccount "x" not found': "create it, or name another",
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_pods_that_the_cluster_would_refuse_are_found_before_the_job_waits_for_them(
    data: str, server: ApiServer, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    server.pod_refusals["trainer"] = reason
    assert ask(data) == 1
    out = capsys.readouterr().out
    assert f"is forbidden: {reason}: {REFUSALS[reason]}" in out
    assert "failed  cluster: the cluster would refuse the pods of trainer:" in out
    assert server.jobs() == []


@pytest.mark.usefixtures("server")
def test_a_submitter_who_may_not_create_pods_is_not_stopped(data: str, server: ApiServer) -> None:
    message = 'pods is forbidden: User "x" cannot create resource "pods" in API group "" in the namespace "default"'
    server.failures["POST", "/pods"] = (403, message)
    assert ask(data) == 0


@pytest.mark.usefixtures("server")
def test_a_mistyped_app_option_and_a_folder_of_this_machine_are_found(
    data: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ask(data, "--", "--train.epohcs", "3") == 1
    assert "failed  arguments: unknown option --train.epohcs: did you mean '--train.epochs'?" in capsys.readouterr().out
    assert main(["--", "--recipe", "orl", "--hardware", "cpu", "--data", str(tmp_path), "--image", "a:1"]) == 1
    assert f"failed  cluster: --data.url {tmp_path}: no pod has this folder" in capsys.readouterr().out
    for option in ("--output", "--distill.teacher"):
        words = ["--", f"{option}=file:///tmp/a.pt"] if "." in option else [option, "file:///tmp/a.pt"]
        assert main(["--", "--recipe", "orl", "--hardware", "cpu", "--data", data, "--image", "a:1", *words]) == 1
        assert "file:///tmp/a.pt: no pod has this folder" in capsys.readouterr().out


def test_local_schedulers_are_not_asked_for_images(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--recipe", "orl", "--hardware", "cpu", "--data", data, "--output", "s3://test/runs"]
    assert main(["-s", "local_cwd", "--", "--image", "127.0.0.1:9/arcface:1", *where]) == 0
    assert "skipped image: local_cwd asks no registry" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)  # the app's plan is asked, in processes of its own
@pytest.mark.usefixtures("server")
def test_what_cannot_fit_is_refused_with_what_would(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = ["--", "--data.num-classes", "5000"]
    assert ask(data, *app) == 0
    assert "ok      memory: a host needs" in capsys.readouterr().out
    assert ask(data, "--memMB", "400", *app) == 1
    assert re.search("failed  memory: a host has 381 MiB and [0-9]+ MiB are needed: ", capsys.readouterr().out)
    assert ask(data) == 0
    assert "skipped memory: the recipe leaves the number of classes to the dataset" in capsys.readouterr().out


def test_every_dataset_of_several_is_looked_at(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = f"{data}-other"
    write_faces(other, classes=2, per_class=2)
    where = ["-s", "local_cwd", "--", "--recipe", "orl", "--hardware", "cpu", "--output", "s3://test/runs"]
    assert main([*where, "--data", f"{data}, {other}"]) == 0
    assert f"{data}, {other} are readable" in capsys.readouterr().out
    storage.delete_tree(storage.join(other, "train.idx"))
    assert main([*where, "--data", f"{data},{other}"]) == 1
    assert f"{other}/train.idx cannot be read" in capsys.readouterr().out
