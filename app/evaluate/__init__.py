"""Uses and judges trained models. For programs: ``from app.evaluate import load_model``; see docs/python.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.evaluate.face_model import FaceModel, load_model

__all__ = ["FaceModel", "load_model"]


def __getattr__(name: str) -> Any:
    # On demand: metrics alone need no torch.
    if name in __all__:
        from app.evaluate import face_model

        return getattr(face_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
