"""The tracker: what the app writes, TorchX reads, over S3."""

from __future__ import annotations

import pytest
from torchx import plugins

from app.observe.tracking import track_run
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


def test_without_a_tracker_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHX_TRACKER_ARCFACE_CONFIG", raising=False)
    track_run({}, {})


def test_torchx_finds_it_and_a_missing_url_is_told() -> None:
    assert "arcface" in plugins.registry().get(plugins.PluginType.TRACKER)
    with pytest.raises(ValueError, match="needs a URL"):
        create(None)
