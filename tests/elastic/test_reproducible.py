"""``train.reproducible``: whole runs give the same bits on 1, 3 and 4 processes, also when their number changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.config.options import parse_arguments
from app.config.recipe import RecipeError
from tests.jobs import losses, train, weights, write_faces

# Sampled classes, and a margin that keeps a running mean: what else could follow the processes.
OPTIONS = (
    *("--train.reproducible", "true", "--train.logical-workers", "4", "--train.epochs", "2"),
    *("--head.sample-rate", "0.6", "--head.margin", "adaface"),
)


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bits_also_when_it_changes(tmp_path: Path) -> None:
    data, alone, four, changing = (str(tmp_path / name) for name in ("data", "alone", "four", "changing"))
    write_faces(data)
    train(1, data, alone, *OPTIONS)
    train(4, data, four, *OPTIONS)
    train(3, data, changing, *OPTIONS, "--train.last-step", "4")
    train(2, data, changing, *OPTIONS)
    for output in (four, changing):
        assert losses(output) == losses(alone)
        for name, value in weights(alone).items():
            assert torch.equal(weights(output)[name], value), name


@pytest.mark.parametrize("option", [("--train.sync-bn", "true"), ("--train.gradient-compression", "bf16")])
def test_what_follows_the_processes_is_refused(option: tuple[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"train\.reproducible sums in the order of logical workers"):
        parse_arguments(["--recipe", "orl", "--train.reproducible", "true", *option])
