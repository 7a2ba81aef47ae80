"""A run leaves what its figures came from."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from app import __version__
from app.device import detect_device
from app.observe.events import read_events
from app.train import main
from app.training import provenance
from app.world import join_world
from tests.jobs import ROOT, SMALL, write_faces


def test_summary_names_recipe_data_code_and_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_faces(str(tmp_path / "faces"), classes=3, per_class=4)
    where = ["--data.url", str(tmp_path / "faces"), "--output.url", str(tmp_path), "--output.onnx", "false"]
    monkeypatch.setenv("TORCHX_JOB_ID", "kubernetes://torchx/faces:mine-abc")
    monkeypatch.setenv("TORCHX_TRACKER_ARCFACE_CONFIG", str(tmp_path / "tracker"))
    assert main([*SMALL, *where, "--train.epochs", "1", "--name", "mine"]) == 0
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "tracker").iterdir())
    assert record["run_id"] == "kubernetes://torchx/faces:mine-abc"
    assert (record["metadata"]["name"], record["metadata"]["recipe"]) == ("mine", "orl")
    assert record["metadata"]["run_url"] == str(tmp_path / "mine")
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert (summary["classes"], summary["steps"], summary["global_batch"]) == (3, 2, 6)
    assert summary["dataset"] == str(tmp_path / "faces")
    assert summary["app_version"] == __version__
    assert (summary["python_version"], summary["torch_version"]) == (platform.python_version(), torch.__version__)
    assert summary["seconds"] > 0
    (start,) = [event for event in read_events(str(tmp_path / "mine")) if event["kind"] == "start"]
    assert summary["commit"] == start["commit"] == provenance.running_commit()
    text = (tmp_path / "mine" / "summary.md").read_text()
    for part in (
        "| mine |",
        "Recipe: orl",
        "3 classes",
        str(tmp_path / "faces"),
        f"arcface-torchx {__version__}",
        "Hardware: 1 x cpu",
    ):
        assert part in text
    assert text in capsys.readouterr().out


def test_the_commit_is_that_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit() -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], cwd=tmp_path, check=True)
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout[:12]

    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    provenance.running_commit.cache_clear()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "app" / "training" / "provenance.py"))
    started = commit()
    assert provenance.running_commit() == started
    assert commit() != started
    with join_world(detect_device(), timeout=60) as world:
        assert provenance.describe_origin(world)["commit"] == started
    provenance.running_commit.cache_clear()


@pytest.mark.parametrize(("built_from", "commit"), [("0123abc", "0123abc"), ("unknown", ""), ("", "")])
def test_an_image_tells_the_commit_that_it_was_built_from(
    built_from: str, commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance.running_commit.cache_clear()
    monkeypatch.setenv("ARCFACE_COMMIT", built_from)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "app" / "training" / "provenance.py"))
    with join_world(detect_device(), timeout=60) as world:
        assert provenance.describe_origin(world)["commit"] == commit
    provenance.running_commit.cache_clear()
    assert "ARCFACE_COMMIT=${REVISION}" in (ROOT / "docker" / "Dockerfile").read_text()
