"""Every entry point says what it is for, its version, and what to type."""

from __future__ import annotations

import argparse
import importlib
import re
import runpy
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from app import __version__
from app.__main__ import PROGRAMS, main
from demo.__main__ import _NOISE
from demo.stages import break_lines, fit_report
from tests.jobs import ROOT

MODULES = ["app", *(f"app.{program}" for program in PROGRAMS), "app.config", "demo", "tests.soak", "tests.fuzz"]
COMPONENTS = ["components.status", "components.preflight", "components.pipeline"]
BENCHMARKS = [
    f"benchmarks.{path.stem}"
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


def python_m(module: str, option: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """What ``python -m module option`` does, in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [module, option])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    return int(ended.value.code or 0)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("module", [*MODULES, *BENCHMARKS, *COMPONENTS])
def test_help_is_printed_anywhere_and_nothing_is_started(
    module: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    # Restored afterwards: components change what every parser says about a mistake.
    monkeypatch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)
    assert python_m(module, option, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "usage:" in said
    if module.startswith("app."):
        assert said.startswith(f"usage: python -m {module} ")
    assert len(said.splitlines()) > 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", [*MODULES, *COMPONENTS])
def test_version(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(argparse.ArgumentParser, "error", argparse.ArgumentParser.error)
    assert python_m(module, "--version", monkeypatch) == 0
    assert capsys.readouterr().out == f"arcface-torchx {__version__}\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES[1:])
def test_an_option_that_is_none_is_told_in_one_line_and_nothing_is_started(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert python_m(module, "--frobnicate", monkeypatch) in (2, 65)
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1), said
    assert said.err.startswith("error: ")
    assert "--help" in said.err
    assert list(tmp_path.iterdir()) == []


def test_one_name_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == said.err
    assert all(f"  {program} " in said.err for program in PROGRAMS)
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "app.evaluate" in capsys.readouterr().out


def test_console_scripts_are_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"arcface", *(f"arcface-{program}" for program in PROGRAMS)}
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def hidden(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in _NOISE)


@pytest.mark.parametrize("month", range(1, 13))
def test_the_demo_hides_the_launchers_warnings_in_every_month(month: int) -> None:
    assert hidden(f"trainer/0 W{month:02d}25 09:12:11.123000 77 torch/distributed/run.py:851] OMP_NUM_THREADS")


def test_the_demo_shows_what_training_says() -> None:
    for line in ("trainer/0 ██░░  10%  345.1 img/s | loss  12.1", "W1 is no mark", "error: training failed"):
        assert not hidden(line), line


def test_the_demos_reports_fit_the_terminal_and_other_lines_stay() -> None:
    report = "trainer/1 ###---   2%     37.5 img/s | loss   8.1361 | ETA 6m31s | step 6 | lr 0.08333 | epoch 0\n"
    assert fit_report(report, 80) == "trainer/1 ###--- 2% 37.5 img/s | loss 8.1361 | ETA 6m31s | step 6 | lr 0.08333\n"
    assert fit_report(report, 20) == "trainer/1 ###--- 2% 37.5 img/s | loss 8.1361\n"
    assert fit_report(report, 0) == fit_report(report, 200) == report
    table = "trainer/0 | Name | Accuracy-Highest | FPS | Epochs | AMP type |\n"
    assert fit_report(table, 20) == table
    assert fit_report("a line that fits\n", 16) == "a line that fits\n"


def test_the_demos_sentences_are_broken_between_words() -> None:
    sentence = "[3/4] training: components.py:arcface_dist on 2 nodes, streaming RecordIO from the bucket"
    for columns in (20, 40, 80):
        lines = fit_report(sentence + "\n", columns).splitlines()
        assert " ".join(line.strip() for line in lines) == sentence
        assert all(len(line) <= columns or " " not in line.strip() for line in lines)
        assert break_lines(sentence, columns).splitlines() == lines
    assert break_lines(sentence, 0) == sentence
