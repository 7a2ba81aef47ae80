"""Multiply-adds and parameters of a backbone, counted by torch itself."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.backbones.registry import backbone_names, build_backbone


def count(name: str, image_size: int = 112, embedding_size: int = 512) -> tuple[int, int]:
    """Multiply-adds of one image's forward pass, and parameters; nothing is allocated."""
    with torch.device("meta"):
        model = build_backbone(name, image_size=image_size, embedding_size=embedding_size).eval()
        images = torch.zeros(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images)
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


def table() -> str:
    """All backbones, a line each."""
    lines = [f"{'backbone':<24}{'GMAdd':>10}{'M params':>12}"]
    for name in backbone_names():
        operations, parameters = count(name)
        lines.append(f"{name:<24}{operations / 1e9:>10.2f}{parameters / 1e6:>12.2f}")
    return "\n".join(lines)
