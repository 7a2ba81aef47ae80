"""Weights that make no sense are an error with a name, never an accuracy of a half."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app.backbones.registry import build_backbone
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from app.evaluate.verification import EmbeddingError
from app.observe.events import EventLog, read_events
from app.verify import main


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(tmp_path: Path, value: float) -> None:
    generator = np.random.default_rng(0)
    faces = [encode_jpeg(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(40)]
    (tmp_path / "own.bin").write_bytes(dump_set(faces, [bool(i % 2) for i in range(20)]))
    state = build_backbone("r10_small", embedding_size=512, image_size=112).state_dict()
    state["fc.weight"] = torch.full_like(state["fc.weight"], value)
    torch.save(state, tmp_path / "bad.pt")
    where = ["--sets-url", str(tmp_path), "--report", str(tmp_path / "report"), "--no-baseline"]
    with pytest.raises(EmbeddingError, match="own: embeddings of 20 of 20 pairs are not finite"):
        main(["--model", str(tmp_path / "bad.pt"), "--backbone", "r10_small", *where])
    assert not (tmp_path / "report").exists()


def test_events_with_nan_are_json(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), enabled=True, tensorboard=False)
    log.add("step", 1, loss=float("nan"), rate=0.5)
    log.close()
    (line,) = next((tmp_path / "events").iterdir()).read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    assert read_events(str(tmp_path))[0]["rate"] == 0.5
