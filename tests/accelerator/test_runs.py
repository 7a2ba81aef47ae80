"""Whole processes on an accelerator: training from records, stopped and gone on with, verified, exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.device import detect_device
from tests.jobs import ROOT, environment, losses, train, weights, write_faces

pytestmark = pytest.mark.skipif(detect_device().kind == "cpu", reason="needs an accelerator")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("faces"))
    write_faces(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_run_learns(data: str, tmp_path: Path, precision: str) -> None:
    train(1, data, str(tmp_path), "--train.precision", precision, "--train.last-step", "40")
    found = losses(str(tmp_path))
    assert len(found) == 40
    assert sum(found[step] for step in range(36, 41)) < 0.95 * sum(found[step] for step in range(1, 6))


def test_a_reproducible_run_that_was_stopped_gives_the_bits_of_one_that_was_not(data: str, tmp_path: Path) -> None:
    options = ["--train.reproducible", "true", "--train.precision", "fp16"]
    train(1, data, str(tmp_path / "whole"), *options, "--train.last-step", "12")
    for last in ("6", "12"):
        train(1, data, str(tmp_path / "parts"), *options, "--train.last-step", last)
    assert losses(str(tmp_path / "parts")) == losses(str(tmp_path / "whole"))
    whole, parts = weights(str(tmp_path / "whole")), weights(str(tmp_path / "parts"))
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_model_trained_on_it_is_exported(data: str, tmp_path: Path) -> None:
    train(1, data, str(tmp_path), "--train.last-step", "3")
    command = [sys.executable, "-m", "app.export", "--model", f"{tmp_path}/orl", "--output", f"{tmp_path}/model.onnx"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.onnx").stat().st_size > 10_000
