"""The command-line parameters of the trainers that people come from."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from app.config.options import load_recipe, parse_arguments, parse_recipe, recipe_names, to_toml
from app.config.recipe import RecipeError, TrainConfig
from app.run_folder import build_model
from app.train import main
from app.training.profile_window import profile_window
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


def test_first_and_last_step_bound_the_run(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(data, tmp_path, "--train.first-step", "5", "--train.last-step", "7")
    assert "step 7" in capsys.readouterr().out
    assert json.loads((tmp_path / "orl" / "summary.json").read_text())["steps"] == 7


def test_the_ascend_ports_performance_line_runs_all_its_steps(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There --start_step and --stop_step are the profiler's window, and its script passes them with --perf_steps."""
    run(data, tmp_path, "--perf_steps", "6", "--profiling", "--start_step", "2", "--stop_step", "4")
    out = capsys.readouterr().out
    assert "img/s, median over 6 steps" in out
    assert "profiling steps 2 to 4" in out
    (trace,) = (tmp_path / "orl" / "profile").glob("*.pt.trace.json")
    steps = {str(event.get("name")) for event in json.loads(trace.read_text())["traceEvents"]}
    assert {name for name in steps if name.startswith("ProfilerStep#")} == {"ProfilerStep#2", "ProfilerStep#3"}


@pytest.mark.parametrize(
    ("step", "last", "expected"),
    [
        (0, 200, (90, 10)),
        (50, 200, (40, 10)),
        (95, 200, (0, 10)),
        (150, 200, (0, 10)),
        (0, 8, (0, 8)),
        (0, 50, (40, 10)),
    ],
)
def test_the_profilers_window_moves_into_the_run(step: int, last: int, expected: tuple[int, int]) -> None:
    assert profile_window(TrainConfig(), step, last) == expected


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


@pytest.mark.parametrize("name", [".", "..", "a/../b", "a/./b", "a//b", "/a", "a/", " ", "a ", "a\nb", "a\x00"])
def test_a_run_has_a_name_that_is_one_folder_below_the_output(name: str) -> None:
    with pytest.raises(RecipeError, match=r"a run cannot be called .*: --name is a folder below output\.url"):
        parse_arguments(["--recipe", "orl", "--name", name])


@pytest.mark.parametrize("name", ["r50[lr=0.1]", "what?", "a b", "a/b", "é", "%2e%2e", "a::b", "..a"])
def test_odd_names_are_names(name: str) -> None:
    assert parse_arguments(["--recipe", "orl", "--name", name]).name == name


def test_a_list_that_is_given_twice_is_said_and_other_options_are_overridden() -> None:
    with pytest.warns(UserWarning, match=r"--data\.url is given 2 times, and the last counts: .* by commas") as said:
        recipe = parse_arguments(["--data.url", "a", "--train.seed", "1", "--train.seed", "2", "--data.url=b"])
    assert (len(said), recipe.data.url, recipe.train.seed) == (1, "b", 2)
    with pytest.warns(UserWarning, match=r"--data\.weights is given 2 times"):
        parse_arguments(["--data.url", "a,b", "--data.weights", "1", "--data.weights", "2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_arguments(["--data.url", "a", "--data.url", "a"])


def test_print_config_and_list_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recipe", "orl", "--print-config"]) == 0
    assert 'backbone = "r10_small"' in capsys.readouterr().out
    assert main(["--list-recipes"]) == 0
    assert "orl" in capsys.readouterr().out.split()


def test_the_published_speed_recipe_runs_on_synthetic_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model.backbone", "r10_small", "--train.batch-size", "4", "--data.num-classes", "3000"]
    output = ["--output.url", str(tmp_path), "--output.tensorboard", "false"]
    assert main(["--recipe", "3millions", *small, *output, "--perf_steps", "2", "--train.precision", "bf16"]) == 0
    assert "img/s, median over 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize("name", recipe_names())
def test_every_published_recipe_is_valid_and_names_a_backbone_that_exists(name: str) -> None:
    recipe = parse_arguments(["--recipe", name])
    with torch.device("meta"):
        build_model(recipe.model, recipe.data.image_size)
    assert recipe.train.seed == 2048


def test_recipes_carry_the_published_values() -> None:
    npu = load_recipe("glint360k_r100_32gpus")
    assert (npu.model.backbone, npu.head.m3, npu.optim.lr, npu.optim.power) == ("r100", 0.4, 0.4, 2.0)
    assert (npu.data.num_classes, npu.data.num_images, npu.train.epochs) == (360232, 17091657, 20)
    vit = load_recipe("wf42m_pfc03_40epoch_8gpu_vit_b")
    assert (vit.optim.name, vit.head.sample_rate, vit.train.gradient_accumulation) == ("adamw", 0.3, 12)
    assert load_recipe("wf12m_conflict_r50_pfc03_filter04").head.interclass_filtering == 0.4
    assert load_recipe("wf42m_pfc0008_32gpu_r100").head.sample_rate == 0


def test_adafaces_recipe_has_adafaces_backbone() -> None:
    """arXiv:2204.00964 and its published command line: ir_101, 26 epochs, falls at 12, 20 and 24, m 0.4, h 0.333."""
    recipe = load_recipe("adaface_ms1mv2_r100")
    assert (recipe.model.backbone, recipe.model.embedding_size) == ("ir_101", 512)
    assert (recipe.train.epochs, recipe.optim.milestones, recipe.optim.lr) == (26, ("12", "20", "24"), 0.1)
    assert (recipe.head.margin, recipe.head.m3, recipe.head.adaface_h) == ("adaface", 0.4, 0.333)


@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_a_configuration_may_stand_without_an_option_as_for_the_references_trainers(tmp_path: Path) -> None:
    """``train.py configs/ours.py --local_rank 0``, with launchers' options before or behind it."""
    (tmp_path / "ours.py").write_text("config.batch_size = 64\n")
    for words in (["{}"], ["{}", "--local_rank=0"], ["--local_rank", "0", "{}", "--perf_steps", "200"]):
        recipe = parse_arguments([word.format(tmp_path / "ours.py") for word in words])
        assert (recipe.name, recipe.train.batch_size) == ("ours", 64)
    with pytest.raises(RecipeError, match="unexpected argument 'ours'"):
        parse_arguments(["ours"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profiling", "--start_step", "100", "--stop_step", "100"], "profile_stop must be above .* got 100 to 100"),
        (["--head.margin", "magface", "--head.magface-lower", "200"], "magface_upper must be above .* got 200 to 110"),
    ],
)
def test_ranges_that_hold_nothing_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_arguments(words)


def test_a_rate_that_never_falls_is_told() -> None:
    with pytest.warns(UserWarning, match=r"optim\.warmup_epochs 4 is no less than train\.epochs 4: the rate rises to"):
        parse_arguments(["--optim.warmup-epochs", "4", "--train.epochs", "4"])
    steps = ["--optim.schedule", "steps", "--optim.milestones", "8,14", "--train.epochs"]
    with pytest.warns(
        UserWarning, match=r"optim\.milestones begin at epoch 8, train\.epochs is 8: the rate never falls"
    ):
        parse_arguments([*steps, "8"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_arguments([*steps, "9"])
        parse_arguments(["--optim.warmup-epochs", "3.9", "--train.epochs", "4"])
