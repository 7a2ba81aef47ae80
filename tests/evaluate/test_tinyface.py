"""TinyFace's layout, against ranks counted by loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.backbones.registry import build_backbone
from app.data.recordio import RecordError
from app.evaluate import load_model
from app.evaluate.__main__ import main
from tests.data.prepare.pictures import encode, put, scene

OPTIONS = ["--backbone", "r10_small", "--embedding-size", "32"]


def make(root: Path) -> None:
    """Six people: a probe and two gallery pictures each, noise apart; 30 distractors."""
    generator = np.random.default_rng(0)
    for person in range(1, 7):
        face = np.asarray(scene(person), dtype=float)
        for folder, numbers in (("Probe", (1,)), ("Gallery_Match", (2, 3))):
            for number in numbers:
                noisy = np.clip(face + generator.normal(0, 90, face.shape), 0, 255).astype(np.uint8)
                put(root / "Testing_Set" / folder / f"{person}_{number}.jpg", encode(Image.fromarray(noisy), "JPEG"))
    for number in range(30):
        put(root / "Testing_Set" / "Gallery_Distractor" / f"{number}.jpg", encode(scene(100 + number), "JPEG"))


def test_ranks_are_those_of_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "tiny")
    torch.manual_seed(0)
    torch.save(build_backbone("r10_small", embedding_size=32).state_dict(), tmp_path / "b.pth")
    where = ["--model", f"{tmp_path}/b.pth", *OPTIONS, "--data", f"{tmp_path}/tiny"]
    assert main(["tinyface", *where, "--output", f"{tmp_path}/out.json"]) == 0
    assert "rank-1: " in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    model = load_model(tmp_path / "b.pth", backbone="r10_small", embedding_size=32)
    testing = tmp_path / "tiny" / "Testing_Set"
    gallery = sorted((testing / "Gallery_Match").iterdir()) + sorted((testing / "Gallery_Distractor").iterdir())
    embedded = model.embed(gallery, flip=True)
    places, precisions = [], []
    for probe in sorted((testing / "Probe").iterdir()):
        person = probe.name.split("_")[0]
        scores = embedded @ model.embed(probe, flip=True)[0]
        order = [gallery[i] for i in np.argsort(-scores)]
        mates = [i for i, path in enumerate(order) if path.parent.name == "Gallery_Match" and path.name[0] == person]
        places.append(mates[0])
        assert len(mates) == 2
        precisions.append((1 / (mates[0] + 1) + 2 / (mates[1] + 1)) / 2)
    assert found["mAP"] == pytest.approx(np.mean(precisions))
    assert 0 < found["mAP"] < 1
    for rank in (1, 5, 10, 20, 50):
        assert found[f"rank-{rank}"] == pytest.approx(np.mean([place < rank for place in places]))
    assert (found["probes"], found["gallery"]) == (6, 42)


def test_another_layout_is_told(tmp_path: Path) -> None:
    make(tmp_path / "tiny")
    torch.save(build_backbone("r10_small", embedding_size=32).state_dict(), tmp_path / "b.pth")
    where = ["tinyface", "--model", f"{tmp_path}/b.pth", *OPTIONS, "--data", f"{tmp_path}/tiny"]
    put(tmp_path / "tiny" / "Testing_Set" / "Probe" / "who.jpg", encode(scene(1), "JPEG"))
    with pytest.raises(RecordError, match=r"Probe/who\.jpg: expected <person>_<number>"):
        main(where)
    (tmp_path / "tiny" / "Testing_Set" / "Probe" / "who.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(RecordError, match=r"Probe/who\.jpg: unreadable"):
        main(where)
    (tmp_path / "tiny" / "Testing_Set" / "Gallery_Match").rename(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="no Gallery_Match there"):
        main(where)
