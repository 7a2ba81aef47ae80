"""The launch commands of docs/training.md, word for word: each is taken by the program that it names, as a dry run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import config_from_args, parse_args

from app.config.options import parse_arguments
from app.config.recipe import Recipe
from tests.components.api_server import ApiServer
from tests.jobs import ROOT, environment, torchx

FULL = ["--recipe", "glint360k_r100", "--data.url", "s3://faces/glint360k", "--output.url", "s3://runs"]
TABLE = re.findall(
    r"^\| ([^|`]+) \| (?:on each: )?`([^`]+)` ?[^|`]*\|$", (ROOT / "docs" / "training.md").read_text(), re.M
)
COMMANDS = {where: shlex.split(command) for where, command in TABLE if "app.train" in command or "torchx" in command}


def of_app(words: list[str]) -> Recipe:
    """The recipe that the words behind ``app.train`` give; an ellipsis stands for the first row's addresses."""
    words = words[words.index("app.train") + 1 :]
    return parse_arguments([*(FULL[2:] if "…" in words else []), *(word for word in words if word != "…")])


def test_the_table_has_them_all() -> None:
    assert list(COMMANDS) == ["1 device", "1 node x 8", "4 nodes x 8", "4 nodes x 8, TorchX", "speed only"]


def test_one_device() -> None:
    words = COMMANDS["1 device"]
    assert words[:3] == ["python", "-m", "app.train"]
    command = [sys.executable, *words[1:], "--print-config"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=100, check=True)
    assert 'url = "s3://faces/glint360k"' in done.stdout
    assert "num_classes = 360232" in done.stdout


@pytest.mark.parametrize(("where", "nodes"), [("1 node x 8", 1), ("4 nodes x 8", 4)])
def test_torchrun(where: str, nodes: int) -> None:
    words = [{"N": "3", "HOST": "node-0"}.get(word, word) for word in COMMANDS[where]]
    assert words[0] == "torchrun"
    arguments = parse_args([word for word in words[1:] if word != "…"])
    config, _, _ = config_from_args(arguments)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (nodes, nodes, 8)
    assert arguments.module
    recipe = of_app(words)
    assert recipe.data.num_classes == 360232
    assert recipe.train.batch_size == 128


def test_speed_only() -> None:
    recipe = of_app(COMMANDS["speed only"])
    assert (recipe.data.url, recipe.train.perf_steps) == ("synthetic", 100)


def test_torchx(tmp_path: Path) -> None:
    words = COMMANDS["4 nodes x 8, TorchX"]
    assert words[:4] == ["torchx", "run", "-s", "kubernetes"]
    with ApiServer(tmp_path) as server:
        variables = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(tmp_path)}
        done = torchx("run", "--dryrun", *words[2:], variables=variables)
    assert done.returncode == 0, done.stderr
    request = done.stdout.split("=== SCHEDULER REQUEST ===")[1]
    assert request.count("--nproc-per-node") == 4
    assert request.count("- --recipe") == 4
