"""Questions that app.train answers, and the page made from the same fields."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import app
from app.config.help import answer, help_text
from app.config.nearest import nearest
from app.config.options import parse_arguments
from app.config.recipe import RecipeError, all_settings, sections
from scripts.make_reference import PAGE, reference_page

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("width", [40, 79, 100, 200])
def test_help_lists_every_option_with_meaning_choices_and_default_and_fits(width: int) -> None:
    text = help_text(width=width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for path, about in all_settings():
        assert f"--{path.replace('_', '-')} " in words
        assert about.meaning in words
        assert about.takes in words
    for section in sections():
        assert f"[{section}]" in words


def test_help_of_one_section() -> None:
    text = answer(["--help", "optim"])
    assert "--optim.lr" in text
    assert "--data.url" not in text


def test_help_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, answer(["-h"]).splitlines())) < 60


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--recpie", "--recipe"),
        ("--nmae", "--name"),
        ("--data.urll", "--data.url"),
        ("--ur", "--data.url"),
        ("--lr", "--optim.lr"),
        ("--train.lr", "--optim.lr"),
        ("--train.gradient-acumulatoin", "--train.gradient-accumulation"),
        ("--gradient-acc", "--train.gradient-accumulation"),
        ("--dta.wrokers", "--data.workers"),
        ("--batchsize", "--train.batch-size"),
        ("--list-recipies", "--list-recipes"),
        ("--versoin", "--version"),
        ("--perf-step", "--perf-steps"),
    ],
)
def test_a_mistyped_option_names_the_nearest(option: str, meant: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_arguments([option, "x"])
    assert f"'{meant}'" in str(error.value)
    assert option in str(error.value)


def test_nothing_alike_is_not_guessed() -> None:
    assert nearest("zzzzzzzz", ["recipe", "data.url"]) == []
    with pytest.raises(RecipeError, match=r"^unknown option --zzzzzzzz: --help lists all$"):
        parse_arguments(["--zzzzzzzz", "1"])


@pytest.mark.parametrize("option", ["--recipe", "--name", "--data.url", "--optim.lr"])
def test_an_option_without_its_value_says_so(option: str) -> None:
    with pytest.raises(RecipeError, match=f"{option} needs a value"):
        parse_arguments([option, "--train.profiling"])


def test_alone_it_says_what_to_type() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.train"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 65
    assert "python -m app.train --recipe NAME --data.url URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_has_one_source() -> None:
    assert answer(["--version"]) == f"arcface-torchx {app.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "app.__version__"}


def test_the_reference_page_is_current() -> None:
    assert PAGE.read_text() == reference_page(), "run: make reference"
