"""What is promised about photographs is shown by tests that exist, and the tutorial's frozen start trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from app.backbones.registry import build_backbone
from app.config.options import parse_arguments
from app.train import main as train
from tests.jobs import ROOT, SMALL, write_faces


def frozen_options() -> list[str]:
    """The options that the tutorial shows for a published model."""
    text = " ".join((ROOT / "docs" / "tutorial.md").read_text().split())
    (found,) = re.findall(r"`(--model\.init backbone\.pth [^`]+)`", text)
    return str(found).split()


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "photographs.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", page)
    assert len(rows) > 30
    assert all("`tests/" in row for row in rows)
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert not missing


def test_the_tutorials_frozen_start_is_what_it_says() -> None:
    recipe = parse_arguments(["--recipe", "orl", *frozen_options()])
    assert (recipe.model.init, recipe.model.backbone, recipe.model.embedding_size) == ("backbone.pth", "r50", 512)
    assert (recipe.model.freeze, recipe.model.freeze_epochs, recipe.optim.lr) == ("backbone", 2.0, 0.02)


@pytest.mark.parametrize(("epochs", "learned"), [("2", False), ("3", True)])
def test_the_tutorials_frozen_start_trains_the_centres_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: str, learned: bool
) -> None:
    """The very options, on a backbone and pictures that are small."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    published = build_backbone("r10_small", embedding_size=512, image_size=32)
    torch.save(published.state_dict(), "backbone.pth")
    write_faces("faces", classes=4, per_class=6)
    small = ["--model.backbone", "r10_small", "--output.onnx", "false", "--train.epochs", epochs]
    where = ["--data.url", "faces", "--output.url", "runs"]
    assert train([*SMALL, *where, *frozen_options(), *small]) == 0
    trained = torch.load("runs/orl/model.pt", weights_only=True)
    changed = [name for name, value in published.state_dict().items() if not torch.equal(trained[name], value)]
    assert bool(changed) is learned
