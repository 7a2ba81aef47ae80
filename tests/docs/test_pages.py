"""Every command and program in the tutorial and on the Python page runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.registry import build_backbone
from app.config.recipe import Recipe
from app.run_folder import build_model, save_model
from tests.jobs import ROOT, environment, with_scripts, write_faces


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)


def run(language: str, text: str, folder: Path) -> str:
    command = ["bash", "-ec", text] if language == "bash" else ["python", "-c", text]
    done = subprocess.run(
        command,
        cwd=folder,
        env=with_scripts(environment()),
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tutorial_runs_from_the_first_command_to_the_last(tmp_path: Path) -> None:
    pages = blocks("tutorial.md")
    assert len(pages) >= 7
    outputs = []
    for language, text in pages:  # a quarter of the page's steps
        short = text.replace("--train.epochs 3 --optim.lr 0.02", "--train.epochs 1")
        outputs.append(run(language, short.replace("--train.epochs 15", "--train.epochs 3"), tmp_path))
    # Ten of each person, and target.jpg, which the package keeps in the folder s10.
    assert "401 images of 40 people" in outputs[1]
    assert "30 to train on; train/held-out.bin: 400 pairs" in outputs[2]
    assert "held-out" in outputs[5]
    same, other = map(float, re.findall(r"-?\d\.\d\d", outputs[-1]))
    assert -1 <= other <= 1
    assert same > other
    for name in ("sheet.png", "people.json"):
        assert (tmp_path / "faces" / name).exists()
    assert (tmp_path / "runs" / "second" / "verification" / "report.png").exists()


def test_the_python_page_runs(tmp_path: Path) -> None:
    recipe = Recipe(name="demo")
    model = build_model(recipe.model, recipe.data.image_size)
    save_model(str(tmp_path / "runs" / "demo"), model, recipe, 1)
    write_faces(str(tmp_path / "faces"), classes=3, per_class=2)
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(generator.integers(0, 255, (80, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    programs = [text for language, text in blocks("python.md") if language == "python"]
    assert len(programs) == 4
    output = run("python", "\n".join(programs), tmp_path)
    assert "(2, 512)" in output
    assert "torch.Size([2, 128])" in output


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_fine_tuning_guide_runs(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for person in range(10):
        (tmp_path / "people" / f"p{person}").mkdir(parents=True)
        face = generator.integers(0, 255, (7, 7, 3), dtype=np.uint8)
        for picture in range(5):
            image = Image.fromarray(face).resize((112, 112), Image.Resampling.BICUBIC)
            pixels = np.asarray(image, dtype=np.float32) + generator.normal(0, 20, (112, 112, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"people/p{person}/{picture}.png")
    torch.manual_seed(0)
    published = build_backbone("mbf", embedding_size=512)
    torch.save(published.state_dict(), tmp_path / "backbone.pth")
    pages = blocks("fine-tuning.md")
    assert [language for language, _ in pages] == ["bash"] * 4
    for language, text in pages:
        run(language, text, tmp_path)
    frozen, tuned = (
        torch.load(tmp_path / "runs" / name / "model.pt", weights_only=True) for name in ("frozen", "tuned")
    )
    before = published.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in before.items())
    learned = [name for name, value in before.items() if not torch.equal(tuned[name], value)]
    assert any("running_mean" in name for name in learned)
    for name in ("before", "after"):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert report["sets"]


@pytest.mark.parametrize("page", ["moving-in.md", "durability.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", (ROOT / "docs" / page).read_text())
    assert len(named) > 30
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert not missing
