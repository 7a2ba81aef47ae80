"""Backbones by name: the reference's names, published light ones, and a small one for machines without accelerator."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from app.backbones.edgeface import EdgeFace
from app.backbones.ghostfacenet import GhostFaceNet
from app.backbones.ir import IR
from app.backbones.iresnet import IResNet
from app.backbones.kprpe import KeyPointViT
from app.backbones.mobilefacenet import MobileFaceNet
from app.backbones.vit import VisionTransformer
from app.errors import AppError


class BackboneError(AppError):
    """No backbone of that name, or it does not take an option."""


_DEPTHS = {
    "r18": (2, 2, 2, 2),
    "r34": (3, 4, 6, 3),
    "r50": (3, 4, 14, 3),
    "r100": (3, 13, 30, 3),
    "r152": (3, 8, 36, 3),
    "r200": (6, 26, 60, 6),
    "r2060": (3, 128, 896, 3),
}

# Width, depth, drop path, masking, and whether the reference recomputes its blocks.
_VITS: dict[str, tuple[int, int, float, float, bool]] = {
    "vit_t": (256, 12, 0.1, 0.1, False),
    "vit_t_dp005_mask0": (256, 12, 0.05, 0.0, False),
    "vit_s": (512, 12, 0.1, 0.1, False),
    "vit_s_dp005_mask_0": (512, 12, 0.05, 0.0, False),
    "vit_b": (512, 24, 0.1, 0.1, True),
    "vit_b_dp005_mask_005": (512, 24, 0.05, 0.05, True),
    "vit_l": (768, 24, 0.1, 0.1, True),
    "vit_l_dp005_mask_005": (768, 24, 0.05, 0.05, True),
    "vit_h": (1024, 48, 0.1, 0.0, True),
}

# Depths, channels, heads, and the rank of linear layers over their full rank (0: whole).
_EDGEFACES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, float]] = {
    "edgeface_xxs": ((2, 2, 6, 2), (24, 48, 88, 168), 4, 0.0),
    "edgeface_xs_gamma_06": ((3, 3, 9, 3), (32, 64, 100, 192), 4, 0.6),
    "edgeface_s_gamma_05": ((3, 3, 9, 3), (48, 96, 160, 304), 8, 0.5),
    "edgeface_base": ((3, 3, 9, 3), (80, 160, 288, 584), 8, 0.0),
}

_BACKBONES: dict[str, Callable[..., nn.Module]] = {}


def _register_all() -> None:
    for name, depths in _DEPTHS.items():
        register(name, partial(IResNet, depths))
    for name, same in (("ir_18", "r18"), ("ir_50", "r50"), ("ir_101", "r100")):
        register(name, partial(IR, _DEPTHS[same]))
    register("r10_small", partial(IResNet, (1, 1, 1, 1), widths=(32, 64, 128, 256), stem_stride=2))
    for name, (dim, depth, drop_path, mask_ratio, recompute) in _VITS.items():
        defaults = {"dim": dim, "drop_path": drop_path, "mask_ratio": mask_ratio, "gradient_checkpointing": recompute}
        register(name, partial(VisionTransformer, depth=depth, **defaults))  # type: ignore[arg-type]
    for name in ("vit_t", "vit_s", "vit_b"):
        dim, depth, drop_path, _, recompute = _VITS[name]
        own = {"dim": dim, "drop_path": drop_path, "gradient_checkpointing": recompute}
        register(f"{name}_kprpe", partial(KeyPointViT, depth=depth, **own))  # type: ignore[arg-type]
    register("mbf", partial(MobileFaceNet, (1, 4, 6, 2), scale=2))
    register("mbf_large", partial(MobileFaceNet, (2, 8, 12, 4), scale=4))
    for name, (blocks, dims, heads, gamma) in _EDGEFACES.items():
        register(name, partial(EdgeFace, blocks, dims, heads=heads, gamma=gamma))
    for stride in (1, 2):
        for version, last in ((1, 512), (2, 960)):
            options = {"stride": stride, "attention": version == 2, "last": last}
            register(f"ghostface_v{version}_s{stride}", partial(GhostFaceNet, width=1.3, **options))  # type: ignore[arg-type]


def register(name: str, build: Callable[..., nn.Module]) -> None:
    """Give a backbone its name.

    Args:
        build: called with ``embedding_size`` and ``image_size``, and with those options of a recipe's ``[model]`` that
            are set; its signature says which it takes. The module maps float32 [B, 3, H, W] in [-1, 1] to [B, D].

    Raises:
        BackboneError: the name is taken.
    """
    if name in _BACKBONES:
        raise BackboneError(f"there is a backbone {name!r} already: register another name")
    _BACKBONES[name] = build


def backbone_names() -> list[str]:
    """All names, sorted."""
    return sorted(_BACKBONES)


def build_backbone(name: str, **options: Any) -> nn.Module:
    """Build a backbone.

    Args:
        name: one of ``backbone_names()``.
        options: ``embedding_size``, ``image_size``, ``gradient_checkpointing`` and what the family takes besides.

    Raises:
        BackboneError: the name is unknown (the nearest is suggested), or the family has no such option.
    """
    if name not in _BACKBONES:
        near = difflib.get_close_matches(name, _BACKBONES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BackboneError(f"unknown backbone {name!r}: {hint}one of {', '.join(backbone_names())}")
    build = _BACKBONES[name]
    takes = inspect.signature(build).parameters
    # Asked before the call: a TypeError from inside a constructor is a mistake of ours and keeps its traceback.
    for option in options:
        if option not in takes and not any(kind.kind is kind.VAR_KEYWORD for kind in takes.values()):
            raise BackboneError(f"backbone {name!r} has no {option}: leave model.{option} as it is by default")
    return build(**options)


_register_all()
