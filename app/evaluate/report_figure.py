"""The picture of a verification: ROC curves, and how the distances of genuine and impostor pairs lie apart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from app.evaluate.metrics import roc_curve
from app.evaluate.verification import SetResult

_GENUINE, _IMPOSTOR, _GREY = "#1b7f79", "#d1495b", "#8a8f98"
_COLOURS = ("#1b7f79", "#3d5a98", "#c77d0a", "#8e4585", "#4f772d", "#d1495b", "#5c6b73")


def draw_report(about: dict[str, Any], results: Sequence[SetResult], baseline: Sequence[SetResult]) -> bytes:
    """The picture as PNG: the ROC of all sets on the left, the first set's distances on the right."""
    figure = Figure(figsize=(12, 5), dpi=130, layout="constrained")
    roc, histogram = figure.subplots(1, 2)
    _draw_roc(roc, results, baseline)
    _draw_distances(histogram, results[0])
    figure.suptitle(f"{about['recipe']} · {about['backbone']} · step {about['step']}", fontsize=13)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_roc(name: str, scores: NDArray[np.float32], issame: NDArray[np.bool_]) -> bytes:
    """The ROC of one set as PNG, with the area under it, drawn at up to 100,000 thresholds."""
    far, tar = roc_curve(-scores.astype(np.float64), issame)
    area = float(np.trapezoid(tar, far))
    chosen = np.unique(np.searchsorted(far, np.geomspace(1e-7, 1, 100_000)).clip(0, len(far) - 1))
    figure = Figure(figsize=(7, 5.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.step(far[chosen], tar[chosen], where="post", color=_GENUINE, linewidth=2, label=f"{name}  AUC {area:.6f}")
    axes.set_xscale("log")
    axes.set_xlim(1e-6, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="lower right", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_roc(axes: Axes, results: Sequence[SetResult], baseline: Sequence[SetResult]) -> None:
    finest = 0.1
    for result, colour in zip(results, _COLOURS * len(results), strict=False):
        metrics = result.metrics
        label = f"{result.name}  {metrics.accuracy:.4f} ± {metrics.accuracy_std:.4f}"
        axes.step(*metrics.roc, where="post", color=colour, linewidth=2, label=label)
        finest = min(finest, 1 / max(1, int((~result.issame).sum())))
    for result in baseline:
        label = f"{result.name}, raw pixels  {result.metrics.accuracy:.4f}"
        axes.step(*result.metrics.roc, where="post", color=_GREY, linewidth=1.3, linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_xlim(finest, 1)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate")
    axes.set_title("ROC, with ten-fold accuracy")
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="lower right", frameon=False)


def _draw_distances(axes: Axes, result: SetResult) -> None:
    edges = np.linspace(0, max(2.0, float(result.distances.max())), 60).tolist()
    for same, colour, name in ((True, _GENUINE, "genuine"), (False, _IMPOSTOR, "impostor")):
        chosen = result.distances[result.issame == same]
        axes.hist(chosen, bins=edges, color=colour, alpha=0.65, label=f"{name}, {len(chosen)} pairs")
    axes.axvline(result.metrics.threshold, color="black", linewidth=1, linestyle=":")
    axes.annotate(
        f"threshold {result.metrics.threshold:.2f}",
        (result.metrics.threshold, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        va="top",
        fontsize=9,
    )
    axes.set_xlabel("squared distance of unit embeddings")
    axes.set_ylabel("pairs")
    axes.set_title(f"{result.name}: distances")
    axes.legend(loc="upper right", frameon=False, bbox_to_anchor=(1, 0.93))
