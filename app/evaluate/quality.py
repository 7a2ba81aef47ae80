"""Does the model know which pictures it cannot tell: the error that is left as the worst pictures are rejected.

The curve of error against reject (Grother and Tabassi 2007): pairs are sorted by quality, the worst are rejected, and
the share of genuine pairs that are missed is counted among the rest, at a threshold that stays. The quality of a
picture is the length of its embedding, which MagFace trains for that; a pair has that of its worse picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluate.groups import threshold_at

REJECTS = tuple(round(0.05 * step, 2) for step in range(20))  # 0 to 0.95


def error_against_reject(
    distances: NDArray[np.float64], issame: NDArray[np.bool_], quality: NDArray[np.float64], threshold: float
) -> list[float | None]:
    """FNR among the genuine pairs that are left after each share of ``REJECTS``; None where none is left.

    Args:
        distances: squared, float64 [P].
        issame: bool [P].
        quality: of each pair, float64 [P].
        threshold: pairs below it are accepted.
    """
    order = np.argsort(quality[issame], kind="stable")
    missed = (distances[issame][order] >= threshold).astype(np.int64)
    count = len(missed)
    left = np.concatenate([np.cumsum(missed[::-1])[::-1], [0]])  # misses from each place on
    rates: list[float | None] = []
    for share in REJECTS:
        first = int(share * count + 1e-9)
        rates.append(float(left[first] / (count - first)) if first < count else None)
    return rates


def quality_report(
    distances: NDArray[np.float64], issame: NDArray[np.bool_], norms: NDArray[np.float64], fpr: float
) -> dict[str, Any]:
    """The curve of a set, and of qualities that know nothing and everything, as plain JSON.

    ``best`` rejects the missed pairs first: no quality can do better. ``area`` is the mean of a curve over the shares.

    Args:
        norms: length of each picture's embedding, float64 [P, 2].
        fpr: share of the impostor pairs that the threshold accepts.

    Raises:
        GroupsError: see ``groups.threshold_at``.
    """
    threshold = threshold_at(distances[~issame], fpr)
    curve = error_against_reject(distances, issame, norms.min(axis=1), threshold)
    best = error_against_reject(distances, issame, -distances, threshold)
    return {
        "threshold": threshold,
        "fpr": fpr,
        "reject": list(REJECTS),
        "fnr": curve,
        "best": best,
        "area": _area(curve),
        "area_best": _area(best),
        "area_at_random": curve[0],  # rejecting at random leaves the share as it is
    }


def _area(curve: list[float | None]) -> float:
    return float(np.mean([rate for rate in curve if rate is not None]))


def format_quality(name: str, report: dict[str, Any]) -> str:
    """A line for every second share, and the areas."""
    lines = [f"{name}: FNR at FPR {report['fpr']:g} as the worst pictures are rejected", "reject     FNR    best"]
    for share, rate, best in list(zip(report["reject"], report["fnr"], report["best"], strict=True))[::2]:
        cells = ["     -" if value is None else f"{value:6.4f}" for value in (rate, best)]
        lines.append(f"{100 * share:5.0f}%  {cells[0]}  {cells[1]}")
    areas = f"area {report['area']:.4f}, best {report['area_best']:.4f}, at random {report['area_at_random']:.4f}"
    return "\n".join([*lines, areas])
