"""The command-line parameters of the trainers that people come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.options import load_recipe, parse_arguments, parse_recipe, to_toml
from app.train import main
from tests.jobs import SMALL, write_faces


@pytest.fixture
def data(tmp_path: Path) -> str:
    write_faces(str(tmp_path / "faces"), classes=4, per_class=12)
    return str(tmp_path / "faces")


def run(data: str, output: Path, *options: str) -> None:
    assert main([*SMALL, "--data.url", data, "--output.url", str(output), "--train.epochs", "2", *options]) == 0


def test_perf_steps_measures_and_writes_no_model(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, tmp_path, "--perf_steps", "3", "--local_rank", "0")
    assert "img/s, median over 3 steps" in capsys.readouterr().out
    assert not (tmp_path / "orl" / "model.pt").exists()


def test_start_and_stop_step_bound_the_run(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, tmp_path, "--start_step", "5", "--stop_step", "7")
    assert "step 7" in capsys.readouterr().out
    assert json.loads((tmp_path / "orl" / "summary.json").read_text())["steps"] == 7


def test_profiling_writes_a_trace_that_is_json_with_events(data: str, tmp_path: Path) -> None:
    run(data, tmp_path, "--profiling")
    (trace,) = (tmp_path / "orl" / "profile").glob("*.pt.trace.json")
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::convolution" in names


def test_a_recipe_survives_being_printed() -> None:
    recipe = parse_arguments(["--recipe", "orl", "--train.batch-size", "9", "--verify.sets", "a,b"])
    assert parse_recipe(to_toml(recipe), "orl", "printed") == recipe
    assert recipe.train.batch_size == 9
    assert recipe.verify.sets == ("a", "b")
    assert load_recipe("orl").train.batch_size == 25


def test_print_config_and_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "orl", "--print-config"]) == 0
    assert 'backbone = "r10_small"' in capsys.readouterr().out
    assert main(["--list-recipes"]) == 0
    assert "orl" in capsys.readouterr().out.split()
