"""Every command that a page shows is one that its program takes: jobs as dry runs, all others by their own parsers."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args as parse_torchrun
from torchx.cli.main import create_parser, get_sub_cmds
from torchx.runner.config import load_sections
from torchx.schedulers.kubernetes_scheduler import Opts
from torchx.specs import parse_app_handle
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

from app.config.options import parse_arguments
from components import pipeline, preflight
from tests.components.api_server import problems_of_job
from tests.jobs import ROOT
from torchx_plugins.schedulers.elastic_kubernetes import create_scheduler

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "THREATS.md", "SECURITY.md", *DOCS]
PROGRAMS = ("torchx", "kubectl", "helm", "python", "make", "torchrun", "docker")
NOTES = "k8s/chart/templates/NOTES.txt"
SHELL = ("source", "export", "cp", "pre-commit", "--from-file=ca.crt=our-authority.pem")  # and one line to be added
OURS = "configs/our_r100.py"  # a file of the reader's own
HELM, KUBECTL = ("install", "test"), ("apply", "create")


def commands(page: str) -> list[tuple[str, bool]]:
    """The commands of a page, and whether each stands in a block, to be run as it is, or within a sentence."""
    text = (ROOT / page).read_text()
    if page == NOTES:
        text = re.sub(r"\{\{-? if .*?\}\}.*?\{\{-? end -?\}\}", "", text)
        text = re.sub(r"\\\n\s*", " ", re.sub(r"\{\{.*?\}\}", "value", text))
        return [(line.strip(), True) for line in text.splitlines() if line.strip().startswith(PROGRAMS)]
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    inline = re.findall(rf"`((?:{'|'.join(PROGRAMS)})\s[^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    shown = [(line, True) for line in lines if line and not line.startswith("#")]
    return shown + [(" ".join(line.split()), False) for line in inline]


ALL = [(page, line, whole) for page in [*PAGES, NOTES] for line, whole in commands(page)]


def check_torchx(words: list[str]) -> None:
    options = create_parser(get_sub_cmds()).parse_args(words)
    if words[0] != "run":
        if handle := getattr(options, "app_handle", None) or getattr(options, "identifier", None):
            assert parse_app_handle("/".join(handle.split("/")[:4])).app_id == "faces:NAME"
        return
    assert options.scheduler == "kubernetes"
    component, *arguments = options.component_name_and_args
    defaults = load_sections(dirs=[str(ROOT)], prefix="component").get(component, {})
    app = materialize_appdef(get_component(f"{ROOT}/{component}").fn, arguments, defaults)
    info = create_scheduler("test").submit_dryrun(app, Opts(queue="default", validate_spec=False))
    assert problems_of_job(yaml.safe_load(str(info))) == []


def check_module(module: str, arguments: list[str], *, whole: bool) -> None:
    name = module if module != "app.evaluate" else "app.evaluate.__main__"
    found: Any = importlib.import_module(name)
    if module == "components.preflight":
        assert preflight.build(arguments[arguments.index("--") + 1 :]).roles
    elif module == "components.pipeline":
        assert pipeline.parse(arguments)
    elif module == "components.status":
        assert parse_app_handle(arguments[0]).app_id == "faces:NAME"
    elif module == "app.plan":
        assert found.main(arguments) == 0
    elif module == "app.train":
        if OURS in arguments:
            arguments = [word for word in arguments if word not in ("--recipe", OURS)]
        assert parse_arguments([word for word in arguments if word not in ("--help", "--version")])
    elif whole or len(arguments) > 1:
        assert found.parse(arguments)
    elif arguments:
        with pytest.raises(SystemExit) as leaving:  # the help of what a sentence names
            found.parse([*arguments, "--help"])
        assert leaving.value.code == 0


def check_files(words: list[str], flags: tuple[str, ...]) -> None:
    for flag, value in itertools.pairwise(words):
        assert flag not in flags or (ROOT / value).exists(), value


@pytest.mark.parametrize(
    ("line", "whole"), [(line, whole) for _, line, whole in ALL], ids=[f"{page}: {line[:60]}" for page, line, _ in ALL]
)
def test_the_command_is_taken(line: str, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *words = [word for word in shlex.split(line, comments=True) if word != "…"]
    if program == "torchx" and words != ["run"]:
        check_torchx(words)
    elif program == "python":
        assert words[0] == "-m"
        check_module(words[1], words[2:], whole=whole)
    elif program == "torchrun":
        places = {"N": "0", "HOST": "node-0"}
        options = parse_torchrun([places.get(word, word) for word in words])
        assert (options.module, options.training_script) == (True, "app.train")
        assert parse_arguments(options.training_script_args)
    elif program == "make":
        targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words if "=" not in word} <= targets
    elif program == "helm":
        assert words[0] in HELM
        assert words[0] != "install" or (ROOT / words[2] / "Chart.yaml").exists()
    elif program == "kubectl":
        assert next(word for word in words if not word.startswith("-")) in (*KUBECTL, "faces", "value")
        check_files(words, ("-f", "-k"))
        assert "secret" not in words or words[words.index("secret") + 1] == "generic"
    elif program == "docker":
        check_files(words, ("-f",))
    else:
        assert program in (*SHELL, "torchx"), line


def test_pages_show_commands_of_every_program() -> None:
    assert {line.split()[0] for _, line, _ in ALL} >= set(PROGRAMS)
    assert len(ALL) > 60
    assert all(Path(ROOT / page).exists() for page in PAGES)
