"""A recipe that is a file here reaches the pods inside the job; the app looks at options before there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config.options import parse_arguments, to_toml
from components import app_options
from components.app_options import AppMissing, recipe_arguments
from components.arguments import ComponentError
from components.recipes import known_recipe
from tests.components.test_appdefs import build
from tests.jobs import ROOT

TOML = """
[model]
backbone = "r18"
compile = true

[head]
m3 = 0.35

[data]
url = "s3://faces/x y, z"

[optim]
weight_decay = 5e-4

[verify]
sets = ["lfw", "agedb_30"]
"""


def test_a_recipe_file_travels_inside_the_job_and_means_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(TOML)
    here = parse_arguments(["--recipe", str(path), "--optim.lr", "0.3"])
    for spelling in (str(path), f"file://{path}"):
        args = (
            build("arcface_dist", "--optim.lr", "0.3", nnodes="1", hardware="cpu", recipe=spelling, data="")
            .roles[1]
            .args
        )
        assert str(path) not in " ".join(args)
        there = parse_arguments(
            [a for a in args[args.index("--") + 1 :] if not a.startswith("--output.prometheus") and a != "9400"]
        )
        assert there.name == "ours"
        different = [
            pair
            for pair in zip(to_toml(here).splitlines(), to_toml(there).splitlines(), strict=True)
            if len(set(pair)) > 1
        ]
        assert different == [("max_processes = 0", "max_processes = 1")]


def test_a_configuration_of_arcface_torch_travels_as_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "ours.py"
    path.write_text(
        "from easydict import EasyDict as edict\nconfig = edict()\nconfig.network = 'r18'\nconfig.lr = 0.02\n"
    )
    arguments = recipe_arguments(str(path))
    assert "--model.backbone=r18" in arguments
    assert "--optim.lr=0.02" in arguments
    assert len(arguments) < 40


def test_what_the_command_sets_replaces_the_recipes_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('\ufeff[data]\nurl = "s3://theirs"\n[model]\ninit = "/home/me/r50.pt"\nbackbone = "r50"\n')
    options = {"nnodes": "1", "hardware": "cpu", "recipe": str(path), "data": "s3://ours"}
    args = build("arcface_dist", "--model.init=s3://models/r50.pt", **options).roles[1].args
    words = args[args.index("--") + 1 :]
    assert words[0] == "--model.backbone=r50"
    assert not any("theirs" in word or "/home/me" in word for word in words)
    assert capsys.readouterr().err == (
        "note: --data s3://ours takes the place of the recipe's own, s3://theirs: --data '' keeps it\n"
    )
    build("arcface_dist", **{**options, "data": ""})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("recipe", ["s3://configs/ours.toml", "glint360k_r100", "https://host/ours.py"])
def test_names_and_urls_stay(recipe: str) -> None:
    assert recipe_arguments(recipe) == ["--recipe", recipe]


def test_a_file_that_cannot_travel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ours\.yaml': the name of a recipe's file ends with \.toml or \.py"):
        known_recipe("ours.yaml")
    with pytest.raises(ComponentError, match=r"no\.toml: cannot be read here \(FileNotFoundError\): correct the path"):
        recipe_arguments(str(tmp_path / "no.toml"))
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(ComponentError, match=r"bad\.toml: not TOML"):
        recipe_arguments(str(tmp_path / "bad.toml"))
    (tmp_path / "large.toml").write_text("#" * 70_000)
    with pytest.raises(ComponentError, match="larger than 64 KiB"):
        recipe_arguments(str(tmp_path / "large.toml"))


@pytest.mark.parametrize(
    ("component", "app_args", "options", "message"),
    [
        ("arcface_dist", ["--train.epohcs", "3"], {"nnodes": "1", "recipe": "orl"}, "did you mean '--train.epochs'"),
        ("arcface_dist", ["--optim.lr", "fast"], {"nnodes": "1", "recipe": "orl"}, "optim.lr must be a number"),
        (
            "arcface_dist",
            ["--model.backbone", "r5O"],
            {"nnodes": "1", "recipe": "orl"},
            "unknown backbone 'r5O': did you",
        ),
        ("arcface_dist", ["--model.backbone="], {"nnodes": "1", "recipe": "orl"}, "unknown backbone ''"),
        (
            "arcface_dist",
            ["--model.backbone", "mbf", "--model.mask-ratio", "0.1"],
            {"nnodes": "1", "recipe": "orl"},
            "backbone 'mbf' has no mask_ratio",
        ),
        ("arcface_dist", ["--train.epochs=0"], {"nnodes": "1", "recipe": "orl"}, "train.epochs"),
        (
            "arcface_verify",
            ["--florr", "1"],
            {"model": "s3://r/x", "sets": "s3://f"},
            "unrecognized arguments: --florr",
        ),
        ("arcface_prepare", ["--sizze", "1"], {"kind": "orl", "output": "s3://f"}, "unrecognized arguments: --sizze"),
        ("arcface_prepare", [], {"kind": "orll", "output": "s3://f"}, "invalid choice: 'orll'"),
        ("arcface_prepare", [], {"kind": "folder", "output": "s3://f"}, "required: --source"),
    ],
)
def test_a_mistyped_option_is_found_by_the_component(
    component: str, app_args: list[str], options: dict[str, str], message: str
) -> None:
    hardware = {} if component == "arcface_prepare" else {"hardware": "cpu"}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build(component, *app_args, **hardware, **options)


def test_a_submitter_without_the_app_submits_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = (1, "", "Traceback\nModuleNotFoundError: No module named 'fsspec'\n")
    monkeypatch.setattr(app_options, "_run", lambda _: missing)
    with pytest.raises(AppMissing):
        app_options.settings([])
    assert build("arcface_dist", "--train.epochs", "3", nnodes="1", recipe="orl", hardware="cpu").roles


def test_the_apps_answer_is_its_own_configuration() -> None:
    assert (
        app_options.settings(["--recipe", "orl"])["model"]["backbone"]
        == parse_arguments(["--recipe", "orl"]).model.backbone
    )
    assert (ROOT / "app" / "config" / "__main__.py").exists()
