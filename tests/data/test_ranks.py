"""The data of a run's processes: one dataset for all of them, and nothing left to read when one of them fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app import train
from app.config.options import parse_arguments
from app.data.build import make_loader
from app.data.config import DataConfig
from app.data.source import SourceError
from app.data.synthetic import NoiseSource
from app.device import Device
from app.training.start import refuse_different_data
from app.world import World
from tests.jobs import SMALL
from tests.ranks import run_ranks


def compare(rank: int, size: int, images: list[int], classes: list[int]) -> str:
    source = NoiseSource(images[rank], 10, 8, 0)
    world = World(rank, size, 0, Device("cpu", torch.device("cpu"), "gloo"))
    try:
        refuse_different_data(source, classes[rank], world)
    except SourceError as error:
        return str(error)
    return ""


def test_ranks_that_opened_different_datasets_refuse_to_train() -> None:
    said = run_ranks(compare, 3, [120, 120, 110], [10, 10, 10])
    assert len(set(said)) == 1  # all of them end, none waits for another
    assert "rank 0" in said[0]
    assert "120 images of 10 classes, rank 2 on" in said[0]
    assert "110 of 10" in said[0]


def test_a_property_file_of_other_classes_is_told_and_equal_data_are_not() -> None:
    assert "rank 1" in run_ranks(compare, 2, [120, 120], [10, 11])[0]
    assert run_ranks(compare, 2, [120, 120], [10, 10]) == ["", ""]


def test_after_an_error_of_a_step_no_more_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Python waits for a pool's threads, and they for all blocks of a window, also where a peer was lost."""
    config = DataConfig(image_size=8, augment="none")
    source = NoiseSource(4000, 10, 8, 0)
    loader = make_loader(source, config, num_classes=10, batch_size=4, logical_workers=1, seed=0)
    held: list[Any] = []

    def lose_a_peer() -> None:
        held.append(loader.steps(0, 0, [0]))
        next(held[0])
        raise RuntimeError("Connection closed by peer")

    recipe = parse_arguments([*SMALL, "--data.url", "synthetic", "--output.url", str(tmp_path)])
    monkeypatch.setattr(train, "prepare", lambda *_: SimpleNamespace(loader=loader, run=lose_a_peer))
    monkeypatch.setattr(train, "is_complete", lambda _: False)
    with pytest.raises(RuntimeError, match="peer"):
        train.train(recipe)
    with pytest.raises(RuntimeError, match="shutdown"):
        loader._fetchers.submit(print)
