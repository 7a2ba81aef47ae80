"""Backbones: the published state-dict keys, parameter counts, gradient checkpointing and embeddings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from app.backbones.registry import BackboneError, build_backbone

HERE = Path(__file__).parent
# Facts about insightface's networks (embedding 512, image 112): a hash over "key shape" lines, in order.
REFERENCE = json.loads((HERE / "reference_state_dicts.json").read_text())
NAMES = [name for name in REFERENCE if not name.startswith("vit")]


def key_lines(model: torch.nn.Module) -> str:
    return "\n".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(name, embedding_size=512)
    lines = key_lines(model)
    listed = HERE / f"{name}.keys.txt"
    if listed.exists():
        assert lines.splitlines() == listed.read_text().splitlines()
    assert hashlib.sha256(lines.encode()).hexdigest() == REFERENCE[name]["sha256"]
    assert sum(p.numel() for p in model.parameters()) == REFERENCE[name]["params"]


@pytest.mark.parametrize("name", ["r10_small", "mbf"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    images = torch.randn(4, 3, 112, 112)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_backbone(name, embedding_size=64, gradient_checkpointing=checkpointing)
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_embeddings_are_float32_under_autocast() -> None:
    model = build_backbone("r10_small", embedding_size=128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(torch.randn(2, 3, 112, 112))
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (2, 128)


def test_an_unknown_name_or_option_is_told_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match="did you mean 'r50'"):
        build_backbone("r5O")
    with pytest.raises(BackboneError, match="does not take"):
        build_backbone("mbf", drop_path=0.1)
