"""The tracker: what the app writes, TorchX reads, over S3."""

from __future__ import annotations

from pathlib import Path

import pytest
from torchx import plugins

from app.observe.tracking import track_run
from tests import jobs
from tests.components.api_server import ApiServer
from torchx_plugins.tracker.arcface import ObjectStoreTracker, create

JOB = "kubernetes://torchx/faces:glint360k-abc"


def test_the_apps_record_is_torchx_metadata(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHX_JOB_ID", JOB)
    monkeypatch.setenv("TORCHX_TRACKER_ARCFACE_CONFIG", bucket_url)
    track_run({"recipe": "glint360k_r100", "fps": 1.5}, {"model": "s3://runs/model.pt"})
    tracker = ObjectStoreTracker(bucket_url)
    assert tracker.metadata(JOB) == {"recipe": "glint360k_r100", "fps": 1.5}
    assert tracker.artifacts(JOB)["model"].path == "s3://runs/model.pt"
    tracker.add_metadata(JOB, note="kept")
    tracker.add_source(JOB, "parent", "checkpoint")
    assert tracker.metadata(JOB)["note"] == "kept"
    assert [s.source_run_id for s in tracker.sources(JOB)] == ["parent"]
    assert list(tracker.run_ids()) == [JOB]
    assert list(tracker.run_ids(recipe="other")) == []
    assert list(tracker.run_ids(parent_run_id=None)) == [JOB]  # as `torchx tracker list jobs` asks
    assert list(tracker.run_ids(parent_run_id="parent")) == [JOB]
    assert list(tracker.run_ids(parent_run_id="other")) == []


@pytest.mark.slow
def test_the_documented_configuration_lists_jobs_under_the_handle_that_run_prints(
    bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (jobs.ROOT / "docs" / "kubernetes.md").read_text()
    sections = text[text.index("[torchx:tracker]") :].partition("```")[0]
    (tmp_path / ".torchxconfig").write_text(sections.replace("s3://our-runs/.tracker", f"{bucket_url}/.tracker"))
    with ApiServer(tmp_path) as server:
        variables = {"HOME": str(tmp_path), "KUBECONFIG": str(server.kubeconfig)}
        where = ["--nnodes", "1", "--recipe", "orl", "--hardware", "cpu", "--image", "a:1"]
        done = jobs.torchx("run", "-s", "kubernetes", "components.py:arcface_dist", *where, variables=variables)
        assert done.returncode == 0, done.stderr
        handle = done.stdout.strip().splitlines()[-1]
        (job,) = server.jobs()
    container = job["spec"]["tasks"][1]["template"]["spec"]["containers"][0]
    env = {item["name"]: item.get("value") for item in container["env"]}
    for name in ("TORCHX_JOB_ID", "TORCHX_TRACKER_ARCFACE_CONFIG"):
        monkeypatch.setenv(name, env[name])
    track_run({"fps": 1.5}, {})
    listed = jobs.torchx("tracker", "list", "jobs", variables=variables)
    assert handle in listed.stdout, listed.stderr
    told = jobs.torchx("tracker", "list", "metadata", handle, variables=variables)
    assert "fps" in told.stdout


def test_without_a_tracker_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHX_TRACKER_ARCFACE_CONFIG", raising=False)
    track_run({}, {})


def test_torchx_finds_it_and_a_missing_url_is_told() -> None:
    assert "arcface" in plugins.registry().get(plugins.PluginType.TRACKER)
    with pytest.raises(ValueError, match="needs a URL"):
        create(None)
