"""Names of backbones, and what becomes of an option that one does not have."""

from __future__ import annotations

import pytest
from torch import nn

from app.backbones import registry
from app.backbones.registry import BackboneError, backbone_names, build_backbone, register
from tests.jobs import ROOT


def test_an_option_of_another_family_is_named() -> None:
    with pytest.raises(BackboneError, match=r"'r18' has no mask_ratio: leave model\.mask_ratio"):
        build_backbone("r18", embedding_size=8, image_size=112, mask_ratio=0.1)


def test_a_mistake_inside_a_constructor_is_not_called_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))

    def broken(embedding_size: int, image_size: int) -> nn.Module:
        return nn.Linear(embedding_size, "many" * image_size)  # type: ignore[arg-type]

    register("broken", broken)
    with pytest.raises(TypeError):
        build_backbone("broken", embedding_size=8, image_size=1)
    with pytest.raises(BackboneError, match="there is a backbone 'broken' already"):
        register("broken", broken)


def test_the_page_lists_every_backbone() -> None:
    page = (ROOT / "docs" / "training.md").read_text().split("## Backbones")[1].split("\n## ")[0]
    assert [name for name in backbone_names() if f"`{name}`" not in page] == []
