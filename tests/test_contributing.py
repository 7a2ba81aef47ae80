"""CONTRIBUTING.md, "What to touch", done word for word on a copy of the repository: the result trains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs import environment

ROOT = Path(__file__).resolve().parent.parent
_STEP = re.compile(
    r"^\*\*`(?P<path>[^`]+)`\*\*, (?P<how>new|before|after|instead of)(?: `(?P<anchor>[^`]+)`)?:\n\n"
    r"```\w+\n(?P<text>.*?)```$",
    re.MULTILINE | re.DOTALL,
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contributing") / "repository"
    folder.mkdir()
    for name in ("app", "components", "torchx_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "components.py", folder)
    steps = [*_STEP.finditer((ROOT / "CONTRIBUTING.md").read_text())]
    assert len(steps) == 10
    for step in steps:
        follow(folder / step["path"], step["how"], step["anchor"], step["text"])
    return folder


def follow(path: Path, how: str, anchor: str | None, text: str) -> None:
    """Do one step of the page."""
    if how == "new":
        assert not path.exists()
        path.write_text(text)
        return
    before = path.read_text()
    assert anchor is not None
    assert before.count(anchor) == 1, f"{anchor!r} in {path}"
    if how == "after":
        text = anchor + "\n" + text.rstrip("\n")
    elif how == "before":
        text = text + anchor
    else:
        text = text.rstrip("\n")
    path.write_text(before.replace(anchor, text))


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**environment(), "PYTHONPATH": str(folder), "ARCFACE_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backbone_a_margin_and_a_source_train_together(copy: Path, tmp_path: Path) -> None:
    options = ["--model.backbone", "toy", "--head.margin", "toy", "--data.url", "stripes:4", "--verify.sets", ","]
    small = ["--data.image-size", "32", "--model.embedding-size", "16", "--train.batch-size", "8"]
    short = ["--train.epochs", "2", "--output.tensorboard", "false", "--output.onnx", "false"]
    run(copy, "-m", "app.train", "--name", "toy", *options, *small, *short, "--output.url", str(tmp_path))
    assert json.loads((tmp_path / "toy" / "model.json").read_text())["backbone"] == "toy"
    assert json.loads((tmp_path / "toy" / "summary.json").read_text())["steps"] == 24


def test_help_knows_the_new_margin(copy: Path) -> None:
    assert "toy | combined" in " ".join(run(copy, "-m", "app.train", "--help", "head").split())


def test_a_hardware_profile(copy: Path) -> None:
    program = (
        "from components.hardware import load_profile; p = load_profile('toy'); print(p.devices, p.cpu, p.memory_mb)"
    )
    assert run(copy, "-c", program).split() == ["2", "3", "5120"]
