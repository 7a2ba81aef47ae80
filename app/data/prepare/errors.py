"""The error of everything that makes datasets."""

from __future__ import annotations

from app.errors import AppError


class PrepareError(AppError):
    """A dataset cannot be made; says what is missing."""
