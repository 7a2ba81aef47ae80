"""Preflight: every question with a good and a bad answer, over a real store and an API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app import storage
from components.preflight import main
from tests.components.api_server import ApiServer
from tests.components.registry_server import serve_registry
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
    assert out.count("ok      ") == 4, out
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
